"""Several runs on one page: what they return, how they learned, and in which settings they differ."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dreamer4.errors import InputError
from dreamer4.evaluation.results import Results
from dreamer4.reporting.curves import compared_blocks
from dreamer4.reporting.figures import SERIES, percent, signed
from dreamer4.reporting.page import Block, Heading, Page, Section, Table, Text, intervals
from dreamer4.reporting.report import POLICIES


@dataclass(frozen=True)
class ComparedRun:
    """What is known of a run.

    Attributes:
        name: how it is called here; unique.
        settings: every key of its configuration, as text.
        results: None if it has none yet.
        metrics: lines of its metric log.
    """

    name: str
    settings: Mapping[str, str] = field(default_factory=dict)
    results: Results | None = None
    metrics: Sequence[Mapping[str, Any]] = ()


def comparison_page(runs: Sequence[ComparedRun]) -> Page:
    """Returns the page.

    Raises:
        InputError: if two runs have one name.
    """
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise InputError(f"report: got {', '.join(names)}, expected runs of different names.")
    over = "over episodes for one training seed, over seeds for several. The best is strong."
    training = (
        "Running means of each phase's metrics by training step, over training seeds where there are several; beside "
        "the name, where they ended."
    )
    sections = [
        Section(
            "Returns in the real environment",
            f"Mean return of an episode and its 95% bootstrap interval: {over}",
            _returns(runs),
        ),
        Section("At a glance", "", [_worlds(runs)]),
        Section("Training", training, compared_blocks([r.metrics for r in runs])),
        Section("Settings that differ", "", [_settings(runs)]),
    ]
    legend = [(SERIES[i % len(SERIES)], name) for i, name in enumerate(names)]
    return Page(f"{len(runs)} runs compared", sections, legend=legend)


def _returns(runs: Sequence[ComparedRun]) -> list[Block]:
    blocks: list[Block] = []
    for policy in ("imagination", "cloned", "data"):
        rows = {r.name: r.results.returns[policy] for r in runs if r.results and policy in r.results.returns}
        if rows:
            best = max(rows, key=lambda name: rows[name].mean) if len(rows) > 1 else ""  # noqa: B023
            blocks += [Heading(POLICIES[policy]), intervals(rows, strong=best)]
    return blocks


def _worlds(runs: Sequence[ComparedRun]) -> Block:
    rows = []
    for run in runs:
        if run.results is None:
            rows.append((run.name, "not finished", *[""] * 4))
            continue
        world, ours = run.results.world_model, run.results.returns.get("imagination")
        told = (
            signed(ours.mean) if ours else "",
            f"{percent(world.exact)} (K = {world.num_steps})" if world.exact is not None else "",
            f"{world.tokenizer_psnr:.1f}" if world.tokenizer_psnr is not None else "",
            f"{run.results.minutes:.1f}" if run.results.minutes is not None else "",
            run.results.commit or "",
        )
        rows.append((run.name, *told))
    head = ("Run", "Return", "Dreamt frames exact", "Tokenizer, dB", "Minutes", "Commit")
    return Table(head, rows, plain=True)


def _settings(runs: Sequence[ComparedRun]) -> Block:
    rows = []
    for key in dict.fromkeys(key for run in runs for key in run.settings):
        values = [run.settings.get(key, "") for run in runs]
        if len(set(values)) > 1:
            rows.append((key, *values))
    if not rows:
        return Text("They have the same settings.")
    return Table(("Setting", *(run.name for run in runs)), rows, plain=True)
