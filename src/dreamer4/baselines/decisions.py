"""The decisions of a data set: what was seen, what was done, and what came of it."""

from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from dreamer4.data import Episode
from dreamer4.errors import InputError
from dreamer4.types import Action


class Decisions(eqx.Module):
    """Every known decision of some episodes, on the device; decision i was made at frame `row[i]`.

    Attributes:
        frame: the frames of all episodes, one behind the other.
        row: the frame decided at; the frame it led to is the next one.
        first: the first frame of its episode.
        task: id of the task that was asked for.
        action: what was decided.
        reward: what arrived with the frame it led to.
        is_terminal: whether that frame terminated the episode.
        to_go: undiscounted return from the decision to the end of its episode.
        weight: how much cloning shall count it, relative to others.
        wish: brightness of a further frame that tells a network what return is wished for; None: it is told nothing.
    """

    frame: UInt8[Array, "N H W C"]
    row: Int[Array, " D"]
    first: Int[Array, " D"]
    task: Int[Array, " D"]
    action: Action
    reward: Float[Array, " D"]
    is_terminal: Bool[Array, " D"]
    to_go: Float[Array, " D"]
    weight: Float[Array, " D"]
    wish: UInt8[Array, " D"] | None = None

    @classmethod
    def of(cls, episodes: Sequence[Episode]) -> "Decisions":
        """Puts the decisions of episodes on the device.

        Raises:
            InputError: if there is none.
        """
        lengths = np.array([e.length for e in episodes], np.int64)
        starts = np.cumsum(lengths) - lengths
        known = [np.flatnonzero(e.action_mask[1:]) for e in episodes]
        if not sum(map(len, known)):
            raise InputError("Decisions.of: the episodes hold no known action. Give episodes with actions.")

        def join(parts, dtype):
            return jnp.asarray(np.concatenate(parts), dtype)

        pairs = list(zip(episodes, known, strict=True))
        return cls(
            frame=join([e.frame for e in episodes], jnp.uint8),
            row=join([k + s for k, s in zip(known, starts, strict=True)], jnp.int32),
            first=join([np.full(len(k), s) for k, s in zip(known, starts, strict=True)], jnp.int32),
            task=join([np.full(len(k), e.task) for e, k in pairs], jnp.int32),
            action=Action(
                join([e.discrete[1:][k] for e, k in pairs], jnp.int32),
                join([e.continuous[1:][k] for e, k in pairs], jnp.float32),
            ),
            reward=join([e.reward[1:][k] for e, k in pairs], jnp.float32),
            is_terminal=join([(k == e.length - 2) & e.is_terminal for e, k in pairs], bool),
            to_go=join([np.cumsum(e.reward[:0:-1].astype(np.float64))[::-1][k] for e, k in pairs], jnp.float32),
            weight=jnp.ones(sum(map(len, known))),
        )

    @property
    def count(self) -> int:
        """Number of decisions, D."""
        return self.row.shape[0]

    def seen(self, index: Int[Array, ""], count: int, *, ahead: int = 0) -> UInt8[Array, "count H W C"]:
        """Returns the newest frames at a decision, the newest last; a first frame stands for the past it lacks.

        Args:
            index: the decision.
            count: frames, the one that tells a wish included.
            ahead: 1 for the frames that the decision led to.
        """
        past = count - (self.wish is not None)
        rows = self.row[index] + ahead - jnp.arange(past - 1, -1, -1)
        frames = self.frame[jnp.maximum(rows, self.first[index])]
        if self.wish is None:
            return frames
        return jnp.concatenate([frames, jnp.broadcast_to(self.wish[index], (1, *frames.shape[1:]))])
