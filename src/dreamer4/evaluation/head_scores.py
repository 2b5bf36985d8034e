"""How good the reward and continuation heads are, on frames that were dreamt as well as on true ones.

Rewards and ends are rare, so a head that never sees one is nearly always right; what counts is which of the rare events
it finds (recall) and which of its alarms are true (precision). Base rates stand beside both.
"""

import numpy as np
from jaxtyping import Bool, Float

from dreamer4.evaluation.record import Record


Mask = Bool[np.ndarray, "N H"]


class EventScores(Record):
    """How rare events are found; None where nothing is there to be found.

    Attributes:
        events: how many there are.
        base_rate: share of frames with one.
        accuracy: share of frames judged right.
        recall: share of events found.
        precision: share of alarms that are true.
        recall_by_depth: recall at each step behind the context.
    """

    events: int = 0
    base_rate: float | None
    accuracy: float | None
    recall: float | None
    precision: float | None
    recall_by_depth: tuple[float | None, ...] = ()


class RewardScores(EventScores):
    """The same of rewards other than zero, and how far expected rewards are off.

    Attributes:
        mae: mean absolute error.
        mae_of_zero: that of always predicting zero.
        mae_by_depth: that of each step behind the context.
        sign_accuracy: share of frames whose reward is told as negative, zero or positive rightly.
    """

    mae: float
    mae_of_zero: float | None = None
    mae_by_depth: tuple[float, ...] = ()
    sign_accuracy: float | None = None


class HeadScores(Record):
    """Scores of the reward head, and of the continuation head on terminations."""

    reward: RewardScores
    end: EventScores


def score_events(predicted: Mask, true: Mask, valid: Mask) -> EventScores:
    """Scores the prediction of rare events.

    Args:
        predicted: whether an event is predicted at a frame.
        true: whether there is one.
        valid: frames that count.
    """
    hit, missed, alarms = (valid & x for x in (predicted & true, ~predicted & true, predicted))
    events = int((hit | missed).sum())
    return EventScores(
        events=events,
        base_rate=_share(events, valid.sum()),
        accuracy=_share((valid & (predicted == true)).sum(), valid.sum()),
        recall=_share(hit.sum(), events),
        precision=_share(hit.sum(), alarms.sum()),
        recall_by_depth=tuple(
            _share(hit[:, d].sum(), (hit | missed)[:, d].sum()) for d in range(valid.shape[1]) if valid[:, d].any()
        ),
    )


def score_heads(
    reward: Float[np.ndarray, "N H"],
    continuation: Float[np.ndarray, "N H"],
    true_reward: Float[np.ndarray, "N H"],
    terminal: Mask,
    valid: Mask,
) -> HeadScores:
    """Scores both heads.

    A reward counts as predicted where the expectation exceeds half the smallest true reward that is not zero.

    Args:
        reward: expected rewards.
        continuation: probabilities that the episode goes on.
        true_reward: rewards that arrived.
        terminal: whether the frame ended its episode by termination.
        valid: frames that count.
    """
    sizes = np.abs(true_reward[valid & (true_reward != 0)])
    threshold = sizes.min() / 2 if sizes.size else np.inf
    sign = np.where(np.abs(reward) > threshold, np.sign(reward), 0.0)
    error = np.abs(reward - true_reward)
    events = score_events(sign != 0, true_reward != 0, valid)
    scores = RewardScores(
        mae=_mean(error, valid),
        mae_of_zero=_mean(np.abs(true_reward), valid),
        mae_by_depth=tuple(_mean(error[:, d], valid[:, d]) for d in range(valid.shape[1]) if valid[:, d].any()),
        sign_accuracy=_share((valid & (sign == np.sign(true_reward))).sum(), valid.sum()),
        **events.model_dump(),
    )
    return HeadScores(reward=scores, end=score_events(continuation < 0.5, terminal, valid))


def _share(part, whole) -> float | None:
    return round(float(part / whole), 4) if whole else None


def _mean(values, valid) -> float:
    return round(float(values[valid].mean()), 5)
