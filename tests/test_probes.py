"""The five probe environments through the whole of imagination training, in a world model that is written down.

Only policy and value learn, so a wrong number here is a fault of returns, objective, clock or masks, not of a model.
Episodes of random play are collected from the real probe, encoded, dreamed on from, and the policy that comes out is
played in the real probe again.
"""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from agent.fakes import oracle

from dreamer4.agent import PMPO
from dreamer4.config import OptimizerConfig, PhaseConfig
from dreamer4.data import DeviceSource, collect, random_policy
from dreamer4.envs import ChosenReward, ConstantReward, DelayedReward, MatchedReward, ObservedReward
from dreamer4.envs.probes import ProbeState
from dreamer4.evaluation import evaluate
from dreamer4.training import ImaginationPhase, encode_source, init_state, train


DISCOUNT = 0.9
STEPS = 250
CONFIG = PhaseConfig(
    steps=STEPS,
    batch_size=32,
    length=4,
    optimizer=OptimizerConfig(learning_rate=2e-2, warmup=0.02, decay=0.5),
    ema=0.02,
)


def agent_of(env):
    """An agent that knows the probe: a state is (colour, time, 1), as the frame shows them."""

    def read(frame):
        return jnp.stack([frame[0, 0, 0], jnp.round(env.max_steps * frame[1, 0, 0]), jnp.ones(())])

    def transition(state, action):
        del action
        return jnp.stack([state[0], state[1] + 1.0, state[2]])

    def reward(h):
        colour, time, _, action, _ = h.astype(jnp.int32)
        return env.reward(ProbeState(colour, time - 1), action)

    def continuation(h):
        return (h[1] < env.max_steps).astype(jnp.float32)

    return oracle(env.spec, size=3, read=read, transition=transition, reward=reward, continuation=continuation)


def trained(env, *, horizon):
    """Returns the agent after imagination training, and its value of each real first state seen."""
    episodes = collect(env, random_policy(env.spec), episodes=32, num_envs=8, key=jr.key(1))
    source = DeviceSource.from_episodes(episodes)
    dreamer = agent_of(env)
    phase = ImaginationPhase(PMPO(0.5, 0.1), horizon, DISCOUNT, 0.95, 0.0)
    state = init_state(phase, dreamer, CONFIG)
    for state, _ in train(phase, CONFIG, state, source, seed=0, latents=encode_source(dreamer, source)):  # noqa: B007
        pass
    return state.ema


def values(dreamer, states):
    """Values of states (colour, time) as the agent meets them: at time 0 without an action, later with action 0."""
    h = jnp.asarray([[colour, time, 1.0, 0.0, float(time > 0)] for colour, time in states], jnp.float32)
    return np.asarray(dreamer.value(h).mean())


def choices(dreamer, colour):
    """Probability of action 1 in the first state."""
    return float(dreamer.policy(jnp.array([colour, 0.0, 1.0, 0.0, 0.0])).discrete[0].mean()[1])


def real_return(dreamer, env):
    played = evaluate(dreamer, env, episodes=256, batch_size=256, key=jr.key(3))
    assert np.all(played.finished) and np.all(played.length == env.max_steps + 1)
    return float(played.returns.mean())


def test_constant_reward_is_worth_itself():
    env = ConstantReward()
    dreamer = trained(env, horizon=1)
    np.testing.assert_allclose(values(dreamer, [(0, 0)]), [1.0], atol=0.05)


def test_value_tells_good_sights_from_bad():
    env = ObservedReward()
    dreamer = trained(env, horizon=1)
    np.testing.assert_allclose(values(dreamer, [(0, 0), (1, 0)]), [-1.0, 1.0], atol=0.1)


@pytest.mark.parametrize("horizon", [1, 4])
def test_delayed_reward_is_discounted_by_its_distance(horizon):
    # A horizon of 1 has to bootstrap twice; one of 4 dreams past the end, and what lies there must not count.
    dreamer = trained(DelayedReward(), horizon=horizon)
    np.testing.assert_allclose(
        values(dreamer, [(0, 0), (0, 1), (0, 2)]), [DISCOUNT**2, DISCOUNT, 1.0], atol=0.08
    )


def test_policy_takes_the_better_action():
    env = ChosenReward()
    dreamer = trained(env, horizon=1)
    assert choices(dreamer, 0.0) > 0.9
    assert real_return(dreamer, env) > 0.8 * env.optimal_return
    # The value is that of the policy being followed, not of the random one.
    assert values(dreamer, [(0, 0)])[0] > 0.7


def test_policy_takes_the_action_that_the_sight_calls_for():
    env = MatchedReward()
    dreamer = trained(env, horizon=1)
    assert choices(dreamer, 1.0) > 0.9 and choices(dreamer, 0.0) < 0.1
    assert real_return(dreamer, env) > 0.8 * env.optimal_return


def test_the_prior_stays_where_it_was():
    env = ChosenReward()
    before, after = agent_of(env), trained(env, horizon=1)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), before.prior, after.prior))
    np.testing.assert_allclose(after.prior(jnp.ones(5)).discrete[0].mean(), [0.5, 0.5])
