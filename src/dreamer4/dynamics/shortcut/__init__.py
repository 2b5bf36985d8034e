"""Shortcut forcing: a transformer that is shown noisy frames, and draws the next one in a few large steps.

`noise.py` mixes frames with noise, each with its own amount, and labels them: signal level 0 is noise and 1 is clean,
levels and step sizes are indices into a `NoiseGrid`. `network.py` is shown such frames and predicts the clean ones.
`forcing.py` decides how much noise and how large a step each frame is trained for, and what the right answer is: the
data for the finest step, two half steps of the model itself for the others; `loss.py` puts this together for a batch.
`sampler.py` runs the network forward from pure noise in K large steps, and then commits the frame to the past.
`model.py` is all of it behind the contract of a dynamics model.
"""

from dreamer4.dynamics.shortcut.forcing import AbstractForcing as AbstractForcing
from dreamer4.dynamics.shortcut.forcing import DiffusionForcing as DiffusionForcing
from dreamer4.dynamics.shortcut.forcing import SplitForcing as SplitForcing
from dreamer4.dynamics.shortcut.forcing import TeacherForcing as TeacherForcing
from dreamer4.dynamics.shortcut.forcing import bootstrap_levels as bootstrap_levels
from dreamer4.dynamics.shortcut.forcing import bootstrap_target as bootstrap_target
from dreamer4.dynamics.shortcut.forcing import build_forcing as build_forcing
from dreamer4.dynamics.shortcut.forcing import context_levels as context_levels
from dreamer4.dynamics.shortcut.forcing import flow_levels as flow_levels
from dreamer4.dynamics.shortcut.forcing import paper_levels as paper_levels
from dreamer4.dynamics.shortcut.forcing import ramp as ramp
from dreamer4.dynamics.shortcut.forcing import space_weight as space_weight
from dreamer4.dynamics.shortcut.loss import shortcut_loss as shortcut_loss
from dreamer4.dynamics.shortcut.model import ShortcutDynamics as ShortcutDynamics
from dreamer4.dynamics.shortcut.model import ShortcutState as ShortcutState
from dreamer4.dynamics.shortcut.model import build_shortcut as build_shortcut
from dreamer4.dynamics.shortcut.network import AbstractNetwork as AbstractNetwork
from dreamer4.dynamics.shortcut.network import TransformerNetwork as TransformerNetwork
from dreamer4.dynamics.shortcut.network import dynamics_layout as dynamics_layout
from dreamer4.dynamics.shortcut.noise import Levels as Levels
from dreamer4.dynamics.shortcut.noise import NoiseGrid as NoiseGrid
from dreamer4.dynamics.shortcut.noise import NoisyFrames as NoisyFrames
from dreamer4.dynamics.shortcut.noise import as_past as as_past
from dreamer4.dynamics.shortcut.noise import corrupt as corrupt
from dreamer4.dynamics.shortcut.sampler import commit as commit
from dreamer4.dynamics.shortcut.sampler import denoise as denoise
