"""A film of which any stretch of frames can be decoded."""

from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from dreamer4.data.film import Film, check_whole, shown, warn_of_gaps
from dreamer4.errors import InputError


class IndexedFilm:
    """Decodes stretches of a film from the key frame before them.

    When it is opened its packets are listed, not decoded: times of the frames in the order they are shown in, and which
    are key frames. Of an hour at 20 frames a second that is less than 1 MB.

    Attributes:
        path: the file.
        frame_shape: height, width and three channels.
        rate: frames a second, by the usual distance of two.
    """

    def __init__(self, path: Path):
        """Lists the frames of a film.

        Raises:
            InputError: if it cannot be read.
        """
        self.path = path
        times, keys, packets, end = [], [], 0, 0.0
        with self._naming():
            self._film = Film(path)
            with self._film.opened() as (container, stream):
                for packet in container.demux():
                    if packet.pts is None:  # the empty one at the end
                        continue
                    end = max(end, float((packet.pts + (packet.duration or 0)) * (packet.time_base or 0)))
                    if packet.stream.index != stream.index:
                        continue
                    packets += packet.size > 0
                    times.append(packet.pts)
                    if packet.is_keyframe:
                        keys.append(packet.pts)
                check_whole(container, stream, packets, end)
                unit = float(stream.time_base or 0)
            if not times or not keys or len(set(times)) != len(times):
                raise InputError("its frames have no times of their own, so no place in it can be found. Convert it.")
        self.frame_shape = self._film.frame_shape
        self._times, self._keys = np.sort(np.array(times, np.int64)), np.sort(np.array(keys, np.int64))
        gap = float(np.median(np.diff(self._times))) * unit if len(times) > 1 else 0.0
        self.rate = 1 / gap if gap else 0.0
        self._unit = unit

    def warn_of_gaps(self) -> None:
        """Warns if the frames are not evenly spaced."""
        warn_of_gaps(self.path.name, (self._times * self._unit).tolist())

    def __len__(self) -> int:
        return len(self._times)

    def frames(self, start: int, length: int) -> UInt8[np.ndarray, "T H W C"]:
        """Decodes frames.

        Args:
            start: the first.
            length: how many, which the film has from there on.

        Raises:
            InputError: if one is damaged, or if fewer can be decoded.
        """
        first, last = self._times[start], self._times[start + length - 1]
        key = self._keys[np.searchsorted(self._keys, first, side="right") - 1]
        frames = []
        with self._naming(), self._film.opened() as (container, stream):
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
                    f"{len(frames)} frames could be decoded from frame {start} on, expected {length}. It is damaged; "
                    "convert it again, or remove it."
                )
        return np.stack(frames)

    @contextmanager
    def _naming(self):
        """Tells the name of the film with whatever goes wrong in it."""
        try:
            yield
        except InputError as error:
            raise InputError(f"{self.path}: {error}") from error
