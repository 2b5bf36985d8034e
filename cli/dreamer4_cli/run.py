"""What the commands print around a run; what is done is `dreamer4.run.stages`."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.table import Table

from dreamer4 import checkpoint
from dreamer4.config import Config
from dreamer4.dreamer import PHASES, Dreamer, find_checkpoint, read_description
from dreamer4.envs import AbstractEnvironment
from dreamer4.errors import InputError
from dreamer4.evaluation import PlanningPolicy, iqm, over_tasks, summarise_seeds
from dreamer4.evaluation.results import Results
from dreamer4.evaluation.statistics import Estimate, Rate
from dreamer4.run import behaviour, sizes, stopping
from dreamer4.run.facts import device as device
from dreamer4.run.facts import run_results
from dreamer4.run.facts import source_commit as source_commit
from dreamer4.run.folder import RunFolder, cloned_head, steps_done
from dreamer4.run.playing import play_agent, play_policy, rates
from dreamer4.run.rounds import rounds as online
from dreamer4.run.stages import LOOP, Collect, Train, execute
from dreamer4_cli.console import ConsoleReporter, console, say
from dreamer4_cli.describe import check_data as check_data
from dreamer4_cli.describe import dry_run as dry_run
from dreamer4_cli.describe import info as info
from dreamer4_cli.invocation import invoked


_POLICY_NAMES = {
    "random": "random actions",
    "data": "behaviour data",
    "cloned": "cloned policy",
    "imagination": "imagination policy",
}


def collect(config: Config, out: Path) -> None:
    """Collects the data set that a configuration describes into the new folder `out`."""
    if os.path.lexists(out):
        raise InputError(f"{out} exists, and a data set is never overwritten. Choose another folder with --out.")
    stopping.note(f"No data set was written to {out}.")
    agents = out.with_name(behaviour.BEHAVIOUR if out.name == RunFolder(out).data.name else f"{out.name}-behaviour")
    info = behaviour.collect(config, out, agents, ConsoleReporter())
    say(f"{out}: {info.num_episodes} episodes, {info.num_frames} frames, mean return {info.return_mean:.3f}")


def train(
    config: Config,
    folder: Path,
    phases: tuple[str, ...],
    *,
    resume: bool,
    fallback: bool = True,
    changed_data: bool = False,
    origin: Path | None = None,
    rounds: int = 0,
) -> None:
    """Trains phases in a run folder, each from the end of the one before it; arguments are those of `execute`."""
    run = execute(
        config,
        folder,
        (Collect(), *map(Train, phases), *(online(rounds) if rounds else ())),
        report=ConsoleReporter(),
        resume=resume,
        fallback=fallback,
        changed_data=changed_data,
        origin=origin,
        program=f"{invoked()} train {'all' if phases == PHASES else phases[0]}"
        + (f" --rounds {rounds}" if rounds else ""),
    )
    if rounds:
        results = run_results(run)
        assert results is not None
        table = Table("round", "episodes", "collected", "sampled", "95 % interval", "greedy", title=config.env.id)
        for row in results.rounds:
            new = "-" if row.collected is None else f"{row.collected:+.3f}"
            mean, spread, _ = _cells(row.sampled)
            table.add_row(str(row.number), str(row.episodes), new, mean, spread, _cells(row.greedy)[0])
        console.print(table)


def evaluate(path: Path, *, episodes: int | None, seed: int, plan: int | None = None, task: str | None = None) -> None:
    """Plays a trained agent in the real environment of each of its tasks and prints its returns.

    Args:
        path: a run or a checkpoint.
        episodes: how many of each task; None: as many as the configuration says.
        seed: of the episodes.
        plan: dreams before each action of one more way to act, planning; None: without it.
        task: name or number of the one task to play; None: all.
    """
    step = find_checkpoint(path)
    cloned, meta, (config, spec) = cloned_head(step), checkpoint.read_meta(step), read_description(step)
    if task is None:
        worlds = sizes.worlds(config, spec)
    else:
        number = spec.find_task(task)
        worlds = [sizes.World(spec.names[number], number, sizes.environment(config, spec, number))]
    if plan is not None and meta.get("phase") != "imagination":
        raise InputError(
            f"--plan: {path} is of the {meta.get('phase')} phase, and planning needs the value head, which the "
            "imagination phase trains. Train it, or leave --plan out."
        )
    if plan is not None and worlds[0].task is None:
        raise InputError(
            f"--plan: {worlds[0].name} asks for its tasks in turn, and a plan is for one. Name it by --task."
        )
    agents = [Dreamer.load(path, member=i) for i in range(config.seeds)]
    count = episodes or config.evaluation.episodes
    if cloned == "policy":
        say(f"agent phase: step {steps_done(step)} of {config.train.agent.steps}; its policy is cloned so far")
    imagined = [("policy", config.imagination.result)] if meta.get("phase") == "imagination" else []
    settings, report, found = config.imagination, ConsoleReporter(), {}
    for name, number, env in worlds:
        rows = found[name] = {}
        for policy, label in ((cloned, _POLICY_NAMES["cloned"]), *imagined):
            for mode in ("sample", "mode"):
                how = (env, count, policy, mode, seed, report, number)
                rows[label, mode] = [play_agent(config, agent, *how) for agent in agents]
        if plan is not None:
            planners = [PlanningPolicy(a, plan, settings.horizon, settings.discount, number or 0) for a in agents]
            rows[settings.result, f"plan {plan} x {settings.horizon}"] = [
                play_policy(config, planner, env, count, seed, report, "planning") for planner in planners
            ]
    named = len(found) > 1
    table = Table(*["task"] * named, "policy", "acting by", "return", "95 % interval", *["IQM"] * named, "episodes")
    for name, rows in found.items():
        for (label, mode), seeds in rows.items():
            returns = [np.asarray(played.returns) for played in seeds]
            mean, spread, played = _cells(summarise_seeds(returns))
            middle = [f"{float(iqm(np.concatenate(returns))):+.3f}"] * named
            table.add_row(*[name] * named, label, mode, mean, spread, *middle, played)
    console.print(table)
    for name, _, env in worlds:
        if env.events:
            _print_events(env, found[name], name)
    if named:
        _print_over_tasks(found, [world.env for world in worlds])


def _print_events(env: AbstractEnvironment, rows: dict, task: str) -> None:
    """Prints the share of episodes in which each event happened, and the median step at which it first did."""
    table = Table("% (interval) @ step", *(f"{label}, {mode}" for label, mode in rows), title=task)
    columns = [rates(env, seeds) for seeds in rows.values()]
    for event in env.events:
        table.add_row(event, *(_share(column[event]) for column in columns))
    console.print(table)


def _share(rate: Rate) -> str:
    first = "" if rate.frame is None else f" @ {rate.frame:.0f}"
    return f"{100 * rate.mean:.1f} ({100 * rate.low:.0f}-{100 * rate.high:.0f}){first}"


def _print_over_tasks(found: dict, worlds: Sequence[AbstractEnvironment]) -> None:
    """Prints the interquartile mean over tasks, whose returns become comparable by the lengths of their episodes."""
    table = Table("policy", "acting by", "IQM", "95 % interval", "episodes", title="all tasks, return per step allowed")
    for label, mode in next(iter(found.values())):
        each = [
            np.concatenate([played.returns for played in rows[label, mode]]) / env.max_steps
            for rows, env in zip(found.values(), worlds, strict=True)
        ]
        table.add_row(label, mode, *_cells(over_tasks(each)))
    console.print(table)


def _cells(row: Estimate) -> tuple[str, str, str]:
    return f"{row.mean:+.3f}", f"{row.low:+.3f} to {row.high:+.3f}", str(row.episodes)


def demo(config: Config, folder: Path, *, resume: bool, fallback: bool = True, changed_data: bool = False) -> None:
    """Runs the whole loop, writes `results.json` and `report.html`, and prints what came out."""
    run = execute(
        config,
        folder,
        LOOP,
        report=ConsoleReporter(),
        resume=resume,
        fallback=fallback,
        changed_data=changed_data,
        program=f"{invoked()} demo",
    )
    results = run_results(run)
    assert results is not None
    _print_results(config, results, run)


def _print_results(config: Config, results: Results, run: RunFolder) -> None:
    over = "episodes" if config.seeds == 1 else f"{config.seeds} training seeds"
    table = Table("policy", "mean return", "95 % interval", "episodes", title=f"{config.env.id}, interval over {over}")
    for name, row in results.returns.items():
        table.add_row(_POLICY_NAMES[name], *_cells(row), style="bold" if name == "imagination" else "")
    for task, rows in results.by_task.items():
        for name, row in rows.items():
            table.add_row(f"{task}: {_POLICY_NAMES[name]}", *_cells(row), style="dim")
    console.print(table)
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


def ppo(config: Config, out: Path) -> None:
    """Trains PPO alone into a new folder and prints its returns."""
    rows = behaviour.ppo(config, out, ConsoleReporter())
    table = Table("seed", "return", "95 % interval", "episodes", title=f"PPO on {config.env.id}, sampled actions")
    for row in rows:
        interval = f"{row['low']:+.3f} to {row['high']:+.3f}"
        table.add_row(str(row["seed"]), f"{row['mean']:+.3f}", interval, str(row["episodes"]))
    console.print(table)
    console.print(f"results: {out / 'results.json'}", markup=False, highlight=False, soft_wrap=True)
