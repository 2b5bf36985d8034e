"""Windows of flat arrays, in which episodes lie end to end, cut by `is_first`, `is_last`, `timeouts` or `terminals`."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dreamer4.data.arrays import read_arrays
from dreamer4.data.labels import find_one_hot, range_of
from dreamer4.data.readers.base import AbstractReader, Window
from dreamer4.data.readers.pictures import channels_last, shrink, spaced
from dreamer4.data.readers.steps import ActionScale
from dreamer4.errors import InputError
from dreamer4.types import DataSpec


# What arrays are called, by what they mean.
_NAMES = {
    "frame": ("frame", "frames", "image", "images", "pixels", "observation", "observations", "obs"),
    "action": ("action", "actions"),
    "reward": ("reward", "rewards"),
    "terminal": ("is_terminal", "terminal", "terminals", "terminated", "terminations"),
    "last": ("is_last", "timeout", "timeouts", "truncated", "truncations"),
    "first": ("is_first",),
}
_LED_TO = ("action", "reward")
_HDF5 = (".h5", ".hdf5")


def is_flat(path: Path) -> bool:
    """Whether a path is named like a file of arrays."""
    return path.is_file() and path.suffix.lower() in (".npz", *_HDF5)


class FlatReader(AbstractReader):
    """Reads one file of arrays that have a row for each step: frames, actions, and what tells where episodes end.

    Row t is a frame, the action taken at it, and the reward of that action, as in D4RL and RLDS; `led_to` names what
    came before the frame of its row instead. Actions are classes if they are integers or one-hot, and otherwise lie
    between -1 and 1, or between the least and the greatest that occur.
    """

    def __init__(self, path: str | Path, *, size: Sequence[int] | None = None, led_to: Sequence[str] = ()):
        """Reads what is not frames; those of HDF5 stay in the file.

        Args:
            path: `.npz`, `.h5` or `.hdf5`.
            size: height and width to which frames are averaged; None: as they are.
            led_to: of `action` and `reward` those whose row t led to frame t, or arrived with it.

        Raises:
            InputError: if something cannot be read, is missing, or does not fit the rest.
        """
        self._path, self._size = Path(path), None if size is None else (int(size[0]), int(size[1]))
        if set(led_to) - set(_LED_TO):
            raise InputError(f"{path}: got led_to={list(led_to)}, expected some of {', '.join(_LED_TO)}.")
        there = _open(self._path)
        found = {name: next((n for n in names if n in there), None) for name, names in _NAMES.items()}
        cuts = [n for n in ("first", "last", "terminal") if found[n] is not None]
        if found["frame"] is None or found["action"] is None or not cuts:
            lacks = ", ".join(name for name in ("frame", "action") if found[name] is None) or "no end of an episode"
            raise InputError(
                f"{path} has the arrays {', '.join(there) or 'none'}; missing: {lacks}. Expected "
                + "; ".join(f"{name} as {' or '.join(names)}" for name, names in _NAMES.items())
                + "."
            )
        self._frames, number = there[found["frame"]], len(there[found["frame"]])
        rows = {name: np.asarray(there[n]) for name, n in found.items() if n is not None and name != "frame"}
        for name, values in rows.items():
            if len(values) != number:
                raise InputError(f"{path}: {found[name]} has {len(values)} rows, but there are {number} frames.")
        if self._frames.dtype != np.uint8 or not number:
            raise InputError(f"{path}: {found['frame']} is {number} rows of {self._frames.dtype}, expected uint8.")
        flags = {name: rows[name].reshape(number, -1)[:, 0].astype(bool) for name in cuts}
        begins = flags.get("first", np.zeros(number, bool)).copy()
        for name in ("last", "terminal"):
            if name in flags:
                begins[1:] |= flags[name][:-1]
        begins[0] = True
        self._begin = np.flatnonzero(begins)
        self.lengths = np.diff(self._begin, append=number)
        try:
            actions, scale = _understood(rows["action"].reshape(number, -1))
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        rewards = rows["reward"].reshape(number, -1)[:, 0].astype(float) if "reward" in rows else None
        skip = {name: int(name in led_to) for name in _LED_TO}
        self._steps = [
            scale.steps(
                actions[begin + skip["action"] : begin + n],
                None if rewards is None else rewards[begin + skip["reward"] : begin + n],
                int(n),
            )
            for begin, n in zip(self._begin, self.lengths, strict=True)
        ]
        frame = self._read(0, 1)
        self.spec = DataSpec((frame.shape[1], frame.shape[2], frame.shape[3]), scale.spec)
        ends = flags.get("terminal", np.zeros(number, bool))
        self.is_terminal = np.logical_or.reduceat(ends, self._begin)
        self.task, self.relevant = np.zeros(len(self._begin), np.int32), np.ones(len(self._begin), bool)
        digest = hashlib.sha256(repr((self._size, sorted(led_to), frame.shape, self._path.stat().st_size)).encode())
        for name in sorted(rows):
            digest.update(np.ascontiguousarray(rows[name]).tobytes())
        for at in spaced(number):
            digest.update(np.ascontiguousarray(self._frames[at]).tobytes())
        self.fingerprint = digest.hexdigest()
        over = [name for name in there if name not in found.values()]
        self.findings = tuple([f"passed over: {', '.join(over)}"] if over else [])

    def window(self, episode: int, start: int, length: int, *, frames: bool = True) -> Window:
        begin = int(self._begin[episode]) + start
        return self._steps[episode].window(start, length, self._read(begin, length) if frames else None)

    def _read(self, begin: int, length: int) -> np.ndarray:
        try:
            return shrink(channels_last(np.asarray(self._frames[begin : begin + length])), self._size)
        except (OSError, ValueError) as error:
            raise InputError(f"{self._path}: {error}") from error


def _open(path: Path) -> Mapping[str, Any]:
    try:
        if path.suffix.lower() not in _HDF5:
            return read_arrays(path)
        import h5py

        file = h5py.File(path, "r")
        return {name: part for name, part in file.items() if isinstance(part, h5py.Dataset) and part.ndim}
    except ImportError:
        raise InputError(f"{path} needs h5py. Run: pip install 'dreamer4-eqx[formats]'.") from None
    except (OSError, InputError) as error:
        raise InputError(f"{path}: {error}") from error


def _understood(actions: np.ndarray) -> tuple[np.ndarray, ActionScale]:
    """Returns actions as classes or as numbers, and which they are."""
    nothing = np.zeros(0)
    if actions.dtype.kind == "f" and find_one_hot([actions]):
        actions = actions.argmax(axis=1)[:, None]
        return actions, ActionScale((max(int(actions.max()) + 1, 2),), nothing, nothing)
    if actions.dtype.kind in "biu":
        actions = actions.astype(np.int64)
        if actions.min() < 0:
            raise InputError(f"an action is {actions.min()}, expected classes from 0 on.")
        return actions, ActionScale(tuple(max(int(n) + 1, 2) for n in actions.max(axis=0)), nothing, nothing)
    low, high = range_of([actions])
    if not np.all(np.isfinite(actions)):
        raise InputError("an action is no finite number.")
    if np.all(np.abs(actions) <= 1):
        low, high = -np.ones_like(low), np.ones_like(high)
    return actions, ActionScale.between(low, high)
