"""What labels the rows of a segment: actions with what recorders got wrong put right, and events.

Each repair is counted by its name, so that a user sees what was done to the data. A turn of the view is taken from the
view itself, not from the motion of the mouse, which some recorders scale.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, Int64

from dreamer4.data.vpt.actions import ATTACK, ESC, HOTBAR, INVENTORY
from dreamer4.data.vpt.rows import Rows
from dreamer4.data.vpt.tasks import TASKS


DEGREES = 360 / 2400  # that a pixel of the mouse turns the view
_SEAM = 2000  # milliseconds between two segments of one stretch of play, at most
# By what the motion of the mouse in an open window is to be multiplied, by version of the recorder.
_MAC = {"5.7": 0.5, "5.8": 0.5, "6.7": 2.0, "6.8": 2.0, "6.9": 2.0}


@dataclass(frozen=True, eq=False)
class Labels:
    """Labels of the rows of a segment: row t belongs to what was done at frame t, and shows in frame t + 1.

    Attributes:
        controls: a bit for each of `CONTROLS` that is down.
        camera: turn by yaw and by pitch in degrees; in an open window, the motion of the cursor in the same unit.
        known: False where the recorder lost mouse or keyboard.
        idle: whether nothing was done. VPT leaves such rows out of cloning; a world model needs their frames.
        cursor: its place in a window of 1280 x 720; NaN where none is drawn, or it is not known.
        events: row, task and amount of what the counters first show there, in the order of the rows. The frame of that
            row is the one that shows it.
        repairs: how many rows, or what else, each repair touched.
    """

    controls: Int32[np.ndarray, " T"]
    camera: Float32[np.ndarray, "T 2"]
    known: Bool[np.ndarray, " T"]
    idle: Bool[np.ndarray, " T"]
    cursor: Float32[np.ndarray, "T 2"]
    events: Int64[np.ndarray, "n 3"]
    repairs: Counter[str]

    def __len__(self) -> int:
        return len(self.controls)


def label(rows: Rows, version: str, before: Rows | None = None) -> Labels:
    """Labels the rows of a segment.

    Args:
        rows: as recorded.
        version: of the recorder.
        before: rows of the segment before it in the same recording, where there is one. If play went on from there, an
            event on the seam is none of either alone.
    """
    repairs: Counter[str] = Counter()
    controls = _free_attack(rows, repairs)
    escapes = rows.gui & (controls & ESC > 0)
    controls = np.where(escapes, controls & ~ESC | INVENTORY, controls)
    repairs["escape that closed a window"] += int(escapes.sum())

    new = np.flatnonzero((rows.hotbar[1:] != rows.hotbar[:-1]) & (np.minimum(rows.hotbar[1:], rows.hotbar[:-1]) >= 0))
    key = HOTBAR[rows.hotbar[new + 1]].astype(np.int32)
    repairs["slot changed without a key"] += int(np.sum(controls[new] & key == 0))
    controls[new] |= key

    camera = _camera(rows, version, repairs)
    repairs["mouse or keyboard lost"] += int(np.sum(~rows.known))
    repairs["key or button that is no control"] += int(np.sum(rows.unknown & ~rows.f3))
    repairs["F3 down, with text over the picture"] += int(rows.f3.sum())
    idle = (controls == 0) & np.all(camera == 0, axis=1) & rows.known
    cursor = np.where(rows.gui[:, None], rows.cursor, np.nan).astype(np.float32)
    repairs["cursor drawn in an open window"] += int(np.sum(np.isfinite(cursor[:, 0])))
    events = _events(rows, before, repairs)
    return Labels(controls, camera.astype(np.float32), rows.known, idle, cursor, events, +repairs)


def _free_attack(rows: Rows, repairs: Counter[str]) -> Int32[np.ndarray, " T"]:
    """Lets go of a button that a recorder took for held from the first row on, until it is pressed again."""
    if not rows.lone:
        return rows.controls.copy()
    again = np.flatnonzero(rows.pressed[1:] & ATTACK)
    until = int(again[0]) + 1 if len(again) else len(rows)
    repairs["attack stuck at the start"] += int(np.sum(rows.controls[:until] & ATTACK > 0))
    return np.where(np.arange(len(rows)) < until, rows.controls & ~ATTACK, rows.controls)


def _camera(rows: Rows, version: str, repairs: Counter[str]) -> Float64[np.ndarray, "T 2"]:
    """Returns by how much each row turned the view, or moved the cursor of a window open in both rows."""
    following = np.minimum(np.arange(len(rows)) + 1, len(rows) - 1)
    turned = rows.view[following] - rows.view
    turned[-1] = np.nan  # of whose outcome only the picture tells
    by_mouse = np.any(np.isnan(turned), axis=1)
    turned = np.where(by_mouse[:, None], rows.motion * DEGREES, turned)
    repairs["turn told by the mouse alone"] += int(by_mouse[:-1].sum())
    windowed, both = rows.gui | rows.gui[following], rows.gui & rows.gui[following]
    moved = (rows.scaled[following] - rows.scaled) * DEGREES
    factor = _MAC.get(version, 1.0)
    by_motion = rows.motion / 2 * factor * DEGREES
    unseen = np.isnan(moved).any(axis=1) | (following == np.arange(len(rows)))
    moved = np.where(unseen[:, None], by_motion, moved)
    if factor != 1:
        repairs["motion in a window scaled by a recorder for Mac"] += int(np.sum(both))
    camera = np.where(both[:, None], moved, np.where(windowed[:, None], 0.0, turned))
    repairs["cursor put in the middle by a window"] += int(np.sum(windowed & ~both))
    far = np.any(np.abs(camera) > 180, axis=1)
    repairs["turn by more than 180 degrees"] += int(far.sum())
    return np.where(far[:, None] | ~np.isfinite(camera), 0.0, camera)


def _events(rows: Rows, before: Rows | None, repairs: Counter[str]) -> Int64[np.ndarray, "n 3"]:
    """Returns what the counters gained, from where they stood: in the segment before, or where they are first told.

    They count on through all segments of a session, and some recorders tell them a few rows late.
    """
    if not len(rows.counted):
        return np.zeros((0, 3), np.int64)
    if rows.counted[0] > 0:
        repairs["counters told late"] += 1
    start = rows.counters[:1]
    if before is not None and goes_on(before, rows) and np.all(start >= before.counters[-1]):
        start = before.counters[-1:]
    elif start.any():
        repairs["counters carried over from before"] += 1
    gained = np.diff(rows.counters, axis=0, prepend=start)
    anew = np.any(gained < 0, axis=1)  # another world, whose counters begin again
    gained[anew] = 0
    repairs["counters begun again"] += int(anew.sum())
    at, task = np.nonzero(gained)
    return np.stack([rows.counted[at], task, gained[at, task]], axis=1).reshape(-1, 3)


def goes_on(before: Rows, rows: Rows) -> bool:
    """Whether play went on from one segment to the next, by the clock."""
    if before.times is None or rows.times is None or not len(before.counted):
        return False
    return 0 <= rows.times[0] - before.times[1] <= _SEAM


def count_events(events: Int64[np.ndarray, "n 3"]) -> dict[str, int]:
    """Returns how often each task was done."""
    done = np.bincount(events[:, 1], weights=events[:, 2], minlength=len(TASKS))
    return {task: int(number) for task, number in zip(TASKS, done, strict=True)}
