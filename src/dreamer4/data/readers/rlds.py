"""Windows of RLDS data sets as TensorFlow Datasets keeps them in TFRecord files, read without TensorFlow."""

import hashlib
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from dreamer4.data.labels import range_of
from dreamer4.data.readers.base import AbstractReader, Window
from dreamer4.data.readers.pictures import decode, shrink
from dreamer4.data.readers.steps import ActionScale
from dreamer4.errors import InputError, nearest
from dreamer4.types import DataSpec


_PICTURES = (b"\x89PNG", b"\xff\xd8\xff")  # how files of them begin
_MAX_RECORD = 2**31  # bytes
_BYTES, _FLOATS, _INTEGERS = 1, 2, 3  # fields of a feature
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5  # kinds of fields

Values = list[bytes] | np.ndarray


class _Place(NamedTuple):
    """Where the record of an episode lies."""

    file: Path
    offset: int
    size: int


def is_rlds(path: Path) -> bool:
    """Whether a path is the folder of a version of an RLDS data set."""
    return (path / "features.json").is_file() and bool(_files(path))


class RLDSReader(AbstractReader):
    """Reads an episode from each record: pictures, the action taken at each, and the reward of that action.

    Actions are classes if they are integers, and otherwise lie between the least and the greatest that occur. Action
    and reward of the last step mean nothing.

    Attributes:
        tasks: the instructions that occur, if there are any.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        camera: str | None = None,
        action: str | None = None,
        size: Sequence[int] | None = None,
    ):
        """Reads what is not pictures.

        Args:
            path: the folder with `features.json`.
            camera: the feature that is the frame, such as `observation/image`; may be left out where there is one.
            action: likewise, such as `action/world_vector`.
            size: height and width to which frames are averaged; None: as they are.

        Raises:
            InputError: if something cannot be read, or there are several and none is chosen.
        """
        self._size = None if size is None else (int(size[0]), int(size[1]))
        self._places = [place for file in _files(Path(path)) for place in _records(file)]
        if not self._places:
            raise InputError(f"{path} holds no episodes.")
        first = self._features(0)
        cameras = [n for n, v in first.items() if isinstance(v, list) and v and v[0].startswith(_PICTURES)]
        numbers = [n for n, v in first.items() if n.split("/")[0] == "action" and not isinstance(v, list)]
        self._camera = _chosen(path, "camera", camera, cameras)
        action = _chosen(path, "action", action, numbers)
        words = next((n for n in first if n.endswith("language_instruction")), None)
        actions, rewards, texts, ends, digest = [], [], [], [], hashlib.sha256(repr((camera, action, size)).encode())
        for number in range(len(self._places)):
            features = self._features(number)
            length = len(features[self._camera])
            taken = np.asarray(features[action])
            if not length or taken.size % length:
                raise InputError(f"{self._name(number)}: {taken.size} numbers of {action} for {length} steps.")
            actions.append(taken.reshape(length, -1))
            rewards.append(np.asarray(features.get("reward", np.zeros(length)), float))
            ends.append(bool(np.any(features.get("is_terminal", np.zeros(1)))))
            texts.append(features[words][0] if words is not None else b"")
            digest.update(actions[-1].tobytes() + rewards[-1].tobytes() + texts[-1])
            digest.update(b"%d" % self._places[number].size)
        self.lengths = np.array([len(a) for a in actions])
        together = np.concatenate(actions)
        if together.dtype.kind == "i" and together.min() >= 0:
            scale = ActionScale(tuple(max(int(n) + 1, 2) for n in together.max(axis=0)), np.zeros(0), np.zeros(0))
        else:
            scale = ActionScale.between(*range_of([together]))
        self._steps = [scale.steps(a, r[: len(a) - 1], len(a)) for a, r in zip(actions, rewards, strict=True)]
        known = sorted(set(texts))
        self.tasks = tuple(text.decode(errors="replace") for text in known) if words is not None else ()
        frame = self._frames(0, 0, 1)
        self.spec = DataSpec((frame.shape[1], frame.shape[2], frame.shape[3]), scale.spec, len(known))
        self.is_terminal = np.array(ends)
        self.task, self.relevant = np.array([known.index(t) for t in texts], np.int32), np.ones(len(texts), bool)
        self.fingerprint = digest.hexdigest()
        self.findings = tuple(f"task {number}: {text}" for number, text in enumerate(self.tasks))

    def window(self, episode: int, start: int, length: int, *, frames: bool = True) -> Window:
        return self._steps[episode].window(start, length, self._frames(episode, start, length) if frames else None)

    def _frames(self, episode: int, start: int, length: int) -> UInt8[np.ndarray, "T H W C"]:
        files = self._features(episode)[self._camera]
        try:
            return shrink(np.stack([decode(bytes(file)) for file in files[start : start + length]]), self._size)
        except ValueError as error:  # of several shapes, too
            raise InputError(f"{self._name(episode)}: {error}") from error

    def _features(self, episode: int) -> dict[str, Values]:
        """Returns the steps of an episode by name."""
        place = self._places[episode]
        try:
            with place.file.open("rb") as file:
                file.seek(place.offset)
                features = dict(_example(memoryview(file.read(place.size))))
        except (OSError, ValueError, IndexError, KeyError, struct.error) as error:
            raise InputError(f"{self._name(episode)}: cannot be read: {error}. Copy the data set again.") from error
        return {name.removeprefix("steps/"): v for name, v in features.items() if name.startswith("steps/")}

    def _name(self, episode: int) -> str:
        return f"{self._places[episode].file}: record at {self._places[episode].offset}"


def _files(path: Path) -> list[Path]:
    return sorted(p for p in path.glob("*.tfrecord*") if p.is_file())


def _chosen(path: str | Path, what: str, name: str | None, there: list[str]) -> str:
    if name is None and len(there) == 1:
        return there[0]
    if name not in there:
        told = f" {nearest(name, there)}" if name and there else ""
        raise InputError(
            f"{path} has for its {what}: {', '.join(there) or 'nothing'}. Choose by the option {what}.{told}"
        )
    return name


def _records(file: Path) -> Iterator[_Place]:
    """Yields the records of a file: each is its length, a checksum of that, the data, and a checksum."""
    whole, at = file.stat().st_size, 0
    with file.open("rb") as stream:
        while at < whole:
            stream.seek(at)
            head = stream.read(12)
            size = int.from_bytes(head[:8], "little")
            if len(head) < 12 or size > _MAX_RECORD or at + 16 + size > whole:
                raise InputError(f"{file}: is cut short or no TFRecord at byte {at}. Copy the data set again.")
            yield _Place(file, at + 12, size)
            at += 16 + size


def _example(data: memoryview) -> Iterator[tuple[str, Values]]:
    """Yields names and values of a `tf.train.Example`: features, each an entry of a map, each a list of one kind."""
    for _, features in _fields(data):
        for _, entry in _fields(features):
            pair = dict(_fields(entry))
            for kind, values in _fields(pair.get(2, memoryview(b""))):
                yield bytes(pair[1]).decode(), _values(kind, [value for _, value in _fields(values)])


def _values(kind: int, parts: list[memoryview]) -> Values:
    if kind == _BYTES:
        return [bytes(part) for part in parts]
    joined = b"".join(bytes(part) for part in parts)  # packed into one, or one by one
    if kind == _FLOATS:
        return np.frombuffer(joined, "<f4")
    if kind != _INTEGERS:
        raise ValueError(f"a feature of kind {kind}")
    numbers, at = [], 0
    while at < len(joined):
        number, at = _varint(joined, at)
        numbers.append(number - (1 << 64) if number >> 63 else number)
    return np.array(numbers, np.int64)


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yields number and content of the fields of a message of protocol buffers."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind, begin = tag & 7, at
        if kind == _VARINT:
            _, at = _varint(data, at)
        elif kind == _LENGTH:
            size, begin = _varint(data, at)
            at = begin + size
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"a field of kind {kind}")
        if at > len(data):
            raise ValueError("a field longer than its message")
        yield tag >> 3, data[begin:at]


def _varint(data: memoryview | bytes, at: int) -> tuple[int, int]:
    """Returns a number of seven bits a byte, and where it ends."""
    number = shift = 0
    while shift < 70:
        byte = data[at]
        number |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return number, at
    raise ValueError("a number of more than 64 bits")
