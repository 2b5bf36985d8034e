"""Statistics against hand-computed numbers, and intervals against what they promise."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import spearmanr

from dreamer4.errors import InputError
from dreamer4.evaluation import interval, iqm, mean, paired_difference, rank_correlation, statistics, summarise
from dreamer4.evaluation.statistics import event_rates, nested_interval


@pytest.mark.parametrize(
    "values, expected",
    [
        ([1, 2, 3, 4, 5, 6, 7, 1000], 4.5),  # leaves 3, 4, 5, 6
        ([5, 1, 3], 3.0),  # three quarters of a value is cut on neither side
        ([0, 10, 20, 30, 100], 20.0),  # one on each side
        ([7], 7.0),
    ],
)
def test_interquartile_mean_by_hand(values, expected):
    assert iqm(np.array(values, float)) == expected


def test_interquartile_mean_ignores_order_and_outliers():
    values = np.random.default_rng(0).normal(size=101)
    shuffled = np.random.default_rng(1).permutation(values)
    wild = values.copy()
    wild[np.argmax(wild)] = 1e9
    np.testing.assert_allclose([iqm(shuffled), iqm(wild)], iqm(values), rtol=1e-12)


def test_statistics_reduce_the_last_axis():
    values = np.random.default_rng(0).normal(size=(3, 4, 20))
    for statistic in (mean, iqm):
        assert statistic(values).shape == (3, 4)
        np.testing.assert_allclose(statistic(values)[1, 2], statistic(values[1, 2]))


def test_the_interval_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    trials = [interval(rng.normal(3.0, 2.0, 60), level=0.9, resamples=400, seed=i) for i in range(400)]
    coverage = np.mean([low <= 3.0 <= high for low, high in trials])
    # Binomial standard deviation is 0.015; the percentile bootstrap is known to fall short by about 0.01 at n = 60.
    assert 0.84 < coverage < 0.95


def test_the_interval_of_a_large_sample_is_the_normal_one():
    values = np.random.default_rng(0).normal(size=4000)
    low, high = interval(values, resamples=4000)
    half = 1.96 * values.std() / np.sqrt(values.size)
    # The ends are quantiles of 4000 resamples, known to about 3 % of the half-width.
    np.testing.assert_allclose([low, high], [values.mean() - half, values.mean() + half], atol=0.1 * half)


def test_the_interval_is_a_function_of_its_seed_and_shrinks_with_its_level():
    values = np.random.default_rng(0).normal(size=50)
    assert interval(values, seed=1) == interval(values, seed=1) != interval(values, seed=2)
    wide, narrow = interval(values, level=0.99), interval(values, level=0.5)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_the_interval_of_a_constant_is_that_constant():
    assert interval(np.full(5, 2.0)) == (2.0, 2.0)


def test_chunks_of_resamples_do_not_change_the_shape_of_the_answer():
    values = np.random.default_rng(0).integers(0, 2, 50_000) * 2 - 1  # 80 resamples at a time
    low, high = interval(values, resamples=200)
    np.testing.assert_allclose(high - low, 2 * 1.96 / np.sqrt(50_000), rtol=0.25)


def test_draws_that_share_their_group_are_not_independent():
    """Forty draws of four groups that differ by much more than the draws within them: the groups count."""
    means = np.array([0.0, 1.0, 2.0, 5.0])
    draws = np.repeat(means, 10) + 0.01 * np.sin(np.arange(40))
    group = np.repeat(np.arange(4), 10)
    assert nested_interval(draws, group) == pytest.approx(interval(means), abs=0.1)
    assert np.ptp(interval(draws)) < 0.5 * np.ptp(nested_interval(draws, group))
    assert nested_interval(draws, np.zeros(40)) == interval(draws)


def test_pairing_removes_what_both_share():
    rng = np.random.default_rng(0)
    shared = 100 * rng.normal(size=40)
    a, b = shared + 1 + 0.1 * rng.normal(size=40), shared
    difference, low, high = paired_difference(a, b)
    assert 0.9 < low < difference < high < 1.1
    assert paired_difference(b, a)[0] == -difference


def test_summary_has_the_keys_of_the_results_and_takes_device_arrays():
    summary = summarise(jnp.array([1.0, -1.0, 1.0, 1.0]))
    assert summary.mean == 0.5 and summary.episodes == 4 and summary.seeds == ()
    assert summary.low <= 0.5 <= summary.high
    assert statistics.Estimate.model_validate_json(summary.model_dump_json()) == summary


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: interval(np.zeros(0)), "no values"),
        (lambda: summarise(np.array([1.0, np.nan])), "1 of 2 values are not finite"),
        (lambda: interval(np.ones(2), level=1.0), "level"),
        (lambda: interval(np.ones(2), resamples=0), "resamples"),
        (lambda: statistics._paired(np.ones(3), np.ones(1)), "got 3 values and 1, expected one of each"),
    ],
)
def test_senseless_questions_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.parametrize("ties", [False, True])
def test_rank_correlation_is_that_of_scipy(ties):
    rng = np.random.default_rng(0)
    a = rng.normal(size=200)
    b = a + rng.normal(size=200)
    a, b = (np.round(a), np.round(b)) if ties else (a, b)
    np.testing.assert_allclose(rank_correlation(a, b), spearmanr(a, b).statistic, rtol=1e-12)


def test_rank_correlation_sees_order_alone():
    x = np.array([0.1, 3.0, 2.0, 9.0])
    assert rank_correlation(x, np.exp(x)) == pytest.approx(1.0)
    assert rank_correlation(x, -(x**3)) == pytest.approx(-1.0)
    assert np.isnan(rank_correlation(x, np.ones(4)))


def test_rates_of_events_by_hand():
    happened = np.array([[4, -1], [8, -1], [-1, -1], [9, -1]])
    rates = event_rates(("wood", "diamond"), happened)
    assert (rates["wood"].mean, rates["wood"].frame, rates["wood"].episodes) == (0.75, 8.0, 4)
    z, n, p = 1.959964, 4, 0.75
    middle, spread = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    ends = [(middle - spread) / (1 + z**2 / n), (middle + spread) / (1 + z**2 / n)]
    np.testing.assert_allclose((rates["wood"].low, rates["wood"].high), ends, atol=1e-4)
    assert (rates["diamond"].mean, rates["diamond"].low, rates["diamond"].frame) == (0, 0, None)
    assert rates["diamond"].high > 0.4  # four episodes rule little out
    with pytest.raises(InputError, match="no episodes"):
        event_rates(("wood",), happened[:0, :1])
