"""An environment of one task as data of several tasks shows it."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, PRNGKeyArray, PyTree, UInt8

from dreamer4.envs.base import AbstractEnvironment, Pace
from dreamer4.types import Action, ActionSpec, DataSpec, TimeStep


class TaskEnvironment(AbstractEnvironment):
    """Another environment behind the frames and actions that all tasks share.

    Channels that it lacks are black, and components of an action that it lacks change nothing.

    Attributes:
        inner: the environment.
        place: where the components of its actions stand among the shared ones.
    """

    inner: AbstractEnvironment
    spec: DataSpec = eqx.field(static=True)
    place: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, inner: AbstractEnvironment, spec: DataSpec, place: tuple[int, ...]):
        """Wraps an environment; see the attributes."""
        self.inner, self.spec, self.place = inner, spec, place

    @property
    def max_steps(self) -> int:
        return self.inner.max_steps

    @property
    def pace(self) -> Pace:
        return self.inner.pace

    def fault(self) -> str | None:
        return self.inner.fault()

    @property
    def events(self) -> tuple[str, ...]:
        return self.inner.events

    def happened(self, state: PyTree) -> Bool[Array, " E"]:
        return self.inner.happened(state)

    def reset(self, *, key: PRNGKeyArray) -> tuple[PyTree, TimeStep]:
        state, step = self.inner.reset(key=key)
        return state, self._shown(step)

    def step(self, state: PyTree, action: Action, *, key: PRNGKeyArray) -> tuple[PyTree, TimeStep]:
        count = len(self.spec.action.num_classes)
        discrete = jnp.asarray([at for at in self.place if at < count], jnp.int32)
        continuous = jnp.asarray([at - count for at in self.place if at >= count], jnp.int32)
        own = Action(action.discrete[discrete], action.continuous[continuous])
        state, step = self.inner.step(state, own, key=key)
        return state, self._shown(step)

    def _shown(self, step: TimeStep) -> TimeStep:
        return eqx.tree_at(lambda s: s.frame, step, in_channels(step.frame, self.spec.frame_shape[2]))


def in_channels(frame: UInt8[Array, "H W c"], channels: int) -> UInt8[Array, "H W C"]:
    """Returns a frame with black channels behind its own."""
    return jnp.pad(frame, ((0, 0), (0, 0), (0, channels - frame.shape[2])))


def fitted(env: AbstractEnvironment, spec: DataSpec, task: int) -> AbstractEnvironment | None:
    """Returns an environment as a task of data shows it; None if it cannot be that task.

    Args:
        env: the environment.
        spec: what the data looks like.
        task: id of the task.
    """
    place = spec.action.place(env.spec.action)
    has = (spec.tasks[task].present if spec.tasks else ()) or (True,) * spec.action.size
    (height, width, channels), (rows, columns, most) = env.spec.frame_shape, spec.frame_shape
    if place is None or place != tuple(at for at, present in enumerate(has) if present):
        return None
    if (height, width) != (rows, columns) or channels > most:
        return None
    if env.spec.looks == spec.looks:
        return env
    action = ActionSpec(spec.action.num_classes, spec.action.continuous_dim)
    return TaskEnvironment(env, DataSpec(spec.frame_shape, action), place)
