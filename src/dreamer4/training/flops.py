"""How many operations a training step or a frame costs, by formula.

Counted are the multiplications and additions of matrix products, those of attention included, as is usual for figures
of model FLOP utilisation. Norms, activations, softmax and the optimiser are left out. The formulas count what the
model asks for, and nothing that a machine computes twice. Within a frame, attention costs what its mask's blocks hold;
through time, masked positions are computed and count.
"""

import jax
from jaxtyping import PyTree

from dreamer4.config import Config
from dreamer4.dreamer import Dreamer
from dreamer4.dynamics import ShortcutForcing, TransformerDynamics
from dreamer4.nn import Transformer
from dreamer4.nn.attention import mask_blocks
from dreamer4.tokenizer import CausalTokenizer


def parameters(tree: PyTree) -> int:
    """Returns the number of parameters of a tree of arrays or of shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree) if hasattr(leaf, "size"))


def matrix_parameters(tree: PyTree) -> int:
    """Returns the number of parameters in matrices; each costs two operations per token that passes through."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree) if hasattr(leaf, "size") and leaf.ndim >= 2)


def transformer_flops(transformer: Transformer, *, frames: int, slots: int | None = None) -> int:
    """Returns the operations of one frame through a transformer.

    Args:
        transformer: the transformer, or its shapes.
        frames: frames that a frame's time attention is computed against: all those of a clip in training, the capacity
            of the cache and one frame by frame.
        slots: how many of a frame's slots are computed; all by default.
    """
    size, width = transformer.slot.shape
    slots = size if slots is None else slots
    lines = sum(transformer.layout.through_time()[:slots])  # slots that attend through time
    space, time = transformer.groups.space, transformer.groups.time

    def stacked(tree):
        return sum(leaf.size for leaf in jax.tree.leaves(tree) if hasattr(leaf, "size") and leaf.ndim >= 3)

    products = slots * (stacked(space) + stacked(time.mlp)) + lines * stacked(time.attention)
    mask = transformer.layout.space_mask()[:slots, :slots]
    pairs = sum(mask[rows, columns].size for rows, columns, _ in mask_blocks(mask))
    attention = 2 * width * transformer.num_groups * (len(space) * pairs + lines * frames)
    return 2 * (products + attention)


def encoder_flops(tokenizer: CausalTokenizer, *, frames: int) -> int:
    """Returns the operations that encode one frame; `frames` as for `transformer_flops`."""
    patches = tokenizer.encoder.layout.slots("patch")
    ends = patches.stop * tokenizer.patch_in.weight.size + tokenizer.num_latents * tokenizer.bottleneck.weight.size
    return transformer_flops(tokenizer.encoder, frames=frames) + 2 * ends


def decoder_flops(tokenizer: CausalTokenizer, *, frames: int) -> int:
    """Returns the operations that decode one frame; `frames` as for `transformer_flops`."""
    queries = tokenizer.decoder.layout.slots("query")
    latents, patches = tokenizer.num_latents, queries.stop - queries.start
    ends = latents * tokenizer.unbottleneck.weight.size + patches * tokenizer.patch_out.weight.size
    return transformer_flops(tokenizer.decoder, frames=frames) + 2 * ends


def dynamics_flops(dynamics: TransformerDynamics, *, frames: int, agent: bool) -> int:
    """Returns the operations of one frame in one pass; `frames` as for `transformer_flops`, with or without agent."""
    slots = None if agent else dynamics.transformer.layout.slots("agent").start
    ends = dynamics.num_spatial * (dynamics.spatial_in.weight.size + dynamics.flow_head.weight.size)
    return transformer_flops(dynamics.transformer, frames=frames, slots=slots) + 2 * ends


def step_flops(phase: str, dreamer: Dreamer, config: Config) -> int:
    """Returns the operations of one training step of a phase.

    A differentiated pass costs three forward passes. A row with teachers adds two forward passes, and in the mode
    `drafts` one over the past.

    Args:
        phase: name of the phase.
        dreamer: the agent, or its shapes, with the tokenizer and dynamics of this library.
        config: its configuration; one training seed is counted.
    """
    settings = getattr(config.train, phase)
    rows, length = settings.batch_size, settings.length
    tokenizer, dynamics = dreamer.tokenizer, dreamer.dynamics
    assert isinstance(tokenizer, CausalTokenizer) and isinstance(dynamics, TransformerDynamics)
    if phase == "tokenizer":
        return 3 * rows * length * (encoder_flops(tokenizer, frames=length) + decoder_flops(tokenizer, frames=length))
    if phase == "imagination":
        states = rows * (config.imagination.horizon + 1)
        dreamt = rows * config.imagination.horizon
        seen = dynamics.context_length + 1
        draw = config.sampler.num_steps * dynamics_flops(dynamics, frames=seen, agent=False)
        commit = dynamics_flops(dynamics, frames=seen, agent=True)
        context = rows * length * dynamics_flops(dynamics, frames=length, agent=True)
        heads = states * 3 * matrix_parameters(dreamer.value)
        heads += dreamt * (5 * matrix_parameters(dreamer.policy) + matrix_parameters(dreamer.reward))
        heads += dreamt * matrix_parameters(dreamer.continuation)
        return context + dreamt * (draw + commit) + 2 * heads
    shortcut = config.dynamics.shortcut
    taught = ShortcutForcing(shortcut, context_signal=config.sampler.context_signal).bootstrap_rows(rows)
    past, agent = dynamics_flops(dynamics, frames=length, agent=False), phase == "agent"
    teachers, learning = 2 * past, dynamics_flops(dynamics, frames=length, agent=agent)
    if shortcut.mode == "drafts":
        draft = dynamics_flops(dynamics, frames=length + 1, agent=False)
        teachers, learning = past + 2 * draft, learning + draft
    world = length * (taught * teachers + 3 * rows * learning)
    heads = (dreamer.policy, dreamer.reward, dreamer.continuation, dreamer.reconstruction) if agent else ()
    return world + 3 * rows * length * 2 * matrix_parameters(heads)
