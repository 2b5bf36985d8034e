"""CartPole seen from the side: gymnax's physics, a frame that shows positions and no velocity.

The frame is drawn by area: each pixel's brightness is the share of it that cart and pole cover. So a motion of a
hundredth of a pixel is visible as a change of grey, which matters, since one step of 20 ms moves the cart by a few
hundredths and the tip of the pole by a tenth of a pixel. How fast anything moves must be read from the frames before.

A sharp edge is the hardest thing to draw for a small network: as it crosses a pixel, that pixel alone changes, and
abruptly. A picture out of focus (`blur`) tells the same by many pixels that change gradually.
"""

import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax.scipy.stats import norm
from jaxtyping import Array, Float, PyTree, UInt8

from dreamer4.envs.gymnax import AbstractGymnaxEnvironment, Game
from dreamer4.errors import InputError
from dreamer4.types import DataSpec, to_uint8


# Slices of a pixel row. Within a slice the pole counts as upright, which costs half a grey level at 12 degrees.
_SLICES = 4


class CartPolePixels(AbstractGymnaxEnvironment):
    """CartPole-v1 as a grey image of one instant: reward 1 for every step, at most 500 steps.

    An episode terminates when the cart leaves the track or the pole leans too far; its time limit does not terminate
    it. The cart stands on the lower edge. The pole, a bar cut level at both ends, stands on the middle of the cart and
    reaches almost to the upper edge when upright, much longer than its physics has it, so that its angle shows.
    """

    spec: DataSpec = eqx.field(static=True)
    max_steps: int = eqx.field(static=True)
    blur: float = eqx.field(static=True)
    game: Game

    def __init__(self, height: int = 32, width: int = 48, *, blur: float = 0.0, params: dict[str, Any] | None = None):
        """Sets the size of the frame and its focus.

        Args:
            height: pixels, 16 to 256; the cart is a quarter as wide and an eighth as high as this.
            width: pixels, from `height` to 512; the whole track fits in, whatever the width.
            blur: how far the picture is out of focus along the track, as the standard deviation of a Gaussian, pixels,
                0 to `height`; 0 is sharp.
            params: changes to the gymnax parameters, such as `max_steps_in_episode`.

        Raises:
            InputError: if a size or the blur lies outside its range, or a parameter is unknown or cannot be drawn.
        """
        if not (16 <= height <= 256 and height <= width <= 512):
            raise InputError(
                f"CartPolePixels: got height {height} and width {width}, expected 16 <= height <= 256 and "
                "height <= width <= 512."
            )
        if not 0 <= blur <= height:
            raise InputError(f"CartPolePixels: got blur {blur}, expected 0 <= blur <= {height}, the height.")
        self.game = Game("CartPole-v1", params=params)
        lean, track = self.game.params.theta_threshold_radians, self.game.params.x_threshold
        if not (0 < lean <= math.pi / 4 and track > 0):
            raise InputError(
                f"CartPolePixels: got theta_threshold_radians {lean} and x_threshold {track}, expected an angle of at "
                "most pi / 4 and a length above 0. A pole that leans further leaves the frame."
            )
        self.max_steps = self.game.max_steps
        self.blur = float(blur)
        self.spec = DataSpec((height, width, 1), self.game.action_spec)

    def frame(self, observation: PyTree, inner: PyTree) -> UInt8[Array, "H W C"]:
        del observation
        return to_uint8(self.draw(inner.x, inner.theta))[:, :, None]

    def draw(self, x: Float[Array, ""], theta: Float[Array, ""]) -> Float[Array, "H W"]:
        """Returns the share of each pixel that cart and pole cover, blurred, differentiable in both arguments.

        Args:
            x: position of the cart on the track, metres, 0 in the middle.
            theta: angle of the pole from the vertical, radians, positive to the right; below pi / 2 either way.
        """
        height, width, _ = self.spec.frame_shape
        # All lengths are in pixels and multiples of a sixteenth of the height; upwards counts from the lower edge.
        unit = height / 16
        axle, length, thickness = 2.0 * unit, 13.0 * unit, unit
        centre = width / 2 + x * ((width / 2 - 3.0 * unit) / self.game.params.x_threshold)
        cart = _cover(jnp.zeros(()), jnp.asarray(axle), height)[:, None] * _cover(
            centre - 2.0 * unit, centre + 2.0 * unit, width, self.blur
        )

        tip = axle + length * jnp.cos(theta)
        slices = _cover(jnp.asarray(_SLICES * axle), _SLICES * tip, _SLICES * height)
        up = (jnp.arange(_SLICES * height, dtype=jnp.float32) + 0.5) / _SLICES - axle
        middle, half = centre + up * jnp.tan(theta), thickness / (2.0 * jnp.cos(theta))
        pole = slices[:, None] * _cover(middle - half, middle + half, width, self.blur)
        return (cart + pole.reshape(height, _SLICES, width).mean(axis=1))[::-1]


def _cover(
    low: Float[Array, "*shape"], high: Float[Array, "*shape"], count: int, blur: float = 0.0
) -> Float[Array, "*shape {count}"]:
    """Returns how much of each interval [i, i + 1] lies between `low` and `high`, both blurred by a Gaussian."""
    edge = jnp.arange(count + 1, dtype=jnp.float32)

    def beyond(position):
        # The integral of a step at `position`, blurred, from each edge on.
        u = position[..., None] - edge
        if not blur:
            return jnp.maximum(u, 0.0)
        return blur * (u / blur * norm.cdf(u / blur) + norm.pdf(u / blur))

    def share(position):
        return -jnp.diff(beyond(position), axis=-1)

    return share(high) - share(low)
