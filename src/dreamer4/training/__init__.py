"""How the parts become good: four phases over one Module, one loop for all of them.

A phase is a triple of what is trained, on which loss, on which data (`phases.py`). The loop (`loop.py`) knows none of
them: it samples, differentiates, divides each loss term by its running RMS, updates, averages. All that evolves is one
PyTree, `TrainState` (`state.py`); all randomness is a function of seed, phase and step number.

So a training step is a pure function, which is why a run resumes exactly, and why `seeds=8` is one `vmap`. On several
devices it is the same function; `placement.py` says where its arrays lie.

`folder.py` and `metrics.py` are what a run leaves on disk.
"""

from dreamer4.training.cloning import CloningPhase as CloningPhase
from dreamer4.training.encoding import encode_source as encode_source
from dreamer4.training.encoding import encode_store as encode_store
from dreamer4.training.encoding import fingerprint as fingerprint
from dreamer4.training.encoding import measure_store as measure_store
from dreamer4.training.loop import draw_and_step as draw_and_step
from dreamer4.training.loop import init_dreamer as init_dreamer
from dreamer4.training.loop import init_state as init_state
from dreamer4.training.loop import member as member
from dreamer4.training.loop import stack_members as stack_members
from dreamer4.training.loop import stream as stream
from dreamer4.training.loop import train as train
from dreamer4.training.loop import train_step as train_step
from dreamer4.training.phases import AbstractPhase as AbstractPhase
from dreamer4.training.phases import AgentPhase as AgentPhase
from dreamer4.training.phases import DynamicsPhase as DynamicsPhase
from dreamer4.training.phases import ImaginationPhase as ImaginationPhase
from dreamer4.training.phases import TokenizerPhase as TokenizerPhase
from dreamer4.training.phases import build_phase as build_phase
from dreamer4.training.phases import measure_latents as measure_latents
from dreamer4.training.state import RunningRMS as RunningRMS
from dreamer4.training.state import TrainState as TrainState
from dreamer4.training.state import build_optimizer as build_optimizer
