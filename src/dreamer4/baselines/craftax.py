"""Scripted players of Craftax-Classic, who see the whole world: recordings of several skills and styles.

A player has a goal at each moment, which its style chooses, and pursues it by the shortest way: the cells from which
the goal is reached grow until they touch the player, who steps, or digs, towards them.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Int, PRNGKeyArray, PyTree, UInt32

from dreamer4.data import AbstractPolicy
from dreamer4.envs import AbstractEnvironment, CraftaxPixels
from dreamer4.envs.gymnax import lenient
from dreamer4.errors import InputError
from dreamer4.types import Action, TimeStep


# Blocks of the game, each also the goal to get one.
_GRASS, _WATER, _STONE, _TREE, _PATH, _COAL, _IRON, _DIAMOND, _TABLE, _FURNACE, _SAND, _LAVA = (
    2, 3, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14,
)  # fmt: skip
# Other goals: to hit a cow or a foe, to be at a spot, beside a table, beside table and furnace, and to roam.
_COW, _FOE, _SPOT, _AT_TABLE, _AT_BOTH, _ROAM = 20, 21, 22, 23, 24, 25
_DO = 100  # plus an action: to take it
_HIT, _SLEEP, _PUT_STONE, _PUT_TABLE, _PUT_FURNACE, _PLANT = 5, 6, 7, 8, 9, 10
_WOOD_PICKAXE, _STONE_PICKAXE, _IRON_PICKAXE, _WOOD_SWORD, _STONE_SWORD = 11, 12, 13, 14, 15
_WAYS = ((0, -1), (0, 1), (-1, 0), (1, 0))  # of the actions 1 to 4: left, right, up, down
_SUPPLY = 9  # pieces of wood for two tables and all tools, and as many as one can have
_STONES = 4  # for two tools, a furnace and the iron pickaxe
_FURTHEST = 160  # steps that a way is searched for
_PATIENCE = 30  # most steps that a whim lasts
_REMOTE = 8  # tiles to a table from where on a new one is made

Rules = list[tuple[Bool[Array, ""], Int[Array, ""] | int]]


class Plan(eqx.Module):
    """What a player remembers: the action it has decided on, its whim, how long that lasts, and a spot to go to."""

    action: Int[Array, ""]
    whim: Int[Array, ""]
    left: Int[Array, ""]
    spot: Int[Array, "2"]


class CraftaxPlayer(AbstractPolicy):
    """A player of one style.

    Attributes:
        style: which of `STYLES`; no constant, so that players of all styles share one program.
    """

    style: Int[Array, ""]

    def init(self) -> Plan:
        none = jnp.zeros((), jnp.int32)
        return Plan(none, none, none, jnp.zeros(2, jnp.int32))

    def peek(self, memory: PyTree, state: PyTree) -> Plan:
        world = state.world
        key_whim, key_style, key_way = jr.split(jr.wrap_key_data(world.state_rng), 3)
        with lenient():
            plan = _following(world, memory, key_whim)
            goals = jnp.stack([goal(world, plan, key_style) for goal in STYLES])
            action = _pursue(world, goals[self.style], plan, key_way)
        return eqx.tree_at(lambda p: p.action, plan, action)

    def __call__(
        self, memory: PyTree, time_step: TimeStep, action: Action, action_mask: Bool[Array, ""], *, key: PRNGKeyArray
    ) -> tuple[Action, PyTree]:
        return Action(memory.action[None], action.continuous), memory


def _following(world: Any, plan: Plan, key: PRNGKeyArray) -> Plan:
    """Returns the plan with a new whim and a new spot where the old ones are done with."""
    key_whim, key_left, key_spot = jr.split(key, 3)
    done = (plan.left <= 0) | (world.player_position == plan.spot).all()
    whims = jnp.array([_TREE, _WATER, _COW, _STONE, _COAL, _DO + _HIT, _DO + _PLANT, _DO + _PUT_STONE], jnp.int32)
    held, equipped = world.inventory, world.inventory.wood_pickaxe > 0
    yes = jnp.ones((), bool)
    sensible = jnp.stack([yes, yes, yes, equipped, equipped, yes, held.sapling > 0, held.stone > 1])
    spot = jnp.clip(world.player_position + jr.randint(key_spot, (2,), -20, 21), 1, world.map.shape[0] - 2)
    return Plan(
        plan.action,
        jnp.where(done, jr.choice(key_whim, whims, p=sensible / sensible.sum()), plan.whim),
        jnp.where(done, jr.randint(key_left, (), 5, _PATIENCE), plan.left - 1),
        jnp.where(done, spot, plan.spot).astype(jnp.int32),
    )


def _first(rules: Rules, otherwise: Int[Array, ""] | int) -> Int[Array, ""]:
    conditions, goals = zip(*rules, strict=True)
    return jnp.select(list(conditions), [jnp.asarray(goal, jnp.int32) for goal in goals], jnp.asarray(otherwise))


def _needs(world: Any) -> Rules:
    """What comes before anything else: foes beside the player, thirst, hunger, tiredness."""
    foe = _grid(world, world.zombies, world.skeletons)
    return [
        (world.is_sleeping, _DO),
        (jnp.any(_widened(foe)[tuple(world.player_position)]), _FOE),
        (world.player_drink < 4, _WATER),
        ((world.player_food < 4) & world.cows.mask.any(), _COW),
        (world.player_energy < 3, _DO + _SLEEP),
    ]


def expert(world: Any, plan: Plan, key: PRNGKeyArray) -> Int[Array, ""]:
    """Makes every tool on the way to a diamond, and follows whims behind it."""
    held, by_table = world.inventory, _beside(world, _TABLE)
    rules = _needs(world)
    no_table = ~(world.map == _TABLE).any()
    rules += [(no_table & (held.wood < _SUPPLY), _TREE), (no_table, _DO + _PUT_TABLE)]
    tools = (
        (held.wood_pickaxe, _WOOD_PICKAXE, 0),
        (held.wood_sword, _WOOD_SWORD, 0),
        (held.stone_pickaxe, _STONE_PICKAXE, _STONES),
        (held.stone_sword, _STONE_SWORD, 1),
    )
    here = tuple(world.player_position)
    for tool, action, stones in tools:
        none = tool == 0
        rules += [(none & (held.wood < 1), _TREE), (none & (held.stone < stones), _STONE)]
        rules += [(none & by_table[here], _DO + action), (none, _AT_TABLE)]
    none, workshop = held.iron_pickaxe == 0, by_table & _beside(world, _FURNACE)
    no_furnace = none & ~(workshop & _near(world)).any()
    rules += [
        (none & (held.coal < 1), _COAL),
        (none & (held.iron < 1), _IRON),
        (none & (held.wood < 1), _TREE),
        (none & (held.stone < 1 + no_furnace), _STONE),
        (no_furnace & ~(by_table & _near(world)).any() & (held.wood > 2), _DO + _PUT_TABLE),
        (no_furnace & by_table[here], _DO + _PUT_FURNACE),
        (no_furnace, _AT_TABLE),
        (none & workshop[here], _DO + _IRON_PICKAXE),
        (none, _AT_BOTH),
        (held.diamond == 0, _DIAMOND),
    ]
    return _first(rules, plan.whim)


def gatherer(world: Any, plan: Plan, key: PRNGKeyArray) -> Int[Array, ""]:
    """Collects now this, now that, and makes a table and tools of wood once there is enough of it."""
    held, at_table = world.inventory, _beside(world, _TABLE)[tuple(world.player_position)]
    no_table = ~(world.map == _TABLE).any()
    rules = _needs(world) + [
        (no_table & (held.wood >= 4), _DO + _PUT_TABLE),
        (at_table & (held.wood_pickaxe == 0) & (held.wood >= 1), _DO + _WOOD_PICKAXE),
        (at_table & (held.wood_sword == 0) & (held.wood >= 1), _DO + _WOOD_SWORD),
    ]
    return _first(rules, plan.whim)


def explorer(world: Any, plan: Plan, key: PRNGKeyArray) -> Int[Array, ""]:
    """Goes from one place to another, and cuts the trees in its way."""
    return _first(_needs(world), _SPOT)


def wanderer(world: Any, plan: Plan, key: PRNGKeyArray) -> Int[Array, ""]:
    """Walks about without a goal, and now and then tries what is in front of it."""
    key_try, key_what = jr.split(key)
    tried = jr.randint(key_what, (), _DO + _HIT, _DO + _STONE_SWORD + 2)
    return jnp.where(jr.bernoulli(key_try, 0.2), tried, _ROAM)


def _pursue(world: Any, goal: Int[Array, ""], plan: Plan, key: PRNGKeyArray) -> Int[Array, ""]:
    """Returns the action that leads on towards a goal."""
    blocks, position = world.map, world.player_position
    free = jnp.isin(blocks, jnp.array([_GRASS, _SAND, _PATH]))
    spot = jnp.zeros(blocks.shape, bool).at[tuple(plan.spot)].set(True)
    by_table = _beside(world, _TABLE) & free
    places = {
        _COW: _grid(world, world.cows),
        _FOE: _grid(world, world.zombies, world.skeletons),
        _SPOT: spot,
        _AT_TABLE: by_table,
        _AT_BOTH: by_table & _beside(world, _FURNACE),
    }
    wanted = jnp.select([goal == g for g in places], list(places.values()), (blocks == goal) & (goal > _GRASS))
    held = world.inventory
    diggable = (blocks == _TREE) | (jnp.isin(blocks, jnp.array([_STONE, _COAL])) & (held.wood_pickaxe > 0))
    # A stone that is laid into water is dug away again, and leaves a path.
    fordable = (blocks == _WATER) & (held.wood_pickaxe > 0) & (held.stone > 0)
    passable = _packed(free | diggable | (blocks == _IRON) & (held.stone_pickaxe > 0) | fordable)
    around = position + jnp.array(_WAYS)

    def touches(reached: UInt32[Array, "64 2"]) -> Bool[Array, "4"]:
        word = _at(reached, jnp.stack([around[:, 0], around[:, 1] // 32], axis=1), 0)
        return (word >> (around[:, 1] % 32).astype(jnp.uint32) & 1) > 0

    def searching(carry: tuple[Array, Array, Array]) -> Bool[Array, ""]:
        reached, before, steps = carry
        return ~touches(reached).any() & (reached != before).any() & (steps < _FURTHEST)

    def grow(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        reached, _, steps = carry
        return reached | (_spread(reached) & passable), reached, steps + 1

    packed = _packed(wanted)
    start = (packed, jnp.zeros_like(packed), jnp.zeros((), jnp.int32))
    touched = touches(jax.lax.while_loop(searching, grow, start)[0])

    key_way, key_turn = jr.split(key)
    facing = jnp.arange(1, 5) == world.player_direction
    ahead = _at(blocks, around, _LAVA)
    occupied = _at(world.mob_map, around, True)
    open_ = _at(free, around, False) & ~occupied
    luck = jr.uniform(key_way, (4,))
    # Straight on most of the time where there is no way to choose.
    roam = jnp.argmax(luck + 2.0 * open_ + (facing & jr.bernoulli(key_turn, 0.8)) - 4.0 * (ahead == _LAVA))
    way = jnp.where(touched.any(), jnp.argmax(touched * (1.0 + facing + 0.5 * luck)), roam)
    blocked = ~open_[way] & (ahead[way] != _LAVA)
    ford = (ahead[way] == _WATER) & (goal != _WATER)
    step = jnp.where(blocked & facing[way], jnp.where(ford, _PUT_STONE, _HIT), way + 1)
    # What is put down needs a free place in front, a plant grass; grass is also what saplings are found in.
    act = goal - _DO
    front = jnp.argmax(facing)
    on_grass = (act == _PLANT) | (act == _HIT)
    ready = open_[front] & (~on_grass | (ahead[front] == _GRASS)) | (act < _HIT) | (act == _SLEEP) | (act > _PLANT)
    return jnp.where((goal >= _DO) & ready, act, jnp.where(goal >= _DO, roam + 1, step)).astype(jnp.int32)


def _at(grid: Array, places: Int[Array, "n 2"], outside: Any) -> Array:
    found = grid.at[places[:, 0], places[:, 1]]
    return found.get(mode="fill", fill_value=outside, wrap_negative_indices=False)


def _packed(cells: Bool[Array, "64 64"]) -> UInt32[Array, "64 2"]:
    """Returns cells as bits, the first of a row in the lowest bit of its first word."""
    bits = cells.reshape(len(cells), 2, 32).astype(jnp.uint32)
    return jnp.sum(bits << jnp.arange(32, dtype=jnp.uint32), axis=-1, dtype=jnp.uint32)


def _spread(cells: UInt32[Array, "64 2"]) -> UInt32[Array, "64 2"]:
    """Returns the cells and their four neighbours, all of them bits."""
    first, second = cells.T
    up, down = jnp.pad(cells, ((1, 1), (0, 0)))[:-2], jnp.pad(cells, ((1, 1), (0, 0)))[2:]
    right = jnp.stack([first << 1, second << 1 | first >> 31], axis=-1)
    left = jnp.stack([first >> 1 | second << 31, second >> 1], axis=-1)
    return cells | up | down | left | right


def _near(world: Any) -> Bool[Array, "64 64"]:
    """Returns which cells are no further away than a table may be that is gone back to."""
    apart = jnp.abs(jnp.arange(world.map.shape[0]) - world.player_position[:, None]) <= _REMOTE
    return apart[0][:, None] & apart[1]


def _widened(cells: Bool[Array, "64 64"], *, corners: bool = False) -> Bool[Array, "64 64"]:
    """Returns the cells and their neighbours."""
    padded = jnp.pad(cells, 1)
    rows = padded[:-2] | padded[1:-1] | padded[2:]
    if corners:
        return rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:]
    return rows[:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]


def _beside(world: Any, block: int) -> Bool[Array, "64 64"]:
    """Returns where a player stands close enough to such a block to work with it."""
    return _widened(world.map == block, corners=True)


def _grid(world: Any, *herds: Any) -> Bool[Array, "64 64"]:
    number = jnp.zeros(world.map.shape, jnp.int32)
    for herd in herds:
        number = number.at[herd.position[:, 0], herd.position[:, 1]].add(herd.mask.astype(jnp.int32))
    return number > 0


STYLES = (expert, gatherer, explorer, wanderer)


def craftax_player(style: int, env: AbstractEnvironment) -> CraftaxPlayer:
    """Returns the player of a number among `STYLES`.

    Raises:
        InputError: if the environment is another.
    """
    if not isinstance(env, CraftaxPixels):
        raise InputError(
            f"data.policy: {STYLES[style].__name__} looks into the world of Craftax-Classic-pixels, got "
            f"{type(env).__name__}. Choose another policy, or leave env.sticky_actions at 0."
        )
    return CraftaxPlayer(jnp.asarray(style, jnp.int32))
