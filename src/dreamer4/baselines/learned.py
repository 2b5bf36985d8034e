"""What came of an agent that learned online, and at which stage it was how good."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dreamer4.baselines.actor_critic import NetworkPolicy
from dreamer4.data import AbstractPolicy


# How far a stage of training has come, from the untrained policy's return to the best one.
STAGES = {"early": 1 / 3, "middle": 2 / 3, "late": 1.0}

# Stretches of training between two looks from the host; each leaves a snapshot and a point of the learning curve.
LOOKS = 50


@dataclass(frozen=True)
class TrainingRun:
    """What came of one training seed.

    Attributes:
        snapshots: the network at the end of each stretch of training, on the host.
        steps: environment steps made by then.
        returns: mean return of the episodes that ended within the stretch; NaN if none did.
        player: makes a policy of a snapshot.
    """

    snapshots: tuple[Any, ...]
    steps: tuple[int, ...]
    returns: tuple[float, ...]
    player: Callable[[Any], AbstractPolicy] = NetworkPolicy

    def index(self, stage: str) -> int:
        """Returns which snapshot a stage of training is.

        Args:
            stage: `early` and `middle` are the first snapshots whose return has come a third and two thirds of the way
                from the first return to the best; `late` is the last snapshot.
        """
        known = np.array(self.returns)
        if stage == "late" or np.isnan(known).all():
            return len(self.snapshots) - 1
        first = known[np.flatnonzero(~np.isnan(known))[0]]
        return int(np.argmax(known >= first + STAGES[stage] * (np.nanmax(known) - first)))

    def policy(self, stage: str = "late") -> AbstractPolicy:
        """Returns the policy of a stage of training; see `index`."""
        return self.player(jax.tree.map(jnp.asarray, self.snapshots[self.index(stage)]))


def runs_of(
    records: Sequence[tuple[Sequence[Any], np.ndarray]], stride: int, player: Callable[[Any], AbstractPolicy]
) -> list[TrainingRun]:
    """Returns the runs of all seeds, from the networks and the returns of each seed at every look.

    Args:
        records: one for each look.
        stride: environment steps of a seed between two looks.
        player: makes a policy of a network.
    """
    steps = tuple(stride * (i + 1) for i in range(len(records)))
    return [
        TrainingRun(tuple(networks[seed] for networks, _ in records), steps, tuple(map(float, column)), player)
        for seed, column in enumerate(np.stack([returns for _, returns in records], axis=1))
    ]
