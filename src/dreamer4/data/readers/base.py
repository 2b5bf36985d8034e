"""The contract of a reader."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int, Int32, UInt8

from dreamer4.types import DataSpec


@dataclass(frozen=True, eq=False)
class Window:
    """A stretch of one episode on the host: the arrays of an `Episode`, with frames, latents or neither."""

    frame: UInt8[np.ndarray, "T H W C"] | None
    latent: Float32[np.ndarray, "T Nz Dz"] | None
    discrete: Int32[np.ndarray, "T components"]
    continuous: Float32[np.ndarray, "T dims"]
    action_mask: Bool[np.ndarray, " T"]
    reward: Float32[np.ndarray, " T"]


class AbstractReader(ABC):
    """Gives windows of episodes that stay where they are. Several threads may call `window` at once.

    Attributes:
        spec: what the data looks like.
        lengths: frames of each episode, at least 1.
        is_terminal: whether each ended by termination.
        task: id of the task of each.
        relevant: whether cloning may learn from each.
        fingerprint: equal for equal data, wherever it lies.
        recordings: of each episode the name of what no split may cut, such as a session of which it is a part; empty
            where episodes stand alone.
        findings: in words, a line each, what was repaired or left out when the reader was opened.
    """

    spec: DataSpec
    lengths: Int[np.ndarray, " E"]
    is_terminal: Bool[np.ndarray, " E"]
    task: Int[np.ndarray, " E"]
    relevant: Bool[np.ndarray, " E"]
    fingerprint: str
    recordings: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.lengths)

    @abstractmethod
    def window(self, episode: int, start: int, length: int, *, frames: bool = True) -> Window:
        """Reads a stretch of an episode.

        Args:
            episode: its number, 0 to `len(self) - 1`.
            start: first frame.
            length: number of frames, which the episode has from there on.
            frames: whether the frames are wanted; what is not wanted is not decoded.

        Raises:
            InputError: if it cannot be read, or is not what it was when the reader was opened.
        """
