"""Several runs on one page: what they return, how they learned, and in which settings they differ."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np

from dreamer4.errors import InputError
from dreamer4.evaluation.dreams import exact_share
from dreamer4.reporting.charts import Line, interval_chart, line_chart, number, signed, swatch
from dreamer4.reporting.report import is_metric, page, smoothed


_POLICIES = {"imagination": "Imagination policy", "cloned": "Cloned policy", "data": "Behaviour data"}
_STYLES = 5


@dataclass(frozen=True)
class ComparedRun:
    """What is known of a run.

    Attributes:
        name: how it is called here; unique.
        settings: every key of its configuration, as text.
        results: its `results.json`; empty if it has none yet.
        metrics: lines of its metric log.
    """

    name: str
    settings: Mapping[str, str] = field(default_factory=dict)
    results: Mapping[str, Any] = field(default_factory=dict)
    metrics: Sequence[Mapping[str, Any]] = ()


def render_comparison(runs: Sequence[ComparedRun]) -> str:
    """Returns the page as HTML.

    Raises:
        InputError: if two runs have one name.
    """
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise InputError(f"report: got {', '.join(names)}, expected runs of different names.")
    title = f"{len(runs)} runs compared"
    return page(title, [_header(title, runs), _returns(runs), _worlds(runs), _training(runs), _settings(runs)])


def _header(title: str, runs: Sequence[ComparedRun]) -> str:
    names = "".join(f"<span>{swatch(_line(i))}{escape(run.name)}</span>" for i, run in enumerate(runs))
    return f'<header><h1>{title}</h1><div class="legend">{names}</div></header>'


def _line(i: int, x: Sequence[float] = (), y: Sequence[float] = ()) -> Line:
    return Line(x, y, style=f"s{i % _STYLES + 1}")


def _returns(runs: Sequence[ComparedRun]) -> str:
    parts = []
    for policy, title in _POLICIES.items():
        rows = {run.name: run.results["returns"][policy] for run in runs if policy in run.results.get("returns", {})}
        if rows:
            best = max(rows, key=lambda name: rows[name]["mean"])
            chart = interval_chart(rows, emphasis=best if len(rows) > 1 else "", title=f"Mean return of the {title}")
            parts.append(f'<h3>{title}</h3><figure class="card">{chart}</figure>')
    if not parts:
        return ""
    return (
        "<section><h2>Returns in the real environment</h2><p>Mean return of an episode and its 95% bootstrap interval: "
        "over episodes for one training seed, over seeds for several. The best is strong.</p>"
        f"{''.join(parts)}</section>"
    )


def _worlds(runs: Sequence[ComparedRun]) -> str:
    rows = []
    for run in runs:
        if not run.results:
            rows.append([escape(run.name), *["not finished"], *[""] * 4])
            continue
        world = run.results.get("world_model", {})
        exact = exact_share(world)
        cells = [
            signed(run.results["returns"]["imagination"]["mean"]) if "returns" in run.results else "",
            f"{exact[1]:.1%} (K = {exact[0]})" if exact else "",
            f"{world['tokenizer_psnr']:.1f}" if "tokenizer_psnr" in world else "",
            f"{run.results['minutes']:.1f}" if "minutes" in run.results else "",
            escape(str(run.results.get("commit") or "")),
        ]
        rows.append([escape(run.name), *cells])
    head = ("Run", "Return", "Dreamt frames exact", "Tokenizer, dB", "Minutes", "Commit")
    return f"<section><h2>At a glance</h2>{_table(head, rows)}</section>"


def _training(runs: Sequence[ComparedRun]) -> str:
    phases = dict.fromkeys(str(record["phase"]) for run in runs for record in run.metrics)
    parts = []
    for phase in phases:
        logs = [[record for record in run.metrics if record["phase"] == phase] for run in runs]
        names = dict.fromkeys(
            name for log in logs for record in log for name, value in record.items() if is_metric(name, value)
        )
        charts = []
        for name in sorted(names, key=lambda name: "loss" not in name):
            lines = [_curve(i, name, log) for i, log in enumerate(logs)]
            chart = line_chart([line for line in lines if line.x], title=f"{phase} {name}", x_label="step")
            last = " · ".join(number(line.y[-1]) for line in lines if line.y)
            charts.append(
                f'<figure class="card"><div class="title">{escape(name)}<small>{last}</small></div>{chart}</figure>'
            )
        parts.append(f'<h3>{escape(phase)}</h3><div class="charts">{"".join(charts)}</div>')
    if not parts:
        return ""
    return (
        "<section><h2>Training</h2><p>Running means of each phase's metrics by training step, over training seeds "
        f"where there are several; beside the name, where they ended.</p>{''.join(parts)}</section>"
    )


def _curve(i: int, name: str, log: Sequence[Mapping[str, Any]]) -> Line:
    known = [record for record in log if is_metric(name, record.get(name))]
    values = np.array([np.ma.masked_invalid(record[name]).mean() for record in known], np.float64)
    return _line(i, [record["step"] for record in known], smoothed(values).tolist() if known else [])


def _settings(runs: Sequence[ComparedRun]) -> str:
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    rows = []
    for key in keys:
        values = [run.settings.get(key, "") for run in runs]
        if len(set(values)) > 1:
            rows.append([escape(key), *map(escape, values)])
    if not rows:
        return "<section><h2>Settings</h2><p>They have the same settings.</p></section>"
    table = _table(("Setting", *(escape(run.name) for run in runs)), rows)
    return f"<section><h2>Settings that differ</h2>{table}</section>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    names = "".join(f"<th>{name}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table></div>'
