"""A folder of a user's own episodes becomes a data set.

Every entry of the folder is one episode: an `.npz` file with an array `frame` and whatever labels it; a video with
`NAME.actions.npz`, `.json` or `.csv` beside it; or a folder of images with `actions.npz`, `.json` or `.csv` in it.
`docs/data.md` describes them. An episode without actions is unlabelled video: `action_mask` is False throughout.

The one trap of such data is time. Our clock says that `action[t]` led to `frame[t]`; most recorders write down the
action *taken at* `frame[t]`, which leads to the next one. Where there is one action between each two frames both mean
the same; where there are as many actions as frames, `timing` says which, and nothing can find out a wrong answer.

There are two passes. The first looks at everything but pixels and collects what is wrong with all episodes; the second
decodes one episode at a time and writes it. The data set appears at the end of the second, or not at all.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from dreamer4.data.arrays import read_arrays
from dreamer4.data.episode import Episode, find_problems
from dreamer4.data.footage import SIDECARS, Footage, in_natural_order, is_footage, open_footage, read_frames
from dreamer4.data.format import DatasetInfo, write_dataset
from dreamer4.errors import InputError, nearest
from dreamer4.types import ActionSpec, DataSpec


Timing = Literal["led-to", "taken-at"]

_MAX_CLASSES = 4096  # that the data alone may declare; more is a column that holds no classes
_MAX_TASKS = 4096  # each has an embedding; more are numbers that do not count tasks
_MAX_SHOWN = 20
# Allowed kinds of numbers and of axes.
_LABELS = {
    "action": ("biu", (1, 2)),
    "continuous": ("biuf", (1, 2)),
    "action_mask": ("b", (1,)),
    "reward": ("biuf", (1,)),
    "is_terminal": ("b", (0, 1)),
    "task": ("iu", (0,)),
    "relevant": ("b", (0,)),
}
_BY_STEP = ("action", "continuous", "action_mask", "reward", "is_terminal")


@dataclass(frozen=True)
class _Clip:
    name: str
    footage: Footage
    labels: dict[str, np.ndarray]

    @property
    def factors(self) -> tuple[int, int] | None:
        """Number of discrete components and of continuous dimensions; None for unlabelled video."""
        if not {"action", "continuous"} & set(self.labels):
            return None
        components, dims = (self.labels[n].shape[1] if n in self.labels else 0 for n in ("action", "continuous"))
        return components, dims


def import_folder(
    source: str | Path,
    path: str | Path,
    *,
    actions: ActionSpec | None = None,
    bounds: Sequence[tuple[float, float]] | None = None,
    timing: Timing = "led-to",
    size: tuple[int, int] | None = None,
    held_out: float = 0.1,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> DatasetInfo:
    """Writes a folder of arrays, videos or images, one episode each, as a data set.

    Args:
        source: the folder. Hidden entries are passed over, anything else that is no episode is refused.
        path: the data set, a new folder.
        actions: factors of an action; by default as many classes as the largest class index needs, and the width of
            the continuous actions. Must be given if no episode has actions.
        bounds: lowest and highest value of each continuous dimension, or one pair for all; they become -1 and 1. By
            default the values must lie in [-1, 1] already.
        timing: `led-to` if row t of actions, rewards and ends belongs to what led to frame t, `taken-at` if it belongs
            to what was done at frame t. It matters only where there are as many rows as frames.
        size: height and width that frames are resized to, by averaging over areas.
        held_out: share of the episodes kept for evaluation.
        seed: draws the split.
        progress: called with the number of episodes written and of all.

    Returns:
        The description of the data set.

    Raises:
        InputError: if anything is not as it must be; the message names up to twenty files, each with the reason.
    """
    source = Path(source)
    if timing not in get_args(Timing):
        raise InputError(f"import: got the timing {timing!r}, expected {' or '.join(get_args(Timing))}.")
    if size is not None and not all(0 < n <= 4096 for n in size):
        raise InputError(f"import: got a size of {size}, expected a height and a width of 1 to 4096.")
    clips = _scan(source)
    spec = _spec(source, clips, actions, size, timing)
    scale = _scale(bounds, spec.action.continuous_dim)

    def episode(clip: _Clip, frames: np.ndarray) -> Episode:
        made = _episode(clip, frames, spec, scale, timing)
        if problems := find_problems(made, spec):
            raise InputError(f"{'; '.join(problems)}.")
        return made

    problems = []
    for clip in clips:
        if clip.footage.length is not None:
            # Pixels of no memory stand in for the frames, which this pass does not decode.
            blank = np.broadcast_to(np.uint8(0), (clip.footage.length, *spec.frame_shape))
            with _noting(problems, clip.name):
                episode(clip, blank)
    _tell(source, problems)
    silent = [clip.name for clip in clips if "reward" not in clip.labels]
    if 0 < len(silent) < len(clips):
        warnings.warn(
            f"{source}: {len(silent)} of {len(clips)} episodes have no reward, {silent[0]} for one. They count as 0 in "
            "every step, so an agent learns that what they show earns nothing. Leave them out if that is not so.",
            stacklevel=2,
        )

    def episodes() -> Iterator[Episode]:
        for done, clip in enumerate(clips):
            try:
                yield episode(clip, read_frames(clip.footage, size))
            except InputError as error:
                raise InputError(f"{source}: {clip.name}: {error}") from error
            if progress is not None:
                progress(done + 1, len(clips))

    origin = {"source": source.resolve().name, "timing": timing, "size": size}
    origin["bounds"] = None if scale is None else scale.T.tolist()
    return write_dataset(
        path,
        episodes(),
        spec=spec,
        environment={"id": "imported", "kwargs": origin},
        policy="imported",
        seed=seed,
        held_out=held_out,
    )


def _scan(source: Path) -> list[_Clip]:
    """Looks at every entry of the folder, without decoding a frame."""
    if not source.is_dir():
        raise InputError(f"{source} is no folder. Give the folder that holds one file or one sub-folder per episode.")
    root = source.resolve()

    def inside(path: Path) -> bool:
        try:
            return path.resolve().is_relative_to(root)
        except (OSError, RuntimeError):  # a link that leads in a circle
            return False

    try:
        entries = in_natural_order([path for path in source.iterdir() if not path.name.startswith(".")])
    except OSError as error:
        raise InputError(f"{source} cannot be listed: {error.strerror}. Mend its permissions.") from error
    sidecars = [path for path in entries if path.suffix in SIDECARS and path.stem.endswith(".actions")]
    clips, problems, used = [], [], set()
    for path in entries:
        if path in sidecars:
            continue
        with _noting(problems, path.name):
            if not inside(path):
                raise InputError("it leads out of the imported folder.")
            if not is_footage(path):
                raise InputError("it is no episode: expected .npz, a video, .gif or a folder of images. Move it away.")
            footage = open_footage(path, inside)
            if path.suffix.lower() == ".npz" and path.is_file():
                clips.append(_Clip(path.name, footage, _tidy(read_arrays(path, skip=("frame",)))))
                continue
            stem = path / "actions" if path.is_dir() else path.with_suffix(".actions")
            found = [side for suffix in SIDECARS if (side := stem.with_name(stem.name + suffix)).is_file()]
            used |= set(found)
            if len(found) > 1:
                raise InputError(f"it has {found[0].name} and {found[1].name}, expected one of them.")
            if not all(inside(side) for side in found):
                raise InputError(f"{found[0].name} leads out of the imported folder.")
            clips.append(_Clip(path.name, footage, _tidy(read_arrays(found[0]) if found else {})))
    problems += [f"{side.name}: it belongs to no episode." for side in sidecars if side not in used]
    _tell(source, problems)
    if not clips:
        raise InputError(f"{source} holds no episodes: expected .npz files, videos or folders of images.")
    return clips


def _tidy(labels: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns labels of known names, kinds and axes; actions with two axes each."""
    tidy = {}
    for name, values in labels.items():
        if name not in _LABELS:
            raise InputError(f"it names {name}, which is unknown. {nearest(name, _LABELS)}")
        kinds, axes = _LABELS[name]
        if kinds == "b" and values.dtype.kind in "iu" and np.all((values == 0) | (values == 1)):
            values = values.astype(bool)
        if values.dtype.kind not in kinds or values.ndim not in axes:
            raise InputError(f"{name} is {values.dtype} of shape {values.shape}, {_wanted(name)}.")
        if kinds != "b" and name in ("action", "task") and values.size and np.abs(values.astype(float)).max() >= 2**31:
            raise InputError(f"{name} has a value beyond 32 bits.")
        tidy[name] = values[:, None] if name in ("action", "continuous") and values.ndim == 1 else values
    if "action_mask" in tidy and not {"action", "continuous"} & set(tidy):
        raise InputError("it has an action_mask, but neither action nor continuous.")
    return tidy


def _wanted(name: str) -> str:
    kinds, axes = _LABELS[name]
    kind = "truth values" if kinds == "b" else "numbers" if "f" in kinds else "integers"
    shapes = {0: "a single value", 1: "one a step", 2: "a row a step"}
    return f"expected {kind}, {' or '.join(shapes[n] for n in axes)}"


def _spec(
    source: Path, clips: list[_Clip], actions: ActionSpec | None, size: tuple[int, int] | None, timing: Timing
) -> DataSpec:
    """Returns what all episodes have in common."""
    problems = []
    shapes = [(*(size or clip.footage.frame_shape[:2]), clip.footage.frame_shape[2]) for clip in clips]
    for clip, shape in zip(clips, shapes, strict=True):
        if shape != shapes[0]:
            problems.append(
                f"{clip.name}: its frames have shape {shape}, those of {clips[0].name} {shapes[0]}. Giving a size "
                "makes heights and widths alike."
            )
    labelled = [clip for clip in clips if clip.factors is not None]
    if actions is None and not labelled:
        raise InputError(f"{source}: no episode has actions. State which there are to be, for example 4 classes.")
    factors = labelled[0].factors if actions is None else (len(actions.num_classes), actions.continuous_dim)
    assert factors is not None
    problems += [
        f"{clip.name}: its (discrete components, continuous dimensions) are {clip.factors}, expected {factors}."
        for clip in labelled
        if clip.factors != factors
    ]
    _tell(source, problems)
    if actions is None:
        largest = np.zeros(factors[0], np.int64)
        for clip in labelled:
            with _noting(problems, clip.name):
                largest = np.maximum(largest, _largest(clip, timing))
        _tell(source, problems)
        if np.any(largest >= _MAX_CLASSES):
            raise InputError(
                f"{source}: the largest class index is {largest.max()}, which would make more than {_MAX_CLASSES} "
                "classes. State the actions if that is meant."
            )
        actions = ActionSpec(tuple(max(int(n) + 1, 2) for n in largest), factors[1])
    last = max(clips, key=lambda clip: int(clip.labels.get("task", 0)))
    tasks = int(last.labels.get("task", 0)) + 1
    if tasks > _MAX_TASKS:
        raise InputError(
            f"{source}: {last.name}: its task is {tasks - 1}, which would make more than {_MAX_TASKS} tasks. Number "
            "the tasks from 0."
        )
    return DataSpec(shapes[0], actions, max(tasks, 1))


def _largest(clip: _Clip, timing: Timing) -> np.ndarray | int:
    """Returns the largest class index of each component over the rows that the episode keeps."""
    if "action" not in clip.labels:
        return 0
    length = clip.footage.length
    if length is None:
        # Of a video. Unlike numbers of rows tell how many frames there are; alike, they pass for one less than that.
        rows = {len(clip.labels[n]) for n in _BY_STEP if n in clip.labels and clip.labels[n].ndim > 0}
        if max(rows) - min(rows) > 1:
            return 0  # it will be refused, with the reason that only decoding tells
        length = max(rows) + (len(rows) == 1)
    taken, mask = clip.labels["action"], np.arange(length) > 0
    if "action_mask" in clip.labels:
        mask = _on_our_clock("action_mask", clip.labels["action_mask"], length, timing)
    return _on_our_clock("action", taken, length, timing)[mask].max(axis=0, initial=0).astype(np.int64)


def _scale(bounds: Sequence[tuple[float, float]] | None, dims: int) -> np.ndarray | None:
    """Returns low and high of each continuous dimension, shape `[2, dims]`."""
    if bounds is None:
        return None
    pairs = np.asarray(bounds, np.float64)
    if (
        not dims
        or pairs.shape not in ((1, 2), (dims, 2))
        or not np.all(np.isfinite(pairs))
        or np.any(pairs[:, 0] >= pairs[:, 1])
    ):
        raise InputError(
            f"import: got the bounds {bounds}, expected one pair of a lower and a higher number, or one for each of "
            f"the {dims} continuous dimensions."
        )
    return np.broadcast_to(pairs, (dims, 2)).T


def _episode(clip: _Clip, frames: np.ndarray, spec: DataSpec, scale: np.ndarray | None, timing: Timing) -> Episode:
    length, labels = len(frames), dict(clip.labels)
    for name in _BY_STEP:
        if name in labels and labels[name].ndim > 0:
            labels[name] = _on_our_clock(name, labels[name], length, timing)
    mask = labels.get("action_mask", np.arange(length) > 0) & (clip.factors is not None)
    discrete = labels.get("action", np.zeros((length, len(spec.action.num_classes))))
    continuous = labels.get("continuous", np.zeros((length, spec.action.continuous_dim)))
    ends = np.atleast_1d(labels.get("is_terminal", False))
    if np.any(ends[:-1]):
        raise InputError(f"is_terminal is True at frame {np.argmax(ends)}, before the last. Cut the episode there.")
    reward = np.array(labels.get("reward", np.zeros(length)), np.float32)
    if not np.isfinite(reward[0]):
        reward[0] = 0  # as recorders write where nothing was earned yet; it means nothing
    return Episode(
        frame=frames,
        discrete=np.where(mask[:, None], discrete, 0).astype(np.int32),
        continuous=_scaled(np.where(mask[:, None], continuous, 0), mask, scale),
        action_mask=mask,
        reward=reward,
        is_terminal=bool(ends[-1]),
        task=int(labels.get("task", 0)),
        relevant=bool(labels.get("relevant", True)),
    )


def _on_our_clock(name: str, rows: np.ndarray, frames: int, timing: Timing) -> np.ndarray:
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


def _scaled(values: np.ndarray, mask: np.ndarray, scale: np.ndarray | None) -> np.ndarray:
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


@contextmanager
def _noting(problems: list[str], name: str) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        problems.append(f"{name}: {error}")


def _tell(source: Path, problems: list[str]) -> None:
    if not problems:
        return
    shown = problems[:_MAX_SHOWN]
    if len(problems) > len(shown):
        shown.append(f"and {len(problems) - len(shown)} more.")
    raise InputError(f"{source} cannot be imported, {len(problems)} problems:\n" + "\n".join(f"  {p}" for p in shown))
