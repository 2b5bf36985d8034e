"""Labels of whole episodes, which are small beside their frames, held in memory and cut into windows."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int32, UInt8

from dreamer4.data.labels import bounds_around, on_our_clock
from dreamer4.data.readers.base import Window
from dreamer4.errors import InputError
from dreamer4.types import ActionSpec


@dataclass(frozen=True, eq=False)
class Steps:
    """Labels of an episode on our clock, as those of an `Episode`."""

    discrete: Int32[np.ndarray, "T components"]
    continuous: Float32[np.ndarray, "T dims"]
    action_mask: Bool[np.ndarray, " T"]
    reward: Float32[np.ndarray, " T"]

    def window(self, start: int, length: int, frame: UInt8[np.ndarray, "T H W C"] | None) -> Window:
        """Returns a stretch of them with its frames."""
        part = slice(start, start + length)
        return Window(
            frame, None, self.discrete[part], self.continuous[part], self.action_mask[part], self.reward[part]
        )


@dataclass(frozen=True, eq=False)
class ActionScale:
    """What the numbers of an action mean: classes from 0 on, or values between bounds.

    Attributes:
        num_classes: of each discrete component; empty for continuous actions.
        low: of each continuous dimension.
        high: likewise.
    """

    num_classes: tuple[int, ...]
    low: Float[np.ndarray, " dims"]
    high: Float[np.ndarray, " dims"]

    @classmethod
    def between(cls, low: Float[np.ndarray, " dims"], high: Float[np.ndarray, " dims"]) -> "ActionScale":
        """Returns the scale of continuous actions; a dimension that never moves gets room of 1."""
        return cls((), *bounds_around(np.stack([low, high]).astype(np.float64)))

    @property
    def spec(self) -> ActionSpec:
        """The factors of such an action."""
        return ActionSpec(self.num_classes, 0 if self.num_classes else len(self.low))

    def outside(self, actions: Float[np.ndarray, "N dims"] | Int[np.ndarray, "N components"]) -> int:
        """Returns how many numbers lie outside: those of continuous ones count as the bound."""
        if self.num_classes:
            return int(np.sum((actions < 0) | (actions >= np.array(self.num_classes))))
        slack = 1e-6 * (self.high - self.low)
        return int(np.sum((actions < self.low - slack) | (actions > self.high + slack)))

    def steps(
        self,
        actions: Float[np.ndarray, "N dims"] | Int[np.ndarray, "N components"],
        reward: Float[np.ndarray, " n"] | None,
        frames: int,
    ) -> Steps:
        """Returns the labels of an episode whose row t was taken at frame t; the reward arrived with the next frame.

        Where there are as many rows as frames, the last one led to a frame that is not there. Its reward, which may be
        the only one, is given with the last frame that is.

        Args:
            actions: a row a step.
            reward: likewise; None: none is known.
            frames: their number, one more than rows or as many.

        Raises:
            InputError: if there are other numbers of rows, or a number is not finite in 32 bits, with the reason alone.
        """
        scaled = actions
        if not self.num_classes:
            scaled = np.clip(2 * (actions - self.low) / (self.high - self.low) - 1, -1, 1)
        taken = on_our_clock("action", scaled, frames, "taken-at")
        mask = np.arange(frames) > 0
        nothing = np.zeros((frames, 0))
        arrived = np.zeros(frames)
        if reward is not None:
            arrived[1:] = reward[: frames - 1]
            if len(reward) == frames > 1:
                arrived[-1] += reward[-1]
        discrete, continuous = (taken, nothing) if self.num_classes else (nothing, taken)
        with np.errstate(over="ignore"):  # which is refused below
            continuous, arrived = continuous.astype(np.float32), arrived.astype(np.float32)
        for name, numbers in (("action", continuous), ("reward", arrived)):
            if not np.all(np.isfinite(numbers)):
                raise InputError(
                    f"{name} holds a number that is not finite, or too large for 32 bits. Mend or drop it."
                )
        return Steps(discrete.astype(np.int32), continuous, mask, arrived)
