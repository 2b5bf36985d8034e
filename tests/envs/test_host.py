"""Worlds outside JAX: stepped by hand and through the house they show the same, and what breaks is told in words."""

import gymnasium
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import toy_gym
from PIL import Image

from dreamer4.config import EnvConfig
from dreamer4.data import AbstractPolicy, collect, random_policy, replay
from dreamer4.envs import HostEnvironment, broken, is_sound, make, seed_of
from dreamer4.errors import InputError
from dreamer4.evaluation import play
from dreamer4.types import Action, ActionSpec


def walk(**kwargs):
    return make(EnvConfig(id="toy/Walk-v0", kwargs={"size": [4, 20], **kwargs}))


def seed(episode):
    assert episode.key is not None
    return int(seed_of(jr.wrap_key_data(jnp.asarray(episode.key[0]))))


def by_hand(seed, actions):
    """Plays plain Gymnasium; returns frames, rewards, and how it ended."""
    env = gymnasium.make("toy/Walk-v0", render_mode="rgb_array")
    env.reset(seed=seed)
    frames, rewards, terminated, truncated = [env.render()], [0.0], False, False
    for action in actions:
        _, reward, terminated, truncated, _ = env.step(action)
        frames.append(env.render())
        rewards.append(float(reward))
    small = [np.asarray(Image.fromarray(np.asarray(f)).resize((20, 4), Image.Resampling.BOX)) for f in frames]
    return np.stack(small), np.asarray(rewards, np.float32), terminated, truncated


def test_episodes_are_those_of_gymnasium_with_the_same_seed():
    env = walk()
    episodes = collect(env, random_policy(env.spec), episodes=9, num_envs=4, key=jr.key(3))
    for episode in episodes:
        frames, rewards, terminated, truncated = by_hand(seed(episode), episode.discrete[1:, 0] - 1)
        np.testing.assert_array_equal(episode.frame, frames)
        np.testing.assert_array_equal(episode.reward, rewards)
        assert episode.is_terminal == terminated
        assert terminated or truncated  # the last frame of a collected episode is Gymnasium's last
        assert not episode.action_mask[0] and episode.action_mask[1:].all()
    assert {e.is_terminal for e in episodes} == {False, True}
    again = collect(env, random_policy(env.spec), episodes=9, num_envs=4, key=jr.key(3))
    assert all((a.frame == b.frame).all() for a, b in zip(episodes, again, strict=True) if a.length == b.length)
    assert [e.length for e in episodes] == [e.length for e in again]
    assert len({e.frame.tobytes() for e in episodes}) > 5


def test_episodes_played_side_by_side_are_those_played_alone():
    env = walk()
    together = play(random_policy(env.spec), env, episodes=6, key=jr.key(0))
    alone = play(random_policy(env.spec), env, episodes=6, batch_size=1, key=jr.key(0))
    np.testing.assert_array_equal(together.returns, alone.returns)
    np.testing.assert_array_equal(together.length, alone.length)
    assert together.finished.all() and len(set(np.asarray(together.length).tolist())) > 1


def test_limits_truncate_and_repeats_add_up():
    env = walk(action_repeat=2, max_steps=3)
    assert walk(action_repeat=5).max_steps == 3  # 12 steps of its own
    episodes = collect(env, random_policy(env.spec), episodes=8, key=jr.key(1))
    for episode in episodes:
        steps = np.repeat(episode.discrete[1:, 0] - 1, 2)
        early = by_hand(seed(episode), steps[:-1])[2]  # the last repeat is not carried out
        _, rewards, terminated, _ = by_hand(seed(episode), steps[:-1] if early else steps)
        assert episode.total == pytest.approx(rewards.sum(), abs=1e-6)
        assert episode.length == 4 or episode.is_terminal
        assert episode.is_terminal == terminated


def test_vectors_fill_the_bounds_of_the_action_space():
    env = make(EnvConfig(id="toy/Push-v0", kwargs={"size": 4, "max_steps": 5}))
    assert env.spec.action == ActionSpec((), 2)
    (episode,) = collect(env, random_policy(env.spec), episodes=1, key=jr.key(0))
    force = 3 * 2 * episode.continuous[1:, 0] + 5 * (episode.continuous[1:, 1] + 1)
    np.testing.assert_allclose(episode.reward[1:], force, rtol=1e-5)
    assert episode.length == 6 and not episode.is_terminal


def test_a_world_that_raises_is_told_with_its_seed_and_can_be_played_again():
    env = walk(fails=5)
    with pytest.raises(InputError, match=r"toy/Walk-v0 failed at action 5 .* seed \d+: OSError: the motor is stuck"):
        play(random_policy(env.spec), env, episodes=8, key=jr.key(0))
    state, step = env.reset(key=jr.key(0))
    assert bool(step.is_first) and env.fault() is None


def test_a_process_plays_the_same_and_its_death_is_told():
    here = walk()
    there = make(EnvConfig(id="toy_gym:toy/Walk-v0", kwargs={"size": [4, 20], "dies": 3}, workers=1))
    states, action = (
        [env.reset(key=jr.key(5))[0] for env in (here, there)],
        Action(jnp.ones(1, jnp.int32), jnp.zeros(0)),
    )
    for _ in range(2):
        (a, one), (b, other) = (
            env.step(s, action, key=jr.key(0)) for env, s in zip((here, there), states, strict=True)
        )
        np.testing.assert_array_equal(one.frame, other.frame)
        assert one.reward == other.reward
        states = [a, b]
    _, lost = there.step(states[1], action, key=jr.key(0))
    assert not is_sound(lost, follows_last=False) and "ended without a word" in str(there.fault())
    with pytest.raises(InputError, match="env.workers"):
        make(EnvConfig(id="Catch-bsuite", workers=1))


def test_a_state_is_good_for_one_step():
    env = walk()
    state, _ = env.reset(key=jr.key(0))
    action = Action(jnp.ones(1, jnp.int32), jnp.zeros(0))
    later, step = env.step(state, action, key=jr.key(1))
    _, again = env.step(state, action, key=jr.key(1))
    np.testing.assert_array_equal(step.frame, again.frame)  # the same step is the same
    env.step(later, action, key=jr.key(2))
    _, wrong = env.step(state, action, key=jr.key(1))
    assert not is_sound(wrong, follows_last=False) and "cannot go back" in str(env.fault())
    with pytest.raises(InputError, match="cannot go back"):
        replay(env, [])


class Script(AbstractPolicy):
    """Walks by the parity of the light's place, at which it looks."""

    env: HostEnvironment
    start: float

    def init(self):
        return jnp.full(1, self.start)

    def peek(self, memory, state):
        return self.env.consult(state, toy_gym.place, memory)

    def __call__(self, memory, time_step, action, action_mask, *, key):
        return Action((memory.astype(jnp.int32) // 4) % 2, action.continuous), memory


@pytest.mark.parametrize("workers", [0, 1])
def test_a_script_sees_the_moment_that_its_action_leads_from(workers):
    env = make(EnvConfig(id="toy_gym:toy/Walk-v0", kwargs={"size": [4, 20], "max_steps": 12}, workers=workers))
    assert isinstance(env, HostEnvironment)
    for episode in collect(env, Script(env, 0.0), episodes=5, num_envs=3, key=jr.key(1)):
        places = episode.frame.sum((1, 3), dtype=int).argmax(1) // 2
        np.testing.assert_array_equal(episode.discrete[1:, 0], places[:-1] % 2)


def test_a_script_that_fails_is_told():
    env = walk(max_steps=12)
    with pytest.raises(InputError, match="was looked at and failed: OSError: too dark"):
        collect(env, Script(env, -1.0), episodes=2, key=jr.key(1))


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"size": 0}, "env.kwargs.size"),
        ({"size": [4]}, "env.kwargs.size"),
        ({"action_repeat": 0}, "env.kwargs.action_repeat"),
        ({"max_steps": -1}, "env.kwargs.max_steps"),
        ({"wheels": 3}, "wheels"),
    ],
)
def test_arguments_out_of_range_are_refused(kwargs, said):
    with pytest.raises(InputError, match=said):
        walk(**kwargs)


def test_worlds_that_cannot_be_seen_or_never_end_are_refused():
    with pytest.raises(InputError, match="max_steps"):
        make(EnvConfig(id="toy/Push-v0"))
    with pytest.raises(InputError, match="module, as ale_py:ALE/Pong-v5"):
        make(EnvConfig(id="toy/Wlak-v0"))
    blind = walk(draws=False)
    with pytest.raises(InputError, match="its picture is None"):
        raise broken(blind) if not is_sound(blind.reset(key=jr.key(0))[1], follows_last=True) else AssertionError
