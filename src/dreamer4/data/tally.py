"""What the episodes of a data set say by themselves."""

from typing import Any

import numpy as np

from dreamer4.data.episode import Episode
from dreamer4.types import DataSpec


MAX_LEVELS = 16  # pixel values that are listed


class Tally:
    """Facts of episodes of a spec, gathered one by one."""

    def __init__(self, spec: DataSpec):
        self._spec = spec
        self._returns: list[float] = []
        self._lengths: list[int] = []
        self._counts = [np.zeros(n, np.int64) for n in spec.action.num_classes]
        self._levels = np.zeros(256, bool)

    def add(self, episode: Episode) -> None:
        """Counts an episode of the spec."""
        self._returns.append(episode.total)
        self._lengths.append(episode.length)
        taken = episode.discrete[episode.action_mask]
        for component, counts in enumerate(self._counts):
            counts += np.bincount(taken[:, component], minlength=len(counts))
        if np.count_nonzero(self._levels) <= MAX_LEVELS:
            for frame in episode.frame:
                self._levels[frame] = True

    def facts(self) -> dict[str, Any]:
        """Returns the entries of `DatasetInfo` that follow from the episodes."""
        levels = np.flatnonzero(self._levels)
        return {
            "frame_shape": self._spec.frame_shape,
            "num_classes": self._spec.action.num_classes,
            "continuous_dim": self._spec.action.continuous_dim,
            "num_tasks": self._spec.num_tasks,
            "num_episodes": len(self._lengths),
            "num_frames": sum(self._lengths),
            "return_mean": float(np.mean(self._returns)),
            "return_min": min(self._returns),
            "return_max": max(self._returns),
            "returns": tuple(self._returns),
            "lengths": tuple(self._lengths),
            "action_counts": tuple(tuple(counts.tolist()) for counts in self._counts),
            "frame_levels": tuple(levels.tolist()) if len(levels) <= MAX_LEVELS else None,
        }
