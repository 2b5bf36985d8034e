"""Craftax-Classic (arXiv 2402.16801): the rules and pictures of Crafter, with a ladder of tools up to the diamond.

The package `craftax` (extra `craftax`) has rules, worlds and textures. `world` puts them behind the contract of
`AbstractEnvironment`; `picture` draws a state from textures of 7 x 7 pixels, and `reading` reads a picture back.
"""

from dreamer4.envs.craftax.picture import Picture as Picture
from dreamer4.envs.craftax.reading import Reader as Reader
from dreamer4.envs.craftax.world import LADDER as LADDER
from dreamer4.envs.craftax.world import CraftaxPixels as CraftaxPixels
