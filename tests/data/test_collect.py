"""Collection: whole episodes, aligned by the clock, none favoured."""

import dataclasses
import sys
from inspect import unwrap

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jaxtyping import Array, Int

from dreamer4.data import (
    AbstractPolicy,
    DeviceSource,
    EpsilonPolicy,
    RandomPolicy,
    collect,
    random_action,
    random_policy,
    read_episodes,
    write_dataset,
)
from dreamer4.envs import AbstractEnvironment, CounterEnvironment, GymnaxEnvironment
from dreamer4.errors import InputError
from dreamer4.evaluation import play
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


class CountingPolicy(AbstractPolicy):
    """Takes as its action what the frame shows as its index."""

    env: CounterEnvironment

    def init(self):
        return None

    def __call__(self, memory, time_step, action, action_mask, *, key):
        index: Int[Array, ""] = self.env.decode(time_step.frame)[0]
        return Action(index[None] % self.env.spec.action.num_classes[0], jnp.zeros(0)), memory


class Diarist(AbstractPolicy):
    """Remembers how many frames and actions it was told of, and takes their sum with the last action as its action.

    Where the memory is not started afresh, a frame is missed, or an action comes with the wrong frame, its actions are
    others than those of `diary`.
    """

    spec: DataSpec = eqx.field(static=True)

    def init(self):
        return jnp.zeros((), jnp.int32)

    def __call__(self, memory, time_step, action, action_mask, *, key):
        memory = memory + 1 + action_mask
        chosen = (memory + action.discrete * action_mask) % self.spec.action.num_classes[0]
        return Action(chosen, jnp.zeros(0)), memory


def diary(steps, num_classes):
    """The actions of a Diarist over an episode."""
    count, taken = 0, []
    for t in range(steps):
        count += 1 + (t > 0)
        taken.append((count + (taken[-1] if taken else 0)) % num_classes)
    return taken


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
    index, led = (np.asarray(part) for part in env.decode(batch.frame))
    first, valid = index[:, :1], np.asarray(batch.valid)
    np.testing.assert_array_equal(index, np.minimum(np.arange(4) + first, 5))
    np.testing.assert_array_equal(valid, np.arange(4) + first <= 5)
    np.testing.assert_array_equal(batch.reward, np.where(valid, index, 0))
    np.testing.assert_array_equal(batch.action.discrete[..., 0], np.where(led >= 0, led, 0))
    np.testing.assert_array_equal(batch.action_mask, (led >= 0) & valid)
    np.testing.assert_array_equal(batch.is_first, index == 0)
    np.testing.assert_array_equal(batch.is_last, (index == 5) & valid)
    np.testing.assert_array_equal(batch.is_terminal, batch.is_last)
    assert len(np.unique(led)) == 8


def test_a_policy_sees_the_frame_it_acts_on():
    env = CounterEnvironment(9, 5)
    for episode in collect(env, CountingPolicy(env), episodes=3, key=jr.key(0), num_envs=2):
        np.testing.assert_array_equal(episode.discrete[1:, 0], np.arange(8) % 5)
        np.testing.assert_array_equal(env.decode(jnp.asarray(episode.frame))[1], [-1, *(np.arange(8) % 5)])


@pytest.mark.parametrize("num_envs", [1, 4])
def test_a_policy_remembers_its_episode_and_no_other(num_envs):
    env = CounterEnvironment(9, 7)
    for episode in collect(env, Diarist(env.spec), episodes=8, key=jr.key(0), num_envs=num_envs):
        np.testing.assert_array_equal(episode.discrete[1:, 0], diary(8, 7))


def test_a_memory_lives_on_over_chunks(monkeypatch):
    monkeypatch.setattr(sys.modules["dreamer4.data.collect"], "_CHUNK", 5)
    env = CounterEnvironment(9, 7)
    for episode in collect(env, Diarist(env.spec), episodes=6, key=jr.key(0), num_envs=2):
        np.testing.assert_array_equal(episode.discrete[1:, 0], diary(8, 7))


def test_epsilon_is_the_share_of_random_actions():
    env = CounterEnvironment(101, 5)
    strays = []
    for epsilon in (0.0, 0.5, 1.0):
        policy = EpsilonPolicy(CountingPolicy(env), epsilon, env.spec.action)
        episodes = collect(env, policy, episodes=20, key=jr.key(0), num_envs=20)
        strays.append(np.mean([e.discrete[1:, 0] != np.arange(100) % 5 for e in episodes]))
    # Of the random actions one in five is the one the policy would have taken.
    assert strays[0] == 0
    np.testing.assert_allclose(strays[1:], [0.4, 0.8], atol=0.04)


def test_a_stray_action_is_remembered():
    env = CounterEnvironment(41, 7)
    policy = EpsilonPolicy(Diarist(env.spec), 0.5, env.spec.action)
    followed = 0
    for episode in collect(env, policy, episodes=10, key=jr.key(0), num_envs=10):
        taken = episode.discrete[1:, 0]
        # From the third action on: the count of what it was told is 2 t + 1, plus the action it is told of.
        followed += np.sum(taken[1:] == (2 * np.arange(1, 40) + 1 + taken[:-1]) % 7)
    assert abs(followed / 390 - (0.5 + 0.5 / 7)) < 0.08


@pytest.mark.parametrize("epsilon", [-0.1, 1.1, float("nan")])
def test_epsilon_must_be_a_probability(epsilon):
    with pytest.raises(InputError, match="epsilon"):
        EpsilonPolicy(RandomPolicy(ActionSpec((2,))), epsilon, ActionSpec((2,)))


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


class Stubborn(AbstractPolicy):
    """Takes one action, whatever the environment knows."""

    action: int

    def init(self):
        return None

    def __call__(self, memory, time_step, action, action_mask, *, key):
        return Action(jnp.full(1, self.action, jnp.int32), jnp.zeros(0)), memory


def test_a_policy_that_chooses_what_is_no_action_is_refused_while_it_plays():
    for action in (2, -1):
        with pytest.raises(InputError, match="Stubborn chose an action that is none of"):
            collect(Endless(), Stubborn(action), episodes=4, key=jr.key(0))  # before its end is looked at
        with pytest.raises(InputError, match="Stubborn chose an action that is none of"):
            play(Stubborn(action), CounterEnvironment(3, 2), episodes=4, key=jr.key(0))


@pytest.mark.parametrize("numbers", [{"episodes": 0}, {"episodes": 2.5}, {"episodes": 1, "num_envs": 0}])
def test_numbers_of_nothing_are_refused(numbers):
    # Without the suite's check of annotations, as users have it.
    with pytest.raises(InputError, match="at least 1"):
        unwrap(collect)(Coin(), random_policy(Coin().spec), key=jr.key(0), **numbers)


def test_random_actions_are_uniform_over_every_factor():
    spec = ActionSpec((2, 5), 3)
    action = jax.vmap(lambda k: random_action(spec, key=k))(jr.split(jr.key(0), 2000))
    for component, n in enumerate((2, 5)):
        share = np.bincount(action.discrete[:, component], minlength=n) / 2000
        np.testing.assert_allclose(share, 1 / n, atol=0.04)
    np.testing.assert_allclose(action.continuous.mean(axis=0), 0, atol=0.05)
    np.testing.assert_allclose(action.continuous.var(axis=0), 1 / 3, atol=0.03)
    assert np.abs(action.continuous).max() <= 1


class Slip(Coin):
    """A coin with a slip of its author's."""

    slip: str = eqx.field(default="", static=True)

    def step(self, state, action, *, key):
        if self.slip == "auto-reset":  # the end is told with the next episode's first frame
            limit, time = state
            after = limit, time + 1
            told = self._time_step(after)
            fresh, _ = self.reset(key=key)
            state = jax.tree.map(lambda a, b: jnp.where(told.is_last, a, b), fresh, after)
            return state, dataclasses.replace(told, frame=self._time_step(state).frame, is_first=jnp.zeros((), bool))
        return super().step(state, action, key=key)

    def _time_step(self, state):
        step = super()._time_step(state)
        limit, time = state
        change = {
            "always first": {"is_first": jnp.ones((), bool)},
            "never first": {"is_first": jnp.zeros((), bool)},
            "terminal, not last": {"is_last": jnp.zeros((), bool), "is_terminal": time == limit},
            "no number": {"reward": jnp.where(time == 1, jnp.nan, 0.0)},
            "another size": {"frame": jnp.zeros((2, 3, 1), jnp.uint8)},
            "no number at reset": {"reward": jnp.where(time == 0, jnp.nan, 1.0)},
        }
        return dataclasses.replace(step, **change.get(self.slip, {}))


@pytest.mark.parametrize(
    ("slip", "told"),
    [
        *((slip, "order of an episode") for slip in ("always first", "never first", "terminal, not last", "no number")),
        ("auto-reset", "auto-reset"),
        ("another size", r"reset: frame is uint8 of shape \(2, 3, 1\), expected uint8 of shape \(2, 2, 1\)"),
    ],
)
def test_an_environment_that_breaks_the_contract_is_refused_wherever_it_is_played(slip, told):
    env = Slip(slip=slip)
    with pytest.raises(InputError, match=told):
        collect(env, random_policy(env.spec), episodes=4, key=jr.key(0), num_envs=4)
    if slip != "auto-reset":  # which only the episode behind another one shows
        with pytest.raises(InputError, match=told):
            play(random_policy(env.spec), env, episodes=4, key=jr.key(0))


def test_a_reward_before_anything_was_done_means_nothing_and_is_no_fault():
    env = Slip(slip="no number at reset")
    episodes = collect(env, random_policy(env.spec), episodes=4, key=jr.key(0), num_envs=2)
    assert all(e.reward[0] == 0 and e.total == e.length - 1 for e in episodes)
    played = play(random_policy(env.spec), env, episodes=4, key=jr.key(0))
    assert (np.asarray(played.returns) == np.asarray(played.length) - 1).all()
