"""The manifest of a checkpoint: what it holds, and by which bytes one can tell that it still does.

It is JSON and ends with the SHA-256 of its own text. That envelope, the place of `schema` in it included, is the same
in every version, so that an older version can tell a newer manifest from a damaged one.
"""

import hashlib
import importlib.metadata
import json
import math
import platform
import stat
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from pydantic import BaseModel, ConfigDict, Field, JsonValue, NonNegativeInt, ValidationError, model_validator

from dreamer4.checkpoint.leaves import DTYPES, hash_leaf
from dreamer4.errors import InputError
from dreamer4.files import read_bytes


SCHEMA = 1
MANIFEST = "manifest.json"
_MAX_BYTES = 4 * 1024 * 1024
# What was saved compressed may hold this many bytes of values in one byte of its files. Trained weights hardly shrink;
# a folder that claims more is out to fill the memory of its reader.
_MAX_RATIO = 64
_LIBRARIES = ("dreamer4-eqx", "jax", "jaxlib", "equinox", "optax", "orbax-checkpoint", "numpy")

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Leaf(_Closed):
    """One array: its shape, its type by NumPy's name, and the SHA-256 of its values in C order."""

    shape: Annotated[list[NonNegativeInt], Field(max_length=16)]
    dtype: str
    sha256: Digest

    @model_validator(mode="after")
    def _known(self):
        if self.dtype not in DTYPES:
            raise ValueError(f"unknown type {self.dtype[:40]!r}")
        return self

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return math.prod(self.shape) * jnp.dtype(self.dtype).itemsize

    @property
    def struct(self) -> jax.ShapeDtypeStruct:
        """The array without its values."""
        return jax.ShapeDtypeStruct(tuple(self.shape), self.dtype)


class File(_Closed):
    """One file of the folder: its size and the SHA-256 of its bytes."""

    bytes: NonNegativeInt
    sha256: Digest


class Manifest(_Closed):
    """What a manifest says.

    Attributes:
        meta: what the writer gave: configuration, data specification, phase.
        libraries: versions of the libraries that wrote it.
        leaves: the arrays by dotted path.
        files: the files by path within the folder.
    """

    meta: dict[str, JsonValue]
    libraries: dict[str, str]
    leaves: dict[str, Leaf]
    files: dict[str, File]

    @model_validator(mode="after")
    def _files_can_hold_leaves(self):
        held, claimed = sum(f.bytes for f in self.files.values()), sum(leaf.nbytes for leaf in self.leaves.values())
        if claimed > _MAX_RATIO * held:
            raise ValueError(f"the arrays claim {claimed} bytes, the files hold {held}")
        return self


def encode(meta: Mapping[str, Any], leaves: Mapping[str, Any], files: Mapping[str, Any]) -> bytes:
    """Returns a manifest as JSON, with the SHA-256 of its own text as last entry.

    Args:
        meta: what a reader needs to build the tree again, JSON values.
        leaves: the arrays by dotted path.
        files: description of each file by its path within the folder.
    """
    described = {
        name: {"shape": list(leaf.shape), "dtype": str(leaf.dtype), "sha256": hash_leaf(leaf)}
        for name, leaf in leaves.items()
    }
    return seal(
        {
            "schema": SCHEMA,
            "meta": dict(meta),
            "libraries": library_versions(),
            "leaves": described,
            "files": dict(files),
        }
    )


def seal(manifest: Mapping[str, Any]) -> bytes:
    """Returns JSON with the SHA-256 of its own text as last entry."""
    # Encoded twice, because JSON turns integer keys into strings and tuples into lists: what is read back must encode
    # to the same bytes, or a change of a byte that JSON does not care for could hide.
    body = json.loads(json.dumps(manifest, allow_nan=False))
    digest = hashlib.sha256(json.dumps(body).encode()).hexdigest()
    return (json.dumps({**body, "sha256": digest}, indent=1) + "\n").encode()


def read(file: Path) -> Manifest:
    """Returns a manifest after checking that every byte of it is as written, and that it makes sense.

    Raises:
        InputError: if it cannot be read, is damaged, or was written by a newer version.
    """
    raw = read_bytes(file, limit=_MAX_BYTES)
    try:
        body = json.loads(raw)
        body.pop("sha256")
        intact = seal(body) == raw
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        intact = False
    if not intact:
        raise InputError(
            f"Checkpoint {file.parent} is damaged: {file.name} is not as it was written. Use another checkpoint."
        )
    schema = body.pop("schema", None)
    if type(schema) is int and schema > SCHEMA:
        raise InputError(
            f"Checkpoint {file.parent} has schema {schema}, this version of dreamer4 reads up to {SCHEMA}. "
            "Upgrade dreamer4."
        )
    try:
        if type(schema) is not int or schema != SCHEMA:
            raise ValueError(f"schema is {str(schema)[:40]}")
        return Manifest.model_validate(body)
    except ValueError as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        place = ".".join(map(str, first["loc"]))[:200]
        raise InputError(
            f"Checkpoint {file.parent} is damaged: {file.name} makes no sense ({place or 'as a whole'}: "
            f"{first['msg'][:200]}). Use another checkpoint."
        ) from None


def describe_file(file: Path) -> dict[str, Any]:
    """Returns size and SHA-256 of a file."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"bytes": file.stat().st_size, "sha256": digest}


def file_problems(folder: Path, manifest: Manifest) -> list[str]:
    """Returns which files are not as the manifest says, one sentence each; reads no more than it says they hold."""
    problems = []
    for name, known in manifest.files.items():
        try:
            file = _inside(folder, name)
            about = file.stat()
            if not stat.S_ISREG(about.st_mode):
                problems.append(f"file {name} is not a file")
            elif about.st_size != known.bytes:
                problems.append(f"file {name} has {about.st_size} bytes, was written with {known.bytes}")
            elif describe_file(file) != known.model_dump():
                problems.append(f"file {name} has another SHA-256 than when it was written")
        except FileNotFoundError:
            problems.append(f"file {name} is missing")
        except OSError as error:
            problems.append(f"file {name} cannot be read ({error.strerror})")
        except InputError as error:
            problems.append(str(error))
    return problems


def _inside(folder: Path, name: str) -> Path:
    """Returns the path of a file that a manifest names, which must not lead out of the folder, by links neither."""
    parts = name.split("/")
    if "\0" in name or "\\" in name or not all(parts) or {".", ".."} & set(parts) or PurePosixPath(name).is_absolute():
        raise InputError(f"file {name[:200]!r} leaves the folder")
    file = folder
    for part in parts:
        file = file / part
        if file.is_symlink():
            raise InputError(f"file {name[:200]} is a link, or lies behind one")
    return file


def library_versions() -> dict[str, str]:
    """Returns the versions of Python and of the libraries that what is computed and saved depends on."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions
