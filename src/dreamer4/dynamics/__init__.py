"""The world model: what the next frame looks like, given the past and an action.

A dynamics model is anything that can be lived in (`base.py`): it takes in real frames, dreams others, and tells at each
what an agent may know. How it remembers, draws and learns is its own affair; `shortcut/` is the model of the paper,
`rssm/` that of Dreamer 3.

A dynamics of your own implements `AbstractDynamics` and goes into `DYNAMICS`.
"""

from collections.abc import Callable

from jaxtyping import PRNGKeyArray

from dreamer4.config import DynamicsConfig, SamplerConfig
from dreamer4.dynamics.action import ActionEncoder as ActionEncoder
from dreamer4.dynamics.base import AbstractDynamics as AbstractDynamics
from dreamer4.dynamics.base import Flops as Flops
from dreamer4.dynamics.base import Imagined as Imagined
from dreamer4.dynamics.base import State as State
from dreamer4.dynamics.base import WorldLoss as WorldLoss
from dreamer4.dynamics.rssm import RSSMDynamics as RSSMDynamics
from dreamer4.dynamics.rssm import build_rssm
from dreamer4.dynamics.shortcut import ShortcutDynamics as ShortcutDynamics
from dreamer4.dynamics.shortcut import build_shortcut
from dreamer4.errors import InputError, nearest
from dreamer4.types import DataSpec


DYNAMICS: dict[str, Callable[..., AbstractDynamics]] = {"transformer": build_shortcut, "rssm": build_rssm}


def build(
    config: DynamicsConfig,
    sampler: SamplerConfig,
    num_spatial: int,
    spatial_dim: int,
    spec: DataSpec,
    *,
    key: PRNGKeyArray,
) -> AbstractDynamics:
    """Builds the registered dynamics that a configuration names."""
    if config.kind not in DYNAMICS:
        raise InputError(f"dynamics.kind: unknown {config.kind!r}. {nearest(config.kind, DYNAMICS)}")
    return DYNAMICS[config.kind](config, sampler, num_spatial, spatial_dim, spec, key=key)
