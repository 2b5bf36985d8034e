"""What a session keeps of each frame, and what it shows of it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from dreamer4.data import Episode


Mode = Literal["game", "dream", "both"]
Actor = Literal["player", "policy", "prior"]


@dataclass(frozen=True)
class Row:
    """One frame of a session, by the clock of `types.py`: its action led to it.

    Attributes:
        discrete: classes of the action.
        continuous: continuous part of the action.
        known: whether there was an action.
        real: the frame of the real game, if there is one.
        dreamt: the frame of the dream, or the real one while the agent is awake.
        real_reward: reward of the real game.
        dreamt_reward: reward that the agent expects.
    """

    discrete: Int32[np.ndarray, " components"]
    continuous: Float32[np.ndarray, " dims"]
    known: bool
    real: UInt8[np.ndarray, "H W C"] | None
    dreamt: UInt8[np.ndarray, "H W C"] | None
    real_reward: float
    dreamt_reward: float


@dataclass(frozen=True)
class Moment:
    """What a person sees after each request.

    Attributes:
        time: steps since the start.
        mode: the mode; it may differ from the one asked for, and then `note` says why.
        by: who acted.
        action: classes and continuous part of the last action; None at the start.
        images: `game` and `dream` in colours, as far as the mode shows them, and `difference`, where they differ.
        over: whether the episode is over in what is shown.
        game: reward, total and end of the real game, if there is one.
        dream: the same of the dream, if the mode dreams: reward expected, total since it began, end predicted.
        reading: what the trained heads tell.
        warnings: what warns of the dreamt frame.
        differs: whether game and dream differ at this frame.
        first_difference: the first step at which they did.
        note: a sentence for the person.
        recorded: frames recorded so far; None while nothing is recorded.
    """

    time: int
    mode: Mode
    by: str
    action: dict[str, list[Any]] | None
    images: dict[str, UInt8[np.ndarray, "H W _"]]
    over: bool
    game: dict[str, Any] | None
    dream: dict[str, Any] | None
    reading: dict[str, Any] | None
    warnings: dict[str, float | None] | None
    differs: bool
    first_difference: int | None
    note: str
    recorded: int | None


@dataclass
class Side:
    """One of the two worlds as a person sees it now: the real game, or the dream."""

    image: UInt8[np.ndarray, "H W 3"] | None = None
    reward: float = 0.0
    total: float = 0.0
    end: bool = False
    terminal: bool = False

    def told(self) -> dict[str, Any]:
        """Returns what the page is told of it."""
        return {"reward": finite(self.reward), "total": finite(self.total), "end": self.end}


def to_episode(rows: list[Row], view: Callable[[Row], tuple[Any, float]], terminal: bool, task: int) -> Episode:
    """Returns rows as an episode of a task; `view` tells frame and reward of a row."""
    known = np.array([row.known for row in rows])
    known[0] = False  # also where the oldest rows were dropped
    return Episode(
        frame=np.stack([view(row)[0] for row in rows]),
        discrete=np.stack([row.discrete for row in rows]),
        continuous=np.stack([row.continuous for row in rows]),
        action_mask=known,
        reward=np.array([view(row)[1] for row in rows], np.float32),
        is_terminal=terminal,
        task=task,
    )


def finite(value: Any) -> float | None:
    """Returns a number as JSON can hold it: None, if it is not finite."""
    number = float(value)
    return number if math.isfinite(number) else None
