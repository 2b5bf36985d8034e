"""Statistics of returns: few, small and with their uncertainty."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Array, Float, Num

from dreamer4.errors import InputError


Statistic = Callable[[Float[np.ndarray, "*batch N"]], Float[np.ndarray, "*batch"]]

_CHUNK = 4_000_000  # resampled values held at a time, about 64 MB with their indices


def mean(values: Float[np.ndarray, "*batch N"]) -> Float[np.ndarray, "*batch"]:
    """Returns the mean over the last axis."""
    return np.asarray(values.mean(axis=-1))


def iqm(values: Float[np.ndarray, "*batch N"]) -> Float[np.ndarray, "*batch"]:
    """Returns the interquartile mean over the last axis.

    The lowest and the highest quarter are left out, each rounded down to whole values, so that few extreme values count
    little while every typical one counts (arXiv 2108.13264, section 4.3).
    """
    cut = values.shape[-1] // 4
    return np.asarray(np.sort(values, axis=-1)[..., cut : values.shape[-1] - cut].mean(axis=-1))


def interval(
    values: Num[Array | np.ndarray, " N"],
    *,
    statistic: Statistic = mean,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Returns the percentile bootstrap interval of a statistic: its lower and upper end.

    Args:
        values: independent draws, such as the returns of episodes or the scores of training seeds.
        statistic: what is estimated; it reduces the last axis.
        level: share of such intervals that hold the true value, if there are enough draws (below about ten they are
            too narrow).
        resamples: number of bootstrap samples.
        seed: seed of the resampling; the same seed gives the same interval.

    Raises:
        InputError: if there are no values, one is not finite, or `level` is not between 0 and 1.
    """
    draws = _checked(values)
    if not 0 < level < 1:
        raise InputError(f"interval: got level {level}, expected a share between 0 and 1.")
    if resamples < 1:
        raise InputError(f"interval: got {resamples} resamples, expected at least 1.")
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK // draws.size)
    estimates = [
        statistic(draws[rng.integers(0, draws.size, (min(rows, resamples - start), draws.size))])
        for start in range(0, resamples, rows)
    ]
    low, high = np.quantile(np.concatenate(estimates), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_difference(
    a: Num[Array | np.ndarray, " N"],
    b: Num[Array | np.ndarray, " N"],
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Returns the mean of `a - b` and its bootstrap interval, where `a[i]` and `b[i]` share their seed or episode.

    Pairs are resampled whole, so what both have in common does not widen the interval.

    Raises:
        InputError: as `interval`, or if there are not as many of one as of the other.
    """
    difference = np.subtract(*_paired(a, b))
    low, high = interval(difference, level=level, resamples=resamples, seed=seed)
    return float(difference.mean()), low, high


def summarise(returns: Num[Array | np.ndarray, " N"], *, level: float = 0.95, seed: int = 0) -> dict[str, float | int]:
    """Returns `mean`, `low`, `high` (bootstrap interval of the mean) and `episodes`, as `results.json` holds them.

    Raises:
        InputError: as `interval`.
    """
    draws = _checked(returns)
    low, high = interval(draws, level=level, seed=seed)
    return {"mean": float(draws.mean()), "low": low, "high": high, "episodes": draws.size}


def rank_correlation(a: Num[Array | np.ndarray, " N"], b: Num[Array | np.ndarray, " N"]) -> float:
    """Returns Spearman's rank correlation, in [-1, 1]; equal values share their mean rank. nan if one side is constant.

    Raises:
        InputError: as `paired_difference`.
    """
    x, y = map(_ranks, _paired(a, b))
    x, y = x - x.mean(), y - y.mean()
    spread = np.sqrt((x * x).sum() * (y * y).sum())
    return float((x * y).sum() / spread) if spread > 0 else float("nan")


def _ranks(values: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    _, group, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return (last - (count - 1) / 2)[group]


def _paired(
    a: Num[Array | np.ndarray, " N"], b: Num[Array | np.ndarray, " M"]
) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    x, y = _checked(a), _checked(b)
    if x.shape != y.shape:
        raise InputError(f"Statistics of pairs: got {x.size} values and {y.size}, expected one of each for each pair.")
    return x, y


def _checked(values: Num[Array | np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    draws = np.asarray(values, np.float64)
    if draws.size == 0:
        raise InputError("Statistics of no values at all: expected at least 1.")
    if not np.isfinite(draws).all():
        raise InputError(f"Statistics: {(~np.isfinite(draws)).sum()} of {draws.size} values are not finite.")
    return draws
