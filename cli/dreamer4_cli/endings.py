"""How a command warns, and how it may end otherwise than well: one message on stderr, and an exit code.

    1      a training that came to nothing
    2      bad input, a disk that takes no more, or too little memory
    130    SIGINT (Ctrl-C)
    143    SIGTERM, and 128 + n for the other signals of `stopping`

Any other exception is a defect and keeps its traceback.
"""

import contextlib
import errno
import os
import re
import signal
import warnings
from collections.abc import Iterator
from typing import Any

import typer
import typer.core

from dreamer4 import allocator
from dreamer4.errors import DivergenceError, InputError
from dreamer4.run import stopping


# What a disk says that is full, closed or gone: nothing that a program could have known better.
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
# What is said of a path that cannot be what it is to be.
_PATH = {errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP}


class Commands(typer.core.TyperGroup):
    """The group of commands, and the one place where bad input and interrupts become messages and exit codes."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Reads the arguments, in which ~ is the home folder, also behind an =, where no shell says so.

        What --import names may stand anywhere before a --, and is read first.
        """
        for before, arg in zip(["", *args], args, strict=False):
            # A path that is empty would be the working folder.
            if before != "--root-path" and (not arg or re.fullmatch("--[a-z-]+=", arg) and arg != "--root-path="):
                name = arg.rstrip("=") or before
                raise typer.BadParameter(f"nothing stands behind {name}, as where a variable of the shell is not set.")
        first, rest = [], [_at_home(arg) for arg in args]
        end = rest.index("--") if "--" in rest else len(rest)
        for i in reversed(range(end)):
            if rest[i] == "--import" or rest[i].startswith("--import="):
                size = 2 if rest[i] == "--import" else 1
                first[:0] = rest[i : i + size]
                del rest[i : i + size]
        return super().parse_args(ctx, first + rest)

    def invoke(self, ctx: Any) -> Any:
        """Runs the chosen command."""
        allocator.keep_freed()  # before the first thread starts, which would else have an arena that others share
        try:
            with _warnings_as_messages(), stopping.installed():
                return super().invoke(ctx)
        except BaseException as error:
            if (end := _end_of(error)) is None:
                raise
            message, code = end
            complain(message)
            raise typer.Exit(code) from None


def _end_of(error: BaseException) -> tuple[str, int] | None:
    """Returns message and exit code of an end that is no defect."""
    match error:
        case typer.Exit() | typer.Abort():  # RuntimeErrors too, of which no device is at fault
            return None
        case InputError():
            return f"Error: {error}", 2
        case DivergenceError():
            return f"Error: {error}", 1
        case KeyboardInterrupt():
            number = error.signum if isinstance(error, stopping.Stopped) else signal.SIGINT
            return stopping.message(number), 128 + number
        case RuntimeError() | AssertionError() | MemoryError() if said := _no_memory(error) or _no_device():
            return f"Error: {said}", 2
        case FileNotFoundError() if error.filename is None:  # of no file, as os.getcwd raises it
            return "Error: the working folder is gone. Change to one that is there.", 2
        case OSError() if error.errno in _DISK | _PATH:
            remedy = "Choose another path" if error.errno in _PATH else "Free or choose a disk that is open to us"
            return f"Error: {error.filename or 'A file'}: {error.strerror}. {remedy}.", 2
    return None


def _no_memory(error: Exception) -> str | None:
    """Returns what to do where memory ended, which NumPy and Python tell of by `MemoryError`, JAX by its message."""
    if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
        return None
    from dreamer4.run.memory import ADVICE

    said = " ".join(str(error).split())[:200].rstrip(".") or "Python could not have more"
    return f"Out of memory. {said}. {ADVICE} {stopping.noted()}".strip()


def _no_device() -> str | None:
    """Returns what is wrong with the device that the environment asks for; None if JAX has it, or was not asked."""
    asked = os.environ.get("JAX_PLATFORMS") or os.environ.get("JAX_PLATFORM_NAME")
    if not asked:
        return None
    import jax

    try:
        jax.devices()
    except Exception as error:  # of whatever kind, an assertion of JAX's among them
        said = " ".join(str(error).split())[:160]
        return f"JAX_PLATFORMS: got {asked!r}, and JAX has no such device here. {said} Unset it, or install JAX for it."
    return None


def _at_home(arg: str) -> str:
    name, sign, path = arg.partition("=") if arg.startswith("-") else ("", "", arg)
    return name + sign + os.path.expanduser(path) if path.startswith("~") else arg


@contextlib.contextmanager
def _warnings_as_messages() -> Iterator[None]:
    """Shows warnings that are meant for users without the line of code that gave them; others stay as they are."""
    with warnings.catch_warnings():
        as_it_was = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if category is UserWarning:
                complain(f"Warning: {message}", style="yellow")
            else:
                as_it_was(message, category, *where, **more)

        warnings.showwarning = show
        yield


def complain(message: str, style: str = "red") -> None:
    """Prints a message on stderr."""
    from rich.console import Console
    from rich.text import Text

    # What a user typed may hold terminal control codes; they are shown, not obeyed.
    safe = "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in message)
    Console(stderr=True, highlight=False).print(Text(safe, style=style), soft_wrap=True)
