"""Named arrays out of a stranger's file: `.npz`, `.json` or `.csv`.

What a file claims is checked before memory is asked for, and nothing in it can run code: Python objects inside an
archive are refused and never unpickled. Whatever is wrong raises `InputError` with the reason alone; the caller knows
which file it was.
"""

import csv
import json
import math
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dreamer4.errors import InputError


MAX_BYTES = 2**31  # of the arrays of one file together; an episode of that size does not fit into a record
_MAX_TEXT = 64 * 1024 * 1024
_MAX_MEMBERS = 64
_NUMBERS = "biuf"
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_COLUMN = re.compile(r"(.+)_(\d+)")
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    TypeError,
    LookupError,
    SyntaxError,
    tokenize.TokenError,
    NotImplementedError,  # zip versions that zipfile does not know
    RuntimeError,  # encrypted archives, nesting beyond the parser's stack
    MemoryError,
)


@dataclass(frozen=True)
class Header:
    """What an array claims to be.

    Attributes:
        dtype: a boolean, integer or float type.
        shape: sizes of the axes.
    """

    dtype: np.dtype
    shape: tuple[int, ...]


def read_headers(path: Path) -> dict[str, Header]:
    """Returns what the arrays of an `.npz` file claim to be, without reading any.

    Args:
        path: the file.

    Raises:
        InputError: if it is no archive of numeric arrays, or claims other sizes than it has or than are allowed.
    """
    with _archive(path) as (archive, members):
        return {name: _header(archive, name, member) for name, member in members.items()}


def read_arrays(path: Path, *, skip: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """Returns the arrays of a file by name.

    A CSV file has a line of names and one row a step; columns `name_0`, `name_1`, ... make one array of two axes. A
    JSON file is an object of numbers, lists and lists of lists.

    Args:
        path: `.npz`, `.json` or `.csv`.
        skip: arrays of an `.npz` file to leave out.

    Raises:
        InputError: if the file cannot be read as what its name says, or is too large.
    """
    if path.suffix.lower() == ".npz":
        headers = read_headers(path)
        with _archive(path) as (archive, members):
            return {name: _read(archive, members[name]) for name in headers if name not in skip}
    with _refusing():
        if path.stat().st_size > _MAX_TEXT:
            raise InputError(f"it has more than {_MAX_TEXT} bytes. Store long arrays as .npz.")
        content = path.read_bytes()
        if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise InputError("it is UTF-16, as spreadsheets may write, expected UTF-8. Save it as CSV UTF-8.")
        text = content.decode("utf-8-sig")  # spreadsheets put a mark before it
        return _from_json(text) if path.suffix.lower() == ".json" else _from_csv(text)


@contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except _BROKEN as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"it cannot be read: {reason or type(error).__name__}.") from error


@contextmanager
def _archive(path: Path) -> Iterator[tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]]:
    with _refusing(), zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if len(members) > _MAX_MEMBERS:
            raise InputError(f"it holds {len(members)} arrays, expected at most {_MAX_MEMBERS}.")
        named = {member.filename.removesuffix(".npy"): member for member in members}
        if len(named) != len(members) or not all(member.filename.endswith(".npy") for member in members):
            raise InputError("it holds something else than arrays of different names. Write it with numpy.savez.")
        if any(member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for member in members):
            raise InputError("it is compressed in a way that numpy does not write.")
        if (total := sum(member.file_size for member in members)) > MAX_BYTES:
            raise InputError(f"its arrays claim {total} bytes, expected at most {MAX_BYTES}. Cut the episode.")
        yield archive, named


def _header(archive: zipfile.ZipFile, name: str, member: zipfile.ZipInfo) -> Header:
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        if version not in _HEADERS:
            raise InputError(f"{name} is an array of an unknown format {version}.")
        shape, _, dtype = _HEADERS[version](stream)
        begin = stream.tell()
    if dtype.hasobject:
        raise InputError(f"{name} holds Python objects, which are never loaded. Store numbers.")
    if dtype.kind not in _NUMBERS:
        raise InputError(f"{name} is {dtype}, expected booleans, integers or floats.")
    # Sizes of 0 count as 1, since numpy also refuses an empty array whose other sizes are absurd.
    if min(shape, default=0) < 0 or math.prod(max(n, 1) for n in shape) > MAX_BYTES:
        raise InputError(f"{name} claims the shape {shape}.")
    if begin + math.prod(shape) * dtype.itemsize != member.file_size:
        raise InputError(f"{name} claims {shape} of {dtype}, which is not what it holds.")
    return Header(dtype, shape)


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(member) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


def _from_json(text: str) -> dict[str, np.ndarray]:
    entries = json.loads(text, object_pairs_hook=_each_once)
    if not isinstance(entries, dict):
        raise InputError('it is no JSON object such as {"action": [0, 1, 1]}.')
    return {name: _numbers(name, values) for name, values in entries.items()}


def _each_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise InputError("it has an entry twice.")
    return entries


def _from_csv(text: str) -> dict[str, np.ndarray]:
    try:
        lines = list(csv.reader(text.splitlines(), strict=True))
    except csv.Error as error:
        raise InputError(f"it is no CSV: {error}.") from error
    if not lines:
        raise InputError("it is empty, expected a line of names and one row a step.")
    names, rows = [name.strip() for name in lines[0]], lines[1:]
    for mark, word in ((";", "semicolons"), ("\t", "tabs")):
        if len(names) == 1 and mark in names[0] or rows and mark in "".join(rows[0]):
            raise InputError(f"its values are separated by {word}, expected commas, and points in numbers.")
    while rows and not any(value.strip() for value in rows[-1]):
        rows.pop()  # blank lines at the end
    if all(name.lstrip("+-").replace(".", "", 1).isdigit() for name in names):
        raise InputError(f"its first line is {lines[0]}, expected names of columns, such as action,reward.")
    if "" in names:
        raise InputError(
            f"column {names.index('') + 1} has no name, as pandas writes its index. Leave it out: to_csv(index=False)."
        )
    if len(set(names)) != len(names):
        raise InputError("it names a column twice.")
    for number, row in enumerate(rows, start=2):
        if len(row) != len(names):
            held = f"{len(row)} values" if row else "nothing in it"
            raise InputError(f"line {number} has {held}, expected {len(names)}.")
    groups: dict[str, dict[int | None, list]] = {}
    for place, name in enumerate(names):
        match = _COLUMN.fullmatch(name)
        stem, part = (match[1], int(match[2])) if match else (name, None)
        column = [_value(row[place], name, number) for number, row in enumerate(rows, start=2)]
        groups.setdefault(stem, {})[part] = column
    arrays = {}
    for name, parts in groups.items():
        if set(parts) == {None}:
            arrays[name] = _numbers(name, parts[None])
        elif set(parts) == set(range(len(parts))):
            arrays[name] = _numbers(name, list(zip(*(parts[i] for i in range(len(parts))), strict=True)))
        else:
            raise InputError(f"the columns of {name} are not {name} alone, nor {name}_0, {name}_1 and so on.")
    return arrays


def _value(text: str, name: str, line: int) -> bool | int | float:
    word = text.strip().lower()
    if word in ("true", "false"):
        return word == "true"
    try:
        return int(word)
    except ValueError:
        pass
    try:
        return float(word)
    except ValueError:
        mend = "Give any number there, and False in action_mask, where it is unknown." if not word else ""
        raise InputError(f"line {line}: {name} is {text.strip()!r}, expected a number. {mend}".strip()) from None


def _numbers(name: str, values: object) -> np.ndarray:
    try:
        array = np.asarray(values)
    except ValueError:
        raise InputError(f"the lists of {name} have unlike lengths.") from None
    if array.dtype.kind not in _NUMBERS:
        raise InputError(f"{name} holds something else than numbers.")
    return array
