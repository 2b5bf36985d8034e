"""Work in processes of its own: several side by side, one piece of work each, all ended together."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any

from dreamer4 import allocator
from dreamer4.errors import InputError
from dreamer4.run import stopping


class Workers:
    """Up to a number of processes at work.

    Each piece of work has a process to itself, whose compiled programs and buffers burden no other, and a channel to
    itself, so that one that is ended while it writes to it leaves no lock behind for the others to wait at. If the
    block is left while some are at work, by an error of one of them or by Ctrl-C, all are asked to leave, and waited
    for. If this process is killed, they end after the piece that they are at.
    """

    def __init__(self, most: int):
        """Begins with none.

        Args:
            most: processes at work at the same time, at least 1.
        """
        self.most = most
        self._running: dict[Future[None], tuple[str, ProcessPoolExecutor]] = {}

    @property
    def names(self) -> list[str]:
        """What is at work."""
        return [name for name, _ in self._running.values()]

    @property
    def free(self) -> bool:
        """Whether one more may begin."""
        return len(self._running) < self.most

    def begin(
        self, name: str, function: Callable[..., None], *args: Any, variables: Mapping[str, str] | None = None
    ) -> None:
        """Begins `function(*args)`, both to be pickled, in a new process, with `variables` in its environment."""
        # One pool for each: by `max_tasks_per_child` a successor would wait at the lock of one that was ended.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(1, context, initializer=_begin_process, initargs=(dict(variables or {}),))
        self._running[pool.submit(function, *args)] = name, pool

    def finish(self) -> str:
        """Waits until a piece is done, and returns its name.

        Raises:
            InputError: if a process ended without a word, as it does where a system that runs out of memory kills it.
            Exception: what the work raised.
        """
        future = next(iter(wait(self._running, return_when=FIRST_COMPLETED).done))
        name, pool = self._running[future]
        pool.shutdown()
        del self._running[future]
        try:
            future.result()
        except BrokenProcessPool as error:
            raise InputError(
                f"{name}: its process ended without a word, most likely because memory ran out; log.txt in its folder "
                "tells how far it came. The same command goes on; with --workers 1 it needs the least memory."
            ) from error
        return name

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            for child in multiprocessing.active_children():
                child.terminate()
        with stopping.hold():  # until they have saved
            for _, pool in self._running.values():
                pool.shutdown()


def _begin_process(variables: dict[str, str]) -> None:
    os.environ.update(variables)
    allocator.keep_freed()  # each process has a C library to be told
    # A terminal sends Ctrl-C to all of its processes. Asked once more by the one that began them, they would take that
    # for the second Ctrl-C, at which nothing is saved.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # this process was begun by another
    parent.join()
    while signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:  # at a piece of work, which answers signals itself
        time.sleep(0.1)
    os._exit(1)
