"""Scores of the heads, counted by hand."""

import numpy as np

from dreamer4.evaluation.head_scores import score_events, score_heads


YES, NO = True, False


def test_recall_and_precision_by_hand():
    true = np.array([[YES, NO], [YES, NO], [NO, YES], [YES, YES]])
    predicted = np.array([[YES, NO], [NO, YES], [NO, YES], [YES, NO]])
    valid = np.array([[YES, YES], [YES, YES], [YES, YES], [YES, NO]])
    told = score_events(predicted, true, valid)
    assert told.events == 4
    assert told.base_rate == round(4 / 7, 4)
    assert told.recall == 0.75 and told.precision == 0.75
    assert told.accuracy == round(5 / 7, 4)
    assert told.recall_by_depth == (round(2 / 3, 4), 1.0)


def test_a_head_that_never_sees_an_event_is_found_out_though_it_is_nearly_always_right():
    true = np.zeros((100, 4))
    true[7, 3] = -1.0
    told = score_heads(np.zeros((100, 4)), np.ones((100, 4)), true, true != 0, np.ones((100, 4), bool))
    for row in (told.reward, told.end):
        assert row.accuracy > 0.99 and row.recall == 0.0 and row.precision is None and row.events == 1
    assert told.reward.mae == told.reward.mae_of_zero


def test_the_sign_of_a_reward_counts_and_small_hopes_do_not():
    true = np.array([[2.0, -2.0, 0.0, 4.0]])
    reward = np.array([[1.5, 1.5, 0.9, 0.9]])  # right, wrong sign, below half of the smallest reward, missed
    told = score_heads(reward, np.ones((1, 4)), true, np.zeros((1, 4), bool), np.ones((1, 4), bool)).reward
    assert told.sign_accuracy == 0.5
    assert told.recall == round(2 / 3, 4) and told.precision == 1.0
    np.testing.assert_allclose(told.mae_by_depth, [0.5, 3.5, 0.9, 3.1])


def test_an_end_is_where_going_on_is_unlikely():
    terminal = np.array([[NO, YES], [NO, YES]])
    told = score_heads(
        np.zeros((2, 2)), np.array([[0.6, 0.4], [0.4, 0.6]]), np.zeros((2, 2)), terminal, np.ones((2, 2), bool)
    ).end
    assert told.recall == told.precision == told.accuracy == 0.5


def test_without_events_there_is_nothing_to_recall():
    ones, none = np.ones((2, 2)), np.zeros((2, 2))
    told = score_heads(ones, ones, none, none > 0, ones > 0)
    assert told.reward.recall is None and told.reward.base_rate == 0.0
