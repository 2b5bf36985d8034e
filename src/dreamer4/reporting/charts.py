"""Line charts as inline SVG, and dots with intervals as HTML; both take their colours from the page's style.

A chart is small enough to be shown at its own size on a phone, so its text is never shrunk; a page shows many side by
side rather than one large. Nothing is drawn that the reader could misread: gaps stay gaps, logarithmic axes say so.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape


_WIDTH, _HEIGHT = 340, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 16, 10, 34
_MOST_POINTS = 240


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        x: positions, ascending.
        y: values; what is not finite interrupts the line.
        label: name of the line, for the text beside the chart.
        style: class of the page's style, `s1` to `s5` for series, `control` and `control2` for comparisons.
        faint: whether it is drawn as a background, such as the values before smoothing.
        filled: whether the area down to the horizontal axis is tinted.
    """

    x: Sequence[float]
    y: Sequence[float]
    label: str = ""
    style: str = "s1"
    faint: bool = False
    filled: bool = False


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
    """Returns an SVG element.

    Args:
        lines: at least one line with a finite value; otherwise a line of text stands in place of the chart.
        title: what is drawn, for readers who cannot see it.
        x_label: text under the horizontal axis.
        y_range: ends of the vertical axis; None: from the values.
        logarithmic: whether the vertical axis is logarithmic; values must be positive.
        percent: whether values are shares, to be written as percent.
        markers: whether each point is marked.
    """
    finite = [(x, y) for line in lines for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]
    if not finite:
        return '<p class="empty">No finite values.</p>'
    x_low, x_high = min(x for x, _ in finite), max(x for x, _ in finite)
    y_low, y_high = y_range or _padded(min(y for _, y in finite), max(y for _, y in finite), logarithmic)

    def place_x(x: float) -> float:
        return _LEFT + (x - x_low) / ((x_high - x_low) or 1) * (_WIDTH - _LEFT - _RIGHT)

    def place_y(y: float) -> float:
        low, high, value = (math.log10(v) for v in (y_low, y_high, y)) if logarithmic else (y_low, y_high, y)
        return _HEIGHT - _BOTTOM - (value - low) / ((high - low) or 1) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">']
    for tick in log_ticks(y_low, y_high) if logarithmic else ticks(y_low, y_high, 4):
        y = place_y(tick)
        text = f"{tick:.0%}" if percent else number(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick end" x="{_LEFT - 7}" y="{y + 3.5:.1f}">{text}</text>')
    whole = all(x == int(x) for x, _ in finite)
    for tick in ticks(x_low, x_high, 4, whole=whole):
        parts.append(
            f'<text class="tick mid" x="{place_x(tick):.1f}" y="{_HEIGHT - _BOTTOM + 15}">{number(tick)}</text>'
        )
    base = _HEIGHT - _BOTTOM
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{base}" y2="{base}"/>')
    parts.append(f'<text class="tick end" x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 4}">{escape(x_label)}</text>')
    for line in lines:
        kind = f"line {line.style}" + (" faint" if line.faint else "")
        for stretch in _stretches(line):
            points = [(place_x(x), place_y(min(max(y, y_low), y_high))) for x, y in stretch]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            if line.filled:
                ends = f"{points[-1][0]:.1f},{base} {points[0][0]:.1f},{base}"
                parts.append(f'<polygon class="area {line.style}" points="{path} {ends}"/>')
            if len(points) > 1:
                parts.append(f'<polyline class="{kind}" points="{path}"/>')
            if markers or len(points) == 1:
                parts += [f'<circle class="dot {line.style}" cx="{x:.1f}" cy="{y:.1f}" r="2.4"/>' for x, y in points]
    return "".join(parts) + "</svg>"


def histogram_chart(
    edges: Sequence[float], counts: Mapping[str, tuple[Sequence[int], str]], *, title: str, x_label: str
) -> str:
    """Returns an SVG element with a stepped area for each group: the share of its members in each bin.

    Args:
        edges: ends of the bins, ascending, one more than bins.
        counts: by name of a group, members in each bin, and the style of its line. Empty groups are left out.
        title: what is drawn, for readers who cannot see it.
        x_label: text under the horizontal axis.
    """
    lines = []
    for name, (group, style) in counts.items():
        total = sum(group)
        if total:
            x = [edge for edge in edges for _ in range(2)][1:-1]
            lines.append(Line(x, [n / total for n in group for _ in range(2)], name, style, filled=True))
    highest = max((max(line.y) for line in lines), default=1.0)
    return line_chart(lines, title=title, x_label=x_label, y_range=(0.0, 1.06 * highest), percent=True)


def swatch(line: Line) -> str:
    """Returns a piece of the line, to stand beside its name."""
    return (
        '<svg class="swatch" viewBox="0 0 22 8" aria-hidden="true">'
        f'<line class="line {line.style}" x1="1" x2="21" y1="4" y2="4"/></svg>'
    )


def interval_chart(rows: Mapping[str, Mapping[str, float]], *, emphasis: str, title: str) -> str:
    """Returns an HTML element with a row per name: a dot at `mean`, a bar from `low` to `high`, the numbers beside.

    Args:
        rows: `mean`, `low` and `high` by name.
        emphasis: the row to stand out.
        title: what is drawn, for readers who cannot see it.
    """
    lows, highs = [r["low"] for r in rows.values()], [r["high"] for r in rows.values()]
    if not all(map(math.isfinite, [*lows, *highs])):
        return '<p class="empty">No finite values.</p>'
    low, high = _padded(min(lows), max(highs), False)
    marks = ticks(low, high, 5)

    def place(x: float) -> float:
        return 100 * (x - low) / ((high - low) or 1)

    grid = "".join(f'<i class="grid" style="left:{place(m):.2f}%"></i>' for m in marks)
    parts = [f'<div class="intervals" role="img" aria-label="{escape(title)}">']
    for name, row in rows.items():
        left, right = place(row["low"]), place(row["high"])
        parts.append(
            f'<div class="row{" strong" if name == emphasis else ""}"><span class="name">{escape(name)}</span>'
            f'<span class="track">{grid}<i class="bar" style="left:{left:.2f}%;width:{right - left:.2f}%"></i>'
            f'<i class="point" style="left:{place(row["mean"]):.2f}%"></i></span>'
            f'<span class="value">{signed(row["mean"])}</span></div>'
        )
    labels = "".join(f'<i style="left:{place(m):.2f}%">{number(m)}</i>' for m in marks)
    parts.append(f'<div class="row scale"><span></span><span class="track">{labels}</span><span></span></div></div>')
    return "".join(parts)


def number(value: float) -> str:
    """Writes a number in at most about five characters, with a true minus sign."""
    if not math.isfinite(value):
        return "∞" if value > 0 else "−∞" if value < 0 else "n/a"
    size = abs(value)
    if size >= 10_000 or 0 < size < 0.001:
        mantissa, exponent = f"{value:.1e}".split("e")
        text = f"{mantissa.removesuffix('.0')}e{int(exponent)}"
        for scale, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
            if size >= scale:
                text = f"{value / scale:.3g}{letter}" if size < 1e12 else text
                break
    else:
        text = f"{value:.3g}" if size < 1000 else f"{value:.0f}"
    return text.replace("-", "−")


def signed(value: float) -> str:
    """Writes a return with its sign, two decimals where they say something."""
    if not math.isfinite(value):
        return number(value)
    return f"{value:+.2f}".replace("-", "−") if abs(value) < 100 else f"{value:+.0f}".replace("-", "−")


def ticks(low: float, high: float, count: int, *, whole: bool = False) -> list[float]:
    """Returns about `count` round numbers between two values, whole ones if asked."""
    span = high - low
    if span <= 0 or not math.isfinite(span):
        return [low]
    rough = span / count
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= rough * 0.999)
    step = max(step, 1.0) if whole else step
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Returns the powers of ten between two positive values, and 2 and 5 times them if those are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    decades = [10.0**p for p in powers if low <= 10.0**p <= high]
    if len(decades) >= 3:
        return decades[:: math.ceil(len(decades) / 5)]
    return [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high]


def _padded(low: float, high: float, logarithmic: bool) -> tuple[float, float]:
    if logarithmic:
        return low / 1.15, high * 1.15
    pad = 0.06 * (high - low) or 0.5 * abs(low) or 0.5
    return low - pad, high + pad


def _stretches(line: Line) -> list[list[tuple[float, float]]]:
    """Returns the line cut at values that are not finite, and thinned to what a screen can show."""
    stretches, current = [], []
    for x, y in zip(line.x, line.y, strict=True):
        if math.isfinite(y):
            current.append((x, y))
        elif current:
            stretches.append(current)
            current = []
    if current:
        stretches.append(current)
    return [_thinned(stretch) for stretch in stretches]


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    if len(points) <= _MOST_POINTS:
        return points
    # The extremes of each bucket stay, in their order: means would hide the spikes that a reader looks for.
    size = math.ceil(2 * len(points) / _MOST_POINTS)
    thinned = []
    for start in range(0, len(points), size):
        bucket = points[start : start + size]
        thinned += sorted({min(bucket, key=lambda p: p[1]), max(bucket, key=lambda p: p[1])})
    return thinned
