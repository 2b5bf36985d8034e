"""Collection: whole episodes, aligned by the clock, none favoured."""

import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jaxtyping import Array, Int

from dreamer4.data import DeviceSource, RandomPolicy, collect, random_policy, read_episodes, write_dataset
from dreamer4.envs import AbstractEnvironment, CounterEnvironment, GymnaxEnvironment
from dreamer4.errors import InputError
from dreamer4.types import Action, ActionSpec, DataSpec, TimeStep


class Coin(AbstractEnvironment):
    """Episodes of 2 or of 20 steps, with equal chance; a bias towards the short ones is easy to see."""

    spec: DataSpec = eqx.field(default=DataSpec((2, 2, 1), ActionSpec((2,))), static=True)
    max_steps: int = eqx.field(default=20, static=True)

    def reset(self, *, key):
        state = jnp.where(jr.bernoulli(key), 2, 20), jnp.zeros((), jnp.int32)
        return state, self._time_step(state)

    def step(self, state, action, *, key):
        limit, time = state
        fresh, _ = self.reset(key=key)
        state = jax.tree.map(lambda a, b: jnp.where(time == limit, a, b), fresh, (limit, time + 1))
        return state, self._time_step(state)

    def _time_step(self, state):
        limit, time = state
        frame = jnp.full((2, 2, 1), limit, jnp.uint8)
        return TimeStep(frame, jnp.zeros(()), time == 0, time == limit, jnp.zeros((), bool))


class Endless(Coin):
    max_steps: int = eqx.field(default=3, static=True)


class CountingPolicy(eqx.Module):
    """Takes as its action what the frame shows as its index."""

    env: CounterEnvironment

    def __call__(self, frame, *, key) -> Action:
        index: Int[Array, ""] = self.env.decode(frame)[0]
        return Action(index[None] % self.env.spec.action.num_classes[0], jnp.zeros(0))


def assert_equal(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        for name in ("frame", "discrete", "continuous", "action_mask", "reward", "is_terminal"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_the_clock_holds_from_environment_to_batch(tmp_path):
    env = CounterEnvironment(6, 7)
    episodes = collect(env, random_policy(env.spec), episodes=40, key=jr.key(0), num_envs=8)
    write_dataset(tmp_path / "d", episodes, spec=env.spec, environment={"id": "counter"}, policy="random", seed=0)
    source = DeviceSource.from_episodes(read_episodes(tmp_path / "d"))
    batch = eqx.filter_jit(source.sample)(200, 4, key=jr.key(1))
    index, led = env.decode(batch.frame)
    np.testing.assert_array_equal(batch.reward, index)
    np.testing.assert_array_equal(index, np.arange(4) + np.asarray(index)[:, :1])
    np.testing.assert_array_equal(batch.action.discrete[..., 0], np.where(batch.action_mask, led, 0))
    np.testing.assert_array_equal(batch.action_mask, led >= 0)
    np.testing.assert_array_equal(batch.is_first, index == 0)
    np.testing.assert_array_equal(batch.is_last, index == 5)
    np.testing.assert_array_equal(batch.is_terminal, batch.is_last)
    assert len(np.unique(led)) == 8


def test_a_policy_sees_the_frame_it_acts_on():
    env = CounterEnvironment(9, 5)
    for episode in collect(env, CountingPolicy(env), episodes=3, key=jr.key(0), num_envs=2):
        np.testing.assert_array_equal(episode.discrete[1:, 0], np.arange(8) % 5)
        np.testing.assert_array_equal(env.decode(jnp.asarray(episode.frame))[1], [-1, *(np.arange(8) % 5)])


def test_short_episodes_are_not_favoured():
    episodes = collect(Coin(), random_policy(Coin().spec), episodes=400, key=jr.key(0), num_envs=100)
    long = np.mean([e.length == 21 for e in episodes])
    # Three standard errors. Taking whichever ends first would give about one in eleven.
    assert abs(long - 0.5) < 0.075
    assert all(e.length == e.frame[0, 0, 0, 0] + 1 for e in episodes)


def test_the_length_of_a_chunk_changes_nothing(monkeypatch):
    once = collect(Coin(), random_policy(Coin().spec), episodes=10, key=jr.key(2), num_envs=3)
    # By sys.modules, since the package re-exports the function under the name of its module.
    monkeypatch.setattr(sys.modules["dreamer4.data.collect"], "_CHUNK", 7)
    assert_equal(collect(Coin(), random_policy(Coin().spec), episodes=10, key=jr.key(2), num_envs=3), once)


def test_the_key_decides():
    env = CounterEnvironment(5, 4)
    draw = lambda seed: collect(env, random_policy(env.spec), episodes=5, key=jr.key(seed), num_envs=5)  # noqa: E731
    assert_equal(draw(0), draw(0))
    assert any((a.discrete != b.discrete).any() for a, b in zip(draw(0), draw(1), strict=True))


def test_the_last_frame_of_catch_is_kept():
    env = GymnaxEnvironment("Catch-bsuite")
    for episode in collect(env, random_policy(env.spec), episodes=30, key=jr.key(0), num_envs=30):
        assert (episode.length, episode.is_terminal) == (10, True)
        assert episode.reward[-1] in (-1, 1)
        assert not episode.reward[:-1].any()
        ball_and_paddle = episode.frame[-1, -1, :, 0]
        assert (ball_and_paddle > 0).sum() == (1 if episode.reward[-1] == 1 else 2)


def test_progress_is_told_up_to_the_end():
    told = []
    env = CounterEnvironment(3, 2)
    collect(env, random_policy(env.spec), episodes=7, key=jr.key(0), num_envs=2, progress=lambda *now: told.append(now))
    assert told[-1] == (7, 7)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_an_environment_that_outlasts_its_bound_is_named():
    with pytest.raises(InputError, match="Endless outlasts its max_steps of 3"):
        collect(Endless(), random_policy(Endless().spec), episodes=20, key=jr.key(0), num_envs=20)


@pytest.mark.parametrize("numbers", [{"episodes": 0}, {"episodes": 1, "num_envs": 0}])
def test_numbers_below_one_are_refused(numbers):
    with pytest.raises(InputError, match="at least 1"):
        collect(Coin(), random_policy(Coin().spec), key=jr.key(0), **numbers)


def test_the_random_policy_is_uniform_over_every_factor():
    policy = RandomPolicy(ActionSpec((2, 5), 3))
    frame = jnp.zeros((1, 1, 1), jnp.uint8)
    action = jax.vmap(lambda k: policy(frame, key=k))(jr.split(jr.key(0), 2000))
    for component, n in enumerate((2, 5)):
        share = np.bincount(action.discrete[:, component], minlength=n) / 2000
        np.testing.assert_allclose(share, 1 / n, atol=0.04)
    np.testing.assert_allclose(action.continuous.mean(axis=0), 0, atol=0.05)
    np.testing.assert_allclose(action.continuous.var(axis=0), 1 / 3, atol=0.03)
    assert np.abs(action.continuous).max() <= 1
