"""What actions do in Craftax-Classic, told from the pictures before and behind them."""

import numpy as np
from jaxtyping import Bool, Int, Shaped

from dreamer4.envs.craftax.picture import ITEMS, MOBS, VIEW
from dreamer4.envs.craftax.reading import Reader


Symbols = dict[str, Int[np.ndarray, "*batch n"]]

_GRASS, _WATER, _STONE, _TREE, _PATH, _COAL, _IRON, _DIAMOND, _TABLE, _FURNACE, _PLANT = (
    2, 3, 4, 5, 7, 8, 9, 10, 11, 12, 15,
)  # fmt: skip
_HIT, _SLEEP = 5, 6
_WAYS = ((0, -1), (0, 1), (-1, 0), (1, 0))  # of the actions 1 to 4, rows and columns: left, right, up, down
_MIDDLE = VIEW[0] // 2 * VIEW[1] + VIEW[1] // 2  # the tile of the player
_FACING, _ASLEEP = 7, 11  # things on it: facing left and, behind it, the other ways; asleep

# The action, the item of which there is then more (+) or less (-), and the block in front before and behind it.
_GAINS: dict[str, tuple[int, str, str, int | None, int | None]] = {
    "collect_wood": (_HIT, "+", "wood", _TREE, _TREE),
    "collect_stone": (_HIT, "+", "stone", _STONE, _PATH),
    "collect_coal": (_HIT, "+", "coal", _COAL, _PATH),
    "collect_iron": (_HIT, "+", "iron", _IRON, _PATH),
    "collect_diamond": (_HIT, "+", "diamond", _DIAMOND, _PATH),
    "collect_drink": (_HIT, "+", "player_drink", _WATER, _WATER),
    "place_stone": (7, "-", "stone", None, _STONE),
    "place_table": (8, "-", "wood", None, _TABLE),
    "place_furnace": (9, "-", "stone", None, _FURNACE),
    "place_plant": (10, "-", "sapling", _GRASS, _PLANT),
    "make_wood_pickaxe": (11, "+", "wood_pickaxe", None, None),
    "make_stone_pickaxe": (12, "+", "stone_pickaxe", None, None),
    "make_iron_pickaxe": (13, "+", "iron_pickaxe", None, None),
    "make_wood_sword": (14, "+", "wood_sword", None, None),
    "make_stone_sword": (15, "+", "stone_sword", None, None),
    "make_iron_sword": (16, "+", "iron_sword", None, None),
}


def effects(
    reader: Reader, before: Symbols, after: Symbols, action: Int[np.ndarray, " *batch"]
) -> dict[str, Bool[np.ndarray, " *batch"]]:
    """Tells which effects of its action a step shows; saplings, which chance alone decides about, are none.

    To walk is to see the map go by the way that one faces, more of it than stands still; to turn, to face
    another way before a map that stands still. A foe is defeated where it was in front and one less is seen.
    """
    (ground, there), (later, then) = (
        (reader.block[read["tiles"]], reader.thing[read["tiles"]]) for read in (before, after)
    )
    facing = there[..., _MIDDLE] - _FACING
    front = _MIDDLE + np.array([row * VIEW[1] + column for row, column in _WAYS])[np.clip(facing, 0, 3)]
    looks = (facing >= 0) & (facing < len(_WAYS))

    def ahead(values: Shaped[np.ndarray, "*batch n"]) -> Shaped[np.ndarray, " *batch"]:
        return np.take_along_axis(values, front[..., None], axis=-1)[..., 0]

    change = after["items"] - before["items"]
    found = {}
    for name, (taken, sign, item, was, becomes) in _GAINS.items():
        gained = change[..., ITEMS.index(item)] * (1 if sign == "+" else -1) > 0
        found[name] = (action == taken) & gained & looks
        found[name] &= (was is None) | (ahead(ground) == was)
        found[name] &= (becomes is None) | (ahead(later) == becomes)
    hit = (action == _HIT) & looks
    zombie, cow, skeleton = (hit & (ahead(there) == kind) for kind in range(len(MOBS)))
    found["eat_cow"] = cow & (change[..., ITEMS.index("player_food")] > 0)
    for kind, foe in ((0, zombie), (2, skeleton)):
        fewer = (then == kind).sum(axis=-1) < (there == kind).sum(axis=-1)
        found[f"defeat_{MOBS[kind]}"] = foe & (ahead(then) != kind) & fewer
    found["sleep"] = (action == _SLEEP) & looks & (then[..., _MIDDLE] == _ASLEEP)
    moves = (action >= 1) & (action <= len(_WAYS)) & (then[..., _MIDDLE] - _FACING == action - 1)
    by_way = np.stack([_same(ground, later, way) for way in _WAYS])
    gone = np.take_along_axis(by_way, np.clip(action - 1, 0, 3)[None], axis=0)[0]
    stood = _same(ground, later, (0, 0))
    found["walk"] = moves & looks & (gone > stood)
    found["turn"] = moves & looks & (facing != action - 1) & (stood > gone)
    return found


def _same(
    before: Int[np.ndarray, "*batch n"], after: Int[np.ndarray, "*batch n"], way: tuple[int, int]
) -> Shaped[np.ndarray, " *batch"]:
    """Returns the share of blocks that are the same where the player went some way."""
    (rows, columns), (height, width) = way, VIEW
    old, new = (x.reshape(*x.shape[:-1], height, width) for x in (before, after))
    old = old[..., max(rows, 0) : height + min(rows, 0), max(columns, 0) : width + min(columns, 0)]
    new = new[..., max(-rows, 0) : height + min(-rows, 0), max(-columns, 0) : width + min(-columns, 0)]
    return (old == new).mean(axis=(-2, -1))
