"""What a run says about itself while it trains: a log for programs.

It is the contract for tests and reports: one JSON object per line, with `phase`, `step` (training step), `time`
(seconds since 1970) and the metrics by name. A line is written at once and whole lines only are kept, so the log of a
run that was killed can be read, and continued without a gap or a step told twice.
"""

import errno
import itertools
import json
import math
import os
import stat
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dreamer4.errors import InputError
from dreamer4.run.trackers import AbstractTracker


# JSON has no number for these; as strings they stay what they are, and the line stays JSON.
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_MAX_LINE = 1024 * 1024  # bytes; a line has some 300
_SHOWN_BYTES = 64 * 1024 * 1024  # of a log that is read whole; of a longer one every so many lines are
_RESERVED = ("phase", "step", "time")


class MetricLog:
    """Appends metrics to a file, one JSON object per line.

    Args:
        path: the file. If it exists, it is continued; a last line that was cut off by a crash is dropped.
        tracker: is told every line as well, until it fails.
    """

    path: Path

    def __init__(self, path: Path, tracker: AbstractTracker | None = None):
        self.path = path
        self._tracker = tracker
        if path.exists():
            _drop_torn(path)

    def append(self, phase: str, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes one line and hands it to the operating system. A disk that takes no more is told in a warning.

        Args:
            phase: phase of the training.
            step: training step that the metrics were measured at.
            metrics: numbers, strings or arrays (as nested lists) by name; what is not finite is written as a string.
        """
        if clash := [name for name in _RESERVED if name in metrics]:
            raise ValueError(f"Metrics named {', '.join(clash)}: these names belong to the line itself.")
        record = {"phase": phase, "step": int(step), "time": round(time.time(), 3)}
        record |= {name: _to_json(value) for name, value in metrics.items()}
        line = (json.dumps(record, allow_nan=False) + "\n").encode()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab", buffering=0) as stream:
                end = stream.tell()
                if stream.write(line) < len(line):  # a disk that fills up takes a part
                    os.truncate(self.path, end)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            # Metrics tell of a training; they are no reason to end it.
            warnings.warn(
                f"Metrics cannot be written to {self.path}: {error.strerror}. Training goes on.", stacklevel=2
            )
        self._show(lambda tracker: tracker.write(phase, int(step), metrics))

    def truncate(self, phase: str, step: int) -> None:
        """Drops the lines of `phase` behind `step`: a run that resumes at `step` will write them again."""
        self._show(lambda tracker: tracker.truncate(phase, step))
        if not self.path.exists():
            return
        partial, dropped = self.path.with_suffix(".tmp"), 0
        with partial.open("wb") as stream:
            for number, line in _lines(self.path):
                record = _record(self.path, number, line)
                if record["phase"] != phase or record["step"] <= step:
                    stream.write(line)
                else:
                    dropped += 1
        if dropped:
            os.replace(partial, self.path)
        else:
            partial.unlink()

    def close(self) -> None:
        """Closes the tracker; the file itself is never open between two lines."""
        self._show(lambda tracker: tracker.close())

    def _show(self, tell: Callable[[AbstractTracker], None]) -> None:
        """Tells the tracker something. One that fails is told nothing more, and training goes on."""
        if self._tracker is None:
            return
        try:
            tell(self._tracker)
        except Exception as error:  # a service of others may raise anything
            self._tracker = None
            what = getattr(error, "strerror", None) or error
            warnings.warn(
                f"train.tracker: metrics can no longer be shown: {what}. Training goes on, and {self.path} gets all "
                "of them; to show them again, mend this and resume the run.",
                stacklevel=3,
            )


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of a metric log in order; a last line that was cut off is passed over.

    Of a log of weeks, more than 64 MiB, evenly spaced lines are read, as many as that.

    Raises:
        InputError: if there is no such file, or a line in it is not one of ours.
    """
    every = 1 + (path.stat().st_size // _SHOWN_BYTES if path.is_file() else 0)
    return [_record(path, number, line) for number, line in _lines(path) if number % every == 0 or number == 1]


def _to_json(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, list | tuple):
        return [_to_json(v) for v in value]
    return _to_json(np.asarray(value).tolist())


def _from_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_json(v) for v in value]
    return _NON_FINITE.get(value, value) if isinstance(value, str) else value


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yields number and text of each whole line of a log, of which no more than a line is held."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # reading a pipe may never end
            raise InputError(f"Cannot read {path}: it is not a file.")
        with path.open("rb") as stream:
            for number in itertools.count(1):
                line = stream.readline(_MAX_LINE)
                if len(line) == _MAX_LINE:
                    raise InputError(f"Line {number} of {path} is not a line of metrics: it is too long.")
                if not line.endswith(b"\n"):
                    return
                yield number, line
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from None


def _record(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
        return {name: _from_json(record[name]) for name in ("phase", "step", *record)}
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f"Line {number} of {path} is not a line of metrics: {line[:80]!r}.") from None


def _drop_torn(path: Path) -> None:
    """Cuts off what stands behind the last line end of a log."""
    if not path.is_file():
        raise InputError(f"Cannot read {path}: it is not a file.")
    with path.open("rb+") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - _MAX_LINE))
        tail = stream.read()
        torn = len(tail) - (tail.rfind(b"\n") + 1)
        if torn == len(tail) > 0 and size > _MAX_LINE:
            raise InputError(f"The last line of {path} is not a line of metrics: it is too long.")
        if torn:
            stream.truncate(size - torn)
