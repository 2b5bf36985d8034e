"""The world model: what the next frame looks like, given the past and an action.

Four files, four ideas. `noise.py` mixes frames with noise, each with its own amount, and labels them. `model.py` is a
network that is shown such frames and predicts the clean ones. `shortcut.py` decides how much noise and how large a step
each frame is trained for, and what the right answer is: the data for the finest step, two half steps of the model
itself for the others. `sampler.py` runs the network forward from pure noise in a few large steps, and then commits the
frame to the past.

`NoiseGrid` holds the one convention all share: signal level 0 is noise and 1 is clean, levels and step sizes are
indices into a grid, and every frame is labelled with the noise it really has.

A dynamics of your own implements `AbstractDynamics` and goes into `DYNAMICS`; a sampler goes into `SAMPLERS`, or
straight into `Dreamer.imagine_step`.
"""

from collections.abc import Callable

from jaxtyping import PRNGKeyArray

from dreamer4.config import DynamicsConfig
from dreamer4.dynamics.base import AbstractDynamics as AbstractDynamics
from dreamer4.dynamics.model import ActionEncoder as ActionEncoder
from dreamer4.dynamics.model import TransformerDynamics as TransformerDynamics
from dreamer4.dynamics.model import build_transformer as build_transformer
from dreamer4.dynamics.model import dynamics_layout as dynamics_layout
from dreamer4.dynamics.noise import Levels as Levels
from dreamer4.dynamics.noise import NoiseGrid as NoiseGrid
from dreamer4.dynamics.noise import NoisyFrames as NoisyFrames
from dreamer4.dynamics.noise import as_past as as_past
from dreamer4.dynamics.noise import corrupt as corrupt
from dreamer4.dynamics.sampler import SAMPLERS as SAMPLERS
from dreamer4.dynamics.sampler import AbstractSampler as AbstractSampler
from dreamer4.dynamics.sampler import FlowSampler as FlowSampler
from dreamer4.dynamics.sampler import ShortcutSampler as ShortcutSampler
from dreamer4.dynamics.sampler import build_sampler as build_sampler
from dreamer4.dynamics.sampler import commit as commit
from dreamer4.dynamics.sampler import denoise as denoise
from dreamer4.dynamics.sampler import denoise_watched as denoise_watched
from dreamer4.dynamics.shortcut import ShortcutForcing as ShortcutForcing
from dreamer4.dynamics.shortcut import bootstrap_levels as bootstrap_levels
from dreamer4.dynamics.shortcut import bootstrap_target as bootstrap_target
from dreamer4.dynamics.shortcut import context_levels as context_levels
from dreamer4.dynamics.shortcut import flow_levels as flow_levels
from dreamer4.dynamics.shortcut import paper_levels as paper_levels
from dreamer4.dynamics.shortcut import ramp as ramp
from dreamer4.errors import InputError, nearest
from dreamer4.types import DataSpec


DYNAMICS: dict[str, Callable[..., AbstractDynamics]] = {"transformer": build_transformer}


def build(
    config: DynamicsConfig, num_spatial: int, spatial_dim: int, spec: DataSpec, *, key: PRNGKeyArray
) -> AbstractDynamics:
    """Builds the registered dynamics that a configuration names."""
    if config.kind not in DYNAMICS:
        raise InputError(f"dynamics.kind: unknown {config.kind!r}. {nearest(config.kind, DYNAMICS)}")
    return DYNAMICS[config.kind](config, num_spatial, spatial_dim, spec, key=key)
