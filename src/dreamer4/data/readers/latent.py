"""Windows of latents in place of frames."""

import dataclasses

import numpy as np
from jaxtyping import Array, Float

from dreamer4.data.readers.base import AbstractReader, Window
from dreamer4.errors import InputError


class LatentReader(AbstractReader):
    """Gives the windows of another reader with the latents of their frames, which may be a file mapped into memory."""

    def __init__(self, reader: AbstractReader, latent: Float[Array | np.ndarray, "N Nz Dz"]):
        """Wraps a reader.

        Args:
            reader: of the frames.
            latent: tokens of frame n at row n, the episodes of the reader laid end to end.

        Raises:
            InputError: if there is not one row per frame.
        """
        if latent.shape[0] != reader.lengths.sum():
            raise InputError(
                f"LatentReader: got {latent.shape[0]} rows, expected one per frame, {reader.lengths.sum()}. "
                "Encode every frame of this data, in order."
            )
        self.spec, self.fingerprint = reader.spec, reader.fingerprint
        self.lengths, self.is_terminal = reader.lengths, reader.is_terminal
        self.task, self.relevant = reader.task, reader.relevant
        self._reader, self._latent = reader, latent
        self._start = np.cumsum(reader.lengths) - reader.lengths

    def window(self, episode: int, start: int, length: int, *, frames: bool = True) -> Window:
        del frames  # there are none
        row = int(self._start[episode]) + start
        latent = np.asarray(self._latent[row : row + length], np.float32)
        return dataclasses.replace(self._reader.window(episode, start, length, frames=False), latent=latent)
