"""Who is told how a run goes: what is said, how far work has come, what was collected.

The library prints nothing. A `Reporter` is handed in: by the command line one that draws progress bars, by a notebook
one of its own. This one keeps everything to itself.
"""

from contextlib import AbstractContextManager
from types import TracebackType

from dreamer4.data import DatasetInfo


class Progress(AbstractContextManager):
    """How far one piece of work has come.

    Args:
        total: number of units to do, those already done included.
        completed: number of units done before.
    """

    def __init__(self, *, total: int, completed: int = 0):
        self.total = total
        self.completed = completed

    def advance(self, count: int = 1, text: str | None = None) -> None:
        """Counts `count` more units as done; `text` is what there is to say of them."""
        self.completed += count

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Ends the piece of work, done or not."""


class Reporter:
    """Is told how a run goes. To be subclassed by who shows it; each method may be left as it is."""

    def say(self, line: str) -> None:
        """Takes one line for people."""

    def progress(self, description: str, *, total: int, completed: int = 0, unit: str = "steps") -> Progress:
        """Returns what counts a piece of work, as a context manager around it.

        Args:
            description: what the work is called.
            total: number of units to do, those already done included.
            completed: number of units done before, by the run that this one continues.
            unit: what is counted, in the plural.
        """
        return Progress(total=total, completed=completed)

    def collected(self, info: DatasetInfo) -> None:
        """Takes the description of a data set that was just collected."""


SILENT = Reporter()
