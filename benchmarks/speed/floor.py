"""The least time that a piece of work can take on a device, from its operations and the bytes it must move.

A piece of work is a list of parts that follow each other, such as K denoise passes, a commit pass and the decoder. A
part can be no faster than its matrix products at the rate at which the device multiplies large matrices of that type,
nor than its bytes at the rate at which the device reads and writes a buffer larger than its caches:

    floor = sum over parts of  times * max(operations / matmul rate, bytes / memory rate)

Operations are those of `dreamer4.training.flops`. Bytes are what must come from memory once a part: weights in the
type they are computed in, the keys and values of the context, and in a training step the optimiser's state.
Activations are left out, for a perfect program keeps them on the chip. So no program goes below the floor, unless all
it needs fits into the caches, as that of a small model does on a CPU: there the memory rate says little.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import PyTree

from dreamer4.dreamer import Dreamer
from dreamer4.dynamics import ShortcutDynamics
from dreamer4.dynamics.shortcut import TransformerNetwork
from dreamer4.nn import Transformer
from dreamer4.tokenizer import CausalTokenizer
from dreamer4.training.flops import matrix_parameters


# Dense bfloat16 products by data sheet, operations a second. Never the figure with 2:4 sparsity, which is twice that.
DATA_SHEET = {"H100": 989e12, "H200": 989e12, "A100": 312e12}


@dataclass(frozen=True)
class Part:
    """A part of a piece of work: operations, bytes, and how many times it is done."""

    operations: float
    bytes: float
    times: int = 1


@dataclass(frozen=True)
class Rates:
    """What a device reaches: operations a second in large matrix products, bytes read and written a second."""

    matmul: float
    memory: float


def floor(parts: Sequence[Part], rates: Rates) -> float:
    """Returns the least seconds that the parts can take."""
    return sum(p.times * max(p.operations / rates.matmul, p.bytes / rates.memory) for p in parts)


def total_operations(parts: Sequence[Part]) -> float:
    """Returns the operations of all parts."""
    return sum(part.times * part.operations for part in parts)


def size(tree: PyTree) -> int:
    """Returns the bytes of a tree of arrays or of shapes."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype")]
    return sum(leaf.size * _item(leaf.dtype) for leaf in leaves)


def _item(dtype: Any) -> int:
    return 8 if jnp.issubdtype(dtype, jax.dtypes.prng_key) else np.dtype(dtype).itemsize


def _weights(part: PyTree, transformer: Transformer) -> int:
    """Returns the bytes of the matrices that a pass reads, in the type it computes in."""
    return matrix_parameters(part) * np.dtype(transformer.dtype).itemsize


def frame_parts(dreamer: Dreamer, rows: int, num_steps: int, *, decode: bool) -> tuple[Part, ...]:
    """Returns what a dreamt frame costs with a full context: K passes that draw it, one that commits it, the decoder.

    Args:
        dreamer: the agent, or its shapes, with the tokenizer and dynamics of this library.
        rows: dreams side by side.
        num_steps: K.
        decode: whether the frame becomes pixels.
    """
    tokenizer, dynamics = dreamer.tokenizer, dreamer.dynamics
    assert isinstance(tokenizer, CausalTokenizer) and isinstance(dynamics, ShortcutDynamics)
    network, seen = dynamics.network, dynamics.context_length + 1
    assert isinstance(network, TransformerNetwork)
    held = size(eqx.filter_eval_shape(network.init_cache))
    moved = _weights(network, network.transformer) + rows * held
    draw = Part(rows * network.flops(frames=seen, agent=False), moved, num_steps)
    commit = Part(rows * network.flops(frames=seen, agent=True), moved)
    if not decode:
        return draw, commit
    seen = tokenizer.decoder.context_length + 1
    held = size(eqx.filter_eval_shape(tokenizer.init_decoder)) + int(np.prod(tokenizer.frame_shape))
    weights = _weights((tokenizer.decoder, tokenizer.unbottleneck, tokenizer.patch_out), tokenizer.decoder)
    return draw, commit, Part(rows * tokenizer.decoder_flops(frames=seen), weights + rows * held)


def training_part(operations: float, trained: int, optimizer: int, itemsize: int) -> Part:
    """Returns what a training step costs at least.

    Weights are read forwards and backwards in the type of the products. Each gradient is written and read, each weight
    and its average read and written, all of them in float32; the state of the optimiser is read and written.

    Args:
        operations: of the step.
        trained: parameters that are trained.
        optimizer: bytes of the state of the optimiser.
        itemsize: bytes of a number of the products.
    """
    return Part(operations, trained * (2 * itemsize + 2 * 4 + 4 * 4) + 2 * optimizer)


def median_seconds(call: Callable[[], Any], repeats: int) -> float:
    """Returns the median seconds of a call that returns arrays, after one that is not counted."""
    jax.block_until_ready(call())
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def measure(dtype: str, *, side: int | None = None, megabytes: int | None = None) -> Rates:
    """Measures the rates of the default device: random matrices, and a buffer that is read and written.

    Args:
        dtype: type of the matrices.
        side: of the square matrices; by default 8192, on a CPU 2048.
        megabytes: of the buffer; by default 1024, on a CPU 256.
    """
    cpu = jax.default_backend() == "cpu"
    side = side or (2048 if cpu else 8192)
    megabytes = megabytes or (256 if cpu else 1024)
    matrix = jr.normal(jr.key(0), (side, side), dtype)
    buffer = [jnp.zeros(megabytes * 2**18, jnp.float32)]
    product = median_seconds(lambda: _square(matrix), 5)

    def rewrite():
        buffer.append(_rewritten(buffer.pop()))
        return buffer

    return Rates(2 * side**3 / product, 2 * buffer[0].nbytes / median_seconds(rewrite, 5))


@jax.jit
def _square(matrix):
    return matrix @ matrix


# In place, for a system that maps fresh pages for each call would be measured otherwise.
@partial(jax.jit, donate_argnums=0)
def _rewritten(buffer):
    return buffer + 1.0


def data_sheet(device_kind: str) -> float | None:
    """Returns the operations a second that a device's data sheet promises for dense bfloat16 products, if known."""
    return next((rate for name, rate in DATA_SHEET.items() if name in device_kind), None)
