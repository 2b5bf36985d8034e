"""PPO: its equations against plain loops, and that it learns what can be learned."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import distance, generic
from jaxtyping import Array, Bool, Float, Int
from probes import PROBES, DelayedReward, ObservedReward, ProbeState

from dreamer4.baselines import (
    ActorCritic,
    NetworkPolicy,
    TrainingRun,
    advantages,
    clipped_policy_loss,
    clipped_value_loss,
    steps_taken,
    train_ppo,
)
from dreamer4.config import PPOConfig
from dreamer4.data import collect
from dreamer4.envs import AbstractEnvironment, GymnaxEnvironment
from dreamer4.evaluation import play
from dreamer4.types import Action, ActionSpec, DataSpec, TimeStep


DISCOUNT = 0.9


def test_advantages_are_sums_of_discounted_errors():
    rng = np.random.default_rng(0)
    steps, discount, lambda_ = 40, 0.9, 0.8
    reward, value = rng.normal(size=steps), rng.normal(size=steps + 1)
    is_last = rng.random(steps) < 0.2
    is_terminal = is_last & (rng.random(steps) < 0.5)
    expected = np.zeros(steps)
    for t in range(steps):
        weight = 1.0
        for k in range(t, steps):
            future = 0.0 if is_terminal[k] else value[k + 1]
            expected[t] += weight * (reward[k] + discount * future - value[k])
            if is_last[k]:
                break
            weight *= discount * lambda_
    f32 = [np.asarray(x, np.float32) for x in (reward, value)]
    got = advantages(*map(jnp.asarray, (*f32, is_last, is_terminal)), discount=discount, lambda_=lambda_)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_the_policy_loss_is_clipped_where_the_ratio_pays_too_much():
    log_ratio, advantage = np.log([0.5, 0.5, 1.1, 1.1, 2.0, 2.0]), np.array([1.0, -1.0] * 3)
    got = clipped_policy_loss(jnp.float32(log_ratio), jnp.float32(advantage), 0.2)
    np.testing.assert_allclose(got, [-0.5, 0.8, -1.1, 1.1, -1.2, 2.0], rtol=1e-5)
    slope = jax.vmap(jax.grad(clipped_policy_loss), (0, 0, None))(jnp.float32(log_ratio), jnp.float32(advantage), 0.2)
    np.testing.assert_allclose(slope, [-0.5, 0.0, -1.1, 1.1, 0.0, 2.0], rtol=1e-5)


def test_the_value_loss_is_the_larger_of_two():
    value, target = jnp.array([0.1, 0.5, 0.5, -3.0]), jnp.array([1.0, 1.0, -1.0, 0.0])
    # Held within 0.2 of 0: 0.1, 0.2, 0.2, -0.2.
    expected = 0.5 * np.square([0.9, 0.8, 1.5, 3.0])
    np.testing.assert_allclose(clipped_value_loss(value, jnp.zeros(4), target, 0.2), expected, rtol=1e-5)


class TabledProbe(AbstractEnvironment):
    """A probe whose facts are arrays, so that all five share one compilation."""

    table: Float[Array, "2 3 2"]
    length: Int[Array, ""]
    coloured: Bool[Array, ""]
    spec: DataSpec = eqx.field(default=DataSpec((2, 2, 1), ActionSpec((2,))), static=True)
    max_steps: int = eqx.field(default=3, static=True)

    def reset(self, *, key):
        state = ProbeState(jr.randint(key, (), 0, 2), jnp.zeros((), jnp.int32))
        return state, self._time_step(state, jnp.zeros(()))

    def step(self, state, action, *, key):
        starts = state.time == self.length
        reward = self.table[state.colour, jnp.minimum(state.time, 2), action.discrete[0]]
        fresh, _ = self.reset(key=key)
        after = jax.tree.map(lambda a, b: jnp.where(starts, a, b), fresh, ProbeState(state.colour, state.time + 1))
        return after, self._time_step(after, jnp.where(starts, 0.0, reward))

    def _time_step(self, state, reward):
        return TimeStep(self.frame(state.colour, state.time), reward, state.time == 0, *[state.time == self.length] * 2)

    def frame(self, colour, time):
        rows = jnp.stack([jnp.where(self.coloured, 255 * colour, 0), 255 * time // self.length])
        return jnp.broadcast_to(rows.astype(jnp.uint8)[:, None, None], (2, 2, 1))


def tabled(probe):
    rewards = [
        probe.reward(ProbeState(jnp.asarray(c), jnp.asarray(t)), jnp.asarray(a)) for c, t, a in np.ndindex(2, 3, 2)
    ]
    table = jnp.asarray(np.array(rewards, np.float32).reshape(2, 3, 2))
    return TabledProbe(table, jnp.asarray(probe.max_steps, jnp.int32), jnp.asarray(probe.coloured))


PROBE_CONFIG = PPOConfig(
    steps=20_000,
    num_envs=16,
    rollout_length=16,
    minibatches=2,
    learning_rate=1e-2,
    discount=DISCOUNT,
    num_frames=1,
    hidden=32,
)


@pytest.fixture(scope="module")
def probes():
    found = {}
    for probe in PROBES:
        env = tabled(probe())
        run, again = train_ppo(PROBE_CONFIG, env, keys=[jr.key(0), jr.key(1)])
        found[probe] = env, run, again
    return found


@pytest.mark.parametrize("probe", PROBES, ids=lambda p: p.__name__)
@pytest.mark.parametrize("seed", [0, 1])
def test_it_learns_the_probes(probes, probe, seed):
    env, *runs = probes[probe]
    assert runs[seed].returns[-1] > probe().optimal_return - 0.1


@pytest.mark.parametrize("probe", PROBES, ids=lambda p: p.__name__)
def test_its_value_is_that_of_the_best_policy(probes, probe):
    env, run, _ = probes[probe]
    network = run.policy().network
    times, colours = np.arange(env.length), (0, 1)
    got = [[float(network(env.frame(c, t)[None])[1]) for t in times] for c in colours]
    if probe is ObservedReward:
        expected = [[-1.0], [1.0]]
    else:
        expected = [DISCOUNT ** (probe().max_steps - 1 - times)] * 2
    np.testing.assert_allclose(got, expected, atol=0.1)


def test_seeds_side_by_side_are_the_seeds_alone(probes):
    env, _, together = probes[DelayedReward]
    (alone,) = train_ppo(PROBE_CONFIG, env, keys=[jr.key(1)])
    # Not to the end, because rounding grows with every update.
    assert distance(alone.snapshots[1], together.snapshots[1]) < 1e-3
    assert alone.returns[:2] == together.returns[:2]


class Unending(AbstractEnvironment):
    """Reward 1 a step for ever, cut by a time limit of two steps that cannot be seen."""

    spec: DataSpec = eqx.field(default=DataSpec((1, 1, 1), ActionSpec((2,))), static=True)
    max_steps: int = eqx.field(default=2, static=True)

    def reset(self, *, key):
        return jnp.zeros((), jnp.int32), self._time_step(jnp.zeros((), jnp.int32))

    def step(self, state, action, *, key):
        state = (state + 1) % 3
        return state, self._time_step(state)

    def _time_step(self, time):
        reward = (time > 0).astype(jnp.float32)
        return TimeStep(jnp.zeros((1, 1, 1), jnp.uint8), reward, time == 0, time == 2, jnp.zeros((), bool))


def test_a_time_limit_does_not_end_the_future():
    config = PROBE_CONFIG.model_copy(update={"discount": 0.5})
    (run,) = train_ppo(config, Unending(), keys=[jr.key(0)])
    value = run.policy().network(jnp.zeros((1, 1, 1, 1), jnp.uint8))[1]
    # 1 + 1/2 + 1/4 + ...; it would be 1.25, halfway between 1 and 1 + 1/2, if the limit ended it.
    np.testing.assert_allclose(value, 2.0, atol=0.2)


@pytest.fixture(scope="module")
def catch():
    env = GymnaxEnvironment("Catch-bsuite")
    config = PPOConfig(steps=100_000, num_envs=32, rollout_length=32, num_frames=2, hidden=64)
    return env, config, *train_ppo(config, env, keys=[jr.key(0)])


def test_it_learns_catch(catch):
    env, config, run = catch
    assert run.steps[-1] == steps_taken(config) == config.updates * config.steps_per_update
    # 245 updates in stretches of 4, the last of which is not whole.
    assert steps_taken(PPOConfig(steps=1_000_000, num_envs=32, rollout_length=128)) == 244 * 4096
    assert run.returns[0] < -0.3
    played = play(run.policy(), env, episodes=200, batch_size=200, key=jr.key(1))
    assert played.returns.mean() >= 0.9


def test_its_stages_make_data_of_mixed_quality(catch):
    env, _, run = catch
    means = [
        np.mean([e.total for e in collect(env, run.policy(stage), episodes=200, key=jr.key(2), num_envs=100)])
        for stage in ("early", "middle", "late")
    ]
    assert means[0] < means[1] < means[2]


def test_stages_are_told_by_returns():
    returns = (math.nan, 0.0, 1.0, 3.9, 4.0, 9.0, 8.0, 12.0, 11.0)
    network = generic(ActorCritic, DataSpec((2, 2, 1), ActionSpec((2,))), 1, 4, key=jr.key(0))
    run = TrainingRun((network,) * 9, tuple(range(9)), returns)
    assert [run.index(stage) for stage in ("early", "middle", "late")] == [4, 5, 8]
    assert TrainingRun((network,) * 2, (1, 2), (math.nan, math.nan)).index("early") == 1


def test_the_policy_remembers_the_newest_frames():
    spec = DataSpec((2, 2, 1), ActionSpec((2,), 1))
    policy = NetworkPolicy(generic(ActorCritic, spec, 3, 8, key=jr.key(0)))
    no = jnp.zeros((), bool)
    memory = policy.init()
    for t, level in enumerate((5, 6, 7, 8)):
        step = TimeStep(jnp.full((2, 2, 1), level, jnp.uint8), jnp.zeros(()), jnp.asarray(t == 0), no, no)
        action, memory = policy(memory, step, Action.null(spec.action), no, key=jr.key(t))
        assert np.abs(action.continuous).max() <= 1
        np.testing.assert_array_equal(memory[0][:, 0, 0, 0], [[5, 5, 5], [5, 5, 6], [5, 6, 7], [6, 7, 8]][t])


@pytest.mark.parametrize("shape", [(3, 5, 4), (10, 10, 4), (32, 48, 1), (2, 40, 1)])
def test_every_frame_fits(shape):
    def act(frames):
        return ActorCritic(DataSpec(shape, ActionSpec((3, 2), 2)), 2, 16, key=jr.key(0))(frames)

    distribution, value = jax.eval_shape(act, jax.ShapeDtypeStruct((2, *shape), jnp.uint8))
    assert [d.logits.shape for d in distribution.discrete] == [(3,), (2,)]
    assert distribution.continuous.loc.shape == (2,) and value.shape == ()
