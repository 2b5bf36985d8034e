"""The rows of a segment as they were recorded, column by column."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64

from dreamer4.data.vpt.actions import BUTTON_BITS, KEY_BITS
from dreamer4.data.vpt.tasks import TASKS, is_elsewhere, tasks_done
from dreamer4.errors import InputError


_MAX_LINE = 2**20  # bytes
_F3 = "key.keyboard.f3"


@dataclass(frozen=True, eq=False)
class Rows:
    """What the recorder wrote, nothing repaired.

    Attributes:
        controls: a bit for each of `CONTROLS` that is down.
        pressed: the buttons of the mouse that went down in this tick, as bits.
        lone: whether button 0 went down in the first row, and no other.
        gui: whether a window such as the inventory is open.
        hotbar: slot in hand, 0 to 8; -1 where an old recorder does not tell.
        view: yaw, not wrapped, and pitch in degrees; NaN where they were stripped.
        cursor: x and y in pixels of a window of 1280 x 720; NaN where the mouse is not known.
        scaled: the same in units of the game's windows, half as many; from the middle, with some recorders.
        motion: dx and dy of the mouse in pixels.
        known: whether both mouse and keyboard were recorded.
        unknown: whether a key or button was down that is no control.
        f3: whether F3, which lays text over the picture, went down.
        counted: rows in which the counters of the tasks changed, the first one in which there are any included.
        counters: of each task in those rows, as they stand; none where they were stripped.
        elsewhere: whether the counters tell of the Nether or the End.
        times: of the first and the last row, in milliseconds; None with recorders that tell none.
        sha256: of the file.
    """

    controls: Int32[np.ndarray, " T"]
    pressed: Int32[np.ndarray, " T"]
    lone: bool
    gui: Bool[np.ndarray, " T"]
    hotbar: Int32[np.ndarray, " T"]
    view: Float64[np.ndarray, "T 2"]
    cursor: Float64[np.ndarray, "T 2"]
    scaled: Float64[np.ndarray, "T 2"]
    motion: Float64[np.ndarray, "T 2"]
    known: Bool[np.ndarray, " T"]
    unknown: Bool[np.ndarray, " T"]
    f3: Bool[np.ndarray, " T"]
    counted: Int64[np.ndarray, " n"]
    counters: Int64[np.ndarray, "n tasks"]
    elsewhere: bool
    times: tuple[int, int] | None
    sha256: str

    def __len__(self) -> int:
        return len(self.controls)


def read_rows(path: Path) -> Rows:
    """Reads the rows of a segment.

    Raises:
        InputError: if the file, or a line of it, cannot be read: with the reason alone, and the number of the line.
    """
    digest, lines = hashlib.sha256(), []
    try:
        with path.open("rb") as file:
            while line := file.readline(_MAX_LINE):
                digest.update(line)
                lines.append(line)
    except OSError as error:
        raise InputError(f"its rows cannot be read: {error.strerror}.") from error
    number, table, counted, counters, stats = 0, [], [], [], {}
    times: tuple[int, int] | None = None
    lone = False
    try:
        for number, line in enumerate(lines, 1):
            row = json.loads(line)
            mouse, keyboard = row["mouse"], row["keyboard"]
            controls = pressed = 0
            unknown = f3 = False
            if keyboard is not None:
                for key in keyboard["keys"]:
                    if bit := KEY_BITS.get(key):
                        controls |= bit
                    else:
                        unknown = True
                        f3 |= key == _F3
            if mouse is None:
                point = (np.nan,) * 6
            else:
                for button in mouse["buttons"]:
                    if bit := BUTTON_BITS.get(button):
                        controls |= bit
                    else:
                        unknown = True
                for button in mouse["newButtons"]:
                    pressed |= BUTTON_BITS.get(button, 0)
                if number == 1:
                    lone = mouse["newButtons"] == [0]
                x, y = mouse["x"], mouse["y"]
                point = x, y, mouse.get("scaledX", x / 2), mouse.get("scaledY", y / 2), mouse["dx"], mouse["dy"]
            known = mouse is not None and keyboard is not None
            gui, hotbar = row["isGuiOpen"], row.get("hotbar", -1)
            view = row.get("yaw", np.nan), row.get("pitch", np.nan)
            table.append((controls, pressed, gui, hotbar, known, unknown, f3, *view, *point))
            if (told := row.get("stats", stats)) != stats:
                stats = told
                done = tasks_done(stats)
                if not counters or done != counters[-1]:
                    counted.append(number - 1)
                    counters.append(done)
            if "milli" in row:
                times = (times[0] if times else int(row["milli"]), int(row["milli"]))
        if not table:
            raise InputError("it has no rows.")
        columns = np.array(table, np.float64)
        if np.any(np.abs(columns) >= 2**31):
            raise InputError("a row of it holds a number of 2^31 or more.")
        if not np.all(np.isin(columns[:, 3], np.arange(-1, 9))):
            raise InputError("a row of it has another hotbar than 0 to 8.")
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        what = f"has no entry {error}" if isinstance(error, KeyError) else f"cannot be read: {error}"
        raise InputError(f"line {number} of its rows {what}.") from error
    whole = columns[:, :4].astype(np.int32)
    known, unknown, f3 = columns[:, 4:7].astype(bool).T
    return Rows(
        controls=whole[:, 0],
        pressed=whole[:, 1],
        lone=lone,
        gui=whole[:, 2].astype(bool),
        hotbar=whole[:, 3],
        view=columns[:, 7:9],
        cursor=columns[:, 9:11],
        scaled=columns[:, 11:13],
        motion=columns[:, 13:15],
        known=known,
        unknown=unknown,
        f3=f3,
        counted=np.array(counted, np.int64),
        counters=np.array(counters, np.int64).reshape(-1, len(TASKS)),
        elsewhere=is_elsewhere(stats),
        times=times,
        sha256=digest.hexdigest(),
    )
