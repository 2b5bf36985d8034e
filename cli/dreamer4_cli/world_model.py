"""`dreamer4 evaluate --world-model`: how far the dreams of a run can be trusted, on the console."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dreamer4.evaluation.dreams import CEILING, SHUFFLED, DreamQuality
from dreamer4.evaluation.fvd import told_fvd
from dreamer4.reporting.figures import percent
from dreamer4.reporting.world import (
    closeness_table,
    heads_table,
    interactions_table,
    signals_table,
    told_interactions,
    told_rate,
)
from dreamer4.run.world_model import measure_world_model
from dreamer4_cli.console import ConsoleReporter, say, show


def evaluate_world_model(path: Path, **how: Any) -> None:
    """Measures as `dreamer4.run.world_model.measure_world_model` does, and prints what came out."""
    results, out = measure_world_model(path, **how, report=ConsoleReporter())
    for quality in results.seeds:
        _print(quality, results.env)
    say(f"results: {out}")
    say(f"report:  {out.with_suffix('.html')}")


def _print(quality: DreamQuality, env: str) -> None:
    depth, own = len(quality.frames), quality.passes[quality.num_steps]
    name_of_own, controls = f"K = {quality.num_steps}", quality.controls
    title = f"{env}, seed {quality.seed}: {quality.clips} dreams of up to {depth} frames"
    show(*closeness_table(quality), title=title, strong=name_of_own)
    if quality.fvd:
        say(told_fvd(quality.fvd))
    if kinds := own.mean.read:
        places = [f"{kind}{at}" for kind in kinds for at in ("", ", first", f", frame {depth}")]
        rows = [
            (name, *(percent(x) for kind in kinds for x in (c.mean.read[kind], c.read[kind][0], c.read[kind][-1])))
            for name, c in ({name_of_own: own} | controls).items()
        ]
        show(("read as the truth", *places), rows)
    if own.changes:
        # Nothing changes where the last frame is repeated, and the decoded truth is the most that there is to reach.
        against = {"dreamt": own, **{name: controls[name] for name in (SHUFFLED, CEILING)}}
        rows = []
        for change, rate in own.changes.items():
            shares = (curves.changes[change] for curves in against.values())
            rows.append((change, str(rate.episodes), *map(told_rate, shares)))
        show(("changes read as in truth, %", "times", *against), rows)
    if quality.interactions:
        show(*interactions_table(quality))
        say(told_interactions(quality))
    show(*signals_table(quality))
    if isinstance(quality.heads, str):
        say(f"reward and continuation heads: {quality.heads}")
    else:
        show(*heads_table(quality.heads))
    _print_ends(quality.ends)
    if isinstance(quality.returns, str):
        say(f"imagined against real return: {quality.returns}")
    else:
        say(quality.returns.verdict, style="bold red" if quality.returns.alarm else None)


def _print_ends(ends: Mapping[str, Any] | str) -> None:
    if isinstance(ends, str):
        say(f"ends in the game and in the dream: {ends}")
        return
    rows = []
    for name, what in (("policy", "policy"), ("random", "random"), ("own", "its own games")):
        if (recall := ends[name]) is None:
            continue
        rows.append((what, "ends", *map(str, recall["ends"]), f"{recall['over']:.1%}"))
        for again in ("dream", "twin"):
            rows.append(("", again, *map(percent, recall[again]), f"{recall[f'{again}_over']:.1%}"))
        rows.append(("", "chance", *map(percent, recall["chance"]), ""))
    frames = [f"{first} to {last}" for first, last in ends["policy"]["frames"]]
    show(("actions", "played", *frames, "games over"), rows, title="ends met again, by frames behind the start")
