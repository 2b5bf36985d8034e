"""The report of a run, for a person who was not there.

What matters comes first: what the agent earns in the real environment. Then what it believed (dreams beside the truth),
what it saw (reconstructions), how it learned (curves), and everything needed to run it again. A section whose data is
missing is left out.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from dreamer4 import media
from dreamer4.evaluation.dreams import NO_FRAMES, DreamFrames, DreamQuality, Grid
from dreamer4.evaluation.statistics import Estimate
from dreamer4.reporting.curves import heads_blocks, training_blocks
from dreamer4.reporting.figures import percent, signed
from dreamer4.reporting.page import Page, Picture, Section, blocks, intervals, write_page
from dreamer4.reporting.world import world_blocks


POLICIES = {
    "random": "Random actions",
    "data": "Behaviour data",
    "cloned": "Cloned policy",
    "imagination": "Imagination policy",
}
_PICTURE_BYTES = 3_000_000  # of each kind, before base64 adds a third: the file stays under 10 MB
_SIDE = 64  # pixels of the longer side of a frame in a grid, about
_ALL = 10  # so many frames of a clip are all shown; of longer clips, those at powers of two and the last


@dataclass(frozen=True)
class Report:
    """What a report shows; everything but the title may be empty.

    Attributes:
        title: heading of the page.
        run: facts of the run in the order to show them, such as env, seed, preset, minutes, device, commit.
        provenance: what else is needed to make it again or to know it by, such as the fingerprint of its data.
        packages: versions by package.
        returns: by policy; the four policies of a demo get readable names.
        by_task: the same for each of several tasks, by its name.
        metrics: lines of the metric log; a list in place of a number holds one value per training seed.
        world: quality of the dreams of one training seed.
        frames: dreams beside the truth and reconstructions, to be looked at.
        notes: paragraphs of plain text.
        config: the configuration as YAML.
    """

    title: str
    run: Mapping[str, str | int | float] = field(default_factory=dict)
    provenance: Mapping[str, str | int | float] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)
    returns: Mapping[str, Estimate] = field(default_factory=dict)
    by_task: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict)
    metrics: Sequence[Mapping[str, Any]] = ()
    world: DreamQuality | None = None
    frames: DreamFrames = NO_FRAMES
    notes: Sequence[str] = ()
    config: str = ""


def write_report(path: Path, report: Report) -> None:
    """Writes the report as one HTML file, replacing an earlier one; the file appears only when it is complete."""
    write_page(path, report_page(report))


def report_page(report: Report) -> Page:
    """Returns the page of a report."""
    facts = [_value(v) if name in ("env", "device") else f"{name} {_value(v)}" for name, v in report.run.items()]
    training = "Metrics of each phase by training step. The pale line is what was measured, the strong one its running "
    sections = [
        Section(blocks=[*_returns(report), *_by_task(report.by_task)]),
        Section(
            "Dreams beside the truth",
            "The world model is given the first frames of an episode that it was not trained on, then only the actions "
            "that were really taken. It dreams the rest, and the dream is laid beside what happened.",
            _dreams(report),
        ),
        Section(
            "What the tokenizer sees",
            "The tokenizer learns to restore frames of which it sees only a part.",
            _reconstructions(report.frames.reconstructions),
        ),
        Section("Training", training + "mean.", [*heads_blocks(report.metrics), *training_blocks(report.metrics)]),
        Section("Notes", "", [blocks.text(note) for note in report.notes]),
        Section("To run it again", "", _details(report)),
    ]
    return Page(report.title, sections, facts, _lead(report.returns))


def _lead(returns: Mapping[str, Estimate]) -> str:
    if "imagination" not in returns:
        return ""
    ours = returns["imagination"]
    told = Markup("In the real environment, the policy trained in imagination returns <b>{}</b> on average over {:,}")
    told = told.format(signed(ours.mean), ours.episodes) + " episodes"
    data = f"; the data it learned from returns {signed(returns['data'].mean)}" if "data" in returns else ""
    return told + data + "."


def _returns(report: Report) -> list[Markup]:
    if not report.returns:
        return []
    named = {POLICIES.get(name, name): row for name, row in report.returns.items()}
    seeds = max(len(row.seeds) for row in named.values())
    of_seeds = f"over {seeds} training seeds where a policy was trained, over episodes elsewhere"
    over = of_seeds if seeds else "over episodes"
    caption = (
        "Mean return of an episode in the real environment. Each dot is a mean, each bar its 95% bootstrap interval "
        f"{over}; where the bar is hidden, the interval is narrower than the dot."
    )
    rows = [
        (name, signed(row.mean), f"{signed(row.low)} to {signed(row.high)}", f"{row.episodes:,}")
        for name, row in named.items()
    ]
    best = POLICIES["imagination"]
    return [
        intervals(named, strong=best, caption=caption),
        *_tiles(report),
        blocks.table(("Policy", "Mean", "95% interval", "Episodes"), rows, strong=best),
    ]


def _by_task(by_task: Mapping[str, Mapping[str, Estimate]]) -> list[Markup]:
    if not by_task:
        return []
    policies = list(dict.fromkeys(name for rows in by_task.values() for name in rows))
    cells = [
        (
            task,
            *(
                f"{signed(rows[p].mean)} ({signed(rows[p].low)} to {signed(rows[p].high)})" if p in rows else "–"
                for p in policies
            ),
        )
        for task, rows in by_task.items()
    ]
    return [blocks.table(("Task", *(POLICIES.get(p, p) for p in policies)), cells)]


def _tiles(report: Report) -> list[Markup]:
    tiles = []
    if "imagination" in report.returns and "data" in report.returns:
        gain = report.returns["imagination"].mean - report.returns["data"].mean
        tiles.append((signed(gain), "mean return above the data"))
    if (world := report.world) is not None and world.tells_exactness:
        share = percent(world.passes[world.num_steps].mean.exact)
        tiles.append((share, f"of dreamt frames exactly right, K\xa0=\xa0{world.num_steps}"))
    minutes = report.run.get("minutes")
    if isinstance(minutes, int | float):
        tiles.append((f"{minutes:.1f}", "minutes for the whole run"))
    return [blocks.tiles(tiles)] if tiles else []


def _dreams(report: Report) -> list[Markup]:
    world = [] if report.world is None else world_blocks(report.world)
    return [*_films(report.frames.shown), *_grids(report.frames.grids), *world]


def _films(dreams: Sequence[tuple[np.ndarray, np.ndarray, int]]) -> list[Markup]:
    pictures: list[Picture] = []
    for truth, dream, given in dreams:
        scale = media.fitting_scale(truth.shape[1:], 96)
        film = media.side_by_side(truth, dream, context_length=given, scale=scale)
        colours = media.frame_colours(truth, dream, given)
        strips = [media.film_strip(media.to_rgb(v, scale=max(1, scale // 3)), borders=colours) for v in (truth, dream)]
        still = _png(np.concatenate(strips, axis=0))
        right = f"{colours[given:].count(media.RIGHT)} of {len(colours) - given} dreamt frames without red"
        moving = _uri(media.gif(film, fps=4), "gif")
        pictures.append(Picture(moving, f"Truth, dream and difference, {len(truth)} frames", still, right))
    if not (shown := _fitting(pictures)):
        return []
    # Another rule than that of exact frames, which films of many colours never are.
    caption = (
        "Left the truth, in the middle the dream, on the right the truth dimmed with every pixel in red that is off by "
        "more than half the range of colours."
    ) + ("" if len(shown) == len(dreams) else f" Shown: {len(shown)} of {len(dreams)}.")
    keys = (("given", "frame given"), ("right", "dreamt without such a pixel"), ("wrong", "dreamt with one"))
    return [blocks.pictures(shown, f"{caption} Border and timeline:", keys, films=True)]


def _grids(grids: Sequence[Grid]) -> list[Markup]:
    if not grids:
        return []
    remark = (
        "The same clips dreamt with K denoise passes per frame; and, with the K of the agent, under actions that were "
        "not taken, where a dream that follows them must differ. Pixels off by more than half the range of colours are "
        "red, darker ones are missing."
    )
    return [blocks.heading("More passes, wrong actions"), *map(frame_grid, grids), blocks.note(remark)]


def horizons(length: int) -> list[int]:
    """Returns which frames of a long clip are shown, counted from 1."""
    if length <= _ALL:
        return list(range(1, length + 1))
    return [*(2**i for i in range(length.bit_length()) if 2**i < length), length]


def frame_grid(grid: Grid) -> Markup:
    """Returns a clip in rows: the truth, then each way to dream; and a column for each frame shown."""
    steps = horizons(len(grid.truth))
    index, scale = np.array(steps) - 1, media.fitting_scale(grid.given.shape, _SIDE)

    def cells(frames, kinds):
        pictures = media.marked(grid.truth[index], frames, scale=scale)
        return [(_png(picture), kind) for picture, kind in zip(pictures, kinds, strict=True)]

    given = _png(media.to_rgb(grid.given[None], scale=scale)[0])
    rows = {"truth": [(given, "given"), *cells(grid.truth[index], ["given"] * len(steps))]}
    for name, video in grid.dreams.items():
        colours = media.frame_colours(grid.truth[index], video[index], 0)
        rows[name] = [("", ""), *cells(video[index], ["wrong" if c == media.WRONG else "right" for c in colours])]
    return blocks.frame_grid(("dreamt frame", "given", *map(str, steps)), rows)


def _reconstructions(triples: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> list[Markup]:
    pictures = []
    for triple in triples:
        scale = media.fitting_scale(triple[0].shape, 96)
        sheet = media.contact_sheet([media.to_rgb(np.asarray(frame)[None], scale=scale) for frame in triple])
        pictures.append(Picture(_png(sheet), "Original, masked, reconstruction"))
    caption = (
        "Each column from top to bottom: the original frame, the same with its hidden patches, and the frame decoded "
        "from its latent tokens. Each is the one of its episode of which most was hidden."
    )
    return [blocks.pictures(_fitting(pictures), caption)] if pictures else []


def _fitting(pictures: Sequence[Picture]) -> list[Picture]:
    """Returns as many of the first pictures as a page should hold, at least one."""
    size = np.cumsum([3 / 4 * (len(p.source) + len(p.still)) for p in pictures])
    return [p for i, (p, total) in enumerate(zip(pictures, size, strict=True)) if not i or total <= _PICTURE_BYTES]


def _details(report: Report) -> list[Markup]:
    facts = {name: _value(value) for name, value in {**report.run, **report.provenance}.items()}
    return [
        *([blocks.pairs(facts)] if facts else []),
        *([blocks.fold("Package versions", [blocks.pairs(report.packages)])] if report.packages else []),
        *([blocks.fold("Configuration", [blocks.source(report.config)])] if report.config else []),
    ]


def _uri(content: bytes, kind: str) -> str:
    """Returns a picture as the address of itself."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _png(image: np.ndarray) -> str:
    return _uri(media.png(image), "png")


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
