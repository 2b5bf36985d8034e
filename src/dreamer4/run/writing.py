"""What a process does for a run as long as it writes to it: it keeps others out, and counts the time."""

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from dreamer4.errors import InputError
from dreamer4.files import write_atomically
from dreamer4.run import processes
from dreamer4.run.facts import run_results
from dreamer4.run.folder import RunFolder


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@contextlib.contextmanager
def alone(run: RunFolder) -> Iterator[None]:
    """Keeps other processes from writing to a run until the block ends, or the process does.

    Of several that train it together the first does, for them all. Where a system or a disk knows no locks, nothing is
    kept out.

    Raises:
        InputError: if another process writes to the run.
    """
    if fcntl is None or not processes.first():
        yield
        return
    # The file stays: if it were removed, the next two processes could each lock one of that name.
    with run.lock_file.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{run.path}: another process writes to this run. Wait for it or stop it, or choose another folder "
                "with --run."
            ) from None
        except OSError:
            pass
        yield


def clock(run: RunFolder) -> contextlib.AbstractContextManager[Callable[[], float]]:
    """Counts seconds of work on a run, as `seconds` does."""
    before = 0.0
    if not run.seconds_file.exists():  # of a version that kept no count
        results = run_results(run)
        before = 60.0 * results.minutes if results and results.minutes else 0.0
    return seconds(run.seconds_file, before)


@contextlib.contextmanager
def seconds(file: Path, before: float = 0.0) -> Iterator[Callable[[], float]]:
    """Counts seconds of work, those of earlier pieces that ended in order included.

    Args:
        file: where they are kept from piece to piece.
        before: seconds of earlier pieces, if there is no file.

    Raises:
        InputError: if what the earlier pieces left cannot be read.
    """
    before, started = _read(file) if file.exists() else before, time.monotonic()

    def total() -> float:
        return before + time.monotonic() - started

    try:
        yield total
    finally:
        # A disk that takes no more has a message of its own, which this must not hide.
        with contextlib.suppress(OSError):
            if processes.first():
                write_atomically(file, f"{total():.1f}\n")


def _read(file: Path) -> float:
    text = file.read_text(errors="replace")[:100].strip()
    if not re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII):
        raise InputError(f"{file}: got {text!r}, expected a number of seconds. Mend or remove it.")
    return float(text)
