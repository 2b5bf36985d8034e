"""Some of the episodes of another reader."""

import hashlib

import numpy as np
from jaxtyping import Int

from dreamer4.data.readers.base import AbstractReader, Window


class PartReader(AbstractReader):
    """Gives some episodes of a reader as its own."""

    def __init__(self, reader: AbstractReader, episodes: Int[np.ndarray, " e"]):
        """Wraps a reader.

        Args:
            reader: of all.
            episodes: numbers of those to give.
        """
        self.spec, self.findings, self._reader, self._episodes = reader.spec, reader.findings, reader, episodes
        self.lengths, self.is_terminal = reader.lengths[episodes], reader.is_terminal[episodes]
        self.task, self.relevant = reader.task[episodes], reader.relevant[episodes]
        named = f"{reader.fingerprint} {episodes.tolist()}"
        self.fingerprint = hashlib.sha256(named.encode()).hexdigest()

    def window(self, episode: int, start: int, length: int, *, frames: bool = True) -> Window:
        return self._reader.window(int(self._episodes[episode]), start, length, frames=frames)
