"""Agents without a world model: behaviour policies that make data, and references that results are read against.

An offline data set is only as interesting as the policies that made it. Random play never sees the second half of most
games; an expert never shows what a mistake costs. So a model-free agent is trained once in the real environment, and
what it was on the way (early, middle, late) plays the data. Its last return is also the figure to compare with: what
online learning reaches with as many real steps as it likes, which an offline agent has to be measured against.

The agent is PPO, trained wholly on the device: one jitted program for a stretch of updates, vmapped over training
seeds. PPO sees what every other part sees, frames, so it runs on any `AbstractEnvironment`; SAC learns continuous
control from the state, with fewer steps. Thanks to dm_env's timing a time limit needs no special case, because the last
frame of an episode is there to be bootstrapped from.

`offline` holds what learns from the finished data set instead, as an agent in a world model does, but without one:
clones, CQL and IQL. Imagination has to beat the best of them.

`players` lists scripts that look into a world, which no agent may: those of Craftax leave recordings of several skills,
`mpc` is an expert of the DeepMind Control Suite that plans in the simulator itself.

No library does this for us: those in JAX that train PPO speak the five-value step that gymnax 1.0 left behind.
"""

from dreamer4.baselines.actor_critic import ActorCritic as ActorCritic
from dreamer4.baselines.actor_critic import NetworkPolicy as NetworkPolicy
from dreamer4.baselines.decisions import Decisions as Decisions
from dreamer4.baselines.learned import STAGES as STAGES
from dreamer4.baselines.learned import TrainingRun as TrainingRun
from dreamer4.baselines.offline import OFFLINE as OFFLINE
from dreamer4.baselines.offline import Offline as Offline
from dreamer4.baselines.offline import OfflineData as OfflineData
from dreamer4.baselines.offline import check_baseline as check_baseline
from dreamer4.baselines.offline import suited as suited
from dreamer4.baselines.offline import train_offline as train_offline
from dreamer4.baselines.offline import with_entropy as with_entropy
from dreamer4.baselines.online import ONLINE as ONLINE
from dreamer4.baselines.online import is_policy as is_policy
from dreamer4.baselines.online import load_policy as load_policy
from dreamer4.baselines.online import save_policy as save_policy
from dreamer4.baselines.players import PLAYERS as PLAYERS
from dreamer4.baselines.ppo import advantages as advantages
from dreamer4.baselines.ppo import clipped_policy_loss as clipped_policy_loss
from dreamer4.baselines.ppo import clipped_value_loss as clipped_value_loss
from dreamer4.baselines.ppo import steps_taken as steps_taken
from dreamer4.baselines.ppo import train_ppo as train_ppo
from dreamer4.baselines.sac import train_sac as train_sac
