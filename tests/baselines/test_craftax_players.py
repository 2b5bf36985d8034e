"""Scripted players, each for a moment in a world made for it: what they decide, without the rules of the game."""

from types import SimpleNamespace

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from dreamer4.baselines import PLAYERS
from dreamer4.baselines.craftax import STYLES, CraftaxPlayer
from dreamer4.envs import CounterEnvironment
from dreamer4.errors import InputError


GRASS, WATER, STONE, TREE, PATH, TABLE, LAVA = 2, 3, 4, 5, 7, 11, 14
LEFT, RIGHT, UP, DOWN, HIT, PUT_TABLE, WOOD_PICKAXE = 1, 2, 3, 4, 5, 8, 11


class Herd(eqx.Module):
    position: jax.Array
    mask: jax.Array


class World(eqx.Module):
    """What players read of a state."""

    map: jax.Array
    inventory: dict
    zombies: Herd
    skeletons: Herd
    cows: Herd
    mob_map: jax.Array
    player_position: jax.Array
    player_direction: jax.Array
    player_drink: jax.Array
    player_food: jax.Array
    player_energy: jax.Array
    is_sleeping: jax.Array
    state_rng: jax.Array


@eqx.filter_jit
def decided(player, world):
    one = eqx.tree_at(
        lambda w: w.inventory, world, SimpleNamespace(**world.inventory), is_leaf=lambda x: x is world.inventory
    )
    memory = player.peek(player.init(), SimpleNamespace(world=one))
    return memory.action


def decide(map_, *, at=(30, 30), facing=UP, zombie=None, drink=9, style="expert", **held):
    names = ("wood", "stone", "coal", "iron", "diamond", "sapling", "wood_pickaxe", "stone_pickaxe", "iron_pickaxe")
    names += ("wood_sword", "stone_sword", "iron_sword")
    none = Herd(jnp.zeros((3, 2), jnp.int32), jnp.zeros(3, bool))
    foes = none if zombie is None else Herd(jnp.array([zombie] * 3), jnp.array([True, False, False]))
    mobs = jnp.zeros((64, 64), bool)
    if zombie is not None:
        mobs = mobs.at[zombie].set(True)
    numbers = {"player_direction": facing, "player_drink": drink, "player_food": 9, "player_energy": 9}
    world = World(
        map=jnp.asarray(map_),
        inventory={name: jnp.asarray(held.get(name, 0)) for name in names},
        zombies=foes,
        skeletons=none,
        cows=none,
        mob_map=mobs,
        player_position=jnp.array(at),
        is_sleeping=jnp.array(False),
        state_rng=jr.key_data(jr.key(0)),
        **{name: jnp.asarray(number) for name, number in numbers.items()},
    )
    return int(decided(CraftaxPlayer(jnp.array([s.__name__ for s in STYLES].index(style))), world))


def meadow(**blocks):
    found = np.full((64, 64), GRASS, np.int32)
    for block, places in blocks.items():
        for place in places:
            found[place] = globals()[block]
    return found


def test_an_expert_walks_to_a_tree_turns_to_it_and_cuts_it():
    assert decide(meadow(TREE=[(30, 35)])) == RIGHT
    assert decide(meadow(TREE=[(30, 31)]), facing=UP) == RIGHT
    assert decide(meadow(TREE=[(30, 31)]), facing=RIGHT) == HIT


def test_its_way_leads_round_water_and_never_through_lava():
    wall = [(r, 32) for r in range(24, 40)]
    assert decide(meadow(TREE=[(30, 35)], WATER=wall), at=(30, 31)) == UP
    enclosed = [(29, 30), (31, 30), (30, 29)]
    assert decide(meadow(TREE=[(30, 28)], LAVA=enclosed)) == RIGHT


def test_it_digs_through_stone_only_with_a_pickaxe():
    stones = [(29, 30), (31, 30), (30, 31)]
    ready = {"wood": 7, "wood_pickaxe": 1, "wood_sword": 1, "stone": 9}
    there = meadow(STONE=stones, TABLE=[(30, 36)])
    assert decide(there, facing=RIGHT, **ready) == HIT
    assert decide(there, facing=RIGHT, **(ready | {"wood_pickaxe": 0})) == LEFT


def test_thirst_and_foes_come_before_tools():
    there = meadow(TREE=[(30, 31)], WATER=[(26, 30)])
    assert decide(there, drink=2) == UP
    assert decide(there, drink=2, zombie=(31, 30), facing=UP) == DOWN
    assert decide(there, drink=2, zombie=(31, 30), facing=DOWN) == HIT


def test_it_puts_down_a_table_and_works_beside_it():
    assert decide(meadow(), wood=9) == PUT_TABLE
    assert decide(meadow(TABLE=[(29, 29)]), wood=5) == WOOD_PICKAXE
    assert decide(meadow(TABLE=[(30, 40)]), wood=5) == RIGHT


def test_players_refuse_a_world_that_is_not_theirs():
    with pytest.raises(InputError, match="expert looks into the world"):
        PLAYERS["expert"](CounterEnvironment(5, 3))
