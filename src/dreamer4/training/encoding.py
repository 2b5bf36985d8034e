"""The latents of a data set: in memory for a small one, in a store (`data.latents`) for any.

Episodes go side by side, each from its start and frame by frame, so many at a time as fit into `MEMORY_BYTES`. What a
frame becomes depends on all frames before it that the tokenizer still sees, however the work is cut up.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dreamer4.checkpoint.leaves import hash_leaf, is_abstract_array, named_arrays
from dreamer4.data import AbstractReader, DeviceSource, LatentStore, Window, latents
from dreamer4.dreamer import Dreamer
from dreamer4.precision import in_32_bits
from dreamer4.tokenizer import AbstractTokenizer, LatentStats
from dreamer4.training.placement import bound
from dreamer4.types import to_float


MEMORY_BYTES = 2**29  # of frames, caches and activations of the episodes that are encoded side by side
EPISODES, FRAMES = 128, 32  # at most, side by side and in one call: more are no faster

Part = tuple[Int[np.ndarray, " n"], int, Float[Array, "n T Nz Dz"], Any]


def fingerprint(tokenizer: AbstractTokenizer) -> str:
    """Returns a digest of what decides the raw latents of a tokenizer: its weights and sizes, not its statistics."""
    digest = hashlib.sha256()
    for name, leaf in named_arrays(tokenizer).items():
        if not name.startswith("stats."):
            digest.update(f"{name} {leaf.shape} {leaf.dtype} {hash_leaf(leaf)}\n".encode())
    digest.update("\n".join(_settings(tokenizer)).encode())
    return digest.hexdigest()


def _settings(node: Any) -> Iterator[str]:
    yield type(node).__qualname__
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if isinstance(value, eqx.Module):
            yield from _settings(value)
        elif isinstance(value, bool | int | float | str | tuple) and field.name != "remat":
            yield f"{field.name}={value}"


def side_by_side(tokenizer: AbstractTokenizer, longest: int) -> tuple[int, int, int]:
    """Returns how many episodes, and how many frames of each, are encoded at a time, and the bytes that they take.

    Bytes are estimated from shapes: the frames, three copies of the cache, and four times the largest of the arrays
    that the encoding of one frame makes.

    Args:
        tokenizer: the tokenizer, or its shapes.
        longest: frames of the longest episode.
    """
    stream = eqx.filter_eval_shape(lambda t: t.init_encoder(), tokenizer)
    frame = jax.ShapeDtypeStruct(tokenizer.frame_shape, jnp.float32)
    arrays, static = eqx.partition(tokenizer, is_abstract_array)
    step = jax.make_jaxpr(lambda a, f, s: eqx.combine(a, static).encode_step(f, s))(arrays, frame, stream)
    cache = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(stream))
    still, pixels = 3 * cache + 4 * _largest(step.jaxpr), int(np.prod(tokenizer.frame_shape))
    frames = max(1, min(FRAMES, longest, (MEMORY_BYTES - still) // (2 * pixels)))
    each = still + 2 * frames * pixels
    episodes = max(1, min(EPISODES, MEMORY_BYTES // each))
    return episodes, frames, episodes * each


def _largest(jaxpr: Any) -> int:
    """Returns the bytes of the largest array that a program computes, within whatever it calls."""
    sizes = [0]
    for equation in jaxpr.eqns:
        sizes += [v.aval.size * v.aval.dtype.itemsize for v in equation.outvars if hasattr(v.aval, "size")]
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            sizes += [_largest(inner)] if hasattr(inner, "eqns") else []
    return max(sizes)


@eqx.filter_jit
def _encode_frames(tokenizer, stream, frames):
    def encode(stream, frames):
        def body(stream, frame):
            latent, stream = tokenizer.encode_step(to_float(frame), stream)
            return stream, latent

        return jax.lax.scan(body, stream, frames)

    return jax.vmap(encode)(stream, frames)


def encoded(
    tokenizer: AbstractTokenizer,
    lengths: Int[np.ndarray, " E"],
    read: Callable[[Int[np.ndarray, " n"], int, int], tuple[Any, Any]],
    *,
    most: int | None = None,
) -> Iterator[Part]:
    """Encodes episodes in parts: yields which they are, the first frame, their latents, and what `read` gave with them.

    Episodes of about one length go side by side. All calls have one shape, and little is computed beyond the end of an
    episode, however unlike the lengths are. The latents of a part that lie beyond an episode's end mean nothing.

    Args:
        tokenizer: the tokenizer.
        lengths: frames of each episode.
        read: returns frames of some episodes from one on, so many of them, and anything else.
        most: frames of the longest episode of the whole set, for parts of a set to be encoded by one program.
    """
    width, count, _ = side_by_side(tokenizer, most or int(lengths.max()))
    tokenizer = bound(tokenizer)
    beginning = bound(jax.tree.map(lambda x: jnp.broadcast_to(x, (width, *x.shape)), tokenizer.init_encoder()))
    order = np.argsort(lengths, kind="stable")
    for first in range(0, len(lengths), width):
        # The last batch repeats the last episode, so that every batch has one shape.
        index = order[np.minimum(np.arange(first, first + width), len(lengths) - 1)]
        own, stream = min(width, len(lengths) - first), beginning
        for begin in range(0, int(lengths[index].max()), count):
            frames, extra = read(index, begin, count)
            stream, latent = _encode_frames(tokenizer, stream, frames)
            yield index[:own], begin, latent[:own], extra


@partial(jax.jit, donate_argnums=0)
def put_rows(latents: Array, row: Int[Array, "*rows"], encoded: Array) -> Array:
    """Returns latents, whose buffer it takes, with some rows put in; those beyond the end are dropped."""
    return latents.at[row].set(encoded, mode="drop")


@in_32_bits
def encode_source(dreamer: Dreamer, source: DeviceSource) -> Float[Array, "N Nz Dz"]:
    """Encodes every frame of a data set, each episode from its start, as an acting agent would."""
    tokenizer, lengths = dreamer.tokenizer, np.asarray(source.length)
    latents = jnp.zeros((source.num_frames, tokenizer.num_spatial, tokenizer.spatial_dim))

    def read(index, begin, count):
        return source.stretches(jnp.asarray(index), jnp.full(len(index), begin), count).frame, None

    for index, begin, latent, _ in encoded(tokenizer, lengths, read):
        time = jnp.arange(begin, begin + latent.shape[1])
        row = source.start[index][:, None] + time
        row = jnp.where(time < source.length[index][:, None], row, source.num_frames)  # beyond the end: dropped
        latents = put_rows(latents, row, latent)
    return latents


@in_32_bits
def encode_store(
    tokenizer: AbstractTokenizer,
    reader: AbstractReader,
    folder: Path,
    *,
    part: tuple[int, int] = (0, 1),
    shard_bytes: int = latents.SHARD_BYTES,
    progress: Callable[[int], None] = lambda frames: None,
) -> None:
    """Encodes a data set into a store, as far as its shards are not there yet.

    Of frames and latents no more is in memory than is encoded at a time, and the same again, being read ahead. What a
    killed process has finished is kept, and the store comes out the same, bit by bit, on the same kind of machine.

    Args:
        tokenizer: the tokenizer; its statistics do not matter.
        reader: of the data.
        folder: of the store, begun or not.
        part: `(i, n)` makes only every n-th shard from the i-th on, so that n processes share the work.
        shard_bytes: of frames and latents in a shard that holds more than one episode.
        progress: is told how many more frames are done.

    Raises:
        InputError: if the folder holds a store of other data or of another tokenizer, or something cannot be read or
            written.
    """
    plain = LatentStats.identity(tokenizer.num_spatial, tokenizer.spatial_dim)
    tokenizer = eqx.tree_at(lambda t: t.stats, tokenizer, plain)
    info = latents.plan(reader, fingerprint(tokenizer), (tokenizer.num_spatial, tokenizer.spatial_dim), shard_bytes)
    latents.begin(folder, info)
    for shard in latents.missing(folder, info):
        if shard % part[1] == part[0]:
            latents.write_shard(folder, info, shard, _windows(tokenizer, reader, info.episodes(shard)))
            progress(int(reader.lengths[info.episodes(shard)].sum()))


def _windows(
    tokenizer: AbstractTokenizer, reader: AbstractReader, episodes: range
) -> Iterator[tuple[int, int, Window]]:
    """Yields latents and labels of some episodes; the next frames are read while the device encodes."""
    lengths = reader.lengths[episodes]

    def read(index, begin, count):
        windows = {
            i: reader.window(episodes[i], begin, min(count, int(lengths[i]) - begin))
            for i in set(index.tolist())
            if begin < lengths[i]
        }
        frames = np.zeros((len(index), count, *reader.spec.frame_shape), np.uint8)
        for row, i in enumerate(index.tolist()):
            if i in windows:
                frame = windows[i].frame
                assert frame is not None
                frames[row, : len(frame)] = frame
        return frames, windows

    def finished(index, begin, latent, windows):
        for row, i in zip(np.asarray(latent), index.tolist(), strict=True):
            if i in windows:
                window = windows[i]
                yield episodes[i], begin, dataclasses.replace(window, frame=None, latent=row[: len(window.reward)])

    waiting: Part | None = None
    for ready in encoded(tokenizer, lengths, read, most=int(reader.lengths.max())):
        if waiting is not None:
            yield from finished(*waiting)
        waiting = ready
    if waiting is not None:
        yield from finished(*waiting)


def measure_store(store: LatentStore) -> LatentStats:
    """Measures the statistics of all latents of a store, which is opened without any."""
    count, total, square = 0, 0.0, 0.0
    for block in store.blocks():
        exact = block.astype(np.float64)
        count, total, square = count + len(exact), total + exact.sum(0), square + (exact**2).sum(0)
    mean = np.asarray(total) / count
    return LatentStats.of(mean, np.sqrt(np.maximum(np.asarray(square) / count - mean**2, 0.0)))
