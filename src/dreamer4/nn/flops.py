"""How many operations a pass through a network costs, by formula.

Counted are the multiplications and additions of matrix products, those of attention included, as is usual for figures
of model FLOP utilisation. Norms, activations, softmax and the optimiser are left out. The formulas count what the
model asks for, and nothing that a machine computes twice. Within a frame, attention costs what its mask's blocks hold;
through time, masked positions are computed and count.
"""

import jax
from jaxtyping import PyTree

from dreamer4.nn.attention import GroupedQueryAttention, mask_blocks
from dreamer4.nn.transformer import Transformer


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

    lines = slots if transformer.dense else lines
    products = slots * (stacked(space) + stacked(time.mlp)) + lines * stacked(time.attention)
    mask = transformer.layout.space_mask()[:slots, :slots]
    pairs = sum(mask[rows, columns].size for rows, columns, _ in mask_blocks(mask))
    seen = slots * slots * frames if transformer.dense else lines * frames
    attention = 2 * width * transformer.num_groups * (len(space) * pairs + seen)
    return 2 * (products + attention)


def attention_bytes(module: PyTree, *, frames: int) -> int:
    """Returns the bytes of attention weights within frames that the backward pass of a clip holds at least.

    They are those of all transformers in a module, in float32. Of layers that are computed a second time one group at a
    time is held; fused kernels and the attentions of other people may hold none.
    """

    def held(transformer: Transformer) -> int:
        mask = transformer.layout.space_mask()
        pairs = sum(mask[rows, columns].size for rows, columns, _ in mask_blocks(mask))
        attentions = [block.attention for block in transformer.groups.space]
        heads = sum(a.heads for a in attentions if isinstance(a, GroupedQueryAttention) and not a.fused)
        return 4 * frames * pairs * heads * (1 if transformer.remat else transformer.num_groups)

    parts = jax.tree.leaves(module, is_leaf=lambda x: isinstance(x, Transformer))
    return sum(held(part) for part in parts if isinstance(part, Transformer))
