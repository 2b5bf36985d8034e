"""Windows of recordings of VPT, beside which nothing is written."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from dreamer4.data.readers.base import AbstractReader, Window
from dreamer4.data.readers.indexed import IndexedFilm
from dreamer4.data.readers.pictures import shrink
from dreamer4.data.vpt.actions import SPEC, Mouse, unpack
from dreamer4.data.vpt.labels import Labels, count_events, label
from dreamer4.data.vpt.lag import find_lag
from dreamer4.data.vpt.rows import Rows, read_rows
from dreamer4.data.vpt.segments import Segment, find_segments, is_index
from dreamer4.data.vpt.tasks import TASKS
from dreamer4.errors import InputError, nearest
from dreamer4.types import DataSpec


RATE = 20.0  # frames a second
_LOOK, _TELLING, _TRIED = 200, 3, 8  # rows, and segments of a version, by which a lag is found
# The mouse pointer, as corners in a window 720 pixels high from its tip on.
_ARROW = np.array([(0, 0), (0, 24), (6, 19), (10, 28), (14, 26), (10, 17), (17, 17)])


def is_vpt(path: Path) -> bool:
    """Whether a path is an index of VPT, or a folder with one, or one in which rows lie beside films."""
    if not path.is_dir():
        return is_index(path)
    rows = path.rglob("*.jsonl")
    return any(is_index(p) for p in path.glob("*.json")) or any(p.with_suffix(".mp4").is_file() for p in rows)


# A segment, its film, hash of its rows and whether they tell of other dimensions, and its labels.
_Opened = tuple[Segment, IndexedFilm, tuple[str, bool], Labels]


class VptReader(AbstractReader):
    """Reads each segment as an episode, its actions repaired, with 23 keys and buttons and the mouse in 121 classes.

    The reward is 1 in each frame that first shows what a task asks for, and 0 elsewhere. Cloning may learn from the
    segments in which that happens.

    Attributes:
        recordings: alias and session of each segment, which no split may cut.
        labels: of each segment.
        elsewhere: whether its recording tells of the Nether or the End.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        size: Sequence[int] | None = None,
        task: str | None = None,
        max_degrees: float = 10.0,
        mu: float = 10.0,
        label_hours: float | None = None,
        label_elsewhere: bool = True,
        f3: bool = True,
    ):
        """Reads the rows of all segments and lists the frames of their films.

        What cannot be used is left out and told in `findings`, as are the repairs.

        Args:
            path: an index, or a folder (`find_segments`).
            size: height and width to which frames are averaged; None: as they are.
            task: that is rewarded, one of `TASKS`; None: any of them.
            max_degrees: of the mouse's classes (`Mouse`).
            mu: likewise.
            label_hours: hours of actions that are told, by the order of the segments; of the others only the frames
                are. None: all.
            label_elsewhere: whether actions are told of recordings with the Nether or the End in them.
            f3: whether segments with text over the picture are taken.

        Raises:
            InputError: if no segment can be used.
        """
        if task is not None and task not in TASKS:
            raise InputError(f"Unknown task {task!r}. {nearest(task, TASKS)}")
        self._mouse, self._size = Mouse(max_degrees, mu), None if size is None else (int(size[0]), int(size[1]))
        segments, missing = find_segments(Path(path))
        self._refused = [f"missing: {told}" for told in missing]
        opened = self._open(segments, f3)
        shapes = Counter(film.frame_shape for _, film, _, _ in opened)
        shape = shapes.most_common(1)[0][0] if opened else ()
        opened = self._keep(opened, lambda film: _other_shape(film, shape))
        lags = _lags(opened)
        opened = self._keep(opened, lambda film: lags.get(film.path))
        if not opened:
            told = "; ".join(self._refused[:3])
            raise InputError(f"{path} holds no segment that can be used. {told or 'Name another folder.'}")
        self.recordings = tuple(segment.recording for segment, *_ in opened)
        self._films, self.labels = [film for _, film, _, _ in opened], [labels for *_, labels in opened]
        far = {segment.recording for segment, _, rows, _ in opened if rows[1]}
        self.elsewhere = np.array([name in far for name in self.recordings])
        self.lengths = np.array([len(film) for film in self._films])
        hours = (np.cumsum(self.lengths) - self.lengths) / (3600 * RATE)
        self._told = (hours < (np.inf if label_hours is None else label_hours)) & (label_elsewhere | ~self.elsewhere)
        asked = range(len(TASKS)) if task is None else [TASKS.index(task)]
        self._events = [labels.events[np.isin(labels.events[:, 1], asked)] for labels in self.labels]
        size = self._size or self._films[0].frame_shape[:2]
        self.spec = DataSpec((size[0], size[1], 3), SPEC)
        self.is_terminal, self.task = np.zeros(len(opened), bool), np.zeros(len(opened), np.int32)
        self.relevant = np.array([len(events) > 0 for events in self._events])
        settings = (self._size, task, self._mouse, label_hours, label_elsewhere)
        told = [f"{s.rows.stem} {rows[0]} {s.video.stat().st_size}" for s, _, rows, _ in opened]
        self.fingerprint = hashlib.sha256("\n".join([repr(settings), *told]).encode()).hexdigest()
        repairs = sum((labels.repairs for labels in self.labels), Counter())
        events = count_events(np.concatenate([labels.events for labels in self.labels]))
        self.findings = (
            *(f"{number} x {name}" for name, number in repairs.most_common()),
            *(f"{number} x {name}" for name, number in events.items() if number),
            *(f"left out, {told}" for told in self._refused),
        )

    def window(self, episode: int, start: int, length: int, *, frames: bool = True) -> Window:
        labels, row = self.labels[episode], np.arange(start, start + length) - 1  # action t of ours is row t - 1
        taken = np.maximum(row, 0)
        known = (row >= 0) & labels.known[taken] & self._told[episode]
        keys, mouse = unpack(labels.controls[taken]), self._mouse.classes(labels.camera[taken])
        discrete = np.concatenate([keys, mouse[:, None]], axis=1).astype(np.int32)
        reward = np.zeros(length, np.float32)
        at = self._events[episode][:, 0] - start
        reward[at[(at >= 0) & (at < length)]] = 1
        return Window(
            frame=self._frames(episode, start, length) if frames else None,
            latent=None,
            discrete=np.where(known[:, None], discrete, 0),
            continuous=np.zeros((length, 0), np.float32),
            action_mask=known,
            reward=reward,
        )

    def _frames(self, episode: int, start: int, length: int) -> UInt8[np.ndarray, "T H W C"]:
        frames, cursor = self._films[episode].frames(start, length), self.labels[episode].cursor
        for t, place in enumerate(cursor[start : start + length]):
            if np.isfinite(place).all():
                frames[t] = _with_pointer(frames[t], place)
        return shrink(frames, self._size)

    def _open(self, segments: list[Segment], f3: bool) -> list[_Opened]:
        """Reads rows and film of each segment; notes down which cannot be used, and why."""
        opened: dict[int, _Opened] = {}
        before: tuple[Segment, Rows] | None = None
        # By time, whatever the order of the index, since counters go on from segment to segment.
        for number in sorted(range(len(segments)), key=lambda n: (segments[n].recording, segments[n].start, n)):
            segment = segments[number]
            try:
                rows = read_rows(segment.rows)
                same = before is not None and before[0].recording == segment.recording
                labels = label(rows, segment.version, before[1] if before and same else None)
                before = segment, rows
                if rows.f3.any() and not f3:
                    raise InputError("F3 is pressed in it, with text over the picture.")
                film = IndexedFilm(segment.video)
                if abs(film.rate - RATE) > 0.2:
                    raise InputError(f"its film has {film.rate:.4g} frames a second, expected {RATE:g}.")
                if not len(rows) <= len(film) <= len(rows) + 1:
                    raise InputError(
                        f"its film has {len(film)} frames, expected {len(rows)}, one a row, or one more than that."
                    )
            except InputError as error:
                told = str(error).removeprefix(f"{segment.video}: ")
                self._refused.append(f"{segment.rows.stem}: {told}")
            else:
                opened[number] = segment, film, (rows.sha256, rows.elsewhere), labels
        return [opened[number] for number in sorted(opened)]

    def _keep(self, opened: list[_Opened], wrong: Callable[[IndexedFilm], str | None]) -> list[_Opened]:
        """Returns the segments whose films nothing is wrong with; notes down the others."""
        reasons = [wrong(film) for _, film, _, _ in opened]
        self._refused += [f"{o[0].rows.stem}: {why}" for o, why in zip(opened, reasons, strict=True) if why]
        return [o for o, why in zip(opened, reasons, strict=True) if not why]


def _other_shape(film: IndexedFilm, shape: tuple[int, ...]) -> str | None:
    return None if film.frame_shape == shape else f"its frames have shape {film.frame_shape}, most have {shape}."


def _lags(opened: list[_Opened]) -> dict[Path, str]:
    """Returns the films of every version whose films and rows do not keep step, with what to say of them.

    A film that is looked at and cannot be decoded is among them.
    """
    wrong: dict[Path, str] = {}
    for version in sorted({segment.version for segment, *_ in opened}):
        same = [(film, labels) for segment, film, _, labels in opened if segment.version == version]
        found: list[int] = []
        for film, labels in same[:_TRIED]:
            try:
                lag = _lag(film, labels) if len(found) < _TELLING else None
            except InputError as error:
                wrong[film.path] = str(error).removeprefix(f"{film.path}: ")
            else:
                found += [] if lag is None else [lag]
        if found and (lag := int(np.median(found))):
            told = f"{abs(lag)} ticks {'behind' if lag > 0 else 'before'} its rows"
            wrong |= {film.path: f"its film is {told}, as others of version {version} are." for film, _ in same}
    return wrong


def _lag(film: IndexedFilm, labels: Labels) -> int | None:
    """Returns the lag in the rows that turn most."""
    rows = min(_LOOK, len(film) - 1)
    outside = np.isnan(labels.cursor[:, 0])  # in a window it is the cursor that moves
    turns = np.convolve(np.minimum(np.abs(labels.camera[:, 0]), 5) * outside, np.ones(rows), "valid")
    start = min(int(turns.argmax()), len(film) - 1 - rows)
    part = slice(start, start + rows)
    return find_lag(film.frames(start, rows + 1), labels.camera[part, 0], np.isfinite(labels.cursor[part, 0]))


def _with_pointer(frame: UInt8[np.ndarray, "H W C"], place: Float[np.ndarray, " 2"]) -> UInt8[np.ndarray, "H W C"]:
    """Draws the pointer of the mouse, which the recorder left out of the film."""
    picture = Image.fromarray(frame)
    corners = (_ARROW + place) * (frame.shape[0] / 720)
    ImageDraw.Draw(picture).polygon([(float(x), float(y)) for x, y in corners], fill="white", outline="black")
    return np.asarray(picture)
