"""`dreamer4 data import`: what its options mean, and the work behind it."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dreamer4 import data, envs
from dreamer4.config import EnvConfig
from dreamer4.data import SUMMARY, DatasetInfo, import_folder, merge_datasets, read_info
from dreamer4.data.imports import Timing
from dreamer4.errors import InputError
from dreamer4.files import check_place
from dreamer4.reporting.data_page import data_page
from dreamer4.reporting.page import write_page
from dreamer4.types import ActionSpec
from dreamer4_cli.console import ProgressBar, say


def import_data(
    source: Path,
    out: Path,
    *,
    actions: str | None,
    bounds: str | None,
    size: str | None,
    ignore: str | None,
    timing: Timing,
    **how: Any,
) -> None:
    """Imports a folder of episodes and tells what became of it; `how` is what `import_folder` takes as it is."""
    check_place(out)
    how |= {
        "actions": None if actions is None else parse_actions(actions),
        "bounds": bounds if bounds in (None, "data") else parse_bounds(bounds),
        "size": None if size is None else parse_size(size),
        "ignore": [name.strip() for name in (ignore or "").split(",")],
    }
    total = sum(not entry.name.startswith(".") for entry in source.iterdir()) if source.is_dir() else 0
    with ProgressBar("import", total=total, unit="episodes") as bar:

        def progress(done: int, episodes: int) -> None:
            bar.total = episodes  # sidecars are no episodes
            bar.advance(done - bar.completed)

        info = import_folder(source, out, timing=timing, progress=progress, **how)
    _tell(out, info, f" of {info.frame_shape}, mean return {info.return_mean:.3f}")
    say(f"actions: classes {info.num_classes}, {info.continuous_dim} continuous, row t {timing} frame t")
    for name, told in data.label_facts(out, info).items():
        say(f"{name}: {told}")


def merge_data(sources: Sequence[Path], out: Path) -> None:
    """Merges data sets and tells what became of them."""
    check_place(out)
    _tell(out, merge_datasets(sources, out))


def _tell(out: Path, info: DatasetInfo, more: str = "") -> None:
    write_page(out / SUMMARY, data_page(info))
    say(f"{out}: {info.num_episodes} episodes ({len(info.held_out)} held out), {info.num_frames} frames{more}")


def cut_by_prompt(source: Path, out: Path) -> None:
    """Writes a data set of an environment with prompts as one of the tasks that it asked for."""
    check_place(out)
    told = read_info(source).environment
    config = EnvConfig(**{key: told[key] for key in EnvConfig.model_fields if key in told})
    _tell(out, data.cut_by_prompt(source, out, envs.prompted(config)))


def parse_actions(text: str) -> ActionSpec:
    """Returns the factors of an action: `3` or `2,2,121` classes, `continuous:6`, or both as in `3,continuous:2`."""
    classes, dims = [], 0
    for part in text.split(","):
        name, colon, number = part.strip().rpartition(":")
        if (colon and name != "continuous") or not number.isdecimal() or len(number) > 6:
            raise InputError(f"--actions: got {text!r}, expected classes and dimensions such as 3 or 2,5,continuous:2.")
        if colon:
            dims += int(number)
        else:
            classes.append(int(number))
    return ActionSpec(tuple(classes), dims)


def parse_bounds(text: str) -> list[tuple[float, float]]:
    """Returns lower and higher values: one pair `-2:2` for all dimensions, or `-1:1,0:5` one for each."""
    try:
        pairs = [(float(low), float(high)) for low, high in (part.split(":") for part in text.split(","))]
    except ValueError:
        pairs = []
    if not pairs or not all(math.isfinite(low) and math.isfinite(high) and low < high for low, high in pairs):
        raise InputError(
            f"--bounds: got {text!r}, expected LOW:HIGH, one such pair for each dimension, -1:1,0:5, or data."
        )
    return pairs


def parse_size(text: str) -> tuple[int, int]:
    """Returns height and width of `64x96`."""
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal() and len(text) < 12):
        raise InputError(f"--size: got {text!r}, expected HEIGHTxWIDTH such as 64x96.")
    return int(height), int(width)
