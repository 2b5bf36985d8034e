"""The data that flows through the house, and the clock that orders it.

The clock, stated once. `action[t]` led to `frame[t]`; `reward[t]` and `is_terminal[t]` arrived with `frame[t]`. At
`is_first` there was no action (`action_mask` is False there) and the reward means nothing. An agent read-out `h[t]` has
seen frame `t` and action `t`, so the policy at `h[t]` chooses `action[t + 1]`. The last frame of an episode is stored.
Termination (`is_terminal`) cuts the return; a time limit (`is_last` without `is_terminal`) does not.

Every container may carry leading batch axes, written `*batch`; models see none of them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, PyTree, UInt8
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    PositiveInt,
    model_serializer,
)

from dreamer4.errors import InputError, check_whole, nearest


@dataclass(frozen=True)
class ActionSpec:
    """The factors of an action: any mix of discrete components and one continuous vector.

    Catch is `ActionSpec((3,))`, Minecraft `ActionSpec((2,) * 23 + (121,))`, a six-joint walker `ActionSpec((), 6)`.

    Attributes:
        num_classes: number of classes of each discrete component.
        continuous_dim: size of the continuous vector, whose entries lie in [-1, 1].
        present: of each task, which components it has, the discrete ones first; empty where every task has all.
    """

    num_classes: tuple[int, ...] = ()
    continuous_dim: int = 0
    present: tuple[tuple[bool, ...], ...] = ()

    def __post_init__(self):
        for count in self.num_classes:
            check_whole("ActionSpec", 2, num_classes=count)
        check_whole("ActionSpec", 0, continuous_dim=self.continuous_dim)
        if not (self.num_classes or self.continuous_dim):
            raise InputError(
                f"ActionSpec: got num_classes={self.num_classes} and continuous_dim={self.continuous_dim}, "
                "expected at least one component."
            )
        if any(len(row) != self.size for row in self.present):
            raise InputError(f"ActionSpec.present: got {self.present}, expected {self.size} components of each task.")

    @property
    def size(self) -> int:
        """Number of components, each dimension of the continuous vector being one."""
        return len(self.num_classes) + self.continuous_dim

    def components(self, task: Int[Array, "*batch"] | None = None) -> Bool[Array, "*batch_or_none C"]:
        """Returns which components a task has; all of them, without a batch axis, where no task lacks one."""
        every = jnp.ones(self.size, bool)
        return every if task is None or not self.present else jnp.asarray(self.present)[task]

    def place(self, own: "ActionSpec") -> tuple[int, ...] | None:
        """Returns where the components of `own` stand among these, in their order; None if they are no part of them.

        Continuous dimensions are the first ones, a discrete component the next one of as many classes.
        """
        found, start = [], 0
        for classes in own.num_classes:
            if classes not in self.num_classes[start:]:
                return None
            start = self.num_classes.index(classes, start) + 1
            found.append(start - 1)
        first = len(self.num_classes)
        return None if own.continuous_dim > self.continuous_dim else (*found, *range(first, first + own.continuous_dim))

    @classmethod
    def around(cls, parts: "Sequence[ActionSpec]") -> "ActionSpec":
        """Returns a small space in which each of the parts has its place."""
        whole: list[int] = []
        for part in parts:
            start = 0
            for classes in part.num_classes:
                if classes not in whole[start:]:
                    whole.append(classes)
                start = whole.index(classes, start) + 1
        return cls(tuple(whole), max(part.continuous_dim for part in parts))


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


class TaskSpec(BaseModel):
    """A task by name.

    Attributes:
        name: of one's choice, once in a data set.
        env: where it is played, usually `id` and `kwargs`; empty: it is known from recordings alone.
        present: which components of an action it has, the discrete ones first; empty: all.
        max_steps: upper bound of the actions in an episode, where it is known.
        text: the task in words, if somebody has told it.
        vector: what tells an agent the task in place of its number, such as an embedding of `text`; empty: the number.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    env: dict[str, Any] = {}
    present: tuple[bool, ...] = ()
    max_steps: PositiveInt | None = None
    text: str | None = None
    vector: tuple[FiniteFloat, ...] = ()

    @model_serializer(mode="wrap")
    def _as_it_was(self, dump: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """Leaves out an empty vector, lest the fingerprints of data sets of before there were any change."""
        told = dump(self)
        return told if self.vector else {name: value for name, value in told.items() if name != "vector"}

    def __hash__(self) -> int:
        return hash((self.name, self.present))  # a mapping has none


@dataclass(frozen=True)
class DataSpec:
    """What a data set or an environment looks like to a model.

    Attributes:
        frame_shape: height, width and channels of a frame.
        action: the factors of an action, of all tasks together.
        num_tasks: number of tasks; task ids are 0 to num_tasks - 1.
        tasks: what each of them is; empty where nobody told.
    """

    frame_shape: tuple[int, int, int]
    action: ActionSpec
    num_tasks: int = 1
    tasks: tuple[TaskSpec, ...] = ()

    def __post_init__(self):
        if len(self.frame_shape) != 3:
            raise InputError(f"DataSpec.frame_shape: got {self.frame_shape}, expected height, width and channels.")
        for size in self.frame_shape:
            check_whole("DataSpec", frame_shape=size)
        if self.tasks and (len(self.tasks) != self.num_tasks or len(set(self.names)) != self.num_tasks):
            raise InputError(f"tasks: got {', '.join(self.names)}, expected {self.num_tasks} different names.")
        sizes = sorted({len(task.vector) for task in self.tasks})
        if len(sizes) > 1:
            raise InputError(f"tasks: got vectors of {sizes} numbers, expected as many of each task, or none of any.")
        rows = tuple(task.present or (True,) * self.action.size for task in self.tasks)
        if self.tasks:
            present = () if all(map(all, rows)) else rows
            object.__setattr__(self, "action", replace(self.action, present=present))

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each task; its number where it has none."""
        return tuple(task.name for task in self.tasks) or tuple(map(str, range(self.num_tasks)))

    @property
    def vectors(self) -> tuple[tuple[float, ...], ...]:
        """The vector that tells each task; none where their numbers do."""
        found = tuple(task.vector for task in self.tasks)
        return found if any(found) else ()

    def telling(self, vectors: "Mapping[str, tuple[float, ...]]") -> "DataSpec":
        """Returns the same with other vectors of the tasks that are named; those of the others stay.

        Raises:
            InputError: if there is no such task, or the vectors do not fit each other.
        """
        if unknown := [name for name in vectors if name not in self.names]:
            raise InputError(f"tasks: got a vector of {', '.join(unknown)}, but the data hold {', '.join(self.names)}.")
        tasks = self.tasks or [TaskSpec(name=name) for name in self.names]
        told = (task.model_copy(update={"vector": vectors.get(task.name, task.vector)}) for task in tasks)
        return replace(self, tasks=tuple(told))

    @property
    def looks(self) -> tuple[tuple[int, int, int], tuple[int, ...], int]:
        """Shape of a frame, classes, and continuous dimensions: what a policy must be made for, whatever its tasks."""
        return self.frame_shape, self.action.num_classes, self.action.continuous_dim

    @classmethod
    def around(cls, parts: "Sequence[DataSpec]") -> "DataSpec":
        """Returns what data of several kinds looks like as one; tasks of one name are one task.

        Frames of fewer channels have black ones behind theirs, and actions a place in one space.

        Raises:
            InputError: if frames differ in size, or tasks of one name have other components.
        """
        sizes = sorted({part.frame_shape[:2] for part in parts})
        if len(sizes) > 1:
            raise InputError(f"tasks: got frames of {sizes} pixels, expected one size. Draw or import them alike.")
        action, tasks = ActionSpec.around([part.action for part in parts]), {}
        for part in parts:
            place = action.place(part.action)
            assert place is not None  # it was made around them
            for task in part.tasks or [TaskSpec(name=name) for name in part.names]:
                own = task.present or (True,) * part.action.size
                has = {at for at, present in zip(place, own, strict=True) if present}
                present = () if len(has) == action.size else tuple(at in has for at in range(action.size))
                found = tasks.setdefault(task.name, task.model_copy(update={"present": present}))
                if found.present != present:
                    raise InputError(f"tasks: {task.name} has other actions in one place than in another. Rename one.")
        channels = max(part.frame_shape[2] for part in parts)
        return cls((*sizes[0], channels), action, len(tasks), tuple(tasks.values()))

    def find_task(self, task: str | int) -> int:
        """Returns the id of a task by its name, or by its number.

        Raises:
            InputError: if there is no such task; the message lists those there are.
        """
        task = str(task)
        numbers = {str(number): number for number in range(self.num_tasks)}
        found = (numbers | {name: number for number, name in enumerate(self.names)}).get(task)
        if found is None:
            known = ", ".join(f"{number} {name}" if self.tasks else name for number, name in enumerate(self.names))
            told = nearest(task, self.names, listed=False)
            raise InputError(f"--task: got {task!r}, but the tasks of this agent are: {known}. {told}".rstrip())
        return found


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


def check_action(where: str, action: Action, spec: ActionSpec) -> None:
    """Refuses an action of other components than those of `spec`, or of a class that is none, where it is known."""
    shapes, got = (jnp.shape(action.discrete), jnp.shape(action.continuous)), None
    if shapes != ((len(spec.num_classes),), (spec.continuous_dim,)):
        got = f"an action of shapes {shapes[0]} and {shapes[1]}"
    elif spec.num_classes and not isinstance(action.discrete, Tracer):
        classes = np.asarray(action.discrete)
        if classes.dtype.kind not in "iu" or np.any((classes < 0) | (classes >= spec.num_classes)):
            got = f"classes {classes.tolist()}"
    if got is not None:
        raise InputError(
            f"{where}: got {got}, expected {len(spec.num_classes)} discrete components, of {spec.num_classes} classes "
            f"counted from 0, and {spec.continuous_dim} continuous ones."
        )


def within_bounds(action: Action) -> Action:
    """Returns the action with its continuous part in [-1, 1], as an environment takes it.

    What a policy draws may lie outside, and its probability is that of the draw; so this is done where an action leaves
    for a world, and not before.
    """
    return Action(action.discrete, jnp.clip(action.continuous, -1.0, 1.0))


def is_possible(action: Action, spec: ActionSpec) -> Bool[Array, "*batch"]:
    """Tells of an action, or of each of a batch, whether it is one: its classes are known, the rest is in [-1, 1]."""
    known = (action.discrete >= 0) & (action.discrete < jnp.asarray(spec.num_classes, jnp.int32))
    return known.all(axis=-1) & (jnp.abs(action.continuous) <= 1).all(axis=-1)


def to_float(frame: UInt8[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Maps pixels from 0..255 to [0, 1]."""
    return frame.astype(jnp.float32) / 255.0


def to_uint8(frame: Float[Array, "*shape"]) -> UInt8[Array, "*shape"]:
    """Maps pixels from [0, 1] to the nearest of 0..255, clipping what lies outside."""
    return jnp.round(jnp.clip(frame, 0.0, 1.0) * 255.0).astype(jnp.uint8)
