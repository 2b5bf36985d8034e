"""Episodes of an environment that asks for one task after another become episodes of each task."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import numpy as np

from dreamer4.data.episode import Episode, part
from dreamer4.data.format import read_episodes, read_info, write_dataset
from dreamer4.data.info import DatasetInfo
from dreamer4.data.readers.own import OwnReader
from dreamer4.errors import InputError
from dreamer4.types import DataSpec, TaskSpec


def by_prompt(episode: Episode, count: int) -> list[Episode]:
    """Returns the stretches of an episode in which one task was asked for, as episodes of that task.

    A stretch begins with the frame that asks for its task, and ends with the one that pays for it; that is an end of
    the task, and such stretches alone are relevant. The last one is cut short as the episode is.

    Args:
        episode: its rewards add up to the number of tasks done.
        count: how many are asked for in turn; behind the last one done it is asked for again.
    """
    done = np.rint(np.cumsum(np.append(0.0, episode.reward[1:]))).astype(int)
    paid = (np.flatnonzero(np.diff(done)) + 1).tolist()
    stretches = []
    for begin, end in zip([0, *paid], [*paid, episode.length - 1], strict=True):
        if end > begin:
            of_one, success = part(episode, begin, episode.frame[begin : end + 1]), bool(done[end] > done[begin])
            stretches.append(
                replace(
                    of_one,
                    reward=np.minimum(of_one.reward, 1),
                    is_terminal=success or of_one.is_terminal,
                    task=min(int(done[begin]), count - 1),
                    relevant=success,
                    key=None,  # it was no reset that drew its first frame
                )
            )
    return stretches


def cut_by_prompt(source: str | Path, path: str | Path, tasks: Sequence[TaskSpec]) -> DatasetInfo:
    """Writes a data set as one of the tasks that were asked for; what was held out is.

    Args:
        source: a data set of an environment with prompts.
        path: the data set, a new folder.
        tasks: what was asked for, in turn.

    Raises:
        InputError: if it is of several tasks already, or damaged.
    """
    info = read_info(source)
    if info.num_tasks > 1:
        raise InputError(f"data prompts: {source} has {info.num_tasks} tasks already. Give a data set of one task.")
    # All of it is checked before any of it is written, without its frames, which may be more than memory holds.
    counts = [len(by_prompt(episode, len(tasks))) for episode in read_episodes(source, frames=False)]
    starts, episodes = (
        list(accumulate(counts, initial=0)),
        list(accumulate((b.episodes for b in info.behaviour), initial=0)),
    )

    def stretches() -> Iterator[Episode]:
        for episode in OwnReader(source, "all").episodes():
            yield from by_prompt(episode, len(tasks))

    return write_dataset(
        path,
        stretches(),
        spec=DataSpec(info.frame_shape, info.spec.action, len(tasks), tuple(tasks)),
        environment=info.environment,
        policy=info.policy,
        behaviour=[
            who.model_copy(update={"episodes": starts[end] - starts[begin]})
            for who, begin, end in zip(info.behaviour, episodes, episodes[1:], strict=False)
        ],
        seed=info.seed,
        held_out=[piece for i in info.held_out for piece in range(starts[i], starts[i + 1])],
    )
