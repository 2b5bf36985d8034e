"""Data as it lies on disk, in whatever format: a path is enough to read it."""

import functools
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from dreamer4.data.film import VIDEOS
from dreamer4.data.info import split_fingerprint
from dreamer4.data.readers.base import AbstractReader
from dreamer4.data.readers.flat import FlatReader, is_flat
from dreamer4.data.readers.lerobot import LeRobotReader, is_lerobot
from dreamer4.data.readers.minari import MinariReader, is_minari
from dreamer4.data.readers.own import OwnReader
from dreamer4.data.readers.part import PartReader
from dreamer4.data.readers.rlds import RLDSReader, is_rlds
from dreamer4.data.readers.video import VideoReader
from dreamer4.data.readers.vpt import VptReader, is_vpt
from dreamer4.data.vpt.segments import held_out
from dreamer4.errors import InputError, nearest
from dreamer4.files import read_bytes


_HELD_OUT = 0.1  # of the recordings
_NAMING = (".yaml", ".yml")
_MAX_TEXT = 2**20  # bytes


class Format(NamedTuple):
    """A kind of data on disk: how it is called, which paths are of it, and what reads them."""

    name: str
    holds: Callable[[Path], bool]
    reader: Callable[..., AbstractReader]


def _holds_videos(path: Path) -> bool:
    return path.is_dir() and any(p.suffix.lower() in VIDEOS for p in path.iterdir())


def is_dataset(path: Path) -> bool:
    """Whether a path is a data set of ours."""
    return (path / "dataset.json").is_file()


def format_of(path: Path) -> Format | None:
    """Returns the format of other people's data at a path; None if it is of none."""
    return next((form for form in FORMATS if path.exists() and form.holds(path)), None)


def open_reader(path: str | Path, split: str = "train", **options: Any) -> AbstractReader:
    """Opens data of any format that is known.

    What was opened last is kept, as long as no file of it changes.

    Args:
        path: a data set of ours, or anything of `FORMATS`.
        split: `train`, `held_out` or `all`. Data sets of ours have one of their own; of others a tenth of the
            recordings is held out, chosen by their names.
        options: what the reader of the format takes beside the path.

    Raises:
        InputError: if there is nothing of a known format, an option is none of it, or the data cannot be read.
    """
    path = Path(path)
    if is_dataset(path):
        _check_options("data sets of ours", OwnReader, options)
        return OwnReader(path, split)
    if split not in ("train", "held_out", "all"):
        raise InputError(f"Unknown split: got {split!r}, expected train, held_out or all.")
    form = format_of(path)
    if form is None:
        known = ", ".join(form.name for form in FORMATS)
        what = "is of no format that is read in place" if path.exists() else "does not exist"
        raise InputError(
            f"{path} {what}. Known: data sets of ours, {known}. `dreamer4 data import` takes arrays and pictures."
        )
    _check_options(form.name, form.reader, options)
    told = tuple(sorted((name, json.dumps(value)) for name, value in options.items()))
    reader = _opened(form, path.absolute(), told, _state(path))
    if split == "all":
        return reader
    kept = set(held_out_of(reader))
    episodes = np.array([e for e in range(len(reader)) if (e in kept) == (split == "held_out")], int)
    if not len(episodes):
        raise InputError(
            f"{path}: its {split} part has no episodes: all {len(reader)} are of one recording, which no split may "
            "cut. Add another recording."
        )
    return PartReader(reader, episodes, split_fingerprint(reader.fingerprint, split))


def held_out_of(reader: AbstractReader) -> tuple[int, ...]:
    """Returns the episodes of other people's data that are kept for evaluation: a tenth of the recordings."""
    names = reader.recordings or tuple(map(str, range(len(reader))))
    chosen = held_out(names, _HELD_OUT)
    return tuple(e for e, name in enumerate(names) if name in chosen)


@functools.lru_cache(maxsize=2)
def _opened(form: Format, path: Path, options: tuple[tuple[str, str], ...], state: Any) -> AbstractReader:
    del state  # of the files: whatever is kept under another one is of no use
    try:
        return form.reader(path, **{name: json.loads(value) for name, value in options})
    except InputError as error:
        raise error if str(path) in str(error) else InputError(f"{path}: {error}") from error


def _state(path: Path) -> tuple[tuple[str, int, int], ...]:
    """Returns names, sizes and times of the files of data."""
    if _is_named(path):
        named = _state(_named(path)[0])
        files = [path]
    else:
        named = ()
        files = [path] if is_flat(path) else (path.parent if path.is_file() else path).rglob("*")
    stats = [(str(p), p.stat()) for p in files if p.is_file()]
    return *named, *sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def _check_options(name: str, reader: Callable[..., AbstractReader], options: dict[str, Any]) -> None:
    parameters = inspect.signature(reader).parameters.values()
    taken = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    for option in options:
        if option not in taken and not any(p.kind is p.VAR_KEYWORD for p in parameters):
            raise InputError(f"Unknown option {option!r} of {name}. {nearest(option, taken) if taken else 'None is.'}")


def _is_named(path: Path) -> bool:
    return path.suffix in _NAMING and path.is_file()


def _open_named(path: Path, **options: Any) -> AbstractReader:
    """Opens the data that a file of YAML names, with the options that it tells beside the entry `path`."""
    named, told = _named(path)
    return open_reader(named, "all", **told | options)


def _named(path: Path) -> tuple[Path, dict[str, Any]]:
    try:
        told = yaml.safe_load(read_bytes(path, limit=_MAX_TEXT))
        named = path.parent / Path(told.pop("path")).expanduser()
        if named.suffix in _NAMING:
            raise ValueError("a chain of files")
        return named, {str(name): value for name, value in told.items()}
    except (ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path} names no data. Expected YAML with an entry path, beside which the options of the format stand."
        ) from error


# Of several that a path may be of, the first.
FORMATS = (
    Format("LeRobot data sets", is_lerobot, LeRobotReader),
    Format("Minari data sets", is_minari, MinariReader),
    Format("RLDS data sets", is_rlds, RLDSReader),
    Format("flat arrays", is_flat, FlatReader),
    Format("recordings of VPT", is_vpt, VptReader),
    Format("videos without labels", _holds_videos, VideoReader),
    Format("files of YAML that name data and how to read it", _is_named, _open_named),
)
