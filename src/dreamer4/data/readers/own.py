"""Windows of a data set of our own format."""

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from dreamer4.data.episode import Episode
from dreamer4.data.format import pieces, read_flags, read_info
from dreamer4.data.readers.base import AbstractReader, Window
from dreamer4.data.record import join_pieces, unpack
from dreamer4.errors import InputError


_RANDOM_ACCESS = "readahead_buffer_size:0,max_parallelism:0"
_LABELS = ("discrete", "continuous", "action_mask", "reward")


class _Files(threading.local):
    """The shards that a thread has open: its own, since a reader is a place in a file."""

    def __init__(self):
        self.readers: dict[int, ArrayRecordReader] = {}


class OwnReader(AbstractReader):
    """Reads the records that a window lies in: pieces of a long episode, or a short one as a whole."""

    def __init__(self, path: str | Path, split: str = "train"):
        """Opens a data set, a shard at a time: checks its bytes, and reads what each episode says of itself.

        Args:
            path: the folder.
            split: `train`, `held_out` or `all`.

        Raises:
            InputError: if there is no such split, or anything is wrong with the data.
        """
        self._path, info = Path(path), read_info(path)
        flags = read_flags(self._path, info)
        index = np.array(info.indices(split), int)
        if not len(index):
            raise InputError(f"{path}: its {split} part has no episodes. Make the data set with more of them.")
        self.spec, self.fingerprint = info.spec, info.part(split)
        self.lengths = np.array(info.lengths, np.int64)[index]
        self.is_terminal, self.task, self.relevant = (
            np.array([flags[i][at] for i in index], kind) for at, kind in enumerate((bool, np.int32, bool))
        )
        counts = np.array([pieces(n, info.chunk) for n in info.lengths])
        self._chunk, self._record = info.chunk, (np.cumsum(counts) - counts)[index]
        self._shards = [shard.name for shard in info.shards]
        self._first = np.cumsum([0, *(shard.episodes for shard in info.shards)])
        self._open = _Files()

    def window(self, episode: int, start: int, length: int, *, frames: bool = True) -> Window:
        chunk = self._chunk or int(self.lengths[episode])
        first, last = start // chunk, (start + length - 1) // chunk
        read = [self._read(int(self._record[episode]) + number) for number in range(first, last + 1)]
        begin = start - first * chunk

        def joined(name: str) -> np.ndarray:
            parts = [getattr(piece, name) for piece in read]
            return (parts[0] if len(parts) == 1 else np.concatenate(parts))[begin : begin + length]

        frame = joined("frame") if frames else None
        return Window(frame=frame, latent=None, **{name: joined(name) for name in _LABELS})

    def episodes(self) -> Iterator[Episode]:
        """Yields the episodes whole, in their order, one at a time."""
        for first, length in zip(self._record.tolist(), self.lengths.tolist(), strict=True):
            yield join_pieces([self._read(first + number) for number in range(pieces(length, self._chunk))])

    def _read(self, number: int) -> Episode:
        shard = int(np.searchsorted(self._first, number, side="right")) - 1
        readers = self._open.readers
        try:
            if shard not in readers:
                while len(readers) >= 16:  # files that a thread keeps open
                    readers.pop(next(iter(readers))).close()
                readers[shard] = ArrayRecordReader(str(self._path / self._shards[shard]), _RANDOM_ACCESS)
            (record,) = readers[shard].read([number - int(self._first[shard])])
            return unpack(bytes(record))
        except (InputError, RuntimeError, ValueError, IndexError, OSError) as error:
            raise InputError(
                f"{self._path / self._shards[shard]}: record {number - int(self._first[shard])} cannot be read any "
                f"more: {error}. The file changed; copy the data set again."
            ) from error
