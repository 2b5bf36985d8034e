"""Episodes played again: the places found are those the episodes went through."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from dreamer4.data import DeviceSource, collect, random_policy, read_episodes, replay, write_dataset
from dreamer4.envs import CounterEnvironment, StickyActions
from dreamer4.errors import InputError
from dreamer4.types import Action


# Longer than what is played in one call, and with chance: an action sticks.
ENV = StickyActions(CounterEnvironment(80, 3), 0.5)


@pytest.fixture(scope="module")
def episodes():
    return collect(ENV, random_policy(ENV.spec), episodes=5, num_envs=2, key=jr.key(3))


@pytest.fixture(scope="module")
def place(episodes):
    return replay(ENV, episodes)


def test_a_step_from_a_place_leads_to_the_next_frame(episodes, place):
    episode, first = episodes[3], 3 * 80  # the second of its environment, so its key was one of `step`
    np.testing.assert_array_equal(place.frame[first : first + 80], episode.frame)

    def step(state, action, key):
        return ENV.step(state, Action(action, jnp.zeros(0)), key=jr.wrap_key_data(key))[1].frame

    states = jax.tree.map(lambda leaf: leaf[first : first + 79], place.state)
    frames = jax.jit(jax.vmap(step))(states, episode.discrete[1:], episode.key[1:])
    np.testing.assert_array_equal(frames, episode.frame[1:])


def test_places_travel_with_the_frames_of_a_batch(episodes, place):
    source = DeviceSource.from_episodes(episodes).with_places(place)
    batch = jax.jit(lambda key: source.sample(6, 9, key=key))(jr.key(0))
    np.testing.assert_array_equal(batch.place.frame, batch.frame)
    index, _ = ENV.env.decode(batch.frame)
    np.testing.assert_array_equal(batch.place.state.inner.index, index)


def test_keys_survive_the_disk_and_their_absence_does_too(episodes, tmp_path):
    kept = [episodes[0], dataclasses.replace(episodes[1], key=None)]
    about = {"spec": ENV.spec, "environment": {"id": "counter"}, "policy": "random", "seed": 0, "held_out": 0.0}
    write_dataset(tmp_path / "set", kept, **about)
    first, second = read_episodes(tmp_path / "set", "all")
    np.testing.assert_array_equal(first.key, episodes[0].key)
    assert second.key is None


def test_an_episode_without_keys_is_refused(episodes):
    with pytest.raises(InputError, match="Episode 1 does not tell"):
        replay(ENV, [episodes[0], dataclasses.replace(episodes[1], key=None)])


@pytest.mark.parametrize(
    ("levels", "paid", "passes"), [(1, 0, True), (2, 0, True), (3, 0, False), (0, 3e-7, True), (0, 1e-3, False)]
)
def test_rounding_is_no_other_world(episodes, levels, paid, passes):
    frame, reward = episodes[0].frame.copy(), episodes[0].reward.copy()
    frame[70, 0, 0, 0] += levels  # 0 before: what comes out is less, and must not wrap around
    reward[70] += paid
    other = [dataclasses.replace(episodes[0], frame=frame, reward=reward)]
    with contextlib.nullcontext() if passes else pytest.raises(InputError, match="frame 70 or its reward differs"):
        replay(ENV, other)


def test_another_world_is_found_out(episodes):
    with pytest.raises(InputError, match="does not come out as it was recorded"):
        replay(StickyActions(ENV.env, 0.1), episodes)
