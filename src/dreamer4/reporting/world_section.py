"""The part of a report that says how far the dreams can be trusted, from what `evaluate --world-model` writes."""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from dreamer4.evaluation.dreams import tells_exactness
from dreamer4.reporting.charts import Line, histogram_chart, interval_chart, line_chart, number, swatch


def world_section(record: Mapping[str, Any]) -> str:
    """Returns curves, warnings, heads and returns as HTML, or nothing for an empty record.

    Args:
        record: the entry of one training seed in `world_model.json`.
    """
    if not record:
        return ""
    return (
        _closeness(record)
        + _traces(record.get("traces", ()))
        + _heads(record["heads"])
        + _signals(record)
        + _returns(record["returns"])
    )


_CONTROLS = ("control", "control2", "control3", "control4")

_READ = (
    ("happened", "what happened", "band"),
    ("true", "heads on true frames", "s2"),
    ("dreamt", "heads on dreamt frames", "s4 over"),
)


def _traces(traces: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    for i, trace in enumerate(traces):
        charts = []
        for name in ("reward", "continuation", "value"):
            lines = [
                Line(range(1, len(trace[name][key]) + 1), trace[name][key], label, style)
                for key, label, style in _READ
                if trace[name][key]
            ]
            if any(value for line in lines for value in line.y):  # an untrained head says zero
                chart = line_chart(lines, title=f"{name} along episode {i + 1}", x_label="dreamt frames", markers=True)
                charts.append(_card(name, f"episode {i + 1}", chart))
        parts.append("".join(charts))
    if not any(parts):
        return ""
    return (
        '<h3>Along an episode, real and dreamt</h3><p class="note">Held-out episodes that earned most and least: what '
        "the heads say after each frame, once while they see the true frames and once while they see the dream of the "
        f'same actions.</p>{_legend((label, style) for _, label, style in _READ)}<div class="charts apart">'
        f"{''.join(parts)}</div>"
    )


def _legend(names: Iterable[tuple[str, str]]) -> str:
    entries = (f"<span>{swatch(Line((), (), name, style))}{escape(name)}</span>" for name, style in names)
    return f'<div class="legend">{"".join(entries)}</div>'


def _closeness(record: Mapping[str, Any]) -> str:
    charts = []
    for name, title, remark in (("psnr", "PSNR", "dB"), ("ssim", "SSIM", "1 is equal")):
        lines = _lines(record, name)
        if lines:
            charts.append(_card(title, remark, line_chart(lines, title=title, x_label="dreamt frames", markers=True)))
    means = [curves["mean"] for curves in _all_curves(record).values()]
    exact = tells_exactness(record)
    rows = []
    for line, mean in zip(_lines(record, "psnr"), means, strict=True):
        cells = [_percent(mean["exact"])] if exact else []
        rows.append([f"{swatch(line)}{escape(line.label)}", *cells, f"{mean['psnr']:.1f}", _plain(mean["ssim"], 3)])
    gains = record["comparisons"]
    given = record["context_length"]
    given = "1 frame" if given == 1 else f"{given} frames"
    return (
        f'<h3>Closeness to the truth</h3><div class="charts">{"".join(charts)}</div>'
        + _table(["", *(["exact"] if exact else []), "PSNR, dB", "SSIM"], rows)
        + f'<p class="note apart">{record["clips"]:,} dreams of held-out episodes, at most {given} '
        f"given. With K = {record['num_steps']}, PSNR is {gains['psnr_over_shuffled_actions']:+.1f} dB against "
        f"dreams with shuffled actions, {gains['psnr_over_last_frame']:+.1f} dB against repeating the last frame, and "
        f"{-gains['psnr_below_tokenizer']:+.1f} dB against the truth encoded and decoded.</p>"
    )


def _all_curves(record: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    passes = sorted(record["passes"].items(), key=lambda item: int(item[0]))
    return {f"K = {k}": curves for k, curves in passes} | dict(record["controls"])


def _lines(record: Mapping[str, Any], name: str) -> list[Line]:
    lines = []
    passes = len(record["passes"])
    for i, (label, curves) in enumerate(_all_curves(record).items()):
        style = f"s{i % 5 + 1}" if i < passes else _CONTROLS[(i - passes) % len(_CONTROLS)]
        if curves[name] is not None:
            lines.append(Line(range(1, len(curves[name]) + 1), curves[name], label, style))
    return lines


def _signals(record: Mapping[str, Any]) -> str:
    depths, histograms, rows = [], [], []
    exact = tells_exactness(record)  # else all frames are wrong in histograms of right and wrong
    for name, signal in record["signals"].items():
        title = escape(name.replace("_", " "))
        line = Line(range(1, len(signal["by_depth"]) + 1), signal["by_depth"])
        chart = line_chart([line], title=f"mean {name}", x_label="dreamt frames", markers=True)
        depths.append(_card(title, "mean", chart))
        if exact and (counts := signal.get("histogram")):
            groups = {"right": (counts["right"], "s1"), "wrong": (counts["wrong"], "bad")}
            chart = histogram_chart(counts["edges"], groups, title=f"histogram of {name}", x_label="value")
            histograms.append(_card(title, "share of frames", chart))
        pair = (signal["rank_correlation"], signal["rank_correlation_at_equal_depth"])
        rows.append([title, *(_plain(value, 2) for value in pair)])
    legend = _legend((("frames dreamt exactly right", "s1"), ("wrong frames", "bad")))
    return (
        f"<h3>Warnings without labels</h3>{legend if histograms else ''}"
        f'<div class="charts apart">{"".join(histograms)}</div><div class="charts apart">{"".join(depths)}</div>'
        + _table(["", "rank correlation with the true error", "at equal depth"], rows)
        + '<p class="note apart">None of these needs the truth. The rank correlation (Spearman) says how well each '
        "orders dreamt frames by their true error: 1 is perfectly, 0 not at all.</p>"
    )


def _heads(heads: Any) -> str:
    if isinstance(heads, str):
        return f'<h3>Reward and end</h3><p class="note">{escape(heads)}</p>'
    rows = []
    for read, scores in heads.items():
        for head, row in scores.items():
            shares = (row[key] for key in ("base_rate", "accuracy", "recall", "precision"))
            error = number(row["mae"]) if "mae" in row else ""
            rows.append([escape(head), escape(read), *(_percent(share) for share in shares), error])
    return (
        "<h3>Reward and end</h3>"
        + _table(["Head", "Frames", "base rate", "accuracy", "recall", "precision", "mean error"], rows)
        + '<p class="note apart">Rewards other than zero and terminations are rare events: the base rate is their '
        "share of all frames, recall the share found, precision the share of true alarms.</p>"
    )


def _returns(returns: Any) -> str:
    if isinstance(returns, str):
        return f'<h3>Imagined and real return</h3><p class="note">{escape(returns)}</p>'
    difference = {
        "Imagined minus real": {"mean": returns["difference"], "low": returns["low"], "high": returns["high"]}
    }
    chart = interval_chart(difference, emphasis="Imagined minus real", title="Imagined minus real return")
    verdict = escape(returns["verdict"])
    verdict = f"<b>{verdict}</b>" if returns["alarm"] else verdict
    return (
        f'<h3>Imagined and real return</h3><figure class="card">{chart}<figcaption>{returns["episodes"]:,} real '
        f"episodes, and a dream from the first frame of each under the same policy.</figcaption></figure>"
        f'<p class="apart">{verdict}</p>'
    )


def _card(title: str, remark: str, chart: str) -> str:
    return f'<figure class="card"><div class="title">{title}<small>{remark}</small></div>{chart}</figure>'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    names = "".join(f"<th{_numeric(i)}>{name}</th>" for i, name in enumerate(head))
    body = "".join(
        "<tr>" + "".join(f"<td{_numeric(i)}>{cell}</td>" for i, cell in enumerate(row)) + "</tr>" for row in rows
    )
    return f'<div class="scroll apart"><table><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table></div>'


def _numeric(column: int) -> str:
    return ' class="number"' if column else ""


def _percent(share: float | None) -> str:
    return "n/a" if share is None else f"{share:.1%}"


def _plain(value: float | None, digits: int) -> str:
    return "n/a" if value is None or not math.isfinite(value) else f"{value:.{digits}f}".replace("-", "−")
