"""Continuous control: physics against NumPy in float64, pictures against their formula, rewards at known places."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from dreamer4.config import EnvConfig
from dreamer4.data import collect, random_policy, replay
from dreamer4.envs import CartPoleSwingup, PendulumSwingup, PointGoal, Reacher, make
from dreamer4.envs.control import segment, tolerance
from dreamer4.errors import InputError


def advance(env, body, action):
    return np.asarray(jax.jit(env.advance)(jnp.asarray(body, jnp.float32), jnp.asarray(action, jnp.float32)))


def test_pendulum():
    angle, speed = 2.0, -1.5
    for _ in range(4):
        speed = np.clip(speed + 0.02 * (15 * np.sin(angle) + 6 * 0.5), -8, 8)
        angle += 0.02 * speed
    np.testing.assert_allclose(advance(PendulumSwingup(), [2.0, -1.5], [0.5]), [angle, speed], rtol=1e-5)


def test_a_pendulum_cannot_be_lifted_and_can_be_swung_up():
    env = PendulumSwingup()

    @jax.jit
    def best(push):
        def body(state, _):
            state = env.advance(state, jnp.array([push(state)]))
            return state, jnp.cos(state[0])

        return jax.lax.scan(body, jnp.array([jnp.pi - 1e-3, 0.0]), length=60)[1].max()

    best = best.__wrapped__
    assert best(lambda state: 1.0) < 0.0
    assert best(lambda state: jnp.sign(state[1] + 1e-9)) > 0.9


def test_point():
    env = PointGoal()
    body = advance(env, [0.98, 0.0, 0.1, -0.1, 0.3, 0.2], [1.0, -1.0])
    # The wall stops the one dimension; the other is damped and pushed.
    np.testing.assert_allclose(body, [1.0, -0.13, 0.02, -0.13, 0.3, 0.2], atol=1e-6)


def test_reacher_holds_its_hand_where_its_joints_say():
    env = Reacher()
    first, second = 0.7, -1.1
    hand = 0.45 * np.array([np.cos(0.7) + np.cos(-0.4), np.sin(0.7) + np.sin(-0.4)])
    at_goal = jnp.asarray([first, second, 0, 0, *hand], jnp.float32)
    assert float(env.reward(at_goal, jnp.zeros(2))) > 0.999
    away = at_goal.at[4].add(0.4)  # 0.1 within reach of the goal, 0.3 beyond
    assert abs(float(env.reward(away, jnp.zeros(2))) - 0.1) < 1e-3


def test_cartpole_agrees_with_the_equations_of_motion():
    """Newton's two equations, solved as a linear system for both accelerations."""
    place, angle, speed, turning = 0.2, 0.4, -0.3, 1.2
    for _ in range(4):
        sin, cos = np.sin(angle), np.cos(angle)
        # (M + m) x'' + m l cos th'' = F + m l th'^2 sin;  m l cos x'' + 4/3 m l^2 th'' = m g l sin
        matrix = np.array([[1.1, 0.05 * cos], [0.05 * cos, 4 / 3 * 0.1 * 0.25]])
        force = np.array([-7.0 + 0.05 * turning**2 * sin, 0.1 * 9.8 * 0.5 * sin])
        push, turn = np.linalg.solve(matrix, force)
        speed, turning = speed + 0.01 * push, turning + 0.01 * turn
        place, angle = place + 0.01 * speed, angle + 0.01 * turning
    body = advance(CartPoleSwingup(), [0.2, 0.4, -0.3, 1.2], [-0.7])
    np.testing.assert_allclose(body, [place, angle, speed, turning], rtol=1e-4)


def test_cartpole_stops_at_its_walls():
    body = advance(CartPoleSwingup(), [1.79, 0.0, 3.0, 0.0], [1.0])
    assert body[0] == np.float32(1.8) and body[2] == 0.0


def test_tolerance():
    np.testing.assert_allclose(
        tolerance(jnp.array([-0.4, 0.5, 1.5, -2.5]), 0.5, 1.0), [1.0, 1.0, 0.1, 0.1**4], rtol=1e-4
    )


def test_a_segment_is_drawn_by_distance():
    size, start, end = 8, np.array([-0.5, -0.25]), np.array([0.5, 0.75])
    picture = np.asarray(segment(size, jnp.asarray(start, jnp.float32), jnp.asarray(end, jnp.float32)))
    points = start + np.linspace(0, 1, 2001)[:, None] * (end - start)
    for row, column in np.ndindex(size, size):
        place = np.array([(2 * column + 1) / size - 1, 1 - (2 * row + 1) / size])
        distance = np.linalg.norm(points - place, axis=1).min()
        assert abs(picture[row, column] - np.exp(-(distance**2) / (2 * (2 / 14) ** 2))) < 1e-3


@pytest.mark.parametrize("task", [CartPoleSwingup, PendulumSwingup, PointGoal, Reacher])
def test_pictures_show_where_everything_is(task):
    """Whatever is not a speed changes the picture, and its gradient is finite even where a line is a dot."""
    env = task()
    body = env.start(jr.key(0))
    jacobian = np.abs(jax.jit(jax.jacobian(env.draw))(body)).max(axis=(0, 1, 2))
    positions = {CartPoleSwingup: [0, 1], PendulumSwingup: [0]}.get(task, [0, 1, 4, 5])
    assert np.isfinite(jacobian).all() and (jacobian[positions] > 0.1).all()
    assert jacobian.sum() == jacobian[positions].sum()
    rewards = jax.vmap(lambda key: env.reward(env.start(key), jnp.zeros(env.dims)))(jr.split(jr.key(1), 50))
    assert 0 <= float(rewards.min()) < float(rewards.max()) <= 1


AGAIN = """
import importlib
import jax.random as jr
from dreamer4.data import collect, random_policy, replay
from dreamer4.envs import CartPoleSwingup
module = importlib.import_module("dreamer4.data.replay")
module._LEVELS = module._REWARD = 0
env = CartPoleSwingup()
replay(env, collect(env, random_policy(env.spec), episodes=40, num_envs=16, key=jr.key(3)))
"""


def test_a_pole_swung_again_goes_the_same_way_bit_by_bit():
    """It doubles any error several times over. Asked of a process that compiles as for users, not as for tests."""
    done = subprocess.run(
        [sys.executable, "-c", AGAIN], env=os.environ | {"XLA_FLAGS": ""}, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("task", [PendulumSwingup, PointGoal, Reacher])
def test_episodes_of_the_others_can_be_played_again_up_to_rounding(task):
    env = task()
    replay(env, collect(env, random_policy(env.spec), episodes=100, num_envs=16, key=jr.key(3)))


def test_sizes_are_checked():
    assert make(EnvConfig(id="PointGoal-pixels", kwargs={"size": 24})).spec.frame_shape == (24, 24, 2)
    with pytest.raises(InputError, match="got size 4"):
        PointGoal(size=4)
    with pytest.raises(InputError, match="no argument 'params'"):
        make(EnvConfig(id="PointGoal-pixels", kwargs={"params": {"x": 1}}))
