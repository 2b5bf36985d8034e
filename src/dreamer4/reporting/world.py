"""The part of a report that says how far the dreams can be trusted."""

import math
from collections.abc import Mapping, Sequence

from dreamer4.evaluation.closeness import Curves
from dreamer4.evaluation.dreams import LAST_REPEATED, SHUFFLED, DreamQuality, Trace
from dreamer4.evaluation.fvd import told_fvd
from dreamer4.evaluation.head_scores import HeadScores
from dreamer4.evaluation.return_gap import ReturnGap
from dreamer4.evaluation.statistics import Estimate
from dreamer4.reporting.figures import CONTROLS, SERIES, Line, histogram_chart, line_chart, number, percent
from dreamer4.reporting.page import (
    Alarm,
    Beside,
    Block,
    Chart,
    Charts,
    Heading,
    Legend,
    Note,
    Table,
    Text,
    intervals,
)


_READ = (
    ("happened", "what happened", "band"),
    ("true", "heads on true frames", "s2"),
    ("dreamt", "heads on dreamt frames", "s4"),
)


def headline(world: DreamQuality) -> float | None:
    """Returns the share of frames that are exactly right at the agent's own K; None where it tells nothing."""
    share = world.passes[world.num_steps].mean.exact
    return share if world.tells_exactness and math.isfinite(share) else None


def accuracy(world: DreamQuality) -> list[Block]:
    """Returns the chart of exact frames with its table; nothing where it tells nothing."""
    if not world.tells_exactness:
        return []
    curves = {
        label: (curve, style)
        for label, (curve, style) in _all_curves(world).items()
        if label.startswith("K") or label in (SHUFFLED, LAST_REPEATED)
    }
    lines = [Line(_depths(curve.exact), curve.exact, label, style) for label, (curve, style) in curves.items()]
    svg = line_chart(
        lines, title="Share of exact frames", x_label="dreamt frames", y_range=(0, 1.02), percent=True, markers=True
    )
    rows = [(label, percent(curve.mean.exact), percent(curve.exact[-1])) for label, (curve, _) in curves.items()]
    caption = (
        "Share of dreamt frames in which every pixel is right after rounding, by distance from the last given frame. K "
        "is the number of denoise passes per frame; dashed and dotted lines are what a dream has to beat."
    )
    table = Table(("", "mean", "last frame"), rows, [style for _, style in curves.values()])
    return [Beside(Chart("Exact frames", svg), table, caption)]


def world_blocks(world: DreamQuality) -> list[Block]:
    """Returns closeness to the truth, episodes followed along, heads, warnings, and imagined against real return."""
    return [
        *_returns(world.returns),
        *_closeness(world),
        *_traces(world.traces),
        *_heads(world.heads),
        *_signals(world),
    ]


def _depths(values: Sequence[float]) -> range:
    return range(1, len(values) + 1)


def _all_curves(world: DreamQuality) -> dict[str, tuple[Curves, str]]:
    passes = {f"K = {k}": (world.passes[k], SERIES[i % len(SERIES)]) for i, k in enumerate(sorted(world.passes))}
    return passes | {
        name: (curves, CONTROLS[i % len(CONTROLS)]) for i, (name, curves) in enumerate(world.controls.items())
    }


def _closeness(world: DreamQuality) -> list[Block]:
    curves = _all_curves(world)
    charts = []
    for name, title, remark in (
        ("psnr", "PSNR", "dB"),
        ("ssim", "SSIM", "1 is equal"),
        ("lpips", "LPIPS", "0 looks equal"),
    ):
        drawn = [(getattr(curve, name), label, style) for label, (curve, style) in curves.items()]
        lines = [Line(_depths(values), values, label, style) for values, label, style in drawn if values is not None]
        if lines:
            charts.append(Chart(title, line_chart(lines, title=title, x_label="dreamt frames", markers=True), remark))
    exact = world.tells_exactness
    rows = [
        (label, *([percent(c.mean.exact)] if exact else []), f"{c.mean.psnr:.1f}", _plain(c.mean.ssim, 3))
        for label, (c, _) in curves.items()
    ]
    head = ("", *(["exact"] if exact else []), "PSNR, dB", "SSIM")
    gains = world.comparisons
    given = "1 frame" if world.context_length == 1 else f"{world.context_length} frames"
    told = (
        f"{world.clips:,} dreams of held-out episodes, at most {given} given. With K = {world.num_steps}, PSNR is "
        f"{gains.psnr_over_shuffled_actions:+.1f} dB against dreams with shuffled actions, "
        f"{gains.psnr_over_last_frame:+.1f} dB against repeating the last frame, and "
        f"{-gains.psnr_below_tokenizer:+.1f} dB against the truth encoded and decoded."
    )
    table = Table(head, rows, [style for _, style in curves.values()])
    videos = (
        []
        if world.fvd is None
        else [
            Table(("", "FVD"), [(name, f"{value:.0f}") for name, value in world.fvd.distances.items()]),
            Note(told_fvd(world.fvd)),
        ]
    )
    return [Heading("Closeness to the truth"), Charts(charts), table, Note(told), *videos]


def _traces(traces: Sequence[Trace]) -> list[Block]:
    charts = []
    for i, trace in enumerate(traces, 1):
        for name in ("reward", "continuation", "value"):
            told = getattr(trace, name)
            lines = [
                Line(_depths(values), values, label, style)
                for key, label, style in _READ
                if (values := getattr(told, key))
            ]
            if any(value for line in lines for value in line.y):  # an untrained head says zero
                title = f"{name} along episode {i}"
                svg = line_chart(lines, title=title, x_label="dreamt frames", markers=True)
                charts.append(Chart(name, svg, f"episode {i}"))
    if not charts:
        return []
    told = (
        "Held-out episodes that earned most and least: what the heads say after each frame, once while they see the "
        "true frames and once while they see the dream of the same actions."
    )
    legend = Legend([(style, label) for _, label, style in _READ])
    return [Heading("Along an episode, real and dreamt"), Note(told), legend, Charts(charts)]


def _heads(heads: Mapping[str, HeadScores] | str) -> list[Block]:
    title = Heading("Reward and end")
    if isinstance(heads, str):
        return [title, Note(heads)]
    rows = []
    for read, scores in heads.items():
        for head, row, error in (("reward", scores.reward, number(scores.reward.mae)), ("end", scores.end, "")):
            shares = (row.base_rate, row.accuracy, row.recall, row.precision)
            rows.append((head, read, *map(percent, shares), error))
    told = (
        "Rewards other than zero and terminations are rare events: the base rate is their share of all frames, recall "
        "the share found, precision the share of true alarms."
    )
    head = ("Head", "Frames", "base rate", "accuracy", "recall", "precision", "mean error")
    return [title, Table(head, rows), Note(told)]


def _signals(world: DreamQuality) -> list[Block]:
    depths, histograms, rows = [], [], []
    for key, signal in world.signals.items():
        title = key.replace("_", " ")
        line = Line(_depths(signal.by_depth), signal.by_depth)
        svg = line_chart([line], title=f"mean {title}", x_label="dreamt frames", markers=True)
        depths.append(Chart(title, svg, "mean"))
        # Where no frame can be exact, all frames are wrong in histograms of right and wrong.
        if world.tells_exactness and signal.histogram is not None:
            groups = {"right": (signal.histogram.right, "s1"), "wrong": (signal.histogram.wrong, "bad")}
            svg = histogram_chart(signal.histogram.edges, groups, title=f"histogram of {title}", x_label="value")
            histograms.append(Chart(title, svg, "share of frames"))
        rows.append((title, *(_plain(r, 2) for r in (signal.rank_correlation, signal.rank_correlation_at_equal_depth))))
    legend = Legend([("s1", "frames dreamt exactly right"), ("bad", "wrong frames")])
    told = (
        "None of these needs the truth. The rank correlation (Spearman) says how well each orders dreamt frames by "
        "their true error: 1 is perfectly, 0 not at all."
    )
    return [
        Heading("Warnings without labels"),
        *([legend, Charts(histograms)] if histograms else []),
        Charts(depths),
        Table(("", "rank correlation with the true error", "at equal depth"), rows),
        Note(told),
    ]


def _returns(returns: ReturnGap | str) -> list[Block]:
    title = Heading("Imagined and real return")
    if isinstance(returns, str):
        return [title, Note(returns)]
    caption = (
        f"{returns.episodes:,} real episodes, and a dream from the first frame of each under the same policy, at most "
        f"{returns.horizon:,} frames long."
    )
    difference = Estimate(mean=returns.difference, low=returns.low, high=returns.high, episodes=returns.episodes)
    shown = intervals({"Imagined minus real": difference}, strong="Imagined minus real", caption=caption)
    return [title, shown, Alarm(returns.verdict) if returns.alarm else Text(returns.verdict)]


def _plain(value: float | None, digits: int) -> str:
    return "n/a" if value is None or not math.isfinite(value) else f"{value:.{digits}f}".replace("-", "−")
