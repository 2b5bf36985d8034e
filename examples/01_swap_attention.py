"""Your own attention: write it, put it into a transformer, find it from a configuration.

An attention is one class with two methods that must agree: `__call__` sees a whole sequence under a mask, `step` sees
one new token beside the cached keys and values of earlier ones. Axes before those are sequences side by side. The one
here has a learned sink: each head may put its weight on nothing at all, which plain softmax attention cannot, since
its weights sum to one.

Run: python examples/01_swap_attention.py
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from dreamer4.config import Config, load
from dreamer4.dreamer import Dreamer
from dreamer4.nn import ATTENTIONS, AbstractAttention, Entry, Linear, Mask, TokenGroup, TokenLayout, Transformer, rope
from dreamer4.types import ActionSpec, DataSpec


class SinkAttention(AbstractAttention):
    """Multi-head attention in which every head has one more logit, learned, that leads to no value."""

    query: Linear
    key: Linear
    value: Linear
    out: Linear
    sink: Float[Array, " N"]
    kv_heads: int = eqx.field(static=True)
    head_dim: int = eqx.field(static=True)

    def __init__(self, width: int, heads: int, *, key: PRNGKeyArray):
        key_q, key_k, key_v, key_o = jr.split(key, 4)
        self.kv_heads, self.head_dim = heads, width // heads
        self.query, self.key, self.value, self.out = (Linear(width, width, key=k) for k in (key_q, key_k, key_v, key_o))
        self.sink = jnp.zeros(heads)

    def _project(self, x, positions):
        shape = (*x.shape[:-1], self.kv_heads, self.head_dim)
        query, key, value = (layer(x).reshape(shape) for layer in (self.query, self.key, self.value))
        return rope(query, positions) * self.head_dim**-0.5, Entry(rope(key, positions), value)

    def _weights(self, logits, mask):
        """Softmax over the visible tokens and the sink, of which only the tokens' share is returned."""
        sink = jnp.broadcast_to(self.sink[:, None, None], (*logits.shape[:-1], 1))
        logits = jnp.concatenate([jnp.where(mask, logits, -jnp.inf), sink], axis=-1)
        return jax.nn.softmax(logits, axis=-1)[..., :-1]  # the sink is always finite, so an empty row is all zeros

    def __call__(
        self, x: Float[Array, "*batch L D"], mask: Mask, positions: Int[Array, " L"]
    ) -> tuple[Float[Array, "*batch L D"], Entry]:
        query, entry = self._project(x, positions)
        logits = jnp.einsum("...lnh,...mnh->...nlm", query, entry.key, preferred_element_type=jnp.float32)
        weights = self._weights(logits, mask).astype(x.dtype)
        return self.out(jnp.einsum("...nlm,...mnh->...lnh", weights, entry.value).reshape(x.shape)), entry

    def step(
        self,
        x: Float[Array, "*batch D"],
        cache_key: Float[Array, "*batch Nkv M Dh"],
        cache_value: Float[Array, "*batch Nkv M Dh"],
        visible: Bool[Array, " M"],
        position: Int[Array, ""],
    ) -> tuple[Float[Array, "*batch D"], Entry]:
        query, own = self._project(x[..., None, :], position[None])
        # A cache has its heads before its tokens.
        keys = jnp.concatenate([cache_key.astype(x.dtype), jnp.swapaxes(own.key, -3, -2)], axis=-2)
        values = jnp.concatenate([cache_value.astype(x.dtype), jnp.swapaxes(own.value, -3, -2)], axis=-2)
        logits = jnp.einsum("...lnh,...nmh->...nlm", query, keys, preferred_element_type=jnp.float32)
        weights = self._weights(logits, jnp.append(visible, True)[None]).astype(x.dtype)
        out = jnp.einsum("...nlm,...nmh->...lnh", weights, values)
        return self.out(out.reshape(x.shape)), Entry(own.key[..., 0, :, :], own.value[..., 0, :, :])


def from_config(width: int, heads: int, kv_heads: int, *, soft_cap: float | None, key: PRNGKeyArray) -> SinkAttention:
    """Adapts the constructor to what a configuration hands over; this attention has no use for two of the settings."""
    return SinkAttention(width, heads, key=key)


# Registered where the class is defined: whoever imports this module can build, and load, agents that use it.
ATTENTIONS["sink"] = from_config


def largest_difference(transformer, clip):
    """Runs a clip whole and frame by frame, and returns how far the two outputs are apart."""
    whole = eqx.filter_jit(transformer)(clip)

    @eqx.filter_jit
    def frame_by_frame(transformer, clip):
        def body(cache, frame):
            tokens, position = frame
            out, entry = transformer.step(tokens, cache, position)
            return cache.write(entry, position), out

        return jax.lax.scan(body, transformer.init_cache(), (clip, jnp.arange(len(clip))))[1]

    return jnp.abs(whole - frame_by_frame(transformer, clip)).max()


def attentions(part):
    """Lists the attention modules inside a part."""

    def found(node):
        return isinstance(node, AbstractAttention)

    return [node for node in jax.tree.leaves(part, is_leaf=found) if found(node)]


def main():
    print("1. By hand: a factory of the attention goes into the transformer.")
    layout = TokenLayout((TokenGroup("picture", 4, ("picture",)), TokenGroup("reader", 1, ("picture", "reader"))))
    transformer = Transformer(
        layout,
        width=32,
        depth=4,
        time_every=2,
        context_length=6,
        attention=lambda *, key: SinkAttention(32, 4, key=key),
        key=jr.key(0),
    )
    clip = jr.normal(jr.key(1), (15, layout.size, 32))
    difference = largest_difference(transformer, clip)
    print(f"   15 frames, a window of 6: whole clip against ring cache differ by {difference:.1e}")

    gradient = eqx.filter_jit(eqx.filter_grad(lambda model: jnp.mean(model(clip)[-1] ** 3)))(transformer)
    (of_time_layers,) = (a.sink for a in attentions(gradient.groups.time))
    print(f"   the sinks learn: gradient norm {jnp.linalg.norm(of_time_layers):.3f}")

    print("2. By name: a configuration finds it in the registry.")
    config: Config = load("tiny", overrides=["dynamics.transformer.attention=sink"])
    agent = Dreamer.build(config, DataSpec((10, 5, 1), ActionSpec((3,))), key=jr.key(2))
    for name, part in (("dynamics", agent.dynamics), ("tokenizer, left alone,", agent.tokenizer)):
        print(f"   the {name} attends with {', '.join({type(a).__name__ for a in attentions(part)})}")


if __name__ == "__main__":
    main()
