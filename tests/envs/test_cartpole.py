"""CartPole as an image: drawn true to scale, so that a frame tells positions, and several frames tell velocities."""

import equinox as eqx
import gymnax
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from dreamer4.config import EnvConfig
from dreamer4.envs import CartPolePixels, GymnaxEnvironment, make
from dreamer4.errors import InputError
from dreamer4.types import Action


SIZES = [(32, 48), (20, 33), (64, 64)]
STATES = [(0.0, 0.0), (1.03, 0.1), (-2.4, -0.21), (2.4, 0.24), (-0.517, 0.17)]


@pytest.fixture(scope="module")
def env():
    return CartPolePixels()


@pytest.fixture(scope="module")
def draw(env):
    return jax.jit(env.draw)


@pytest.fixture(scope="module")
def step(env):
    return jax.jit(lambda state, action, key: env.step(state, Action(action[None], jnp.zeros(0)), key=key))


def supersampled(height, width, x, theta, samples=24, *, margin=0, fine=False):
    """Draws by asking of many points of each pixel whether they lie in the cart or in the pole.

    `margin` adds pixels on the left and on the right, and `fine` keeps the points of a row apart.
    """
    unit = height / 16
    wide = width + 2 * margin
    up = height - (np.arange(height * samples) + 0.5) / samples
    right = (np.arange(wide * samples) + 0.5) / samples - wide / 2
    right, up = np.meshgrid(right, up)
    right = right - x / 2.4 * (width / 2 - 3 * unit)
    cart = (abs(right) < 2 * unit) & (up < 2 * unit)
    along, across = (up - 2 * unit) / np.cos(theta), right - (up - 2 * unit) * np.tan(theta)
    level = 13 * unit * np.cos(theta)
    pole = (abs(across) < unit / 2 / np.cos(theta)) & (along > 0) & (up - 2 * unit < level)
    points = (cart | pole).reshape(height, samples, wide * samples).mean(axis=1)
    return points if fine else points.reshape(height, wide, samples).mean(axis=2)


@pytest.mark.parametrize("size", SIZES)
def test_a_pixel_is_as_bright_as_it_is_covered(size):
    env = CartPolePixels(*size)
    states = jnp.array(STATES)
    frames = jax.jit(jax.vmap(env.draw))(states[:, 0], states[:, 1])
    for (x, theta), frame in zip(STATES, frames, strict=True):
        error = np.abs(frame - supersampled(*size, x, theta))
        # The reference itself is off by up to one column of samples on either edge.
        assert error.max() < 2 / 24
        assert error.mean() < 2e-3


@pytest.mark.parametrize("blur", [0.5, 2.0])
def test_a_picture_out_of_focus_is_a_sharp_one_blurred_along_the_track(blur):
    height, width, margin, samples = 16, 24, 40, 24
    env = CartPolePixels(height, width, blur=blur)
    states = jnp.array(STATES)
    frames = jax.jit(jax.vmap(env.draw))(states[:, 0], states[:, 1])
    # A wide sharp picture at many times the resolution, blurred by a sum of shifted copies, then averaged over pixels.
    offset = np.arange(-margin * samples // 2, margin * samples // 2 + 1)
    kernel = np.exp(-((offset / samples / blur) ** 2) / 2)
    for (x, theta), frame in zip(STATES, frames, strict=True):
        sharp = supersampled(height, width, x, theta, margin=margin, fine=True)
        soft = np.stack([np.convolve(row, kernel / kernel.sum(), "same") for row in sharp])
        soft = soft.reshape(height, width + 2 * margin, samples).mean(-1)[:, margin:-margin]
        assert np.abs(frame - soft).max() < 0.02


def test_the_frame_is_the_drawing_in_grey(env, draw):
    state, first = jax.jit(lambda key: env.reset(key=key))(jr.key(0))
    assert first.frame.shape == env.spec.frame_shape == (32, 48, 1)
    np.testing.assert_array_equal(first.frame[..., 0], np.round(255 * draw(state.inner.x, state.inner.theta)))


@pytest.mark.parametrize(("x", "theta"), STATES)
def test_a_mirrored_state_has_a_mirrored_frame(draw, x, theta):
    np.testing.assert_allclose(draw(-x, -theta), draw(x, theta)[:, ::-1], atol=1e-5)


def test_a_tenth_of_a_pixel_moves_a_tenth_of_each_edge(draw):
    pixels_per_metre = (24 - 6) / 2.4
    for theta in (0.0, 0.1):
        moved = np.abs(np.asarray(draw(0.31 + 0.1 / pixels_per_metre, theta) - draw(0.31, theta))).sum()
        edges = 2 * 4 + 2 * 26 * np.cos(theta)
        np.testing.assert_allclose(moved, 0.1 * edges, rtol=1e-3)


def test_the_area_of_cart_and_pole_is_kept(draw):
    for x, theta in STATES[:2]:
        np.testing.assert_allclose(np.asarray(draw(x, theta)).sum(), 4 * 8 + 2 * 26, rtol=2e-3)


def test_the_pole_leans_to_the_side_of_its_angle_by_pixels(draw):
    top = np.asarray(draw(0.0, np.deg2rad(12)))[3]
    # Row 3 has its middle 24.5 pixels above the axle.
    np.testing.assert_allclose(
        (top * (np.arange(48) + 0.5)).sum() / top.sum(), 24 + 24.5 * np.tan(np.deg2rad(12)), 1e-3
    )
    assert top[24:].sum() > 2
    assert not top[:24].any()


def test_the_state_can_be_read_from_the_frame(env, draw):
    """Least squares on the rounded pixels finds position and angle again."""
    key = jr.split(jr.key(1))
    true = jnp.stack(
        [jr.uniform(key[0], (32,), minval=-2.4, maxval=2.4), jr.uniform(key[1], (32,), minval=-0.2, maxval=0.2)], 1
    )

    def residual(state, frame):
        return (env.draw(state[0], state[1]) - frame).reshape(-1)

    def refine(frame):
        grid = jnp.stack(jnp.meshgrid(jnp.linspace(-2.4, 2.4, 25), jnp.linspace(-0.2, 0.2, 9)), -1).reshape(-1, 2)
        start = grid[jnp.argmin(jax.vmap(lambda s: jnp.sum(residual(s, frame) ** 2))(grid))]

        def newton(_, state):
            slope, error = jax.jacfwd(residual)(state, frame), residual(state, frame)
            return state - jnp.linalg.solve(slope.T @ slope, slope.T @ error)

        return jax.lax.fori_loop(0, 8, newton, start)

    frames = jnp.round(255 * jax.vmap(env.draw)(true[:, 0], true[:, 1])) / 255
    error = np.abs(jax.jit(jax.vmap(refine))(frames) - true)
    assert error[:, 0].max() < 1e-3, "a millimetre"
    assert error[:, 1].max() < 1e-3, "a sixteenth of a degree"


def test_velocity_is_not_in_the_frame_but_in_the_next_one(env, step):
    state, _ = env.reset(key=jr.key(0))
    fast = eqx.tree_at(lambda s: s.inner.theta_dot, state, state.inner.theta_dot + 1.0)
    np.testing.assert_array_equal(env.frame(None, state.inner), env.frame(None, fast.inner))
    still, moving = (step(s, jnp.array(1), jr.key(0))[1].frame.astype(int) for s in (state, fast))
    # 0.02 radians of a pole of 26 pixels: a quarter of a pixel at the middle, along two edges.
    assert 0.7 < np.abs(moving - still).sum() / 255 / (0.02 * 13 * 26 * 2) < 1.3


def test_the_game_is_cartpole(env, step):
    inner, params = gymnax.make("CartPole-v1")
    state, _ = env.reset(key=jr.key(5))
    _, theirs = inner.reset_env(jr.key(5), params)
    done, steps = False, 0
    while not done:
        action = jnp.array(steps % 3 % 2)
        state, ours = step(state, action, jr.key(0))
        _, theirs, reward, done, _ = inner.step_env(jr.key(0), theirs, action, params)
        steps += 1
        np.testing.assert_allclose(jax.tree.leaves(state.inner), jax.tree.leaves(theirs), rtol=1e-4, atol=1e-5)
        assert ours.reward == reward == 1
        assert ours.is_last == ours.is_terminal == done
    assert 5 < steps < 200
    assert step(state, action, jr.key(0))[1].is_first


def balance(state):
    """A linear controller that holds the pole for ever."""
    inner = state.inner
    return (0.1 * inner.x + 0.4 * inner.x_dot + 3.0 * inner.theta + inner.theta_dot > 0).astype(jnp.int32)


def test_a_pole_that_stands_for_500_steps_ends_without_termination(env):
    def body(state, key):
        return env.step(state, Action(balance(state)[None], jnp.zeros(0)), key=key)

    state, _ = env.reset(key=jr.key(2))
    _, ts = jax.jit(lambda s: jax.lax.scan(body, s, jr.split(jr.key(0), 501)))(state)
    assert env.max_steps == 500
    assert np.flatnonzero(ts.is_last).tolist() == [499]
    assert not ts.is_terminal.any()
    assert ts.reward[:500].sum() == 500
    assert ts.is_first[500]
    assert ts.reward[500] == 0


def test_it_is_reached_by_its_name():
    env = make(
        EnvConfig(id="CartPole-pixels", kwargs={"height": 16, "width": 24, "params": {"max_steps_in_episode": 9}})
    )
    assert env.spec.frame_shape == (16, 24, 1)
    assert env.spec.action.num_classes == (2,)
    assert env.max_steps == 9


@pytest.mark.parametrize(
    ("env_id", "kwargs", "message"),
    [
        ("CartPole-pixel", {}, "Did you mean CartPole-pixels"),
        ("Catch-bsuit", {}, "Did you mean Catch-bsuite"),
        ("CartPole-pixels", {"heigth": 32}, "Did you mean height"),
        ("CartPole-pixels", {"height": "32"}, "env.kwargs.height: got '32'"),
        ("CartPole-pixels", {"height": True}, "env.kwargs.height: got True"),
        ("CartPole-pixels", {"height": 15}, "got height 15"),
        ("CartPole-pixels", {"height": 64}, "width 48"),
        ("CartPole-pixels", {"blur": -1.0}, "got blur -1.0"),
        ("CartPole-pixels", {"params": {"gravty": 9}}, "Did you mean gravity"),
        ("CartPole-pixels", {"params": {"theta_threshold_radians": 2.0}}, "pi / 4"),
        ("MNISTBandit-bsuite", {}, "downloads"),
    ],
)
def test_what_cannot_be_built_is_told(env_id, kwargs, message):
    with pytest.raises(InputError, match=message):
        make(EnvConfig(id=env_id, kwargs=kwargs))


def test_the_vector_game_points_to_the_pixels():
    with pytest.raises(InputError, match="CartPole-pixels"):
        GymnaxEnvironment("CartPole-v1")
