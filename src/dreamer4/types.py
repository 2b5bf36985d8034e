"""The data that flows through the house, and the clock that orders it.

The clock, stated once. `action[t]` led to `frame[t]`; `reward[t]` and `is_terminal[t]` arrived with `frame[t]`. At
`is_first` there was no action (`action_mask` is False there) and the reward means nothing. An agent read-out `h[t]` has
seen frame `t` and action `t`, so the policy at `h[t]` chooses `action[t + 1]`. The last frame of an episode is stored.
Termination (`is_terminal`) cuts the return; a time limit (`is_last` without `is_terminal`) does not.

Every container may carry leading batch axes, written `*batch`; models see none of them.
"""

from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree, UInt8

from dreamer4.errors import InputError


@dataclass(frozen=True)
class ActionSpec:
    """The factors of an action: any mix of discrete components and one continuous vector.

    Catch is `ActionSpec((3,))`, Minecraft `ActionSpec((2,) * 23 + (121,))`, a six-joint walker `ActionSpec((), 6)`.

    Attributes:
        num_classes: number of classes of each discrete component.
        continuous_dim: size of the continuous vector, whose entries lie in [-1, 1].
    """

    num_classes: tuple[int, ...] = ()
    continuous_dim: int = 0

    def __post_init__(self):
        if any(n < 2 for n in self.num_classes):
            raise InputError(f"ActionSpec.num_classes: got {self.num_classes}, expected at least 2 classes each.")
        if self.continuous_dim < 0 or not (self.num_classes or self.continuous_dim):
            raise InputError(
                f"ActionSpec: got num_classes={self.num_classes} and continuous_dim={self.continuous_dim}, "
                "expected at least one component."
            )


class Action(eqx.Module):
    """A factored action: class indices of the discrete components, and the continuous vector in [-1, 1]."""

    discrete: Int[Array, "*batch components"]
    continuous: Float[Array, "*batch dims"]

    @classmethod
    def null(cls, spec: ActionSpec, *batch: int) -> "Action":
        """Returns the all-zero action; it stands where `action_mask` is False and is never read."""
        return cls(
            jnp.zeros((*batch, len(spec.num_classes)), jnp.int32),
            jnp.zeros((*batch, spec.continuous_dim), jnp.float32),
        )


@dataclass(frozen=True)
class DataSpec:
    """What a data set or an environment looks like to a model.

    Attributes:
        frame_shape: height, width and channels of a frame.
        action: the factors of an action.
        num_tasks: number of tasks; task ids are 0 to num_tasks - 1.
    """

    frame_shape: tuple[int, int, int]
    action: ActionSpec
    num_tasks: int = 1


class TimeStep(eqx.Module):
    """What an environment returns at `reset` and `step`, with dm_env's timing.

    The step after a last frame returns the first frame of the next episode; that step's action is ignored.
    """

    frame: UInt8[Array, "*batch H W C"]
    reward: Float[Array, "*batch"]
    is_first: Bool[Array, "*batch"]
    is_last: Bool[Array, "*batch"]
    is_terminal: Bool[Array, "*batch"]


class Trajectory(eqx.Module):
    """A stretch of one episode, as frames or as tokenizer latents, aligned by the clock of this file.

    Attributes:
        frame: pixels, 0 to 255; None once the data is tokenized.
        latent: standardised spatial tokens; None before the data is tokenized.
        action: the action that led to each frame.
        action_mask: False where the action is unknown or absent (first frames, unlabelled video).
        reward: reward that arrived with each frame.
        is_first: whether the frame opens its episode.
        is_last: whether the frame closes its episode, for whatever reason.
        is_terminal: whether the frame closes its episode by termination.
        valid: False on the padding behind the end of an episode.
        task: task of the stretch.
        relevant: whether cloning may learn from it.
        uniform: whether the world model may learn from it. A data set without the distinction sets both everywhere.
        place: where the real environment stood at each frame (`data.Place`), with the time axis leading in each leaf;
            None where nobody asks for it.
    """

    frame: UInt8[Array, "*batch T H W C"] | None
    latent: Float[Array, "*batch T Nz Dz"] | None
    action: Action
    action_mask: Bool[Array, "*batch T"]
    reward: Float[Array, "*batch T"]
    is_first: Bool[Array, "*batch T"]
    is_last: Bool[Array, "*batch T"]
    is_terminal: Bool[Array, "*batch T"]
    valid: Bool[Array, "*batch T"]
    task: Int[Array, "*batch"]
    relevant: Bool[Array, "*batch"]
    uniform: Bool[Array, "*batch"]
    place: PyTree = None


def check_key(where: str, key: object) -> None:
    """Refuses what is no random key of JAX, of the old kind or the new, such as a plain seed."""
    kind = getattr(key, "dtype", None)
    if kind is None or not (jnp.issubdtype(kind, jax.dtypes.prng_key) or kind == jnp.uint32):
        raise InputError(f"{where}: key: got {key!r}, expected a random key of JAX, such as jax.random.key(0).")


def within_bounds(action: Action) -> Action:
    """Returns the action with its continuous part in [-1, 1], as an environment takes it.

    What a policy draws may lie outside, and its probability is that of the draw; so this is done where an action leaves
    for a world, and not before.
    """
    return Action(action.discrete, jnp.clip(action.continuous, -1.0, 1.0))


def to_float(frame: UInt8[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Maps pixels from 0..255 to [0, 1]."""
    return frame.astype(jnp.float32) / 255.0


def to_uint8(frame: Float[Array, "*shape"]) -> UInt8[Array, "*shape"]:
    """Maps pixels from [0, 1] to the nearest of 0..255, clipping what lies outside."""
    return jnp.round(jnp.clip(frame, 0.0, 1.0) * 255.0).astype(jnp.uint8)
