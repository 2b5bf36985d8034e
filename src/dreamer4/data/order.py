"""The order of names: numbers count as numbers, decimals and negative ones too."""

import itertools
import re
from collections.abc import Iterable
from pathlib import Path


_NUMBER = re.compile(r"(\d+(?:\.\d+)*(?:e[+-]\d+)?)", re.IGNORECASE)
_DECIMAL = re.compile(r"\d+\.(\d+)(e[+-]\d+)?", re.IGNORECASE)


def in_natural_order(paths: list[Path]) -> list[Path]:
    """Sorts paths by name with numbers as numbers, so that `frame10` follows `frame9`, and `t0.1` follows `t0.05`.

    A point makes a decimal of two numbers where Python or a table would write one so; in `take1.9, take1.10` it
    separates. A hyphen is a sign at the beginning of a name, after a sign such as `=` or `_`, and after a word that
    other names join to a number without it (`t-1, t0`); in `run-1, run-2` it separates.

    Args:
        paths: of one folder.
    """
    keys = _keys(paths)
    return sorted(paths, key=lambda path: (keys[path], path.name))


def alike(paths: list[Path]) -> tuple[Path, Path] | None:
    """Returns two of which no name says which comes first, such as `f1.png` and `f01.png` or `f1.jpg`.

    Args:
        paths: in natural order.
    """
    keys = _keys(paths)
    return next(((a, b) for a, b in itertools.pairwise(paths) if keys[a] == keys[b]), None)


def _keys(paths: list[Path]) -> dict[Path, list]:
    """Returns what paths of one folder are sorted by."""
    names = [_split(path) for path in paths]
    bare = {pieces[i - 1] for pieces in names for i in range(1, len(pieces), 2)}
    decimal = _are_decimals(pieces[i] for pieces in names for i in range(1, len(pieces), 2))

    def key(path: Path) -> list:
        pieces: list = _split(path)  # text and numbers take turns
        for i in range(1, len(pieces), 2):
            before, sign = pieces[i - 1], 1
            if before.endswith("-") and _is_sign(before[:-1], bare, first=i == 1):
                pieces[i - 1], sign = before[:-1], -1
            pieces[i] = [sign * number for number in _values(pieces[i], decimal)]
        return pieces

    return {path: key(path) for path in paths}


def lost_numbers(paths: list[Path]) -> tuple[Path, Path] | None:
    """Returns two neighbours between which a picture seems lost: their last numbers jump where all others go evenly.

    Args:
        paths: in natural order.
    """
    numbers = [re.findall(r"\d+", path.stem)[-1:] for path in paths]
    if len(paths) < 4 or not all(numbers) or any(_DECIMAL.search(path.stem) for path in paths):
        return None
    values = [int(found[0]) for found in numbers]
    steps = [after - before for before, after in zip(values, values[1:], strict=False)]
    usual = sorted(steps)[len(steps) // 2]
    if usual <= 0 or 2 * steps.count(usual) <= len(steps):
        return None
    lost = [i for i, step in enumerate(steps) if step > usual and step % usual == 0]
    return (paths[lost[0]], paths[lost[0] + 1]) if lost else None


def _split(path: Path) -> list[str]:
    return _NUMBER.split(path.stem)


def _is_sign(before: str, bare: Iterable[str], *, first: bool) -> bool:
    if not before:
        return first
    return not before[-1].isalnum() or (not before[-1].isdigit() and before in bare)


def _are_decimals(numbers: Iterable[str]) -> bool:
    """Tells whether points are decimal: no fraction ends in a 0 that a number of another width would not have."""
    fractions = [match[1] for number in numbers if (match := _DECIMAL.fullmatch(number))]
    return len({*map(len, fractions)}) <= 1 or not any(len(f) > 1 and f.endswith("0") for f in fractions)


def _values(text: str, decimal: bool) -> list[float]:
    if decimal and _DECIMAL.fullmatch(text):
        return [float(text)]
    whole, _, exponent = text.lower().partition("e")
    if exponent and "." not in whole:
        return [float(text)]
    return [int(part) for part in whole.split(".")]
