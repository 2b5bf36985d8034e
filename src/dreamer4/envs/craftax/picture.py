"""How Craftax-Classic looks: 9 x 9 tiles of 7 x 7 pixels, the lower two rows of which are what the player has."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from dreamer4.types import to_uint8


TILE = 7  # pixels of its side; the textures are drawn for it
VIEW = (7, 9)  # tiles of the map that are seen
INVENTORY = 2  # rows of tiles below
MOBS = ("zombie", "cow", "skeleton")
_SIDE = 5  # pixels of an item, at the upper left of its tile
_DIGIT = slice(2, 6)  # rows and columns of its number
_LUMINANCE = (0.299, 0.587, 0.114)

# Attribute of the state, texture, and row and column of its tile. The textures of materials are those of blocks.
_ITEMS = (
    ("player_health", "health", 0, 0),
    ("player_food", "hunger", 0, 1),
    ("player_drink", "thirst", 0, 2),
    ("player_energy", "energy", 0, 3),
    ("sapling", "sapling", 0, 4),
    ("wood", 6, 0, 5),
    ("stone", 4, 0, 6),
    ("coal", 8, 0, 7),
    ("iron", 9, 0, 8),
    ("diamond", 10, 1, 0),
    ("wood_pickaxe", "wood_pickaxe", 1, 1),
    ("stone_pickaxe", "stone_pickaxe", 1, 2),
    ("iron_pickaxe", "iron_pickaxe", 1, 3),
    ("wood_sword", "wood_sword", 1, 4),
    ("stone_sword", "stone_sword", 1, 5),
    ("iron_sword", "iron_sword", 1, 6),
)
ITEMS = tuple(name for name, *_ in _ITEMS)
PLACES = tuple(row * VIEW[1] + column for _, _, row, column in _ITEMS)  # of the items among the tiles of the inventory


class Sprite(eqx.Module):
    """A texture, 0 to 255, and how opaque it is, 0 to 1."""

    colour: Float[Array, "*batch 7 7 3"]
    alpha: Float[Array, "*batch 7 7 3"]

    def over(self, tile: Float[Array, "*batch 7 7 3"]) -> Float[Array, "*batch 7 7 3"]:
        """Returns a tile with the sprite on it."""
        return tile * (1.0 - self.alpha) + self.colour * self.alpha


class Picture(eqx.Module):
    """Draws states of the game from its textures.

    Attributes:
        blocks: texture of each kind of block.
        player: facing left, right, up, down, and asleep.
        mobs: of each of `MOBS`.
        arrows: flying up, down, left, right.
        items: tile of each of `ITEMS` for each number of them.
        night: whether nights are dark and full of noise; otherwise every frame shows the day.
    """

    blocks: Float[Array, "17 7 7 3"]
    player: Sprite
    mobs: Sprite
    arrows: Sprite
    items: Float[Array, "16 10 7 7 3"]
    night: bool = eqx.field(static=True)

    def __init__(self, *, night: bool):
        """Loads the textures.

        Args:
            night: whether nights are drawn.
        """
        from craftax.craftax_classic import constants

        loaded = constants.load_all_textures_given_size(TILE)
        textures = {k: np.asarray(jnp.stack(v) if isinstance(v, list) else v, np.float32) for k, v in loaded.items()}
        self.blocks, self.night = jnp.asarray(textures["block_textures"]), night
        player, arrow = textures["player_textures"], textures["arrow_texture"]
        self.player = _sprite(player[..., :3], player[..., 3:] / 255)
        self.mobs = _sprite(*(np.stack([textures[f"{mob}_texture{part}"] for mob in MOBS]) for part in ("", "_alpha")))
        up, see = arrow, textures["arrow_texture_alpha"]
        self.arrows = _sprite(
            *(np.stack([x, x[::-1], x.swapaxes(0, 1), x[::-1].swapaxes(0, 1)]) for x in (up * see, see))
        )
        items = np.zeros((len(_ITEMS), 10, TILE, TILE, 3), np.float32)
        for item, (_, texture, _, _) in zip(items, _ITEMS, strict=True):
            small = textures["smaller_block_textures"][texture] if isinstance(texture, int) else None
            item[1:, :_SIDE, :_SIDE] = textures[f"{texture}_texture"] if small is None else small
            item[:, _DIGIT, _DIGIT] *= 1 - textures["number_textures_alpha"]
            item[:, _DIGIT, _DIGIT] += textures["number_textures"]
        self.items = jnp.asarray(items)

    def __call__(self, world: Any) -> UInt8[Array, "63 63 3"]:
        """Draws a state.

        Args:
            world: an `EnvState` of the game.
        """
        frame = _joined(self._map(world))
        if self.night:
            frame = _darkened(frame, world)
        frame = jnp.where(world.is_sleeping, asleep(frame), frame)
        numbers = jnp.stack(
            [getattr(world, n) if n.startswith("player") else getattr(world.inventory, n) for n in ITEMS]
        )
        held = jnp.zeros((INVENTORY * VIEW[1], TILE, TILE, 3))
        held = held.at[jnp.array(PLACES)].set(self.items[jnp.arange(len(ITEMS)), jnp.clip(numbers, 0, 9)])
        below = _joined(held.reshape(INVENTORY, VIEW[1], TILE, TILE, 3))
        return to_uint8(jnp.concatenate([frame, below]) / 255.0)

    def _map(self, world: Any) -> Float[Array, "7 9 7 7 3"]:
        size, middle = jnp.array(VIEW), jnp.array(VIEW) // 2
        beyond = max(VIEW) + 2
        ground = jnp.pad(world.map, beyond, constant_values=1)  # out of bounds
        seen = jax.lax.dynamic_slice(ground, world.player_position - middle + beyond, VIEW)
        tiles = self.blocks[seen]
        facing = jnp.where(world.is_sleeping, 4, world.player_direction - 1)
        here = jax.tree.map(lambda x: x[facing], self.player)
        tiles = tiles.at[middle[0], middle[1]].set(here.over(tiles[middle[0], middle[1]]))

        def put(tiles: Array, sprite: Sprite, position: Array, there: Bool[Array, ""]) -> Array:
            row, column = place = position - world.player_position + middle
            there &= jnp.all((place >= 0) & (place < size))
            tile = tiles[row, column]
            return tiles.at[row, column].set(jnp.where(there, sprite.over(tile), tile))

        for kind, herd in enumerate((world.zombies, world.cows, world.skeletons)):
            sprite = jax.tree.map(lambda x: x[kind], self.mobs)  # noqa: B023
            for i in range(herd.mask.shape[0]):
                tiles = put(tiles, sprite, herd.position[i], herd.mask[i])
        for i in range(world.arrows.mask.shape[0]):
            down, right = world.arrow_directions[i]
            flight = jnp.where(right != 0, 2 + (right > 0), down > 0)
            sprite = jax.tree.map(lambda x: x[flight], self.arrows)  # noqa: B023
            tiles = put(tiles, sprite, world.arrows.position[i], world.arrows.mask[i])
        return tiles


def asleep(pixels: Float[Array, "*batch 3"]) -> Float[Array, "*batch 3"]:
    """Returns pixels, 0 to 255, as they look to a player who sleeps."""
    return 0.5 * _grey(pixels) + 0.5 * jnp.array([0.0, 0.0, 16.0])


def _darkened(frame: Float[Array, "49 63 3"], world: Any) -> Float[Array, "49 63 3"]:
    height, width = frame.shape[:2]
    rows, columns = (jnp.asarray(np.linspace(-1, 1, n), jnp.float32) for n in (height, width))
    far = 1.0 - jnp.exp(-(rows[:, None] ** 2 + columns**2) / (2 * 0.5**2))
    strength = (jnp.maximum(2 * (0.5 - world.light_level), 0.0) * far)[:, :, None]
    noise = (jr.uniform(world.state_rng, (height, width)) * 95 + 32)[:, :, None]
    night = (1 - strength) * frame + strength * noise
    night = 0.4 * night + 0.6 * _grey(night)
    night = 0.5 * night + 0.5 * jnp.array([0.0, 16.0, 64.0])
    return world.light_level * frame + (1 - world.light_level) * night


def _grey(pixels: Float[Array, "*batch 3"]) -> Float[Array, "*batch 1"]:
    return jnp.sum(pixels * jnp.array(_LUMINANCE), axis=-1, keepdims=True)


def _joined(tiles: Float[Array, "rows columns 7 7 3"]) -> Float[Array, "height width 3"]:
    rows, columns = tiles.shape[:2]
    return tiles.swapaxes(1, 2).reshape(rows * TILE, columns * TILE, 3)


def _sprite(colour: np.ndarray, alpha: np.ndarray) -> Sprite:
    return Sprite(jnp.asarray(colour), jnp.asarray(np.broadcast_to(alpha, colour.shape), jnp.float32))
