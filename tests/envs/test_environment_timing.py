"""dm_env's timing, on every environment there is."""

import importlib.util
from functools import partial
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from probes import PROBES

from dreamer4.data import random_action
from dreamer4.envs import (
    CartPolePixels,
    CartPoleSwingup,
    CounterEnvironment,
    FourRoomsPixels,
    GymnaxEnvironment,
    PendulumSwingup,
    PointGoal,
    Reacher,
    StickyActions,
)
from dreamer4.errors import InputError
from dreamer4.types import Action


def corridor():
    path = Path(__file__).parents[2] / "examples" / "03_own_environment.py"
    spec = importlib.util.spec_from_file_location("own_environment", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Corridor()


def dream():
    from dreamer4.serving import DreamWorld

    fixture = Path(__file__).parents[1] / "fixtures" / "v1"
    return DreamWorld.load(fixture / "run", dataset=fixture / "data", max_steps=5)


ENVIRONMENTS = {
    "counter-terminates": lambda: CounterEnvironment(6, 3),
    "counter-truncates": lambda: CounterEnvironment(2, 5, (2, 3, 4), terminates=False),
    **{probe.__name__: probe for probe in PROBES},
    "sticky": lambda: StickyActions(CounterEnvironment(6, 3), 0.5),
    "own": corridor,
    "dream": dream,
    "Catch": lambda: GymnaxEnvironment("Catch-bsuite"),
    "Catch-limit": lambda: GymnaxEnvironment("Catch-bsuite", params={"max_steps_in_episode": 5}),
    "Breakout": lambda: GymnaxEnvironment("Breakout-MinAtar"),
    "CartPole": lambda: CartPolePixels(16, 16),
    "CartPole-limit": lambda: CartPolePixels(16, 16, params={"max_steps_in_episode": 7}),
    **{task.__name__: partial(task, max_steps=7) for task in (CartPoleSwingup, PendulumSwingup, PointGoal, Reacher)},
    "FourRooms-limit": lambda: FourRoomsPixels(params={"max_steps_in_episode": 20}),
}


def play(env, steps, num_envs, seed=0):
    """Returns the time steps of `num_envs` streams under the random policy, time first."""

    def body(carry, key):
        state, time_step = carry
        action_key, step_key = jr.split(key)
        return env.step(state, random_action(env.spec.action, key=action_key), key=step_key), time_step

    def stream(key):
        reset_key, step_key = jr.split(key)
        return jax.lax.scan(body, env.reset(key=reset_key), jr.split(step_key, steps))[1]

    time_steps = jax.jit(jax.vmap(stream, out_axes=1))(jr.split(jr.key(seed), num_envs))
    return jax.tree.map(np.asarray, time_steps)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_every_first_follows_a_last_and_nothing_else_does(name):
    env = ENVIRONMENTS[name]()
    ts = play(env, 60, 4)
    assert ts.is_first[0].all()
    np.testing.assert_array_equal(ts.is_first[1:], ts.is_last[:-1])
    assert ts.is_last.any(), "the test saw no end"
    assert (ts.reward[ts.is_first] == 0).all()
    assert (ts.is_last | ~ts.is_terminal).all()
    for slot in range(4):
        ends = np.flatnonzero(np.append(True, ts.is_last[:, slot]))
        assert np.diff(ends).max() <= env.max_steps + 1


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_the_step_behind_a_last_frame_resets_by_its_key(name):
    env = ENVIRONMENTS[name]()

    @jax.jit
    def both(key):
        def going(carry):
            return ~carry[1].is_last

        def body(carry):
            action = random_action(env.spec.action, key=key)
            return env.step(carry[0], action, key=key)

        state, _ = jax.lax.while_loop(going, body, env.reset(key=key))
        return env.step(state, Action.null(env.spec.action), key=jr.key(9)), env.reset(key=jr.key(9))

    jax.tree.map(np.testing.assert_array_equal, *both(jr.key(2)))


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_types_are_as_the_spec_says_and_stay_the_same_under_strict_promotion(name):
    env = ENVIRONMENTS[name]()
    action = jax.eval_shape(lambda k: random_action(env.spec.action, key=k), jr.key(0))
    with jax.numpy_dtype_promotion("strict"):
        first = jax.eval_shape(lambda k: env.reset(key=k), jr.key(0))
        second = jax.eval_shape(lambda s, a, k: env.step(s, a, key=k), first[0], action, jr.key(0))
    assert jax.tree.structure(first) == jax.tree.structure(second)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), first) == jax.tree.map(lambda x: (x.shape, x.dtype), second)
    frame = second[1].frame
    assert (frame.shape, frame.dtype) == (env.spec.frame_shape, jnp.uint8)
    assert second[1].reward.dtype == jnp.float32


def test_the_counter_can_be_read():
    env = CounterEnvironment(256, 255, (3, 2, 2))
    ts = play(env, 300, 1)
    index, action = env.decode(jnp.asarray(ts.frame))
    np.testing.assert_array_equal(index[:, 0], np.arange(300) % 256)
    np.testing.assert_array_equal(ts.reward[:, 0], np.arange(300) % 256)
    np.testing.assert_array_equal(action[:, 0] == -1, ts.is_first[:, 0])
    assert len(np.unique(action)) > 100


@pytest.mark.parametrize("arguments", [(1, 3), (257, 3), (5, 1), (5, 256), (5, 3, (1, 4, 1))])
def test_a_counter_that_could_not_be_read_is_refused(arguments):
    with pytest.raises(InputError, match="CounterEnvironment"):
        CounterEnvironment(*arguments)


def test_a_counter_ends_by_termination_or_by_limit():
    for terminates in (True, False):
        ts = play(CounterEnvironment(4, 2, terminates=terminates), 9, 2)
        np.testing.assert_array_equal(ts.is_terminal, ts.is_last & terminates)


def test_environments_are_valid_arguments_of_filter_jit():
    env = CounterEnvironment(4, 2)
    assert eqx.filter_jit(lambda e: e.reset(key=jr.key(0)))(env)[1].is_first
