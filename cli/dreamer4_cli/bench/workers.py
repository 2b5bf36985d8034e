"""Work in processes of its own: several side by side, one piece of work each, all ended together."""

import contextlib
import multiprocessing
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any

from dreamer4.errors import InputError
from dreamer4_cli import stopping


class Workers:
    """Up to a number of processes at work.

    Each piece of work has a process to itself, whose compiled programs and buffers burden no other, and a channel to
    itself, so that one that is ended in the middle of a word leaves no lock behind for the others to wait at. If the
    block is left while some are at work, by an error of one of them or by Ctrl-C, all are asked to leave, and waited
    for.
    """

    def __init__(self, most: int):
        """Begins with none.

        Args:
            most: processes at work at the same time, at least 1.
        """
        self.most = most
        self._running: dict[Future[None], tuple[str, ProcessPoolExecutor]] = {}
        self._pools = contextlib.ExitStack()

    @property
    def names(self) -> list[str]:
        """What is at work."""
        return [name for name, _ in self._running.values()]

    @property
    def free(self) -> bool:
        """Whether one more may begin."""
        return len(self._running) < self.most

    def begin(self, name: str, function: Callable[..., None], *args: Any) -> None:
        """Begins `function(*args)`, both to be pickled, in a new process."""
        pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        self._pools.callback(pool.shutdown)
        self._running[pool.submit(function, *args)] = name, pool

    def finish(self) -> list[str]:
        """Waits until something is done, and returns what.

        Raises:
            InputError: if a process was killed from outside, as systems do that run out of memory.
            Exception: what the work raised.
        """
        done = []
        for future in wait(self._running, return_when=FIRST_COMPLETED).done:
            name, pool = self._running.pop(future)
            pool.shutdown()
            try:
                future.result()
            except BrokenProcessPool as error:
                raise InputError(
                    f"{name}: its process was killed, most likely because memory ran out. The same command goes on; "
                    "with --workers 1 it needs the least."
                ) from error
            done.append(name)
        return done

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            for child in multiprocessing.active_children():
                child.terminate()
        with stopping.hold() if error is not None else contextlib.nullcontext():  # until they have saved
            self._pools.close()
