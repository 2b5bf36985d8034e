"""Craftax-Classic behind the contract of `AbstractEnvironment`."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, UInt32

from dreamer4.envs.base import AbstractEnvironment, Symbols
from dreamer4.envs.craftax.effects import effects
from dreamer4.envs.craftax.picture import INVENTORY, ITEMS, TILE, VIEW, Picture
from dreamer4.envs.craftax.reading import Reader
from dreamer4.envs.gymnax import lenient
from dreamer4.errors import InputError, nearest
from dreamer4.precision import in_32_bits
from dreamer4.types import Action, ActionSpec, DataSpec, TimeStep


# The prompts of Dreamer 4 on the way to a diamond; the first is the only one that is no achievement of the game.
LADDER = (
    "collect_wood_5",
    "place_table",
    "make_wood_pickaxe",
    "collect_stone",
    "make_stone_pickaxe",
    "collect_coal",
    "collect_iron",
    "place_furnace",
    "make_iron_pickaxe",
    "collect_diamond",
)
_WOOD = 5
_LAVA = 14


class CraftaxState(eqx.Module):
    """A moment of an episode.

    Attributes:
        world: the `EnvState` of the game.
        wood: pieces of wood collected in this episode.
        happened: which events have happened in this episode.
        ended: whether its frame was the last of its episode.
    """

    world: Any
    wood: Int[Array, ""]
    happened: Bool[Array, " E"]
    ended: Bool[Array, ""]


class CraftaxPixels(AbstractEnvironment):
    """Craftax-Classic as its player sees it, a picture of 63 x 63 pixels; 17 actions, death terminates.

    Its events are the 22 achievements of the game, in the game's order, and `collect_wood_5`, five pieces of wood
    collected in an episode. An event that happens for the first time in an episode pays 1 where the task asks for it.
    The ladder asks for one rung after another and pays for each when it asks for the next, so that the sum of rewards
    tells the rung; one that has happened before it is asked for is paid with the rung before it.
    The game's own reward for health is left out.

    A new world is generated only where an episode begins, one at a time, under `vmap` too: that takes some milliseconds
    each, and doing it at every step for every environment would take most of the time.
    """

    spec: DataSpec = eqx.field(static=True)
    max_steps: int = eqx.field(static=True)
    _prompts: tuple[str, ...] = eqx.field(static=True)
    _events: tuple[str, ...] = eqx.field(static=True)
    picture: Picture
    _pays: Float[Array, " E"]

    @in_32_bits
    def __init__(self, *, task: str = "achievements", max_steps: int = 1000, night: bool = True):
        """Sets the task.

        Args:
            task: what pays: `achievements`, each of the 22; `ladder`, each of `LADDER` in turn; or the name of an
                event, alone.
            max_steps: limit of actions in an episode, 1 to 10,000.
            night: whether nights are drawn, dark and full of noise. Without them the rules are the same (more zombies
                come at night), and every tile of every frame can be read.

        Raises:
            InputError: if there is no such task, the limit lies outside its range, or the game is not installed.
        """
        try:
            from craftax.craftax_classic.constants import Achievement
        except ImportError:
            raise InputError(
                "Craftax-Classic-pixels: needs Craftax. Run: pip install 'dreamer4-eqx[craftax]'."
            ) from None
        self._events = (*(achievement.name.lower() for achievement in Achievement), LADDER[0])
        paying = {"achievements": self.events[:-1], "ladder": ()} | {event: (event,) for event in self.events}
        if task not in paying:
            raise InputError(f"env.kwargs.task: got {task!r}, expected a task. {nearest(task, paying)}")
        if not 1 <= max_steps <= 10_000:
            raise InputError(f"env.kwargs.max_steps: got {max_steps}, expected 1 to 10000.")
        self._pays = jnp.array([event in paying[task] for event in self.events], jnp.float32)
        self.max_steps, self._prompts = max_steps, LADDER if task == "ladder" else ()
        self.spec = DataSpec(((VIEW[0] + INVENTORY) * TILE, VIEW[1] * TILE, 3), ActionSpec((17,)))
        self.picture = Picture(night=night)

    @property
    def events(self) -> tuple[str, ...]:
        """The achievements of the game, and five pieces of wood."""
        return self._events

    def happened(self, state: CraftaxState) -> Bool[Array, " E"]:
        return state.happened

    @property
    def prompts(self) -> tuple[str, ...]:
        """`LADDER`, where it is the task."""
        return self._prompts

    def prompt(self, state: CraftaxState) -> Int[Array, ""]:
        return jnp.minimum(self._rungs(state.happened), max(len(self.prompts) - 1, 0))

    def _rungs(self, happened: Bool[Array, " E"]) -> Int[Array, ""]:
        """Returns how many prompts, from the first on, have happened."""
        asked = [self.events.index(event) for event in self.prompts]
        return jnp.argmin(jnp.append(happened[jnp.array(asked, jnp.int32)], False)).astype(jnp.int32)

    def symbols(self, frames: np.ndarray) -> Symbols:
        return {} if self.picture.night else Reader(self.picture)(frames)

    def effects(self, before: Symbols, after: Symbols, action: np.ndarray) -> dict[str, np.ndarray]:
        return effects(Reader(self.picture), before, after, action[..., 0]) if before else {}

    @property
    def places(self) -> dict[str, tuple[str, ...]]:
        """What the player can have."""
        return {"items": ITEMS}

    @in_32_bits
    def reset(self, *, key: PRNGKeyArray) -> tuple[CraftaxState, TimeStep]:
        with lenient():
            blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(_generate, jr.key_data(key)))
            world = _renewed(jnp.ones((), bool), jr.key_data(key), blank)
        return self._show(world, jnp.zeros((), jnp.int32), jnp.zeros(len(self.events), bool), jnp.ones((), bool))

    @in_32_bits
    def step(self, state: CraftaxState, action: Action, *, key: PRNGKeyArray) -> tuple[CraftaxState, TimeStep]:
        from craftax.craftax_classic.game_logic import craftax_step

        data, params = jr.key_data(key), _params()
        with lenient():
            world, _ = craftax_step(data, state.world, action.discrete[0], *params)
            world = jax.tree.map(lambda old, new: jnp.asarray(new, old.dtype), state.world, world)
            world = _renewed(state.ended, data, world)
        gained = jnp.maximum(world.inventory.wood - state.world.inventory.wood, 0)
        wood = jnp.where(state.ended, 0, state.wood + gained)
        return self._show(world, wood, state.happened & ~state.ended, state.ended)

    def _show(
        self, world: Any, wood: Int[Array, ""], before: Bool[Array, " E"], is_first: Bool[Array, ""]
    ) -> tuple[CraftaxState, TimeStep]:
        happened = jnp.append(world.achievements, wood >= _WOOD)
        paid = self._pays @ (happened & ~before).astype(jnp.float32)
        paid += (self._rungs(happened) - self._rungs(before)).astype(jnp.float32)
        reward = jnp.where(is_first, 0.0, paid)
        row, column = world.player_position
        dead = (world.player_health <= 0) | (world.map[row, column] == _LAVA)
        is_last = dead | (world.timestep >= self.max_steps)
        with lenient():
            frame = self.picture(world)
        return CraftaxState(world, wood, happened, is_last), TimeStep(frame, reward, is_first, is_last, dead)


def _params() -> tuple[Any, Any]:
    from craftax.craftax_classic.envs.craftax_state import EnvParams, StaticEnvParams

    return EnvParams(), StaticEnvParams()


def _generate(key: UInt32[Array, "2"]) -> Any:
    from craftax.craftax_classic.world_gen import generate_world

    return jax.tree.map(lambda x: jnp.asarray(x, jnp.asarray(x).dtype), generate_world(key, *_params()))


@custom_vmap
def _renewed(where: Bool[Array, "*batch"], key: UInt32[Array, "*batch 2"], world: PyTree) -> PyTree:
    """Returns the worlds with new ones, drawn by the keys, in the places of some."""
    batch = where.ndim
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[batch:]), (where, key, world))

    def renew(carry: tuple[Array, PyTree]) -> tuple[Array, PyTree]:
        left, worlds = carry
        i = jnp.argmax(left)
        return left.at[i].set(False), jax.tree.map(lambda x, new: x.at[i].set(new), worlds, _generate(flat[1][i]))

    _, worlds = jax.lax.while_loop(lambda carry: carry[0].any(), renew, (flat[0], flat[2]))
    return jax.tree.map(lambda x, old: x.reshape(old.shape), worlds, world)


@_renewed.def_vmap
def _(axis_size: int, in_batched: Any, where: Array, key: Array, world: PyTree) -> tuple[PyTree, PyTree]:
    # Once more the same with one more leading axis: a loop that vmap batched would generate for all of them.
    arguments = (where, key, world)
    batched = jax.tree.map(
        lambda x, has_axis: x if has_axis else jnp.broadcast_to(x, (axis_size, *x.shape)), arguments, tuple(in_batched)
    )
    return _renewed(*batched), jax.tree.map(lambda _: True, world)
