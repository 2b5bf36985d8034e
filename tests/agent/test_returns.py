"""Lambda-returns (eq 10): by hand, by definition, and where they must not look."""

import inspect

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamer4.agent import lambda_returns


HORIZON = 5


@eqx.filter_jit
def compute(reward, continuation, value, discount, lambda_):
    return lambda_returns(reward, continuation, value, discount=discount, lambda_=lambda_)


def mixture_of_n_step_returns(reward, continuation, value, discount, lambda_):
    """The definition, in float64: every n-step return, weighed geometrically. No recursion."""
    horizon = len(reward)
    returns = np.zeros(horizon)
    for t in range(horizon):
        longest = horizon - t
        for n in range(1, longest + 1):
            total, carried = 0.0, 1.0
            for k in range(t, t + n):  # reward[k] and continuation[k] arrive at state k + 1
                total += carried * reward[k]
                carried *= discount * continuation[k]
            total += carried * value[t + n]
            weight = lambda_ ** (n - 1) * (1.0 if n == longest else 1.0 - lambda_)
            returns[t] += weight * total
    return returns


def random_rollout(seed):
    rng = np.random.default_rng(seed)
    reward, value = rng.normal(size=HORIZON), rng.normal(size=HORIZON + 1)
    continuation = rng.choice([0.0, 1.0, rng.uniform()], size=HORIZON)
    return tuple(x.astype(np.float32) for x in (reward, continuation, value))


def test_public_signature():
    parameters = inspect.signature(lambda_returns).parameters
    assert list(parameters) == ["reward", "continuation", "value", "discount", "lambda_"]
    by_keyword = [name for name, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY]
    assert by_keyword == ["discount", "lambda_"]


def test_three_steps_by_hand():
    reward, value = jnp.array([1.0, 2.0, 3.0]), jnp.array([10.0, 20.0, 30.0, 40.0])
    returns = lambda_returns(reward, jnp.ones(3), value, discount=0.5, lambda_=0.5)
    # 3 + 0.5 * 40;  2 + 0.5 * (0.5 * 30 + 0.5 * 23);  1 + 0.5 * (0.5 * 20 + 0.5 * 15.25)
    np.testing.assert_allclose(returns, [9.8125, 15.25, 23.0], rtol=1e-6)
    cut = lambda_returns(reward, jnp.array([1.0, 0.0, 1.0]), value, discount=0.5, lambda_=0.5)
    # State 2 ends the episode: nothing behind its reward counts.
    np.testing.assert_allclose(cut, [6.5, 2.0, 23.0], rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    discount=st.floats(0.01, 1.0),
    lambda_=st.one_of(st.just(0.0), st.just(1.0), st.floats(0.0, 1.0)),
)
def test_equals_the_mixture_of_n_step_returns(seed, discount, lambda_):
    rollout = random_rollout(seed)
    expected = mixture_of_n_step_returns(*(x.astype(np.float64) for x in rollout), discount, lambda_)
    got = compute(*map(jnp.asarray, rollout), jnp.float32(discount), jnp.float32(lambda_))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_lambda_zero_looks_one_step_ahead():
    reward, continuation, value = random_rollout(0)
    returns = compute(*map(jnp.asarray, (reward, continuation, value)), 0.9, 0.0)
    np.testing.assert_allclose(returns, reward + 0.9 * continuation * value[1:], rtol=1e-5, atol=1e-6)


def test_lambda_one_sums_rewards_and_bootstraps_at_the_horizon():
    reward, _, value = random_rollout(1)
    returns = compute(jnp.asarray(reward), jnp.ones(HORIZON), jnp.asarray(value), 0.9, 1.0)
    powers = 0.9 ** np.arange(HORIZON)
    expected = [np.sum(powers[: HORIZON - t] * reward[t:]) + 0.9 ** (HORIZON - t) * value[-1] for t in range(HORIZON)]
    np.testing.assert_allclose(returns, expected, rtol=1e-5, atol=1e-6)


def test_a_consistent_value_function_is_its_own_return():
    # v[t] = r[t+1] + discount * c[t+1] * v[t+1] makes every n-step return equal v[t], whatever lambda.
    reward, continuation, value = (x.astype(np.float64) for x in random_rollout(2))
    for t in reversed(range(HORIZON)):
        value[t] = reward[t] + 0.8 * continuation[t] * value[t + 1]
    for lambda_ in (0.0, 0.3, 0.95, 1.0):
        returns = compute(*(jnp.asarray(x, jnp.float32) for x in (reward, continuation, value)), 0.8, lambda_)
        np.testing.assert_allclose(returns, value[:-1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lambda_", [0.0, 0.6, 1.0])
def test_each_value_counts_once_and_the_own_one_never(lambda_):
    reward, _, value = random_rollout(3)
    jacobian = jax.jacobian(lambda v: compute(jnp.asarray(reward), jnp.ones(HORIZON), v, 0.9, lambda_))(
        jnp.asarray(value)
    )
    expected = np.zeros((HORIZON, HORIZON + 1))
    for t in range(HORIZON):
        for k in range(t + 1, HORIZON + 1):
            n = k - t
            # The value of the last state carries the whole remaining weight, the others a share of 1 - lambda.
            expected[t, k] = 0.9**n * lambda_ ** (n - 1) * (1.0 if k == HORIZON else 1.0 - lambda_)
    np.testing.assert_allclose(jacobian, expected, rtol=1e-5, atol=1e-7)
    # Below and on the diagonal it is exactly zero: no return looks at its own state or back.
    assert not np.any(np.tril(np.asarray(jacobian)))


def test_nothing_behind_a_termination_is_seen():
    reward, _, value = random_rollout(4)
    continuation = jnp.ones(HORIZON).at[2].set(0.0)  # state 3 ends the episode

    def early(reward, value):
        return compute(reward, continuation, value, 0.9, 0.95)[:3]

    by_reward, by_value = jax.jacobian(early, argnums=(0, 1))(jnp.asarray(reward), jnp.asarray(value))
    assert np.all(np.asarray(by_reward)[:, 3:] == 0) and np.all(np.asarray(by_value)[:, 3:] == 0)
    assert np.all(np.diag(np.asarray(by_reward)[:, :3]) == 1)


def test_horizon_of_one_is_the_one_step_return():
    one = jnp.ones(1)
    for lambda_ in (0.0, 0.5, 1.0):
        returns = lambda_returns(2.0 * one, 0.5 * one, jnp.array([7.0, 4.0]), discount=0.5, lambda_=lambda_)
        np.testing.assert_allclose(returns, [3.0], rtol=1e-6)
