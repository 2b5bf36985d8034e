"""Warnings without labels: what they measure, and how their worth is judged."""

import numpy as np
import pytest

from dreamer4.evaluation.signals import BINS, disagreement, histogram, judge_signal


def test_disagreement_is_the_spread_over_dreams_and_nothing_else():
    rng = np.random.default_rng(0)
    videos = [rng.normal(size=(2, 3, 4, 4, 1)) for _ in range(4)]
    spread = np.std(np.stack(videos), axis=0, ddof=1)
    np.testing.assert_allclose(disagreement(videos), np.sqrt((spread**2).mean(axis=(2, 3, 4))))
    same = [videos[0]] * 4
    np.testing.assert_allclose(disagreement(same), 0.0, atol=1e-12)


def test_a_signal_that_only_knows_the_depth_is_worth_nothing_at_equal_depth():
    rng = np.random.default_rng(0)
    depth = np.arange(8.0)[None]
    error = depth + rng.uniform(size=(50, 8))
    valid = np.ones((50, 8), bool)
    right = np.zeros((50, 8), bool)
    blind = judge_signal(depth + rng.uniform(size=(50, 8)), error, right, valid)
    knowing = judge_signal(np.exp(error), error, right, valid)
    assert blind.rank_correlation > 0.9
    assert abs(blind.rank_correlation_at_equal_depth) < 0.2
    assert knowing.rank_correlation == knowing.rank_correlation_at_equal_depth == 1.0


def test_frames_without_a_truth_do_not_count():
    rng = np.random.default_rng(0)
    error = rng.uniform(size=(40, 3))
    valid = np.ones((40, 3), bool)
    valid[:20, 1], valid[:, 2] = False, False
    signal = np.where(valid, error, -error)
    told = judge_signal(signal, error, error < 0.5, valid)
    assert told.rank_correlation == 1.0
    np.testing.assert_allclose(told.by_depth, [error[:, 0].mean(), error[20:, 1].mean()], atol=1e-5)


@pytest.mark.parametrize("size", [40, 5])
def test_what_cannot_be_known_is_none(size):
    valid = np.ones((size, 2), bool)
    told = judge_signal(np.zeros((size, 2)), np.random.default_rng(0).uniform(size=(size, 2)), valid, valid)
    assert told.rank_correlation is told.rank_correlation_at_equal_depth is None


def test_a_histogram_counts_every_frame_with_a_truth_once():
    rng = np.random.default_rng(0)
    signal, valid = rng.exponential(size=(200, 3)), rng.uniform(size=(200, 3)) < 0.8
    right = signal < 0.5
    told = histogram(signal, right, valid)
    assert len(told.edges) == BINS + 1 and sorted(told.edges) == list(told.edges)
    assert sum(told.right) == (right & valid).sum() and sum(told.wrong) == (~right & valid).sum()
    low = np.searchsorted(told.edges, 0.5)
    assert not any(told.right[low:]) and not any(told.wrong[: low - 1])
    assert told.wrong[-1] >= 0.009 * valid.sum(), "what exceeds the range counts in the last bin"
    assert sum(histogram(np.zeros((4, 2)), np.ones((4, 2), bool), np.ones((4, 2), bool)).right) == 8
