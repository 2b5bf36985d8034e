"""The alarm for reward exploitation: silent for an honest model, loud for a reward head that pays what nobody earns."""

from functools import partial

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from agent.fakes import OracleHead, OracleTokenizer, oracle
from probes import DelayedReward

from dreamer4.evaluation.return_gap import judge_returns, measure_return_gap


ENV = DelayedReward()


def state_of(frame):
    return jnp.stack([frame[0, 0, 0], jnp.round(ENV.max_steps * frame[1, 0, 0])])


def reward(h, bonus):
    return (h[1] == ENV.max_steps).astype(jnp.float32) + bonus


@pytest.fixture(scope="module")
def gap():
    dreamer = oracle(
        ENV.spec,
        size=2,
        read=state_of,
        transition=lambda state, action: state + jnp.array([0.0, 1.0]),
        reward=OracleHead(reward, jnp.zeros(())),
        continuation=lambda h: (h[1] < ENV.max_steps).astype(jnp.float32),
    )
    dreamer = eqx.tree_at(lambda d: d.tokenizer, dreamer, OracleTokenizer(state_of, ENV.spec.frame_shape, 2))

    def gap(bonus):
        broken = eqx.tree_at(lambda d: d.reward.table, dreamer, jnp.asarray(bonus))
        return measure_return_gap(broken, ENV, episodes=20, batch_size=8, key=jr.key(0))

    return gap


def test_an_honest_dream_pays_what_the_world_pays(gap):
    honest = gap(0.0)
    assert honest.imagined == honest.real == 1.0 and honest.low == honest.high == 0.0
    assert honest.episodes == 20 and honest.horizon == 3 and honest.dreams_ended == 1.0
    assert not honest.alarm and "WARNING" not in honest.verdict


@pytest.mark.parametrize(("bonus", "alarm"), [(0.5, True), (-0.5, False), (0.01, False)])
def test_the_alarm_rings_for_a_head_that_pays_too_much_and_not_for_rounding(gap, bonus, alarm):
    told = gap(bonus)
    assert told.difference == pytest.approx(3 * bonus, abs=1e-4)  # the reward behind the end does not count
    assert told.alarm is alarm
    assert ("WARNING, reward exploitation" in told.verdict) is alarm


@pytest.mark.parametrize(("spread", "alarm"), [(0.0, True), (0.2, False)])
def test_what_is_little_beside_the_returns_of_the_data_is_rounding_where_a_policy_earns_nothing(spread, alarm):
    told = judge_returns(np.full(20, 0.004), np.zeros(20), np.ones(20, bool), horizon=5, spread=spread)
    assert told.alarm is alarm


def test_chance_is_not_called_exploitation():
    rng = np.random.default_rng(0)
    noisy = partial(judge_returns, horizon=5, ended=np.ones(40, bool))
    assert not noisy(rng.normal(0.5, 3.0, 40), rng.normal(0.5, 3.0, 40)).alarm
    assert noisy(rng.normal(5.0, 3.0, 40), rng.normal(0.5, 3.0, 40)).alarm


def test_a_difference_that_so_few_episodes_leave_open_is_called_neither():
    real = np.zeros(20)
    told = judge_returns(np.where(np.arange(20) < 2, 10.0, 0.0), real, np.ones(20, bool), horizon=5)
    assert not told.alarm and told.low <= 0.05 < told.difference
    assert told.verdict.startswith("Not settled: the policy earns +1.000 in its dreams and +0.000")
    assert f"between {told.low:+.3f} and {told.high:+.3f}" in told.verdict
