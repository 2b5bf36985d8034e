"""Where the phases of a run find their data: on the device or on disk, and the latents in the run's folder."""

import copy
import dataclasses
import math
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from dreamer4.config import Config
from dreamer4.data import (
    AbstractEpisodeSource,
    AbstractReader,
    DatasetInfo,
    DeviceSource,
    LatentStore,
    StreamSource,
    flag_best,
    latents,
    least_returns,
    open_reader,
    read_episodes,
    read_info,
)
from dreamer4.dreamer import PHASES
from dreamer4.envs import task_vector
from dreamer4.errors import InputError
from dreamer4.run import processes
from dreamer4.run.folder import RunFolder
from dreamer4.run.phase import start_of
from dreamer4.run.reporter import SILENT, Reporter
from dreamer4.tokenizer import AbstractTokenizer, LatentStats
from dreamer4.training import build_phase, encode_store, fingerprint, member
from dreamer4.training.phases import NOTHING_TO_CLONE


DEVICE_BYTES = 2**30  # of frames; with more, `data.source: auto` reads from disk. Loading takes thrice as much at most

_LOOKED_AT, _LAST, _AT_ONCE = 4, 1024, 128  # episodes of either end, frames of each, frames that lie in memory
HEADS_BYTES = 2**29  # of what the heads of a streamed run are trained to the end on


def streams(config: Config, info: DatasetInfo) -> bool:
    """Returns whether the batches of a run are read from disk.

    Raises:
        InputError: if they are to be, and the run asks for what only data on the device has.
    """
    size = info.num_frames * math.prod(info.frame_shape)
    if config.data.source == "device" or (config.data.source == "auto" and size <= DEVICE_BYTES):
        return False
    real = not config.imagination.is_imagined
    waiting = [name for name in PHASES if getattr(config.train, name).patience]
    for wrong, what in (
        (config.seeds > 1, f"seeds is {config.seeds}, and a stream trains one"),
        (real, "imagination.world=real needs all episodes in memory"),
        (config.data.labelled < 1, f"data.labelled is {config.data.labelled}, which hides labels in memory"),
        (waiting, f"train.{(waiting or ['x'])[0]}.patience needs held-out episodes in memory: set it to 0"),
    ):
        if wrong:
            raise InputError(
                f"data.source: {config.data.source} reads {size / 1e9:.1f} GB of frames from disk, but {what}; or set "
                "data.source=device."
            )
    return True


@dataclass(frozen=True, eq=False)
class Drawn:
    """What the phases of a run draw their batches from.

    Attributes:
        info: description of the data set.
        source: its training episodes.
        sources: the same by phase, with all that the phase needs of its clips.
        device: the training episodes, if they lie on the device.
        held_out: the held-out ones, if there are any and they lie on the device.
    """

    info: DatasetInfo
    source: AbstractEpisodeSource
    sources: dict[str, AbstractEpisodeSource]
    device: DeviceSource | None = None
    held_out: DeviceSource | None = None


def told_info(config: Config, path: Path) -> DatasetInfo:
    """Returns the description of a data set, its tasks told by the vectors that the configuration names."""
    vectors = {task.name: task_vector(task) for task in config.tasks if task.vector}
    info = read_info(path)
    return info.model_copy(update={"tasks": info.spec.telling(vectors).tasks}) if vectors else info


def draw(config: Config, path: Path, phases: Sequence[str]) -> Drawn:
    """Opens a data set for phases, and refuses one of which they could not learn.

    Raises:
        InputError: if it cannot be read, or holds nothing that one of them needs.
    """
    info = told_info(config, path)
    if streams(config, info):
        reader = open_reader(path)
        if "agent" in phases and not _any_action(info, reader):
            raise InputError(NOTHING_TO_CLONE)
        source, rewards = streamed(config, info, reader), _extremes(info, reader)
        for name in phases:
            build_phase(name, config, info.spec).warn(rewards)
        return Drawn(info, source, dict.fromkeys(phases, source))
    episodes, held_out = (read_episodes(path, split) for split in ("train", "held_out"))
    at_least = least_returns(episodes, config.data.relevant)
    episodes, held_out = (flag_best(part, at_least) for part in (episodes, held_out))
    if not held_out and (waiting := [name for name in phases if getattr(config.train, name).patience]):
        raise InputError(
            f"train.{waiting[0]}.patience: {path} holds no episodes out to stop by. Set it to 0, or import the "
            "data again with --held-out 0.1."
        )
    source = DeviceSource.from_episodes(episodes).with_labels(config.data.labelled)
    source = source.with_shares(shares(config, info))
    # Before the first trains, lest the last be refused.
    sources = {name: build_phase(name, config, info.spec).prepare(source, episodes) for name in phases}
    return Drawn(info, source, dict(sources), source, DeviceSource.from_episodes(held_out) if held_out else None)


def _any_action(info: DatasetInfo, reader: AbstractReader) -> bool:
    """Returns whether any action is known, which counts of classes tell without a look at the episodes."""
    if info.num_classes:
        return any(map(sum, info.action_counts))
    windows = (reader.window(e, 0, int(n), frames=False) for e, n in enumerate(reader.lengths))
    return any(bool(window.action_mask.any()) for window in windows)


def _extremes(info: DatasetInfo, reader: AbstractReader) -> list[np.ndarray]:
    """Returns rewards of the episodes of the least and the greatest returns, where the largest ones are to be expected.

    All would mean to read the frames too, which lie in the same records. Of a long episode the last rewards are read.
    """
    order = np.argsort(np.array(info.returns)[list(info.indices("train"))])
    parts = []
    for e in map(int, {*order[:_LOOKED_AT], *order[-_LOOKED_AT:]}):
        n = int(reader.lengths[e])
        starts = range(max(1, n - _LAST), n, _AT_ONCE)
        windows = [reader.window(e, t, min(_AT_ONCE, n - t), frames=False) for t in starts]
        parts.append(np.concatenate([np.zeros(0), *(window.reward for window in windows)]))
    return parts


def streamed(config: Config, info: DatasetInfo, reader: AbstractReader) -> StreamSource:
    """Returns the training episodes, read from disk; the best of each task are relevant, as `data.relevant` says."""
    return StreamSource(_flagged(info, reader, "train", _least(config, info, reader)), shares(config, info))


def _least(config: Config, info: DatasetInfo, reader: AbstractReader) -> dict[int, float]:
    """Returns by task the least return among the relevant ones of its training episodes."""
    totals, least = np.array(info.returns)[list(info.indices("train"))], {}
    for task in np.unique(reader.task).tolist():
        own = np.sort(totals[reader.task == task])
        least[task] = own[-math.ceil(config.data.relevant * len(own))]
    return least


def _flagged(info: DatasetInfo, reader: AbstractReader, split: str, least: Mapping[int, float]) -> AbstractReader:
    """Returns a reader of which the best of each task alone are relevant; the one given may be another run's too."""
    totals, reader = np.array(info.returns)[list(info.indices(split))], copy.copy(reader)
    reader.relevant = reader.relevant & (totals >= [least.get(task, -math.inf) for task in reader.task.tolist()])
    return reader


def for_heads(
    config: Config, path: Path, source: StreamSource, agent_dim: int
) -> tuple[DeviceSource, DeviceSource] | None:
    """Returns of a streamed data set what the heads are trained to the end on: as much as `HEADS_BYTES` hold of each.

    Args:
        config: of the run.
        path: the data set.
        source: its training episodes in latents.
        agent_dim: size of a read-out.

    Returns:
        Training episodes in latents and held-out ones in frames, whole ones drawn at random; None: none is held out.
    """
    info = told_info(config, path)
    if not info.held_out:
        return None
    first = source.reader.window(0, 0, 1)
    assert first.latent is not None
    numbers = agent_dim + first.latent.size
    held_out = _flagged(info, open_reader(path, "held_out"), "held_out", _least(config, info, source.reader))
    train = DeviceSource.from_reader(source.reader, _some(source.reader, 4 * numbers, config.seed))
    frame = math.prod(info.frame_shape)
    judged = DeviceSource.from_reader(held_out, _some(held_out, frame + 4 * numbers, config.seed))
    return dataclasses.replace(train, share=source.share), judged


def _some(reader: AbstractReader, frame_bytes: int, seed: int) -> np.ndarray:
    """Returns the numbers of whole episodes, drawn at random, whose frames take at most `HEADS_BYTES`; at least one."""
    order = np.random.default_rng(seed).permutation(len(reader))
    count = np.searchsorted(np.cumsum(np.asarray(reader.lengths)[order]) * frame_bytes, HEADS_BYTES, side="right")
    return np.sort(order[: max(int(count), 1)])


def shares(config: Config, info: DatasetInfo) -> np.ndarray:
    """Returns the share of each task in the rows of a batch: what the configuration gives to its name, or 1."""
    told = {task.name: task.share for task in config.tasks}
    return np.array([told.get(name, 1.0) for name in info.spec.names])


def stored(
    run: RunFolder,
    tokenizer: AbstractTokenizer,
    data: Path,
    info: DatasetInfo,
    report: Reporter = SILENT,
    part: tuple[int, int] | None = None,
) -> None:
    """Encodes the training episodes of a run into its folder, as far as that was not done.

    Args:
        run: the run.
        tokenizer: encodes; its statistics do not matter.
        data: the data set.
        info: its description.
        report: is told how it goes.
        part: as for `encode_store`. None: all of it; of several processes, each a part.
    """
    place = folder_of(run, tokenizer, info)
    if not latents.whole(place):
        reader = open_reader(data)
        share = part or ((jax.process_index(), jax.process_count()) if processes.several() else (0, 1))
        with report.progress("encode", total=int(reader.lengths.sum()), unit="frames") as bar:
            encode_store(tokenizer, reader, place, part=share, progress=bar.advance)


def take_over(origin: Path, run: RunFolder) -> None:
    """Shares the latents of the run at `origin` with one that starts from it; names tell which of them fit.

    Shards are never written anew, so where the file system allows they are the same files.
    """
    theirs, ours = RunFolder(origin).latents, run.latents
    if theirs.is_dir() and not ours.exists():
        with tempfile.TemporaryDirectory(dir=run.path, prefix=".latents-") as partial:
            for folder, _, files in os.walk(theirs):
                # Made anew, not copied: a folder of others may be closed to us, and could not be moved or removed then.
                (target := Path(partial) / ours.name / Path(folder).relative_to(theirs)).mkdir()
                for name in files:
                    _link(os.path.join(folder, name), target / name)
            (Path(partial) / ours.name).rename(ours)


def _link(source: str, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def encode(
    run: RunFolder, tokenizers: list[AbstractTokenizer], data: Path, info: DatasetInfo, report: Reporter = SILENT
) -> list[LatentStore]:
    """Returns the raw latents of the training episodes of a run by each tokenizer, encoding what is not there."""
    for tokenizer in tokenizers:
        stored(run, tokenizer, data, info, report)
    processes.wait("encoded")
    part = info.part("train")
    return [LatentStore(folder_of(run, t, info), tokenizer=fingerprint(t), data=part) for t in tokenizers]


def encode_run(path: Path, data: Path | None, report: Reporter, *, part: tuple[int, int]) -> list[Path]:
    """Encodes with the finished tokenizer of a run, one of each seed, and returns where the latents lie.

    Several processes, on several machines, may do so at a time with a part each; none writes to the rest of the run.

    Args:
        path: the run.
        data: the data set; None: that of the run.
        report: is told how it goes.
        part: `(i, n)`: every n-th shard from the i-th on.

    Raises:
        InputError: if the tokenizer is not trained to its end, or does not fit the data.
    """
    run = RunFolder(path)
    config = run.read_config()
    dataset = data or (run.data if config.data.path is None else Path(config.data.path))
    info = read_info(dataset)
    agent = start_of(config, run, PHASES[1], info.spec)
    tokenizers = [member(agent, i, config.seeds).tokenizer for i in range(config.seeds)]
    for tokenizer in tokenizers:
        stored(run, tokenizer, dataset, info, report, part)
    return [folder_of(run, tokenizer, info) for tokenizer in tokenizers]


def standardised(store: LatentStore, stats: LatentStats) -> LatentStore:
    """Returns a store whose latents have zero mean and unit variance.

    Raises:
        InputError: if the statistics are not measured.
    """
    if not bool(stats.measured):
        raise InputError("The tokenizer's latent statistics were never measured. Train the tokenizer phase to its end.")
    return store.standardised(stats.mean, stats.std)


def folder_of(run: RunFolder, tokenizer: AbstractTokenizer, info: DatasetInfo) -> Path:
    """Returns where the latents of a tokenizer and a data set lie: no two of either share a folder."""
    return run.latents / f"{fingerprint(tokenizer)[:16]}-{info.part('train')[:16]}"
