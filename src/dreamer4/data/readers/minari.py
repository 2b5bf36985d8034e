"""Windows of Minari data sets in HDF5."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from dreamer4.data.readers.base import AbstractReader, Window
from dreamer4.data.readers.pictures import channels_last, decode, shrink, spaced
from dreamer4.data.readers.steps import ActionScale
from dreamer4.errors import InputError, nearest
from dreamer4.files import read_bytes
from dreamer4.types import DataSpec


_MAX_TEXT = 2**28  # bytes of a description
_LABELS = ("actions", "rewards", "terminations")


def is_minari(path: Path) -> bool:
    """Whether a path is the folder of a Minari data set, or the folder `data` inside it."""
    return path.is_dir() and _described(path) is not None


class MinariReader(AbstractReader):
    """Reads each episode's pictures, actions and rewards; there is one observation more than actions."""

    def __init__(self, path: str | Path, *, camera: str | None = None, size: Sequence[int] | None = None):
        """Reads actions and rewards; pictures stay in the file.

        Args:
            path: the folder.
            camera: the part of an observation that is the frame, such as `agent/image`; may be left out where one part
                has pictures.
            size: height and width to which frames are averaged; None: as they are.

        Raises:
            InputError: if the data cannot be read, or there are several pictures and none is chosen.
        """
        try:
            import h5py
        except ImportError:
            raise InputError("Minari data needs h5py. Run: pip install 'dreamer4-eqx[formats]'.") from None

        self._size = None if size is None else (int(size[0]), int(size[1]))
        description = _described(Path(path))
        if description is None:
            raise InputError(
                f"{path} is no Minari data set: it has no data/metadata.json with main_data.hdf5 beside it."
            )
        try:
            about = json.loads(read_bytes(description, limit=_MAX_TEXT))
            spaces = [json.loads(about[f"{name}_space"]) for name in ("observation", "action")]
            if about.get("data_format", "hdf5") != "hdf5":
                raise InputError(f"{path} is kept as {about['data_format']}, expected hdf5. Write it with hdf5.")
            pictures = [at for at, space in _leaves(spaces[0]) if _is_picture(space)]
            camera = _chosen(path, camera, pictures)
            self._file: Any = h5py.File(description.parent / "main_data.hdf5", "r")
            self._at = f"observations/{camera}".rstrip("/")
            names = sorted(self._file, key=lambda name: int(name.removeprefix("episode_")))
            columns = [{k: np.asarray(self._file[n][k]) for k in _LABELS} for n in names]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path}: cannot be read as a Minari data set: {error}. Copy it again.") from error
        if not names:
            raise InputError(f"{path} holds no episodes.")
        self._episodes = [f"{name}/{self._at}" for name in names]
        actions = [c["actions"].reshape(len(c["actions"]), -1) for c in columns]
        scale, start = _scale(spaces[1], np.concatenate(actions))
        self.lengths = np.array([len(c["rewards"]) + 1 for c in columns])
        for name, length in zip(self._episodes, self.lengths, strict=True):
            if len(self._file[name]) != length:
                raise InputError(
                    f"{path}: {name} holds {len(self._file[name])}, expected {length}, one more than rewards."
                )
        self._steps = [
            scale.steps(a - start, c["rewards"], int(n)) for a, c, n in zip(actions, columns, self.lengths, strict=True)
        ]
        frame = self._frames(0, 0, 1)
        self.spec = DataSpec((frame.shape[1], frame.shape[2], frame.shape[3]), scale.spec)
        self.is_terminal = np.array([bool(np.any(c["terminations"])) for c in columns])
        self.task, self.relevant = np.zeros(len(names), np.int32), np.ones(len(names), bool)
        digest = hashlib.sha256(repr((self._at, self._size, self.lengths.tolist())).encode())
        for column in columns:
            for values in column.values():
                digest.update(values.tobytes())
        ends = np.cumsum(self.lengths)
        for at in spaced(int(ends[-1])):
            episode = int(np.searchsorted(ends, at, side="right"))
            digest.update(np.asarray(self._file[self._episodes[episode]][at - ends[episode]]).tobytes())
        digest.update(str((description.parent / "main_data.hdf5").stat().st_size).encode())
        self.fingerprint = digest.hexdigest()
        clipped = sum(scale.outside(a - start) for a in actions)
        self.findings = tuple([f"{clipped} x number of an action clipped to its range"] if clipped else [])

    def window(self, episode: int, start: int, length: int, *, frames: bool = True) -> Window:
        return self._steps[episode].window(start, length, self._frames(episode, start, length) if frames else None)

    def _frames(self, episode: int, start: int, length: int) -> UInt8[np.ndarray, "T H W C"]:
        name = self._episodes[episode]
        try:
            cells = self._file[name][start : start + length]
            # Pictures are kept as JPEG files, of one length or of several, where they were not kept as they are.
            pixels = cells if cells.ndim > 2 else np.stack([decode(bytes(cell)) for cell in cells])
            return shrink(channels_last(pixels), self._size)
        except (OSError, ValueError) as error:
            raise InputError(f"{self._file.filename}: {name} cannot be read: {error}") from error


def _described(path: Path) -> Path | None:
    found = [p / "metadata.json" for p in (path / "data", path) if (p / "main_data.hdf5").is_file()]
    return next((p for p in found if p.is_file()), None)


def _leaves(space: dict[str, Any], at: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the parts of a space that have no parts, with their place in the file."""
    parts = space.get("subspaces")
    if parts is None:
        yield at.removesuffix("/"), space
        return
    named = parts.items() if isinstance(parts, dict) else ((f"_index_{i}", part) for i, part in enumerate(parts))
    for name, part in named:
        yield from _leaves(part, f"{at}{name}/")


def _is_picture(space: dict[str, Any]) -> bool:
    return space["type"] == "Box" and space["dtype"] == "uint8" and len(space["shape"]) in (2, 3)


def _chosen(path: str | Path, camera: str | None, pictures: list[str]) -> str:
    if not pictures:
        raise InputError(f"{path} has no pictures among its observations; a world model needs frames to look at.")
    if camera is None and len(pictures) == 1:
        return pictures[0]
    if camera not in pictures:
        told = f" {nearest(camera, pictures)}" if camera else ""
        raise InputError(f"{path} has the pictures {', '.join(pictures)}. Choose one by the option camera.{told}")
    return camera


def _scale(space: dict[str, Any], actions: np.ndarray) -> tuple[ActionScale, np.ndarray]:
    """Returns what the actions of a space mean, and what to take from them so that classes begin at 0."""
    kind, nothing = space["type"], np.zeros(0)
    if kind == "Discrete":
        return ActionScale((max(int(space["n"]), 2),), nothing, nothing), np.array([space.get("start", 0)])
    if kind == "MultiDiscrete":
        sizes = np.ravel(space["nvec"])
        start = np.ravel(space.get("start", np.zeros_like(sizes)))
        return ActionScale(tuple(max(int(n), 2) for n in sizes), nothing, nothing), start
    if kind == "MultiBinary":
        return ActionScale((2,) * actions.shape[1], nothing, nothing), np.zeros(1, int)
    if kind != "Box":
        raise InputError(f"its actions are a {kind}, expected Discrete, MultiDiscrete, MultiBinary or Box.")
    low, high = (np.ravel(space[name]).astype(float) for name in ("low", "high"))
    endless = ~(np.isfinite(low) & np.isfinite(high))
    low = np.where(endless, actions.min(axis=0), low)
    return ActionScale.between(low, np.where(endless, actions.max(axis=0), high)), np.zeros(1)
