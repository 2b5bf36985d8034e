"""The block-causal transformer of tokenizer and dynamics (arXiv 2509.24527, section 3.4).

A clip is a grid of tokens, T frames by S slots. A layer attends either within each frame (space) or along each slot
(time), never both, and every `time_every`-th layer is a time layer. (With `dense` it attends to every slot of the
frames it sees: the rows of table 2 before time is factorised.) What may see what inside a frame is data, a
`TokenLayout`; what may see what through time is causality, a window, and a segment number per frame: frames of
different segments do not see each other, which expresses separate images, short clips and long clips in one shape.

The layers are stacked in groups of `time_every` and scanned, so compile time does not grow with depth.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from dreamer4.config import TransformerConfig
from dreamer4.errors import InputError, nearest
from dreamer4.nn.attention import EMPTY, AbstractAttention, Entry, GroupedQueryAttention, Mask, RingCache
from dreamer4.nn.layers import RMSNorm, SwiGLU, initial_tokens
from dreamer4.nn.layout import TokenLayout, add, take, time_mask


ATTENTIONS: dict[str, Callable[..., AbstractAttention]] = {
    "grouped_query": GroupedQueryAttention,
    "fused": partial(GroupedQueryAttention, fused=True),
}

# Small stacks are unrolled at inference: on a CPU a rolled loop of tiny operations costs about twice the time. Deeper
# ones are not, for their programs would take long to compile, and the loop costs little beside their work.
UNROLLED_GROUPS = 4
# Training a rolled stack writes what the backward pass needs into stacked buffers, which costs a fifth of a small
# model's step; unrolling costs compile time, so it is for the smallest depths.
UNROLLED_IN_TRAINING = 2


Remat = Literal[False, True, "products"]


def recomputing(function: Callable, remat: Remat) -> Callable:
    """Returns a function whose backward pass computes again what the forward pass computed, as far as is asked."""
    if remat == "products":
        # Products with weights have no batch dimensions; those of attention do, and are cheap to compute again.
        return jax.checkpoint(function, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable)
    return jax.checkpoint(function) if remat else function


class Block(eqx.Module):
    """One layer: attention, then SwiGLU, each behind a norm and added to its input."""

    attention_norm: RMSNorm
    attention: AbstractAttention
    mlp_norm: RMSNorm
    mlp: SwiGLU

    def __init__(self, width: int, hidden: int, attention: Callable[..., AbstractAttention], *, key: PRNGKeyArray):
        """Builds the layer around the attention that `attention(key=key)` makes."""
        key_attention, key_mlp = jr.split(key)
        self.attention_norm = RMSNorm(width)
        self.attention = attention(key=key_attention)
        self.mlp_norm = RMSNorm(width)
        self.mlp = SwiGLU(width, hidden, key=key_mlp)

    def feed_forward(self, x: Float[Array, "*dims D"]) -> Float[Array, "*dims D"]:
        """Applies the second half of the layer."""
        return x + self.mlp(self.mlp_norm(x))

    def space(self, x: Float[Array, "*T S D"], mask: Mask) -> Float[Array, "*T S D"]:
        """Attends within each frame; slots double as rotary positions."""
        update, _ = self.attention(self.attention_norm(x), mask, jnp.arange(x.shape[-2]))
        return self.feed_forward(x + update)

    def time(
        self, x: Float[Array, "T S D"], mask: Bool[Array, "T T"], slots: tuple[bool, ...]
    ) -> tuple[Float[Array, "T S D"], Entry]:
        """Attends along each slot in `slots`; the others get an attention update of zero."""
        lines = jnp.moveaxis(self.attention_norm(take(x, slots)), 0, 1)  # (T S D) -> (S T D)
        update, entry = self.attention(lines, mask, jnp.arange(x.shape[0]))
        return self.feed_forward(add(x, jnp.moveaxis(update, 0, 1), slots)), entry

    def time_step(
        self,
        x: Float[Array, "S D"],
        cache_key: Float[Array, "Sc Nkv M Dh"],
        cache_value: Float[Array, "Sc Nkv M Dh"],
        visible: Bool[Array, " M"],
        position: Int[Array, ""],
        slots: tuple[bool, ...],
    ) -> tuple[Float[Array, "S D"], Entry]:
        """Attends from one frame to the cached frames; the cache holds the slots in `slots` only."""
        tokens = self.attention_norm(take(x, slots))
        update, entry = self.attention.step(tokens, cache_key, cache_value, visible, position)
        return self.feed_forward(add(x, update, slots)), entry

    def dense(
        self, x: Float[Array, "T S D"], time: Bool[Array, "T T"], space: Bool[Array | np.ndarray, "S S"]
    ) -> tuple[Float[Array, "T S D"], Entry]:
        """Attends to its own slot and those that `space` shows it, in all frames that `time` shows its frame."""
        count, seen = x.shape[0] * x.shape[1], space | np.eye(x.shape[1], dtype=bool)
        mask = (time[:, None, :, None] & seen[None, :, None, :]).reshape(count, count)
        frame = jnp.repeat(jnp.arange(x.shape[0]), x.shape[1])
        tokens = self.attention_norm(x).reshape(-1, x.shape[-1])
        update, entry = self.attention(tokens, mask, frame)
        lines = jax.tree.map(lambda leaf: jnp.moveaxis(leaf.reshape(*x.shape[:2], *leaf.shape[1:]), 0, 1), entry)
        return self.feed_forward(x + update.reshape(x.shape)), lines

    def dense_step(
        self,
        x: Float[Array, "S D"],
        cache_key: Float[Array, "S Nkv M Dh"],
        cache_value: Float[Array, "S Nkv M Dh"],
        visible: Bool[Array, " M"],
        position: Int[Array, ""],
        space: Bool[Array | np.ndarray, "S S"],
    ) -> tuple[Float[Array, "S D"], Entry]:
        """Attends as `dense` does, from one frame to the cached frames and to itself."""
        tokens, (size, capacity) = self.attention_norm(x), (x.shape[0], visible.shape[0])
        step = jax.vmap(self.attention.step, in_axes=(0, None, None, 0, None))

        def flat(ring):  # (S Nkv M Dh) -> (Nkv S*M Dh)
            return jnp.moveaxis(ring, 0, 1).reshape(ring.shape[1], -1, ring.shape[-1])

        # What a token leaves behind depends on itself alone, so the frame's own entries are had before any attention.
        nothing = jnp.zeros((size, capacity), bool)
        _, entry = step(tokens, cache_key[0], cache_value[0], nothing, position)
        own = np.eye(size, dtype=bool)
        past = jnp.repeat(space | own, capacity, axis=1) & jnp.tile(visible, size)
        others = space & ~own  # a step sees its own token in any case
        keys, values = (
            jnp.concatenate([flat(ring), jnp.moveaxis(new, 0, 1).astype(ring.dtype)], axis=1)
            for ring, new in ((cache_key, entry.key), (cache_value, entry.value))
        )
        update, _ = step(tokens, keys, values, jnp.concatenate([past, others], axis=1), position)
        return self.feed_forward(x + update), entry


class LayerGroup(eqx.Module):
    """`time_every` layers: space layers, then one time layer."""

    space: tuple[Block, ...]
    time: Block


class Transformer(eqx.Module):
    """A stack of layer groups over the slots of a `TokenLayout`.

    Every method accepts a prefix of the slots: groups at the end of the layout that nothing earlier sees may be left
    out, and what remains is computed exactly as with them.
    """

    slot: Float[Array, "S D"]
    groups: LayerGroup
    norm: RMSNorm
    layout: TokenLayout = eqx.field(static=True)
    num_groups: int = eqx.field(static=True)
    context_length: int = eqx.field(static=True)
    remat: Remat = eqx.field(static=True)
    dtype: str = eqx.field(static=True)
    dense: bool = eqx.field(static=True)

    def __init__(
        self,
        layout: TokenLayout,
        *,
        width: int,
        depth: int,
        time_every: int,
        context_length: int,
        attention: Callable[..., AbstractAttention],
        hidden: int | None = None,
        remat: Remat = False,
        dtype: str = "float32",
        dense: bool = False,
        key: PRNGKeyArray,
    ):
        """Builds the stack.

        Args:
            layout: the slots of a frame.
            width: features of a token, D.
            depth: number of layers, a multiple of `time_every`.
            time_every: the last of every so many layers attends through time.
            context_length: frames that a frame sees, itself included.
            attention: makes one attention module, called with `key=`.
            hidden: width of the feed-forward layers; 8/3 of `width` by default.
            remat: whether the backward pass recomputes what a group of layers computed, to save memory; "products":
                all but the results of products with weights, which take most time and a part of the memory.
            dtype: type of the activations; parameters and norms are float32.
            dense: whether time layers attend to all slots of the frames they see, and not along each slot.
            key: randomness of the weights.
        """
        if depth % time_every:
            raise InputError(f"Transformer: got depth {depth}, expected a multiple of time_every {time_every}.")
        key_slot, key_groups = jr.split(key)
        hidden = int(width * 8 / 3) if hidden is None else hidden

        def make_group(key):
            keys = jr.split(key, time_every)
            *space, time = (Block(width, hidden, attention, key=k) for k in keys)
            return LayerGroup(tuple(space), time)

        self.slot = initial_tokens(key_slot, (layout.size, width))
        self.num_groups = depth // time_every
        self.groups = eqx.filter_vmap(make_group)(jr.split(key_groups, self.num_groups))
        self.norm = RMSNorm(width)
        self.layout = layout
        self.context_length = context_length
        self.remat = remat
        self.dtype = dtype
        self.dense = dense

    def _slots(self, count):
        """Which of the first slots have entries in the cache."""
        return (True,) * count if self.dense else self.layout.through_time()[:count]

    def _time(self, block, x, time, space):
        return block.dense(x, time, space) if self.dense else block.time(x, time, self._slots(x.shape[1]))

    def _time_step(self, block, x, key, value, visible, position, space):
        if self.dense:
            return block.dense_step(x, key, value, visible, position, space)
        return block.time_step(x, key, value, visible, position, self._slots(x.shape[0]))

    def _scan(self, body, x, extra):
        arrays, static = eqx.partition(self.groups, eqx.is_array)

        def call(x, scanned):
            arrays, extra = scanned
            return body(x, eqx.combine(arrays, static), extra)

        return call, (arrays, extra)

    def _run(self, x, segment, collect):
        space = self.layout.space_mask()[: x.shape[1], : x.shape[1]]
        time = time_mask(segment, self.context_length)

        def body(x, group, _):
            for block in group.space:
                x = block.space(x, space)
            x, entry = self._time(group.time, x, time, space)
            return x, (entry if collect else None)

        call, scanned = self._scan(body, x, None)
        call = recomputing(call, self.remat)
        x = (x + self.slot[: x.shape[1]]).astype(self.dtype)
        unroll = self.num_groups if self.num_groups <= UNROLLED_IN_TRAINING else 1
        x, entries = jax.lax.scan(call, x, scanned, unroll=unroll)
        return self.norm(x.astype(jnp.float32)), entries

    def __call__(self, x: Float[Array, "T S D"], segment: Int[Array, " T"] | None = None) -> Float[Array, "T S D"]:
        """Transforms a clip.

        Args:
            x: tokens of the clip; learned slot embeddings are added here.
            segment: number of the segment of each frame; None: one segment.
        """
        segment = jnp.zeros(x.shape[0], jnp.int32) if segment is None else segment
        return self._run(x, segment, collect=False)[0]

    def prefill(
        self, x: Float[Array, "T S D"], segment: Int[Array, " T"] | None = None
    ) -> tuple[Float[Array, "T S D"], Entry]:
        """Transforms a clip as `__call__` does and returns the cache entries of its frames, `[groups slots T ...]`."""
        segment = jnp.zeros(x.shape[0], jnp.int32) if segment is None else segment
        return self._run(x, segment, collect=True)

    def drafts(
        self, x: Float[Array, "T S D"], entries: Entry, segment: Int[Array, " T"] | None = None
    ) -> Float[Array, "T S D"]:
        """Transforms another version of every frame of a clip, each after the clip's frames before it.

        As `step` would, had only the earlier frames been written to its cache: a draft sees them and itself, and
        nothing sees a draft.

        Args:
            x: tokens of the drafts, one for each frame of the clip; a prefix of its slots will do.
            entries: what `prefill` returned for the clip.
            segment: as given to `prefill`.
        """
        segment = jnp.zeros(x.shape[0], jnp.int32) if segment is None else segment
        space = jnp.asarray(self.layout.space_mask()[: x.shape[1], : x.shape[1]])
        positions = jnp.arange(x.shape[0])
        earlier = time_mask(segment, self.context_length) & (positions[:, None] != positions)

        def body(x, group, entry):
            for block in group.space:
                x = block.space(x, space)
            step = jax.vmap(partial(self._time_step, group.time), in_axes=(0, None, None, 0, 0, None))
            key, value = (jnp.swapaxes(part, -3, -2) for part in (entry.key, entry.value))  # heads first, as in a cache
            return step(x, key, value, earlier, positions, space)[0], None

        held = jax.tree.map(lambda leaf: leaf[:, : sum(self._slots(x.shape[1]))], entries)
        call, scanned = self._scan(body, x, held)
        call = recomputing(call, self.remat)
        x = (x + self.slot[: x.shape[1]]).astype(self.dtype)
        unroll = self.num_groups if self.num_groups <= UNROLLED_IN_TRAINING else 1
        return self.norm(jax.lax.scan(call, x, scanned, unroll=unroll)[0].astype(jnp.float32))

    def init_cache(self, slots: int | None = None) -> RingCache:
        """Returns an empty cache of `context_length` frames for the first `slots` slots (all by default)."""
        attention = self.groups.time.attention
        lead = (self.num_groups, sum(self._slots(self.layout.size if slots is None else slots)))
        return RingCache.empty(lead, self.context_length, attention.kv_heads, attention.head_dim, jnp.dtype(self.dtype))

    def step(
        self, x: Float[Array, "S D"], cache: RingCache, position: Int[Array, ""]
    ) -> tuple[Float[Array, "S D"], Entry]:
        """Transforms one frame that follows the cached ones; nothing is written.

        Args:
            x: tokens of the frame.
            cache: earlier frames.
            position: index of the frame, larger than every index in the cache.

        Returns:
            The transformed tokens, and the entry with which `cache.write(entry, position)` remembers the frame.
        """
        space = self.layout.space_mask()[: x.shape[0], : x.shape[0]]
        held = sum(self._slots(x.shape[0]))
        visible = (cache.position != EMPTY) & (position - cache.position < self.context_length)

        def body(x, group, ring):
            for block in group.space:
                x = block.space(x, space)
            key, value = ring
            return self._time_step(group.time, x, key, value, visible, position, space)

        call, scanned = self._scan(body, x, (cache.key[:, :held], cache.value[:, :held]))
        x = (x + self.slot[: x.shape[0]]).astype(self.dtype)
        unroll = self.num_groups if self.num_groups <= UNROLLED_GROUPS else 1
        x, entries = jax.lax.scan(call, x, scanned, unroll=unroll)
        return self.norm(x.astype(jnp.float32)), entries


def cast_weights(model: PyTree, dtype: str | None = None) -> PyTree:
    """Returns a model whose transformers hold their matrices in the type in which they multiply by them.

    A transformer casts its matrices at each call in any case, so this changes no bit of a result. It is for inference,
    which then reads half as many bytes for a frame; training keeps its weights in float32.

    Args:
        model: any PyTree; what is in no transformer stays as it is, as do norms and learned tokens.
        dtype: another type, which changes results; None: what each transformer computes in.
    """

    def cast(node):
        if not isinstance(node, Transformer):
            return node

        # Matrices are stacked over groups of layers, and over what the final norm may be stacked over, as seeds.
        lead = node.norm.scale.ndim

        def cast_leaf(leaf):
            matrix = eqx.is_array(leaf) and leaf.ndim == 2 + lead and jnp.issubdtype(leaf.dtype, jnp.floating)
            return leaf.astype(dtype or node.dtype) if matrix else leaf

        return eqx.tree_at(lambda t: t.groups, node, jax.tree.map(cast_leaf, node.groups))

    return jax.tree.map(cast, model, is_leaf=lambda node: isinstance(node, Transformer))


def build(layout: TokenLayout, config: TransformerConfig, *, key: PRNGKeyArray) -> Transformer:
    """Builds the transformer that a configuration describes."""
    if config.attention not in ATTENTIONS:
        raise InputError(f"attention: unknown kind {config.attention!r}. {nearest(config.attention, ATTENTIONS)}")

    def attention(*, key):
        return ATTENTIONS[config.attention](
            config.width, config.heads, config.kv_heads, soft_cap=config.soft_cap, key=key
        )

    return Transformer(
        layout,
        width=config.width,
        depth=config.depth,
        time_every=config.time_every,
        context_length=config.context_length,
        attention=attention,
        hidden=round(config.width * config.mlp_ratio),
        remat=config.remat,
        dtype=config.dtype,
        dense=config.dense,
        key=key,
    )
