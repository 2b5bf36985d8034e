"""Reading a picture of Craftax-Classic back: which tile each of its tiles is, and how many of each item there are.

Tiles are known pictures, so a frame, a dreamt one too, is read by the nearest of them.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8

from dreamer4.envs.craftax.picture import PLACES, TILE, VIEW, Picture, Sprite, asleep


Frames = UInt8[np.ndarray, "*batch 63 63 3"] | Float[np.ndarray, "*batch 63 63 3"]

NOTHING = -1
_CHUNK = 4096  # tiles whose distances to all known ones are held at a time


class Reader:
    """Reads frames that were drawn by day.

    A tile is a block with nothing on it or a thing: a mob (0 to 2, `MOBS`), an arrow (3 to 6), an arrow on a mob (as
    the arrow), or the player (7 to 11: facing left, right, up, down, asleep). The whole map looks another way to a
    player who sleeps, and then its tiles are others. Tiles that look alike are one.

    Attributes:
        block: block of each known tile.
        thing: what is on it, or `NOTHING`.
        sleeps: whether it is seen by a player who sleeps.
    """

    def __init__(self, picture: Picture):
        """Gathers all tiles that there are.

        Args:
            picture: has the textures.
        """
        plain = np.asarray(picture.blocks)[:, None]
        mobs = _over(picture.mobs, plain)
        arrows = np.concatenate([_over(picture.arrows, tiles) for tiles in (plain, mobs)], axis=1)
        player = _over(picture.player, plain)
        pairs = len(plain[0]) + len(mobs[0])
        things = np.array([NOTHING, 0, 1, 2, *np.tile([3, 4, 5, 6], pairs), *range(7, 12)])
        awake = np.concatenate([plain, mobs, arrows, player], axis=1)
        block, thing = (x.ravel() for x in np.broadcast_arrays(np.arange(len(plain))[:, None], things))
        both = np.concatenate([x.reshape(-1, TILE, TILE, 3) for x in (awake, np.asarray(asleep(jnp.asarray(awake))))])
        # The player sleeps where the map is seen so, and nowhere else.
        sleeps = np.repeat([False, True], len(block))
        block, thing = np.tile(block, 2), np.tile(thing, 2)
        possible = (thing < 7) | ((thing == 11) == sleeps)
        tiles, first = np.unique(np.round(both[possible]).reshape(possible.sum(), -1), axis=0, return_index=True)
        self._tiles = tiles / 255.0
        self.block, self.thing, self.sleeps = (x[possible][first] for x in (block, thing, sleeps))
        self._items = np.round(np.asarray(picture.items, np.float64)).reshape(len(PLACES), 10, -1) / 255.0

    def __call__(self, frames: Frames) -> dict[str, Int[np.ndarray, "*batch n"]]:
        """Returns the known tile that each of the 63 `tiles` of frames is, row by row, and the number of each item."""
        *batch, height, width, _ = frames.shape
        split = np.asarray(frames).reshape(-1, height // TILE, TILE, width // TILE, TILE, 3).swapaxes(2, 3)
        rows = split.reshape(len(split), -1, TILE * TILE * 3)
        seen, held = rows[:, : VIEW[0] * VIEW[1]], rows[:, VIEW[0] * VIEW[1] :][:, list(PLACES)]
        flat = seen.reshape(-1, seen.shape[-1])
        tiles = _nearest(flat, self._tiles)
        items = np.stack([_nearest(held[:, i], known) for i, known in enumerate(self._items)], axis=-1)
        return {"tiles": tiles.reshape(*batch, -1), "items": items.reshape(*batch, -1)}


def _over(sprites: Sprite, tiles: Float[np.ndarray, "b n 7 7 3"]) -> Float[np.ndarray, "b m 7 7 3"]:
    """Returns every tile with every sprite on it."""
    colour, alpha = np.asarray(sprites.colour), np.asarray(sprites.alpha)
    laid = tiles[:, :, None] * (1 - alpha) + colour * alpha
    return laid.reshape(len(tiles), -1, *tiles.shape[2:])


def _nearest(pictures: Shaped[np.ndarray, "n d"], known: Float[np.ndarray, "m d"]) -> Int[np.ndarray, " n"]:
    if pictures.dtype == np.uint8:  # frames of the game repeat few tiles, told apart by sums modulo 2^64
        weights = np.random.default_rng(0).integers(1, 2**63, pictures.shape[1], np.uint64)
        _, first, again = np.unique(pictures.astype(np.uint64) @ weights, return_index=True, return_inverse=True)
        return _nearest(pictures[first] / 255.0, known)[again]
    chunks = (np.asarray(pictures[i : i + _CHUNK], np.float64) for i in range(0, len(pictures), _CHUNK))
    return np.concatenate([np.argmin((known**2).sum(axis=1) - 2 * chunk @ known.T, axis=1) for chunk in chunks])
