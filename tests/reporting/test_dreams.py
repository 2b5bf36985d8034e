"""Dream quality, measured on an untrained agent: what must hold whatever the weights are."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from dreamer4.config import load
from dreamer4.data import DeviceSource, collect, random_policy
from dreamer4.dreamer import Dreamer
from dreamer4.envs import CounterEnvironment
from dreamer4.errors import InputError
from dreamer4.reporting.dreams import measure_dreams, shuffle_actions
from dreamer4.training import encode_source


@pytest.fixture(scope="module")
def world():
    env = CounterEnvironment(length=5, num_actions=3)
    source = DeviceSource.from_episodes(collect(env, random_policy(env.spec), episodes=12, key=jr.key(0)))
    config = load("tiny", overrides=["tokenizer.patch=[2,2]", "agent.mtp_length=2"])
    dreamer = Dreamer.build(config, env.spec, key=jr.key(1))
    return dreamer, source, encode_source(dreamer, source)


@pytest.fixture(scope="module")
def quality(world):
    levels = np.unique(np.asarray(world[1].frame)) / 255
    return measure_dreams(*world, levels=levels.tolist(), num_steps=(1, 2), context_length=2, key=jr.key(2))


def test_there_is_one_share_for_each_step_behind_the_context(quality):
    assert set(quality.accuracy) == {1, 2}
    for values in (*quality.accuracy.values(), *quality.controls.values()):
        assert len(values) == 5 - 2
        assert all(0 <= value <= 1 for value in values)


def test_the_context_is_the_truth_decoded_and_never_counted(quality, world):
    assert quality.truth.shape == quality.dream.shape
    assert quality.context_length == 2


def test_repeating_the_last_frame_fails_in_a_world_that_always_moves(quality):
    assert quality.controls["last frame repeated"] == [0.0, 0.0, 0.0]


def test_shuffling_permutes_only_the_actions_behind_the_context(world):
    _, source, latents = world
    rows = source.with_latents(latents).episodes(jnp.arange(12), 5)
    shuffled = shuffle_actions(rows, 2, key=jr.key(3))
    assert eqx.tree_equal(
        jax.tree.map(lambda x: x[:, :2], shuffled.action), jax.tree.map(lambda x: x[:, :2], rows.action)
    )
    before, after = np.asarray(rows.action.discrete[:, 2:]), np.asarray(shuffled.action.discrete[:, 2:])
    np.testing.assert_array_equal(np.sort(before, axis=1), np.sort(after, axis=1))
    assert (before != after).any()
    assert eqx.tree_equal(shuffled.latent, rows.latent)


def test_a_context_as_long_as_the_clip_is_refused(world):
    with pytest.raises(InputError, match="context"):
        measure_dreams(*world, levels=[0.0, 1.0], context_length=5, key=jr.key(0))
