"""One episode on the host: numpy arrays, aligned by the clock of `dreamer4.types`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float32, Int32, UInt8, UInt32

from dreamer4.errors import InputError
from dreamer4.types import ActionSpec, DataSpec


_KINDS = {
    "frame": ("uint8", 4),
    "discrete": ("int32", 2),
    "continuous": ("float32", 2),
    "action_mask": ("bool", 1),
    "reward": ("float32", 1),
}


@dataclass(frozen=True, eq=False)
class Episode:
    """A whole episode of `T` frames, its last frame included.

    Attributes:
        frame: pixels, 0 to 255.
        discrete: class indices of the action that led to each frame.
        continuous: continuous part of that action, in [-1, 1].
        action_mask: False where the action is absent or unknown; always False at the first frame.
        reward: reward that arrived with each frame; that of the first frame means nothing.
        is_terminal: whether the episode ended by termination rather than by a limit.
        task: id of the task.
        relevant: whether cloning may learn from the episode.
        key: data of the key by which the environment drew each frame, that of `reset` at the first, so that the episode
            can be played again (`replay`); None where nobody recorded it.
    """

    frame: UInt8[np.ndarray, "T H W C"]
    discrete: Int32[np.ndarray, "T components"]
    continuous: Float32[np.ndarray, "T dims"]
    action_mask: Bool[np.ndarray, " T"]
    reward: Float32[np.ndarray, " T"]
    is_terminal: bool
    task: int = 0
    relevant: bool = True
    key: UInt32[np.ndarray, "T words"] | None = None

    @property
    def length(self) -> int:
        """Number of frames; one more than the number of actions."""
        return len(self.frame)

    @property
    def total(self) -> float:
        """Undiscounted return, the sum of the rewards behind the first frame."""
        return float(self.reward[1:].sum(dtype=np.float64))


def part(episode: Episode, begin: int, frame: UInt8[np.ndarray, "T H W C"]) -> Episode:
    """Returns the stretch of an episode that begins at a frame as an episode of its own.

    Args:
        episode: the whole, whose frames are not looked at.
        begin: its first frame, which no action led to.
        frame: the frames of the stretch.
    """
    end = begin + len(frame)
    rows = {name: getattr(episode, name)[begin:end].copy() for name in _KINDS if name != "frame"}
    for values in rows.values():
        values[0] = 0
    key = None if episode.key is None else episode.key[begin:end]
    return replace(episode, frame=frame, key=key, is_terminal=episode.is_terminal and end == episode.length, **rows)


def as_task(episode: Episode, own: ActionSpec, spec: DataSpec, task: int) -> Episode:
    """Returns an episode as data of several tasks holds it, what it lacks being black or zero.

    Args:
        episode: the episode, whose frames have as many channels as those of the data, or fewer.
        own: the factors of its actions.
        spec: of the data.
        task: its id there.
    """
    place, count, length = spec.action.place(own), len(spec.action.num_classes), episode.length
    assert place is not None  # a space around all of them
    first = len(own.num_classes)
    discrete, continuous = (
        np.zeros((length, count), np.int32),
        np.zeros((length, spec.action.continuous_dim), np.float32),
    )
    discrete[:, list(place[:first])] = episode.discrete
    continuous[:, [at - count for at in place[first:]]] = episode.continuous
    has = np.array(spec.action.present[task] if spec.action.present else [True] * spec.action.size)
    lacking = spec.frame_shape[2] - episode.frame.shape[3]
    frame = np.pad(episode.frame, ((0, 0),) * 3 + ((0, lacking),)) if lacking else episode.frame
    parts = {"discrete": discrete * has[:count], "continuous": continuous * has[count:]}
    return replace(episode, frame=frame, task=task, **parts)


def return_of_best(episodes: Sequence[Episode], share: float) -> float:
    """Returns the least return among the best share of episodes, rounded up to whole ones; `share` in (0, 1]."""
    totals = sorted((episode.total for episode in episodes), reverse=True)
    return totals[math.ceil(share * len(totals)) - 1]


def of_task(episodes: Sequence[Episode], spec: DataSpec, task: str | int | None) -> list[Episode]:
    """Returns the episodes of a task by its name or number; all of them if none is named.

    Raises:
        InputError: if there is no such task, or no episode of it.
    """
    number = None if task is None else spec.find_task(task)
    chosen = [episode for episode in episodes if number in (None, episode.task)]
    if not chosen:
        raise InputError(f"--task: got {task!r}, but no episode here is of it. Give other data, or another task.")
    return chosen


def least_returns(episodes: Sequence[Episode], share: float) -> dict[int, float]:
    """Returns by task the least return among the best share of its episodes; `share` in (0, 1]."""
    tasks = {episode.task for episode in episodes}
    return {task: return_of_best([e for e in episodes if e.task == task], share) for task in tasks}


def flag_best(episodes: Sequence[Episode], at_least: Mapping[int, float]) -> list[Episode]:
    """Returns the episodes with those below the return of their task no longer flagged relevant."""
    return [e for episode in episodes for e in flag_relevant([episode], at_least.get(episode.task, -math.inf))]


def flag_relevant(episodes: Sequence[Episode], at_least: float) -> list[Episode]:
    """Returns the episodes with those below a return no longer flagged relevant."""
    return [replace(e, relevant=e.relevant and e.total >= at_least) for e in episodes]


def find_problems(episode: Episode, spec: DataSpec) -> list[str]:
    """Returns in words what keeps an episode from being one of `spec`; empty if nothing does.

    Args:
        episode: the episode, of any content.
        spec: what it should look like.
    """
    if not hasattr(episode.frame, "__len__") or episode.length == 0:
        return ["it has no frames"]
    problems = []
    kinds = _KINDS if episode.key is None else _KINDS | {"key": ("uint32", 2)}
    for name, (dtype, axes) in kinds.items():
        array = getattr(episode, name)
        if not hasattr(array, "dtype"):
            problems.append(f"{name} is a {type(array).__name__}, expected an array of {dtype} with {axes} axes")
        elif (array.dtype, array.ndim) != (dtype, axes):
            problems.append(f"{name} is {array.dtype} with {array.ndim} axes, expected {dtype} with {axes}")
        elif len(array) != episode.length:
            problems.append(f"{name} has {len(array)} steps, but there are {episode.length} frames")
    if problems:
        return problems
    if episode.frame.shape[1:] != spec.frame_shape:
        problems.append(f"frames have shape {episode.frame.shape[1:]}, expected {spec.frame_shape}")
    classes, dims = spec.action.num_classes, spec.action.continuous_dim
    mask = episode.action_mask
    if mask[0]:
        problems.append("action_mask is True at the first frame, where no action led")
    widths = (episode.discrete.shape[1], episode.continuous.shape[1])
    if widths != (len(classes), dims):
        problems.append(
            f"actions have {widths[0]} discrete components and {widths[1]} continuous dimensions, "
            f"expected {len(classes)} and {dims}"
        )
    else:
        taken = episode.discrete[mask]
        if np.any((taken < 0) | (taken >= np.asarray(classes, np.int32))):
            problems.append(f"a discrete action lies outside its classes {classes}")
        if not np.all(np.abs(episode.continuous[mask]) <= 1):
            problems.append("a continuous action is not a number in [-1, 1]")
        elif not np.all(np.isfinite(episode.continuous)):  # it is not read, and makes gradients NaN all the same
            problems.append("a continuous action that action_mask hides is not finite; put 0 there")
    if not np.all(np.isfinite(episode.reward)):
        problems.append("a reward is not finite")
    if not 0 <= episode.task < spec.num_tasks:
        problems.append(f"its task is {episode.task}, expected 0 to {spec.num_tasks - 1}")
    return problems
