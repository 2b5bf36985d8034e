"""The agent: what to do, what it brings, whether it goes on, and what it is worth.

Four small heads read `h`, the output of agent tokens that see the world and that the world does not see. In finetuning
(`losses.py`) policy, reward and continuation are fitted to data several frames ahead. In imagination the policy leaves
the data behind: `returns.py` turns imagined rewards into lambda-returns, and an objective (`objectives.py`) turns the
difference between return and value into a change of the policy, held to its cloned prior by an exact divergence.

An objective is a function of `PolicyBatch` alone. To write one, subclass `AbstractPolicyObjective` and either register
it in `OBJECTIVES` or pass it to the imagination phase (`examples/02_swap_objective.py`).
"""

from dreamer4.agent.heads import CONTINUOUS as CONTINUOUS
from dreamer4.agent.heads import AbstractContinuous as AbstractContinuous
from dreamer4.agent.heads import ContinuationHead as ContinuationHead
from dreamer4.agent.heads import Heads as Heads
from dreamer4.agent.heads import LatentHead as LatentHead
from dreamer4.agent.heads import PolicyHead as PolicyHead
from dreamer4.agent.heads import ScalarHead as ScalarHead
from dreamer4.agent.heads import build_heads as build_heads
from dreamer4.agent.losses import agent_losses as agent_losses
from dreamer4.agent.losses import reconstruction_loss as reconstruction_loss
from dreamer4.agent.losses import weighted_mean as weighted_mean
from dreamer4.agent.objectives import OBJECTIVES as OBJECTIVES
from dreamer4.agent.objectives import PMPO as PMPO
from dreamer4.agent.objectives import AbstractPolicyObjective as AbstractPolicyObjective
from dreamer4.agent.objectives import AdvantageWeighted as AdvantageWeighted
from dreamer4.agent.objectives import PolicyBatch as PolicyBatch
from dreamer4.agent.objectives import PolicyGradient as PolicyGradient
from dreamer4.agent.objectives import build_objective as build_objective
from dreamer4.agent.returns import lambda_returns as lambda_returns
