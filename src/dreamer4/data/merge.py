"""Several data sets become one."""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path

from dreamer4.data.episode import Episode
from dreamer4.data.format import read_episodes, read_info, write_dataset
from dreamer4.data.info import Behaviour, DatasetInfo
from dreamer4.errors import InputError
from dreamer4.types import DataSpec


def merge_datasets(sources: Sequence[str | Path], path: str | Path) -> DatasetInfo:
    """Writes the episodes of several data sets as one, in the order given; one of them at a time is in memory.

    What was held out of a set is held out of the whole, so nothing that a model was trained on is ever held out.

    Args:
        sources: two or more data sets of the same frames and actions; a task id means the same in all of them.
        path: the data set, a new folder.

    Returns:
        The description of the data set.

    Raises:
        InputError: if the sets do not fit together, one is given twice, or one is damaged.
    """
    sources = [Path(source) for source in sources]
    infos = [read_info(source) for source in sources]
    if len(infos) < 2:
        raise InputError("data merge: got one data set, expected two or more.")
    first = infos[0]
    for source, info in zip(sources[1:], infos[1:], strict=True):
        same = {
            "frames": (first.frame_shape, info.frame_shape),
            "classes": (first.num_classes, info.num_classes),
            "continuous dimensions": (first.continuous_dim, info.continuous_dim),
            "bounds of continuous actions": (_bounds(first), _bounds(info)),
        }
        for what, (ours, theirs) in same.items():
            if ours != theirs:
                raise InputError(
                    f"data merge: {sources[0]} and {source} differ in their {what}: {ours} and {theirs}. Import or "
                    "collect them alike: --size, --actions and --bounds say how."
                )
    if len({info.fingerprint for info in infos}) < len(infos):
        raise InputError("data merge: two of the data sets hold the same episodes. Give each once.")

    def episodes() -> Iterator[Episode]:
        for source in sources:
            yield from read_episodes(source)

    starts = accumulate((info.num_episodes for info in infos), initial=0)
    environments = [info.environment for info in infos]
    return write_dataset(
        path,
        episodes(),
        spec=DataSpec(first.frame_shape, first.spec.action, max(info.num_tasks for info in infos)),
        environment=environments[0] if environments.count(environments[0]) == len(infos) else _together(infos),
        policy="merged",
        behaviour=[part for info in infos for part in info.behaviour or _whole(info)],
        seed=first.seed,
        held_out=[start + i for start, info in zip(starts, infos, strict=False) for i in info.held_out],
    )


def _whole(info: DatasetInfo) -> tuple[Behaviour]:
    return (Behaviour(policy=info.policy, episodes=info.num_episodes),)


def _bounds(info: DatasetInfo) -> object:
    kwargs = info.environment.get("kwargs")
    return kwargs.get("bounds") if info.continuous_dim and isinstance(kwargs, dict) else None


def _together(infos: Sequence[DatasetInfo]) -> dict[str, object]:
    ids = {str(info.environment.get("id")): None for info in infos}
    kwargs = {"merged": [info.environment for info in infos]}
    bounds = _bounds(infos[0])
    return {"id": " and ".join(ids), "kwargs": kwargs | ({} if bounds is None else {"bounds": bounds})}
