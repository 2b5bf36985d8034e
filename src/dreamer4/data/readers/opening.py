"""Data as it lies on disk, in whatever format: a path is enough to read it."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dreamer4.data.film import VIDEOS
from dreamer4.data.readers.base import AbstractReader
from dreamer4.data.readers.flat import FlatReader, is_flat
from dreamer4.data.readers.lerobot import LeRobotReader, is_lerobot
from dreamer4.data.readers.minari import MinariReader, is_minari
from dreamer4.data.readers.own import OwnReader
from dreamer4.data.readers.part import PartReader
from dreamer4.data.readers.video import VideoReader
from dreamer4.data.readers.vpt import VptReader, is_vpt
from dreamer4.data.vpt.segments import held_out
from dreamer4.errors import InputError, nearest


class Format(NamedTuple):
    """A kind of data on disk: how it is called, which paths are of it, and what reads them."""

    name: str
    holds: Callable[[Path], bool]
    reader: Callable[..., AbstractReader]


def _holds_videos(path: Path) -> bool:
    return path.is_dir() and any(p.suffix.lower() in VIDEOS for p in path.iterdir())


# Of several that a path may be of, the first.
FORMATS = (
    Format("LeRobot data sets", is_lerobot, LeRobotReader),
    Format("Minari data sets", is_minari, MinariReader),
    Format("flat arrays", is_flat, FlatReader),
    Format("recordings of VPT", is_vpt, VptReader),
    Format("videos without labels", _holds_videos, VideoReader),
)


def is_dataset(path: Path) -> bool:
    """Whether a path is a data set of ours."""
    return (path / "dataset.json").is_file()


def format_of(path: Path) -> Format | None:
    """Returns the format of other people's data at a path; None if it is of none."""
    return next((form for form in FORMATS if path.exists() and form.holds(path)), None)


def open_reader(path: str | Path, split: str = "train", *, share: float = 0.1, **options: Any) -> AbstractReader:
    """Opens data of any format that is known.

    Args:
        path: a data set of ours, or anything of `FORMATS`.
        split: `train`, `held_out` or `all`. Data sets of ours have one of their own; of others it is made by the names
            of recordings.
        share: of the recordings that is held out.
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
    reader = form.reader(path, **options)
    if split == "all":
        return reader
    names = reader.recordings or tuple(map(str, range(len(reader))))
    chosen = held_out(names, share)
    episodes = np.flatnonzero([(name in chosen) == (split == "held_out") for name in names])
    if not len(episodes):
        raise InputError(
            f"{path}: its {split} part has no episodes: all {len(names)} are of one recording, which no split may cut. "
            "Add another recording."
        )
    return PartReader(reader, episodes)


def _check_options(name: str, reader: Callable[..., AbstractReader], options: dict[str, Any]) -> None:
    taken = [p.name for p in inspect.signature(reader).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for option in options:
        if option not in taken:
            raise InputError(f"Unknown option {option!r} of {name}. {nearest(option, taken) if taken else 'None is.'}")
