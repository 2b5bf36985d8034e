"""A dream behind the interface of gymnax, for agents that were written against that.

    env = DreamEnvironment.load("runs/catch-Catch-bsuite-seed0")
    params = env.default_params
    obs, state = env.reset(key, params)
    obs, state, reward, terminated, truncated, info = env.step(key, state, action, params)

The weights lie in the parameters, so hand these to jitted functions as an argument, as gymnax does everywhere: what a
function closes over becomes constants of its program. A `vmap` over parameters plays in several learned worlds at once.
"""

from pathlib import Path
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from gymnax.environments import environment, spaces
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from dreamer4.errors import InputError
from dreamer4.serving.dream import DreamState, DreamWorld
from dreamer4.types import Action, ActionSpec, to_float


class DreamParams(eqx.Module):
    """Parameters of a dream, as gymnax has them.

    Attributes:
        world: the learned world.
        max_steps_in_episode: limit of the actions in an episode; takes the place of the world's own.
    """

    world: DreamWorld
    max_steps_in_episode: int | Int[Array, "*batch"]


class DreamEnvironment(environment.Environment[Any, Any]):
    """The learned world as a gymnax environment: six values from `step`, and auto-reset, as gymnax 1.0 has it.

    Observations are frames `[H W C]` as float32 in [0, 1]. The action is an index where there is one discrete
    component, a vector in [-1, 1] where there are none, and otherwise a tuple of one index for each component and, if
    there are continuous dimensions, their vector.
    """

    def __init__(self, world: DreamWorld):
        """Wraps a world, whose weights become the default parameters."""
        self.world = world

    @classmethod
    def load(cls, path: str | Path, **kwargs: Any) -> "DreamEnvironment":
        """Loads the world of a run; takes the arguments of `DreamWorld.load` and raises as that does."""
        return cls(DreamWorld.load(path, **kwargs))

    @property
    def default_params(self) -> DreamParams:
        """The world, and the limit that it was built with."""
        return DreamParams(self.world, self.world.max_steps)

    @property
    def name(self) -> str:
        """Name of the environment."""
        return "Dream"

    @property
    def num_actions(self) -> int:
        """Number of actions, or of entries of a continuous one; of several discrete components, all combinations."""
        spec = self.world.spec.action
        return int(jnp.prod(jnp.asarray(spec.num_classes))) if spec.num_classes else spec.continuous_dim

    def reset_env(self, key: PRNGKeyArray, params: DreamParams) -> tuple[Float[Array, "H W C"], DreamState]:
        """Starts a dream."""
        state, step = params.world.reset(key=key)
        return to_float(step.frame), state

    def step_env(
        self, key: PRNGKeyArray, state: DreamState, action: Any, params: DreamParams
    ) -> tuple[Float[Array, "H W C"], DreamState, Float[Array, ""], Bool[Array, ""], dict[str, Any]]:
        """Dreams one frame, without reset and without limit."""
        taken = to_action(params.world.spec.action, action)
        state, frame, reward, terminated = params.world.advance(state, taken, key=key)
        return to_float(frame), state, reward, terminated, {"discount": jnp.where(terminated, 0.0, 1.0)}

    def is_terminated(self, state: DreamState, params: DreamParams) -> Bool[Array, ""]:
        """Returns whether the episode terminated at the state."""
        return state.ended

    def action_space(self, params: DreamParams | None = None) -> spaces.Space:
        """Space of the actions."""
        return action_space(self.world.spec.action)

    def observation_space(self, params: DreamParams | None = None) -> spaces.Box:
        """Space of the frames."""
        return spaces.Box(0.0, 1.0, self.world.spec.frame_shape, jnp.float32)


def action_space(spec: ActionSpec) -> spaces.Space:
    """Returns the gymnax space of the actions of `spec`, as `DreamEnvironment` describes it."""
    parts: list[spaces.Space] = [spaces.Discrete(n) for n in spec.num_classes]
    if spec.continuous_dim:
        parts.append(spaces.Box(-1.0, 1.0, (spec.continuous_dim,), jnp.float32))
    return parts[0] if len(parts) == 1 else spaces.Tuple(parts)


def to_action(spec: ActionSpec, native: Any) -> Action:
    """Returns an action of gymnax's as ours; continuous entries are held within [-1, 1], classes within theirs."""
    single = len(spec.num_classes) + bool(spec.continuous_dim) == 1
    parts = (native,) if single else tuple(native)
    sizes = [1] * len(spec.num_classes) + ([spec.continuous_dim] if spec.continuous_dim else [])
    if [jnp.size(part) for part in parts] != sizes:
        raise InputError(f"Dream: got an action of sizes {[jnp.size(part) for part in parts]}, expected {sizes}.")
    discrete = jnp.asarray([jnp.reshape(part, ()) for part in parts[: len(spec.num_classes)]], jnp.int32)
    discrete = jnp.clip(discrete, 0, jnp.asarray(spec.num_classes, jnp.int32) - 1)
    if not spec.continuous_dim:
        return Action(discrete, jnp.zeros(0))
    continuous = jnp.reshape(jnp.asarray(parts[-1], jnp.float32), spec.continuous_dim)
    return Action(discrete, jnp.clip(continuous, -1.0, 1.0))
