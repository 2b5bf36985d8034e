"""What labels the frames of a user's episodes: names and kinds, rows on our clock, continuous actions within [-1, 1].

Errors are `InputError` with the reason alone; the caller knows which file it was.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from dreamer4.errors import InputError, nearest


Timing = Literal["led-to", "taken-at"]

# Allowed kinds of numbers and of axes.
LABELS = {
    "action": ("biu", (1, 2)),
    "continuous": ("biuf", (1, 2)),
    "action_mask": ("b", (1,)),
    "reward": ("biuf", (1,)),
    "is_terminal": ("b", (0, 1)),
    "task": ("iu", (0,)),
    "relevant": ("b", (0,)),
}
BY_STEP = ("action", "continuous", "action_mask", "reward", "is_terminal")


# What other libraries call an end, and what is to be done about it.
_ENDS = {
    ("done", "dones", "terminal", "terminals", "terminated", "terminations"): (
        "Where it tells of goals and deaths, name it is_terminal; where it is True at a time limit too, as done of the "
        "old gym, make is_terminal False there."
    ),
    ("truncated", "truncations", "timeout", "timeouts", "is_last", "is_first"): (
        "Leave it out: a limit is told by is_terminal being False at the last frame, and each file is one episode."
    ),
}


def tidy(labels: dict[str, np.ndarray], ignore: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Returns labels of known names, kinds and axes; actions with two axes each.

    Args:
        labels: arrays by name. Whole numbers that were written as floats are taken for integers or truth values, and a
            column for a list, where the label is one.
        ignore: names that are passed over.

    Raises:
        InputError: if a name is unknown, all of which are told, or if a label is of another kind or shape.
    """
    if isinstance(ignore, str):  # whose letters would be the names
        raise InputError(f"ignore: got {ignore!r}, expected names in a list.")
    labels = {name: values for name, values in labels.items() if name not in ignore}
    if unknown := [name for name in labels if name not in LABELS]:
        raise InputError(_tell_unknown(unknown))
    tidied = {}
    for name, values in labels.items():
        kinds, axes = LABELS[name]
        if values.dtype.kind == "f" and "f" not in kinds and np.all(np.mod(values, 1) == 0) and _fits(values):
            values = values.astype(np.int64)
        if kinds == "b" and values.dtype.kind in "iu" and np.all((values == 0) | (values == 1)):
            values = values.astype(bool)
        if values.ndim == 2 and values.shape[1] == 1 and 2 not in axes and 1 in axes:
            values = values[:, 0]
        if values.dtype.kind not in kinds or values.ndim not in axes:
            raise InputError(f"{name} is {values.dtype} of shape {values.shape}, {_wanted(name)}.")
        if kinds != "b" and name in ("action", "task") and values.size and not _fits(values):
            raise InputError(f"{name} has a value beyond 32 bits.")
        tidied[name] = values[:, None] if name in ("action", "continuous") and values.ndim == 1 else values
    if "action_mask" in tidied and not {"action", "continuous"} & set(tidied):
        raise InputError("it has an action_mask, but neither action nor continuous.")
    return tidied


def _fits(values: np.ndarray) -> bool:
    return bool(np.all(np.abs(values.astype(float)) < 2**31))


def _tell_unknown(names: list[str]) -> str:
    advice = {words: None for name in names for ends, words in _ENDS.items() if name.lower() in ends}
    others = [name for name in names if not any(name.lower() in ends for ends in _ENDS)]
    if len(others) == 1:
        advice[nearest(others[0], LABELS)] = None
    elif others:
        advice[f"Known: {', '.join(LABELS)}."] = None
    return (
        f"it names {', '.join(names)}, which {'is' if len(names) == 1 else 'are'} unknown. {' '.join(advice)} "
        f"To pass over what is no label: --ignore {','.join(names)}."
    )


def _wanted(name: str) -> str:
    kinds, axes = LABELS[name]
    kind = "truth values" if kinds == "b" else "numbers" if "f" in kinds else "integers"
    shapes = {0: "a single value", 1: "one a step", 2: "a row a step"}
    return f"expected {kind}, {' or '.join(shapes[n] for n in axes)}"


def on_our_clock(name: str, rows: np.ndarray, frames: int, timing: Timing) -> np.ndarray:
    """Returns rows of which row t belongs to what led to frame t; the first is zero unless the data has one."""
    nothing = np.zeros((1, *rows.shape[1:]), rows.dtype)
    if len(rows) == frames - 1:
        return np.concatenate([nothing, rows])
    if len(rows) != frames:
        raise InputError(
            f"{name} has {len(rows)} rows, expected {frames}, one a frame, or {frames - 1}, one between two frames."
        )
    if timing == "led-to":
        return rows
    if name in ("reward", "is_terminal") and rows[-1] != 0:
        raise InputError(
            f"{name} is {rows[-1]} in the last row, which led to a frame that is not there. Append that frame, or, if "
            "row t came with frame t, import it as led-to."
        )
    return np.concatenate([nothing, rows[:-1]])


def find_one_hot(rows: Sequence[np.ndarray]) -> bool:
    """Tells whether actions of several columns look like classes written one-hot: one 1 in each row, else 0."""
    together = np.concatenate([np.zeros((0, rows[0].shape[1])), *rows])
    binary = np.all((together == 0) | (together == 1)) and np.all(together.sum(axis=1) == 1)
    # In a few rows, or where a column is always 0, buttons may look so by chance.
    return bool(binary and together.shape[1] > 1 and len(together) > 3 and np.all(together.any(axis=0)))


def range_of(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Returns lowest and highest finite value of each column, shape `[2, columns]`; zeros where there is none."""
    together = np.concatenate([np.zeros((0, rows[0].shape[1])), *rows]).astype(np.float64)
    seen = np.isfinite(together)
    low = np.where(seen, together, np.inf).min(axis=0, initial=np.inf)
    high = np.where(seen, together, -np.inf).max(axis=0, initial=-np.inf)
    return np.where(np.isfinite(low) & np.isfinite(high), [low, high], 0.0)


def tell_bounds(found: np.ndarray) -> str:
    """Returns `LOW:HIGH` of each dimension, rounded outwards to three digits of its width.

    Args:
        found: lowest and highest values, shape `[2, dims]`.
    """

    def pair(low: float, high: float) -> str:
        width = high - low or abs(low) or 1.0
        unit = 10.0 ** (np.floor(np.log10(width)) - 2)
        digits = max(0, -int(np.floor(np.log10(unit) + 0.5)))
        least, most = (f"{n * unit + 0.0:.{digits}f}" for n in (np.floor(low / unit), np.ceil(high / unit)))
        return f"{least}:{most}"

    return ",".join(pair(low, high) for low, high in found.T)


def bounds_around(found: np.ndarray) -> np.ndarray:
    """Returns bounds that hold the values found, shape `[2, dims]`; a dimension that never moves gets room of 1."""
    still = found[0] == found[1]
    return np.where(still, found + np.array([[-1.0], [1.0]]), found)


def scale_of(bounds: Sequence[tuple[float, float]] | None, dims: int) -> np.ndarray | None:
    """Returns low and high of each continuous dimension, shape `[2, dims]`."""
    if bounds is None:
        return None
    pairs = np.zeros(0) if isinstance(bounds, str) else np.asarray(bounds, np.float64)
    if (
        not dims
        or pairs.shape not in ((1, 2), (dims, 2))
        or not np.all(np.isfinite(pairs))
        or np.any(pairs[:, 0] >= pairs[:, 1])
        or not np.all(np.abs(pairs) < 1e308)  # a width that can be told
    ):
        raise InputError(
            f"import: got the bounds {bounds}, expected one pair of a lower and a higher number, or one for each of "
            f"the {dims} continuous dimensions."
        )
    return np.broadcast_to(pairs, (dims, 2)).T


def scaled(values: np.ndarray, mask: np.ndarray, scale: np.ndarray | None) -> np.ndarray:
    """Maps continuous actions from their bounds to [-1, 1]; what is masked stays 0."""
    low, high = np.asarray((-1.0, 1.0) if scale is None else scale)
    # As precise as the values: the nearest float32 to a bound may lie beyond it, and is what a recorder clips to.
    kind = values.dtype if values.dtype.kind == "f" else np.float64
    with np.errstate(over="ignore"):
        least, most = low.astype(kind), high.astype(kind)
    outside = ~((least <= values) & (values <= most) & np.isfinite(values)) & mask[:, None]
    if np.any(outside):
        row, column = np.argwhere(outside)[0]
        raise InputError(
            f"continuous is {values[row, column]:g} at frame {row}, dimension {column}, outside its bounds "
            f"{np.broadcast_to(low, values.shape[1])[column]:g} to {np.broadcast_to(high, values.shape[1])[column]:g}. "
            "State the bounds that hold."
        )
    if scale is not None:
        values = np.where(mask[:, None], 2 * (values - low) / (high - low) - 1, 0)
    return np.clip(values, -1, 1).astype(np.float32)
