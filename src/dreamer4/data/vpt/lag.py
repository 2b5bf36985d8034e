"""Whether the film of a segment and its rows keep step: a turn of the view must move the picture in the same tick."""

import numpy as np
from jaxtyping import Bool, Float, UInt8

from dreamer4.errors import InputError


_LAGS = range(-2, 3)
_FEW, _WEAK = 20, 0.3  # turns, and correlation, below which nothing is told
_CLEAR = 0.2  # by how much another lag must fit better than none, as slow turns look alike from tick to tick
_COLUMNS = 160


def find_lag(
    frames: UInt8[np.ndarray, "N H W C"], turn: Float[np.ndarray, " T"], open_window: Bool[np.ndarray, " T"]
) -> int | None:
    """Returns by how many ticks a film is behind its rows, of -2 to 2; None if too little turns to tell.

    Args:
        frames: in their order, one more than rows.
        turn: by yaw in each row, which the step from that frame to the next should show.
        open_window: rows in which the view does not turn.
    """
    shift = shifts(frames)
    kept = ~open_window
    if len(shift) != len(turn):
        raise InputError(f"find_lag: got {len(frames)} frames and {len(turn)} rows, expected one frame more than rows.")
    found = {}
    for lag in _LAGS:
        row = np.arange(max(0, -lag), len(turn) - max(0, lag))
        row = row[kept[row] & kept[row + lag]]
        x, y = shift[row + lag], turn[row]
        if np.sum(y != 0) < _FEW or not x.std():
            return None
        found[lag] = abs(np.corrcoef(x, y)[0, 1])
    best = max(found, key=lambda lag: found[lag])
    if found[best] < _WEAK:
        return None
    return best if found[best] - found[0] > _CLEAR else 0


def shifts(frames: UInt8[np.ndarray, "N H W C"]) -> Float[np.ndarray, " N-1"]:
    """Returns by how many columns the middle of the picture moves to the left from each frame to the next.

    By phase correlation: of two pictures that differ by a shift, the spectra differ by a phase that grows evenly.
    """
    height, width = frames.shape[1:3]
    step = max(1, width // _COLUMNS)
    band = frames[:, height // 4 : height - height // 4, ::step].mean(axis=-1)
    spectrum = np.fft.rfft(band - band.mean(axis=(1, 2), keepdims=True), axis=2)
    cross = spectrum[:-1] * np.conj(spectrum[1:])
    surface = np.fft.irfft((cross / np.maximum(np.abs(cross), 1e-6)).sum(axis=1), n=band.shape[2], axis=1)
    peak = surface.argmax(axis=1)
    return np.where(peak > band.shape[2] // 2, peak - band.shape[2], peak).astype(np.float64) * step
