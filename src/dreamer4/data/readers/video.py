"""Windows of a folder of video files, which are read in place."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dreamer4.data.film import VIDEOS
from dreamer4.data.order import in_natural_order
from dreamer4.data.readers.base import AbstractReader, Window
from dreamer4.data.readers.indexed import IndexedFilm
from dreamer4.data.readers.pictures import shrink
from dreamer4.errors import InputError
from dreamer4.types import ActionSpec, DataSpec


class VideoReader(AbstractReader):
    """Reads videos as episodes without actions or rewards.

    Frames of another size than those of the first file are refused.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        action: ActionSpec | None = None,
        paths: tuple[Path, ...] = (),
        size: Sequence[int] | None = None,
    ):
        """Lists the videos of a folder, and the frames of each.

        Args:
            folder: holds the files, each an episode, in the natural order of their names.
            action: factors of the actions that a model of this data may take; none is known in the videos.
            paths: the files of the folder to take; none: all that are named like videos.
            size: height and width to which frames are averaged; None: as they are.

        Raises:
            InputError: if there are none, or one cannot be read.
        """
        paths = paths or tuple(
            in_natural_order([p for p in Path(folder).iterdir() if p.suffix.lower() in VIDEOS and p.is_file()])
        )
        if not paths:
            raise InputError(f"{folder} holds no videos ({', '.join(VIDEOS)}). Name another folder.")
        self._size = None if size is None else (int(size[0]), int(size[1]))
        self._films: list[IndexedFilm] = []
        digest = hashlib.sha256(repr(self._size).encode() if self._size else b"")
        for path in paths:
            self._films.append(IndexedFilm(path))
            self._films[-1].warn_of_gaps()
            shape, first = self._films[-1].frame_shape, self._films[0].frame_shape
            if shape != first:
                raise InputError(f"{path}: frames have shape {shape}, those of {paths[0]} {first}. Remove it.")
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        height, width = self._size or self._films[0].frame_shape[:2]
        self.spec = DataSpec((height, width, 3), action or ActionSpec((2,)))
        self.lengths = np.array([len(film) for film in self._films])
        self.is_terminal, self.task = np.zeros(len(paths), bool), np.zeros(len(paths), np.int32)
        self.relevant = np.ones(len(paths), bool)
        self.fingerprint = digest.hexdigest()

    def window(self, episode: int, start: int, length: int, *, frames: bool = True) -> Window:
        components, dims = len(self.spec.action.num_classes), self.spec.action.continuous_dim
        return Window(
            frame=shrink(self._films[episode].frames(start, length), self._size) if frames else None,
            latent=None,
            discrete=np.zeros((length, components), np.int32),
            continuous=np.zeros((length, dims), np.float32),
            action_mask=np.zeros(length, bool),
            reward=np.zeros(length, np.float32),
        )
