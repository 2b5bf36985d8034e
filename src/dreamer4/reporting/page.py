"""What a page is made of, as plain data; one Jinja2 template lays out every page.

A page is one HTML file that needs nothing else: style, charts and pictures are inside, and it forbids itself the rest.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from dreamer4.evaluation.statistics import Estimate
from dreamer4.files import write_atomically
from dreamer4.reporting.figures import number, padded, percent, signed


class Block:
    """A piece of a section; the macro of the template that has the name of its class lays it out."""

    @property
    def kind(self) -> str:
        return type(self).__name__


@dataclass(frozen=True)
class Text(Block):
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Heading(Block):
    """The title of what follows in a section."""

    text: str


@dataclass(frozen=True)
class Note(Block):
    """A remark in small type."""

    text: str


@dataclass(frozen=True)
class Alarm(Block):
    """A paragraph that nobody should miss."""

    text: str


@dataclass(frozen=True)
class Legend(Block):
    """Names of lines, each with its style."""

    entries: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Chart:
    """A chart on its card: `svg` is empty where there is nothing finite to draw."""

    title: str
    svg: str
    remark: str = ""


@dataclass(frozen=True)
class Charts(Block):
    """Charts side by side, the first `shown` of them open."""

    charts: Sequence[Chart]
    shown: int = 100


@dataclass(frozen=True)
class Table(Block):
    """A table with a head.

    Attributes:
        head: names of the columns.
        rows: cells as text, the first of each row its name.
        styles: of the lines that the rows stand for; empty if they stand for none.
        strong: the name of the row to stand out.
        plain: whether columns hold words, not numbers.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    styles: Sequence[str] = ()
    strong: str = ""
    plain: bool = False


@dataclass(frozen=True)
class Beside(Block):
    """A chart with a table at its side, and what they show."""

    chart: Chart
    table: Table
    caption: str


@dataclass(frozen=True)
class Pairs(Block):
    """Names and values."""

    rows: Mapping[str, str | int | float]


@dataclass(frozen=True)
class Source(Block):
    """Text to be shown as it is."""

    text: str


@dataclass(frozen=True)
class Fold(Block):
    """Blocks behind a line that opens them."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Tiles(Block):
    """Figures in large type, each with what it is."""

    tiles: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Intervals(Block):
    """A dot at the mean and a bar over the interval, for each name.

    Attributes:
        rows: mean, low and high by name.
        ticks: what the axis shows, and where: the position of x is `(x - start) / length`.
        start: left end of the axis.
        length: of the axis.
        strong: the name to stand out.
        caption: below.
    """

    rows: Mapping[str, tuple[float, float, float]]
    ticks: Sequence[float]
    start: float
    length: float
    strong: str = ""
    caption: str = ""


@dataclass(frozen=True)
class Bars(Block):
    """A bar for each name, as long as its share of the largest."""

    shares: Mapping[str, float]
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A picture as data, with a still one for who wants no movement, and a line below."""

    source: str
    alt: str
    still: str = ""
    caption: str = ""


@dataclass(frozen=True)
class Pictures(Block):
    """Pictures in a row, with what they show below; `keys` names the colours of frames."""

    pictures: Sequence[Picture]
    caption: str
    keys: Sequence[tuple[str, str]] = ()
    films: bool = False


@dataclass(frozen=True)
class FrameGrid(Block):
    """Frames in rows and columns, each as data with what it is: given, right or wrong."""

    head: Sequence[str]
    rows: Mapping[str, Sequence[tuple[str, str]]]


@dataclass(frozen=True)
class Section:
    """A part of a page; one without blocks is left out."""

    title: str = ""
    text: str = ""
    blocks: Sequence[Block] = ()


@dataclass(frozen=True)
class Page:
    """A page: its title, facts in small type, one sentence in large type, and sections."""

    title: str
    sections: Sequence[Section]
    facts: Sequence[str] = ()
    lead: str = ""
    legend: Sequence[tuple[str, str]] = field(default_factory=tuple)


_ENVIRONMENT = Environment(
    loader=PackageLoader("dreamer4.reporting", "."),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
)
_ENVIRONMENT.filters |= {"signed": signed, "number": number, "percent": percent, "svg": Markup}


def render(page: Page) -> str:
    """Returns a page as HTML."""
    return _ENVIRONMENT.get_template("page.html").render(page=page)


def write_page(path: Path, page: Page) -> None:
    """Writes a page, replacing an earlier one at once, so that no reader meets half a file."""
    write_atomically(path, render(page))


def intervals(rows: Mapping[str, Estimate], *, strong: str = "", caption: str = "") -> Block:
    """Returns estimates as dots with bars on one axis.

    Args:
        rows: by name, at least one.
        strong: the name to stand out.
        caption: below.
    """
    values = np.array([(row.mean, row.low, row.high) for row in rows.values()])
    if not np.isfinite(values).all():
        return Note("No finite values.")
    start, end = padded(values)
    ticks = [float(t) for t in MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(start, end) if start <= t <= end]
    places = {name: (row.mean, row.low, row.high) for name, row in rows.items()}
    return Intervals(places, ticks, start, end - start, strong, caption)


def data_uri(content: bytes, kind: str) -> str:
    """Returns a picture as the address of itself."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
