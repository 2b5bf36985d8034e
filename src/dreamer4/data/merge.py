"""Several data sets become one."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

from dreamer4.data.episode import Episode, as_task
from dreamer4.data.format import read_episodes, read_info, write_dataset
from dreamer4.data.info import Behaviour, DatasetInfo
from dreamer4.data.readers.own import OwnReader
from dreamer4.errors import InputError
from dreamer4.types import DataSpec, TaskSpec


def merge_datasets(sources: Sequence[str | Path], path: str | Path) -> DatasetInfo:
    """Writes the episodes of several data sets as one, in the order given; one episode at a time is in memory.

    What was held out of a set is held out of the whole, so nothing that a model was trained on is ever held out.

    Args:
        sources: two or more data sets. Tasks of one name are one task, of the same frames and actions; other tasks may
            have other channels and other components of an action.
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
    specs = [named(info) for info in infos]
    for i, (source, info, spec) in enumerate(zip(sources, infos, specs, strict=True)):
        for other, before, kind in zip(sources[:i], infos[:i], specs[:i], strict=True):
            alike = bool(set(spec.names) & set(kind.names))  # of one task, so nothing of it may be made to fit
            same = {
                "frames": (kind.frame_shape, spec.frame_shape)
                if alike
                else (kind.frame_shape[:2], spec.frame_shape[:2]),
                "classes": (kind.looks[1:], spec.looks[1:]) if alike else ((), ()),
                "bounds of continuous actions": (_bounds(before), _bounds(info)),
            }
            for what, (theirs, ours) in same.items():
                if ours != theirs:
                    raise InputError(
                        f"data merge: {other} and {source} differ in their {what}: {theirs} and {ours}. Import or "
                        "collect them alike: --size, --actions and --bounds say how."
                    )
    if len({info.fingerprint for info in infos}) < len(infos):
        raise InputError("data merge: two of the data sets hold the same episodes. Give each once.")

    whole = DataSpec.around(specs)

    def episodes() -> Iterator[Episode]:
        for source, spec in zip(sources, specs, strict=True):
            number = [whole.names.index(name) for name in spec.names]
            read_episodes(source, frames=False)  # which checks all of it
            for episode in OwnReader(source, "all").episodes():
                yield as_task(episode, spec.action, whole, number[episode.task])

    starts = accumulate((info.num_episodes for info in infos), initial=0)
    environments = [info.environment for info in infos]
    return write_dataset(
        path,
        episodes(),
        spec=whole,
        environment=environments[0] if environments.count(environments[0]) == len(infos) else _together(infos),
        policy="merged",
        behaviour=[part for info in infos for part in info.behaviour or _whole(info)],
        seed=infos[0].seed,
        held_out=[start + i for start, info in zip(starts, infos, strict=False) for i in info.held_out],
    )


def named(info: DatasetInfo) -> DataSpec:
    """Returns what data looks like, its tasks named: one without a name by its environment, several by numbers."""
    spec = info.spec
    names = (str(info.environment.get("id", spec.names[0])),) if spec.num_tasks == 1 else spec.names
    told = info.environment if spec.num_tasks == 1 else {}
    return replace(spec, tasks=spec.tasks or tuple(TaskSpec(name=name, env=told) for name in names))


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
