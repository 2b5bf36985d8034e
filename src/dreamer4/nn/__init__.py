"""The building blocks under tokenizer, dynamics and agent, none of which knows about any of them.

Three ideas carry the rest. A *layer* acts on the last axis and ignores what leads it. An *attention* acts on one
sequence in two ways that agree: whole, under a mask, and token by token, against a cache it never writes. A
*transformer* lays tokens out as frames by slots and decides who sees whom by data: a table of token groups for the
space inside a frame, a segment number per frame for time.

Distributions are PyTrees with exact divergences, because the policy objective needs KL terms with gradients.

To write an attention of your own, subclass `AbstractAttention` and pass a factory to `Transformer`
(`examples/01_swap_attention.py`); `tests/nn/test_attention.py` holds the laws it must obey.
"""

from dreamer4.nn.attention import AbstractAttention as AbstractAttention
from dreamer4.nn.attention import Entry as Entry
from dreamer4.nn.attention import GroupedQueryAttention as GroupedQueryAttention
from dreamer4.nn.attention import Mask as Mask
from dreamer4.nn.attention import RingCache as RingCache
from dreamer4.nn.attention import Stream as Stream
from dreamer4.nn.attention import attention_weights as attention_weights
from dreamer4.nn.attention import rope as rope
from dreamer4.nn.distributions import AbstractDistribution as AbstractDistribution
from dreamer4.nn.distributions import ActionDistribution as ActionDistribution
from dreamer4.nn.distributions import Bernoulli as Bernoulli
from dreamer4.nn.distributions import Beta as Beta
from dreamer4.nn.distributions import Bins as Bins
from dreamer4.nn.distributions import Categorical as Categorical
from dreamer4.nn.distributions import Normal as Normal
from dreamer4.nn.distributions import SymexpTwoHot as SymexpTwoHot
from dreamer4.nn.distributions import symexp as symexp
from dreamer4.nn.distributions import symlog as symlog
from dreamer4.nn.layers import MLP as MLP
from dreamer4.nn.layers import Embedding as Embedding
from dreamer4.nn.layers import Linear as Linear
from dreamer4.nn.layers import RMSNorm as RMSNorm
from dreamer4.nn.layers import SwiGLU as SwiGLU
from dreamer4.nn.layout import TokenGroup as TokenGroup
from dreamer4.nn.layout import TokenLayout as TokenLayout
from dreamer4.nn.layout import time_mask as time_mask
from dreamer4.nn.transformer import ATTENTIONS as ATTENTIONS
from dreamer4.nn.transformer import Transformer as Transformer
from dreamer4.nn.transformer import cast_weights as cast_weights
