"""A data set on disk: a folder of ArrayRecord shards and one `dataset.json` that describes them.

    my_data/
        dataset.json                 what it is, where it came from, how it is split, checksums
        shard-00000.array_record     one episode a record, see `record`
        shard-00001.array_record
        summary.html                 the same for people, where `dreamer4` made the set

The description holds everything a reader wants to know before it opens a shard, and the SHA-256 of every shard, so that
a copy that went wrong is found when it is loaded and not in a strange loss. A folder appears whole or not at all: it is
written beside its place under a hidden name, then renamed.
"""

import contextlib
import dataclasses
import errno
import hashlib
import itertools
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from pydantic import ValidationError

from dreamer4.data.episode import Episode, find_problems
from dreamer4.data.info import Behaviour, DatasetInfo, Shard
from dreamer4.data.record import cut_piece, join_pieces, pack, read_header, unpack
from dreamer4.data.tally import Tally
from dreamer4.errors import InputError, check_whole
from dreamer4.files import new_folder
from dreamer4.types import DataSpec, TaskSpec


SCHEMA_VERSION = 4
_CUT_VERSION = 3  # of a set that tells no tasks, which earlier versions of dreamer4 read too
_UNCUT_VERSION = 2  # of one without long episodes either
_CHUNK_BYTES = 2**20  # of frames in a record of a long episode, so that any window of it is cheap to read
_MAX_DESCRIPTION = 64 * 1024 * 1024
_DESCRIPTION = "dataset.json"
SUMMARY = "summary.html"  # a page for people, which may lie beside it and is not read
_SHARD = re.compile(r"shard-\d{5}\.array_record")

Kept = TypeVar("Kept")


def write_dataset(
    path: str | Path,
    episodes: Iterable[Episode],
    *,
    spec: DataSpec,
    environment: dict[str, Any],
    policy: str,
    behaviour: Sequence[Behaviour] = (),
    seed: int,
    held_out: float | Sequence[int] = 0.1,
    shard_bytes: int = 64 * 1024 * 1024,
) -> DatasetInfo:
    """Writes a data set to a new folder.

    Args:
        path: the folder; it must not exist. Missing parents are made.
        episodes: at least one, all of `spec`. They are gone through once and written as they come, so a generator
            keeps no more than one of them in memory.
        spec: frame shape, action factors and number of tasks.
        environment: where the episodes come from, JSON values; by custom `{"id": ..., "kwargs": {...}}`.
        policy: name of the behaviour policy.
        behaviour: the policies in the order of their episodes, if there is more to tell than a name.
        seed: of the collection; it also draws the split.
        held_out: share of the episodes kept for evaluation, 0 to below 1. At least one episode is kept unless the share
            is 0, and at least one is left to train on. Or the indices of those to keep, ascending.
        shard_bytes: a new shard is begun when one holds this many bytes of episodes.

    Returns:
        The description, as `read_info` would.

    Raises:
        InputError: if the folder exists, before or after the episodes were written, or cannot be made, or if an episode
            or an argument is not as it must be.
    """
    path = Path(path)
    share, named = (held_out, ()) if isinstance(held_out, int | float) else (0.0, tuple(held_out))
    if not 0 <= share < 1:
        raise InputError(f"{path}: got held_out={held_out}, expected a share of at least 0 and below 1.")
    check_whole(f"{path}", 0, seed=seed)
    try:
        environment = json.loads(json.dumps(environment, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: got environment={environment!r}, expected JSON values.") from error

    with new_folder(path) as hidden:
        tally, shards, digests = Tally(spec), _ShardWriter(hidden, shard_bytes), []
        chunk = max(1, _CHUNK_BYTES // max(1, math.prod(spec.frame_shape)))
        for index, episode in enumerate(episodes):
            problems = find_problems(episode, spec)
            if problems:
                raise InputError(f"{path}: episode {index} cannot be written: {'; '.join(problems)}. Mend or drop it.")
            tally.add(episode)
            for begin in range(0, episode.length, chunk):
                piece = cut_piece(episode, begin, chunk)
                record = pack(piece)
                digests.append(hashlib.sha256(record).hexdigest())
                shards.write(record, piece.frame.nbytes)
        if not digests:
            raise InputError(f"{path}: got no episodes to write, expected at least one. Collect some.")
        facts = tally.facts()
        facts |= {"held_out": named or _draw_held_out(facts["num_episodes"], share, seed)}
        cut = {"chunk": chunk} if len(digests) > facts["num_episodes"] else {}
        facts |= cut | {
            "schema_version": SCHEMA_VERSION if spec.tasks else _CUT_VERSION if cut else _UNCUT_VERSION,
            "environment": environment,
            "policy": policy,
            "seed": int(seed),
        }
        facts |= _told(behaviour, spec.tasks)
        info = DatasetInfo(**facts, shards=shards.close(), fingerprint=_fingerprint(facts, digests))
        unsaid = {name for name, said in (("chunk", cut), ("tasks", spec.tasks)) if not said}
        (hidden / _DESCRIPTION).write_text(json.dumps(info.model_dump(mode="json", exclude=unsaid), indent=1) + "\n")
    return info


def read_info(path: str | Path) -> DatasetInfo:
    """Reads the description of a data set, without opening a shard.

    Args:
        path: the folder.

    Raises:
        InputError: if there is no data set, if its description is damaged, or if it was written by a newer version.
    """
    path = Path(path)
    file = path / _DESCRIPTION
    try:
        if not path.exists():
            raise InputError(f"There is no data set at {path.absolute()}: the folder does not exist.")
        if not file.is_file():
            raise InputError(
                f"{path} is not a data set: it has no {_DESCRIPTION}. Make one of recordings with dreamer4 data import."
            )
        if file.stat().st_size > _MAX_DESCRIPTION:
            raise InputError(f"{file} has more than {_MAX_DESCRIPTION} bytes. It is damaged; collect or copy it again.")
        text = file.read_bytes()
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}. Mend its permissions, or copy it again.") from error
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is not JSON: {error}. It is damaged; collect or copy it again.") from error
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise InputError(
            f"{path} has schema version {version}, but this version of dreamer4 reads up to {SCHEMA_VERSION}. "
            "Upgrade dreamer4."
        )
    try:
        info = DatasetInfo.model_validate(raw)
        # The first look at the counts of classes; one that no list in the file bears out could ask for any memory.
        if tuple(map(len, info.action_counts)) != info.spec.action.num_classes:
            raise InputError("action_counts does not hold one number for each class of num_classes.")
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{file}: {place}: {first['msg']}. It is damaged; collect or copy it again.") from error
    except InputError as error:
        raise InputError(f"{file}: {error} It is damaged; collect or copy it again.") from error
    return info


def read_episodes(path: str | Path, split: str = "all", *, frames: bool = True) -> list[Episode]:
    """Reads the episodes of a split, in their order.

    Args:
        path: the folder.
        split: `train`, `held_out` or `all`.
        frames: whether to keep them; else black ones stand in their place, which take no memory.

    Raises:
        InputError: if there is no such split, or if anything that `check` looks for is wrong, save extra files; the
            message names the first problem.
    """
    path = Path(path)
    info = read_info(path)
    wanted, number = set(info.indices(split)), itertools.count()

    def keep(episode: Episode) -> Episode | None:
        if next(number) not in wanted:
            return None
        if frames:
            return episode
        return dataclasses.replace(episode, frame=np.broadcast_to(np.uint8(0), episode.frame.shape))

    episodes, problems = walk(path, info, keep)
    if problems:
        raise _unsound(path, problems)
    return [episode for episode in episodes if episode is not None]


def check(path: str | Path) -> list[str]:
    """Looks for everything that can be wrong with a data set.

    Args:
        path: the folder.

    Returns:
        The problems found, each a sentence; empty if the data set is sound.
    """
    path = Path(path)
    try:
        info = read_info(path)
    except InputError as error:
        return [str(error)]
    known = {_DESCRIPTION, SUMMARY, *(shard.name for shard in info.shards)}
    try:
        extra = [f"{name} is an extra file" for name in sorted(os.listdir(path)) if name not in known]
    except OSError as error:
        extra = [f"{path} cannot be listed: {error.strerror}"]
    return extra + walk(path, info, lambda _: None)[1]


class _ShardWriter:
    """Writes records into numbered files of a folder."""

    def __init__(self, folder: Path, shard_bytes: int):
        self._folder = folder
        self._shard_bytes = shard_bytes
        self._shards: list[Shard] = []
        self._writer: ArrayRecordWriter | None = None
        self._episodes = 0
        self._held = 0

    def write(self, record: bytes, size: int) -> None:
        """Appends a record that counts for `size` bytes."""
        if self._held >= self._shard_bytes:
            self.close()
        with _of_the_disk(self._folder):
            writer = self._writer or ArrayRecordWriter(str(self._folder / self._name), "group_size:1")
            writer.write(record)
        self._writer = writer
        self._episodes += 1
        self._held += size

    def close(self) -> tuple[Shard, ...]:
        """Ends the newest file, and returns all."""
        if self._writer is not None:
            with _of_the_disk(self._folder):
                self._writer.close()
            size, sha256 = _measure(self._folder / self._name)
            self._shards.append(Shard(name=self._name, size=size, sha256=sha256, episodes=self._episodes))
            self._writer, self._episodes, self._held = None, 0, 0
        return tuple(self._shards)

    @property
    def _name(self) -> str:
        return f"shard-{len(self._shards):05d}.array_record"


@contextlib.contextmanager
def _of_the_disk(folder: Path) -> Iterator[None]:
    """Raises as OSError what the writer of the records says in words: that the disk takes no more."""
    try:
        yield
    except RuntimeError as error:
        for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO):
            if os.strerror(number) in str(error):
                raise OSError(number, os.strerror(number), str(folder.parent.absolute())) from error
        raise


def held_out_episodes(episodes: int, share: float) -> int:
    """Returns how many of some episodes a share holds out; at least one stays for training."""
    return min(max(round(share * episodes), int(share > 0)), episodes - 1)


def _draw_held_out(episodes: int, share: float, seed: int) -> tuple[int, ...]:
    drawn = np.random.default_rng(seed).choice(episodes, held_out_episodes(episodes, share), replace=False)
    return tuple(sorted(int(i) for i in drawn))


def _told(behaviour: Sequence[Behaviour], tasks: Sequence[TaskSpec]) -> dict[str, Any]:
    # Left out where there is nothing to tell, so that the fingerprint of a set of version 1 stays what it was.
    told = {"behaviour": behaviour, "tasks": tasks}
    return {name: [one.model_dump(mode="json") for one in each] for name, each in told.items() if each}


def _fingerprint(facts: dict[str, Any], digests: list[str]) -> str:
    return hashlib.sha256(json.dumps([facts, digests], sort_keys=True).encode()).hexdigest()


def _measure(file: Path) -> tuple[int, str]:
    with file.open("rb") as stream:
        return file.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest()


def pieces(length: int, chunk: int | None) -> int:
    """Returns how many records an episode of some frames lies in."""
    return 1 if chunk is None else -(-length // chunk)


def walk(path: Path, info: DatasetInfo, keep: Callable[[Episode], Kept]) -> tuple[list[Kept], list[str]]:
    """Goes through a data set, no more than a shard and an episode of it being in memory.

    Args:
        path: the folder.
        info: its description.
        keep: returns what is to be kept of an episode.

    Returns:
        What was kept of each episode, and all problems; the former is complete only if there are none of the latter.
    """
    problems = []
    if len({shard.name for shard in info.shards}) != len(info.shards):
        problems.append("a shard is listed twice")
    tally, kept, digests, parts = Tally(info.spec), [], [], []
    lengths = iter(info.lengths)
    wanted = pieces(next(lengths, 1), info.chunk)
    for shard in info.shards:
        records, found = _read_shard(path, shard)
        problems += found
        for record in records:
            try:
                parts.append(unpack(record))
            except InputError as error:
                problems.append(f"a record of {shard.name} is damaged: {error}")
                continue
            digests.append(hashlib.sha256(record).hexdigest())
            if len(parts) < wanted:
                continue
            try:
                episode = join_pieces(parts)
            except ValueError:
                problems.append(f"episode {len(kept)}: its pieces do not fit together")
                episode = parts[0]
            found = find_problems(episode, info.spec)
            problems += [f"episode {len(kept)}: {problem}" for problem in found]
            if not problems:
                tally.add(episode)
            kept.append(keep(episode))
            parts, wanted = [], pieces(next(lengths, 1), info.chunk)
    if not problems:
        problems += _compare(info, tally, len(kept), digests)
    return kept, problems


def read_flags(path: Path, info: DatasetInfo) -> list[tuple[bool, int, bool]]:
    """Returns of each episode whether it ended by termination, its task, and whether it is relevant.

    The bytes of every shard are checked; of the records only those that begin an episode are read.

    Raises:
        InputError: if a file is not what was written, or disagrees with the description.
    """
    starts = iter(np.cumsum([0, *(pieces(length, info.chunk) for length in info.lengths)]).tolist())
    flags, first, start = [], 0, next(starts)
    for shard in info.shards:
        wanted = []
        while start < first + shard.episodes and len(flags) + len(wanted) < info.num_episodes:
            wanted.append(start - first)
            start = next(starts)
        records, problems = _read_shard(path, shard, wanted)
        if problems:
            raise _unsound(path, problems)
        for record in records:
            header, _ = read_header(record)
            length = info.lengths[len(flags)]
            if header["fields"][0][2] != [min(length, info.chunk or length), *info.frame_shape]:
                raise _unsound(path, [f"episode {len(flags)} disagrees with {_DESCRIPTION}"])
            flags.append((header["is_terminal"], header["task"], header["relevant"]))
        first += shard.episodes
    if (len(flags), start) != (info.num_episodes, first):
        raise _unsound(path, [f"the shards hold {first} records, but its lengths ask for {start}"])
    return flags


def _unsound(path: Path, problems: list[str]) -> InputError:
    return InputError(f"{path}: {problems[0]}. Copy or collect the data set again; `check` lists every problem.")


def _read_shard(path: Path, shard: Shard, wanted: list[int] | None = None) -> tuple[list[bytes], list[str]]:
    """Returns the records of a shard whose bytes are those it was written with; all, or those of some numbers."""
    try:
        return _read_records(path / shard.name, shard, wanted)
    except OSError as error:
        return [], [f"{shard.name} cannot be read: {error.strerror}"]


def _read_records(file: Path, shard: Shard, wanted: list[int] | None) -> tuple[list[bytes], list[str]]:
    if not _SHARD.fullmatch(shard.name) or file.is_symlink():
        return [], [f"shard {shard.name!r} leaves the folder"]
    if not file.is_file():
        return [], [f"{shard.name} is missing"]
    # Before the file is opened by a parser, and before it is hashed.
    if file.stat().st_size != shard.size:
        return [], [f"{shard.name} has {file.stat().st_size} bytes, expected {shard.size}"]
    if _measure(file)[1] != shard.sha256:
        return [], [f"{shard.name} does not match its SHA-256"]
    if wanted == []:
        return [], []
    try:
        reader = ArrayRecordReader(str(file))
        held = reader.num_records()
        if held == shard.episodes:
            records = [bytes(record) for record in (reader.read_all() if wanted is None else reader.read(wanted))]
        reader.close()
    except (RuntimeError, ValueError, OSError) as error:
        return [], [f"{shard.name} cannot be read as ArrayRecord: {error}"]
    if held != shard.episodes:
        return [], [f"{shard.name} holds {held} episodes, expected {shard.episodes}"]
    return records, []


def _compare(info: DatasetInfo, tally: Tally, episodes: int, digests: list[str]) -> list[str]:
    """Returns where sound episodes and their description disagree."""
    if episodes != info.num_episodes:
        return [f"the shards hold {episodes} episodes, but num_episodes is {info.num_episodes}"]
    if list(info.held_out) != sorted(set(info.held_out) & set(range(info.num_episodes))):
        return ["held_out does not list existing episodes once each, ascending"]
    facts = tally.facts() | {"held_out": info.held_out}
    problems = [f"{name} disagrees with the episodes" for name, fact in facts.items() if getattr(info, name) != fact]
    names = ("schema_version", "environment", "policy", "seed", *(("chunk",) if info.chunk else ()))
    facts |= {name: getattr(info, name) for name in names} | _told(info.behaviour, info.tasks)
    if sum(b.episodes for b in info.behaviour) not in (0, info.num_episodes):
        problems.append("behaviour does not account for every episode once")
    if not problems and _fingerprint(facts, digests) != info.fingerprint:
        problems.append("the fingerprint does not match the episodes and their description")
    return problems
