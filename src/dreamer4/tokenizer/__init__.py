"""From frames to a few continuous tokens, and back.

The dynamics never sees a pixel. It sees what this part leaves of a frame: `Nz` tokens of `Dz` channels, bounded by a
tanh, standardised to unit variance, computed from this frame and earlier ones only. No codebook, no KL term, no
adversary: the tokens become smooth because the encoder must rebuild frames of which it saw as little as a tenth.

`AbstractTokenizer` is the contract; `CausalTokenizer` the paper's answer, and `PatchwiseTokenizer` another for worlds
that are drawn from tiles. Everything has two forms that agree, whole clips for training and one frame at a time for
acting. `LatentStats` travels with the tokenizer, since a world model trained at one latent scale is worthless at
another.

A tokenizer of your own goes into `TOKENIZERS`, as a builder `(config, spec, *, key) -> AbstractTokenizer`, or straight
into `Dreamer`.
"""

from collections.abc import Callable

from jaxtyping import PRNGKeyArray

from dreamer4.config import TokenizerConfig
from dreamer4.errors import InputError, nearest
from dreamer4.tokenizer.base import AbstractTokenizer as AbstractTokenizer
from dreamer4.tokenizer.base import LatentStats as LatentStats
from dreamer4.tokenizer.causal import CausalTokenizer as CausalTokenizer
from dreamer4.tokenizer.causal import build_causal as build_causal
from dreamer4.tokenizer.loss import Perceptual as Perceptual
from dreamer4.tokenizer.loss import RandomFeatures as RandomFeatures
from dreamer4.tokenizer.loss import tokenizer_loss as tokenizer_loss
from dreamer4.tokenizer.patches import patch_grid as patch_grid
from dreamer4.tokenizer.patches import patchify as patchify
from dreamer4.tokenizer.patches import unpatchify as unpatchify
from dreamer4.tokenizer.patchwise import PatchwiseTokenizer as PatchwiseTokenizer
from dreamer4.tokenizer.patchwise import build_patchwise as build_patchwise
from dreamer4.types import DataSpec


TOKENIZERS: dict[str, Callable[..., AbstractTokenizer]] = {"causal": build_causal, "patchwise": build_patchwise}


def build(config: TokenizerConfig, spec: DataSpec, *, key: PRNGKeyArray) -> AbstractTokenizer:
    """Builds the registered tokenizer that a configuration names."""
    if config.kind not in TOKENIZERS:
        raise InputError(f"tokenizer.kind: unknown {config.kind!r}. {nearest(config.kind, TOKENIZERS)}")
    return TOKENIZERS[config.kind](config, spec, key=key)
