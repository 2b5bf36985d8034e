"""Where compiled programs are kept between starts: compiling is most of what a short run waits for.

JAX reads its settings from the environment when it is imported, so they are made there, before it is. Nothing is
created here: the folder appears when the first program is written to it.
"""

import os
import sys
from pathlib import Path


OFF = "off"


def enable(choice: str | None) -> bool:
    """Tells JAX, which must not be imported yet, where to keep compiled programs.

    Args:
        choice: a folder, or `off`. None: where JAX's own variables say, else in the user's cache folder.

    Returns:
        Whether what was asked for could be done. A folder that cannot be written to is not used.
    """
    if choice == OFF:
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
        return True
    # A start compiles hundreds of programs that take less than JAX's threshold of a second each.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    if choice is None and "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return True
    folder = Path(choice) if choice else _default()
    usable = folder is not None and writable(folder)
    if usable:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    return usable


def settle() -> dict[str, str]:
    """Takes JAX's switches out of the environment that would change what a run computes.

    Returns them by name. A run that goes on without them, or with others, would go on as another run.
    """
    names = ("JAX_ENABLE_X64", "JAX_DEFAULT_PRNG_IMPL", "JAX_THREEFRY_PARTITIONABLE")
    return {name: value for name in names if (value := os.environ.pop(name, None)) is not None}


def _default() -> Path | None:
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():  # unset; or relative, which the XDG specification tells to ignore
        home = Path(os.path.expanduser("~"))
        if not home.is_absolute():  # a user without a home
            return None
        base = home / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    return base / "dreamer4" / "xla"


def writable(folder: Path) -> bool:
    """Returns whether a folder, which need not exist yet, can be written to."""
    folder = folder.absolute()
    existing = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
