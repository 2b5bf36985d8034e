"""The actions of a player: 23 keys and buttons, each up or down, and a motion of the mouse as one of 121 classes."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Int32

from dreamer4.errors import InputError
from dreamer4.types import ActionSpec


BINS = 11  # of an axis of the mouse; the middle one is rest

_KEYS = {
    "ESC": "escape",
    "back": "s",
    "drop": "q",
    "forward": "w",
    **{f"hotbar.{n}": str(n) for n in range(1, 10)},
    "inventory": "e",
    "jump": "space",
    "left": "a",
    "right": "d",
    "sneak": "left.shift",
    "sprint": "left.control",
    "swapHands": "f",
}
_BUTTONS = ("attack", "use", "pickItem")

# The binary components of an action, in their order.
CONTROLS = (*_KEYS, *_BUTTONS)
# The bit of each key and of each button of the mouse, as recordings name them.
KEY_BITS = {f"key.keyboard.{key}": 1 << CONTROLS.index(name) for name, key in _KEYS.items()}
BUTTON_BITS = {number: 1 << CONTROLS.index(name) for number, name in enumerate(_BUTTONS)}
ESC, INVENTORY, ATTACK = (1 << CONTROLS.index(name) for name in ("ESC", "inventory", "attack"))
HOTBAR = np.array([1 << CONTROLS.index(f"hotbar.{n}") for n in range(1, 10)])


@dataclass(frozen=True)
class Mouse:
    """How angles become classes: finely near rest, by the mu-law of telephony; those of VPT's agent by default.

    Attributes:
        max_degrees: angle of the outermost bin; larger ones count as it.
        mu: how much finer the bins are near rest.
    """

    max_degrees: float = 10.0
    mu: float = 10.0

    def __post_init__(self):
        if not (0 < self.max_degrees <= 180 and 0 < self.mu < math.inf):
            raise InputError(
                f"Mouse: got max_degrees={self.max_degrees} and mu={self.mu}, expected up to 180 and above 0."
            )

    def classes(self, degrees: Float[np.ndarray, "*shape 2"]) -> Int32[np.ndarray, "*shape"]:
        """Returns pitch bin * 11 + yaw bin; an axis has bin round(5 (1 + sign(x) ln(1 + mu |x|) / ln(1 + mu))).

        Args:
            degrees: turns of a tick by yaw and by pitch; x is their share of `max_degrees`.
        """
        x = np.clip(degrees.astype(np.float64) / self.max_degrees, -1, 1)
        half = BINS // 2
        bins = np.round(half * (1 + np.sign(x) * np.log1p(self.mu * np.abs(x)) / np.log1p(self.mu))).astype(np.int32)
        return bins[..., 1] * BINS + bins[..., 0]

    def degrees(self, classes: Int[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape 2"]:
        """Returns the turn in the middle of each class."""
        y = np.stack([classes % BINS, classes // BINS], axis=-1) / (BINS // 2) - 1
        return self.max_degrees * np.sign(y) * np.expm1(np.abs(y) * np.log1p(self.mu)) / self.mu


SPEC = ActionSpec((2,) * len(CONTROLS) + (BINS * BINS,))


def unpack(bits: Int[np.ndarray, " T"]) -> Bool[np.ndarray, "T 23"]:
    """Returns which controls are down, of numbers that have a bit for each."""
    return (bits[:, None] >> np.arange(len(CONTROLS)) & 1).astype(bool)
