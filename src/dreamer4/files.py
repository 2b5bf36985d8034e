"""Small files that anyone may have written, read before they are trusted; what is written appears at once."""

import contextlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from dreamer4.errors import InputError


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


def read_bytes(path: Path, *, limit: int) -> bytes:
    """Returns the content of a regular file.

    Args:
        path: the file.
        limit: most bytes that such a file has reason to hold; more are refused before they are read.

    Raises:
        InputError: if it cannot be read, is not a regular file (reading a pipe may never end), or is larger.
    """
    try:
        about = os.stat(path)
        if not stat.S_ISREG(about.st_mode):
            raise InputError(f"Cannot read {path}: it is not a file.")
        with path.open("rb") as stream:
            # Not by the size that stat tells alone, for a file may grow meanwhile.
            content = stream.read(limit + 1) if about.st_size <= limit else b""
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"Cannot read {path}: {getattr(error, 'strerror', None) or error}.") from None
    if max(about.st_size, len(content)) > limit:
        raise InputError(f"Cannot read {path}: it is larger than {limit} bytes, which no such file is.")
    return content


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file, replacing an earlier one at once, so that no reader meets half a file; parents are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own for each writer: two that shared one would tear each other's file.
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def check_place(path: Path) -> None:
    """Refuses a place where no file or folder can be made, before the work for it is done; leaves nothing behind."""
    folder = next(place for place in path.absolute().parents if os.path.lexists(place))
    probe = folder / f".{path.name}.{secrets.token_hex(4)}.tmp"
    try:
        os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        probe.unlink()
    except OSError as error:
        raise InputError(f"{path} cannot be written: {folder}: {error.strerror}. Choose another place.") from error


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Makes a folder that appears whole or not at all; missing parents are made.

    Yields a hidden folder beside it, which no other process writes to. At the end of the block it takes the name
    `path`; if the block raises, it is removed. What processes that were killed have left of the same folder is removed
    first, and what is still being written stays.

    Args:
        path: the folder; it must not exist.

    Raises:
        InputError: if it exists at the beginning of the block or at its end, or cannot be made.
    """
    if os.path.lexists(path):
        raise InputError(f"{path} exists, and is never overwritten. Choose another folder, or remove it.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        hidden, lock = _hidden(path)
    except OSError as error:
        in_the_way = isinstance(error, FileExistsError | NotADirectoryError)
        reason = "a part of its path is a file" if in_the_way else error.strerror or error
        raise InputError(f"{path} cannot be made: {reason}. Choose a folder that can be written.") from error
    try:
        yield hidden
        try:
            hidden.rename(path)
        except OSError as error:
            if not os.path.lexists(path):
                raise
            raise InputError(
                f"{path} exists by now: another process wrote it meanwhile, and it is never overwritten. "
                "Choose another folder."
            ) from error
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)
        raise
    finally:
        if lock is not None:
            os.close(lock)


@contextlib.contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Asks whoever would remove a folder to let it be until the end of the block, where the disk knows locks."""
    with contextlib.ExitStack() as stack:
        if fcntl is not None:
            with contextlib.suppress(OSError):
                descriptor = os.open(folder, os.O_RDONLY)
                stack.callback(os.close, descriptor)
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield


def is_read(folder: Path) -> bool:
    """Whether a process reads a folder just now, as far as locks tell."""
    try:
        lock = _lock(folder)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    if lock is not None:
        os.close(lock)
    return False


def _hidden(path: Path) -> tuple[Path, int | None]:
    """Makes a hidden folder, and locks it until the returned descriptor is closed, or the process ends."""
    while True:
        # Not by tempfile, whose folders nobody else may read; they would stay so under their name.
        hidden = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        hidden.mkdir()
        # Before it is locked, it looks like a leftover to others, who may remove it.
        with contextlib.suppress(BlockingIOError, FileNotFoundError):
            lock = _lock(hidden)
            if hidden.exists():
                return hidden, lock
            if lock is not None:
                os.close(lock)


def _remove_leftovers(path: Path) -> None:
    named = re.compile(re.escape(f".{path.name}.") + r"[0-9a-f]{8}\.tmp")
    for leftover in [entry for entry in path.parent.iterdir() if named.fullmatch(entry.name)]:
        with contextlib.suppress(BlockingIOError, FileNotFoundError):
            lock = _lock(leftover)
            if lock is not None:
                shutil.rmtree(leftover, ignore_errors=True)
                os.close(lock)


def _lock(folder: Path) -> int | None:
    """Locks a folder until the returned descriptor is closed; None where a system or a disk knows no locks.

    Raises:
        BlockingIOError: if another process has locked it.
        FileNotFoundError: if it is gone.
    """
    if fcntl is None:
        return None
    descriptor = None
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if descriptor is not None:
            os.close(descriptor)
        if isinstance(error, BlockingIOError | FileNotFoundError):
            raise
        return None
    return descriptor
