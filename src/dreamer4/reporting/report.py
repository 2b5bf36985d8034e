"""The report of a run: one HTML file that needs nothing else, for a person who was not there.

What matters comes first: what the agent earns in the real environment. Then what it believed (dreams beside the truth),
what it saw (reconstructions), how it learned (curves), and everything needed to run it again. A section whose data is
missing is left out. Nothing is fetched: styles, pictures and charts are inside, and the page forbids itself the rest.
"""

import base64
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Array, UInt8

from dreamer4.evaluation.dreams import Grid, tells_exactness
from dreamer4.reporting import media
from dreamer4.reporting.charts import Line, interval_chart, line_chart, number, signed, swatch
from dreamer4.reporting.grids import grid_table
from dreamer4.reporting.theme import STYLE
from dreamer4.reporting.world_section import world_section


Frame = UInt8[Array | np.ndarray, "H W C"]
Video = UInt8[Array | np.ndarray, "_ H W C"]

_POLICIES = {
    "random": "Random actions",
    "data": "Behaviour data",
    "cloned": "Cloned policy",
    "imagination": "Imagination policy",
}
_PICTURE_BYTES = 3_000_000  # of each kind, before base64 adds a third: the file stays under 10 MB
_OPEN_CHARTS = 6


@dataclass(frozen=True)
class Report:
    """What a report shows, as plain data; everything but the title may be empty.

    Attributes:
        title: heading of the page.
        run: facts of the run in the order to show them, such as env, seed, preset, minutes, device, commit.
        provenance: what else is needed to make it again or to know it by, such as the fingerprint of its data.
        packages: versions by package.
        returns: `mean`, `low`, `high` and `episodes` by policy, and the means of `seeds` where the interval is over
            several; the four policies of a demo get readable names.
        metrics: lines of the metric log; a list in place of a number holds one value per training seed.
        reconstructions: triples of a frame, the frame as the encoder saw it, and the frame as decoded.
        dreams: triples, from held-out episodes, of the true frames, the frames dreamt for the same actions, and the
            number of first frames that the model was given.
        dream_grids: clips dreamt with several K and under the wrong actions.
        dream_accuracy: by number K of denoise passes, the share of frames exactly right at each step after the context.
        dream_controls: the same for what a dream must beat, such as shuffled actions or repeating the last frame.
        world_model: what `dreamer4 evaluate --world-model` writes for one training seed.
        notes: paragraphs of plain text.
        config: the configuration as YAML.
    """

    title: str
    run: Mapping[str, str | int | float] = field(default_factory=dict)
    provenance: Mapping[str, str | int | float] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)
    returns: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    metrics: Sequence[Mapping[str, Any]] = ()
    reconstructions: Sequence[tuple[Frame, Frame, Frame]] = ()
    dreams: Sequence[tuple[Video, Video, int]] = ()
    dream_grids: Sequence[Grid] = ()
    dream_accuracy: Mapping[int, Sequence[float]] = field(default_factory=dict)
    dream_controls: Mapping[str, Sequence[float]] = field(default_factory=dict)
    world_model: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    config: str = ""


def write_report(path: Path, report: Report) -> None:
    """Writes the report as one HTML file, replacing an earlier one; the file appears only when it is complete."""
    write_page(path, render_report(report))


def write_page(path: Path, html: str) -> None:
    """Writes a page as `write_report` does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".tmp")
    partial.write_text(html, encoding="utf-8")
    os.replace(partial, path)


def render_report(report: Report) -> str:
    """Returns the report as HTML."""
    sections = [
        _header(report),
        _returns(report),
        _dreams(report),
        _reconstructions(report),
        _training(report),
        _notes(report),
        _details(report),
    ]
    return page(report.title, sections)


def page(title: str, sections: Sequence[str]) -> str:
    """Returns sections of HTML as a page that carries its style and fetches nothing."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(section for section in sections if section)
        + "\n</main>\n</body>\n</html>\n"
    )


def _header(report: Report) -> str:
    facts = " · ".join(escape(_fact(name, value)) for name, value in report.run.items())
    parts = [f"<header><h1>{escape(report.title)}</h1>"]
    if facts:
        parts.append(f'<p class="facts">{facts}</p>')
    if "imagination" in report.returns:
        ours = report.returns["imagination"]
        sentence = (
            f"In the real environment, the policy trained in imagination returns <b>{signed(ours['mean'])}</b> on "
            f"average over {ours['episodes']:,} episodes"
        )
        if "data" in report.returns:
            sentence += f"; the data it learned from returns {signed(report.returns['data']['mean'])}"
        parts.append(f'<p class="lead">{sentence}.</p>')
    return "".join(parts) + "</header>"


def _returns(report: Report) -> str:
    if not report.returns:
        return ""
    named = {_POLICIES.get(name, name): row for name, row in report.returns.items()}
    best = _POLICIES["imagination"]
    chart = interval_chart(named, emphasis=best, title="Mean return of each policy with its 95% interval")
    rows = "".join(
        f'<tr{_strong(name == best)}><td>{escape(name)}</td><td class="number">{signed(row["mean"])}</td>'
        f'<td class="number">{signed(row["low"])} to {signed(row["high"])}</td>'
        f'<td class="number">{row["episodes"]:,}</td></tr>'
        for name, row in named.items()
    )
    seeds = max(len(row.get("seeds", ())) for row in named.values())
    over = (
        f"over {seeds} training seeds where a policy was trained, over episodes elsewhere" if seeds else "over episodes"
    )
    return (
        f'<section><figure class="card">{chart}<figcaption>Mean return of an episode in the real environment. Each dot '
        f"is a mean, each bar its 95% bootstrap interval {over}; where the bar is hidden, the interval is "
        f"narrower than the dot.</figcaption></figure>{_tiles(report)}"
        '<div class="scroll apart"><table><thead><tr><th>Policy</th><th class="number">Mean</th>'
        '<th class="number">95% interval</th><th class="number">Episodes</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div></section>"
    )


def _tiles(report: Report) -> str:
    tiles = []
    if "imagination" in report.returns and "data" in report.returns:
        gain = report.returns["imagination"]["mean"] - report.returns["data"]["mean"]
        tiles.append((signed(gain), "mean return above the data"))
    if accuracy := _headline_accuracy(report):
        passes, share = accuracy
        tiles.append((f"{share:.1%}", f"of dreamt frames exactly right, K&nbsp;=&nbsp;{passes}"))
    minutes = report.run.get("minutes")
    if isinstance(minutes, int | float):
        tiles.append((f"{minutes:.1f}", "minutes for the whole run"))
    return _join('<div class="tiles">', (f"<div><b>{b}</b><span>{s}</span></div>" for b, s in tiles), "</div>")


def _headline_accuracy(report: Report) -> tuple[int, float] | None:
    """Returns K of the agent's own sampler, and the share of its dreamt frames that are exactly right."""
    world = report.world_model
    if "passes" not in world or not tells_exactness(world):
        return None
    passes = world["num_steps"]
    share = world["passes"][str(passes)]["mean"]["exact"]
    return (passes, share) if math.isfinite(share) else None


def _dreams(report: Report) -> str:
    accuracy, films, world = _dream_accuracy(report), _dream_films(report), world_section(report.world_model)
    grids = _dream_grids(report)
    if not accuracy and not films and not grids and not world:
        return ""
    return (
        "<section><h2>Dreams beside the truth</h2><p>The world model is given the first frames of an episode that it "
        "was not trained on, then only the actions that were really taken. It dreams the rest, and the dream is laid "
        f"beside what happened.</p>{films}{grids}{accuracy}{world}</section>"
    )


def _dream_films(report: Report) -> str:
    cards, size = [], 0
    for truth, dream, context_length in report.dreams:
        scale = media.fitting_scale(truth.shape[1:], 96)
        film = media.side_by_side(truth, dream, context_length=context_length, scale=scale)
        colours = media.frame_colours(truth, dream, context_length)
        strips = [media.film_strip(media.to_rgb(v, scale=max(1, scale // 3)), borders=colours) for v in (truth, dream)]
        moving, still = media.gif(film, fps=4), media.png(np.concatenate(strips, axis=0))
        size += len(moving) + len(still)
        if cards and size > _PICTURE_BYTES:
            break
        imagined = colours[context_length:]
        right = imagined.count(media.RIGHT)
        cards.append(
            f'<figure><picture><source media="(prefers-reduced-motion: reduce)" srcset="{_data_uri(still, "png")}">'
            f'<img src="{_data_uri(moving, "gif")}" alt="Truth, dream and difference, {len(truth)} frames"></picture>'
            f"<figcaption>{right} of {len(imagined)} dreamt frames without red</figcaption></figure>"
        )
    shown = "" if len(cards) == len(report.dreams) else f" Shown: {len(cards)} of {len(report.dreams)}."
    return _join(
        '<figure><div class="frames films">',
        cards,
        # Another rule than that of exact frames, which films of many colours never are.
        "</div><figcaption>Left the truth, in the middle the dream, on the right the truth dimmed with every pixel in "
        "red that is off by more than half the range of colours. Border and timeline: "
        '<i class="key given"></i> frame given, <i class="key right"></i> dreamt without such a pixel, '
        f'<i class="key wrong"></i> dreamt with one.{shown}</figcaption></figure>',
    )


def _dream_grids(report: Report) -> str:
    tables, size = [], 0
    for grid in report.dream_grids:
        table = grid_table(grid)
        size += len(table)
        if tables and size > _PICTURE_BYTES:
            break
        tables.append(f'<figure class="card">{table}</figure>')
    return _join(
        "<h3>More passes, wrong actions</h3>",
        tables,
        '<p class="note apart">The same clips dreamt with K denoise passes per frame; and, with the K of the agent, '
        "under actions that were not taken, where a dream that follows them must differ. Pixels off by more than half "
        "the range of colours are red, darker ones are missing.</p>",
    )


def _dream_accuracy(report: Report) -> str:
    lines = [
        Line(range(1, len(shares) + 1), list(shares), f"K = {passes}", f"s{i % 5 + 1}")
        for i, (passes, shares) in enumerate(sorted(report.dream_accuracy.items()))
    ] + [
        Line(range(1, len(shares) + 1), list(shares), name, ("control", "control2")[i % 2])
        for i, (name, shares) in enumerate(report.dream_controls.items())
    ]
    if not lines or not tells_exactness(report.world_model):
        return ""
    chart = line_chart(
        lines, title="Share of exact frames", x_label="dreamt frames", y_range=(0, 1.02), percent=True, markers=True
    )
    rows = "".join(
        f'<tr><td>{swatch(line)}{escape(line.label)}</td><td class="number">{_percent(_mean(line.y))}</td>'
        f'<td class="number">{_percent(line.y[-1] if line.y else math.nan)}</td></tr>'
        for line in lines
    )
    table = (
        '<table><thead><tr><th></th><th class="number">mean</th><th class="number">last frame</th></tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )
    return (
        f'<figure class="card apart"><div class="beside"><div>{chart}</div><div class="scroll">{table}</div></div>'
        "<figcaption>Share of dreamt frames in which every pixel is right after rounding, by distance from the last "
        "given frame. K is the number of denoise passes per frame; dashed and dotted lines are what a dream has to "
        "beat.</figcaption></figure>"
    )


def _reconstructions(report: Report) -> str:
    cards, size = [], 0
    for triple in report.reconstructions:
        scale = media.fitting_scale(triple[0].shape, 96)
        rows = [media.to_rgb(np.asarray(frame)[None], scale=scale) for frame in triple]
        picture = media.png(media.contact_sheet(rows))
        size += len(picture)
        if cards and size > _PICTURE_BYTES:
            break
        cards.append(f'<figure><img src="{_data_uri(picture, "png")}" alt="Original, masked, reconstruction"></figure>')
    return _join(
        "<section><h2>What the tokenizer sees</h2><p>The tokenizer learns to restore frames of which it sees only a "
        'part.</p><figure><div class="frames">',
        cards,
        "</div><figcaption>Each column from top to bottom: the original frame, the same with its hidden patches, "
        "and the frame decoded from its latent tokens. Each is the one of its episode of which most was hidden."
        "</figcaption></figure></section>",
    )


def _training(report: Report) -> str:
    phases: dict[str, list[Mapping[str, Any]]] = {}
    for record in report.metrics:
        phases.setdefault(str(record["phase"]), []).append(record)
    parts = []
    for phase, records in phases.items():
        names = list(
            dict.fromkeys(name for record in records for name, value in record.items() if is_metric(name, value))
        )
        names.sort(key=lambda name: "loss" not in name)  # stable: losses first, else as logged
        charts = [chart for name in names if (chart := _curve(phase, name, records))]
        parts.append(f'<h3>{escape(phase)}</h3><div class="charts">{"".join(charts[:_OPEN_CHARTS])}</div>')
        if rest := charts[_OPEN_CHARTS:]:
            parts.append(
                f'<details><summary>{len(rest)} more</summary><div class="charts">{"".join(rest)}</div></details>'
            )
    return _join(
        "<section><h2>Training</h2><p>Metrics of each phase by training step. The pale line is what was measured, the "
        "strong one its running mean.</p>",
        parts,
        "</section>",
    )


def _curve(phase: str, name: str, records: Sequence[Mapping[str, Any]]) -> str:
    known = [record for record in records if is_metric(name, record.get(name))]
    points = [(record["step"], np.atleast_1d(np.asarray(record[name], np.float64))) for record in known]
    if len({value.shape for _, value in points}) != 1:
        return ""
    steps, values = [step for step, _ in points], np.stack([value for _, value in points])
    average = smoothed(np.ma.masked_invalid(values).mean(axis=1).filled(math.nan))
    lines = [Line(steps, column.tolist(), faint=True) for column in values.T] + [Line(steps, average.tolist())]
    finite, settled = values[np.isfinite(values)], average[np.isfinite(average)]
    # A logarithmic axis serves what falls by orders of magnitude; noise around zero it would only magnify.
    logarithmic = bool(finite.size and finite.min() > 0 and settled[0] > 20 * settled[-1])
    remarks = [number(float(settled[-1]))] if settled.size else []
    remarks += ["log scale"] if logarithmic else []
    remarks += [f"{values.size - finite.size} not finite"] if finite.size < values.size else []
    title = name.removeprefix(f"{phase}/")
    chart = line_chart(lines, title=f"{phase} {title}", x_label="step", logarithmic=logarithmic)
    return (
        f'<figure class="card"><div class="title">{escape(title)}<small>{" · ".join(remarks)}</small>'
        f"</div>{chart}</figure>"
    )


def _notes(report: Report) -> str:
    return _join("<section><h2>Notes</h2>", (f"<p>{escape(note)}</p>" for note in report.notes), "</section>")


def _details(report: Report) -> str:
    def table(rows: Mapping[str, Any]) -> str:
        cells = (f"<tr><td>{escape(str(k))}</td><td>{escape(_value(v))}</td></tr>" for k, v in rows.items())
        return _join('<div class="scroll"><table class="pairs"><tbody>', cells, "</tbody></table></div>")

    parts = [table({**report.run, **report.provenance})]
    if report.packages:
        parts.append(f"<details><summary>Package versions</summary>{table(report.packages)}</details>")
    if report.config:
        parts.append(f"<details><summary>Configuration</summary><pre>{escape(report.config)}</pre></details>")
    return _join("<section><h2>To run it again</h2>", (part for part in parts if part), "</section>")


def smoothed(values: np.ndarray) -> np.ndarray:
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


def _mean(shares: Sequence[float]) -> float:
    known = [share for share in shares if math.isfinite(share)]
    return sum(known) / len(known) if known else math.nan


def _percent(share: float) -> str:
    return f"{share:.1%}" if math.isfinite(share) else "n/a"


def is_metric(name: str, value: Any) -> bool:
    """Returns whether an entry of a metric line is a number, or one for each training seed."""
    if name in ("phase", "step", "time") or isinstance(value, bool):
        return False
    return isinstance(value, int | float) or (
        isinstance(value, list) and all(isinstance(v, int | float) for v in value)
    )


def _fact(name: str, value: str | int | float) -> str:
    return _value(value) if name in ("env", "device") else f"{name} {_value(value)}"


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _strong(condition: bool) -> str:
    return ' class="strong"' if condition else ""


def _join(before: str, parts: Any, after: str) -> str:
    """Returns the parts between `before` and `after`, or nothing if there are none."""
    inside = "".join(parts)
    return before + inside + after if inside else ""


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
