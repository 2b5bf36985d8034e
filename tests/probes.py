"""Five environments too small to fail for any but one reason.

An agent that misses the value of a probe has a fault in the one faculty the probe needs beyond those before it. Frames
are 2 x 2 pixels, episodes take one to three steps, there are two actions, and the right answers are known exactly.
"""

from abc import abstractmethod

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int, PRNGKeyArray

from dreamer4.envs.base import AbstractEnvironment
from dreamer4.types import Action, ActionSpec, DataSpec, TimeStep


_SPEC = DataSpec((2, 2, 1), ActionSpec((2,)))


class ProbeState(eqx.Module):
    """Colour of the episode, 0 or 1, and number of actions so far."""

    colour: Int[Array, ""]
    time: Int[Array, ""]


class AbstractProbe(AbstractEnvironment):
    """The timing all probes share: a random colour at the start, `max_steps` actions, termination.

    The upper row of a frame shows the colour where the probe is `coloured` (else black), the lower row how far the
    episode is.

    Attributes:
        coloured: whether the frame shows the colour.
        optimal_return: expected return of the best policy.
        random_return: expected return of the uniformly random policy.
    """

    coloured: eqx.AbstractVar[bool]
    optimal_return: eqx.AbstractVar[float]
    random_return: eqx.AbstractVar[float]

    @property
    def spec(self) -> DataSpec:
        """Frame shape and action factors, the same for all probes."""
        return _SPEC

    @abstractmethod
    def reward(self, state: ProbeState, choice: Int[Array, ""]) -> Float[Array, ""]:
        """Returns the reward of an action.

        Args:
            state: the state in which the action is chosen.
            choice: the action, 0 or 1.
        """

    def reset(self, *, key: PRNGKeyArray) -> tuple[ProbeState, TimeStep]:
        state = ProbeState(jr.randint(key, (), 0, 2), jnp.zeros((), jnp.int32))
        return state, self._time_step(state, jnp.zeros(()))

    def step(self, state: ProbeState, action: Action, *, key: PRNGKeyArray) -> tuple[ProbeState, TimeStep]:
        starts = state.time == self.max_steps
        next_state = ProbeState(
            colour=jnp.where(starts, jr.randint(key, (), 0, 2), state.colour),
            time=jnp.where(starts, 0, state.time + 1),
        )
        reward = jnp.where(starts, 0.0, self.reward(state, action.discrete[0]))
        return next_state, self._time_step(next_state, reward)

    def _time_step(self, state: ProbeState, reward: Float[Array, ""]) -> TimeStep:
        colour = state.colour if self.coloured else jnp.zeros_like(state.colour)
        rows = jnp.stack([255 * colour, 255 * state.time // self.max_steps]).astype(jnp.uint8)
        is_last = state.time == self.max_steps
        return TimeStep(
            frame=jnp.broadcast_to(rows[:, None, None], _SPEC.frame_shape),
            reward=reward,
            is_first=state.time == 0,
            is_last=is_last,
            is_terminal=is_last,
        )


class ConstantReward(AbstractProbe):
    """Isolates the reward and value heads: one step, reward 1 whatever happens, so the first frame is worth 1."""

    max_steps: int = eqx.field(default=1, static=True)
    coloured: bool = eqx.field(default=False, static=True)
    optimal_return: float = eqx.field(default=1.0, static=True)
    random_return: float = eqx.field(default=1.0, static=True)

    def reward(self, state: ProbeState, choice: Int[Array, ""]) -> Float[Array, ""]:
        """Returns 1."""
        del state, choice
        return jnp.ones(())


class ObservedReward(AbstractProbe):
    """Isolates sight: one step, a white first frame is worth +1 and a black one -1, whatever the action."""

    max_steps: int = eqx.field(default=1, static=True)
    coloured: bool = eqx.field(default=True, static=True)
    optimal_return: float = eqx.field(default=0.0, static=True)
    random_return: float = eqx.field(default=0.0, static=True)

    def reward(self, state: ProbeState, choice: Int[Array, ""]) -> Float[Array, ""]:
        """Returns +1 for white, -1 for black."""
        del choice
        return jnp.where(state.colour == 1, 1.0, -1.0)


class DelayedReward(AbstractProbe):
    """Isolates bootstrapping: reward 1 with the third step only, so frame t is worth `discount ** (2 - t)`."""

    max_steps: int = eqx.field(default=3, static=True)
    coloured: bool = eqx.field(default=False, static=True)
    optimal_return: float = eqx.field(default=1.0, static=True)
    random_return: float = eqx.field(default=1.0, static=True)

    def reward(self, state: ProbeState, choice: Int[Array, ""]) -> Float[Array, ""]:
        """Returns 1 for the last action, 0 before."""
        del choice
        return (state.time == self.max_steps - 1).astype(jnp.float32)


class ChosenReward(AbstractProbe):
    """Isolates choice: one step, action 1 earns +1 and action 0 -1; the best policy always takes 1 and is worth 1."""

    max_steps: int = eqx.field(default=1, static=True)
    coloured: bool = eqx.field(default=False, static=True)
    optimal_return: float = eqx.field(default=1.0, static=True)
    random_return: float = eqx.field(default=0.0, static=True)

    def reward(self, state: ProbeState, choice: Int[Array, ""]) -> Float[Array, ""]:
        """Returns +1 for action 1, -1 for action 0."""
        del state
        return jnp.where(choice == 1, 1.0, -1.0)


class MatchedReward(AbstractProbe):
    """Isolates choice by sight: one step, the action that equals the colour (1 is white) earns +1, the other -1."""

    max_steps: int = eqx.field(default=1, static=True)
    coloured: bool = eqx.field(default=True, static=True)
    optimal_return: float = eqx.field(default=1.0, static=True)
    random_return: float = eqx.field(default=0.0, static=True)

    def reward(self, state: ProbeState, choice: Int[Array, ""]) -> Float[Array, ""]:
        """Returns +1 for a match, -1 otherwise."""
        return jnp.where(choice == state.colour, 1.0, -1.0)


PROBES: tuple[type[AbstractProbe], ...] = (
    ConstantReward,
    ObservedReward,
    DelayedReward,
    ChosenReward,
    MatchedReward,
)
