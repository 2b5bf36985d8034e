"""The recurrent state-space model of Dreamer 3 (arXiv 2301.04104), on the latents of the same tokenizer.

A state is a recurrent vector and a handful of categorical draws. `network.py` is what passes from frame to frame;
`model.py` is how it learns, from a reconstruction and two divergences, behind the contract of a dynamics model.
"""

from dreamer4.dynamics.rssm.model import RSSMDynamics as RSSMDynamics
from dreamer4.dynamics.rssm.model import RSSMState as RSSMState
from dreamer4.dynamics.rssm.model import build_rssm as build_rssm
from dreamer4.dynamics.rssm.model import free_bits as free_bits
from dreamer4.dynamics.rssm.network import BlockGRU as BlockGRU
from dreamer4.dynamics.rssm.network import Dense as Dense
from dreamer4.dynamics.rssm.network import draw as draw
from dreamer4.dynamics.rssm.network import unimix as unimix
