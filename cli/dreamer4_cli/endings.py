"""How a command warns, and how it may end otherwise than well: one message on stderr, and an exit code.

    1      a training that came to nothing
    2      bad input, or a disk that takes no more
    130    SIGINT (Ctrl-C)
    143    SIGTERM, and 128 + n for the other signals of `stopping`

Any other exception is a defect and keeps its traceback.
"""

import contextlib
import errno
import os
import signal
import warnings
from collections.abc import Iterator
from typing import Any

import typer
import typer.core

from dreamer4.errors import DivergenceError, InputError
from dreamer4.run import stopping


# What a disk says that is full, closed or gone: nothing that a program could have known better.
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
# What is said of a path that cannot be what it is to be.
_PATH = {errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP}


class Commands(typer.core.TyperGroup):
    """The group of commands, and the one place where bad input and interrupts become messages and exit codes."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Reads the arguments, in which ~ is the home folder, also behind an =, where no shell says so.

        What --import names may stand anywhere before a --, and is read first.
        """
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
        except (typer.Exit, typer.Abort):  # RuntimeErrors too, of which no device is at fault
            raise
        except (RuntimeError, AssertionError):
            if (said := _no_device()) is None:
                raise
            complain(f"Error: {said}")
            raise typer.Exit(2) from None
        except OSError as error:
            if error.errno not in _DISK | _PATH:
                raise
            remedy = "Choose another path" if error.errno in _PATH else "Free or choose a disk that is open to us"
            complain(f"Error: {error.filename or 'A file'}: {error.strerror}. {remedy}.")
            raise typer.Exit(2) from None


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
