"""Pictures inside tables and arrays, as frames."""

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dreamer4.data.footage import pixels_of, resize
from dreamer4.errors import InputError


_CHANNELS = (1, 3)


def decode(data: bytes) -> UInt8[np.ndarray, "H W C"]:
    """Returns the picture of a PNG or JPEG file as viewers show it; a grey one has one channel.

    Raises:
        InputError: if it cannot be decoded, with the reason alone.
    """
    try:
        return pixels_of(Image.open(io.BytesIO(data), formats=("PNG", "JPEG")))
    except InputError as error:
        raise InputError(f"a picture in it cannot be taken: {error}") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"a picture in it cannot be decoded: {error}.") from error


def channels_last(frames: UInt8[np.ndarray, "N ..."]) -> UInt8[np.ndarray, "N H W C"]:
    """Returns frames with their channels behind: grey ones get that axis, those with channels first are turned.

    Raises:
        InputError: if they have no shape of pictures, with the reason alone.
    """
    if frames.ndim == 3:
        frames = frames[..., None]
    if frames.ndim != 4 or not (frames.shape[-1] in _CHANNELS or frames.shape[1] in _CHANNELS):
        raise InputError(f"its frames have shape {frames.shape[1:]}, expected height, width and 1 or 3 channels.")
    return frames if frames.shape[-1] in _CHANNELS else np.ascontiguousarray(np.moveaxis(frames, 1, -1))


def shrink(frames: UInt8[np.ndarray, "T H W C"], size: tuple[int, int] | None) -> UInt8[np.ndarray, "T h w C"]:
    """Returns frames averaged to a height and width; None: as they are."""
    return frames if size is None else np.stack([resize(frame, size) for frame in frames])


def spaced(number: int) -> list[int]:
    """Returns which of a number of frames a fingerprint looks at: evenly spaced ones, since it cannot read all."""
    return np.unique(np.linspace(0, number - 1, 64).astype(int)).tolist()
