"""Windows of a folder of video files, which are read in place."""

import hashlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from dreamer4.data.film import VIDEOS, Film, shown
from dreamer4.data.order import in_natural_order
from dreamer4.data.readers.base import AbstractReader, Window
from dreamer4.errors import InputError
from dreamer4.types import ActionSpec, DataSpec


class VideoReader(AbstractReader):
    """Reads videos as episodes without actions or rewards, decoding from the key frame before a window.

    When it is opened the packets of each file are listed, not decoded: times of the frames in the order they are shown
    in, and which are key frames. Of an hour at 20 frames a second that is less than 1 MB. Frames of another size than
    those of the first file are refused.
    """

    def __init__(self, folder: str | Path, *, action: ActionSpec | None = None, paths: tuple[Path, ...] = ()):
        """Lists the videos of a folder.

        Args:
            folder: holds the files, each an episode, in the natural order of their names.
            action: factors of the actions that a model of this data may take; none is known in the videos.
            paths: the files of the folder to take; none: all that are named like videos.

        Raises:
            InputError: if there are none, or one cannot be read.
        """
        self._paths = paths or tuple(
            in_natural_order([p for p in Path(folder).iterdir() if p.suffix.lower() in VIDEOS and p.is_file()])
        )
        if not self._paths:
            raise InputError(f"{folder} holds no videos ({', '.join(VIDEOS)}). Name another folder.")
        self._films: list[Film] = []
        digest, self._times, self._keys = hashlib.sha256(), [], []
        for path in self._paths:
            film, times, keys = _index(path)
            self._films.append(film)
            first = self._films[0].frame_shape
            if film.frame_shape != first:
                raise InputError(
                    f"{path}: frames have shape {film.frame_shape}, those of {self._paths[0]} {first}. Remove it."
                )
            self._times.append(times)
            self._keys.append(keys)
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        self.spec = DataSpec(self._films[0].frame_shape, action or ActionSpec((2,)))
        self.lengths = np.array([len(times) for times in self._times])
        self.is_terminal, self.task = np.zeros(len(self.lengths), bool), np.zeros(len(self.lengths), np.int32)
        self.relevant = np.ones(len(self.lengths), bool)
        self.fingerprint = digest.hexdigest()

    def window(self, episode: int, start: int, length: int, *, frames: bool = True) -> Window:
        components, dims = len(self.spec.action.num_classes), self.spec.action.continuous_dim
        return Window(
            frame=self._frames(episode, start, length) if frames else None,
            latent=None,
            discrete=np.zeros((length, components), np.int32),
            continuous=np.zeros((length, dims), np.float32),
            action_mask=np.zeros(length, bool),
            reward=np.zeros(length, np.float32),
        )

    def _frames(self, episode: int, start: int, length: int) -> UInt8[np.ndarray, "T H W C"]:
        times = self._times[episode]
        first, last = times[start], times[start + length - 1]
        key = self._keys[episode][np.searchsorted(self._keys[episode], first, side="right") - 1]
        frames = []
        with _naming(self._paths[episode]), self._films[episode].opened() as (container, stream):
            container.seek(int(key), stream=stream)
            for frame in container.decode(stream):
                if frame.pts is None or frame.is_corrupt:
                    raise InputError("a frame of it is damaged. Remove it.")
                if frame.pts >= first:
                    frames.append(shown(frame))
                if frame.pts >= last:
                    break
        if len(frames) != length:
            raise InputError(
                f"{self._paths[episode]}: {len(frames)} frames could be decoded from frame {start} on, expected "
                f"{length}. It is damaged; convert it again, or remove it."
            )
        return np.stack(frames)


@contextmanager
def _naming(path: Path):
    """Tells the name of a video with whatever goes wrong in it."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _index(path: Path) -> tuple[Film, np.ndarray, np.ndarray]:
    """Returns a video, and the times of all its frames and of the key frames, ascending."""
    times, keys = [], []
    with _naming(path):
        film = Film(path)
        with film.opened() as (container, stream):
            for packet in container.demux(stream):
                if packet.pts is None:  # the empty one at the end
                    continue
                times.append(packet.pts)
                if packet.is_keyframe:
                    keys.append(packet.pts)
    if not times or not keys or len(set(times)) != len(times):
        raise InputError(f"{path}: its frames have no times of their own, so no place in it can be found. Convert it.")
    return film, np.sort(np.array(times, np.int64)), np.sort(np.array(keys, np.int64))
