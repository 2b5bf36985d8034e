"""How a command warns, and how it may end otherwise than well: one message on stderr, and an exit code.

    1      a training that came to nothing
    2      bad input, or a disk that takes no more
    130    SIGINT (Ctrl-C)
    143    SIGTERM

Any other exception is a defect and keeps its traceback.
"""

import contextlib
import errno
import signal
import warnings
from collections.abc import Iterator
from typing import Any

import typer
import typer.core

from dreamer4.errors import DivergenceError, InputError
from dreamer4_cli import stopping


# What a disk says that is full, closed or gone: nothing that a program could have known better.
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
# What is said of a path that cannot be what it is to be.
_PATH = {errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP}


class Commands(typer.core.TyperGroup):
    """The group of commands, and the one place where bad input and interrupts become messages and exit codes."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the chosen command."""
        try:
            with _warnings_as_messages(), stopping.installed():
                return super().invoke(ctx)
        except InputError as error:
            complain(f"Error: {error}")
            raise typer.Exit(2) from None
        except DivergenceError as error:
            complain(f"Error: {error}")
            raise typer.Exit(1) from None
        except KeyboardInterrupt as error:
            number = error.signum if isinstance(error, stopping.Stopped) else signal.SIGINT
            complain(stopping.message(number))
            raise typer.Exit(128 + number) from None
        except OSError as error:
            if error.errno not in _DISK | _PATH:
                raise
            remedy = "Choose another path" if error.errno in _PATH else "Free or choose a disk that is open to us"
            complain(f"Error: {error.filename or 'A file'}: {error.strerror}. {remedy}.")
            raise typer.Exit(2) from None


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
