"""Pictures of frames: colours, enlargement, comparison, and the bytes of PNG and GIF files.

Everything here takes uint8 frames of any number of channels and lives on the host. Pixels are enlarged, never blended:
a pixel of an environment is a fact.
"""

import io
import itertools
import struct
from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, UInt8
from PIL import Image
from PIL.GifImagePlugin import getdata

from dreamer4.envs.render import render
from dreamer4.errors import InputError


# The ground that pictures stand on, in a light page and in a dark one.
GROUND = (17, 19, 23)
_EDGE = (58, 62, 70)
_CONTEXT = (120, 126, 136)
RIGHT = (45, 190, 165)
WRONG = (240, 90, 80)
_ENDLESS = b"!\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00"  # as every browser understands it in a GIF


def fitting_scale(frame_shape: Sequence[int], side: int = 128) -> int:
    """Returns the side of the square that a pixel becomes, such that the longer side of a frame is about `side`."""
    return max(1, round(side / max(frame_shape[:2])))


def to_rgb(frames: UInt8[Array | np.ndarray, "T H W C"], *, scale: int = 1) -> UInt8[np.ndarray, "T sH sW 3"]:
    """Returns frames of any number of channels as RGB, each pixel a square of `scale` pixels."""
    return np.asarray(jax.vmap(partial(render, scale=scale))(jnp.asarray(frames)))


def png(image: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """Returns the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def gif(frames: Iterable[UInt8[np.ndarray, "H W 3"]], *, fps: float) -> bytes:
    """Returns the bytes of an endless GIF file; colours are exact if there are at most 256 of them in a frame.

    Args:
        frames: at least one; they are taken one after the other, and no more than two of them are held.
        fps: frames per second; GIF counts in hundredths of a second and browsers show at most 50.

    Raises:
        InputError: if there is no frame, or `fps` is not between 0 and 50.
    """
    rest = iter(frames)
    first = next(rest, None)
    if first is None or not 0 < fps <= 50:
        count = "no frame" if first is None else "frames"
        raise InputError(f"gif: got {count} at {fps} frames/s, expected at least 1 frame and 0 < fps <= 50.")
    buffer = io.BytesIO()
    # Frame by frame: Pillow would keep them all to the end of the film.
    buffer.write(b"GIF89a" + struct.pack("<HHBBB", first.shape[1], first.shape[0], 0x70, 0, 0) + _ENDLESS)
    duration = 10 * round(100 / fps)
    frame, (top, bottom, left, right) = first, (0, first.shape[0], 0, first.shape[1])
    while frame is not None:
        part = Image.fromarray(frame[top:bottom, left:right])
        colours = min(256, part.width * part.height)
        part = part.convert("P", palette=Image.Palette.ADAPTIVE, colors=colours)
        for piece in getdata(part, (left, top), duration=duration, include_color_table=True):
            buffer.write(piece)
        previous, frame = frame, next(rest, None)
        if frame is not None:
            top, bottom, left, right = _changed(previous, frame)
    buffer.write(b";")
    return buffer.getvalue()


def _changed(before: UInt8[np.ndarray, "H W 3"], after: UInt8[np.ndarray, "H W 3"]) -> tuple[int, int, int, int]:
    """Returns top, bottom, left and right of the least rectangle, of one pixel at least, in which two frames differ."""
    differs = (before != after).any(axis=-1)
    if not differs.any():
        return 0, 1, 0, 1
    rows, columns = np.flatnonzero(differs.any(axis=1)), np.flatnonzero(differs.any(axis=0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def mp4(frames: Iterable[UInt8[np.ndarray, "H W 3"]], *, fps: float) -> bytes:
    """Returns the bytes of an MP4 file (H.264) that any player shows; colours are close, not exact.

    Args:
        frames: at least one, with even sides, taken one after the other. Colour is kept for every second pixel only, so
            enlarge small frames.
        fps: frames per second, at most 240.

    Raises:
        InputError: if PyAV is not installed, there is no frame, a side is odd, or `fps` is not as it must be.
    """
    rest = iter(frames)
    first = next(rest, None)
    if first is None or first.shape[0] % 2 or first.shape[1] % 2 or not 0 < fps <= 240:
        count = "no frame" if first is None else f"frames of {first.shape[0]} x {first.shape[1]} pixels"
        raise InputError(
            f"mp4: got {count} at {fps} frames/s, expected at least 1 frame, even sides, and 0 < fps <= 240."
        )
    try:
        import av
    except ImportError:
        raise InputError("mp4: needs PyAV. Run: pip install 'dreamer4-eqx[video]', or choose GIF.") from None
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.height, stream.width, stream.pix_fmt = first.shape[0], first.shape[1], "yuv420p"
        stream.options = {"crf": "14", "preset": "veryfast"}
        for frame in itertools.chain([first], rest):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def film_strip(
    frames: UInt8[np.ndarray, "T H W 3"], *, borders: Sequence[tuple[int, int, int]] | None = None, width: int = 2
) -> UInt8[np.ndarray, "h w 3"]:
    """Returns the frames in one row, each with a border of `width` pixels in its colour (grey if none are given)."""
    colours = borders or [_EDGE] * len(frames)
    framed = [_framed(_framed(f, c, width), GROUND, width) for f, c in zip(frames, colours, strict=True)]
    return np.concatenate(framed, axis=1)


def contact_sheet(rows: Sequence[UInt8[np.ndarray, "T H W 3"]], *, width: int = 2) -> UInt8[np.ndarray, "h w 3"]:
    """Returns several film strips of equal size below each other; for reconstructions: original, masked, result."""
    return np.concatenate([film_strip(row, width=width) for row in rows], axis=0)


def frame_colours(
    truth: UInt8[Array | np.ndarray, "T H W C"], dream: UInt8[Array | np.ndarray, "T H W C"], context_length: int
) -> list[tuple[int, int, int]]:
    """Returns a colour per frame: grey for given context, green where dream and truth look alike, red where not."""
    differs = np.asarray(differing(truth, dream).any(axis=(1, 2)))
    return [_CONTEXT if t < context_length else WRONG if wrong else RIGHT for t, wrong in enumerate(differs)]


def side_by_side(
    truth: UInt8[Array | np.ndarray, "T H W C"],
    dream: UInt8[Array | np.ndarray, "T H W C"],
    *,
    context_length: int,
    scale: int = 1,
) -> UInt8[np.ndarray, "T h w 3"]:
    """Returns an animation of three panels: the truth, the dream, and the truth dimmed with differing pixels in red.

    The dream's border and a timeline below have the colours of `frame_colours`.

    Args:
        truth: frames of the real environment.
        dream: frames of the world model for the same actions.
        context_length: number of first frames that the model was given.
        scale: side of the square that a pixel becomes.
    """
    colours = frame_colours(truth, dream, context_length)
    real, imagined = to_rgb(truth, scale=scale), to_rgb(dream, scale=scale)
    wrong = np.repeat(np.repeat(differing(truth, dream), scale, axis=1), scale, axis=2)
    difference = np.where(wrong[..., None], np.array(WRONG, np.uint8), real // 4)
    border = max(2, scale // 4)
    panels = []
    for t, colour in enumerate(colours):
        pictures = [(real[t], _CONTEXT), (imagined[t], colour), (difference[t], _CONTEXT)]
        row = np.concatenate([_framed(_framed(p, c, border), GROUND, border) for p, c in pictures], axis=1)
        panels.append(np.concatenate([row, _timeline(colours, t, row.shape[1], border)], axis=0))
    return np.stack(panels).astype(np.uint8)


def marked(
    truth: UInt8[Array | np.ndarray, "T H W C"], dream: UInt8[Array | np.ndarray, "T H W C"], *, scale: int = 1
) -> UInt8[np.ndarray, "T sH sW 3"]:
    """Returns the dream with every pixel that differs from the truth tinted red, dark ones as dark ones."""
    imagined = to_rgb(dream)
    tinted = (0.35 * imagined + 0.65 * np.array(WRONG)).astype(np.uint8)
    picture = np.where(differing(truth, dream)[..., None], tinted, imagined)
    return np.repeat(np.repeat(picture, scale, axis=1), scale, axis=2)


def differing(
    truth: UInt8[Array | np.ndarray, "*T H W C"], dream: UInt8[Array | np.ndarray, "*T H W C"]
) -> Bool[np.ndarray, "*T H W"]:
    """Returns the pixels in which two frames differ by more than half the range, in any channel."""
    # Half the range: what a person would call another pixel, and the rounding of environments with two levels.
    distance = np.abs(np.asarray(truth, np.int16) - np.asarray(dream, np.int16))
    return np.asarray((distance > 127).any(axis=-1))


def _framed(image: UInt8[np.ndarray, "H W 3"], colour: tuple[int, int, int], width: int) -> UInt8[np.ndarray, "h w 3"]:
    framed = np.empty((image.shape[0] + 2 * width, image.shape[1] + 2 * width, 3), np.uint8)
    framed[:] = colour
    framed[width : width + image.shape[0], width : width + image.shape[1]] = image
    return framed


def _timeline(colours: Sequence[tuple[int, int, int]], now: int, width: int, border: int) -> UInt8[np.ndarray, "h w 3"]:
    """Returns a bar with a cell per frame: those still to come are dim."""
    bar = np.empty((4 * border, width, 3), np.uint8)
    bar[:] = GROUND
    edges = np.linspace(border, width - border, len(colours) + 1).round().astype(int)
    for t, colour in enumerate(colours):
        right = max(edges[t] + 1, edges[t + 1] - 1)
        bar[border : 3 * border, edges[t] : right] = colour if t <= now else np.array(colour) // 4
    return bar
