"""Videos: which of the streams is the film, how its pictures are to be shown, and whether all of it is there.

A video is opened by the format that its suffix names and from an open file. Left to guess, FFmpeg would take a playlist
that calls itself `.mp4` for what it is, and fetch the files and addresses listed in it.

Errors are `InputError` with the reason alone; the caller knows which file it was.
"""

import os
import struct
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from jaxtyping import UInt8

from dreamer4.errors import InputError


if TYPE_CHECKING:
    from av.video.stream import VideoStream

VIDEOS = {".mp4": "mov", ".m4v": "mov", ".mov": "mov", ".mkv": "matroska", ".webm": "matroska", ".avi": "avi"}
_MAX_PIXELS = 2**26  # of one frame
_STILL = ("mjpeg", "png", "bmp", "gif", "webp")  # codecs of covers
_UNEVEN = 1.5  # times the usual distance of two frames
_NEAR = 1e-3  # seconds, for containers round times to milliseconds
_SEGMENT = b"\x18\x53\x80\x67"

Frame = UInt8[np.ndarray, "H W C"]
T = TypeVar("T")


class Film:
    """A video file. Frames come as players show them: turned and mirrored as the file says, on black where transparent.

    Attributes:
        frame_shape: height, width and three channels.
    """

    def __init__(self, path: Path, fps: float | None = None):
        """Opens a file.

        Args:
            path: the file.
            fps: frames a second that `frames` gives, each the newest shown by then; None: those that are stored.
        """
        try:
            import av
        except ImportError:
            raise InputError("a video needs PyAV to be read. Run: pip install 'dreamer4-eqx[video]'.") from None

        self._path, self._fps = path, fps
        self._errors = (av.FFmpegError, OSError)
        if not path.stat().st_size:
            raise InputError("it is empty: 0 bytes.")
        if missing := _missing_bytes(path):
            raise InputError(f"it is cut short: {missing} bytes that it declares are missing. Copy or record it again.")
        with self.opened() as (container, stream):
            self._warn_of_others(container, stream)
            for frame in container.decode(stream):
                self.frame_shape = shown(frame).shape
                break
            else:
                raise InputError("it has no frames.")

    def frames(self) -> Iterator[Frame]:
        """Yields the frames in order."""
        return map(shown, self._chosen())

    def count(self) -> int:
        """Returns the number of frames, which only decoding tells."""
        return sum(1 for _ in self._chosen())

    def _chosen(self) -> Iterator[Any]:
        return self._stored() if self._fps is None else steadily(self._timed(), self._fps)

    def _stored(self) -> Iterator[Any]:
        times = []
        for time, frame in self._timed():
            times += [] if time is None else [time]
            yield frame
        warn_of_gaps(self._path.name, times)

    def _timed(self) -> Iterator[tuple[float | None, Any]]:
        """Yields when each frame is shown, in seconds if the file tells, and the frame as PyAV has it.

        Raises:
            InputError: if one is damaged, or if there are fewer than the file declares.
        """
        with self.opened() as (container, stream):
            packets, end = 0, 0.0
            for packet in container.demux():
                if packet.pts is not None and packet.time_base is not None:
                    end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
                if packet.stream.index != stream.index:
                    continue
                packets += packet.size > 0
                for frame in packet.decode():
                    if frame.is_corrupt:
                        raise InputError("a frame of it is damaged.")
                    yield frame.time, frame
            check_whole(container, stream, packets, end)

    @contextmanager
    def opened(self) -> "Iterator[tuple[Any, VideoStream]]":
        """Yields the container and the stream that is the film, and tells in words what goes wrong meanwhile."""
        import av

        try:
            with (
                self._path.open("rb") as file,
                av.open(file, "r", format=VIDEOS[self._path.suffix.lower()]) as container,
            ):
                stream = _films(container)[0]
                if not 0 < stream.codec_context.width * stream.codec_context.height <= _MAX_PIXELS:
                    raise InputError(f"its frames have no size, or more than {_MAX_PIXELS} pixels.")
                yield container, stream
        except self._errors as error:
            raise InputError(f"it cannot be decoded: {error.strerror or error}.") from error

    def _warn_of_others(self, container: Any, stream: "VideoStream") -> None:
        others = [other for other in _films(container) if other.index != stream.index]
        if others:
            told = ", ".join(f"{s.index} of {s.codec_context.width} x {s.codec_context.height}" for s in others)
            warnings.warn(
                f"{self._path.name} holds more than one film. Taken is stream {stream.index}, of "
                f"{stream.codec_context.width} x {stream.codec_context.height}; left out: {told}. For another camera, "
                f"copy its stream into a file of its own: ffmpeg -i {self._path.name} -map 0:{others[0].index} -c copy "
                f"other{self._path.suffix}",
                stacklevel=2,
            )
        ratio = stream.codec_context.sample_aspect_ratio
        if ratio and ratio != 1:
            warnings.warn(
                f"{self._path.name}: players show its pixels {ratio} times as wide as high; frames are taken as they "
                "are stored. Give a --size of the right shape if that matters.",
                stacklevel=2,
            )


def warn_of_gaps(name: str, times: Sequence[float]) -> None:
    """Warns of frames of a file that are not evenly spaced, by the times in seconds at which they are shown."""
    gaps = np.diff(np.asarray(times)) if len(times) > 2 else np.zeros(0)
    if len(gaps) and gaps.max() > _UNEVEN * np.median(gaps) + 2e-3:
        at = int(gaps.argmax())
        warnings.warn(
            f"{name}: its frames are not evenly spaced: {np.median(gaps):.3g} s apart as a rule, {gaps[at]:.3g} s "
            f"behind frame {at}. They are taken as steps of one length. To hold each until the next is shown, give "
            "dreamer4 data import the steps a second: --fps 20.",
            stacklevel=2,
        )


def steadily(frames: Iterable[tuple[float | None, T]], fps: float) -> Iterator[T]:
    """Yields the newest frame at each tick of a clock that starts with the first one and stops with the last.

    Args:
        frames: each with the time from which it is shown, in seconds.
        fps: ticks a second.
    """
    held, start, ticks = None, 0.0, 0
    for time, frame in frames:
        if time is None:
            raise InputError("its frames have no times, so they have no place on the clock of --fps. Convert it.")
        if held is None:
            start = time
        while held is not None and ticks / fps < time - start - _NEAR:
            yield held
            ticks += 1
        held = frame
    if held is not None:
        yield held


def _films(container: Any) -> "list[VideoStream]":
    """Returns the streams that hold films: no covers, no thumbnails; those of one picture only if there is no other."""
    from av.stream import Disposition

    cover = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
    films = [stream for stream in container.streams.video if not stream.disposition & cover]
    if not films:
        what = "only a cover picture" if container.streams.video else "no video"
        raise InputError(f"it has {what} in it.")
    moving = [s for s in films if s.frames != 1 and not (s.frames == 0 and s.codec_context.name in _STILL)]
    return moving or films


def check_whole(container: Any, stream: "VideoStream", packets: int, end: float) -> None:
    """Refuses a film with fewer packets than it declares, or that ends, in seconds, before the time it declares."""
    if packets < stream.frames:
        raise InputError(
            f"it holds {packets} frames, but declares {stream.frames}. It is cut short, or lost some. Record it again."
        )
    if container.format.name.startswith("matroska") and container.duration and stream.average_rate:
        missing = container.duration / 1e6 + min((container.start_time or 0) / 1e6, 0) - end
        if missing > max(3 / float(stream.average_rate), 0.1):
            raise InputError(
                f"it ends after {end:.2f} s, but declares {container.duration / 1e6:.2f} s. It is cut short. Copy or "
                "record it again."
            )


def shown(frame: Any) -> Frame:
    """Returns the picture as players show it."""
    layout = frame.format
    if any(component.is_alpha for component in layout.components):
        pixels = frame.to_ndarray(format="rgba")
        pixels = on_black(pixels)
    else:
        pixels = frame.to_ndarray(format="rgb24")
    matrix = frame.side_data.get("DISPLAYMATRIX")
    return pixels if matrix is None else _turned(pixels, bytes(matrix))


def on_black(pixels: UInt8[np.ndarray, "H W C"]) -> UInt8[np.ndarray, "H W c"]:
    """Returns a picture on black ground, without its last channel, which tells how opaque each pixel is."""
    colour, alpha = pixels[..., :-1].astype(np.uint16), pixels[..., -1:].astype(np.uint16)
    return ((colour * alpha + 127) // 255).astype(np.uint8)


def _turned(pixels: Frame, matrix: bytes) -> UInt8[np.ndarray, "h w C"]:
    """Returns a view under a display matrix of nine 32-bit integers: x' = a x + c y, y' = b x + d y, in 1/65536."""
    values = struct.unpack("=9i", matrix[:36])
    a, b, c, d = (round(values[i] / 65536) for i in (0, 1, 3, 4))
    if (abs(a), abs(b), abs(c), abs(d)) not in ((1, 0, 0, 1), (0, 1, 1, 0)):
        raise InputError("it is to be shown turned by another angle than a multiple of 90 degrees. Encode it upright.")
    if a == 0:
        pixels, a, d = np.swapaxes(pixels, 0, 1), c, b
    return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def _missing_bytes(path: Path) -> int:
    """Returns by how much a Matroska file is shorter than its outermost element claims; 0 for other formats."""
    with path.open("rb") as file:
        head = file.read(4096)
    at = head.find(_SEGMENT) if head[:4] == b"\x1a\x45\xdf\xa3" else -1
    if at < 0 or at + 5 > len(head):
        return 0
    begin = at + 4
    width = 9 - head[begin].bit_length()  # leading zeros tell how many bytes the size has
    size = int.from_bytes(head[begin : begin + width], "big") & ((1 << 7 * width) - 1)
    if not 1 <= width <= 8 or size == (1 << 7 * width) - 1:  # of unknown length, as streams are written
        return 0
    return max(begin + width + size - os.stat(path).st_size, 0)
