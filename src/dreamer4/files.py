"""Reading small files that anyone may have written, before a byte of them is trusted."""

import os
import stat
from pathlib import Path

from dreamer4.errors import InputError


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
