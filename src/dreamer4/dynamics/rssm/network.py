"""What an RSSM is made of: layers, a recurrence in blocks, and categorical draws that gradients pass straight through.

"Section" refers to arXiv 2301.04104. Everything here acts on one frame and in float32.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from dreamer4.nn import Linear, RMSNorm
from dreamer4.nn.layers import initial_weight


class Dense(eqx.Module):
    """A map, then a norm, then SiLU: `silu(norm(linear(x)))`."""

    linear: Linear
    norm: RMSNorm

    def __init__(self, in_size: int, out_size: int, *, key: PRNGKeyArray):
        """Builds the layer."""
        self.linear, self.norm = Linear(in_size, out_size, key=key), RMSNorm(out_size)

    def __call__(self, x: Float[Array, " X"]) -> Float[Array, " Y"]:
        """Transforms a vector."""
        return jax.nn.silu(self.norm(self.linear(x)))


class Network(eqx.Module):
    """Layers, and a linear map with a bias behind them."""

    layers: tuple[Dense, ...]
    out: Linear

    def __init__(self, in_size: int, hidden: int, out_size: int, *, layers: int, key: PRNGKeyArray):
        """Builds a network of so many hidden layers."""
        *keys, key_out = jr.split(key, layers + 1)
        sizes = [in_size] + [hidden] * layers
        self.layers = tuple(Dense(a, b, key=k) for a, b, k in zip(sizes[:-1], sizes[1:], keys, strict=True))
        self.out = Linear(sizes[-1], out_size, use_bias=True, key=key_out)

    def __call__(self, *parts: Float[Array, "..."]) -> Float[Array, " Y"]:
        """Maps what the parts hold, one after another."""
        x = jnp.concatenate([part.reshape(-1) for part in parts])
        for layer in self.layers:
            x = layer(x)
        return self.out(x)


class BlockLinear(eqx.Module):
    """An affine map whose matrix is block-diagonal: each block of the input reaches its own block of the output."""

    weight: Float[Array, "G X Y"]
    bias: Float[Array, "G Y"]

    def __init__(self, blocks: int, in_size: int, out_size: int, *, key: PRNGKeyArray):
        """Builds `blocks` maps of `in_size` to `out_size` features each."""
        keys = jr.split(key, blocks)
        self.weight = jax.vmap(lambda k: initial_weight(k, (in_size, out_size), in_size**-0.5))(keys)
        self.bias = jnp.zeros((blocks, out_size))

    def __call__(self, x: Float[Array, "G X"]) -> Float[Array, "G Y"]:
        """Maps each block."""
        return jnp.einsum("gx,gxy->gy", x, self.weight) + self.bias


class BlockGRU(eqx.Module):
    """A gated recurrent unit whose past is cut in blocks that do not mix, except through the input they all see.

    With `y = silu(norm(layer([h_g, x])))` of block g, and `r, c, u = gates(y)`::

        h' = sigmoid(u - 1) * tanh(sigmoid(r) * c) + (1 - sigmoid(u - 1)) * h

    so that an untrained unit keeps most of what it holds.
    """

    layer: BlockLinear
    norm: RMSNorm
    gates: BlockLinear

    def __init__(self, size: int, in_size: int, *, blocks: int, key: PRNGKeyArray):
        """Builds the unit for a state of `size` features and inputs of `in_size`."""
        key_layer, key_gates = jr.split(key)
        each = size // blocks
        self.layer = BlockLinear(blocks, each + in_size, each, key=key_layer)
        self.norm = RMSNorm(size)
        self.gates = BlockLinear(blocks, each, 3 * each, key=key_gates)

    def __call__(self, h: Float[Array, " D"], x: Float[Array, " X"]) -> Float[Array, " D"]:
        """Returns the next state."""
        blocks = h.reshape(self.layer.weight.shape[0], -1)
        seen = jnp.concatenate([blocks, jnp.broadcast_to(x, (len(blocks), len(x)))], axis=-1)
        y = jax.nn.silu(self.norm(self.layer(seen).reshape(-1))).reshape(blocks.shape)
        reset, candidate, update = jnp.split(self.gates(y), 3, axis=-1)
        update = jax.nn.sigmoid(update - 1.0)
        return (update * jnp.tanh(jax.nn.sigmoid(reset) * candidate) + (1.0 - update) * blocks).reshape(-1)


def unimix(logits: Float[Array, "*dims K"], share: float) -> Float[Array, "*dims K"]:
    """Returns log-probabilities that are a mixture: `share` of it uniform, the rest as the logits say.

    No class is impossible then, so no divergence is infinite.
    """
    return jnp.log((1.0 - share) * jax.nn.softmax(logits, axis=-1) + share / logits.shape[-1])


def draw(log_probs: Float[Array, "S K"], *, key: PRNGKeyArray) -> Float[Array, "S K"]:
    """Draws one class each, as one-hot vectors; their gradient is that of the probabilities (straight-through)."""
    chosen = jnp.argmax(log_probs + jr.gumbel(key, log_probs.shape), axis=-1)
    probs = jnp.exp(log_probs)
    return jax.nn.one_hot(chosen, probs.shape[-1]) + probs - jax.lax.stop_gradient(probs)
