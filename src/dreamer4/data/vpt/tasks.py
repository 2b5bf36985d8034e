"""What players did, by the game's own counters: the 20 tasks of the paper, its ladder of prompts, other dimensions."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Int


_WOODS = ("oak", "birch", "spruce", "jungle", "acacia", "dark_oak")
_COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "mine_log": ("mine_block", tuple(f"{wood}_log" for wood in _WOODS)),
    "mine_cobblestone": ("mine_block", ("stone", "cobblestone")),  # stone drops cobblestone
    "mine_iron_ore": ("mine_block", ("iron_ore",)),
    "mine_coal": ("mine_block", ("coal_ore",)),
    "mine_diamond": ("mine_block", ("diamond_ore",)),
    "craft_planks": ("craft_item", tuple(f"{wood}_planks" for wood in _WOODS)),
    "craft_stick": ("craft_item", ("stick",)),
    "craft_crafting_table": ("craft_item", ("crafting_table",)),
    "craft_furnace": ("craft_item", ("furnace",)),
    "craft_iron_ingot": ("craft_item", ("iron_ingot",)),  # taking what was smelted counts as crafting
    "craft_wooden_pickaxe": ("craft_item", ("wooden_pickaxe",)),
    "craft_stone_pickaxe": ("craft_item", ("stone_pickaxe",)),
    "craft_iron_pickaxe": ("craft_item", ("iron_pickaxe",)),
    "open_crafting_table": ("custom", ("interact_with_crafting_table",)),
    "open_furnace": ("custom", ("interact_with_furnace",)),
    "place_crafting_table": ("use_item", ("crafting_table",)),
    "place_furnace": ("use_item", ("furnace",)),
    "use_wooden_pickaxe": ("use_item", ("wooden_pickaxe",)),
    "use_stone_pickaxe": ("use_item", ("stone_pickaxe",)),
    "use_iron_pickaxe": ("use_item", ("iron_pickaxe",)),
}

# Task k of the paper's Table 4.
TASKS = tuple(_COUNTERS)
# The task that each counter of the game adds to.
TASK_OF = {
    f"minecraft.{kind}:minecraft.{item}": task
    for task, (kind, items) in enumerate(_COUNTERS.values())
    for item in items
}

# Prompts of an evaluation in order, and how often an agent has to do each before the next one (paper, Table 6).
LADDER: tuple[tuple[str, float], ...] = (
    ("mine_log", 10),
    ("craft_planks", 20),
    ("craft_crafting_table", 1),
    ("place_crafting_table", 1),
    ("craft_stick", 4),
    ("craft_wooden_pickaxe", 1),
    ("use_wooden_pickaxe", 1),
    ("mine_cobblestone", 3),
    ("craft_planks", 4),
    ("craft_crafting_table", 1),
    ("place_crafting_table", 1),
    ("craft_stick", 4),
    ("craft_stone_pickaxe", 1),
    ("use_stone_pickaxe", 1),
    ("mine_iron_ore", 3),
    ("mine_cobblestone", 8),
    ("craft_planks", 4),
    ("craft_crafting_table", 1),
    ("place_crafting_table", 1),
    ("craft_furnace", 1),
    ("craft_iron_ingot", 3),
    ("craft_stick", 2),
    ("craft_iron_pickaxe", 1),
    ("use_iron_pickaxe", 1),
    ("mine_diamond", float("inf")),
)

# Things of the Nether and the End; one that was mined or picked up tells that a player was there.
_ELSEWHERE = frozenset(
    f"minecraft.{kind}:minecraft.{item}"
    for kind in ("mine_block", "pickup")
    for item in (
        "netherrack nether_bricks nether_gold_ore nether_quartz_ore quartz soul_sand soul_soil basalt blackstone "
        "gilded_blackstone glowstone magma_block shroomlight crimson_nylium warped_nylium crimson_stem warped_stem "
        "crimson_fungus warped_fungus nether_wart nether_wart_block warped_wart_block ancient_debris blaze_rod "
        "ghast_tear end_stone end_stone_bricks purpur_block purpur_pillar chorus_plant chorus_flower chorus_fruit "
        "end_rod shulker_shell dragon_egg elytra"
    ).split()
)


def tasks_done(stats: Mapping[str, int]) -> list[int]:
    """Returns how often each task was done by the counters of a row."""
    done = [0] * len(TASKS)
    for name in stats.keys() & TASK_OF.keys():
        done[TASK_OF[name]] += stats[name]
    return done


def is_elsewhere(stats: Mapping[str, int]) -> bool:
    """Whether the counters tell of the Nether or the End."""
    return not _ELSEWHERE.isdisjoint(stats)


def climb(ladder: tuple[tuple[str, float], ...], events: Int[np.ndarray, "n 3"]) -> Int[np.ndarray, " n"]:
    """Returns the rung on which an agent stands after each event.

    An event counts for the rung stood on and for no other, with its amount; what is left of an amount is not carried
    over, since the next rung may ask for the same again.

    Args:
        ladder: tasks, and how often each has to be done.
        events: step, task and amount of each, in their order.
    """
    rung, done, stood = 0, 0, []
    for _, task, amount in events:
        if rung < len(ladder) and TASKS[task] == ladder[rung][0]:
            done += int(amount)
            if done >= ladder[rung][1]:
                rung, done = rung + 1, 0
        stood.append(rung)
    return np.array(stood, np.int64)
