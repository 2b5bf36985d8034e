"""Latents of a data set on disk, computed once and read by every phase that follows the tokenizer.

    latents.json        what was encoded, by which tokenizer, and which episodes each shard holds
    shard-00000.npy     frames of some whole episodes end to end: raw latents as float16, actions, masks, rewards
    shard-00000.json    size and SHA-256 of that file; there once it is whole

A shard is written under another name and renamed, its description last. So what a killed process leaves is never read,
the shards that are there need not be made again, and several machines may share the work, each with shards of its own.
Labels lie beside the latents, so that nothing that reads these needs the frames, nor what they are kept in.

Latents are those before their statistics are applied: these are measured on what lies here. A bounded latent loses less
in float16 than in bfloat16.
"""

import contextlib
import copy
import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Float32
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, ValidationError

from dreamer4.data.readers.base import AbstractReader, Window
from dreamer4.errors import InputError
from dreamer4.files import read_bytes, write_atomically
from dreamer4.types import ActionSpec, DataSpec, TaskSpec


SHARD_BYTES = 2**28  # of frames and latents in a shard, if more than one episode is in it: minutes of work, not hours
_DESCRIPTION = "latents.json"
_MAX_DESCRIPTION = 2**28
_BLOCK_BYTES = 2**24  # read at once where all of a store is gone through


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _File(_Closed):
    size: PositiveInt
    sha256: str


class StoreInfo(_Closed):
    """What a store is to hold, whether it does so yet or not.

    Attributes:
        version: of the format.
        tokenizer: fingerprint of the tokenizer.
        data: fingerprint of the data.
        latent_shape: tokens and channels of a frame's latents.
        frame_shape: height, width, channels of the frames that were encoded.
        num_classes: classes of each discrete action component.
        continuous_dim: size of the continuous action.
        num_tasks: number of tasks.
        tasks: what each of them is, where that is told.
        lengths: frames of each episode.
        is_terminal: whether each ended by termination.
        task: id of the task of each.
        relevant: whether cloning may learn from each.
        shards: episodes in each shard.
    """

    version: Literal[1] = 1
    tokenizer: str
    data: str
    latent_shape: tuple[PositiveInt, PositiveInt]
    frame_shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    num_classes: tuple[PositiveInt, ...]
    continuous_dim: NonNegativeInt
    num_tasks: PositiveInt
    tasks: tuple[TaskSpec, ...] = ()
    lengths: tuple[PositiveInt, ...]
    is_terminal: tuple[bool, ...]
    task: tuple[NonNegativeInt, ...]
    relevant: tuple[bool, ...]
    shards: tuple[PositiveInt, ...]

    @property
    def row(self) -> np.dtype:
        """The bytes of a frame in a shard."""
        return np.dtype(
            [
                ("latent", "<f2", self.latent_shape),
                ("discrete", "<i4", (len(self.num_classes),)),
                ("continuous", "<f4", (self.continuous_dim,)),
                ("action_mask", "?"),
                ("reward", "<f4"),
            ]
        )

    def episodes(self, shard: int) -> range:
        """Returns the numbers of the episodes in a shard."""
        first = sum(self.shards[:shard])
        return range(first, first + self.shards[shard])


def plan(
    reader: AbstractReader, tokenizer: str, latent_shape: tuple[int, int], shard_bytes: int = SHARD_BYTES
) -> StoreInfo:
    """Returns the store that a data set and a tokenizer will make: the same for the same ones.

    Args:
        reader: of the data.
        tokenizer: its fingerprint.
        latent_shape: tokens and channels of a frame's latents.
        shard_bytes: a shard ends before the episode with which frames and latents would be more.
    """
    spec, frame = reader.spec, int(np.prod(reader.spec.frame_shape)) + 2 * int(np.prod(latent_shape))
    shards, held = [], shard_bytes
    for length in reader.lengths.tolist():
        if held + length * frame > shard_bytes:
            shards.append(0)
            held = 0
        shards[-1] += 1
        held += length * frame
    return StoreInfo(
        tokenizer=tokenizer,
        data=reader.fingerprint,
        latent_shape=latent_shape,
        frame_shape=spec.frame_shape,
        num_classes=spec.action.num_classes,
        continuous_dim=spec.action.continuous_dim,
        num_tasks=spec.num_tasks,
        tasks=spec.tasks,
        lengths=reader.lengths.tolist(),
        is_terminal=reader.is_terminal.tolist(),
        task=reader.task.tolist(),
        relevant=reader.relevant.tolist(),
        shards=tuple(shards),
    )


def begin(folder: Path, info: StoreInfo) -> None:
    """Makes the folder of a store, or finds it begun.

    Raises:
        InputError: if another store is there, or the folder cannot be made.
    """
    file = folder / _DESCRIPTION
    if os.path.lexists(file):
        if (found := _described(folder)) != info:
            raise _stale(folder, found, info.tokenizer, info.data)
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(file, info.model_dump_json().encode())
    except OSError as error:
        raise InputError(f"{folder} cannot be made: {error.strerror or error}. Choose another folder.") from error


def whole(folder: Path) -> bool:
    """Whether a folder holds all of a store; it may be of anything."""
    return os.path.lexists(folder / _DESCRIPTION) and not missing(folder, _described(folder))


def missing(folder: Path, info: StoreInfo) -> list[int]:
    """Returns the numbers of the shards that are not there yet."""
    return [shard for shard in range(len(info.shards)) if not _sidecar(folder, shard).exists()]


def write_shard(folder: Path, info: StoreInfo, shard: int, parts: Iterable[tuple[int, int, Window]]) -> None:
    """Writes a shard, which is there when all of it is.

    Args:
        folder: of a store that was begun.
        info: its description.
        shard: number of the shard.
        parts: number of an episode, first frame, and a stretch of it in latents; every frame of the shard once.

    Raises:
        InputError: if a latent does not fit into float16, or the disk is full or cannot be written.
    """
    lengths = np.array(info.lengths)[info.episodes(shard)]
    start = np.cumsum(lengths) - lengths
    file, hidden = _file(folder, shard), folder / f".{_file(folder, shard).name}.{secrets.token_hex(4)}.tmp"
    try:
        with hidden.open("w+b") as stream:
            header = {"descr": np.lib.format.dtype_to_descr(info.row), "fortran_order": False}
            np.lib.format.write_array_header_1_0(stream, header | {"shape": (int(lengths.sum()),)})
            head = stream.tell()
            for episode, first, window in parts:
                stream.seek(head + (int(start[episode - info.episodes(shard)[0]]) + first) * info.row.itemsize)
                stream.write(_rows(info, episode, window).tobytes())
            stream.flush()
            os.fsync(stream.fileno())
            stream.seek(0)
            about = _File(
                size=os.fstat(stream.fileno()).st_size, sha256=hashlib.file_digest(stream, "sha256").hexdigest()
            )
        os.replace(hidden, file)
        write_atomically(_sidecar(folder, shard), about.model_dump_json().encode())
        for leftover in folder.glob(f".{file.name}.*.tmp"):  # of who was killed, or makes what is there now
            leftover.unlink(missing_ok=True)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and _sidecar(folder, shard).exists():
            return  # another process made the very shard meanwhile
        raise InputError(f"Cannot write {file}: {error.strerror or error}. Free the disk, and encode again.") from error
    finally:
        with contextlib.suppress(OSError):
            hidden.unlink(missing_ok=True)


class LatentStore(AbstractReader):
    """Windows of latents, actions and rewards, read from the shards of a whole store."""

    def __init__(self, folder: Path, *, tokenizer: str, data: str):
        """Opens a store, and checks the bytes of its shards.

        Args:
            folder: where it lies.
            tokenizer: fingerprint of the tokenizer that is to have made it.
            data: fingerprint of the data that it is to hold.

        Raises:
            InputError: if there is none, it is of other data or of another tokenizer, a shard is missing, or one is not
                what was written.
        """
        self._folder, self._info = folder, _described(folder)
        info = self._info
        if (info.tokenizer, info.data) != (tokenizer, data):
            raise _stale(folder, info, tokenizer, data)
        if lacking := missing(folder, info):
            raise InputError(
                f"{folder} is not whole: {len(lacking)} of its {len(info.shards)} shards are missing, the first is "
                f"{_file(folder, lacking[0]).name}. Encode the data again; what is there is kept."
            )
        for shard in range(len(info.shards)):
            _check(folder, shard)
        action = ActionSpec(info.num_classes, info.continuous_dim)
        self.spec, self.fingerprint = DataSpec(info.frame_shape, action, info.num_tasks, info.tasks), info.data
        self.lengths, self.task = np.array(info.lengths, np.int64), np.array(info.task, np.int32)
        self.is_terminal, self.relevant = np.array(info.is_terminal), np.array(info.relevant)
        self._mean, self._std = np.zeros(1, np.float32), np.ones(1, np.float32)
        self._shard = np.repeat(np.arange(len(info.shards)), info.shards)
        ends = np.cumsum(self.lengths)
        begins = np.concatenate([[0], ends])[np.cumsum([0, *info.shards])]
        self._start = ends - self.lengths - begins[:-1][self._shard]  # of an episode, in its shard
        self._sizes = np.diff(begins)
        self._row = info.row
        self._heads = [_header_size(_file(folder, shard)) for shard in range(len(info.shards))]

    def standardised(self, mean: Float[Any, "Nz Dz"], std: Float[Any, "Nz Dz"]) -> "LatentStore":
        """Returns the same store, with latents as these statistics standardise them."""
        new = copy.copy(self)
        new._mean, new._std = np.asarray(mean, np.float32), np.asarray(std, np.float32)
        return new

    def window(self, episode: int, start: int, length: int, *, frames: bool = True) -> Window:
        del frames  # there are none
        rows = self._read(int(self._shard[episode]), int(self._start[episode]) + start, length)
        arrays = {name: np.ascontiguousarray(rows[name]) for name in self._row.names or () if name != "latent"}
        return Window(frame=None, latent=self._standardised(rows["latent"]), **arrays)

    def blocks(self) -> Iterator[Float32[np.ndarray, "n Nz Dz"]]:
        """Yields the latents of all frames in their order, a few at a time."""
        count = max(1, _BLOCK_BYTES // self._row.itemsize)
        for shard, size in enumerate(self._sizes.tolist()):
            for first in range(0, size, count):
                yield self._standardised(self._read(shard, first, min(count, size - first))["latent"])

    def latents(self) -> Float32[np.ndarray, "N Nz Dz"]:
        """Returns the latents of all frames in their order."""
        return np.concatenate(list(self.blocks()))

    def _standardised(self, latent: np.ndarray) -> Float32[np.ndarray, "n Nz Dz"]:
        return (latent.astype(np.float32) - self._mean) / self._std

    def _read(self, shard: int, first: int, count: int) -> np.ndarray:
        file, size = _file(self._folder, shard), self._row.itemsize
        try:
            with file.open("rb", buffering=0) as stream:
                stream.seek(self._heads[shard] + first * size)
                raw = stream.read(count * size)
        except OSError as error:
            raise InputError(
                f"{file} cannot be read any more: {error.strerror or error}. Encode the data again."
            ) from error
        if len(raw or b"") != count * size:
            raise InputError(f"{file} is shorter than it was. Encode the data again.")
        return np.frombuffer(raw, self._row)


def _rows(info: StoreInfo, episode: int, window: Window) -> np.ndarray:
    assert window.latent is not None
    rows = np.empty(len(window.latent), info.row)
    for name in info.row.names or ():
        with np.errstate(over="ignore"):
            rows[name] = getattr(window, name)
    if not np.isfinite(rows["latent"]).all():
        raise InputError(
            f"A latent of episode {episode} is not a number that float16 can hold. Bound the latents of your tokenizer."
        )
    return rows


def _file(folder: Path, shard: int) -> Path:
    return folder / f"shard-{shard:05d}.npy"


def _sidecar(folder: Path, shard: int) -> Path:
    return _file(folder, shard).with_suffix(".json")


def _header_size(file: Path) -> int:
    with file.open("rb") as stream:
        np.lib.format.read_magic(stream)
        np.lib.format.read_array_header_1_0(stream)
        return stream.tell()


def _described(folder: Path) -> StoreInfo:
    try:
        return StoreInfo.model_validate_json(read_bytes(folder / _DESCRIPTION, limit=_MAX_DESCRIPTION))
    except ValidationError as error:
        raise InputError(f"{folder / _DESCRIPTION} is damaged. Remove {folder}, and encode the data again.") from error


def _check(folder: Path, shard: int) -> None:
    """Refuses a shard that is not what was written."""
    file = _file(folder, shard)
    try:
        about = _File.model_validate_json(read_bytes(_sidecar(folder, shard), limit=4096))
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            whole = size == about.size and hashlib.file_digest(stream, "sha256").hexdigest() == about.sha256
    except (OSError, ValidationError):
        whole = False
    if not whole:
        raise InputError(
            f"{file} is not what was written. Remove {_sidecar(folder, shard)}, and encode the data again; the other "
            "shards are kept."
        )


def _stale(folder: Path, found: StoreInfo, tokenizer: str, data: str) -> InputError:
    what = (
        "another tokenizer" if found.tokenizer != tokenizer else "other data" if found.data != data else "other sizes"
    )
    return InputError(
        f"{folder} holds latents of {what} (tokenizer {found.tokenizer[:12]}, data {found.data[:12]}; wanted are "
        f"{tokenizer[:12]} and {data[:12]}). Remove it, or choose another folder."
    )
