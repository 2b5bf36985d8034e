"""What a data set holds, as a page: returns and lengths of its episodes by the policy that made them, and actions."""

from collections.abc import Sequence
from html import escape

import numpy as np
from jaxtyping import Num

from dreamer4.data import DatasetInfo
from dreamer4.reporting.charts import Line, histogram_chart, number, signed, swatch
from dreamer4.reporting.report import page


_BINS = 24
_STYLES = ("s1", "s2", "s3", "s4", "s5")
_MOST_CLASSES = 40  # of a component whose classes are all listed


def render_data(info: DatasetInfo) -> str:
    """Returns the page of a data set as HTML."""
    title = f"Data of {info.environment.get('id', 'own episodes')}"
    shape = " × ".join(map(str, info.frame_shape))
    facts = (
        f"{info.num_episodes:,} episodes, {len(info.held_out):,} of them held out",
        f"{info.num_frames:,} frames of {shape}",
        f"mean return {signed(info.return_mean)}",
        f"policy {info.policy}",
        f"fingerprint {info.fingerprint[:16]}",
    )
    header = f'<header><h1>{escape(title)}</h1><p class="facts">{escape(" · ".join(facts))}</p></header>'
    return page(title, [header, _episodes(info), _actions(info)])


def _episodes(info: DatasetInfo) -> str:
    groups, begin = {}, 0
    for part in info.behaviour:
        name = part.policy if part.epsilon == 0 else f"{part.policy}, epsilon {part.epsilon:g}"
        groups.setdefault(name, []).extend(range(begin, begin + part.episodes))
        begin += part.episodes
    groups = groups or {info.policy: list(range(info.num_episodes))}
    styles = {name: _STYLES[i % len(_STYLES)] for i, name in enumerate(groups)}
    charts = [
        _histogram(title, np.asarray(values), groups, styles)
        for title, values in (("Return of an episode", info.returns), ("Frames of an episode", info.lengths))
    ]
    legend = "".join(
        f"<span>{swatch(Line((), (), name, styles[name]))}{escape(name)}, {len(members):,} episodes, "
        f"mean return {signed(float(np.asarray(info.returns)[members].mean()))}</span>"
        for name, members in groups.items()
    )
    return (
        f'<section><h2>Episodes</h2><div class="legend">{legend}</div><div class="charts apart">{"".join(charts)}</div>'
        '<p class="note apart">Share of the episodes of each policy.</p></section>'
    )


def _histogram(title: str, values: Num[np.ndarray, " E"], groups: dict[str, list[int]], styles: dict[str, str]) -> str:
    low, high = float(values.min()), float(values.max())
    edges = np.linspace(low, high, _BINS + 1) if high > low else np.array([low - 0.5, low + 0.5])
    counts = {
        name: (np.histogram(values[members], edges)[0].tolist(), styles[name]) for name, members in groups.items()
    }
    chart = histogram_chart(edges.tolist(), counts, title=title, x_label="")
    remark = f"{number(low)} to {number(high)}"
    return f'<figure class="card"><div class="title">{title}<small>{remark}</small></div>{chart}</figure>'


def _actions(info: DatasetInfo) -> str:
    parts = []
    for i, counts in enumerate(info.action_counts):
        name = "Actions" if len(info.action_counts) == 1 else f"Component {i}"
        parts.append(f'<h3>{name}</h3><figure class="card">{_bars(counts)}</figure>')
    if parts and info.continuous_dim:
        parts.append(f'<p class="note apart">And {info.continuous_dim} continuous dimensions.</p>')
    return f"<section><h2>How often each action was taken</h2>{''.join(parts)}</section>" if parts else ""


def _bars(counts: Sequence[int]) -> str:
    total, most = max(sum(counts), 1), max(max(counts), 1)
    listed = sorted(range(len(counts)), key=lambda n: -counts[n])[:_MOST_CLASSES]
    rows = [
        f'<div class="row"><span class="name">{n}</span><span class="track"><i class="bar" style="left:0;'
        f'width:{100 * counts[n] / most:.2f}%"></i></span><span class="value">{counts[n] / total:.1%}</span></div>'
        for n in sorted(listed)
    ]
    rest = len(counts) - len(listed)
    note = f'<p class="note">And {rest} rarer ones.</p>' if rest else ""
    return f'<div class="intervals bars">{"".join(rows)}</div>{note}'
