"""What a data set holds, as a page: returns and lengths of its episodes by the policy that made them, and actions."""

import numpy as np
from jaxtyping import Num
from markupsafe import Markup

from dreamer4.data import DatasetInfo
from dreamer4.reporting.figures import SERIES, histogram_chart, number, signed
from dreamer4.reporting.page import Chart, Page, Section, blocks


_BINS = 24
_TAKEN = "How often each action was taken"
_MOST_CLASSES = 40  # of a component whose classes are all listed


def data_page(info: DatasetInfo) -> Page:
    """Returns the page of a data set."""
    facts = (
        f"{info.num_episodes:,} episodes, {len(info.held_out):,} of them held out",
        f"{info.num_frames:,} frames of {' × '.join(map(str, info.frame_shape))}",
        f"mean return {signed(info.return_mean)}",
        f"policy {info.policy}",
        f"fingerprint {info.fingerprint[:16]}",
    )
    sections = [Section("Episodes", "", _episodes(info)), Section(_TAKEN, "", _actions(info))]
    return Page(f"Data of {info.environment.get('id', 'own episodes')}", sections, facts)


def _episodes(info: DatasetInfo) -> list[Markup]:
    groups, begin = {}, 0
    for part in info.behaviour:
        name = part.policy if part.epsilon == 0 else f"{part.policy}, epsilon {part.epsilon:g}"
        groups.setdefault(name, []).extend(range(begin, begin + part.episodes))
        begin += part.episodes
    groups = groups or {info.policy: list(range(info.num_episodes))}
    styles = {name: SERIES[i % len(SERIES)] for i, name in enumerate(groups)}
    returns = np.asarray(info.returns)
    told = [
        (styles[name], f"{name}, {len(members):,} episodes, mean return {signed(float(returns[members].mean()))}")
        for name, members in groups.items()
    ]
    charts = [
        _histogram(title, np.asarray(values), groups, styles)
        for title, values in (("Return of an episode", info.returns), ("Frames of an episode", info.lengths))
    ]
    return [blocks.legend(told), blocks.charts(charts), blocks.note("Share of the episodes of each policy.")]


def _histogram(
    title: str, values: Num[np.ndarray, " E"], groups: dict[str, list[int]], styles: dict[str, str]
) -> Chart:
    low, high = float(values.min()), float(values.max())
    edges = np.linspace(low, high, _BINS + 1) if high > low else np.array([low - 0.5, low + 0.5])
    counts = {
        name: (np.histogram(values[members], edges)[0].tolist(), styles[name]) for name, members in groups.items()
    }
    return Chart(title, histogram_chart(edges.tolist(), counts, title=title), f"{number(low)} to {number(high)}")


def _actions(info: DatasetInfo) -> list[Markup]:
    found: list[Markup] = []
    for i, counts in enumerate(info.action_counts):
        listed = sorted(range(len(counts)), key=lambda n: -counts[n])[:_MOST_CLASSES]  # noqa: B023
        shares = {str(n): counts[n] / max(sum(counts), 1) for n in sorted(listed)}
        rest = len(counts) - len(listed)
        name = "Actions" if len(info.action_counts) == 1 else f"Component {i}"
        found += [blocks.heading(name), blocks.bars(shares, f"And {rest} rarer ones." if rest else "")]
    if found and info.continuous_dim:
        found.append(blocks.note(f"And {info.continuous_dim} continuous dimensions."))
    return found
