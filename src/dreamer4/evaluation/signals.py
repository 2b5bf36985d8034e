"""Warnings that need no truth: what a dream shows of its own errors while it is dreamt.

- Decode-encode residual: a dreamt latent that is the code of no frame changes when it is decoded and encoded again.
- Late movement: a prediction that still changes in the second half of its denoise passes was not settled.
- Disagreement: where dreams of the same context and actions differ with their noise, most of them must be wrong.

How much each is worth is measured where the truth is known, as the rank correlation with the true error of each frame.
Errors and warnings both grow along a dream, so it is given over all frames, and over frames of equal depth.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float

from dreamer4.evaluation.statistics import rank_correlation


PerFrame = Float[np.ndarray, "N H"]

BINS = 24  # of a histogram
_FEWEST = 10  # frames of equal depth whose ranks are worth comparing


def disagreement(videos: Sequence[Float[np.ndarray, "N H *frame"]]) -> PerFrame:
    """Returns the standard deviation of pixels over dreams that differ in their noise only, its RMS over each frame.

    Args:
        videos: at least two dreams of the same clips, in [0, 1].
    """
    variance = np.var(np.stack(videos), axis=0, ddof=1)
    return np.sqrt(variance.mean(axis=tuple(range(2, variance.ndim))))


def judge_signal(signal: PerFrame, error: PerFrame, valid: Bool[np.ndarray, "N H"]) -> dict[str, object]:
    """Returns the mean of a signal by depth, and how well it ranks frames by their true error.

    Args:
        signal: a warning for each dreamt frame, larger is worse.
        error: squared error of the frame.
        valid: frames whose truth is known.

    Returns:
        `by_depth`, and Spearman's `rank_correlation` over all frames and as the mean over depths,
        `rank_correlation_at_equal_depth`; None where there are too few frames or nothing varies.
    """
    depths = [(signal[valid[:, d], d], error[valid[:, d], d]) for d in range(valid.shape[1]) if valid[:, d].any()]
    at_depth = [rank_correlation(s, e) for s, e in depths if len(s) >= _FEWEST]
    known = [value for value in at_depth if math.isfinite(value)]
    return {
        "by_depth": [round(float(s.mean()), 5) for s, _ in depths],
        "rank_correlation": _rounded(rank_correlation(signal[valid], error[valid])),
        "rank_correlation_at_equal_depth": _rounded(float(np.mean(known)) if known else math.nan),
    }


def judge_signals(
    signals: Mapping[str, PerFrame], error: PerFrame, valid: Bool[np.ndarray, "N H"]
) -> dict[str, dict[str, object]]:
    """Returns `judge_signal` of each signal by name."""
    return {name: judge_signal(signal, error, valid) for name, signal in signals.items()}


def histogram(
    signal: PerFrame, right: Bool[np.ndarray, "N H"], valid: Bool[np.ndarray, "N H"]
) -> dict[str, list[float] | list[int]]:
    """Counts a signal on frames that were dreamt exactly right and on those that were not.

    Args:
        signal: a warning for each dreamt frame.
        right: whether the frame is right.
        valid: frames whose truth is known.

    Returns:
        `edges` of `BINS` equal bins that hold all but the largest hundredth, which counts in the last one, and the
        counts of `right` and `wrong` frames in each.
    """
    top = float(np.quantile(signal[valid], 0.99)) or 1.0
    edges = np.linspace(0.0, top, BINS + 1)
    held = np.minimum(signal, top)
    counts = {"right": right & valid, "wrong": ~right & valid}
    return {"edges": [float(f"{edge:.4g}") for edge in edges]} | {
        name: np.histogram(held[where], edges)[0].tolist() for name, where in counts.items()
    }


def _rounded(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None
