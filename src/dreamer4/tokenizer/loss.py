"""The tokenizer's loss (eq 5), with a pluggable perceptual term."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from dreamer4.tokenizer.base import AbstractTokenizer


Perceptual = Callable[[Float[Array, "T H W C"], Float[Array, "T H W C"]], Float[Array, " T"]]


class RandomFeatures(eqx.Module):
    """A perceptual distance that needs no download: features of a fixed random convolutional net.

    The paper uses LPIPS, whose weights are an external file; any callable of this signature can take its place.
    Distances in random features weigh edges and small shapes more than plain squared error does.
    """

    kernels: tuple[Float[Array, "O I 3 3"], ...]

    def __init__(self, channels: int, *, widths: tuple[int, ...] = (16, 32), seed: int = 0):
        """Builds a net for frames of `channels` channels; the weights depend on `seed` alone and are never trained."""
        sizes = (channels, *widths)
        keys = jr.split(jr.key(seed), len(widths))
        self.kernels = tuple(
            jr.normal(k, (o, i, 3, 3)) / (9 * i) ** 0.5 for k, i, o in zip(keys, sizes[:-1], sizes[1:], strict=True)
        )

    def __call__(self, prediction: Float[Array, "T H W C"], target: Float[Array, "T H W C"]) -> Float[Array, " T"]:
        """Returns the mean squared distance of unit-normalised features of each frame, summed over layers."""
        total = jnp.zeros(prediction.shape[0])
        a, b = (jnp.moveaxis(v, -1, 1) for v in (prediction, target))  # (T H W C) -> (T C H W)
        for kernel in self.kernels:
            kernel = jax.lax.stop_gradient(kernel)
            a, b = (jax.nn.relu(jax.lax.conv(v, kernel, (1, 1), "SAME")) for v in (a, b))
            unit_a, unit_b = (v * jax.lax.rsqrt(jnp.sum(v**2, axis=1, keepdims=True) + 1e-6) for v in (a, b))
            total += jnp.mean((unit_a - unit_b) ** 2, axis=(1, 2, 3))
        return total


def tokenizer_loss(
    tokenizer: AbstractTokenizer,
    video: Float[Array, "T H W C"],
    valid: Bool[Array, " T"],
    perceptual: Perceptual | None,
    *,
    key: PRNGKeyArray,
) -> dict[str, Float[Array, ""]]:
    """Returns the terms of eq 5 for one clip: `mse` over all pixels, hidden or not, and `perceptual`.

    Each term is divided by its own running RMS before the terms are weighted (1 and 0.2) and added.

    Args:
        tokenizer: the tokenizer.
        video: frames in [0, 1].
        valid: which frames count.
        perceptual: distance of each predicted frame to its target, or None.
        key: randomness of the masks.
    """
    reconstruction, _ = tokenizer.reconstruct(video, key=key)
    weight = valid.astype(jnp.float32)
    weight = weight / jnp.maximum(weight.sum(), 1.0)
    terms = {"mse": jnp.sum(weight * jnp.mean((reconstruction - video) ** 2, axis=(1, 2, 3)))}
    if perceptual is not None:
        terms["perceptual"] = jnp.sum(weight * perceptual(reconstruction, video))
    return terms
