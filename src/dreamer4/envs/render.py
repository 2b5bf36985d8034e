"""Frames for human eyes: channels become colours, pixels become squares."""

import colorsys

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8

from dreamer4.errors import check_whole


def palette(num_colours: int) -> UInt8[np.ndarray, "N 3"]:
    """Returns RGB colours that differ clearly from each other and from black.

    Hues advance by the golden ratio, which keeps any number of them apart; brightness and saturation alternate.

    Args:
        num_colours: how many, at least 1.
    """
    shades = [(0.75, 1.0), (0.45, 1.0), (0.9, 0.7)]
    colours = [colorsys.hsv_to_rgb((0.33 + i * 0.618034) % 1.0, *shades[i % 3]) for i in range(num_colours)]
    return np.round(255 * np.array(colours)).astype(np.uint8)


def render(frame: UInt8[Array, "H W C"], scale: int = 1) -> UInt8[Array, "{scale}*H {scale}*W 3"]:
    """Turns a frame into an RGB image; jittable.

    One channel is shown as grey and three as RGB. Any other number is read as a stack of layers, as MinAtar draws: a
    pixel takes the colour of its highest-numbered channel above half brightness, and black if there is none.

    Args:
        frame: pixels of an environment or of a model.
        scale: side of the square that a pixel becomes, at least 1.

    Raises:
        InputError: if `scale` is not whole or below 1.
    """
    check_whole("render", scale=scale)
    channels = frame.shape[-1]
    if channels == 1:
        image = jnp.broadcast_to(frame, (*frame.shape[:2], 3))
    elif channels == 3:
        image = frame
    else:
        colours = jnp.concatenate([jnp.zeros((1, 3), jnp.uint8), jnp.asarray(palette(channels))])
        order = jnp.arange(1, channels + 1)
        image = colours[jnp.max(jnp.where(frame > 127, order, 0), axis=-1)]
    return jnp.repeat(jnp.repeat(image, scale, axis=0), scale, axis=1)
