"""Charts by matplotlib as inline SVG that takes its colours from the page, light or dark; and how numbers are written.

A chart is small enough to be shown at its own size on a phone, so its text is never shrunk; a page shows many side by
side rather than one large. Nothing is drawn that the reader could misread: gaps stay gaps, logarithmic axes say so.
"""

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullLocator


_WIDTH, _HEIGHT = 340, 190  # units of the SVG: pixels, where a chart is shown at its own size
_MOST_POINTS = 240
# matplotlib wants colours; each of these stands for the variable of the page that takes its place.
_COLOURS = {
    name: f"#0d4e0{i:x}" for i, name in enumerate(("s1", "s2", "s3", "s4", "s5", "control", "bad", "soft", "line"))
}
_DASHES = {"control": (0, (4, 3)), "control2": (0, (1, 3)), "control3": (0, (8, 3)), "control4": (0, (6, 3, 1, 3))}
SERIES = ("s1", "s2", "s3", "s4", "s5")
CONTROLS = tuple(_DASHES)


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        x: positions, ascending.
        y: values; what is not finite interrupts the line.
        style: `s1` to `s5` for series, `control` to `control4` for comparisons, `bad`, `band` for a broad pale line.
        faint: whether it is drawn as a background, such as the values before smoothing.
        around: low and high of an area in the same colour, such as the range over runs.
    """

    x: Sequence[float]
    y: Sequence[float]
    style: str = "s1"
    faint: bool = False
    around: tuple[Sequence[float], Sequence[float]] | None = None


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str,
    y_range: tuple[float, float] | None = None,
    logarithmic: bool = False,
    percent: bool = False,
    markers: bool = False,
) -> str:
    """Returns an SVG element, or nothing if no value is finite.

    Args:
        lines: what is drawn.
        title: what is drawn, for readers who cannot see it.
        x_label: text under the horizontal axis.
        y_range: ends of the vertical axis; None: from the values.
        logarithmic: whether the vertical axis is logarithmic; values must be positive.
        percent: whether values are shares, to be written as percent.
        markers: whether each point is marked.
    """
    drawn = [(line, *_thinned(np.asarray(line.x, float), np.asarray(line.y, float))) for line in lines]
    shown = [y for _, _, y in drawn] + [np.asarray(y, float) for line in lines for y in line.around or ()]
    values = np.concatenate([y[np.isfinite(y)] for y in shown] or [np.empty(0)])
    if not values.size:
        return ""
    figure, axes = _axes(x_label, y_range or padded(values, logarithmic=logarithmic), logarithmic, percent)
    whole = all((x == np.round(x)).all() for _, x, _ in drawn)
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10], integer=whole))
    for line, x, y in drawn:
        look = {"color": _colour(line.style), "linestyle": _DASHES.get(line.style, "-"), "linewidth": 1.8}
        look |= {"linewidth": 7, "alpha": 0.3} if line.style == "band" else {}
        look |= {"linewidth": 1, "alpha": 0.3} if line.faint else {}
        finite = np.isfinite(y)
        alone = finite & ~np.roll(finite, 1) & ~np.roll(finite, -1) if y.size > 2 else finite
        axes.plot(x, y, **look, solid_capstyle="round", solid_joinstyle="round")
        if line.around is not None:
            axes.fill_between(line.x, *line.around, color=look["color"], alpha=0.2, linewidth=0)
        if (dotted := finite if markers and line.style != "band" else alone).any():
            axes.plot(x[dotted], y[dotted], ".", color=look["color"], markersize=6.5, markeredgewidth=0)
    return _svg(figure, title)


def histogram_chart(
    edges: Sequence[float], counts: Mapping[str, tuple[Sequence[int], str]], *, title: str, x_label: str = ""
) -> str:
    """Returns an SVG element with a stepped area for each group: the share of its members in each bin.

    Args:
        edges: ends of the bins, ascending, one more than bins.
        counts: by name of a group, members in each bin, and the style of its line. Empty groups are left out.
        title: what is drawn, for readers who cannot see it.
        x_label: text under the horizontal axis.
    """
    shares = [(np.asarray(group) / sum(group), style) for group, style in counts.values() if sum(group)]
    if not shares:
        return ""
    figure, axes = _axes(x_label, (0.0, 1.06 * max(float(s.max()) for s, _ in shares)), False, True)
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    for share, style in shares:
        axes.stairs(share, edges, fill=True, color=_colour(style), alpha=0.16, linewidth=0)
        axes.stairs(share, edges, color=_colour(style), linewidth=1.8)
    return _svg(figure, title)


def number(value: float) -> str:
    """Writes a number in at most about five characters, with a true minus sign."""
    if not math.isfinite(value):
        return "∞" if value > 0 else "−∞" if value < 0 else "n/a"
    size = abs(value)
    if 10_000 <= size < 1e12:
        text = EngFormatter(sep="")(float(f"{value:.3g}"))
    elif size >= 1e12 or 0 < size < 0.001:
        mantissa, exponent = f"{value:.1e}".split("e")
        text = f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    else:
        text = f"{value:.3g}" if size < 1000 else f"{value:.0f}"
    return text.replace("-", "−")


def signed(value: float) -> str:
    """Writes a return with its sign, two decimals where they say something."""
    if not math.isfinite(value):
        return number(value)
    return f"{value:+.2f}".replace("-", "−") if abs(value) < 100 else f"{value:+.0f}".replace("-", "−")


def percent(share: float | None) -> str:
    """Writes a share in percent, and one that is not known as n/a."""
    return "n/a" if share is None or not math.isfinite(share) else f"{share:.1%}"


def padded(values: Float[np.ndarray, "*dims"], *, logarithmic: bool = False) -> tuple[float, float]:
    """Returns the ends of an axis on which the values stand with some room."""
    low, high = float(values.min()), float(values.max())
    if logarithmic:
        return low / 1.15, high * 1.15
    pad = 0.06 * (high - low) or 0.5 * abs(low) or 0.5
    return low - pad, high + pad


def _colour(style: str) -> str:
    return _COLOURS["control" if style.startswith(("control", "band")) else style]


def _axes(x_label: str, y_range: tuple[float, float], logarithmic: bool, percent: bool):
    figure = Figure(figsize=(_WIDTH / 72, _HEIGHT / 72))
    axes = figure.add_axes((44 / _WIDTH, 34 / _HEIGHT, 280 / _WIDTH, 146 / _HEIGHT))
    axes.set_yscale("log" if logarithmic else "linear")
    axes.set_ylim(*y_range)
    axes.margins(x=0)
    decades = math.log10(y_range[1] / y_range[0]) if logarithmic else 0
    axes.yaxis.set_major_locator(
        LogLocator(subs=(1.0,) if decades >= 2 else (1.0, 2.0, 5.0), numticks=6)
        if logarithmic
        else MaxNLocator(4, steps=[1, 2, 5, 10])
    )
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.0%}" if percent else number(y)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: number(x)))
    axes.tick_params(length=0, pad=6, labelsize=10.5, labelcolor=_COLOURS["soft"])
    axes.grid(axis="y", color=_COLOURS["line"], linewidth=1)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set(visible=side == "bottom", color=_COLOURS["control"], linewidth=1)
    figure.text(1 - 16 / _WIDTH, 4 / _HEIGHT, x_label, ha="right", fontsize=10.5, color=_COLOURS["soft"])
    return figure, axes


def _svg(figure: Figure, title: str) -> str:
    """Returns the figure as an element of a page: without what belongs to a file, and in the colours of the page."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "dreamer4"}):
        figure.savefig(buffer, format="svg", transparent=True)
    text = buffer.getvalue().partition("<svg")[2].partition(">")[2]
    text = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<(style|clipPath).*?</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r' clip-path="[^"]*"| id="[^"m][^"]*"| id="matplotlib[^"]*"| transform="rotate\(-0[^"]*"', "", text)
    text = re.sub(r"font-size: ([\d.]+)px; font-family: [^;]*", r"font-size: \1px", text.replace("xlink:href", "href"))
    # Coordinates need no more digits; what is written between tags does.
    short = partial(re.sub, r"\d+\.\d{2,}", lambda digits: f"{float(digits[0]):.1f}")
    text = re.sub(r"<[^>]*>", lambda tag: short(tag[0]), re.sub(r"\s+", " ", text))
    for name, colour in _COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">{text}'


def _thinned(x: Float[np.ndarray, " N"], y: Float[np.ndarray, " N"]):
    """Returns no more points than a screen can show."""
    y = np.where(np.isfinite(y), y, math.nan)
    if len(y) <= _MOST_POINTS:
        return x, y
    # The extremes of each stretch stay, in their order: means would hide the spikes that a reader looks for.
    kept: set[int] = set()
    for part in np.array_split(np.arange(len(y)), _MOST_POINTS // 2):
        missing = ~np.isfinite(y[part])
        kept |= {int(part[np.where(missing, math.inf, y[part]).argmin()])}
        kept |= {int(part[np.where(missing, -math.inf, y[part]).argmax()])}
        kept |= {int(part[missing.argmax()])} if missing.any() else set()
    index = np.array(sorted(kept))
    return x[index], y[index]
