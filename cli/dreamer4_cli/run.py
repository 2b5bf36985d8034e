"""What the commands print around a run; what is done is `dreamer4.run.stages`."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dreamer4.config import Config
from dreamer4.dreamer import PHASES
from dreamer4.errors import InputError
from dreamer4.evaluation import Played, iqm, over_tasks, summarise_seeds
from dreamer4.evaluation.statistics import Estimate, Rate
from dreamer4.reporting.report import POLICIES
from dreamer4.run import behaviour, sizes, stopping
from dreamer4.run.facts import run_results
from dreamer4.run.folder import RunFolder
from dreamer4.run.offline import offline as baselines
from dreamer4.run.playing import play_run, rates
from dreamer4.run.rounds import rounds as online
from dreamer4.run.stages import LOOP, Collect, Train, execute
from dreamer4_cli.console import ConsoleReporter, invoked, say, show
from dreamer4_cli.describe import check_data as check_data
from dreamer4_cli.describe import dry_run as dry_run
from dreamer4_cli.describe import info as info


def collect(config: Config, out: Path) -> None:
    """Collects the data set that a configuration describes into the new folder `out`."""
    if os.path.lexists(out):
        raise InputError(f"{out} exists, and a data set is never overwritten. Choose another folder with --out.")
    stopping.note(f"No data set was written to {out}.")
    agents = out.with_name(behaviour.BEHAVIOUR if out.name == RunFolder(out).data.name else f"{out.name}-behaviour")
    info = behaviour.collect(config, out, agents, ConsoleReporter())
    say(f"{out}: {info.num_episodes} episodes, {info.num_frames} frames, mean return {info.return_mean:.3f}")


def train(config: Config, folder: Path, phases: tuple[str, ...], *, rounds: int = 0, **how: Any) -> None:
    """Trains phases in a run folder, each from the end of the one before it; `how` is as for `execute`."""
    stages = (Collect(), *map(Train, phases), *(online(rounds) if rounds else ()))
    program = f"{invoked()} train {'all' if phases == PHASES else phases[0]}" + f" --rounds {rounds}" * bool(rounds)
    results = run_results(execute(config, folder, stages, report=ConsoleReporter(), program=program, **how))
    if rounds and results is not None:
        rows = []
        for row in results.rounds:
            new = "-" if row.collected is None else f"{row.collected:+.3f}"
            rows.append((str(row.number), str(row.episodes), new, *_cells(row.sampled)[:2], _cells(row.greedy)[0]))
        head = ("round", "episodes", "collected", "sampled", "95 % interval", "greedy")
        show(head, rows, title=config.env.id)


def evaluate(path: Path, **how: Any) -> None:
    """Plays a trained agent as `dreamer4.run.playing.play_run` does, and prints its returns."""
    found, worlds = play_run(path, **how, report=ConsoleReporter())
    _print_played(found, worlds)


def _print_played(found: dict[str, dict[tuple[str, str], list[Played]]], worlds: Sequence[sizes.World]) -> None:
    """Prints returns by task, policy and way to act; then how often events happened; then the mean over tasks."""
    named, table = len(found) > 1, []
    for name, rows in found.items():
        for how, seeds in rows.items():
            returns = [np.asarray(played.returns) for played in seeds]
            mean, spread, played = _cells(summarise_seeds(returns))
            middle = [f"{float(iqm(np.concatenate(returns))):+.3f}"] * named
            table.append((*[name] * named, *how, mean, spread, *middle, played))
    task, middle = ["task"] * named, ["IQM"] * named
    show((*task, "policy", "acting by", "return", "95 % interval", *middle, "episodes"), table)
    for name, _, env in worlds:
        if env.events:
            columns = [rates(env, seeds) for seeds in found[name].values()]
            told = [(event, *(_share(column[event]) for column in columns)) for event in env.events]
            show(("% (interval) @ step", *map(", ".join, found[name])), told, title=name)
    if named:  # by the lengths of their episodes the returns of tasks become comparable
        each = {
            how: [
                np.concatenate([played.returns for played in found[name][how]]) / env.max_steps
                for name, _, env in worlds
            ]
            for how in next(iter(found.values()))
        }
        head = ("policy", "acting by", "IQM", "95 % interval", "episodes")
        middles = [(*how, *_cells(over_tasks(tasks))) for how, tasks in each.items()]
        show(head, middles, title="all tasks, return per step allowed")


def _share(rate: Rate) -> str:
    first = "" if rate.frame is None else f" @ {rate.frame:.0f}"
    return f"{100 * rate.mean:.1f} ({100 * rate.low:.0f}-{100 * rate.high:.0f}){first}"


def _cells(row: Estimate) -> tuple[str, str, str]:
    return f"{row.mean:+.3f}", f"{row.low:+.3f} to {row.high:+.3f}", str(row.episodes)


def demo(config: Config, folder: Path, **how: Any) -> None:
    """Runs the whole loop, writes `results.json` and `report.html`, and prints what came out."""
    run = execute(config, folder, LOOP, report=ConsoleReporter(), program=f"{invoked()} demo", **how)
    results = run_results(run)
    assert results is not None
    over = "episodes" if config.seeds == 1 else f"{config.seeds} training seeds"
    rows = [(POLICIES[name].lower(), *_cells(row)) for name, row in results.returns.items()]
    for task, policies in results.by_task.items():
        rows += [(f"{task}: {POLICIES[name].lower()}", *_cells(row)) for name, row in policies.items()]
    head = ("policy", "mean return", "95 % interval", "episodes")
    show(head, rows, title=f"{config.env.id}, interval over {over}", strong=POLICIES["imagination"].lower())
    world = results.world_model
    dreamt = f"dreamt frames {world.psnr[world.num_steps]} dB"
    if (exact := world.exact) is not None:
        dreamt = f"{100 * exact:.1f} % of dreamt frames exactly right"
    say(f"world model: {dreamt}; tokenizer {world.tokenizer_psnr} dB")
    if world.returns is not None:
        say(world.returns.verdict)
    best = results.by_mode["imagination"].mean
    say(f"imagination policy, always taking its most likely action: {best:+.3f}")
    memory = f", {results.memory_gb} GB at most" if results.memory_gb else ""
    say(f"{results.minutes:.1f} minutes on {results.device}{memory}")
    say(f"results: {run.results_file}")
    say(f"report:  {run.report_file}")
    say(f"play it: {invoked()} play {shlex.quote(str(run.path))}")


def baseline(config: Config, kind: str, out: Path) -> None:
    """Trains an agent alone into a new folder and prints its returns."""
    found = behaviour.baseline(config, kind, out, ConsoleReporter())
    rows = [(str(row["seed"]), *_cells(Estimate(**row))) for row in found]
    show(("seed", "return", "95 % interval", "episodes"), rows, title=f"{kind.upper()} on {config.env.id}")
    say(f"results: {out / 'results.json'}")


def offline(config: Config, path: Path, out: Path, names: Sequence[str], *, entropy: float | None) -> None:
    """Trains and plays baselines as `dreamer4.run.offline` does, and prints the table."""
    cells = []
    for row in baselines(config, path, out, names, entropy=entropy, report=ConsoleReporter()):
        returns = [f"{np.mean([r['mean'] for r in row[mode]]):.2f}" for mode in ("sampled", "greedy")]
        steps = "  ".join(f"{best:,} of {taken:,}" for best, taken in row["steps"])
        nats = "  ".join("-" if x is None else f"{x:.3f}" for x in row["held_out"])
        name = ": ".join(row[key] for key in ("task", "name") if key in row)
        cells.append((name, *returns, steps, f"{row['minutes']:.1f}", f"{row['episodes']:,}", nats, row["note"]))
    show(("baseline", "sampled", "greedy", "steps", "minutes", "episodes", "held-out nats", ""), cells)
    say(f"results: {out}")
