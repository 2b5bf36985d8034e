"""Attention over one sequence, its rotary positions, and its ring cache.

An attention module is called in two ways that must agree. `__call__` sees a whole sequence under an explicit mask;
`step` sees one new token and a cache of earlier ones. `step` does not write: it returns the token's cache entry, and
the caller decides whether the token happened (`RingCache.write`) or was only a draft, as in the denoising passes of a
frame. So drafts cost no copy of the cache. Both take any number of sequences side by side, as leading axes.

Rotary angles are exact at any position. A frequency is stored as a whole number of 2^-32 turns, the phase of position p
is `p * frequency mod 2^32` in integer arithmetic, and only that remainder becomes a float32 angle: its error is 2^-24
turns at frame one and at frame one billion.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from dreamer4.errors import InputError
from dreamer4.nn.layers import Linear, RMSNorm


EMPTY = -1  # position of a cache slot that holds nothing
MAX_BLOCKS = 4  # into which a mask is cut; more would be a program of many small products

# An array of NumPy is known when a program is built, which lets masking be left out where everything is visible.
Mask = Bool[Array, "L M"] | Bool[np.ndarray, "L M"]


def rope(
    x: Float[Array, "*batch L N Dh"], positions: Int[Array, " L"], *, base: float = 10_000.0
) -> Float[Array, "*batch L N Dh"]:
    """Rotates pairs of features by angles proportional to the position (rotary embedding).

    Args:
        x: one vector per token and head, with an even number of features.
        positions: integer position of each token, of any size.
        base: ratio of the slowest to the fastest wavelength; the fastest turns by one radian per position.
    """
    half = x.shape[-1] // 2
    turns = base ** (-np.arange(half) / half) / (2 * np.pi)
    frequency = jnp.asarray(np.round(turns * 2.0**32).astype(np.uint32))
    phase = positions.astype(jnp.uint32)[:, None] * frequency  # wraps modulo one turn, exactly
    angle = (phase >> 8).astype(jnp.float32) * np.float32(2 * np.pi / 2.0**24)
    cos = jnp.cos(angle)[:, None, None, :]
    sin = jnp.stack([-jnp.sin(angle), jnp.sin(angle)], axis=-2)[:, None, :, :]
    # (first, second) -> (first cos - second sin, second cos + first sin)
    halves = x.astype(jnp.float32).reshape(*x.shape[:-1], 2, half)
    return (halves * cos + jnp.flip(halves, -2) * sin).reshape(x.shape).astype(x.dtype)


def mask_blocks(mask: Mask) -> Sequence[tuple[slice, slice, Mask | None]]:
    """Cuts a mask into blocks of neighbouring tokens that see the same run of tokens.

    Returns:
        For each block the rows, the columns they see, and what is left to mask: nothing, unless the mask is not known
        when the program is built or falls into too many blocks. Then it is one block.
    """
    whole = [(slice(None), slice(None), mask)]
    if not isinstance(mask, np.ndarray):
        return whole
    changes = np.flatnonzero((mask[1:] != mask[:-1]).any(1)) + 1
    bounds = [0, *changes.tolist(), len(mask)]
    blocks = []
    for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
        seen = np.flatnonzero(mask[start])
        if len(bounds) > MAX_BLOCKS + 1 or not len(seen) or seen[-1] - seen[0] >= len(seen):
            return whole
        blocks.append((slice(start, stop), slice(int(seen[0]), int(seen[-1]) + 1), None))
    return blocks


def attention_weights(
    logits: Float[Array, "*heads L M"],
    mask: Bool[Array, "#L M"] | Bool[np.ndarray, "#L M"] | None,
    soft_cap: float | None,
) -> Float[Array, "*heads L M"]:
    """Turns float32 logits into weights; a query that may see nothing gets weights of zero, not uniform ones."""
    if soft_cap is not None:
        logits = soft_cap * jnp.tanh(logits / soft_cap)
    if mask is None:
        return jax.nn.softmax(logits, axis=-1)
    # A finite floor keeps the softmax and its gradient finite in rows that see nothing.
    weights = jax.nn.softmax(jnp.where(mask, logits, jnp.finfo(jnp.float32).min), axis=-1)
    return jnp.where(mask, weights, 0.0)


class Entry(eqx.Module):
    """What a token leaves in a cache: its rotated key and its value."""

    key: Float[Array, "*lead Nkv Dh"]
    value: Float[Array, "*lead Nkv Dh"]


class RingCache(eqx.Module):
    """The last `capacity` entries of a sequence, in a ring of fixed size.

    Leading axes (layers, slots of a frame) share one ring of positions. Heads come before the ring, as products of a
    query with all keys of its head want them: an entry is written once and read by every pass of the frames after it.
    """

    key: Float[Array, "*lead Nkv M Dh"]
    value: Float[Array, "*lead Nkv M Dh"]
    position: Int[Array, " M"]

    @classmethod
    def empty(cls, lead: tuple[int, ...], capacity: int, kv_heads: int, head_dim: int, dtype) -> "RingCache":
        """Returns a cache that holds nothing."""
        zeros = jnp.zeros((*lead, kv_heads, capacity, head_dim), dtype)
        return cls(zeros, zeros, jnp.full(capacity, EMPTY, jnp.int32))

    @property
    def capacity(self) -> int:
        """Number of entries the ring can hold."""
        return self.position.shape[0]

    def write(self, entry: Entry, position: Int[Array, ""]) -> "RingCache":
        """Returns the cache with the entry of the token at `position` in place of the oldest one."""
        # A masked copy, not an indexed update: under `vmap` the latter becomes a scatter, which a CPU runs row by row.
        here = jnp.arange(self.capacity) == position % self.capacity

        def put(ring, new):
            return jnp.where(here[:, None], jnp.expand_dims(new, -2).astype(ring.dtype), ring)

        return RingCache(
            put(self.key, entry.key), put(self.value, entry.value), jnp.where(here, position, self.position)
        )

    def fill(self, entries: Entry, count: Int[Array, ""]) -> "RingCache":
        """Returns the cache as if the first `count` of T tokens, at positions 0 to T-1, had been written in turn.

        Args:
            entries: entries of all T tokens, time axis directly before the heads.
            count: how many of them happened, 0 to T.
        """
        slots = jnp.arange(self.capacity)
        newest = count - 1 - (count - 1 - slots) % self.capacity  # the largest position < count that maps to the slot
        held = newest >= 0
        source = jnp.clip(newest, 0, entries.key.shape[-3] - 1)

        def pick(ring, new):
            taken = jnp.moveaxis(jnp.take(new, source, axis=new.ndim - 3), -3, -2).astype(ring.dtype)
            return jnp.where(held[:, None], taken, ring)

        return RingCache(pick(self.key, entries.key), pick(self.value, entries.value), jnp.where(held, newest, EMPTY))


class Stream(eqx.Module):
    """Where a frame-by-frame computation stands: its cache and the index of the next frame."""

    cache: RingCache
    position: Int[Array, ""]


class AbstractAttention(eqx.Module):
    """Self-attention over a sequence of tokens, or over several side by side."""

    kv_heads: eqx.AbstractVar[int]
    head_dim: eqx.AbstractVar[int]

    @abstractmethod
    def __call__(
        self, x: Float[Array, "*batch L D"], mask: Mask, positions: Int[Array, " L"]
    ) -> tuple[Float[Array, "*batch L D"], Entry]:
        """Attends over the whole sequence.

        Args:
            x: normalised tokens.
            mask: whether a token (row) sees another (column). A token that sees nothing gets an update of zero.
            positions: rotary positions.

        Returns:
            The update of each token, and each token's cache entry, with the axes of `x` before its own.
        """

    @abstractmethod
    def step(
        self,
        x: Float[Array, "*batch D"],
        cache_key: Float[Array, "*batch Nkv M Dh"],
        cache_value: Float[Array, "*batch Nkv M Dh"],
        visible: Bool[Array, " M"],
        position: Int[Array, ""],
    ) -> tuple[Float[Array, "*batch D"], Entry]:
        """Attends from one new token to the cached tokens and to itself.

        Args:
            x: the normalised new token.
            cache_key: rotated keys of earlier tokens.
            cache_value: values of earlier tokens.
            visible: which of them the token sees.
            position: rotary position of the token.

        Returns:
            The update of the token, and its cache entry. Nothing is written.
        """


def compute_capability() -> float:
    """Returns the generation of the first device as NVIDIA counts them, 0 for what is not theirs."""
    try:
        return float(getattr(jax.devices()[0], "compute_capability", 0))
    except ValueError:  # AMD's are called gfx90a
        return 0.0


def kernel(dtype: jnp.dtype, head_dim: int, *lengths: int) -> Literal["cudnn", "xla"]:
    """Returns which kernel of `jax.nn.dot_product_attention` is used on the device at hand.

    cuDNN's never writes the weights to memory. It is for NVIDIA's GPUs since Ampere, half precision, heads of up to 128
    features that eight divides, and even lengths. Everything else, and every other device, gets XLA's, which is the
    same mathematics. Where cuDNN itself is missing, JAX says so.
    """
    half = dtype in (jnp.bfloat16, jnp.float16)
    fits = head_dim <= 128 and head_dim % 8 == 0 and not any(length % 2 for length in lengths)
    return "cudnn" if half and fits and compute_capability() >= 8.0 else "xla"


def attend_fused(
    query: Float[Array, "*batch L Nkv G Dh"],
    key: Float[Array, "*batch M Nkv Dh"],
    value: Float[Array, "*batch M Nkv Dh"],
    mask: Mask | None,
) -> Float[Array, "*batch L Nkv G Dh"]:
    """Attends by one fused call; a query that may see nothing gets zero. The query is scaled already."""
    lead, (length, kv_heads, group, head_dim), seen = query.shape[:-4], query.shape[-4:], key.shape[-3]
    shown = None if mask is None else jnp.asarray(mask)
    with jax.numpy_dtype_promotion("standard"):  # JAX widens the logits of bfloat16 by promotion
        out = jax.nn.dot_product_attention(
            query.reshape(-1, length, kv_heads * group, head_dim),
            key.reshape(-1, seen, kv_heads, head_dim).astype(query.dtype),
            value.reshape(-1, seen, kv_heads, head_dim).astype(query.dtype),
            mask=None if shown is None else shown[None, None],
            scale=1.0,
            implementation=kernel(query.dtype, head_dim, length, seen),
        ).reshape(*lead, length, kv_heads, group, head_dim)
    return out if shown is None else jnp.where(shown.any(-1)[:, None, None, None], out, 0)


class GroupedQueryAttention(AbstractAttention):
    """Multi-head attention with shared key-value heads, RMS-normalised queries and keys, and a soft cap on the logits.

    With `kv_heads == heads` this is plain multi-head attention. The paper names the ingredients (section 3.4) and gives
    no values.
    """

    query: Linear
    key: Linear
    value: Linear
    out: Linear
    query_norm: RMSNorm
    key_norm: RMSNorm
    heads: int = eqx.field(static=True)
    kv_heads: int = eqx.field(static=True)
    head_dim: int = eqx.field(static=True)
    soft_cap: float | None = eqx.field(static=True)
    fused: bool = eqx.field(static=True)

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int,
        *,
        soft_cap: float | None = 50.0,
        fused: bool = False,
        key: PRNGKeyArray,
    ):
        """Builds the attention.

        Args:
            width: features of a token, divisible by `heads` into heads of even size.
            heads: query heads.
            kv_heads: key-value heads; divides `heads`.
            soft_cap: bound of the logits, or None for none.
            fused: whether sequences are attended to by `jax.nn.dot_product_attention`, which cannot cap logits. A
                single token against a cache is not: it reads every key once in any case.
            key: randomness of the weights.

        Raises:
            InputError: if it is to be fused and capped.
        """
        if fused and soft_cap is not None:
            raise InputError(
                f"soft_cap: got {soft_cap} with fused attention, whose kernels cannot cap logits. Set soft_cap to "
                "null, or attention to grouped_query."
            )
        key_q, key_k, key_v, key_o = jr.split(key, 4)
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, width // heads
        self.query = Linear(width, heads * self.head_dim, key=key_q)
        self.key = Linear(width, kv_heads * self.head_dim, key=key_k)
        self.value = Linear(width, kv_heads * self.head_dim, key=key_v)
        self.out = Linear(heads * self.head_dim, width, key=key_o)
        self.query_norm = RMSNorm(self.head_dim)
        self.key_norm = RMSNorm(self.head_dim)
        self.soft_cap = soft_cap
        self.fused = fused

    def _project(self, x, positions):
        lead = x.shape[:-1]
        query = self.query_norm(self.query(x).reshape(*lead, self.heads, self.head_dim))
        key = self.key_norm(self.key(x).reshape(*lead, self.kv_heads, self.head_dim))
        value = self.value(x).reshape(*lead, self.kv_heads, self.head_dim)
        query, key = rope(query, positions), rope(key, positions)
        # Query heads g of group n share key-value head n.
        query = query.reshape(*lead, self.kv_heads, self.heads // self.kv_heads, self.head_dim)
        return query * self.head_dim**-0.5, Entry(key, value)

    def __call__(
        self, x: Float[Array, "*batch L D"], mask: Mask, positions: Int[Array, " L"]
    ) -> tuple[Float[Array, "*batch L D"], Entry]:
        query, entry = self._project(x, positions)

        def attend(rows, columns, mask):
            q, k, v = query[..., rows, :, :, :], entry.key[..., columns, :, :], entry.value[..., columns, :, :]
            if self.fused:
                return attend_fused(q, k, v, mask)
            logits = jnp.einsum("...lngh,...mnh->...nglm", q, k, preferred_element_type=jnp.float32)
            weights = attention_weights(logits, mask, self.soft_cap).astype(x.dtype)
            return jnp.einsum("...nglm,...mnh->...lngh", weights, v)

        out = jnp.concatenate([attend(*block) for block in mask_blocks(mask)], axis=-4)
        return self.out(out.reshape(x.shape[:-1] + (-1,))), entry

    def step(
        self,
        x: Float[Array, "*batch D"],
        cache_key: Float[Array, "*batch Nkv M Dh"],
        cache_value: Float[Array, "*batch Nkv M Dh"],
        visible: Bool[Array, " M"],
        position: Int[Array, ""],
    ) -> tuple[Float[Array, "*batch D"], Entry]:
        query, entry = self._project(x[..., None, :], position[None])
        query, entry = query[..., 0, :, :, :], jax.tree.map(lambda leaf: leaf[..., 0, :, :], entry)
        past = jnp.einsum("...ngh,...nmh->...ngm", query, cache_key.astype(x.dtype), preferred_element_type=jnp.float32)
        own = jnp.einsum("...ngh,...nh->...ng", query, entry.key, preferred_element_type=jnp.float32)
        logits = jnp.concatenate([past, own[..., None]], axis=-1)
        mask = jnp.append(visible, True)[None]
        weights = attention_weights(logits, mask, self.soft_cap).astype(x.dtype)
        out = jnp.einsum("...ngm,...nmh->...ngh", weights[..., :-1], cache_value.astype(x.dtype))
        out = out + weights[..., -1:] * entry.value[..., None, :]
        return self.out(out.reshape(*x.shape[:-1], -1)), entry
