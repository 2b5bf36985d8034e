"""What a page is made of; Jinja2 templates lay out every page.

A page is one HTML file that needs nothing else: style, charts and pictures are inside, and it forbids itself the rest.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from dreamer4.evaluation.statistics import Estimate
from dreamer4.files import write_atomically
from dreamer4.reporting.figures import number, padded, percent, signed


class Chart(NamedTuple):
    """A chart on its card: `svg` is empty where there is nothing finite to draw."""

    title: str
    svg: str
    remark: str = ""


class Picture(NamedTuple):
    """A picture as data, with a still one for who wants no movement, and a line below."""

    source: str
    alt: str
    still: str = ""
    caption: str = ""


class Section(NamedTuple):
    """A part of a page; one without blocks is left out."""

    title: str = ""
    text: str = ""
    blocks: Sequence[Markup] = ()


class Page(NamedTuple):
    """A page: its title, facts in small type, one sentence in large type, and sections."""

    title: str
    sections: Sequence[Section]
    facts: Sequence[str] = ()
    lead: str = ""
    legend: Sequence[tuple[str, str]] = ()


_ENVIRONMENT = Environment(
    loader=PackageLoader("dreamer4.reporting", "."),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
)
_ENVIRONMENT.filters |= {"signed": signed, "number": number, "percent": percent, "svg": Markup}

# The pieces of a section: each macro of blocks.html as a function that returns its HTML.
blocks: Any = _ENVIRONMENT.get_template("blocks.html").module


def render(page: Page) -> str:
    """Returns a page as HTML."""
    return _ENVIRONMENT.get_template("page.html").render(page=page)


def write_page(path: Path, page: Page) -> None:
    """Writes a page, replacing an earlier one at once, so that no reader meets half a file."""
    write_atomically(path, render(page))


def intervals(rows: Mapping[str, Estimate], *, strong: str = "", caption: str = "") -> Markup:
    """Returns estimates by name, at least one, as dots with bars on one axis; `strong` is the name to stand out."""
    values = np.array([(row.mean, row.low, row.high) for row in rows.values()])
    if not np.isfinite(values).all():
        return blocks.note("No finite values.")
    start, end = padded(values)
    ticks = [float(t) for t in MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(start, end) if start <= t <= end]
    places = {name: (row.mean, row.low, row.high) for name, row in rows.items()}
    return blocks.intervals(places, ticks, start, end - start, strong, caption)
