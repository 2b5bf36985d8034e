"""One episode as one record of bytes, and back, without trusting the bytes.

A record is

    4 bytes   the mark `D4E1`
    4 bytes   length of the header, little endian
    header    JSON: names, dtypes and shapes of the arrays in their order, and the flags of the episode
    arrays    their raw bytes, little endian, C order, end to end
    4 bytes   CRC-32 of everything before

The header says how long the record must be, so a wrong one is found before a byte of it is copied. Nothing here can run
code that a record brings along, as unpickling would.
"""

import json
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dreamer4.data.episode import Episode
from dreamer4.errors import InputError


_MARK = b"D4E1"
_MAX_HEADER = 64 * 1024
_MAX_RECORD = 2**31
# Name, dtype and number of axes of each array; the first axis is always time.
_FIELDS = (
    ("frame", "|u1", 4),
    ("discrete", "<i4", 2),
    ("continuous", "<f4", 2),
    ("action_mask", "|b1", 1),
    ("reward", "<f4", 1),
)
# Behind them, in records of episodes whose environment's keys are known.
_KEY = ("key", "<u4", 2)


def pack(episode: Episode) -> bytes:
    """Returns the record of an episode.

    Args:
        episode: any episode.

    Raises:
        InputError: if the record would exceed 2 GiB.
    """
    known = _FIELDS if episode.key is None else (*_FIELDS, _KEY)
    arrays = [np.ascontiguousarray(getattr(episode, name), dtype) for name, dtype, _ in known]
    header = json.dumps(
        {
            "fields": [[name, dtype, a.shape] for (name, dtype, _), a in zip(known, arrays, strict=True)],
            "is_terminal": bool(episode.is_terminal),
            "task": int(episode.task),
            "relevant": bool(episode.relevant),
        }
    ).encode()
    size = sum(a.nbytes for a in arrays) + len(header)
    if size > _MAX_RECORD:
        raise InputError(f"An episode of {size} bytes is too long for one record of at most {_MAX_RECORD}. Cut it.")
    # Views rather than copies: an episode may be most of what fits into memory.
    parts = [_MARK, struct.pack("<I", len(header)), header, *(a.reshape(-1).view(np.uint8) for a in arrays)]
    checksum = 0
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    return b"".join([*parts, struct.pack("<I", checksum)])


def unpack(record: bytes) -> Episode:
    """Returns the episode of a record.

    Args:
        record: bytes of any origin.

    Raises:
        InputError: if they are not exactly one whole, unharmed record.
    """
    if len(record) < 12 or record[:4] != _MARK:
        raise InputError("it does not open like an episode record")
    if len(record) > _MAX_RECORD:
        raise InputError(f"it has {len(record)} bytes, more than {_MAX_RECORD}")
    if zlib.crc32(record[:-4]) != struct.unpack("<I", record[-4:])[0]:
        raise InputError("its checksum does not match")
    header, header_size = read_header(record)
    sizes = [math.prod(shape) * np.dtype(dtype).itemsize for _, dtype, shape in header["fields"]]
    if 12 + header_size + sum(sizes) != len(record):
        raise InputError(f"it has {len(record)} bytes, but its header describes {12 + header_size + sum(sizes)}")
    arrays, begin = {}, 8 + header_size
    for (name, dtype, shape), size in zip(header["fields"], sizes, strict=True):
        flat = np.frombuffer(record[begin : begin + size], np.uint8)
        if dtype == "|b1" and np.any(flat > 1):
            raise InputError(f"a truth value of {name} is neither 0 nor 1")
        native = np.dtype(dtype).newbyteorder("=")
        arrays[name] = flat.view(dtype).reshape(shape).astype(native)
        begin += size
    return Episode(**arrays, is_terminal=header["is_terminal"], task=header["task"], relevant=header["relevant"])


def read_header(record: bytes) -> tuple[dict[str, Any], int]:
    """Returns what a record says of its arrays (`fields`) and of its episode, and how many bytes say it.

    Raises:
        InputError: if the bytes do not say it; whether they are whole is not looked at.
    """
    size = int.from_bytes(record[4:8], "little")
    if size > min(_MAX_HEADER, len(record) - 12):
        raise InputError(f"its header claims {size} bytes")
    return _header(record[8 : 8 + size]), size


def _header(text: bytes) -> dict[str, Any]:
    """Returns a header whose keys, types and shapes are as they must be."""
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError("its header is not JSON") from error
    if not isinstance(header, dict) or set(header) != {"fields", "is_terminal", "task", "relevant"}:
        raise InputError("its header has other keys than fields, is_terminal, task and relevant")
    if (
        type(header["is_terminal"]) is not bool
        or type(header["relevant"]) is not bool
        or type(header["task"]) is not int
    ):
        raise InputError("its is_terminal, task or relevant is of the wrong kind")
    fields = header["fields"]
    if not isinstance(fields, list) or not len(_FIELDS) <= len(fields) <= len(_FIELDS) + 1:
        raise InputError(f"its header does not describe {len(_FIELDS)} arrays, or these and keys")
    for field, (name, dtype, axes) in zip(fields, (*_FIELDS, _KEY), strict=False):
        if not isinstance(field, list) or len(field) != 3 or field[:2] != [name, dtype]:
            raise InputError(f"its header does not describe {name} as {dtype}")
        shape = field[2]
        if not isinstance(shape, list) or len(shape) != axes or not all(type(n) is int and n >= 0 for n in shape):
            raise InputError(f"the shape of {name} is not {axes} sizes")
        # Sizes of 0 count as 1, since numpy also refuses an empty array whose other sizes are absurd.
        if math.prod(max(n, 1) for n in shape) > _MAX_RECORD:
            raise InputError(f"the shape of {name} is more than a record can hold")
        if shape[0] != fields[0][2][0]:
            raise InputError(f"{name} has {shape[0]} steps, but there are {fields[0][2][0]} frames")
    return header


def cut_piece(episode: Episode, begin: int, length: int) -> Episode:
    """Returns so many frames of an episode from one on, as a record holds of a long one; a short one as it is."""
    if length >= episode.length:
        return episode
    return replace(episode, **{name: getattr(episode, name)[begin : begin + length] for name in _columns(episode)})


def join_pieces(parts: Sequence[Episode]) -> Episode:
    """Returns the episode that was cut into pieces."""
    if len(parts) == 1:
        return parts[0]
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _columns(parts[0])}
    return replace(parts[0], **columns)


def _columns(episode: Episode) -> tuple[str, ...]:
    return tuple(name for name, *_ in (_FIELDS if episode.key is None else (*_FIELDS, _KEY)))
