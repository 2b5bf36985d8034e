"""Checkpoints: the arrays of any PyTree on disk, such that damage cannot pass for weights.

A checkpoint is a folder: Orbax writes the arrays under `arrays/`, and `manifest.json`, written last, states the shape,
the type and the SHA-256 of every leaf, the size and the SHA-256 of every file, and its own SHA-256. Orbax alone would
load a flipped bit without a word and would cast a leaf of another type; the manifest refuses both. The folder is built
under a temporary name and renamed when it is complete, so a process that dies while saving leaves nothing that looks
like a checkpoint.

A leaf is known by its dotted path in the tree (`model.dynamics.transformer.groups.space.attention.query.weight`), not
by its place in a list, so a message can name it and a part can be read alone (`load(path, like, at="model")`). Nothing
here knows a model: a state stacked over training seeds is a tree of arrays like any other.
"""

import hashlib
import importlib.metadata
import json
import math
import os
import platform
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from dreamer4.errors import InputError


SCHEMA = 1
MANIFEST = "manifest.json"
_ARRAYS = "arrays"
_LIBRARIES = ("dreamer4-eqx", "jax", "jaxlib", "equinox", "optax", "orbax-checkpoint", "numpy")


def save(path: Path, tree: PyTree, *, meta: Mapping[str, Any]) -> None:
    """Writes the arrays of `tree` into the new folder `path`, completely or not at all.

    Args:
        path: the folder to create; parent folders are created as needed.
        tree: any PyTree. Leaves that are not arrays (functions, Python numbers, strings) are not written.
        meta: what a reader needs to build the tree again, as JSON: configuration, data specification, step.

    Raises:
        InputError: if `path` exists, or a leaf cannot be saved.
    """
    if path.exists():
        raise InputError(f"Cannot save a checkpoint to {path}: it exists. Remove it or choose another folder.")
    leaves = _named_arrays(tree)
    for name, leaf in leaves.items():
        _check_savable(name, leaf)
    temporary = path.parent / f".{path.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        _write_arrays(temporary / _ARRAYS, {name: jnp.asarray(leaf) for name, leaf in leaves.items()})
        manifest = {
            "schema": SCHEMA,
            "meta": dict(meta),
            "libraries": _library_versions(),
            "leaves": {
                name: {"shape": list(leaf.shape), "dtype": str(leaf.dtype), "sha256": _hash_leaf(leaf)}
                for name, leaf in leaves.items()
            },
            "files": {str(f.relative_to(temporary)): _describe_file(f) for f in _files(temporary)},
        }
        (temporary / MANIFEST).write_bytes(_encode(manifest))
        _flush(temporary)
        os.rename(temporary, path)
        _flush_entry(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def load(path: Path, like: PyTree, *, at: str = "") -> PyTree:
    """Reads a checkpoint into a tree of the structure of `like`.

    Names, shapes, types and files are checked before anything is built, every array's SHA-256 after it is read.

    Args:
        path: a folder written by `save`.
        like: a tree of arrays or of `jax.ShapeDtypeStruct` (as `eqx.filter_eval_shape` returns it). Its other leaves
            are taken over into the result, and its shardings are kept.
        at: dotted path of the part of the saved tree that `like` describes, for instance `"model"`; empty for all.

    Raises:
        InputError: if the checkpoint is missing or damaged (the message names the file), or if a leaf is missing, left
            over, or of another shape or type (the message names the first such leaf, and both sides).
    """
    manifest = _read_manifest(path)
    dynamic, static = eqx.partition(like, _is_abstract_array)
    wanted = _named_arrays(dynamic, at)
    _compare(path, _within(manifest["leaves"], at), wanted)
    if problems := _file_problems(path, manifest):
        raise InputError(f"Checkpoint {path} is damaged: {'; '.join(problems)}. Use another checkpoint.")
    arrays = _read_arrays(path / _ARRAYS, wanted)
    for name, array in arrays.items():
        if _hash_leaf(array) != manifest["leaves"][name]["sha256"]:
            raise InputError(
                f"Checkpoint {path} is damaged: leaf {name} is not what was saved. Use another checkpoint."
            )
    return eqx.combine(jax.tree.unflatten(jax.tree.structure(dynamic), list(arrays.values())), static)


def read_meta(path: Path) -> dict[str, Any]:
    """Returns the `meta` given to `save`, without reading an array.

    Raises:
        InputError: if there is no checkpoint at `path`, or its manifest is damaged.
    """
    return _read_manifest(path)["meta"]


def read_leaves(path: Path, *, at: str = "") -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shape and the type of every saved leaf by its dotted path; raises as `read_meta`."""
    leaves = _within(_read_manifest(path)["leaves"], at)
    return {name: jax.ShapeDtypeStruct(tuple(leaf["shape"]), leaf["dtype"]) for name, leaf in leaves.items()}


def verify(path: Path) -> list[str]:
    """Returns what is wrong with the checkpoint at `path`, one sentence each; empty if it is whole."""
    try:
        manifest = _read_manifest(path)
    except InputError as error:
        return [str(error)]
    return _file_problems(path, manifest)


class Checkpoints:
    """A folder of checkpoints numbered by training step, `<root>/<step>/`.

    One process may write at a time. Folders left behind by a process that died are ignored, and removed at the next
    save.

    Args:
        root: the folder; it is created at the first save.
        keep: number of newest steps to keep; None keeps all.
    """

    root: Path
    keep: int | None

    def __init__(self, root: Path, *, keep: int | None = None):
        if keep is not None and keep < 1:
            raise InputError(f"Checkpoints.keep: got {keep}, expected at least 1, or None to keep all.")
        self.root = root
        self.keep = keep

    def path(self, step: int) -> Path:
        """Returns the folder of a step, whether it exists or not."""
        return self.root / str(step)

    def steps(self) -> list[int]:
        """Returns the numbers of the steps on disk in ascending order, damaged ones included."""
        if not self.root.is_dir():
            return []
        return sorted(int(p.name) for p in self.root.iterdir() if _is_step(p.name) and p.is_dir())

    def save(self, step: int, tree: PyTree, meta: Mapping[str, Any]) -> Path:
        """Saves a step, then removes steps beyond `keep`. Returns the folder of the step.

        A damaged checkpoint of the same step is replaced: a run that fell back to an older step comes past it again.

        Raises:
            InputError: if a whole checkpoint of this step exists, or a leaf cannot be saved.
        """
        path = self.path(step)
        for leftover in self.root.glob(".*.tmp"):
            shutil.rmtree(leftover)
        if path.exists():
            if not verify(path):
                raise InputError(
                    f"Cannot save step {step}: {path} holds a whole checkpoint. Choose another run folder."
                )
            _discard(path)
        save(path, tree, meta=meta)
        self._retain()
        return path

    def latest_valid(self) -> Path | None:
        """Returns the newest whole checkpoint, or None if no step was ever saved.

        Damaged steps that are passed over are named in one warning.

        Raises:
            InputError: if there are steps, but all are damaged; to start afresh unasked would bury the loss.
        """
        refused = []
        for step in reversed(self.steps()):
            problems = verify(self.path(step))
            if not problems:
                if refused:
                    warnings.warn(f"Falling back to {self.path(step)}. {_list_refused(refused)}", stacklevel=2)
                return self.path(step)
            refused.append((step, problems))
        if refused:
            raise InputError(
                f"No whole checkpoint in {self.root}. {_list_refused(refused)} Restore a copy or start a new run."
            )
        return None

    def _retain(self) -> None:
        if self.keep is None:
            return
        steps = self.steps()
        kept, surplus = steps[-self.keep :], steps[: -self.keep]
        if surplus and any(not verify(self.path(step)) for step in reversed(kept)):
            for step in surplus:
                _discard(self.path(step))


def _named_arrays(tree: PyTree, at: str = "") -> dict[str, Any]:
    """Returns the array leaves of a tree by dotted path, each path beginning with `at`."""
    named = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(eqx.filter(tree, _is_abstract_array)):
        name = ".".join(part for part in (at, jax.tree_util.keystr(path, simple=True, separator=".")) if part) or "leaf"
        if name in named:
            raise InputError(
                f"Two leaves of the tree have the path {name}. Rename the dictionary key that has a dot in it."
            )
        named[name] = leaf
    return named


def _is_abstract_array(leaf: Any) -> bool:
    return eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)


def _check_savable(name: str, leaf: Any) -> None:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        raise InputError(f"Cannot save leaf {name}: it is a shape without values.")
    if jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
        raise InputError(
            f"Cannot save leaf {name}: got type {leaf.dtype}, expected plain numbers. Use jax.random.key_data."
        )
    if jnp.asarray(leaf).dtype != leaf.dtype:
        raise InputError(
            f"Cannot save leaf {name}: JAX would cast its {leaf.dtype}. Convert it, or enable 64-bit types."
        )


def _within(leaves: dict[str, Any], at: str) -> dict[str, Any]:
    return {name: leaf for name, leaf in leaves.items() if not at or name == at or name.startswith(at + ".")}


def _compare(path: Path, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raises an InputError that names the first leaf in which the two sides differ."""

    def of_saved(name: str) -> str:
        return f"{tuple(saved[name]['shape'])} {saved[name]['dtype']}" if name in saved else "nothing"

    def of_wanted(name: str) -> str:
        return f"{tuple(wanted[name].shape)} {wanted[name].dtype}" if name in wanted else "nothing"

    differing = [
        name for name in [*wanted, *(n for n in saved if n not in wanted)] if of_saved(name) != of_wanted(name)
    ]
    if differing:
        name, *others = differing
        more = f" ({len(others)} more leaves differ.)" if others else ""
        raise InputError(
            f"Checkpoint {path} does not fit: leaf {name} was saved as {of_saved(name)}, wanted is "
            f"{of_wanted(name)}.{more} "
            "Use the configuration that the checkpoint was saved with."
        )


def _write_arrays(folder: Path, leaves: dict[str, jax.Array]) -> None:
    from orbax.checkpoint import v1 as ocp  # takes two seconds to import, and most callers only read metadata

    # Orbax refuses arrays without elements, and trees without arrays; the manifest says all there is to know of them.
    filled = {name: leaf for name, leaf in leaves.items() if leaf.size}
    folder.parent.mkdir(parents=True, exist_ok=True)
    if filled:
        ocp.save(str(folder.absolute()), filled)


def _read_arrays(folder: Path, wanted: dict[str, Any]) -> dict[str, jax.Array]:
    from orbax.checkpoint import v1 as ocp

    default = jax.device_put(0).sharding
    # A shape may have no sharding, and a NumPy array never has one.
    shardings = {n: w.sharding if isinstance(w, jax.Array | jax.ShapeDtypeStruct) else None for n, w in wanted.items()}
    abstract = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=shardings[name] or default)
        for name, leaf in wanted.items()
        if math.prod(leaf.shape)
    }
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context:
        filled = ocp.load(str(folder.absolute()), abstract) if abstract else {}
    return {name: filled[name] if name in filled else jnp.zeros(w.shape, w.dtype) for name, w in wanted.items()}


def _read_manifest(path: Path) -> dict[str, Any]:
    """Returns the manifest after checking that every byte of it is as written."""
    file = path / MANIFEST
    if not path.is_dir():
        raise InputError(f"No checkpoint at {path}: there is no such folder.")
    try:
        raw = file.read_bytes()
    except FileNotFoundError:
        raise InputError(f"No checkpoint at {path}: it has no {MANIFEST}, so saving never finished.") from None
    except OSError as error:
        raise InputError(f"Cannot read {file}: {error.strerror}.") from None
    try:
        manifest = json.loads(raw)
        manifest.pop("sha256")
        intact = _encode(manifest) == raw
    except (ValueError, KeyError, AttributeError, RecursionError):
        intact = False
    if not intact:
        raise InputError(f"Checkpoint {path} is damaged: {MANIFEST} is not as it was written. Use another checkpoint.")
    if manifest["schema"] != SCHEMA:
        raise InputError(f"Checkpoint {path} has schema {manifest['schema']}, this version of dreamer4 reads {SCHEMA}.")
    return manifest


def _encode(manifest: dict[str, Any]) -> bytes:
    """Returns the manifest as JSON, with the SHA-256 of its own text as last entry."""
    # Encoded twice, because JSON turns integer keys into strings and tuples into lists: what is read back must encode
    # to the same bytes, or a change of a byte that JSON does not care for could hide.
    body = json.loads(json.dumps(manifest, allow_nan=False))
    digest = hashlib.sha256(json.dumps(body).encode()).hexdigest()
    return (json.dumps({**body, "sha256": digest}, indent=1) + "\n").encode()


def _file_problems(path: Path, manifest: dict[str, Any]) -> list[str]:
    problems = []
    for name, known in manifest["files"].items():
        file = path / name
        try:
            if file.stat().st_size != known["bytes"]:
                problems.append(f"file {name} has {file.stat().st_size} bytes, was written with {known['bytes']}")
            elif _describe_file(file) != known:
                problems.append(f"file {name} has another SHA-256 than when it was written")
        except FileNotFoundError:
            problems.append(f"file {name} is missing")
        except OSError as error:
            problems.append(f"file {name} cannot be read ({error.strerror})")
    return problems


def _files(folder: Path) -> list[Path]:
    return sorted(f for f in folder.rglob("*") if f.is_file())


def _describe_file(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"bytes": file.stat().st_size, "sha256": digest}


def _hash_leaf(leaf: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data).hexdigest()


def _library_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def _is_step(name: str) -> bool:
    return name.isascii() and name.isdigit() and str(int(name)) == name


def _discard(path: Path) -> None:
    """Removes a checkpoint; renamed first, so that a half-removed one is never seen under its number."""
    hidden = path.parent / f".{path.name}.old.tmp"
    shutil.rmtree(hidden, ignore_errors=True)
    os.rename(path, hidden)
    shutil.rmtree(hidden)


def _list_refused(refused: list[tuple[int, list[str]]]) -> str:
    return " ".join(f"Step {step} is refused: {'; '.join(problems)}." for step, problems in refused)


def _flush(folder: Path) -> None:
    """Makes sure that a power cut after the rename cannot leave empty files behind it."""
    for entry in [*folder.rglob("*"), folder]:
        _flush_entry(entry)


def _flush_entry(entry: Path) -> None:
    descriptor = os.open(entry, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
