"""Leaf layers. They act on the last axis, whatever axes lead it, in the type of their input."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int, PRNGKeyArray


# Learned tokens and tables start small but never at zero: RMSNorm multiplies gradients by 1 / rms of its input, so a
# zero token would receive a gradient a thousand times too large on the first step.
TOKEN_SCALE = 0.02


@partial(jax.jit, static_argnames="shape")
def initial_weight(
    key: PRNGKeyArray, shape: tuple[int, int], deviation: float | Float[Array, ""]
) -> Float[Array, "D_in D_out"]:
    """Draws a matrix from a normal distribution cut off at two standard deviations.

    Jitted as a whole: building a model then compiles one small program for each shape, not one for each operation.
    """
    cut = 0.87962566  # the cut takes this share of the standard deviation along
    return (deviation / cut) * jr.truncated_normal(key, -2.0, 2.0, shape)


@partial(jax.jit, static_argnames="shape")
def initial_tokens(key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Draws learned tokens: small, and never zero."""
    return TOKEN_SCALE * jr.normal(key, shape)


class Linear(eqx.Module):
    """An affine map without bias by default; a zero-initialised one suits the last layer of a head."""

    weight: Float[Array, "D_in D_out"]
    bias: Float[Array, " D_out"] | None

    def __init__(self, in_size: int, out_size: int, *, use_bias: bool = False, scale: float = 1.0, key: PRNGKeyArray):
        """Builds the map.

        Args:
            in_size: features of the input.
            out_size: features of the output.
            use_bias: whether a bias, initially zero, is added.
            scale: multiplies the initial standard deviation `1 / sqrt(in_size)`; 0 makes the layer output zero.
            key: randomness of the weights.
        """
        self.weight = initial_weight(key, (in_size, out_size), scale * in_size**-0.5)
        self.bias = jnp.zeros(out_size) if use_bias else None

    def __call__(self, x: Float[Array, "*dims D_in"]) -> Float[Array, "*dims D_out"]:
        """Maps the last axis."""
        # One leading axis: over several, XLA's CPU back end copies what the gradient of the weights is made from.
        y = (x.reshape(-1, x.shape[-1]) @ self.weight.astype(x.dtype)).reshape(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias.astype(x.dtype)


class RMSNorm(eqx.Module):
    """Divides by the root mean square over the last axis, in float32, and scales by a learned gain."""

    scale: Float[Array, " D"]
    epsilon: float = eqx.field(static=True)

    def __init__(self, size: int, *, epsilon: float = 1e-6):
        """Builds the norm for `size` features."""
        self.scale = jnp.ones(size)
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "*dims D"]) -> Float[Array, "*dims D"]:
        """Normalises the last axis."""
        x32 = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.epsilon)
        return (x32 * inverse * self.scale).astype(x.dtype)


class SwiGLU(eqx.Module):
    """The gated feed-forward layer `down(silu(gate(x)) * up(x))`."""

    gate: Linear
    up: Linear
    down: Linear

    def __init__(self, size: int, hidden: int, *, key: PRNGKeyArray):
        """Builds the layer with `hidden` gated units."""
        key_gate, key_up, key_down = jr.split(key, 3)
        self.gate = Linear(size, hidden, key=key_gate)
        self.up = Linear(size, hidden, key=key_up)
        self.down = Linear(hidden, size, key=key_down)

    def __call__(self, x: Float[Array, "*dims D"]) -> Float[Array, "*dims D"]:
        """Transforms the last axis."""
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class Embedding(eqx.Module):
    """A table of learned vectors."""

    table: Float[Array, "N D"]

    def __init__(self, count: int, size: int, *, key: PRNGKeyArray):
        """Builds a table of `count` vectors of `size` features."""
        self.table = initial_tokens(key, (count, size))

    @property
    def count(self) -> int:
        """How many vectors there are."""
        return self.table.shape[-2]

    def __call__(self, index: Int[Array, "*dims"]) -> Float[Array, "*dims D"]:
        """Looks vectors up."""
        return self.table[index]


class MLP(eqx.Module):
    """A small head: normalised hidden layers of SiLU units, then a linear read-out in float32."""

    norms: tuple[RMSNorm, ...]
    hidden: tuple[Linear, ...]
    readout: Linear

    def __init__(
        self, in_size: int, hidden_size: int, out_size: int, *, layers: int, scale: float = 1.0, key: PRNGKeyArray
    ):
        """Builds a head.

        Args:
            in_size: features of the input.
            hidden_size: units of each hidden layer.
            out_size: outputs.
            layers: number of hidden layers, at least 0.
            scale: of the read-out's initial weights; 0 makes the first output zero.
            key: randomness of the weights.
        """
        *keys, key_out = jr.split(key, layers + 1)
        sizes = [in_size] + [hidden_size] * layers
        self.norms = tuple(RMSNorm(size) for size in sizes)
        self.hidden = tuple(
            Linear(a, b, use_bias=True, key=k) for a, b, k in zip(sizes[:-1], sizes[1:], keys, strict=True)
        )
        self.readout = Linear(sizes[-1], out_size, use_bias=True, scale=scale, key=key_out)

    def __call__(self, x: Float[Array, "*dims D_in"]) -> Float[Array, "*dims D_out"]:
        """Maps the last axis; the arithmetic is float32 throughout."""
        x = x.astype(jnp.float32)
        for norm, layer in zip(self.norms[:-1], self.hidden, strict=True):
            x = jax.nn.silu(layer(norm(x)))
        return self.readout(self.norms[-1](x))
