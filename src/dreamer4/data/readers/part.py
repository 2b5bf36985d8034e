"""Some of the episodes of another reader."""

import numpy as np
from jaxtyping import Int

from dreamer4.data.readers.base import AbstractReader, Window


class PartReader(AbstractReader):
    """Gives some episodes of a reader as its own."""

    def __init__(self, reader: AbstractReader, episodes: Int[np.ndarray, " e"], fingerprint: str):
        """Wraps a reader.

        Args:
            reader: of all.
            episodes: numbers of those to give.
            fingerprint: of these.
        """
        self.spec, self.findings, self._reader, self._episodes = reader.spec, reader.findings, reader, episodes
        self.lengths, self.is_terminal = reader.lengths[episodes], reader.is_terminal[episodes]
        self.task, self.relevant = reader.task[episodes], reader.relevant[episodes]
        self.recordings = tuple(reader.recordings[e] for e in episodes) if reader.recordings else ()
        self.fingerprint = fingerprint

    def window(self, episode: int, start: int, length: int, *, frames: bool = True) -> Window:
        return self._reader.window(int(self._episodes[episode]), start, length, frames=frames)
