"""Warnings that need no truth: what a dream shows of its own errors while it is dreamt.

- Decode-encode residual: a dreamt latent that is the code of no frame changes when it is decoded and encoded again.
- Late movement: a prediction that still changes in the second half of its denoise passes was not settled.
- Disagreement: where dreams of the same context and actions differ with their noise, most of them must be wrong.

How much each is worth is measured where the truth is known, as the rank correlation with the true error of each frame.
Errors and warnings both grow along a dream, so it is given over all frames, and over frames of equal depth.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from dreamer4.evaluation.record import Record
from dreamer4.evaluation.statistics import rank_correlation


PerFrame = Float[np.ndarray, "N H"]

BINS = 24  # of a histogram
_FEWEST = 10  # frames of equal depth whose ranks are worth comparing


class Histogram(Record):
    """A signal on frames that were dreamt exactly right and on those that were not.

    Attributes:
        edges: of equal bins that hold all but the largest hundredth, which counts in the last one.
        right: right frames in each bin.
        wrong: wrong ones.
    """

    edges: tuple[float, ...]
    right: tuple[int, ...]
    wrong: tuple[int, ...]


class Signal(Record):
    """A warning, judged where the truth is known.

    Attributes:
        by_depth: its mean at each step behind the context.
        rank_correlation: Spearman's, with the true error over all frames; None for too few frames or equal ones.
        rank_correlation_at_equal_depth: the mean of the same over frames of equal depth.
        histogram: of its values.
        of_truth: its mean on true frames, where that can be measured.
    """

    by_depth: tuple[float, ...]
    rank_correlation: float | None
    rank_correlation_at_equal_depth: float | None
    histogram: Histogram | None = None
    of_truth: float | None = None


def disagreement(videos: Sequence[Float[np.ndarray, "N H *frame"]]) -> PerFrame:
    """Returns the standard deviation of pixels over dreams that differ in their noise only, its RMS over each frame.

    Args:
        videos: at least two dreams of the same clips, in [0, 1].
    """
    variance = np.var(np.stack(videos), axis=0, ddof=1)
    return np.sqrt(variance.mean(axis=tuple(range(2, variance.ndim))))


def judge_signal(
    signal: PerFrame,
    error: PerFrame,
    right: Bool[np.ndarray, "N H"],
    valid: Bool[np.ndarray, "N H"],
    *,
    truth: PerFrame | None = None,
) -> Signal:
    """Judges how well a signal ranks frames by their true error.

    Args:
        signal: a warning for each dreamt frame, larger is worse.
        error: squared error of the frame.
        right: whether the frame is exactly right.
        valid: frames whose truth is known.
        truth: the signal on the true frames.
    """
    depths = [(signal[valid[:, d], d], error[valid[:, d], d]) for d in range(valid.shape[1]) if valid[:, d].any()]
    at_depth = [rank_correlation(s, e) for s, e in depths if len(s) >= _FEWEST]
    known = [value for value in at_depth if math.isfinite(value)]
    return Signal(
        by_depth=tuple(round(float(s.mean()), 5) for s, _ in depths),
        rank_correlation=_rounded(rank_correlation(signal[valid], error[valid])),
        rank_correlation_at_equal_depth=_rounded(float(np.mean(known)) if known else math.nan),
        histogram=histogram(signal, right, valid),
        of_truth=None if truth is None else round(float(truth[valid].mean()), 5),
    )


def histogram(signal: PerFrame, right: Bool[np.ndarray, "N H"], valid: Bool[np.ndarray, "N H"]) -> Histogram:
    """Counts a signal on right and on wrong frames in `BINS` bins.

    Args:
        signal: a warning for each dreamt frame.
        right: whether the frame is right.
        valid: frames whose truth is known.
    """
    top = float(np.quantile(signal[valid], 0.99)) or 1.0
    edges = np.linspace(0.0, top, BINS + 1)
    held = np.minimum(signal, top)
    counts = {"right": right & valid, "wrong": ~right & valid}
    groups = {name: np.histogram(held[where], edges)[0].tolist() for name, where in counts.items()}
    return Histogram(edges=tuple(float(f"{edge:.4g}") for edge in edges), **groups)


def _rounded(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None
