"""How close frames are: peak signal-to-noise ratio, structural similarity, and frames that are exactly right.

Frames are uint8 (0 to 255) or floating point (0 to 1); both sides are brought to [0, 1] in float64, on the host.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from dreamer4.errors import InputError


Frames = UInt8[Array | np.ndarray, "*batch H W C"] | Float[Array | np.ndarray, "*batch H W C"]


def psnr(prediction: Frames, target: Frames) -> float:
    """Returns the peak signal-to-noise ratio in dB, of the squared error averaged over all frames; inf if equal."""
    error = float(np.mean((unit(prediction) - unit(target)) ** 2))
    return float("inf") if error == 0 else float(-10 * np.log10(error))


def squared_errors(prediction: Frames, target: Frames) -> Float[np.ndarray, "*batch"]:
    """Returns the squared error of each frame, averaged over its pixels."""
    return np.asarray(np.mean((unit(prediction) - unit(target)) ** 2, axis=(-3, -2, -1)))


def ssim(prediction: Frames, target: Frames, *, window: int = 7) -> float:
    """Returns the structural similarity averaged over frames, as `frame_ssim` has it."""
    return float(np.mean(frame_ssim(prediction, target, window=window)))


def frame_ssim(prediction: Frames, target: Frames, *, window: int = 7) -> Float[np.ndarray, "*batch"]:
    """Returns the structural similarity (Wang et al., 2004) of each frame, averaged over positions and channels.

    It is 1 where frames are equal.

    Means and covariances are taken over square windows with equal weights, wherever a window fits in whole.

    Args:
        prediction: frames to judge.
        target: frames as they should be.
        window: side of the window in pixels, odd. Frames smaller than that get the largest odd window that fits.

    Raises:
        InputError: if `window` is even or below 3, or frames are smaller than 3 pixels.
    """
    x, y = unit(prediction), unit(target)
    fitting = min(window, *((side - 1) // 2 * 2 + 1 for side in x.shape[-3:-1]))
    if window % 2 == 0 or fitting < 3:
        raise InputError(
            f"ssim: got window {window} for frames of {x.shape[-3]}x{x.shape[-2]} pixels, expected an odd "
            "window and at least 3 pixels."
        )
    mean_x, mean_y = _local_mean(x, fitting), _local_mean(y, fitting)
    # Sample covariance: divides by n - 1.
    unbiased = fitting**2 / (fitting**2 - 1)
    var_x = unbiased * (_local_mean(x * x, fitting) - mean_x**2)
    var_y = unbiased * (_local_mean(y * y, fitting) - mean_y**2)
    covariance = unbiased * (_local_mean(x * y, fitting) - mean_x * mean_y)
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return np.asarray(np.mean(similarity / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)), axis=(-3, -2, -1)))


def matching_frames(prediction: Frames, target: Frames, levels: Sequence[float]) -> Bool[np.ndarray, "*batch"]:
    """Returns for each frame whether all its pixels are right after rounding to the nearest of `levels`.

    Args:
        prediction: frames to judge.
        target: frames as they should be.
        levels: the values a pixel can have, in [0, 1]; for Catch 0 and 1.

    Raises:
        InputError: if there are fewer than two levels.
    """
    if len(levels) < 2:
        raise InputError(f"exact frames: got levels {tuple(levels)}, expected at least two.")
    ordered = np.sort(np.asarray(levels, np.float64))
    middles = (ordered[1:] + ordered[:-1]) / 2
    same = np.searchsorted(middles, unit(prediction)) == np.searchsorted(middles, unit(target))
    return np.asarray(same.all(axis=(-3, -2, -1)))


def exact_frames(prediction: Frames, target: Frames, levels: Sequence[float]) -> float:
    """Returns the share of frames that `matching_frames` finds right, 0 to 1."""
    return float(matching_frames(prediction, target, levels).mean())


def unit(frames: Frames) -> Float[np.ndarray, "*batch H W C"]:
    """Returns frames in [0, 1], on the host."""
    array = np.asarray(frames)
    return array / 255.0 if array.dtype == np.uint8 else array.astype(np.float64)


def _local_mean(images: Float[np.ndarray, "*batch H W C"], window: int) -> Float[np.ndarray, "*batch h w C"]:
    windows = np.lib.stride_tricks.sliding_window_view(images, (window, window), axis=(-3, -2))
    return windows.mean(axis=(-2, -1))
