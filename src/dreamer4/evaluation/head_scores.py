"""How good the reward and continuation heads are, on frames that were dreamt as well as on true ones.

Rewards and ends are rare, so a head that never sees one is nearly always right; what counts is which of the rare events
it finds (recall) and which of its alarms are true (precision). Base rates stand beside both.
"""

import numpy as np
from jaxtyping import Bool, Float


Mask = Bool[np.ndarray, "N H"]


def score_events(predicted: Mask, true: Mask, valid: Mask) -> dict[str, object]:
    """Scores the prediction of rare events.

    Args:
        predicted: whether an event is predicted at a frame.
        true: whether there is one.
        valid: frames that count.

    Returns:
        `events`, `base_rate`, `accuracy`, `recall`, `precision`, and `recall_by_depth`; None where nothing is there to
        be found.
    """
    hit, missed, alarms = (valid & x for x in (predicted & true, ~predicted & true, predicted))
    events = int((hit | missed).sum())
    return {
        "events": events,
        "base_rate": _share(events, valid.sum()),
        "accuracy": _share((valid & (predicted == true)).sum(), valid.sum()),
        "recall": _share(hit.sum(), events),
        "precision": _share(hit.sum(), alarms.sum()),
        "recall_by_depth": [
            _share(hit[:, d].sum(), (hit | missed)[:, d].sum()) for d in range(valid.shape[1]) if valid[:, d].any()
        ],
    }


def score_heads(
    reward: Float[np.ndarray, "N H"],
    continuation: Float[np.ndarray, "N H"],
    true_reward: Float[np.ndarray, "N H"],
    terminal: Mask,
    valid: Mask,
) -> dict[str, dict[str, object]]:
    """Scores both heads.

    A reward counts as predicted where the expectation exceeds half the smallest true reward that is not zero.

    Args:
        reward: expected rewards.
        continuation: probabilities that the episode goes on.
        true_reward: rewards that arrived.
        terminal: whether the frame ended its episode by termination.
        valid: frames that count.

    Returns:
        For `reward` the scores of non-zero rewards, `sign_accuracy`, the mean absolute error (`mae`, `mae_by_depth`)
        and that of always predicting zero (`mae_of_zero`); for `end` the scores of terminations.
    """
    sizes = np.abs(true_reward[valid & (true_reward != 0)])
    threshold = sizes.min() / 2 if sizes.size else np.inf
    sign = np.where(np.abs(reward) > threshold, np.sign(reward), 0.0)
    error = np.abs(reward - true_reward)
    return {
        "reward": {
            "mae": _mean(error, valid),
            "mae_of_zero": _mean(np.abs(true_reward), valid),
            "mae_by_depth": [_mean(error[:, d], valid[:, d]) for d in range(valid.shape[1]) if valid[:, d].any()],
            "sign_accuracy": _share((valid & (sign == np.sign(true_reward))).sum(), valid.sum()),
            **score_events(sign != 0, true_reward != 0, valid),
        },
        "end": score_events(continuation < 0.5, terminal, valid),
    }


def _share(part, whole) -> float | None:
    return round(float(part / whole), 4) if whole else None


def _mean(values, valid) -> float:
    return round(float(values[valid].mean()), 5)
