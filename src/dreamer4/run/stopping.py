"""Leaving on a signal: a command ends in order, and whatever it has computed is saved.

The signals are SIGINT (Ctrl-C) and SIGTERM, and where the system has them SIGHUP (a connection that drops), SIGUSR1 and
SIGUSR2 (a scheduler that warns, as Slurm's `--signal=USR1@120`) and SIGXCPU (a limit of time).

Where nothing is at stake a signal raises `Stopped` at once, and the code that it passes through tidies up after itself.
Inside `hold` it waits: training saves first, see `phase.py`. Python hears of a signal only between two instructions,
and a program that is being compiled is one instruction of minutes; so a thread listens as well, and ends the process
where the main thread does not answer and has nothing to lose. A second SIGINT or SIGTERM ends the process at once.

A signal that was set to be ignored when the process began (as background jobs of a shell ignore SIGINT) stays so.
"""

import contextlib
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from types import FrameType


_AT_ONCE = (signal.SIGINT, signal.SIGTERM)  # the second time
_WARNINGS = tuple(
    getattr(signal, name) for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU") if hasattr(signal, name)
)
SIGNALS = (*_AT_ONCE, *_WARNINGS)
GRACE = 1.0  # seconds for the main thread to answer
PATIENCE = 5.0  # seconds for what it tidies up
_WORDS: dict[int, str] = {number: f"Stopped by {signal.Signals(number).name}." for number in _WARNINGS}
_WORDS |= {signal.SIGINT: "Interrupted.", signal.SIGTERM: "Terminated."}


class Stopped(KeyboardInterrupt):
    """A signal asks this process to leave.

    Attributes:
        signum: which.
    """

    def __init__(self, signum: int):
        super().__init__(signum)
        self.signum = signum


class _Standing:
    """Where this process stands: one, as a process has one main thread."""

    def __init__(self, note: str = "") -> None:
        self.signum: int | None = None  # the first signal that came
        self.held = 0
        self.losing = False
        self.note = note


_now = _Standing()


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """Answers signals as this module says until the block ends. In another thread than the main one, does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    global _now
    _now = _Standing()
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    previous = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in handlers.items():
        if handler not in (signal.SIG_IGN, None):
            signal.signal(number, _answer)
    threading.Thread(target=_listen, args=(ours,), daemon=True).start()
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if handler is not None:
                signal.signal(number, handler)
        signal.set_wakeup_fd(previous)
        theirs.close()  # the thread reads the end of it, and ends
        _now = _Standing(_now.note)


@contextlib.contextmanager
def hold() -> Iterator[None]:
    """Makes signals wait for the end of the block, or for `leave`.

    A process that does not answer is still ended from outside its main thread, unless it has something to lose. At the
    beginning of the block it has; `losing` says when not.
    """
    before = _now.losing
    _now.losing = True
    _now.held += 1
    try:
        yield
    finally:
        _now.held -= 1
        _now.losing = before
    leave()


def losing(something: bool) -> None:
    """Says whether a process that ended now would lose what it is about to save."""
    _now.losing = something


def requested() -> bool:
    """Whether a signal asks this process to leave."""
    return _now.signum is not None


def signum() -> int:
    """Returns the signal that asks this process to leave."""
    return _now.signum or signal.SIGTERM


def leave() -> None:
    """Raises `Stopped` if a signal asked for it and nothing holds it."""
    if _now.signum is not None and not _now.held:
        raise Stopped(_now.signum)


def note(text: str) -> None:
    """Says what a person who stops this process now should know: what is saved, and how to go on."""
    _now.note = text


def noted() -> str:
    """Returns what `note` was told last by the command that runs, or ran last."""
    return _now.note


def message(signum: int) -> str:
    """Returns what is printed when a signal ended the process."""
    return " ".join(part for part in (_WORDS.get(signum, "Stopped."), _now.note) if part)


def _answer(signum: int, frame: FrameType | None) -> None:
    if _now.signum is not None:
        if signum in _AT_ONCE:
            os._exit(128 + signum)
        return
    _now.signum = signum
    leave()


def _listen(pipe: socket.socket) -> None:
    with pipe:
        signum = _next(pipe)
        came = time.monotonic()
        pipe.settimeout(0.05)
        while signum is not None:
            try:
                second = _next(pipe)
                if second is None:
                    return  # the command has ended by itself
                if second in _AT_ONCE:
                    os._exit(128 + second)
            except TimeoutError:
                pass
            waited = time.monotonic() - came
            stuck = _now.signum is None or _now.held  # in one instruction, or in what waits for one
            if waited > (GRACE if stuck else PATIENCE) and not (_now.held and _now.losing):
                _leave_now(signum)


def _next(pipe: socket.socket) -> int | None:
    """Returns the next signal that asks to leave, or None when nobody listens to signals any more."""
    while number := pipe.recv(1):
        # A server answers signals by itself while it serves.
        if number[0] in SIGNALS and signal.getsignal(number[0]) is _answer:
            return number[0]
    return None


def _leave_now(signum: int) -> None:
    """Ends the process without its main thread, children included."""
    for child in multiprocessing.active_children():
        child.terminate()
    with contextlib.suppress(OSError):
        if os.isatty(1):
            os.write(1, b"\x1b[?25h\n")  # a progress bar hides the cursor
        os.write(2, f"{message(signum)}\n".encode())
    os._exit(128 + signum)
