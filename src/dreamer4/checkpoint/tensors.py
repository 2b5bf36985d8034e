"""Arrays in one safetensors file: what is handed to others.

The format is eight bytes (length of the header, little endian), the header as JSON (type, shape and byte range of each
tensor), and the values end to end in C order. Nothing in it can run, and every size in it can be checked against the
size of the file before memory is asked for, which `read_header` does.
"""

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamer4.checkpoint.leaves import DTYPES, place, sharding_of
from dreamer4.errors import InputError


FILE = "model.safetensors"
_MAX_HEADER = 4 * 1024 * 1024
_MAX_AXES = 16
_NUMPY = {code: name for name, code in DTYPES.items()}


class Tensor(NamedTuple):
    """Where a tensor lies in its file."""

    shape: tuple[int, ...]
    dtype: str
    begin: int
    end: int


def write(folder: Path, leaves: Mapping[str, Any]) -> None:
    """Writes arrays by name into one file in a folder, which need not exist."""
    folder.mkdir(parents=True, exist_ok=True)
    header, end = {}, 0
    # The widest types first, so that each tensor begins at a multiple of its item size.
    order = sorted(leaves, key=lambda name: (-leaves[name].dtype.itemsize, name))
    for name in order:
        leaf, begin = leaves[name], end
        end += math.prod(leaf.shape) * leaf.dtype.itemsize
        header[name] = {"dtype": DTYPES[str(leaf.dtype)], "shape": list(leaf.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with (folder / FILE).open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            array = np.ascontiguousarray(leaves[name])
            stream.write(array.reshape(-1).view(np.uint8).data)


def read(folder: Path, wanted: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Returns the arrays of the given names and shardings.

    Raises:
        InputError: if the file is not a sound one, or lacks one of the arrays.
    """
    file = folder / FILE
    header, start = read_header(file)
    arrays = {}
    with file.open("rb") as stream:
        for name, leaf in wanted.items():
            tensor = header.get(name)
            if tensor is None or (tensor.shape, tensor.dtype) != (tuple(leaf.shape), str(leaf.dtype)):
                raise InputError(f"Checkpoint {folder} is damaged: {FILE} does not hold leaf {name} as described.")
            stream.seek(start + tensor.begin)
            raw = np.fromfile(stream, np.uint8, tensor.end - tensor.begin)
            arrays[name] = place(raw.view(jnp.dtype(tensor.dtype)).reshape(tensor.shape), sharding_of(leaf))
    return arrays


def read_header(file: Path) -> tuple[dict[str, Tensor], int]:
    """Returns the tensors of a safetensors file by name, and where their bytes begin.

    Raises:
        InputError: if the header is too long, is not of the format, or disagrees with the size of the file.
    """
    try:
        with file.open("rb") as stream:
            size = file.stat().st_size
            (length,) = struct.unpack("<Q", stream.read(8).ljust(8, b"\xff"))
            if length > min(_MAX_HEADER, size - 8):
                raise InputError(f"{file} is no sound safetensors file: its header claims {length} bytes.")
            raw = json.loads(stream.read(length))
        if not isinstance(raw, dict):
            raise ValueError("not a mapping")
        raw.pop("__metadata__", None)
        tensors = {name: _tensor(entry) for name, entry in raw.items()}
    except OSError as error:
        raise InputError(f"Cannot read {file}: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{file} is no sound safetensors file: its header is not as the format says.") from None
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1][2:]):
        if tensor.begin != end:
            raise InputError(f"{file} is no sound safetensors file: tensor {name!r} overlaps another or leaves a gap.")
        end = tensor.end
    if 8 + length + end != size:
        raise InputError(f"{file} is no sound safetensors file: {size} bytes, its header describes {8 + length + end}.")
    return tensors, 8 + length


def _tensor(entry: Any) -> Tensor:
    shape, (begin, end), dtype = entry["shape"], entry["data_offsets"], _NUMPY[entry["dtype"]]
    if len(shape) > _MAX_AXES or not all(type(n) is int and n >= 0 for n in [*shape, begin, end]):
        raise ValueError("sizes")
    if end - begin != math.prod(shape) * jnp.dtype(dtype).itemsize:
        raise ValueError("range")
    return Tensor(tuple(shape), dtype, begin, end)
