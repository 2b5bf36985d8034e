"""Data of any format as if it were a data set of ours: what it is, and its episodes.

So every command takes a path of other people's data where it takes one of ours.
"""

import functools
from pathlib import Path

import numpy as np

from dreamer4.data import format as own
from dreamer4.data.episode import Episode
from dreamer4.data.info import DatasetInfo
from dreamer4.data.readers.base import AbstractReader, Window
from dreamer4.data.readers.opening import format_of, held_out_of, is_dataset, open_reader


_READ = 256  # frames at a time
_MOST_READ = 4 * 1024**3  # bytes of a data set whose labels are looked at to describe it


def read_info(path: str | Path) -> DatasetInfo:
    """Reads the description of data; of a data set of ours without opening a shard.

    Args:
        path: of anything that `open_reader` opens.

    Raises:
        InputError: if there is none, or it cannot be read.
    """
    form = None if is_dataset(Path(path)) else format_of(Path(path))
    return own.read_info(path) if form is None else _describe(open_reader(path, "all"), form.name)


def read_episodes(path: str | Path, split: str = "all", *, frames: bool = True) -> list[Episode]:
    """Reads the episodes of a split, in their order.

    Args:
        path: of anything that `open_reader` opens.
        split: `train`, `held_out` or `all`.
        frames: whether to keep them; else black ones stand in their place, which take no memory.

    Raises:
        InputError: if there is none, or it cannot be read.
    """
    if is_dataset(Path(path)) or format_of(Path(path)) is None:
        return own.read_episodes(path, split, frames=frames)
    reader = open_reader(path, split)
    return [_episode(reader, e, frames) for e in range(len(reader))]


def _episode(reader: AbstractReader, number: int, frames: bool) -> Episode:
    length = int(reader.lengths[number])
    window = reader.window(number, 0, length, frames=frames)
    black = np.broadcast_to(np.uint8(0), (length, *reader.spec.frame_shape))
    labels = (window.discrete, window.continuous, window.action_mask, window.reward)
    ends = (bool(reader.is_terminal[number]), int(reader.task[number]), bool(reader.relevant[number]))
    return Episode(black if window.frame is None else window.frame, *labels, *ends)


@functools.lru_cache(maxsize=2)
def _describe(reader: AbstractReader, name: str) -> DatasetInfo:
    windows = [reader.window(e, 0, int(n), frames=False) for e, n in enumerate(reader.lengths)]
    returns = [float(window.reward[1:].sum(dtype=np.float64)) for window in windows]
    spec = reader.spec
    return DatasetInfo(
        schema_version=own.SCHEMA_VERSION,
        environment={"id": name},
        policy="recorded",
        seed=0,
        frame_shape=spec.frame_shape,
        num_classes=spec.action.num_classes,
        continuous_dim=spec.action.continuous_dim,
        num_tasks=spec.num_tasks,
        tasks=spec.tasks,
        num_episodes=len(reader),
        num_frames=int(reader.lengths.sum()),
        return_mean=float(np.mean(returns)),
        return_min=min(returns),
        return_max=max(returns),
        action_counts=tuple(_counts(windows, i, n) for i, n in enumerate(spec.action.num_classes)),
        frame_levels=None,
        returns=tuple(returns),
        lengths=tuple(map(int, reader.lengths)),
        held_out=held_out_of(reader),
        shards=(),
        fingerprint=reader.fingerprint,
    )


def _counts(windows: list[Window], component: int, classes: int) -> tuple[int, ...]:
    """Returns how often each class of a component was taken, where it is known."""
    counts = sum(np.bincount(w.discrete[w.action_mask, component], minlength=classes) for w in windows)
    return tuple(np.asarray(counts).tolist())


def label_facts(path: Path, about: DatasetInfo) -> dict[str, str]:
    """Returns what the labels of a data set span, which it reads whole; nothing of one that is larger than memory."""
    if sum(shard.size for shard in about.shards) > _MOST_READ:
        return {}
    episodes = read_episodes(path, frames=False)
    mask = np.concatenate([e.action_mask for e in episodes])
    rewards = np.concatenate([e.reward[1:] for e in episodes])
    told = {"known actions": f"{mask.sum():,} of {len(mask) - len(episodes):,}"}
    if rewards.any():
        told["rewards"] = f"{rewards.min():g} to {rewards.max():g}, {(rewards != 0).mean():.1%} of them not 0"
    if about.continuous_dim and mask.any():
        values = np.concatenate([e.continuous for e in episodes])[mask]
        spans = np.stack([values.min(axis=0), values.max(axis=0)])
        kwargs = about.environment.get("kwargs")
        bounds = kwargs.get("bounds") if isinstance(kwargs, dict) else None
        if bounds is not None:
            low, high = np.asarray(bounds).T
            spans = low + (spans + 1) / 2 * (high - low)
        told["continuous"] = ", ".join(f"{low:.4g} to {high:.4g}" for low, high in spans.T)
    return told


def read_through(reader: AbstractReader) -> None:
    """Reads every frame and label that a reader has, so that whatever is broken raises its message."""
    for episode, length in enumerate(reader.lengths):
        for start in range(0, int(length), _READ):
            reader.window(episode, start, min(_READ, int(length) - start))
