"""Frames as people keep them: arrays, videos, animations, folders of images.

`open_footage` looks at what there is without decoding it; `read_frames` decodes one piece, frame by frame. Both raise
`InputError` with the reason alone; the caller knows which file it was.

A video is opened by the format that its suffix names and from an open file. Left to guess, FFmpeg would take a playlist
that calls itself `.mp4` for what it is, and fetch the files and addresses listed in it.
"""

import math
import os
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageSequence

from dreamer4.data.arrays import MAX_BYTES, read_arrays, read_headers
from dreamer4.errors import InputError


IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
VIDEOS = {".mp4": "mov", ".m4v": "mov", ".mov": "mov", ".mkv": "matroska", ".webm": "matroska", ".avi": "avi"}
ANIMATIONS = (".gif",)
SIDECARS = (".npz", ".json", ".csv")  # of labels, beside a video or among images
_MAX_PIXELS = 2**26  # of one frame
_IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
_DIGITS = re.compile(r"(\d+)")
_BROKEN_IMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)

Frame = UInt8[np.ndarray, "H W C"]


@dataclass(frozen=True)
class Footage:
    """The frames of one episode on disk, not decoded yet.

    Attributes:
        path: the file, or the folder of images.
        frame_shape: height, width and channels.
        length: number of frames; None where only decoding tells.
        frames: decodes them in order.
    """

    path: Path
    frame_shape: tuple[int, int, int]
    length: int | None
    frames: Callable[[], Iterator[Frame]]


def is_footage(path: Path) -> bool:
    """Tells whether a path is named like something with frames in it: a folder, or a file of a known kind."""
    return path.is_dir() or (path.is_file() and path.suffix.lower() in (".npz", *ANIMATIONS, *VIDEOS))


def open_footage(path: Path, inside: Callable[[Path], bool]) -> Footage:
    """Looks at the frames of an episode without decoding them.

    Args:
        path: for which `is_footage` is True.
        inside: tells whether a path may be read; one that leads out of the imported folder may not.

    Raises:
        InputError: if there are no frames, or none that can be read.
    """
    suffix = path.suffix.lower()
    if path.is_dir():
        return _open_images(path, inside)
    if suffix == ".npz":
        return _open_array(path)
    return _open_animation(path) if suffix in ANIMATIONS else _open_video(path)


def read_frames(footage: Footage, size: tuple[int, int] | None) -> UInt8[np.ndarray, "T H W C"]:
    """Decodes the frames of an episode.

    Args:
        footage: what to decode.
        size: height and width to resize to by averaging over areas; None keeps the size.

    Raises:
        InputError: if a frame cannot be decoded, is unlike the first one, or if they are too many.
    """
    frames: list[Frame] = []
    for frame in footage.frames():
        if frame.shape != footage.frame_shape:
            raise InputError(f"frame {len(frames)} has shape {frame.shape}, but the first {footage.frame_shape}.")
        frames.append(frame if size is None else resize(frame, size))
        if len(frames) * frames[0].nbytes > MAX_BYTES:
            raise InputError(
                f"its frames have more than {MAX_BYTES} bytes. Cut the episode, or make the frames smaller."
            )
    if not frames:
        raise InputError("it has no frames.")
    return np.stack(frames)


def resize(frame: UInt8[np.ndarray, "H W C"], size: tuple[int, int]) -> UInt8[np.ndarray, "h w C"]:
    """Resizes a frame, each new pixel being the mean of the area it covers.

    Args:
        frame: any number of channels.
        size: new height and width.
    """
    # Channel by channel, since Pillow knows no image of five.
    height, width = size
    planes = [Image.fromarray(p).resize((width, height), Image.Resampling.BOX) for p in np.moveaxis(frame, -1, 0)]
    return np.stack([np.asarray(plane) for plane in planes], axis=-1)


def in_natural_order(paths: list[Path]) -> list[Path]:
    """Sorts paths by name with numbers as numbers, so that `frame10` follows `frame9`."""

    def key(path: Path):
        pieces = _DIGITS.split(path.name)  # text and digits take turns
        return [int(piece) if i % 2 else piece for i, piece in enumerate(pieces)], path.name

    return sorted(paths, key=key)


def _open_array(path: Path) -> Footage:
    headers = read_headers(path)
    if "frame" not in headers:
        raise InputError(f"it has no array named frame; it has {', '.join(headers) or 'none at all'}.")
    dtype, shape = headers["frame"].dtype, headers["frame"].shape
    if dtype != np.uint8:
        raise InputError(f"frame is {dtype}, expected uint8, 0 to 255.")
    if len(shape) not in (3, 4) or 0 in shape:
        raise InputError(f"frame has shape {shape}, expected [T H W] or [T H W C] without a size of 0.")
    height, width, channels = (*shape[1:], 1)[:3]

    def frames() -> Iterator[Frame]:
        skip = tuple(name for name in headers if name != "frame")
        yield from read_arrays(path, skip=skip)["frame"].reshape(shape[0], height, width, channels)

    return Footage(path, (height, width, channels), shape[0], frames)


def _open_images(folder: Path, inside: Callable[[Path], bool]) -> Footage:
    with _refusing():
        entries = [Path(entry.path) for entry in os.scandir(folder) if not entry.name.startswith(".")]
    images = in_natural_order([path for path in entries if path.suffix.lower() in IMAGES])
    known = {*(path.name for path in images), *(f"actions{suffix}" for suffix in SIDECARS)}
    others = [path.name for path in entries if path.name not in known]
    if others:
        raise InputError(f"it holds {others[0]}, which is no image ({', '.join(IMAGES)}). Move it elsewhere.")
    if not images:
        raise InputError("it is a folder without images.")
    if leaving := [path.name for path in images if not inside(path)]:
        raise InputError(f"{leaving[0]} leads out of the imported folder.")

    def frames() -> Iterator[Frame]:
        for path in images:
            with _refusing(f"{path.name}: "), Image.open(path, formats=_IMAGE_FORMATS) as image:
                yield _pixels(image)

    with _refusing(f"{images[0].name}: "), Image.open(images[0], formats=_IMAGE_FORMATS) as image:
        shape = (image.height, image.width, 1 if image.mode in ("1", "L") else 3)
    return Footage(folder, shape, len(images), frames)


def _open_animation(path: Path) -> Footage:
    def frames() -> Iterator[Frame]:
        with _refusing(), Image.open(path, formats=("GIF",)) as image:
            for frame in ImageSequence.Iterator(image):
                yield _pixels(frame.convert("RGB"))

    with _refusing(), Image.open(path, formats=("GIF",)) as image:
        return Footage(path, (image.height, image.width, 3), getattr(image, "n_frames", 1), frames)


def _open_video(path: Path) -> Footage:
    try:
        import av
    except ImportError:
        raise InputError("a video needs PyAV to be read. Run: pip install 'dreamer4-eqx[video]'.") from None

    @contextmanager
    def opened():
        try:
            with path.open("rb") as file, av.open(file, "r", format=VIDEOS[path.suffix.lower()]) as container:
                if not container.streams.video:
                    raise InputError("it has no video in it.")
                stream = container.streams.video[0]
                if not 0 < stream.codec_context.width * stream.codec_context.height <= _MAX_PIXELS:
                    raise InputError(f"its frames have no size, or more than {_MAX_PIXELS} pixels.")
                yield container, stream
        except (av.FFmpegError, OSError) as error:
            raise InputError(f"it cannot be decoded: {error.strerror or error}.") from error

    def frames() -> Iterator[Frame]:
        with opened() as (container, stream):
            for frame in container.decode(stream):
                if frame.is_corrupt:
                    raise InputError("a frame of it is damaged.")
                yield frame.to_ndarray(format="rgb24")

    with opened() as (_, stream):
        shape = (stream.codec_context.height, stream.codec_context.width, 3)
    return Footage(path, shape, None, frames)


def _pixels(image: Image.Image) -> Frame:
    if math.prod(image.size) > _MAX_PIXELS:
        raise InputError(f"it has {image.width} x {image.height} pixels, expected at most {_MAX_PIXELS}.")
    if image.mode[0] in "IF":
        raise InputError(f"its pixels are of kind {image.mode}, expected 8 bits a channel.")
    return np.array(image.convert("L" if image.mode in ("1", "L") else "RGB")).reshape(image.height, image.width, -1)


@contextmanager
def _refusing(prefix: str = "") -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise InputError(f"{prefix}{error}") from error
    except _BROKEN_IMAGE as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"{prefix}it cannot be decoded: {reason or type(error).__name__}.") from error
