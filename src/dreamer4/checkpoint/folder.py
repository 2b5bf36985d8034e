"""One checkpoint: a folder that is written whole or not at all, and read whole or not at all."""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import equinox as eqx
import jax
from jaxtyping import PyTree

from dreamer4.checkpoint import arrays, tensors
from dreamer4.checkpoint.leaves import (
    check_savable,
    compare,
    hash_leaf,
    is_abstract_array,
    named_arrays,
    sharding_of,
    within,
)
from dreamer4.checkpoint.manifest import MANIFEST, Manifest, describe_file, encode, file_problems, read
from dreamer4.errors import InputError
from dreamer4.files import reading


EXPORTED = "dreamer4.json"
# The manifest's name tells which of the two kinds of arrays lie beside it.
_KINDS: dict[str, tuple[str, ModuleType]] = {"orbax": (MANIFEST, arrays), "safetensors": (EXPORTED, tensors)}


def save(path: Path, tree: PyTree, *, meta: Mapping[str, Any], kind: Literal["orbax", "safetensors"] = "orbax") -> None:
    """Writes the arrays of `tree` into the new folder `path`, completely or not at all.

    Args:
        path: the folder to create; parent folders are created as needed.
        tree: any PyTree. Leaves that are not arrays (functions, Python numbers, strings) are not written.
        meta: what a reader needs to build the tree again, as JSON: configuration, data specification, step.
        kind: how the arrays are kept.

    Raises:
        InputError: if `path` exists, a leaf cannot be saved, or the disk is full or cannot be written; nothing is left
            behind then. What the system said is the cause of the error.
    """
    name, store = _KINDS[kind]
    leaves = named_arrays(tree)
    for leaf_name, leaf in leaves.items():
        check_savable(leaf_name, leaf)
    temporary = path.parent / f".{path.name}.tmp"
    try:
        if os.path.lexists(path):
            raise InputError(f"Cannot save a checkpoint to {path}: it exists. Remove it or choose another folder.")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        store.write(temporary, leaves)
        files = {str(f.relative_to(temporary)): describe_file(f) for f in _files(temporary)}
        (temporary / name).write_bytes(encode(meta, leaves, files))
        _flush(temporary)
        os.rename(temporary, path)
        _flush_entry(path.parent)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise InputError(
            f"Cannot save a checkpoint to {path}: {error.strerror or error}. Free or choose a disk that can be written."
        ) from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def load(path: Path, like: PyTree, *, at: str = "", added: Sequence[str] = ()) -> PyTree:
    """Reads a checkpoint into a tree of the structure of `like`.

    Names, shapes, types and files are checked before anything is built, every array's SHA-256 after it is read.
    What was saved in half precision is widened to the type of `like`, which loses nothing.

    Args:
        path: a folder written by `save`.
        like: a tree of arrays or of `jax.ShapeDtypeStruct` (as `eqx.filter_eval_shape` returns it). Its other leaves
            are taken over into the result, and its shardings are kept.
        at: dotted path of the part of the saved tree that `like` describes, for instance `"model"`; empty for all.
        added: dotted paths of parts that earlier versions had not. Where a checkpoint holds nothing of such a part,
            that of `like` is taken over.

    Raises:
        InputError: if the checkpoint is missing or damaged (the message names the file), or if a leaf is missing, left
            over, or of another shape or type (the message names the first such leaf, and both sides).
    """
    with reading(path):
        return _load(path, like, at, added)


def _load(path: Path, like: PyTree, at: str, added: Sequence[str]) -> PyTree:
    known = read_manifest(path)
    dynamic, static = eqx.partition(like, is_abstract_array)
    given = named_arrays(dynamic, at)
    lacking = [part for part in added if not within(known.leaves, part)]
    wanted = {name: leaf for name, leaf in given.items() if not any(within({name: leaf}, part) for part in lacking)}
    saved = {name: leaf.struct for name, leaf in within(known.leaves, at).items()}
    compare(path, saved, wanted)
    if problems := file_problems(path, known):
        raise InputError(f"Checkpoint {path} is damaged: {'; '.join(problems)}. Use another checkpoint.")
    _, store = _kind(path)
    loaded = store.read(path, {name: _as_saved(leaf, saved[name].dtype) for name, leaf in wanted.items()})
    for name, array in loaded.items():
        if hash_leaf(array) != known.leaves[name].sha256:
            raise InputError(
                f"Checkpoint {path} is damaged: leaf {name} is not what was saved. Use another checkpoint."
            )
    leaves = [loaded[name].astype(leaf.dtype) if name in loaded else leaf for name, leaf in given.items()]
    return eqx.combine(jax.tree.unflatten(jax.tree.structure(dynamic), leaves), static)


def _as_saved(leaf: Any, dtype: Any) -> Any:
    if leaf.dtype == dtype:
        return leaf
    return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding_of(leaf))


def check(path: Path, like: PyTree, *, at: str = "") -> None:
    """Refuses a checkpoint whose leaves do not fit `like`, as `load` would; no array is read."""
    compare(path, read_leaves(path, at=at), named_arrays(like, at))


def is_checkpoint(path: Path) -> bool:
    """Whether a folder holds a checkpoint of either kind, whole or not."""
    return any((path / name).exists() for name, _ in _KINDS.values())


def read_manifest(path: Path) -> Manifest:
    """Returns what a checkpoint says about itself, without reading an array.

    Raises:
        InputError: if there is no checkpoint at `path`, its manifest is damaged, or it is of a newer version.
    """
    name, _ = _kind(path)
    return read(path / name)


def read_meta(path: Path) -> dict[str, Any]:
    """Returns the `meta` given to `save`; raises as `read_manifest`."""
    return read_manifest(path).meta


def read_leaves(path: Path, *, at: str = "") -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shape and the type of every saved leaf by its dotted path; raises as `read_manifest`."""
    return {name: leaf.struct for name, leaf in within(read_manifest(path).leaves, at).items()}


def verify(path: Path) -> list[str]:
    """Returns what is wrong with the checkpoint at `path`, one sentence each; empty if it is whole."""
    try:
        return file_problems(path, read_manifest(path))
    except InputError as error:
        return [str(error)]


def _kind(path: Path) -> tuple[str, ModuleType]:
    try:
        if not path.is_dir():
            raise InputError(f"No checkpoint at {path}: there is no such folder.")
        for name, store in _KINDS.values():
            if os.path.lexists(path / name):
                return name, store
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from None
    raise InputError(f"No checkpoint at {path}: it has no {MANIFEST}, so saving never finished.")


def _files(folder: Path) -> list[Path]:
    return sorted(f for f in folder.rglob("*") if f.is_file())


def _flush(folder: Path) -> None:
    """Makes sure that a power cut after the rename cannot leave empty files behind it."""
    for entry in [*folder.rglob("*"), folder]:
        _flush_entry(entry)


def _flush_entry(entry: Path) -> None:
    if os.name == "nt":  # which opens no folders, and flushes nothing that is open for reading
        return
    descriptor = os.open(entry, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
