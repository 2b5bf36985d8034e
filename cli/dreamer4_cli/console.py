"""What a person sees of a run: progress bars, lines, tables of what was collected."""

import datetime
import shutil
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.table import Table

from dreamer4.data import DatasetInfo
from dreamer4.run.reporter import Progress, Reporter


console = Console(markup=False, highlight=False)  # names may hold brackets

_LINE_EVERY = 60.0  # seconds between the lines of a log: it tells that work goes on, and stays readable after days


def invoked() -> str:
    """Returns the command: `dreamer4` where the shell finds it, else the path it was called by."""
    name = sys.argv[0]
    if Path(name).name != "dreamer4":
        return "python -m dreamer4_cli"
    return "dreamer4" if shutil.which("dreamer4") == name else name


def say(line: str, style: str | None = None) -> None:
    """Prints one line as it is."""
    console.print(line, style=style, soft_wrap=True)


def show(head: Sequence[str], rows: Iterable[Sequence[str]], *, title: str = "", strong: str | None = None) -> None:
    """Prints a table, in which the rows whose first cell is `strong` stand out; a narrow one breaks no name's words."""
    rows = list(rows)
    table = Table(title=title or None)
    for column, name in enumerate(head):
        words = [word for row in rows for word in row[0].split()] if column == 0 else []
        table.add_column(name, overflow="fold", min_width=max(map(len, words), default=None))
    for row in rows:
        table.add_row(*row, style="bold" if row[0] == strong else "")
    console.print(table)


def facts(title: str, rows: Mapping[str, object]) -> None:
    """Prints what is known of one thing."""
    table = Table(title=title, show_header=False, title_justify="left")
    for name, value in rows.items():
        table.add_row(name, str(value))
    console.print(table)


class ConsoleReporter(Reporter):
    """Prints how a run goes."""

    def say(self, line: str) -> None:
        say(line)

    def progress(self, description: str, *, total: int, completed: int = 0, unit: str = "steps") -> Progress:
        return ProgressBar(description, total=total, completed=completed, unit=unit)

    def collected(self, info: DatasetInfo) -> None:
        summary(info)


class ProgressBar(Progress):
    """A progress bar of one phase: what, how far, how fast, how long, and one short text.

    Where the output is not a terminal there is one line at the start, one at the end, and one a minute between them.

        with ProgressBar("tokenizer", total=1000) as progress:
            progress.advance(20, text="loss 0.031")

    Args:
        description: name of the phase.
        total: number of units to do, those already done included.
        completed: number of units done before, by the run that this one continues.
        unit: what is counted, in the plural.
        console: where to print.
    """

    def __init__(
        self, description: str, *, total: int, completed: int = 0, unit: str = "steps", console: Console = console
    ):
        super().__init__(total=total, completed=completed)
        self.description = description
        self.unit = unit
        self.text = ""
        self._console = console
        self._before = completed
        self._started = self._told = time.monotonic()
        self._bar: RichProgress | None = None

    def __enter__(self) -> "ProgressBar":
        self._started = self._told = time.monotonic()
        if self._console.is_terminal:
            self._bar = RichProgress(
                TextColumn("[bold]{task.description:<12}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("[cyan]{task.fields[rate]}"),
                TimeElapsedColumn(),
                TextColumn("[dim]left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[text]}", style="dim", markup=False),
                console=self._console,
            )
            self._bar.add_task(self.description, total=self.total, completed=self.completed, text="", rate="")
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
            rate = self._rate(time.monotonic())
            self._bar.update(self._bar.task_ids[0], completed=self.completed, text=self.text, rate=rate)
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
        text = f", {self.text}" if self.text else ""
        done = f"{self.completed}/{self.total} {self.unit}"
        self._print(f"{self.description}: {stopped}{done} in {seconds:.1f} s ({self._rate(now)}{left}){text}")

    def _rate(self, now: float) -> str:
        speed = (self.completed - self._before) / max(now - self._started, 1e-9)
        return f"{speed:,.1f} {self.unit}/s" if speed < 100 else f"{speed:,.0f} {self.unit}/s"

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def summary(info: DatasetInfo) -> None:
    """Prints the returns of each policy of a data set, and how often each action was taken."""
    rows, begin = [], 0
    for part in info.behaviour:
        returns = np.array(info.returns[begin : begin + part.episodes])
        rows.append((part.policy, f"{part.epsilon:g}", *_spread(returns)))
        begin += part.episodes
    if len(info.behaviour) != 1:
        rows.append(("all", "", *_spread(np.array(info.returns))))
    head = ("policy", "epsilon", "episodes", "mean return", "quartiles", "least", "most")
    show(head, rows, strong="all")
    for i, counts in enumerate(info.action_counts):
        shares = "  ".join(f"{n}: {count / max(sum(counts), 1):.1%}" for n, count in enumerate(counts))
        name = "actions" if len(info.action_counts) == 1 else f"actions, component {i}"
        console.print(f"{name}  {shares}")


def _spread(returns: np.ndarray) -> tuple[str, ...]:
    mean, least, low, middle, high, most = (
        f"{x:.2f}" for x in (returns.mean(), *np.percentile(returns, [0, 25, 50, 75, 100]))
    )
    return str(len(returns)), mean, f"{low}  {middle}  {high}", least, most
