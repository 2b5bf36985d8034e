"""Frames as people keep them: arrays, videos, animations, folders of images.

`open_footage` looks at what there is without decoding it; `read_frames` decodes one piece, frame by frame. Both raise
`InputError` with the reason alone; the caller knows which file it was.

Pictures come as viewers show them: turned as the file says, and on black where they are transparent.
"""

import functools
import math
import os
import struct
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, ImageSequence

from dreamer4.data.arrays import MAX_BYTES, read_arrays, read_headers
from dreamer4.data.film import VIDEOS, Film, Frame, on_black, steadily, warn_of_gaps
from dreamer4.data.order import alike, in_natural_order, lost_numbers
from dreamer4.errors import InputError


IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
ANIMATIONS = (".gif",)
SIDECARS = (".npz", ".json", ".csv")  # of labels, beside a video or among images
_MAX_PIXELS = 2**26  # of one frame
_LARGE = 512  # pixels of a side
_IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
_GREY = ("1", "L", "LA", "La")
_ORIENTATION, _LYING = 0x0112, (5, 6, 7, 8)  # of EXIF: values that exchange height and width
_BROKEN_IMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
# First size and the least of the others by which frames are taken for channels first.
_CHANNELS, _LEAST_SIDE, _MANY_CHANNELS = (1, 3, 4), 8, 16
_RAW = {
    (".h5", ".hdf5", ".parquet", ".arrow", ".npy", ".zarr", ".mcap", ".bag", ".pkl", ".pickle", ".pt"): (
        "of a kind that is not read. Write each episode as NAME.npz with numpy.savez: frame, action, reward"
    ),
    (".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".3gp", ".ogv"): (
        "a video of a kind that is not read. Copy it into another container: ffmpeg -i IN -c copy OUT.mkv"
    ),
    (".zip", ".tar", ".gz", ".xz", ".zst", ".7z", ".rar"): "an archive. Unpack it, one file or sub-folder per episode",
    (".jsonl", ".csv", ".json", ".tsv"): (
        "a table, and no labels of an episode: those of NAME.mp4 are named NAME.actions.csv, .json or .npz, with "
        "columns such as action and reward"
    ),
    IMAGES: "a single picture. Put the pictures of each episode into a folder of their own",
}


@dataclass(frozen=True)
class Footage:
    """The frames of one episode on disk, not decoded yet.

    Attributes:
        path: the file, or the folder of images.
        frame_shape: height, width and channels.
        length: number of frames; None where only decoding tells.
        frames: decodes them in order; grey ones among coloured ones have a single channel.
        counts: counts them by decoding, where that is faster than by `frames`.
    """

    path: Path
    frame_shape: tuple[int, int, int]
    length: int | None
    frames: Callable[[], Iterator[Frame]]
    counts: Callable[[], int] | None = None

    def count(self) -> int:
        """Returns the number of frames, which takes decoding."""
        return sum(1 for _ in self.frames()) if self.counts is None else self.counts()


def is_footage(path: Path) -> bool:
    """Tells whether a path is named like something with frames in it: a folder, or a file of a known kind."""
    return path.is_dir() or (path.is_file() and path.suffix.lower() in (".npz", *ANIMATIONS, *VIDEOS))


def tell_other(path: Path) -> str:
    """Returns what an entry is that is no footage, and what to do about it."""
    suffix = path.suffix.lower()
    what = next((words for suffixes, words in _RAW.items() if suffix in suffixes), None)
    if what is None and ".tfrecord" in path.name:
        what = next(iter(_RAW.values()))
    if what is None:
        what = "no episode: expected .npz, a video, .gif or a folder of images. Move it away"
    return f"it is {what}."


def open_footage(path: Path, inside: Callable[[Path], bool], fps: float | None = None) -> Footage:
    """Looks at the frames of an episode without decoding them.

    Args:
        path: for which `is_footage` is True.
        inside: tells whether a path may be read; one that leads out of the imported folder may not.
        fps: frames a second, of videos and animations, each the newest shown by then; None: those that are stored.

    Raises:
        InputError: if there are no frames, or none that can be read.
    """
    suffix = path.suffix.lower()
    if path.is_dir():
        return _open_images(path, inside)
    if suffix == ".npz":
        return _open_array(path)
    if suffix in ANIMATIONS:
        return _open_animation(path, fps)
    film = Film(path, fps)
    return Footage(path, film.frame_shape, None, film.frames, film.count)


def read_frames(footage: Footage, size: tuple[int, int] | None, channels: int) -> UInt8[np.ndarray, "T H W C"]:
    """Decodes the frames of an episode at once; arguments and errors are those of `read_pieces`."""
    return next(read_pieces(footage, size, channels, ()))


def read_pieces(
    footage: Footage, size: tuple[int, int] | None, channels: int, lengths: Iterable[int]
) -> Iterator[UInt8[np.ndarray, "T H W C"]]:
    """Decodes the frames of an episode, a piece at a time.

    Args:
        footage: what to decode.
        size: height and width to resize to by averaging over areas; None keeps the size.
        channels: of the frames returned; grey ones become coloured ones of three alike.
        lengths: frames of each piece but the last, which has the rest.

    Raises:
        InputError: if a frame cannot be decoded, is unlike the first one, or if they are too many for one piece.
    """
    lengths = iter(lengths)
    full = next(lengths, None)
    # One block that grows at its end. Small frames kept one by one would lie between large ones that are freed, and
    # leave holes that no later one fits into: a long film would take as much memory as its frames before resizing.
    pixels, count, shape = bytearray(), 0, footage.frame_shape

    def piece() -> UInt8[np.ndarray, "T H W C"]:
        return np.frombuffer(pixels, np.uint8).reshape(count, *(size or shape[:2]), channels)

    for frame in footage.frames():
        if count == full:
            yield piece()
            pixels, count, full = bytearray(), 0, next(lengths, None)
        if frame.shape[:2] != shape[:2] or frame.shape[2] not in (1, shape[2]):
            raise InputError(f"frame {count} has shape {frame.shape}, but the first {shape}.")
        frame = frame if size is None else resize(frame, size)
        pixels += np.broadcast_to(frame, (*frame.shape[:2], channels)).tobytes()
        count += 1
        if len(pixels) > MAX_BYTES:
            raise InputError(
                f"its frames have more than {MAX_BYTES} bytes. Cut it into episodes, such as of 1000 frames with --cut "
                "1000, or make the frames smaller with --size."
            )
    if not count:
        raise InputError("it has no frames.")
    yield piece()


def resize(frame: UInt8[np.ndarray, "H W C"], size: tuple[int, int]) -> UInt8[np.ndarray, "h w C"]:
    """Resizes a frame, each new pixel being the mean of the area it covers.

    Args:
        frame: any number of channels.
        size: new height and width.
    """
    _warn_of_turn(*frame.shape[:2], tuple(size))
    # A turned frame is a view: resized as it lies in memory, it is turned when it is small, many times faster.
    flipped = tuple(axis for axis in (0, 1) if frame.strides[axis] < 0)
    frame = np.flip(frame, flipped)
    turned = frame.strides[0] < frame.strides[1]
    lying = np.swapaxes(frame, 0, 1) if turned else frame
    width_height = size if turned else (size[1], size[0])
    # Colours at once, else channel by channel, since Pillow knows no image of five.
    planes = [lying] if frame.shape[2] == 3 else np.moveaxis(lying, -1, 0)
    resized = [np.asarray(Image.fromarray(plane).resize(width_height, Image.Resampling.BOX)) for plane in planes]
    small = resized[0] if frame.shape[2] == 3 else np.stack(resized, axis=-1)
    return np.flip(np.swapaxes(small, 0, 1) if turned else small, flipped)


@functools.cache
def _warn_of_turn(height: int, width: int, size: tuple[int, int]) -> None:
    """Warns, once for frames of a shape, of a size that makes lying frames upright or upright ones lie."""
    if (height - width) * (size[0] - size[1]) < 0:
        warnings.warn(
            f"The size {size[0]}x{size[1]} is height x width, and squeezes frames of {height} x {width} into another "
            f"shape. If the width was put first, it is {size[1]}x{size[0]}.",
            stacklevel=3,
        )


def fitting_size(shape: tuple[int, ...]) -> str:
    """Returns the option that makes frames small, of about their shape, with sides that patches of 4 divide."""
    height, width = (max(round(16 * side / max(shape[:2])), 1) * 4 for side in shape[:2])
    return f"--size {height}x{width}"


def warn_of_large(source: Path, shape: tuple[int, ...]) -> None:
    """Warns of frames so large that a model on one machine learns little of them."""
    if max(shape[:2]) > _LARGE:
        warnings.warn(
            f"{source}: frames are kept at {shape[0]} x {shape[1]}, of which a model of the size that fits one machine "
            f"learns little. Stop, and give a size: {fitting_size(shape)}.",
            stacklevel=4,
        )


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
    _check_axes(path, shape)

    def frames() -> Iterator[Frame]:
        skip = tuple(name for name in headers if name != "frame")
        yield from read_arrays(path, skip=skip)["frame"].reshape(shape[0], height, width, channels)

    return Footage(path, (height, width, channels), shape[0], frames)


def _check_axes(path: Path, shape: tuple[int, ...]) -> None:
    """Refuses frames whose axes are plainly in another order, and warns where they may be."""
    if len(shape) == 4 and shape[1] in _CHANNELS and shape[3] not in _CHANNELS:
        told = f"frame has shape {shape}, which reads as {shape[3]} channels of {shape[1]} x {shape[2]} pixels"
        mend = "numpy.moveaxis(frame, 1, -1) puts the channels last."
        if min(shape[2:]) >= _LEAST_SIDE:
            raise InputError(f"{told}, but looks like {shape[1]} channels first; expected [T H W C]. {mend}")
        warnings.warn(f"{path.name}: {told}. If the channels come first, {mend}", stacklevel=2)
    elif len(shape) == 4 and shape[3] >= _MANY_CHANNELS:
        warnings.warn(
            f"{path.name}: frame has shape {shape}, which reads as {shape[3]} channels. Expected is [T H W C].",
            stacklevel=2,
        )
    elif len(shape) == 3 and shape[2] in (3, 4) and min(shape[:2]) >= _LEAST_SIDE:
        warnings.warn(
            f"{path.name}: frame has shape {shape}, which reads as {shape[0]} grey frames of {shape[1]} x {shape[2]} "
            "pixels. If it is one coloured picture, store the frames of the episode as [T H W C].",
            stacklevel=2,
        )


def _open_images(folder: Path, inside: Callable[[Path], bool]) -> Footage:
    with _refusing():
        entries = [Path(entry.path) for entry in os.scandir(folder) if not entry.name.startswith(".")]
    images = in_natural_order([path for path in entries if path.suffix.lower() in IMAGES])
    known = {path.name for path in images}
    others = sorted(
        (path for path in entries if path.name not in known and not _is_labels(path)), key=lambda path: path.name
    )
    if others:
        raise InputError(_tell_of_folder(folder, others[0]))
    if not images:
        raise InputError("it is a folder without images.")
    if leaving := [path.name for path in images if not inside(path)]:
        raise InputError(f"{leaving[0]} leads out of the imported folder.")

    if twins := alike(images):
        raise InputError(
            f"{twins[0].name} and {twins[1].name} have one name or number, so which comes first is not told. Move one "
            "away if they are one picture, else number all in one way."
        )
    if lost := lost_numbers(images):
        warnings.warn(
            f"{folder.name}: the numbers jump from {lost[0].name} to {lost[1].name}. If a picture got lost there, what "
            "follows it is no longer one step, and labels may belong to other frames.",
            stacklevel=2,
        )

    def frames() -> Iterator[Frame]:
        for path in images:
            with _refusing(f"{path.name}: "), Image.open(path, formats=_IMAGE_FORMATS) as image:
                if image.format != "MPO" and getattr(image, "is_animated", False):
                    raise InputError("it holds several pictures, expected one. Store each in a file of its own.")
                yield pixels_of(image)

    shapes = []
    for path in images:
        with _refusing(f"{path.name}: "), Image.open(path, formats=_IMAGE_FORMATS) as image:
            # Asked for what it may hold behind its pixels, a PNG would decode them.
            told = image.format != "PNG" or "exif" in image.info
            turned = told and image.getexif().get(_ORIENTATION, 1) in _LYING
            shapes.append((*(image.size if turned else image.size[::-1]), 1 if image.mode in _GREY else 3))
    return Footage(folder, (*shapes[0][:2], max(shape[2] for shape in shapes)), len(images), frames)


def _is_labels(path: Path) -> bool:
    return path.stem == "actions" and path.suffix.lower() in SIDECARS


def _tell_of_folder(folder: Path, other: Path) -> str:
    if (folder / "meta" / "info.json").is_file() or folder.name == "meta":
        return "it is part of a LeRobot data set, whose folders are no episodes. Give each episode a file of its own."
    if (folder / "dataset.json").is_file():
        return "it is a data set, not an episode to import. Move it out of this folder."
    if other.is_dir() or is_footage(other):
        return (
            f"it holds {other.name}, and a sub-folder is one episode of images. Import the folder "
            f"{folder.name} itself, or move its episodes up."
        )
    if other.stem == "actions" or other.suffix.lower() in SIDECARS:
        return f"it holds {other.name}, which is no image. Labels are named actions.csv, .json or .npz there."
    return f"it holds {other.name}, which is no image ({', '.join(IMAGES)}). Move it elsewhere."


def _open_animation(path: Path, fps: float | None) -> Footage:
    def timed() -> Iterator[tuple[float, Frame]]:
        time = 0.0
        with _refusing(), Image.open(path, formats=("GIF",)) as image:
            for frame in ImageSequence.Iterator(image):
                yield time, on_black(np.array(frame.convert("RGBA")))
                time += frame.info.get("duration", 0) / 1e3

    def stored() -> Iterator[Frame]:
        times = []
        for time, frame in timed():
            times.append(time)
            yield frame
        warn_of_gaps(path.name, times)  # which is what is left of frames that were alike

    def frames() -> Iterator[Frame]:
        return stored() if fps is None else steadily(timed(), fps)

    with _refusing(), Image.open(path, formats=("GIF",)) as image:
        length = getattr(image, "n_frames", 1) if fps is None else None
        return Footage(path, (image.height, image.width, 3), length, frames)


def pixels_of(image: Image.Image) -> Frame:
    """Returns an opened picture as viewers show it; a grey one has one channel.

    Raises:
        InputError: if it is too large, or its pixels have more than 8 bits, with the reason alone.
    """
    if math.prod(image.size) > _MAX_PIXELS:
        raise InputError(f"it has {image.width} x {image.height} pixels, expected at most {_MAX_PIXELS}.")
    if image.mode[0] in "IF":
        raise InputError(f"its pixels are of kind {image.mode}, expected 8 bits a channel.")
    grey = image.mode in _GREY
    seen = ImageOps.exif_transpose(image)
    if seen.has_transparency_data:
        return on_black(np.array(seen.convert("LA" if grey else "RGBA")))
    return np.array(seen.convert("L" if grey else "RGB")).reshape(seen.height, seen.width, -1)


@contextmanager
def _refusing(prefix: str = "") -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise InputError(f"{prefix}{error}") from error
    except _BROKEN_IMAGE as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"{prefix}it cannot be decoded: {reason or type(error).__name__}.") from error
