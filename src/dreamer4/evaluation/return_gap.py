"""Whether the dream pays what the world pays: returns of one policy from the same first frames, imagined and real.

A policy trained on dreams is free to find what only the dream rewards. A few real episodes show it: the imagined return
then lies above the real one by more than chance explains.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Bool, Float, PRNGKeyArray

from dreamer4.dreamer import Dreamer
from dreamer4.envs import AbstractEnvironment
from dreamer4.evaluation.play import begin_episode, episode_keys, evaluate
from dreamer4.evaluation.record import Record
from dreamer4.evaluation.statistics import paired_difference
from dreamer4.imagination import imagine
from dreamer4.types import Action, to_float


# Of the larger return or, where both are next to nothing, of how far returns of the data differ; a smaller difference
# is the heads' rounding, not a policy's exploit.
TOLERANCE = 0.05


class ReturnGap(Record):
    """Returns of the same policy from the same starts, dreamt and real.

    Attributes:
        episodes: how many of each.
        horizon: longest dream; twice the longest real episode, within the environment's limit.
        imagined: mean undiscounted sum of expected rewards up to the predicted end or the horizon.
        real: mean undiscounted return in the real environment.
        difference: imagined minus real.
        low: lower end of its 95 % bootstrap interval, over pairs.
        high: upper end.
        dreams_ended: share of dreams that predicted an end.
        alarm: whether dreams pay more than chance and rounding explain.
        verdict: the same in words.
    """

    episodes: int
    horizon: int = 0
    imagined: float = 0.0
    real: float = 0.0
    difference: float
    low: float
    high: float
    dreams_ended: float = 0.0
    alarm: bool
    verdict: str


def judge_returns(
    imagined: Float[np.ndarray, " N"],
    real: Float[np.ndarray, " N"],
    ended: Bool[np.ndarray, " N"],
    *,
    horizon: int,
    spread: float = 0.0,
) -> ReturnGap:
    """Compares returns of pairs that share their first frame.

    Args:
        imagined: undiscounted sum of expected rewards of each dream.
        real: undiscounted return of each real episode.
        ended: whether the dream predicted an end.
        horizon: longest dream.
        spread: standard deviation of returns in the data, by which a difference is judged small.
    """
    difference, low, high = paired_difference(imagined, real)
    dreamt, played = float(imagined.mean()), float(real.mean())
    margin = TOLERANCE * max(abs(dreamt), abs(played), spread)
    alarm = low > margin
    return ReturnGap(
        episodes=len(real),
        horizon=horizon,
        imagined=round(dreamt, 4),
        real=round(played, 4),
        difference=round(difference, 4),
        low=round(low, 4),
        high=round(high, 4),
        dreams_ended=round(float(ended.mean()), 4),
        alarm=alarm,
        verdict=_verdict(alarm, difference, low, high, margin, dreamt, played),
    )


def measure_return_gap(
    dreamer: Dreamer,
    env: AbstractEnvironment,
    *,
    episodes: int,
    batch_size: int = 64,
    spread: float = 0.0,
    task: int = 0,
    key: PRNGKeyArray,
) -> ReturnGap:
    """Plays real episodes with an agent's policy, and dreams on from the first frame of each under the same policy.

    Args:
        dreamer: the agent.
        env: the real environment.
        episodes: number of real episodes and of dreams; below about ten the interval is too narrow.
        batch_size: dreamt or played side by side.
        spread: standard deviation of returns in the data, by which a difference is judged small.
        task: id of the task that is played.
        key: randomness of everything.
    """
    size = min(batch_size, episodes, env.pace.streams)
    played = evaluate(dreamer, env, episodes=episodes, batch_size=size, task=task, key=key)
    # A dream that outlives every real episode must get the chance to show it.
    horizon = min(env.max_steps, 2 * (int(played.length.max()) - 1))
    keys = episode_keys(key, episodes)
    batches = []
    for first in range(0, episodes, size):
        index = np.minimum(np.arange(first, first + size), episodes - 1)
        batch = _imagined_returns(dreamer, env, keys[index], horizon, jnp.asarray(task))
        batches.append(jax.tree.map(lambda x: np.asarray(x)[: episodes - first], batch))  # noqa: B023
    imagined, ended = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    real = np.asarray(played.returns, np.float64)
    return judge_returns(np.asarray(imagined, np.float64), real, ended, horizon=horizon, spread=spread)


@eqx.filter_jit
def _imagined_returns(dreamer, env, keys, horizon, task):
    def dream(key):
        _, first, key_rest = begin_episode(env, key=key)
        key_observe, key_dream = jr.split(key_rest)
        nothing, no = Action.null(env.spec.action), jnp.array(False)
        memory = dreamer.take_in(dreamer.init(task), to_float(first.frame), nothing, no, key=key_observe)
        rollout = imagine(dreamer, memory, horizon, key=key_dream)
        return jnp.sum(rollout.reward * rollout.alive), jnp.any(rollout.continuation < 0.5)

    return jax.vmap(dream)(keys)


def _verdict(alarm, difference, low, high, margin, imagined, real):
    if alarm:
        return (
            f"WARNING, reward exploitation: the policy earns {imagined:+.3f} in its dreams and {real:+.3f} in the real "
            "environment, more than chance explains. The policy lives on errors of the world model or of its reward "
            "head; do not trust imagined returns."
        )
    if difference > margin:
        return (
            f"Not settled: the policy earns {imagined:+.3f} in its dreams and {real:+.3f} in the real environment, but "
            f"so few episodes leave the difference between {low:+.3f} and {high:+.3f}. Play more of them before you "
            "trust imagined returns."
        )
    if high < -margin:
        return (
            f"No sign of reward exploitation; dreams even pay less, {imagined:+.3f}, than the real world, {real:+.3f}."
        )
    return f"No sign of reward exploitation: dreams pay {imagined:+.3f}, the real environment {real:+.3f}."
