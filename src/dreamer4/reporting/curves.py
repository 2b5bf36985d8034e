"""Metrics of training by phase and step, of one run or of several, as charts."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from markupsafe import Markup

from dreamer4.reporting.figures import SERIES, Line, line_chart, number
from dreamer4.reporting.page import Chart, blocks


Metrics = Sequence[Mapping[str, Any]]

_OPEN_CHARTS = 6


def training_blocks(metrics: Metrics) -> list[Markup]:
    """Returns the charts of each phase of a run: what was measured, and its running mean."""
    found: list[Markup] = []
    for phase, names, (records,) in _phases([metrics]):
        charts = [chart for name in names if (chart := _curve(phase, name, records)) is not None]
        found += [blocks.heading(phase), blocks.charts(charts, shown=_OPEN_CHARTS)]
    return found


def heads_blocks(metrics: Metrics) -> list[Markup]:
    """Returns what training the heads to the end, behind the agent phase, came to; nothing if a run left it out."""
    looks = [record for record in metrics if record["phase"] == "heads"]
    if not looks:
        return []

    def nats(term: str) -> tuple[str, str]:
        values = np.array([np.atleast_1d(np.asarray(look[term], np.float64)) for look in looks])
        return number(values[0].mean()), number(values.min(axis=0).mean())

    head = ("Nats on held-out episodes", "Agent phase", "Trained to the end", "A fresh, wide one on the same read-out")
    names = {"Policy": "cloning", "Reward": "reward", "Continuation": "continuation"}
    rows = [(name, *nats(term), nats("probe")[1] if name == "Policy" else "") for name, term in names.items()]
    return [blocks.heading("The agent's heads"), blocks.table(head, rows)]


def compared_blocks(metrics: Sequence[Metrics]) -> list[Markup]:
    """Returns the charts of each phase with a line for each run: running means, over training seeds if several."""
    found: list[Markup] = []
    for phase, names, logs in _phases(metrics):
        charts = []
        for name in names:
            lines = [_mean_line(name, log, SERIES[i % len(SERIES)]) for i, log in enumerate(logs)]
            last = " · ".join(number(line.y[-1]) for line in lines if len(line.y))
            charts.append(Chart(name, line_chart(lines, title=f"{phase} {name}", x_label="step"), last))
        found += [blocks.heading(phase), blocks.charts(charts)]
    return found


def smoothed(values: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """Returns the exponential running mean over about a twentieth of the points, free of start-up bias.

    What is not finite stays where it is and leaves the mean alone.
    """
    keep = 1 - 1 / max(1.0, len(values) / 20)
    total = weight = 0.0
    smoothed = np.array(values)
    for i, value in enumerate(values):
        if math.isfinite(value):
            total, weight = keep * total + value, keep * weight + 1
            smoothed[i] = total / weight
    return smoothed


def _phases(metrics: Sequence[Metrics]) -> Iterator[tuple[str, list[str], Sequence[Metrics]]]:
    """Yields each phase with the names of its metrics, losses first, and the log of each run."""
    for phase in dict.fromkeys(str(record["phase"]) for log in metrics for record in log):
        logs = [[record for record in log if str(record["phase"]) == phase] for log in metrics]
        names = dict.fromkeys(n for log in logs for record in log for n, v in record.items() if _is_metric(n, v))
        yield phase, sorted(names, key=lambda name: "loss" not in name), logs


def _is_metric(name: str, value: Any) -> bool:
    """Returns whether an entry of a metric line is a number, or one for each training seed."""
    if name in ("phase", "step", "time") or isinstance(value, bool):
        return False
    several = isinstance(value, list) and all(isinstance(v, int | float) for v in value)
    return several or isinstance(value, int | float)


def _curve(phase: str, name: str, records: Metrics) -> Chart | None:
    known = [record for record in records if _is_metric(name, record.get(name))]
    points = [np.atleast_1d(np.asarray(record[name], np.float64)) for record in known]
    if len({point.shape for point in points}) != 1:
        return None
    steps, values = [record["step"] for record in known], np.stack(points)
    average = smoothed(np.ma.masked_invalid(values).mean(axis=1).filled(math.nan))
    lines = [Line(steps, column.tolist(), faint=True) for column in values.T] + [Line(steps, average.tolist())]
    finite, settled = values[np.isfinite(values)], average[np.isfinite(average)]
    # A logarithmic axis serves what falls by orders of magnitude; noise around zero it would only magnify.
    logarithmic = bool(finite.size and finite.min() > 0 and settled[0] > 20 * settled[-1])
    remarks = [number(float(settled[-1]))] if settled.size else []
    remarks += ["log scale"] if logarithmic else []
    remarks += [f"{values.size - finite.size} not finite"] if finite.size < values.size else []
    title = name.removeprefix(f"{phase}/")
    svg = line_chart(lines, title=f"{phase} {title}", x_label="step", logarithmic=logarithmic)
    return Chart(title, svg, " · ".join(remarks))


def _mean_line(name: str, log: Metrics, style: str) -> Line:
    known = [record for record in log if _is_metric(name, record.get(name))]
    values = np.array([np.ma.masked_invalid(record[name]).mean() for record in known], np.float64)
    return Line([record["step"] for record in known], smoothed(values).tolist(), style=style)
