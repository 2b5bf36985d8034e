"""The part of a report that says how far the dreams can be trusted."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup

from dreamer4.evaluation.closeness import Curves
from dreamer4.evaluation.dreams import LAST_REPEATED, NO_OP, SHUFFLED, DreamQuality, Trace
from dreamer4.evaluation.fvd import told_fvd
from dreamer4.evaluation.head_scores import HeadScores
from dreamer4.evaluation.return_gap import ReturnGap
from dreamer4.evaluation.statistics import Estimate, Rate
from dreamer4.reporting.figures import CONTROLS, SERIES, Line, histogram_chart, line_chart, number, percent
from dreamer4.reporting.page import Chart, blocks, intervals


Rows = tuple[Sequence[str], Sequence[Sequence[str]]]  # the head of a table, and its rows
_READ = (
    ("happened", "what happened", "band"),
    ("true", "heads on true frames", "s2"),
    ("dreamt", "heads on dreamt frames", "s4"),
)
_RIGHT_OR_WRONG = (("s1", "frames dreamt exactly right"), ("bad", "wrong frames"))


def _accuracy(world: DreamQuality) -> list[Markup]:
    """Returns the chart of exact frames with its table; nothing where it tells nothing."""
    if not world.tells_exactness:
        return []
    shown = (SHUFFLED, LAST_REPEATED)
    curves = {label: drawn for label, drawn in _all_curves(world).items() if label[0] == "K" or label in shown}
    lines = [Line(_depths(curve.exact), curve.exact, style) for curve, style in curves.values()]
    svg = line_chart(
        lines, title="Share of exact frames", x_label="dreamt frames", y_range=(0, 1.02), percent=True, markers=True
    )
    rows = [(label, percent(curve.mean.exact), percent(curve.exact[-1])) for label, (curve, _) in curves.items()]
    caption = (
        "Share of dreamt frames in which every pixel is right after rounding, by distance from the last given frame. K "
        "is the number of denoise passes per frame; dashed and dotted lines are what a dream has to beat."
    )
    table = blocks.table(("", "mean", "last frame"), rows, [style for _, style in curves.values()])
    return [blocks.beside(Chart("Exact frames", svg), table, caption)]


def world_blocks(world: DreamQuality) -> list[Markup]:
    """Returns exact frames, imagined against real return, closeness, episodes followed along, heads and warnings."""
    told = [*_accuracy(world), *_returns(world.returns), *_closeness(world), *_interactions(world)]
    return [*told, *_traces(world.traces), *_heads(world.heads), *_signals(world)]


def _depths(values: Sequence[float]) -> range:
    return range(1, len(values) + 1)


def _all_curves(world: DreamQuality) -> dict[str, tuple[Curves, str]]:
    passes = {f"K = {k}": (world.passes[k], SERIES[i % len(SERIES)]) for i, k in enumerate(sorted(world.passes))}
    return passes | {
        name: (curves, CONTROLS[i % len(CONTROLS)]) for i, (name, curves) in enumerate(world.controls.items())
    }


def closeness_table(world: DreamQuality) -> Rows:
    """Returns how close dreams by each K and by each control come to the truth, over all frames, first and last."""
    looks, videos = world.passes[world.num_steps].mean.lpips is not None, world.fvd
    exact, depth, rows = world.tells_exactness, len(world.frames), []
    for name, (curves, _) in _all_curves(world).items():
        psnr = [f"{value:.1f}" for value in (curves.mean.psnr, curves.psnr[0], curves.psnr[-1])]
        share, look = [percent(curves.mean.exact)] * exact, [_plain(curves.mean.lpips, 3)] * looks
        far = [f"{videos.distances[name]:.0f}" if name in videos.distances else "n/a"] if videos else []
        rows.append((name, *share, psnr[0], _plain(curves.mean.ssim, 3), *psnr[1:], *look, *far))
    shown = ["", *["exact"] * exact, "PSNR, dB", "SSIM", "PSNR, first", f"PSNR, frame {depth}"]
    return [*shown, *["LPIPS"] * looks, *["FVD"] * bool(videos)], rows


def heads_table(heads: Mapping[str, HeadScores]) -> Rows:
    """Returns the scores of the reward and continuation heads."""
    rows = []
    for read, scores in heads.items():
        for head, row, error in (("reward", scores.reward, number(scores.reward.mae)), ("end", scores.end, "")):
            shares = (row.base_rate, row.accuracy, row.recall, row.precision)
            rows.append((head, read, *map(percent, shares), error))
    return ("Head", "Frames", "base rate", "accuracy", "recall", "precision", "mean error"), rows


def signals_table(world: DreamQuality) -> Rows:
    """Returns how well each warning without labels orders frames by their true error."""
    rows = []
    for key, signal in world.signals.items():
        ranks = (signal.rank_correlation, signal.rank_correlation_at_equal_depth)
        mean = number(float(np.mean(signal.by_depth)))
        rows.append((key.replace("_", " "), mean, *(_plain(rank, 2) for rank in ranks)))
    return ("warning without labels", "mean", "rank correlation with the true error", "at equal depth"), rows


def interactions_table(world: DreamQuality) -> Rows:
    """Returns for each thing that actions do how often a dream shows it."""
    rows = [
        (name.replace("_", " "), str(row.dreamt.episodes), *map(told_rate, (row.dreamt, row.no_op, row.decoded)))
        for name, row in world.interactions.items()
    ]
    return ("what an action does, shown in %", "places", "dreamt", NO_OP, "truth decoded"), rows


def told_rate(rate: Rate) -> str:
    """Returns a share and its interval in %."""
    return f"{100 * rate.mean:.0f} ({100 * rate.low:.0f}-{100 * rate.high:.0f})"


def told_interactions(world: DreamQuality) -> str:
    """Returns how many interactions the dream has."""
    held = sum(row.holds for row in world.interactions.values())
    return (
        f"{held} of {len(world.interactions)} interactions are dreamt: in at least half of the places, and with an "
        "interval above that of no-op actions."
    )


def _interactions(world: DreamQuality) -> list[Markup]:
    if not world.interactions:
        return []
    told = "One frame is dreamt from the true frames before it, where an action did this in a held-out episode."
    table = blocks.table(*interactions_table(world))
    return [blocks.heading("Interactions"), table, blocks.note(f"{told} {told_interactions(world)}")]


def _closeness(world: DreamQuality) -> list[Markup]:
    curves, charts = _all_curves(world), []
    for title, remark in (("PSNR", "dB"), ("SSIM", "1 is equal"), ("LPIPS", "0 looks equal")):
        drawn = [(getattr(curve, title.lower()), style) for curve, style in curves.values()]
        lines = [Line(_depths(values), values, style) for values, style in drawn if values is not None]
        if lines:
            charts.append(Chart(title, line_chart(lines, title=title, x_label="dreamt frames", markers=True), remark))
    gains = world.comparisons
    given = "1 frame" if world.context_length == 1 else f"{world.context_length} frames"
    told = (
        f"{world.clips:,} dreams of held-out episodes, at most {given} given. With K = {world.num_steps}, PSNR is "
        f"{gains.psnr_over_shuffled_actions:+.1f} dB against dreams with shuffled actions, "
        f"{gains.psnr_over_last_frame:+.1f} dB against repeating the last frame, and "
        f"{-gains.psnr_below_tokenizer:+.1f} dB against the truth encoded and decoded."
    )
    return [
        blocks.heading("Closeness to the truth"),
        blocks.charts(charts),
        blocks.table(*closeness_table(world), styles=[style for _, style in curves.values()]),
        blocks.note(told),
        *([] if world.fvd is None else [blocks.note(told_fvd(world.fvd))]),
    ]


def _traces(traces: Sequence[Trace]) -> list[Markup]:
    charts = []
    for i, trace in enumerate(traces, 1):
        for name in ("reward", "continuation", "value"):
            told = getattr(trace, name)
            lines = [Line(_depths(y), y, style) for key, _, style in _READ if (y := getattr(told, key))]
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
    legend = blocks.legend([(style, label) for _, label, style in _READ])
    return [blocks.heading("Along an episode, real and dreamt"), blocks.note(told), legend, blocks.charts(charts)]


def _heads(heads: Mapping[str, HeadScores] | str) -> list[Markup]:
    title = blocks.heading("Reward and end")
    if isinstance(heads, str):
        return [title, blocks.note(heads)]
    told = (
        "Rewards other than zero and terminations are rare events: the base rate is their share of all frames, recall "
        "the share found, precision the share of true alarms."
    )
    return [title, blocks.table(*heads_table(heads)), blocks.note(told)]


def _signals(world: DreamQuality) -> list[Markup]:
    depths, histograms = [], []
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
    told = (
        "None of these needs the truth. The rank correlation (Spearman) says how well each orders dreamt frames by "
        "their true error: 1 is perfectly, 0 not at all."
    )
    return [
        blocks.heading("Warnings without labels"),
        *([blocks.legend(_RIGHT_OR_WRONG), blocks.charts(histograms)] if histograms else []),
        blocks.charts(depths),
        blocks.table(*signals_table(world)),
        blocks.note(told),
    ]


def _returns(returns: ReturnGap | str) -> list[Markup]:
    title = blocks.heading("Imagined and real return")
    if isinstance(returns, str):
        return [title, blocks.note(returns)]
    caption = (
        f"{returns.episodes:,} real episodes, and a dream from the first frame of each under the same policy, at most "
        f"{returns.horizon:,} frames long."
    )
    difference = Estimate(mean=returns.difference, low=returns.low, high=returns.high, episodes=returns.episodes)
    shown = intervals({"Imagined minus real": difference}, strong="Imagined minus real", caption=caption)
    return [title, shown, blocks.alarm(returns.verdict) if returns.alarm else blocks.text(returns.verdict)]


def _plain(value: float | None, digits: int) -> str:
    return "n/a" if value is None or not math.isfinite(value) else f"{value:.{digits}f}".replace("-", "−")
