"""What `dataset.json` tells about a data set, and what of it is checked when it is read."""

import hashlib
from typing import Any

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt

from dreamer4.errors import InputError
from dreamer4.types import ActionSpec, DataSpec, TaskSpec


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Shard(_Closed):
    """One file of records.

    Attributes:
        name: file name within the folder.
        size: bytes.
        sha256: checksum of the file.
        episodes: records in it: an episode each, or a piece of one where the data set has a `chunk`.
    """

    name: str
    size: NonNegativeInt
    sha256: str
    episodes: PositiveInt


class Behaviour(_Closed):
    """One of the policies that made a data set, and how many episodes of it, next to each other, are its own.

    Attributes:
        policy: its name.
        epsilon: probability of a random action in its place, at each step.
        episodes: episodes that it made.
        about: where it comes from, JSON values.
    """

    policy: str
    epsilon: float = 0.0
    episodes: PositiveInt
    about: dict[str, Any] = {}


class DatasetInfo(_Closed):
    """What `dataset.json` tells about a data set.

    Attributes:
        schema_version: of the format.
        environment: where the episodes come from, usually `id` and `kwargs`.
        policy: name of the behaviour policy.
        behaviour: the policies in the order of their episodes, where that is known; new in version 2.
        seed: of the collection and of the split.
        frame_shape: height, width and channels.
        num_classes: classes of each discrete action component.
        continuous_dim: size of the continuous action.
        num_tasks: number of tasks.
        tasks: what each of them is; new in version 4. Empty: nobody told.
        num_episodes: number of episodes, held-out ones included.
        num_frames: number of frames of all episodes.
        return_mean: mean undiscounted return over all episodes.
        return_min: smallest return.
        return_max: largest return.
        action_counts: how often each class was taken, for each discrete component.
        frame_levels: all pixel values that occur, ascending, if there are at most 16.
        returns: undiscounted return of each episode.
        lengths: frames of each episode.
        held_out: indices of the episodes kept for evaluation, ascending.
        chunk: frames of a record, where episodes are cut into several; new in version 3. None: an episode each.
        shards: the files, in the order of the episodes.
        fingerprint: SHA-256 over the episodes and their description; equal data has an equal one, wherever it lies.
    """

    schema_version: PositiveInt
    environment: dict[str, Any]
    policy: str
    behaviour: tuple[Behaviour, ...] = ()
    seed: NonNegativeInt
    frame_shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    num_classes: tuple[int, ...]
    continuous_dim: int
    num_tasks: PositiveInt
    tasks: tuple[TaskSpec, ...] = ()
    num_episodes: PositiveInt
    num_frames: PositiveInt
    return_mean: float
    return_min: float
    return_max: float
    action_counts: tuple[tuple[NonNegativeInt, ...], ...]
    frame_levels: tuple[int, ...] | None
    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    held_out: tuple[int, ...]
    chunk: PositiveInt | None = None
    shards: tuple[Shard, ...]
    fingerprint: str

    @property
    def spec(self) -> DataSpec:
        """The data set as a model sees it."""
        action = ActionSpec(self.num_classes, self.continuous_dim)
        return DataSpec(self.frame_shape, action, self.num_tasks, self.tasks)

    def part(self, split: str) -> str:
        """Returns the fingerprint of a split."""
        return split_fingerprint(self.fingerprint, split)

    def indices(self, split: str) -> tuple[int, ...]:
        """Returns the indices of the episodes of a split, ascending.

        Args:
            split: `train`, `held_out` or `all`.

        Raises:
            InputError: if there is no such split.
        """
        if split not in ("train", "held_out", "all"):
            raise InputError(f"Unknown split: got {split!r}, expected train, held_out or all.")
        held_out = set(self.held_out)
        # Not `num_episodes`, which a damaged description may put at anything; lengths are listed.
        every = range(len(self.lengths))
        return tuple(i for i in every if split == "all" or (i in held_out) == (split == "held_out"))


def split_fingerprint(fingerprint: str, split: str) -> str:
    """Returns the fingerprint of a split of the data that has one itself."""
    return hashlib.sha256(f"{fingerprint} {split}".encode()).hexdigest()
