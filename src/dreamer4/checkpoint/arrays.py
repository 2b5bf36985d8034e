"""Arrays by Orbax: what a run saves, sharded or not, and goes on from."""

import contextlib
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from dreamer4.checkpoint.leaves import sharding_of
from dreamer4.errors import InputError


_FOLDER = "arrays"


def write(folder: Path, leaves: Mapping[str, Any]) -> None:
    """Writes arrays by name below a folder, which need not exist.

    Raises:
        OSError: if the disk is full or cannot be written.
    """
    from orbax.checkpoint import v1 as ocp  # takes two seconds to import, and most callers only read metadata

    # Orbax refuses arrays without elements, and trees without arrays; the manifest says all there is to know of them.
    filled = {name: jnp.asarray(leaf) for name, leaf in leaves.items() if leaf.size}
    folder.mkdir(parents=True, exist_ok=True)
    if not filled:
        return
    context = ocp.Context()
    context.array.saving.use_compression = False  # weights hardly shrink, and files so bound what a reader allocates
    try:
        with context, _plainly_named(folder) as plain:
            ocp.save(str(plain / _FOLDER), filled)
    except ValueError as error:
        # TensorStore tells what the system said in its text alone.
        if code := re.search(r"os_error_code='(\d+)'", str(error)):
            raise OSError(int(code[1]), os.strerror(int(code[1]))) from error
        raise
    # It holds nothing but the path on this machine, which is nobody else's business.
    (folder / _FOLDER / "commit_success.txt").unlink(missing_ok=True)


def read(folder: Path, wanted: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Returns the arrays of the given names, shapes, types and shardings.

    Raises:
        InputError: if Orbax cannot make sense of the files.
    """
    from orbax.checkpoint import v1 as ocp

    abstract = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding_of(leaf))
        for name, leaf in wanted.items()
        if math.prod(leaf.shape)
    }
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    try:
        with context, _plainly_named(folder) as plain:
            filled = ocp.load(str(plain / _FOLDER), abstract) if abstract else {}
    except Exception as error:  # files that agree with their manifest but were never Orbax's may raise anything
        raise InputError(f"Checkpoint {folder} cannot be read: {str(error)[:300]} Use another checkpoint.") from error
    return {name: filled[name] if name in filled else jnp.zeros(w.shape, w.dtype) for name, w in wanted.items()}


@contextlib.contextmanager
def _plainly_named(folder: Path) -> Iterator[Path]:
    """Yields a path of a folder in which Orbax and TensorStore read every character as itself.

    Brackets and stars are patterns to the one, a backslash is a separator to the other: arrays saved below `lr=[1e-3]`
    were never merged, and could not be read again.
    """
    path = folder.absolute()
    if not re.search(r"[^\w./ ~,=+@-]", "/".join(path.parts[1:])):
        yield path
        return
    with tempfile.TemporaryDirectory() as place:
        link = Path(place) / "checkpoint"
        link.symlink_to(path, target_is_directory=True)
        yield link
