"""Channels become colours and pixels become squares."""

import itertools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from dreamer4.envs import palette, render
from dreamer4.errors import InputError


def test_grey_and_rgb_pass_through():
    frame = jr.randint(jr.key(0), (4, 5, 3), 0, 256).astype(jnp.uint8)
    np.testing.assert_array_equal(render(frame), frame)
    grey = render(frame[..., :1])
    for channel in range(3):
        np.testing.assert_array_equal(grey[..., channel], frame[..., 0])


def test_the_top_most_active_channel_gives_the_colour():
    frame = jnp.zeros((2, 2, 6), jnp.uint8)
    frame = frame.at[0, 0, 2].set(255).at[0, 1, 1].set(255).at[0, 1, 4].set(128).at[1, 0, 5].set(127)
    image = render(frame)
    np.testing.assert_array_equal(image[0, 0], palette(6)[2])
    np.testing.assert_array_equal(image[0, 1], palette(6)[4])
    assert not image[1].any()


@pytest.mark.parametrize("channels", [1, 2, 3, 7])
def test_a_pixel_becomes_a_square(channels):
    frame = 255 * jr.bernoulli(jr.key(1), shape=(3, 4, channels)).astype(jnp.uint8)
    image = jax.jit(lambda f: render(f, 5))(frame)
    assert (image.shape, image.dtype) == ((15, 20, 3), jnp.uint8)
    squares = image.reshape(3, 5, 4, 5, 3)
    np.testing.assert_array_equal(squares, jnp.broadcast_to(render(frame)[:, None, :, None], squares.shape))


def test_colours_are_distinct():
    colours = np.vstack([np.zeros((1, 3)), palette(12)])
    assert min(np.abs(a - b).sum() for a, b in itertools.combinations(colours, 2)) >= 60


def test_a_scale_below_one_is_refused():
    with pytest.raises(InputError, match="scale=0"):
        render(jnp.zeros((2, 2, 1), jnp.uint8), 0)
