"""The learned world as an environment, behind three interfaces: what is played there is what the model dreams."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from helpers import compilations

import dreamer4.serving  # noqa: F401
from dreamer4.checkpoint import read_meta
from dreamer4.data import DeviceSource, read_episodes
from dreamer4.dreamer import Memory
from dreamer4.errors import InputError
from dreamer4.serving import DreamEnvironment, DreamParams, DreamWorld, dream, gym
from dreamer4.serving.environment import action_space, to_action
from dreamer4.serving.gym import _action_space, _to_action
from dreamer4.types import Action, ActionSpec, to_float, to_uint8


FIXTURE = Path(__file__).parents[1] / "fixtures" / "v1"
SOURCE = {"dataset": FIXTURE / "data"}


@pytest.fixture(scope="module")
def world():
    """Three pixels of context at most, frames of 4 x 4; actions of one component of 3 classes and 2 dimensions."""
    return DreamWorld.load(FIXTURE / "run", **SOURCE, max_steps=4)


@pytest.fixture(scope="module")
def env(world):
    return DreamEnvironment(world)


TAKEN = Action(jnp.asarray([2], jnp.int32), jnp.asarray([0.5, -1.0]))


@eqx.filter_jit
def seen(dreamer, clips, offset, keys):
    """Returns the read-out of one frame of each clip, encoded with its past and committed alone."""

    def one(frames, action, mask, t, key):
        latent = dreamer.tokenizer.encode(to_float(frames))[t]
        action = jax.tree.map(lambda x: x[t], action)
        state = dreamer.dynamics.init(jnp.zeros((), jnp.int32))
        return dreamer.dynamics.readout(dreamer.dynamics.observe(state, latent, action, mask[t], key=key))

    return jax.vmap(one)(clips.frame, clips.action, clips.action_mask, offset, keys)


@eqx.filter_jit
def dreamt(dreamer, state):
    """Returns frames, rewards and continuations of three imagined steps, each from the heads themselves."""

    def body(carry, t):
        memory, decoder = carry
        image, _, memory, decoder = dreamer.imagine_frame(memory, decoder, TAKEN, key=jr.key(t))
        h = dreamer.readout(memory)
        return (memory, decoder), (image, dreamer.reward(h).mean(), dreamer.continuation(h).mean())

    memory = Memory(dreamer.tokenizer.init_encoder(), state.world)
    return jax.lax.scan(body, (memory, state.decoder), jnp.arange(3))[1]


@eqx.filter_jit
def advance(world, state, key):
    return world.advance(state, TAKEN, key=key)


class TestWorld:
    def test_a_start_is_a_real_frame_and_the_memory_of_it(self, world):
        source = DeviceSource.from_episodes(read_episodes(FIXTURE / "data", "all"))
        made = DreamWorld.from_source(
            world.dreamer, source, world.spec, anywhere=True, num_starts=5, max_steps=4, key=jr.key(3)
        )
        key_starts, key_noise = jr.split(jr.key(3))
        index, offset = dream._draw(source, 1, True, 5, key=key_starts)
        clips = source.episodes(index, 5)
        np.testing.assert_array_equal(made.frames, clips.frame[jnp.arange(5), offset])
        expected = seen(world.dreamer, clips, offset, jr.split(key_noise, 5))
        np.testing.assert_allclose(made.starts.world.h, expected, atol=1e-5)

    def test_starts_are_whole_contexts_and_leave_a_frame_to_dream(self):
        source = DeviceSource.from_episodes(read_episodes(FIXTURE / "data", "all"))  # of 3, 4 and 5 frames
        for length, episodes in ((1, 3), (3, 2), (4, 1)):
            index, offset = dream._draw(source, length, False, 5, key=jr.key(0))
            assert sorted(np.asarray(source.length)[index]) == [3, 4, 5][3 - episodes :]
            assert not offset.any()
            index, offset = dream._draw(source, length, True, 200, key=jr.key(0))
            room = np.asarray(source.length)[index] - length
            assert len(index) == 200 and (offset >= 0).all() and (offset < room).all()
            assert len(np.unique(np.stack([index, offset]), axis=1).T) == sum(
                n - length for n in (3, 4, 5) if n > length
            )

    def test_frames_after_the_first_compile_nothing(self, world):
        keys = [jr.key(t) for t in range(5)]
        state, frame, _, _ = advance(world, world.reset(key=keys[0])[0], keys[0])
        with compilations() as compiled:
            for key in keys[1:]:
                state, following, _, _ = advance(world, state, key)
        assert not compiled
        assert not np.array_equal(frame, following)

    def test_a_step_is_what_the_model_dreams_decoded_and_judged_by_its_heads(self, world):
        state, first = world.reset(key=jr.key(0))
        assert any(np.array_equal(first.frame, frame) for frame in np.asarray(world.frames))
        images, expected, goes_on = dreamt(world.dreamer, state)
        for t in range(3):
            state, frame, reward, terminal = advance(world, state, jr.key(t))
            np.testing.assert_allclose(reward, expected[t], atol=1e-6)
            assert np.abs(np.asarray(frame, int) - np.asarray(to_uint8(images[t]), int)).max() <= 1
            assert bool(terminal) == bool(goes_on[t] <= 0.5)
            assert int(state.time) == t + 1

    def test_frames_are_rounded_to_the_nearest_value_that_occurs(self, world):
        coarse = dataclasses.replace(world, levels=(0, 100, 255))
        image = jnp.asarray([-0.2, 0.19, 0.20, 0.39, 0.69, 0.70, 1.3, 0.5]).reshape(2, 4, 1)
        np.testing.assert_array_equal(coarse._frame(image).ravel(), [0, 0, 100, 100, 100, 255, 255, 100])

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"context_length": 4}, "expected 1 to 3"),
            ({"context_length": 0}, "context_length=0"),
            ({"num_starts": True}, "num_starts=True"),
            ({"max_steps": 0}, "max_steps=0, expected"),
            ({"num_starts": 0}, "num_starts=0, expected"),
            ({"num_steps": 3}, "divides k_max = 4"),
            ({"num_steps": 8}, "divides k_max = 4"),
            ({"dataset": None}, "data"),
        ],
    )
    def test_what_cannot_be_is_refused(self, arguments, message):
        with pytest.raises(InputError, match=message):
            DreamWorld.load(FIXTURE / "run", **{**SOURCE, **arguments})

    def test_a_model_without_heads_is_no_environment(self, monkeypatch):
        monkeypatch.setattr(dream.checkpoint, "read_meta", lambda path: read_meta(path) | {"phase": "dynamics"})
        with pytest.raises(InputError, match="neither rewards nor ends"):
            DreamWorld.load(FIXTURE / "run", **SOURCE)

    def test_no_episode_is_longer_than_its_context(self, world):
        source = DeviceSource.from_episodes([e for e in read_episodes(FIXTURE / "data", "all") if e.length == 3])
        with pytest.raises(InputError, match="one must be left to dream"):
            DreamWorld.from_source(world.dreamer, source, world.spec, context_length=3, key=jr.key(0))


@eqx.filter_jit
def rollout(env, params, keys, steps):
    """Plays random actions in many dreams side by side; the weights are an argument."""

    def body(carry, key):
        obs, state = carry
        key_action, key_step = jr.split(key)
        action = env.action_space(params).sample(key_action)
        following, state, reward, terminated, truncated, info = env.step(key_step, state, action, params)
        return (following, state), (obs, reward, terminated, truncated, info["final_observation"], state.time)

    def play(key):
        key_reset, key_steps = jr.split(key)
        return jax.lax.scan(body, env.reset(key_reset, params), jr.split(key_steps, steps))[1]

    return jax.vmap(play)(keys)


class TestGymnax:
    def test_a_thousand_dreams_keep_the_conventions(self, env, world):
        params = DreamParams(world, jnp.asarray(4))
        played = jax.tree.map(np.asarray, rollout(env, params, jr.split(jr.key(0), 1000), 9))
        obs, reward, terminated, truncated, final, time = played
        assert obs.shape == (1000, 9, *world.spec.frame_shape) and obs.dtype == np.float32
        assert obs.min() >= 0 and obs.max() <= 1
        assert reward.dtype == np.float32 and np.isfinite(reward).all()
        done = terminated | truncated
        assert terminated.any() and truncated.any() and not done.all(), "the test saw too little"
        # The next observation is real behind an end, and the final one of the step before elsewhere.
        starts = {frame.tobytes() for frame in np.asarray(to_float(world.frames))}
        for i, t in np.argwhere(done[:, :-1])[:50]:
            assert obs[i, t + 1].tobytes() in starts
        i, t = np.argwhere(~done[:, :-1]).T
        np.testing.assert_array_equal(obs[i, t + 1], final[i, t])
        assert (time[done] == 0).all() and (time[~done] > 0).all() and time.max() == 3
        assert (truncated[:, 3] == ~terminated[:, :3].any(1))[~terminated[:, :3].any(1)].all()
        assert len(np.unique(final.reshape(9000, -1), axis=0)) > 8000, "dreams are drawn, not repeated"

    def test_the_same_keys_dream_the_same_dreams(self, env, world):
        params, keys = DreamParams(world, jnp.asarray(4)), jr.split(jr.key(0), 1000)
        first, second = rollout(env, params, keys, 9), rollout(env, params, keys, 9)
        assert eqx.tree_equal(first, second)

    def test_the_limit_is_a_parameter(self, env, world):
        params = DreamParams(world, jnp.asarray(2))
        _, _, terminated, truncated, _, _ = rollout(env, params, jr.split(jr.key(0), 1000), 9)
        first = np.asarray(truncated)[~np.asarray(terminated)[:, 0]]
        assert first[:, 1].all() and not first[:, 0].any()

    def test_spaces_hold_what_is_played(self, env):
        obs, state = env.reset(jr.key(0), env.default_params)
        assert env.default_params.max_steps_in_episode == 4
        assert bool(env.observation_space().contains(obs)) and obs.shape == env.observation_space().shape
        assert (env.name, env.num_actions) == ("Dream", 3)
        assert not bool(env.is_terminated(state, env.default_params))

    @pytest.mark.parametrize("spec", [ActionSpec((4,)), ActionSpec((), 2), ActionSpec((2, 5)), ActionSpec((2, 5), 3)])
    def test_every_kind_of_action_is_understood(self, spec):
        action = to_action(spec, action_space(spec).sample(jr.key(1)))
        assert jax.tree.map(jnp.shape, action) == jax.tree.map(jnp.shape, Action.null(spec))
        assert bool(jnp.all(action.discrete < jnp.asarray(spec.num_classes, jnp.int32)))
        space = _action_space(spec)
        space.seed(1)
        taken = _to_action(spec, space.sample())
        assert jax.tree.map(lambda x: (x.shape, x.dtype), taken) == jax.tree.map(
            lambda x: (x.shape, x.dtype), Action.null(spec)
        )

    def test_continuous_actions_are_held_in_their_bounds(self):
        np.testing.assert_array_equal(to_action(ActionSpec((), 2), jnp.asarray([-3.0, 0.5])).continuous, [-1.0, 0.5])
        np.testing.assert_array_equal(_to_action(ActionSpec((), 2), [-3.0, 0.5]).continuous, [-1.0, 0.5])


@pytest.fixture(scope="module")
def made():
    path, dataset = str(FIXTURE / "run"), str(FIXTURE / "data")
    return gymnasium.make("dreamer4/Dream-v0", path=path, dataset=dataset, max_steps=2, render_mode="rgb_array")


class TestGymnasium:
    @pytest.mark.filterwarnings("error")
    def test_gymnasium_finds_nothing_to_mend(self, made):
        check_env(made.unwrapped)

    def test_an_episode_ends_by_termination_or_by_the_limit(self, made):
        ends = set()
        for seed in range(600):
            made.reset(seed=seed)
            made.action_space.seed(seed)
            for t in (1, 2):
                *_, terminated, truncated, _ = made.step(made.action_space.sample())
                assert truncated == (t == 2)
                if terminated or truncated:
                    ends.add((terminated, t))
                    break
            if {(False, 2), (True, 1)} <= ends:
                return
        raise AssertionError(f"seen only {ends}")

    def test_a_picture_shows_the_newest_frame(self, made):
        frame, _ = made.reset(seed=0)
        picture = made.render()
        assert picture.shape == (256, 256, 3)
        np.testing.assert_array_equal(picture[::64, ::64, 0], frame[..., 0])

    @pytest.mark.parametrize("action", [(3, [0, 0]), (-1, [0, 0]), ([1, 2], [0, 0]), ("left", [0, 0]), (None, [0, 0])])
    def test_an_action_outside_of_the_space_is_refused(self, made, action):
        made.reset(seed=0)
        with pytest.raises(InputError, match="expected one of Tuple"):
            made.unwrapped.step(action)

    @pytest.mark.parametrize("action", [(1, [0]), (1, [0, np.nan]), (1, 0.5), 1, None, (True, [0, 0])])
    def test_an_action_of_another_shape_is_refused(self, made, action):
        made.reset(seed=0)
        with pytest.raises(InputError, match="expected one of Tuple"):
            made.unwrapped.step(action)

    def test_observations_belong_to_their_receiver(self, made):
        frame, _ = made.reset(seed=0)
        frame[:] = 7
        assert not (made.render()[::64, ::64, 0] == 7).all()
        following, *_ = made.step((1, np.zeros(2, np.float32)))
        following[:] = 7

    def test_many_dreams_are_one_environment(self):
        path, dataset = str(FIXTURE / "run"), str(FIXTURE / "data")
        many = gymnasium.make_vec(
            "dreamer4/Dream-v0", 3, "vector_entry_point", path=path, dataset=dataset, max_steps=2, num_starts=8
        )
        first, _ = many.reset(seed=0)
        np.testing.assert_array_equal(first, many.reset(seed=0)[0])
        assert first.shape == (3, 4, 4, 1) and many.observation_space.contains(first)
        starts = {start.tobytes() for start in np.asarray(many.unwrapped._world.frames)}
        actions, ended, seen = many.action_space.sample(), np.zeros(3, bool), 0
        for _ in range(5):
            frame, reward, terminated, truncated, _ = many.step(actions)
            assert many.observation_space.contains(frame) and reward.shape == terminated.shape == (3,)
            # The step behind an end shows the next start, and ends nothing.
            assert all(frame[i].tobytes() in starts for i in np.flatnonzero(ended))
            assert not (terminated | truncated)[ended].any() and not (terminated & truncated).any()
            seen, ended = seen + ended.sum(), terminated | truncated
        assert seen >= 3
        with pytest.raises(InputError, match="one for each"):
            many.step(tuple(part[:2] for part in actions))

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
    def test_a_fork_is_warned_of(self, made):
        assert gym._warn_of_forks.cache_info().currsize == 1  # asked for by the environment that was made
        # In a process without threads: the child of this one may wait for ever for what a thread of JAX holds.
        code = "import os; from dreamer4.serving import gym; gym._warn_of_forks(); os.fork() or os._exit(0); os.wait()"
        told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
        assert "spawn" in told.stderr

    @pytest.mark.filterwarnings("ignore:.*render_mode")
    def test_bad_use_is_told_in_words(self, made):
        with pytest.raises(InputError, match="rgb_array"):
            gymnasium.make("dreamer4/Dream-v0", path="nowhere", render_mode="ascii")
        with pytest.raises(InputError, match="nowhere"):
            gymnasium.make("dreamer4/Dream-v0", path="nowhere")
