"""`benchmarks results`: every method on every benchmark over training seeds, resumable, and the ledger they fill.

Each unit of work (`plan.py`) has a process and a folder of its own. What it came to on a training seed lies in a
`unit.json`, and is not run again.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.ledger import Entry, data_sets, improvement, page, read_entries, rows, write_entry
from benchmarks.plan import DATA_SEED, EVALUATION_SEED, ON_A_WORLD_MODEL, UNITS, Plan
from benchmarks.units import ONE_THREAD, collect, run_unit
from benchmarks.workers import Workers
from dreamer4 import data
from dreamer4.errors import InputError, nearest
from dreamer4.files import check_place
from dreamer4.run import behaviour, stopping
from dreamer4_cli.console import ProgressBar


console = Console()

BENCHMARKS = ("catch", "cartpole", "fourrooms", "breakout", "asterix", "space_invaders", "freeway")

# A first look at the ladder: fewer methods, seeds and episodes, and no claim.
QUICK = ("catch", "cartpole")
QUICK_UNITS = ("references", "dreamer")
QUICK_SEEDS = 2
QUICK_EPISODES = 200


def results(
    names: Sequence[str],
    *,
    seeds: int | None,
    quick: bool,
    workers: int,
    runs: Path,
    out: Path,
    only_table: bool,
    only: Sequence[str] = (),
    together: bool = False,
) -> None:
    """Runs what is missing of the chosen benchmarks, writes their entries and prints them, or the ledger as it is."""
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        raise InputError(f"results: unknown benchmark {unknown[0]!r}. {nearest(unknown[0], BENCHMARKS)}")
    if strange := [kind for kind in only if kind not in UNITS]:
        raise InputError(f"results --only: unknown part {strange[0]!r}. {nearest(strange[0], UNITS)}")
    count = seeds or (QUICK_SEEDS if quick else 5)
    chosen = tuple(names) or (QUICK if quick else BENCHMARKS)
    plans = [
        Plan(
            name=name,
            seeds=tuple(range(count)),
            episodes=QUICK_EPISODES if quick else None,
            folder=runs / name,
            command=f"python -m benchmarks results {name} --seeds {count}"
            + (" --quick" if quick else "")
            + (" --together" if together else ""),
            kinds=tuple(only) or (QUICK_UNITS if quick else tuple(UNITS)),
            together=together,
        )
        for name in chosen
    ]
    if not only_table:
        check_place(out / "README.md")
        stopping.note("What is finished is kept. The same command goes on.")
        for plan in plans:  # what is wrong is refused before the first one runs
            _refuse_others(plan)
            _refuse_other_data(plan)
            _refuse_lone(plan)
        for plan in plans:
            _run(plan, workers, out)
    for plan in plans:
        held = read_entries(out, plan.name)
        entries = held if only_table else gather(plan, out)
        _print(plan.name, entries)
        for method, entry in entries.items():
            if beyond := set(held[method].seeds) - set(entry.seeds) if method in held else None:
                console.print(
                    f"{out / plan.name / method}.json holds training seeds {sorted(beyond)} too, and is kept until "
                    "they have been run here. --out writes to another folder.",
                    soft_wrap=True,
                )
    if not only_table:
        (out / "README.md").write_text(page({name: read_entries(out, name) for name in BENCHMARKS}))


def _refuse_others(plan: Plan) -> None:
    """Refuses to go on among units that were judged by another number of episodes, as those of `--quick` are."""
    wanted = plan.config(DATA_SEED, collecting=True).evaluation.episodes
    for file in _finished(plan):
        if (judged := json.loads(file.read_text()).get("episodes", wanted)) != wanted:
            raise InputError(
                f"{file} was judged by {judged} episodes, and this command plays {wanted}. Choose another folder with "
                "--runs."
            )


def _refuse_other_data(plan: Plan) -> None:
    """Refuses to go on with a data set that the preset would not make, or among units that were trained on another."""
    if not plan.data.exists():
        return
    behaviour.refuse_other_data(
        plan.config(DATA_SEED, collecting=True), plan.data, "Choose another folder with --runs, or remove it."
    )
    here = data.read_info(plan.data).fingerprint
    for file in _finished(plan):
        if (there := json.loads(file.read_text()).get("data", here)) != here:
            raise InputError(
                f"{file} was trained on a data set with the fingerprint {there[:16]}, and {plan.data} has {here[:16]}. "
                f"Choose another folder with --runs, or remove {file.parent} to train it again."
            )


def _finished(plan: Plan) -> list[Path]:
    """Returns the files of all finished units that a ledger is made of, whichever this command runs."""
    every = replace(plan, kinds=tuple(UNITS)).wanted()
    files = (plan.result(kind, seed) for kind, seeds in every for seed in seeds)
    return [file for file in files if file.exists()]


def _refuse_lone(plan: Plan) -> None:
    """Refuses parts that build on a world model which neither exists as they need it nor is to be trained."""
    building = [kind for kind in ON_A_WORLD_MODEL if kind in plan.kinds]
    for seed in plan.seeds if building else ():
        trained = plan.result("dreamer", seed).exists()
        if not trained and "dreamer" not in plan.kinds:
            raise InputError(
                f"results --only {building[0]}: {plan.name} has no world model of training seed {seed} yet. "
                "Add --only dreamer."
            )
        run, _ = plan.world(seed)
        if trained and not run.exists():
            way = "Leave out --together" if plan.together else "Add --together, and the same --seeds"
            raise InputError(
                f"results: {plan.name} has a world model of training seed {seed}, but not in {run}. {way}, as it "
                "was trained, or choose another folder with --runs."
            )


def _run(plan: Plan, workers: int, out: Path) -> None:
    if not plan.data.exists():
        with Workers(1) as at_work:
            at_work.begin(f"{plan.name} data set", collect, plan, variables=ONE_THREAD)
            at_work.finish()
    todo = plan.units()
    total = len(plan.wanted())
    with (
        ProgressBar(plan.name, total=total, completed=total - len(todo), unit="runs", console=console) as bar,
        Workers(workers) as at_work,
    ):
        while todo or at_work.names:
            for kind, seeds in list(todo):
                ready = kind not in ON_A_WORLD_MODEL or plan.done(("dreamer", seeds))
                if at_work.free and ready:
                    todo.remove((kind, seeds))
                    at_work.begin(f"{kind} {plan.work(kind, seeds).name}", run_unit, plan, kind, seeds)
            if not at_work.names:
                raise RuntimeError(f"bench: {todo} wait for units that do not exist")
            bar.advance(1, at_work.finish())
            gather(plan, out)
    gather(plan, out)


def gather(plan: Plan, out: Path) -> dict[str, Entry]:
    """Returns the entries that the finished units make, and writes them to the ledger.

    An entry of the ledger is replaced by one that has all of its training seeds, and kept until then: a run that has
    just begun would be a poor trade for a result.
    """
    config, held = plan.config(DATA_SEED), read_entries(out, plan.name)
    entries: dict[str, Entry] = {}
    for kind, methods in UNITS.items():
        seeds = (DATA_SEED,) if kind == "references" else plan.seeds
        done = {seed: file for seed in seeds if (file := plan.result(kind, seed)).exists()}
        units = {seed: json.loads(file.read_text()) for seed, file in done.items()}
        told = next(iter(units.values()))["returns"] if units else {}
        for method in (name for name in methods if name in told):
            facts = list(units.values())
            entry = Entry(
                benchmark=plan.name,
                env=config.env.id,
                method=method,
                seeds=tuple(units),
                returns=tuple(unit["returns"][method] for unit in facts),
                by_mode=tuple(unit["by_mode"][method] for unit in facts if method in unit.get("by_mode", {})),
                episodes=data.read_info(plan.data).num_episodes if method == "data" else config.evaluation.episodes,
                evaluation_seed=EVALUATION_SEED,
                minutes=tuple(round(unit["minutes"][method], 2) for unit in facts),
                device=", ".join(sorted({unit["device"] for unit in facts})),
                commit=", ".join(sorted({unit["commit"] for unit in facts})),
                command=", ".join(dict.fromkeys(unit.get("command", plan.command) for unit in facts)),
                data="" if method == "random" else facts[0].get("data", ""),
                notes={name: [unit["notes"].get(name) for unit in facts] for name in facts[0].get("notes", {})},
            )
            entries[method] = entry
            if method not in held or set(held[method].seeds) <= set(entry.seeds):
                write_entry(out, entry)
    return entries


def _print(name: str, entries: dict[str, Entry]) -> None:
    env = next((entry.env for entry in entries.values()), "not run")
    columns = ("method", "mean return", "95 % interval", "IQM", "greedy", "seeds", "minutes")
    table = Table(*columns, title=f"{name} ({env})")
    for *row, _, _ in rows(entries):  # devices and commits stand in the ledger's file; a terminal has no room for them
        table.add_row(*row)
    console.print(table)
    if warning := data_sets(entries):
        console.print(f"WARNING: {warning}.", soft_wrap=True)
    if (gain := improvement(entries)) is not None:
        mean, low, high = gain
        console.print(f"imagination minus cloning, paired over seeds: {mean:+.3f} ({low:+.3f} to {high:+.3f})\n")
