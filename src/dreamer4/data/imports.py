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
from dreamer4.data.episode import Episode, find_problems, part
from dreamer4.data.footage import (
    SIDECARS,
    VIDEOS,
    Footage,
    fitting_size,
    is_footage,
    open_footage,
    read_frames,
    read_pieces,
    tell_other,
    warn_of_large,
)
from dreamer4.data.format import DatasetInfo, write_dataset
from dreamer4.data.labels import (
    BY_STEP,
    Timing,
    bounds_around,
    find_one_hot,
    on_our_clock,
    range_of,
    scale_of,
    scaled,
    tell_bounds,
    tidy,
)
from dreamer4.data.order import in_natural_order
from dreamer4.errors import InputError, check_whole
from dreamer4.types import ActionSpec, DataSpec


_MAX_CLASSES = 4096  # that the data alone may declare; more is a column that holds no classes
_MAX_TASKS = 4096  # each has an embedding; more are numbers that do not count tasks
_MAX_SHOWN = 20


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
    bounds: Sequence[tuple[float, float]] | Literal["data"] | None = None,
    timing: Timing = "led-to",
    size: tuple[int, int] | None = None,
    fps: float | None = None,
    cut: int | None = None,
    ignore: Sequence[str] = (),
    held_out: float = 0.1,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> DatasetInfo:
    """Writes a folder of arrays, videos or images, one episode each, as a data set.

    Args:
        source: the folder. Hidden entries are passed over, anything else that is no episode is refused.
        path: the data set, a new folder.
        actions: factors of an action; by default as many classes as the largest class index needs, and the width of
            the continuous actions; where no episode has any, two classes that stand for none.
        bounds: lowest and highest value of each continuous dimension, or one pair for all; they become -1 and 1;
            `data` for the lowest and highest value that occur. By default the values must lie in [-1, 1] already.
        timing: `led-to` if row t of actions, rewards and ends belongs to what led to frame t, `taken-at` if it belongs
            to what was done at frame t. It matters only where there are as many rows as frames.
        size: height and width that frames are resized to, by averaging over areas.
        fps: frames a second of videos and animations, each the newest shown by then; by default every stored frame.
        cut: most frames of an episode, at least 2; longer ones become several of about equal length, of which one at a
            time is in memory. No action led to the first frame of a piece. By default episodes stay whole.
        ignore: names of labels that are passed over.
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
    if size is not None and (np.shape(size) != (2,) or any(n not in range(1, 4097) for n in size)):
        raise InputError(f"import: got a size of {size}, expected a height and a width of 1 to 4096.")
    if fps is not None and not 0 < fps <= 1000:
        raise InputError(f"import: got fps={fps}, expected frames a second, above 0 and up to 1000.")
    if cut is not None:
        check_whole("import", 2, cut=cut)
    clips = _scan(source, ignore, fps)
    spec = _spec(source, clips, actions, size, timing)
    scale, advice = _bounds(source, clips, spec, bounds, timing)
    counted: dict[str, dict[int, dict[str, None]]] = {}

    def episode(clip: _Clip, frames: np.ndarray) -> Episode:
        made = _episode(clip, frames, spec, scale, timing)
        if problems := find_problems(made, spec):
            raise InputError(f"{'; '.join(problems)}.")
        for name in BY_STEP:
            if name in clip.labels and clip.labels[name].ndim > 0:
                fewer = made.length - len(clip.labels[name])
                counted.setdefault(name, {}).setdefault(fewer, {})[clip.name] = None
        return made

    problems = []
    for clip in clips:
        if clip.footage.length is not None:
            # Pixels of no memory stand in for the frames, which this pass does not decode.
            blank = np.broadcast_to(np.uint8(0), (clip.footage.length, *spec.frame_shape))
            with _noting(problems, clip.name):
                episode(clip, blank)
    if advice and not problems:  # of videos alone, whose values are looked at in the second pass
        problems.append(advice)
    _tell(source, problems, advice)
    _check_counting(source, counted)
    silent = [clip.name for clip in clips if "reward" not in clip.labels]
    if 0 < len(silent) < len(clips):
        warnings.warn(
            f"{source}: {len(silent)} of {len(clips)} episodes have no reward, {silent[0]} for one. They count as 0 in "
            "every step, so an agent learns that what they show earns nothing. Leave them out if that is not so.",
            stacklevel=2,
        )

    def pieces(clip: _Clip, cut: int) -> Iterator[Episode]:
        length = clip.footage.length or clip.footage.count()
        whole = episode(clip, np.broadcast_to(np.uint8(0), (length, *spec.frame_shape)))
        places = np.linspace(0, length, -(-length // cut) + 1).astype(int)
        decoded = read_pieces(clip.footage, size, spec.frame_shape[2], np.diff(places)[:-1].tolist())
        for begin, frames in zip(places, decoded, strict=False):
            yield part(whole, int(begin), frames)

    def episodes() -> Iterator[Episode]:
        for done, clip in enumerate(clips):
            try:
                if cut is None:
                    yield episode(clip, read_frames(clip.footage, size, spec.frame_shape[2]))
                else:
                    yield from pieces(clip, cut)
            except InputError as error:
                raise InputError(f"{source}: {clip.name}: {error}") from error
            _check_counting(source, counted)
            if progress is not None:
                progress(done + 1, len(clips))

    origin = {"source": source.resolve().name, "timing": timing, "size": size}
    origin |= {name: value for name, value in (("fps", fps), ("cut", cut)) if value is not None}
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


def _scan(source: Path, ignore: Sequence[str], fps: float | None) -> list[_Clip]:
    """Looks at every entry of the folder, without decoding a frame."""
    if not source.is_dir():
        raise InputError(f"{source} is no folder. Give the folder that holds one file or one sub-folder per episode.")
    if (source / "dataset.json").is_file():
        told = f"Train on it with --set data.path={source}, or join it with others: dreamer4 data merge."
        raise InputError(f"{source} is a data set already. {told}")
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
    tables = [path for path in entries if path.suffix.lower() in SIDECARS and path.is_file()]
    sidecars = [path for path in tables if path.stem.endswith(".actions")]
    films = [path for path in entries if path.suffix.lower() in (*VIDEOS, ".gif")]
    labelled = {path.stem: path for path in reversed(films)}
    clips, problems, used = [], [], set()
    for path in entries:
        if path in sidecars:
            continue
        with _noting(problems, path.name):
            if not inside(path):
                raise InputError("it leads out of the imported folder.")
            if not is_footage(path):
                if path in tables and path.stem in labelled:
                    raise InputError(f"rename it to {path.stem}.actions{path.suffix}, if it labels {path.stem}.")
                raise InputError(tell_other(path))
            if path in films and (twin := labelled[path.stem]) != path:
                raise InputError(f"{twin.name} has its name and labels. Keep one, or rename both with their labels.")
            footage = open_footage(path, inside, fps)
            if path.suffix.lower() == ".npz" and path.is_file():
                clips.append(_Clip(path.name, footage, tidy(read_arrays(path, skip=("frame",)), ignore)))
                continue
            stem = path / "actions" if path.is_dir() else path.with_suffix(".actions")
            beside = tables if stem.parent == source else [entry for entry in path.iterdir() if entry.is_file()]
            found = [side for side in beside if side.stem == stem.name and side.suffix.lower() in SIDECARS]
            used |= set(found)
            if len(found) > 1:
                raise InputError(f"it has {found[0].name} and {found[1].name}, expected one of them.")
            if not all(inside(side) for side in found):
                raise InputError(f"{found[0].name} leads out of the imported folder.")
            labels = {}
            for side in found:
                # Told as a problem of the file that has it.
                with _noting(problems, side.relative_to(source).as_posix()):
                    labels = tidy(read_arrays(side), ignore)
            clips.append(_Clip(path.name, footage, labels))
    problems += [f"{side.name}: it belongs to no episode." for side in sidecars if side not in used]
    _tell(source, problems)
    if not clips:
        raise InputError(f"{source} holds no episodes: expected .npz files, videos or folders of images.")
    return clips


def _spec(
    source: Path, clips: list[_Clip], actions: ActionSpec | None, size: tuple[int, int] | None, timing: Timing
) -> DataSpec:
    """Returns what all episodes have in common."""
    problems = []
    shapes = [(*(size or clip.footage.frame_shape[:2]), clip.footage.frame_shape[2]) for clip in clips]
    if {shape[2] for shape in shapes} == {1, 3}:  # grey among colours
        shapes = [(*shape[:2], 3) for shape in shapes]
    for clip, shape in zip(clips, shapes, strict=True):
        if shape != shapes[0]:
            alike = shape[2] == shapes[0][2]
            problems.append(
                f"{clip.name}: its frames have shape {shape}, those of {clips[0].name} {shapes[0]}."
                + (f" Giving a size makes heights and widths alike: {fitting_size(shapes[0])}." if alike else "")
            )
    warn_of_large(source, shapes[0])
    labelled = [clip for clip in clips if clip.factors is not None]
    if actions is None and not labelled:
        warnings.warn(
            f"{source}: no episode has actions, so a world model can be learned of it (dreamer4 train tokenizer, then "
            "train dynamics, then dream --actions none), but no agent. If labelled episodes are to join it later, "
            "state their actions now, for example 4 classes: --actions 4.",
            stacklevel=3,
        )
        actions = ActionSpec((2,))
    factors = labelled[0].factors if actions is None else (len(actions.num_classes), actions.continuous_dim)
    assert factors is not None
    problems += [
        f"{clip.name}: its (discrete components, continuous dimensions) are {clip.factors}, expected {factors}."
        for clip in labelled
        if clip.factors != factors
    ]
    _tell(source, problems)
    if actions is None:
        for name in ("action", "continuous"):
            rows = []
            for clip in labelled:
                with _noting(problems, clip.name):
                    rows += [_kept(clip, name, timing)] if name in clip.labels else []
            _tell(source, problems)
            if rows and find_one_hot(rows):
                count = rows[0].shape[1]
                stated = ",".join(["2"] * count) if name == "action" else f"continuous:{count}"
                raise InputError(
                    f"{source}: {name} looks like {count} classes written one-hot: each row has a single 1. Store "
                    f"the index of the class, action.argmax(-1), as action. If these are {count} dimensions of their "
                    f"own, state them: --actions {stated}."
                )
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
    return _kept(clip, "action", timing).max(axis=0, initial=0).astype(np.int64) if "action" in clip.labels else 0


def _kept(clip: _Clip, name: str, timing: Timing) -> np.ndarray:
    """Returns the rows of a label that the episode keeps and knows; none where only decoding tells which."""
    length = clip.footage.length
    if length is None:
        # Of a video. Unlike numbers of rows tell how many frames there are; alike, they pass for one less than that.
        rows = {len(clip.labels[n]) for n in BY_STEP if n in clip.labels and clip.labels[n].ndim > 0}
        if max(rows) - min(rows) > 1:
            return clip.labels[name][:0]  # it will be refused, with the reason that only decoding tells
        length = max(rows) + (len(rows) == 1)
    mask = np.arange(length) > 0
    if "action_mask" in clip.labels:
        mask = on_our_clock("action_mask", clip.labels["action_mask"], length, timing)
    return on_our_clock(name, clip.labels[name], length, timing)[mask]


def _bounds(
    source: Path,
    clips: list[_Clip],
    spec: DataSpec,
    bounds: Sequence[tuple[float, float]] | Literal["data"] | None,
    timing: Timing,
) -> tuple[np.ndarray | None, str]:
    """Returns low and high of each continuous dimension, shape `[2, dims]`, and what to do if values lie outside."""
    dims, rows, problems = spec.action.continuous_dim, [], []
    for clip in clips:
        with _noting(problems, clip.name):
            rows += [_kept(clip, "continuous", timing)] if dims and "continuous" in clip.labels else []
    _tell(source, problems)
    found = range_of(rows) if rows else np.zeros((2, dims))
    if bounds == "data":
        if not rows:
            raise InputError(f"{source}: got the bounds data, but no episode has continuous actions.")
        return bounds_around(found), ""
    scale = scale_of(bounds, dims)
    if not rows:
        return scale, ""
    low, high = np.array([[-1.0], [1.0]]).repeat(dims, axis=1) if scale is None else scale
    room = 1e-6 * (high - low)
    told = f"they span {tell_bounds(found)}"
    if np.any((found[0] < low - room) | (found[1] > high + room)):
        return scale, (
            f"Of all continuous actions, {told}. State the bounds that hold, such as "
            f"--bounds={tell_bounds(bounds_around(found))}, or take what occurs with --bounds=data."
        )
    squashed = np.flatnonzero((found[1] > found[0]) & (found[1] - found[0] < 0.05 * (high - low)))
    if len(squashed):
        warnings.warn(
            f"{source}: continuous dimensions {squashed.tolist()} use less than a twentieth of their bounds, so that a "
            f"policy hardly moves within what was seen; {told}. Give each dimension its own: "
            f"--bounds={tell_bounds(bounds_around(found))}.",
            stacklevel=3,
        )
    return scale, ""


def _check_counting(source: Path, counted: dict[str, dict[int, dict[str, None]]]) -> None:
    """Refuses episodes of which some have as many rows as frames, and some one fewer.

    Most likely a frame or a row was lost in the rarer ones, and each row of them would stand beside the wrong frame.
    """
    for name, groups in counted.items():
        if len(groups) < 2:
            continue
        rare, usual = sorted(groups, key=lambda fewer: len(groups[fewer]))
        told = {0: "as many rows as frames", 1: "one row fewer than frames"}
        names = list(groups[rare])
        more = f" and {len(names) - _MAX_SHOWN} more" if len(names) > _MAX_SHOWN else ""
        raise InputError(
            f"{source}: episodes count {name} in two ways: {', '.join(names[:_MAX_SHOWN])}{more} with {told[rare]}, "
            f"others, such as {next(iter(groups[usual]))}, with {told[usual]}. Where a frame or a row was lost, rows "
            "belong to other frames. Mend such episodes or leave them out; if both are right, add the missing row."
        )


def _episode(clip: _Clip, frames: np.ndarray, spec: DataSpec, scale: np.ndarray | None, timing: Timing) -> Episode:
    length, labels = len(frames), dict(clip.labels)
    for name in BY_STEP:
        if name in labels and labels[name].ndim > 0:
            labels[name] = on_our_clock(name, labels[name], length, timing)
    mask = labels.get("action_mask", np.arange(length) > 0) & (clip.factors is not None)
    discrete = labels.get("action", np.zeros((length, len(spec.action.num_classes))))
    continuous = labels.get("continuous", np.zeros((length, spec.action.continuous_dim)))
    ends = np.atleast_1d(labels.get("is_terminal", False))
    if np.any(ends[:-1]):
        raise InputError(f"is_terminal is True at frame {np.argmax(ends)}, before the last. Cut the episode there.")
    given = np.asarray(labels.get("reward", np.zeros(length)))
    with np.errstate(over="ignore"):
        reward = given.astype(np.float32)
    if np.any(beyond := np.isfinite(given) & ~np.isfinite(reward)):
        at = int(np.argmax(beyond))
        raise InputError(f"reward is {given[at]:g} at frame {at}, beyond the numbers of 32 bits. Scale the rewards.")
    if not np.isfinite(reward[0]):
        reward[0] = 0  # as recorders write where nothing was earned yet; it means nothing
    return Episode(
        frame=frames,
        discrete=np.where(mask[:, None], discrete, 0).astype(np.int32),
        continuous=scaled(np.where(mask[:, None], continuous, 0), mask, scale),
        action_mask=mask,
        reward=reward,
        is_terminal=bool(ends[-1]),
        task=int(labels.get("task", 0)),
        relevant=bool(labels.get("relevant", True)),
    )


@contextmanager
def _noting(problems: list[str], name: str) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        problems.append(f"{name}: {error}")


def _tell(source: Path, problems: list[str], advice: str = "") -> None:
    if not problems:
        return
    shown = problems[:_MAX_SHOWN]
    if len(problems) > len(shown):
        shown.append(f"and {len(problems) - len(shown)} more.")
    shown += [advice] if advice and advice not in shown else []
    raise InputError(f"{source} cannot be imported, {len(problems)} problems:\n" + "\n".join(f"  {p}" for p in shown))
