"""The configuration tree: what a run is told, as frozen, typed, closed data.

`tree` is the whole of it, with its YAML round trip; `data`, `dynamics` and `training` are branches of it; `presets` are
named starting points; `text` turns what a person typed into nested mappings, and complaints back into sentences.
"""

from .data import MIXTURES as MIXTURES
from .data import BehaviourConfig as BehaviourConfig
from .data import Branch as Branch
from .data import DataConfig as DataConfig
from .data import EnvConfig as EnvConfig
from .data import OfflineConfig as OfflineConfig
from .data import PPOConfig as PPOConfig
from .data import SACConfig as SACConfig
from .data import TaskConfig as TaskConfig
from .dynamics import DynamicsConfig as DynamicsConfig
from .dynamics import RSSMConfig as RSSMConfig
from .dynamics import SamplerConfig as SamplerConfig
from .dynamics import ShortcutConfig as ShortcutConfig
from .dynamics import TransformerConfig as TransformerConfig
from .presets import PRESETS as PRESETS
from .training import GuardConfig as GuardConfig
from .training import HeadsConfig as HeadsConfig
from .training import MeshConfig as MeshConfig
from .training import OptimizerConfig as OptimizerConfig
from .training import PhaseConfig as PhaseConfig
from .training import TrainConfig as TrainConfig
from .tree import AgentConfig as AgentConfig
from .tree import Config as Config
from .tree import ContinuousConfig as ContinuousConfig
from .tree import EvaluationConfig as EvaluationConfig
from .tree import ImaginationConfig as ImaginationConfig
from .tree import ObjectiveConfig as ObjectiveConfig
from .tree import RoundsConfig as RoundsConfig
from .tree import TokenizerConfig as TokenizerConfig
from .tree import diff as diff
from .tree import earlier as earlier
from .tree import from_yaml as from_yaml
from .tree import load as load
from .tree import override as override
from .tree import require_imports as require_imports
from .tree import to_yaml as to_yaml
from .tree import validate as validate
from .tree import without_hardware as without_hardware
