"""Statistics of returns: few, small and with their uncertainty."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Array, Float, Int, Num
from scipy import stats

from dreamer4.errors import InputError, check_whole
from dreamer4.evaluation.record import Record


Statistic = Callable[[Float[np.ndarray, "*batch N"]], Float[np.ndarray, "*batch"]]

_CHUNK = 4_000_000  # resampled values held at a time, about 64 MB with their indices


class Estimate(Record):
    """A mean with its 95 % bootstrap interval.

    Attributes:
        mean: of all draws.
        low: lower end of the interval.
        high: upper end.
        episodes: how many were played.
        seeds: mean of each training seed, where the interval is over several of them; else it is over episodes.
    """

    mean: float
    low: float
    high: float
    episodes: int
    seeds: tuple[float, ...] = ()


class Rate(Record):
    """How often an event happened, as a share of episodes with its 95 % Wilson interval.

    Attributes:
        mean: share of the episodes in which it happened.
        low: lower end of the interval.
        high: upper end.
        episodes: how many were played, or of how many other things it is a share.
        frame: median index of the frame at which it first happened, where it did; None where it never did.
    """

    mean: float
    low: float
    high: float
    episodes: int
    frame: float | None


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
    check_whole("interval", resamples=resamples)
    if np.ptp(draws) == 0:
        return float(statistic(draws)), float(statistic(draws))
    return _percentiles([draws], statistic, level, resamples, seed)


def nested_interval(
    values: Num[Array | np.ndarray, " N"],
    group: Num[Array | np.ndarray, " N"],
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Returns the same of a mean of draws in groups: groups are resampled, then the draws within each that was drawn.

    Training seeds on one data set share its luck, so they are not independent; `group` tells the data set of each.
    With one group this is `interval`.

    Raises:
        InputError: as `interval`, or if there are not as many groups as values.
    """
    draws, group = _paired(values, group)
    members = [draws[group == name] for name in np.unique(group)]
    if len(members) == 1:
        return interval(draws, level=level, resamples=resamples, seed=seed)
    rng = np.random.default_rng(seed)

    def once():
        chosen = (members[i] for i in rng.integers(len(members), size=len(members)))
        return np.concatenate([rng.choice(own, own.size) for own in chosen]).mean()

    low, high = np.quantile([once() for _ in range(resamples)], [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def over_tasks(
    scores: Sequence[Num[Array | np.ndarray, " N"]], *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Estimate:
    """Returns the interquartile mean over the draws of all tasks, as many of each, with its bootstrap interval.

    Draws are resampled within their tasks, which are given and not drawn (arXiv 2108.13264, section 4.1).

    Args:
        scores: of each task, on one scale.
        level: as of `interval`.
        resamples: as of `interval`.
        seed: as of `interval`.

    Raises:
        InputError: as `interval`.
    """
    draws = [_checked(each) for each in scores]
    value, size = float(iqm(np.concatenate(draws))), sum(map(len, draws))
    if all(np.ptp(each) == 0 for each in draws):
        return Estimate(mean=value, low=value, high=value, episodes=size)
    low, high = _percentiles(draws, iqm, level, resamples, seed)
    return Estimate(mean=value, low=low, high=high, episodes=size)


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


def summarise(returns: Num[Array | np.ndarray, " N"], *, level: float = 0.95, seed: int = 0) -> Estimate:
    """Returns the mean of returns with its bootstrap interval over episodes.

    Raises:
        InputError: as `interval`.
    """
    draws = _checked(returns)
    low, high = interval(draws, level=level, seed=seed)
    return Estimate(mean=float(draws.mean()), low=low, high=high, episodes=draws.size)


def summarise_seeds(returns: Sequence[Num[Array | np.ndarray, " N"]]) -> Estimate:
    """Returns the same over the means of several training seeds; over the episodes of one, if there is one.

    Args:
        returns: of each training seed its episodes.
    """
    if len(returns) == 1:
        return summarise(returns[0])
    means = np.array([np.mean(each) for each in returns])
    played = {"episodes": sum(map(len, returns)), "seeds": tuple(round(float(m), 4) for m in means)}
    return summarise(means).model_copy(update=played)


def event_rates(events: Sequence[str], happened: Int[Array | np.ndarray, "N E"]) -> dict[str, Rate]:
    """Returns how often each event happened, by its name.

    Args:
        events: their names, in the order of `happened`.
        happened: of each episode the index of the frame at which each event first happened; -1 where it never did.

    Raises:
        InputError: if there are no episodes.
    """
    frames = np.asarray(happened)
    if not len(frames):
        raise InputError("Rates of events in no episodes at all: expected at least 1.")
    found = {}
    for name, first in zip(events, frames.T, strict=True):
        did, count = first[first >= 0], len(first)
        found[name] = rate(len(did), count, frame=float(np.median(did)) if len(did) else None)
    return found


def rate(times: int, count: int, *, frame: float | None = None) -> Rate:
    """Returns how often something happened of so many times, at least one; `frame` as of `Rate`."""
    share = stats.binomtest(times, count).proportion_ci(method="wilson")
    ends = {"low": round(float(share.low), 4), "high": round(float(share.high), 4)}
    return Rate(mean=round(times / count, 4), **ends, episodes=count, frame=frame)


def rank_correlation(a: Num[Array | np.ndarray, " N"], b: Num[Array | np.ndarray, " N"]) -> float:
    """Returns Spearman's rank correlation, in [-1, 1]; equal values share their mean rank. nan if one side is constant.

    Raises:
        InputError: as `paired_difference`.
    """
    x, y = _paired(a, b)
    constant = len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0
    return float("nan") if constant else float(np.asarray(stats.spearmanr(x, y))[0])


def _percentiles(
    groups: Sequence[Float[np.ndarray, " _"]], statistic: Statistic, level: float, resamples: int, seed: int
) -> tuple[float, float]:
    """Returns the percentile bootstrap interval of a statistic of all draws, each resampled within its group."""
    found = stats.bootstrap(
        groups,
        lambda *each, axis: statistic(np.concatenate(each, axis=-1)),  # the last, which bootstrap names too
        n_resamples=resamples,
        batch=max(1, _CHUNK // sum(map(len, groups))),
        vectorized=True,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


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
