"""What a run says about itself while it trains: a log for programs and a progress bar for people.

The log is the contract for tests and reports: one JSON object per line, with `phase`, `step` (training step), `time`
(seconds since 1970) and the metrics by name. A line is written at once and whole lines only are kept, so the log of a
run that was killed can be read, and continued without a gap or a step told twice.
"""

import datetime
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
from types import TracebackType
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.text import Text

from dreamer4.errors import InputError
from dreamer4.training.trackers import AbstractTracker


# JSON has no number for these; as strings they stay what they are, and the line stays JSON.
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_MAX_LINE = 1024 * 1024  # bytes; a line has some 300
_SHOWN_BYTES = 64 * 1024 * 1024  # of a log that is read whole; of a longer one every so many lines are
_RESERVED = ("phase", "step", "time")
_LINE_EVERY = 60.0  # seconds between the lines of a log: it tells that work goes on, and stays readable after days


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


class Progress:
    """A progress bar of one phase: what, how far, how fast, how long, and one short text.

    Where the output is not a terminal there is one line at the start, one at the end, and one a minute between them.

        with Progress("tokenizer", total=1000) as progress:
            progress.advance(20, text="loss 0.031")

    Args:
        description: name of the phase.
        total: number of units to do, those already done included.
        completed: number of units done before, by the run that this one continues.
        unit: what is counted, in the plural.
        console: where to print; None is the standard output.
    """

    def __init__(
        self, description: str, *, total: int, completed: int = 0, unit: str = "steps", console: Console | None = None
    ):
        self.description = description
        self.total = total
        self.completed = completed
        self.unit = unit
        self.text = ""
        self._console = console or Console()
        self._before = completed
        self._started = self._told = time.monotonic()
        self._bar: RichProgress | None = None

    def __enter__(self) -> "Progress":
        self._started = self._told = time.monotonic()
        if self._console.is_terminal:
            self._bar = RichProgress(
                TextColumn("[bold]{task.description:<12}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                _RateColumn(self.unit),
                TimeElapsedColumn(),
                TextColumn("[dim]left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[text]}", style="dim", markup=False),
                console=self._console,
            )
            self._bar.add_task(self.description, total=self.total, completed=self.completed, text="")
            self._bar.start()
        else:
            self._print(f"{self.description}: {self.completed}/{self.total} {self.unit}")
        return self

    def advance(self, count: int = 1, text: str | None = None) -> None:
        """Counts `count` more units as done, and shows `text` from now on if one is given."""
        self.completed += count
        if text is not None:
            self.text = text
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self.completed, text=self.text)
        elif (now := time.monotonic()) >= self._told + _LINE_EVERY:
            self._told = now
            pace = (now - self._started) / max(self.completed - self._before, 1)
            left = datetime.timedelta(seconds=round(pace * max(self.total - self.completed, 0)))
            self._print_state(now, f", {left} left")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            return
        self._print_state(time.monotonic(), stopped="" if kind is None else "stopped at ")

    def _print_state(self, now: float, left: str = "", stopped: str = "") -> None:
        seconds = now - self._started
        rate = _rate((self.completed - self._before) / max(seconds, 1e-9), self.unit)
        text = f", {self.text}" if self.text else ""
        done = f"{self.completed}/{self.total} {self.unit}"
        self._print(f"{self.description}: {stopped}{done} in {seconds:.1f} s ({rate}{left}){text}")

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class _RateColumn(ProgressColumn):
    def __init__(self, unit: str):
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(_rate(speed, self._unit) if speed else f"- {self._unit}/s", style="cyan")


def _rate(speed: float, unit: str) -> str:
    return f"{speed:,.1f} {unit}/s" if speed < 100 else f"{speed:,.0f} {unit}/s"


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
