"""Lives in the real world: what the environment does, step by step, read by the same clock as a dream."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from agent.fakes import oracle

from dreamer4.agent import PMPO
from dreamer4.data import DeviceSource, collect, random_policy
from dreamer4.envs import CounterEnvironment
from dreamer4.training import ImaginationPhase
from dreamer4.types import Action
from dreamer4.worlds import DreamWorld, RealWorld


ACTIONS, LENGTH, HORIZON = 3, 7, 5


def read(frame):
    """Index and action of a frame of the counter, as `CounterEnvironment.decode` reads them."""
    pixels = jnp.round(255.0 * frame)
    return jnp.stack([pixels[0, 0, 0] // (255 // (LENGTH - 1)), pixels[-1, 0, 0] // (255 // ACTIONS) - 1])


@pytest.fixture(scope="module")
def env():
    return CounterEnvironment(LENGTH, ACTIONS)


@pytest.fixture(scope="module")
def dreamer(env):
    """Knows the counter, so its dreams are the real world."""
    return oracle(
        env.spec,
        size=2,
        read=read,
        transition=lambda state, action: jnp.stack([state[0] + 1, action.discrete[0].astype(jnp.float32)]),
        reward=lambda h: h[0],
        continuation=lambda h: (h[0] < LENGTH - 1).astype(jnp.float32),
    )


@pytest.fixture(scope="module")
def episodes(env):
    return collect(env, random_policy(env.spec), episodes=4, num_envs=2, key=jr.key(1))


@pytest.fixture(scope="module")
def source(dreamer, env, episodes):
    source = RealWorld(env).prepare(DeviceSource.from_episodes(episodes), episodes)
    latents = jax.vmap(read)(source.frame / 255.0)[:, None]
    return source.with_latents(latents)


GIVEN = Action(jnp.asarray([[2], [0], [1], [1], [2]], jnp.int32), jnp.zeros((HORIZON, 0)))


@eqx.filter_jit
def live(world, dreamer, source, count, actions):
    row = jax.tree.map(lambda x: x[0], source.stretches(jnp.array([2]), jnp.array([1]), 4))
    start = world.enter(dreamer, row, count, key=jr.key(0))
    return world.live(dreamer, start, HORIZON, actions=actions, key=jr.key(1))


def test_a_real_life_is_the_environments_own(dreamer, env, source):
    rollout = live(RealWorld(env), dreamer, source, jnp.array(2), GIVEN)
    # The second frame of a clip that begins at frame 1: index 2. The episode's last frame has index 6.
    np.testing.assert_array_equal(rollout.h[:, 0], [2, 3, 4, 5, 6, 6])
    np.testing.assert_array_equal(rollout.h[1:5, 2], GIVEN.discrete[:4, 0])  # the action as the agent was told
    np.testing.assert_array_equal(rollout.h[1:5, 1], GIVEN.discrete[:4, 0])  # and as the frame shows it
    np.testing.assert_array_equal(rollout.reward, [3, 4, 5, 6, 0])
    np.testing.assert_array_equal(rollout.continuation, [1, 1, 1, 0, 1])
    np.testing.assert_array_equal(rollout.alive, [True, True, True, True, False])


def test_a_limit_ends_a_life_without_cutting_its_return(dreamer, env, source):
    limited = RealWorld(CounterEnvironment(LENGTH, ACTIONS, terminates=False))
    rollout = live(limited, dreamer, source, jnp.array(3), GIVEN)
    np.testing.assert_array_equal(rollout.continuation, np.ones(HORIZON))
    np.testing.assert_array_equal(rollout.alive, [True, True, True, False, False])


def test_the_past_is_the_clips(dreamer, env, source):
    rollout = live(RealWorld(env), dreamer, source, jnp.array(3), GIVEN)
    taken = int(source.action.discrete[int(source.start[2]) + 3, 0])
    np.testing.assert_array_equal(rollout.h[0], [3, taken, taken, 1])


def test_a_dream_without_error_is_the_real_life(dreamer, env, source):
    dreamt = live(DreamWorld(), dreamer, source, jnp.array(1), GIVEN)
    real = live(RealWorld(env), dreamer, source, jnp.array(1), GIVEN)
    for name in ("h", "reward", "continuation", "alive"):
        np.testing.assert_allclose(getattr(dreamt, name), getattr(real, name), rtol=1e-6, err_msg=name)


def test_the_phase_learns_from_either_world_alike(dreamer, env, source):
    def gradient(world):
        phase = ImaginationPhase(PMPO(), HORIZON, 0.9, 0.5, 0.0, world=world)
        batch = source.sample(6, 4, key=jr.key(4))

        @eqx.filter_jit
        @eqx.filter_grad
        def of(trained, frozen):
            terms, _ = phase.loss(eqx.combine(trained, frozen), batch, jnp.ones(()), key=jr.key(5))
            return terms["policy"] + terms["value"]

        trained, frozen = eqx.partition(dreamer, eqx.is_inexact_array)
        return of(trained, frozen)

    for world in (DreamWorld(), RealWorld(env)):
        moved = {path[0].name for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(world)) if np.any(leaf)}
        assert moved == {"policy", "value"}
