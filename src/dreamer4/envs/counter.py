"""An environment that can be read like a clock, to find off-by-one errors."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PRNGKeyArray, UInt8

from dreamer4.envs.base import AbstractEnvironment
from dreamer4.errors import InputError
from dreamer4.types import Action, ActionSpec, DataSpec, TimeStep


class CounterState(eqx.Module):
    """Index of the frame within its episode."""

    index: Int[Array, ""]


class CounterEnvironment(AbstractEnvironment):
    """A deterministic environment whose frames tell their own index and the action that led to them.

    The upper half of a frame encodes its index `t` in the episode, the lower half the action that led to it; `decode`
    reads both. The reward that arrives with frame `t` is `t`. So wherever a frame, an action and a reward are brought
    together, one can see whether they belong together.
    """

    spec: DataSpec = eqx.field(static=True)
    max_steps: int = eqx.field(static=True)
    terminates: bool = eqx.field(static=True)

    def __init__(
        self, length: int, num_actions: int, frame_shape: tuple[int, int, int] = (4, 4, 1), terminates: bool = True
    ):
        """Sets the size.

        Args:
            length: frames of every episode, 2 to 256.
            num_actions: classes of the one discrete action, 2 to 255.
            frame_shape: height (at least 2), width and channels.
            terminates: whether episodes end by termination; otherwise by a limit.

        Raises:
            InputError: if a size lies outside its range.
        """
        if not 2 <= length <= 256:
            raise InputError(f"CounterEnvironment: got length {length}, expected 2 to 256, one pixel value per frame.")
        if not 2 <= num_actions <= 255:
            raise InputError(f"CounterEnvironment: got num_actions {num_actions}, expected 2 to 255.")
        if frame_shape[0] < 2:
            raise InputError(f"CounterEnvironment: got frame_shape {frame_shape}, expected a height of at least 2.")
        self.spec = DataSpec(frame_shape, ActionSpec((num_actions,)))
        self.max_steps = length - 1
        self.terminates = terminates

    def reset(self, *, key: PRNGKeyArray) -> tuple[CounterState, TimeStep]:
        del key
        index = jnp.zeros((), jnp.int32)
        return CounterState(index), self._time_step(index, jnp.full((), -1, jnp.int32))

    def step(self, state: CounterState, action: Action, *, key: PRNGKeyArray) -> tuple[CounterState, TimeStep]:
        del key
        starts = state.index == self.max_steps
        index = jnp.where(starts, 0, state.index + 1)
        return CounterState(index), self._time_step(index, jnp.where(starts, -1, action.discrete[0]))

    def decode(self, frame: UInt8[Array, "*batch H W C"]) -> tuple[Int[Array, "*batch"], Int[Array, "*batch"]]:
        """Reads the index of a frame and the action that led to it; the action of a first frame reads as -1."""
        time_level, action_level = self._levels
        index = frame[..., 0, 0, 0].astype(jnp.int32) // time_level
        return index, frame[..., -1, 0, 0].astype(jnp.int32) // action_level - 1

    @property
    def _levels(self) -> tuple[int, int]:
        # As far apart as 255 allows, so that a learned model can tell neighbours apart too.
        return 255 // self.max_steps, 255 // self.spec.action.num_classes[0]

    def _time_step(self, index: Int[Array, ""], action: Int[Array, ""]) -> TimeStep:
        time_level, action_level = self._levels
        height, width, channels = self.spec.frame_shape
        upper = jnp.arange(height) < height // 2
        column = jnp.where(upper, index * time_level, (action + 1) * action_level).astype(jnp.uint8)
        is_last: Bool[Array, ""] = index == self.max_steps
        return TimeStep(
            frame=jnp.broadcast_to(column[:, None, None], (height, width, channels)),
            reward=index.astype(jnp.float32),
            is_first=index == 0,
            is_last=is_last,
            is_terminal=is_last & self.terminates,
        )
