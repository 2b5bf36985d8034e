"""Which segments there are, which recording each belongs to, and in what order."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dreamer4.errors import InputError
from dreamer4.files import read_bytes


_MAX_INDEX = 2**28  # bytes
# <alias>-<session>-<date>-<time>, read from the right: an alias may hold hyphens.
_STEM = re.compile(r"(.+-[0-9a-f]{12})-(\d{8}-\d{6})")


@dataclass(frozen=True)
class Segment:
    """A stretch of a recording on disk.

    Attributes:
        rows: the `.jsonl`.
        version: of the recorder, such as 10.0; the folder's name.
        recording: alias and session: what no split may cut.
        start: date and time; empty where the name tells none.
    """

    rows: Path
    version: str
    recording: str
    start: str

    @property
    def video(self) -> Path:
        """Its film."""
        return self.rows.with_suffix(".mp4")


def segment_at(rows: Path) -> Segment:
    """Returns the segment whose rows lie at a path."""
    match = _STEM.fullmatch(rows.stem)
    recording, start = match.groups() if match else (rows.stem, "")
    return Segment(rows, rows.parent.name, recording, start)


def is_index(path: Path) -> bool:
    """Whether a path is named like an index and begins as one does."""
    if path.suffix.lower() != ".json" or not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(4096)
    return b'"basedir"' in head or b'"relpaths"' in head


def find_segments(path: Path) -> tuple[list[Segment], list[str]]:
    """Returns the segments of an index, of all indices of a folder, or of a folder without any, and which are missing.

    An index names segments as `10.0/NAME` or as `data/10.0/NAME.mp4`. Their files are looked for beside it, in `10.0`
    and in `data/10.0`. Segments come in the order of the indices; without one by version, recording and time.

    Args:
        path: the index or the folder.

    Raises:
        InputError: if an index cannot be read.
    """
    indices = [path] if path.is_file() else sorted(p for p in path.glob("*.json") if is_index(p))
    if not indices:
        found = [segment_at(rows) for rows in path.rglob("*.jsonl")]
        whole = [segment for segment in found if segment.video.is_file()]
        lone = [f"{segment.rows.stem}: no film beside its rows" for segment in found if not segment.video.is_file()]
        return sorted(whole, key=lambda s: (_number(s.version), s.version, s.recording, s.start, s.rows)), sorted(lone)
    segments: dict[str, Segment] = {}
    missing = []
    for index in indices:
        for version, stem in _listed(index):
            places = [index.parent / "data" / version, index.parent / version, index.parent]
            rows = [place / f"{stem}.jsonl" for place in places]
            there = [r for r in rows if r.is_file() and r.with_suffix(".mp4").is_file()]
            if there:
                found = segment_at(there[0])
                segments[f"{version}/{stem}"] = Segment(found.rows, version, found.recording, found.start)
            elif not any(r.is_file() or r.with_suffix(".mp4").is_file() for r in rows):
                missing.append(f"{stem}: neither film nor rows")
            else:
                missing.append(f"{stem}: no {'film' if any(r.is_file() for r in rows) else 'rows'}")
    return list(segments.values()), missing


def held_out(recordings: Sequence[str], share: float) -> frozenset[str]:
    """Returns the recordings kept for evaluation: of two or more at least one, and never all.

    They are chosen by their names, so that one that is added moves few of the others.

    Args:
        recordings: of the segments, in any order, with repetition.
        share: of the recordings, 0 to 1.
    """
    names = sorted(set(recordings), key=lambda name: hashlib.sha256(name.encode()).digest())
    number = min(max(round(share * len(names)), 1 if share else 0), len(names) - 1)
    return frozenset(names[:number])


def _listed(index: Path) -> list[tuple[str, str]]:
    """Returns version and name of each segment that an index lists."""
    try:
        listed = json.loads(read_bytes(index, limit=_MAX_INDEX))["relpaths"]
        pairs = [tuple(entry.removesuffix(".mp4").split("/")[-2:]) for entry in listed]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{index}: cannot be read as an index: {error!r}. Expected JSON with the entries basedir and relpaths."
        ) from error
    if bad := [listed[i] for i, pair in enumerate(pairs) if len(pair) != 2 or ".." in pair or "" in pair]:
        raise InputError(f"{index}: lists {bad[0]!r}, expected FOLDER/NAME or FOLDER/NAME.mp4. Correct the index.")
    return [(version, stem) for version, stem in pairs]


def _number(version: str) -> float:
    try:
        return float(version)
    except ValueError:
        return 0.0
