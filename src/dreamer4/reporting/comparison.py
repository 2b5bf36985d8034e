"""Several runs on one page: what they return, how they learned, and in which settings they differ."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from dreamer4.errors import InputError
from dreamer4.evaluation.results import Results
from dreamer4.reporting.curves import compared_blocks
from dreamer4.reporting.figures import SERIES, percent, signed
from dreamer4.reporting.page import Page, Section, blocks, intervals
from dreamer4.reporting.report import POLICIES


class ComparedRun(NamedTuple):
    """What is known of a run.

    Attributes:
        name: how it is called here; unique.
        settings: every key of its configuration, as text.
        results: None if it has none yet.
        metrics: lines of its metric log.
    """

    name: str
    settings: Mapping[str, str] = {}
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
    returns = (
        "Mean return of an episode and its 95% bootstrap interval: over episodes for one training seed, over seeds for "
        "several. The best is strong."
    )
    training = (
        "Running means of each phase's metrics by training step, over training seeds where there are several; beside "
        "the name, where they ended."
    )
    sections = [
        Section("Returns in the real environment", returns, _returns(runs)),
        Section("At a glance", "", [_worlds(runs)]),
        Section("Training", training, compared_blocks([r.metrics for r in runs])),
        Section("Settings that differ", "", [_settings(runs)]),
    ]
    legend = [(SERIES[i % len(SERIES)], name) for i, name in enumerate(names)]
    return Page(f"{len(runs)} runs compared", sections, legend=legend)


def _returns(runs: Sequence[ComparedRun]) -> list[Markup]:
    found: list[Markup] = []
    for policy in ("imagination", "cloned", "data"):
        rows = {r.name: r.results.returns[policy] for r in runs if r.results and policy in r.results.returns}
        if rows:
            best = max(rows, key=lambda name: rows[name].mean) if len(rows) > 1 else ""  # noqa: B023
            found += [blocks.heading(POLICIES[policy]), intervals(rows, strong=best)]
    return found


def _worlds(runs: Sequence[ComparedRun]) -> Markup:
    rows = []
    for run in runs:
        if run.results is None:
            rows.append((run.name, "not finished", *[""] * 4))
            continue
        world, ours = run.results.world_model, run.results.returns.get("imagination")
        exact = f"{percent(world.exact)} (K = {world.num_steps})" if world.exact is not None else ""
        plain = ("" if x is None else f"{x:.1f}" for x in (world.tokenizer_psnr, run.results.minutes))
        rows.append((run.name, signed(ours.mean) if ours else "", exact, *plain, run.results.commit or ""))
    head = ("Run", "Return", "Dreamt frames exact", "Tokenizer, dB", "Minutes", "Commit")
    return blocks.table(head, rows, plain=True)


def _settings(runs: Sequence[ComparedRun]) -> Markup:
    rows = []
    for key in dict.fromkeys(key for run in runs for key in run.settings):
        values = [run.settings.get(key, "") for run in runs]
        if len(set(values)) > 1:
            rows.append((key, *values))
    table = blocks.table(("Setting", *(run.name for run in runs)), rows, plain=True)
    return table if rows else blocks.text("They have the same settings.")
