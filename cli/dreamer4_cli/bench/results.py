"""`dreamer4 bench results`: every method on every benchmark over training seeds, resumable, and the ledger they fill.

The work is cut into units, one method on one training seed, each in a process and a folder of its own. A finished unit
leaves one `unit.json` and is not run again. A world model that was interrupted goes on from its newest checkpoint;
cloning from pixels and PPO, which are short, begin anew.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import numpy as np
from rich.console import Console
from rich.table import Table

from dreamer4 import config as configuration
from dreamer4 import data, envs
from dreamer4.config import Config, ObjectiveConfig
from dreamer4.data import AbstractPolicy, DeviceSource, random_policy
from dreamer4.dreamer import PHASES, Dreamer
from dreamer4.errors import InputError, nearest
from dreamer4.evaluation import DreamerPolicy, play
from dreamer4.reporting.ledger import OTHER_OBJECTIVE, Entry, improvement, markdown, read_entries, rows, write_entry
from dreamer4.serving.dream import DreamWorld
from dreamer4.training import CloningPhase, init_dreamer, init_state, stream
from dreamer4.training import train as train_phase
from dreamer4.training.folder import RunFolder
from dreamer4.training.metrics import MetricLog, Progress
from dreamer4_cli import behaviour, stopping, writing
from dreamer4_cli import run as work
from dreamer4_cli.bench.workers import Workers


console = Console()

BENCHMARKS = ("catch", "cartpole", "fourrooms", "breakout", "asterix", "space_invaders", "freeway")
EVALUATION_SEED = 0
DATA_SEED = 0

# The methods that one unit of work fills. A cloned policy is part of every run that goes on to imagination. They run in
# this order, each over all seeds, so that a ledger which is cut short holds the main comparison first.
UNITS = {
    "references": ("random", "data"),
    "dreamer": ("world_model_cloning", "imagination"),
    "cloning": ("cloning",),
    "ppo": ("ppo",),
    "dream_ppo": ("dream_ppo",),
    "other_objective": OTHER_OBJECTIVE,
}

# A dream costs a hundred times a step of the games it stands for, so PPO gets fewer of them.
DREAM_STEPS = 200_000

# Units that build on the world model of their seed.
ON_A_WORLD_MODEL = ("other_objective", "dream_ppo")

# A first look at the ladder: fewer methods, seeds and episodes, and no claim.
QUICK = ("catch", "cartpole")
QUICK_UNITS = ("references", "dreamer")
QUICK_SEEDS = 2
QUICK_EPISODES = 200


@dataclass(frozen=True)
class Plan:
    """One benchmark: what is run, and where it lies.

    Attributes:
        name: the benchmark, which is the name of its preset.
        seeds: the training seeds.
        episodes: evaluation episodes of each seed; None: what the preset says.
        folder: where its data set and runs lie.
        command: what a reader types for the same.
        kinds: which of `UNITS` are run.
    """

    name: str
    seeds: tuple[int, ...]
    episodes: int | None
    folder: Path
    command: str
    kinds: tuple[str, ...] = tuple(UNITS)

    @property
    def data(self) -> Path:
        """The data set of all seeds."""
        return self.folder / "data"

    def config(self, seed: int, *overrides: str, collecting: bool = False) -> Config:
        """Returns the configuration of a training seed, on the shared data set unless it is yet to be collected."""
        path = () if collecting else (f"data.path={json.dumps(str(self.data))}",)
        episodes = () if self.episodes is None else (f"evaluation.episodes={self.episodes}",)
        return configuration.load(self.name, overrides=[*path, *episodes, *overrides], seed=seed)

    def unit(self, kind: str, seed: int) -> Path:
        """Returns the folder of a unit of work."""
        return self.folder / kind / f"seed{seed}"

    def units(self) -> list[tuple[str, int]]:
        """Returns the units still to be run, in an order in which each finds what it builds on."""
        return [(kind, seed) for kind, seed in self.wanted() if not (self.unit(kind, seed) / "unit.json").exists()]

    def wanted(self) -> list[tuple[str, int]]:
        """Returns all units in that order. What trains nothing has one seed."""
        return [
            (kind, seed)
            for kind in UNITS
            if kind in self.kinds
            for seed in ((DATA_SEED,) if kind == "references" else self.seeds)
        ]


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
) -> None:
    """Runs what is missing of the chosen benchmarks, writes their entries and prints them, or the ledger as it is."""
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        raise InputError(f"bench results: unknown benchmark {unknown[0]!r}. {nearest(unknown[0], BENCHMARKS)}")
    if strange := [kind for kind in only if kind not in UNITS]:
        raise InputError(f"bench results --only: unknown part {strange[0]!r}. {nearest(strange[0], UNITS)}")
    count = seeds or (QUICK_SEEDS if quick else 5)
    chosen = tuple(names) or (QUICK if quick else BENCHMARKS)
    plans = [
        Plan(
            name=name,
            seeds=tuple(range(count)),
            episodes=QUICK_EPISODES if quick else None,
            folder=runs / name,
            command=f"dreamer4 bench results {name} --seeds {count}" + (" --quick" if quick else ""),
            kinds=tuple(only) or (QUICK_UNITS if quick else tuple(UNITS)),
        )
        for name in chosen
    ]
    if not only_table:
        stopping.note("What is finished is kept. The same command goes on.")
        for plan in plans:  # what is wrong is refused before the first one runs
            _refuse_others(plan)
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
        tables = markdown({name: read_entries(out, name) for name in BENCHMARKS})
        (out / "README.md").write_text(f"# Results\n\n{tables}\n")


def _refuse_others(plan: Plan) -> None:
    """Refuses to go on among units that were judged by another number of episodes, as those of `--quick` are."""
    wanted = plan.config(DATA_SEED, collecting=True).evaluation.episodes
    for kind, seed in replace(plan, kinds=tuple(UNITS)).wanted():  # all that the ledger is made of
        file = plan.unit(kind, seed) / "unit.json"
        judged = json.loads(file.read_text()).get("episodes", wanted) if file.exists() else wanted
        if judged != wanted:
            raise InputError(
                f"{file} was judged by {judged} episodes, and this command plays {wanted}. Choose another folder with "
                "--runs."
            )


def _refuse_lone(plan: Plan) -> None:
    """Refuses parts that build on a world model which neither exists nor is to be trained."""
    building = [kind for kind in ON_A_WORLD_MODEL if kind in plan.kinds]
    lacking = [seed for seed in plan.seeds if not (plan.unit("dreamer", seed) / "unit.json").exists()]
    if building and lacking and "dreamer" not in plan.kinds:
        raise InputError(
            f"bench results --only {building[0]}: {plan.name} has no world model of training seed {lacking[0]} yet. "
            "Add --only dreamer."
        )


def _run(plan: Plan, workers: int, out: Path) -> None:
    if not plan.data.exists():
        config = plan.config(DATA_SEED, collecting=True)
        work.collect(config, plan.data)
    todo = plan.units()
    total = len(plan.wanted())
    with (
        Progress(plan.name, total=total, completed=total - len(todo), unit="runs", console=console) as bar,
        Workers(workers) as at_work,
    ):
        while todo or at_work.names:
            for kind, seed in list(todo):
                ready = kind not in ON_A_WORLD_MODEL or (plan.unit("dreamer", seed) / "unit.json").exists()
                if at_work.free and ready:
                    todo.remove((kind, seed))
                    at_work.begin(f"{kind} seed {seed}", run_unit, plan, kind, seed)
            if not at_work.names:
                raise RuntimeError(f"bench: {todo} wait for units that do not exist")
            bar.advance(1, at_work.finish())
            gather(plan, out)
    gather(plan, out)


def run_unit(plan: Plan, kind: str, seed: int) -> None:
    """Runs one unit of work; what it prints goes to `log.txt` in its folder."""
    folder = plan.unit(kind, seed)
    folder.mkdir(parents=True, exist_ok=True)
    with stopping.installed(), (folder / "log.txt").open("a") as log, contextlib.redirect_stdout(log):
        unit = {
            "references": _references,
            "cloning": _cloning,
            "dreamer": _dreamer,
            "other_objective": _other_objective,
            "ppo": _ppo,
            "dream_ppo": _dream_ppo,
        }[kind](plan, seed, folder)
    episodes = plan.config(seed).evaluation.episodes
    facts = {"device": work.device(), "commit": work.source_commit() or "unknown", "episodes": episodes}
    partial = folder / "unit.tmp"
    partial.write_text(json.dumps(facts | unit, indent=1) + "\n")
    os.replace(partial, folder / "unit.json")


def _play(config: Config, policy: AbstractPolicy) -> float:
    count = config.evaluation.episodes
    played = play(
        policy,
        envs.make(config.env),
        episodes=count,
        batch_size=min(config.evaluation.batch_size, count),
        key=stream(EVALUATION_SEED, "evaluate"),
    )
    return float(np.mean(played.returns))


def _references(plan: Plan, seed: int, folder: Path) -> dict[str, Any]:
    config = plan.config(seed)
    by_chance = _play(config, random_policy(envs.make(config.env).spec))
    mean = data.read_info(plan.data).return_mean
    return {"returns": {"random": by_chance, "data": mean}, "minutes": {"random": 0.0, "data": 0.0}} | _data(plan)


def _dreamer(plan: Plan, seed: int, folder: Path) -> dict[str, Any]:
    config, run = plan.config(seed), RunFolder(folder / "run")
    with _clock(folder) as minutes:
        work.train(config, run.path, PHASES, resume=run.is_run)
    agent = Dreamer.load(run.path)
    return _ladder(plan, config, {"world_model_cloning": cloned(agent), "imagination": agent}, minutes())


def _other_objective(plan: Plan, seed: int, folder: Path) -> dict[str, Any]:
    """Trains imagination with the other objective, at the prior weight of the paper, in the world model of the seed."""
    kind = "pmpo" if plan.config(seed).imagination.objective.kind == "policy_gradient" else "policy_gradient"
    weight = ObjectiveConfig().beta
    config = plan.config(seed, f"imagination.objective.kind={kind}", f"imagination.objective.beta={weight}")
    run = RunFolder(folder / "run")
    with _clock(folder) as minutes:
        work.train(config, run.path, ("imagination",), resume=run.is_run, origin=plan.unit("dreamer", seed) / "run")
    return _ladder(plan, config, {kind: Dreamer.load(run.path)}, minutes())


def _cloning(plan: Plan, seed: int, folder: Path) -> dict[str, Any]:
    config = plan.config(seed)
    spec = data.read_info(plan.data).spec
    source = DeviceSource.from_episodes(data.read_episodes(plan.data, "train"))
    # As many steps as the transformer is trained for with a world model.
    steps = config.train.dynamics.steps + config.train.agent.steps
    phase, settings = CloningPhase(), config.train.agent.model_copy(update={"steps": steps})
    log = MetricLog(folder / "metrics.jsonl")
    log.truncate(phase.name, 0)
    with _clock(folder) as minutes, Progress(phase.name, total=steps, console=work.console) as bar:
        state = init_state(phase, init_dreamer(config, spec), settings)
        for state, metrics in train_phase(phase, settings, state, source, seed=seed):  # noqa: B007
            bar.advance(1)
            if bar.completed % config.train.log_every == 0:
                log.append(phase.name, bar.completed, {name: float(value) for name, value in metrics.items()})
    return _ladder(plan, config, {"cloning": phase.finish(state.ema)}, minutes())


def _ppo(plan: Plan, seed: int, folder: Path) -> dict[str, Any]:
    config = plan.config(seed)
    with _clock(folder) as minutes:
        (trained,) = behaviour.train(config, envs.make(config.env), 1)
    return {"returns": {"ppo": _play(config, trained.policy())}, "minutes": {"ppo": minutes()}}


def _dream_ppo(plan: Plan, seed: int, folder: Path) -> dict[str, Any]:
    """Trains PPO in the world model of the seed, and plays it in the real environment."""
    config = plan.config(seed)
    config = plan.config(seed, f"ppo.steps={min(config.ppo.steps, DREAM_STEPS)}")
    world = DreamWorld.load(plan.unit("dreamer", seed) / "run", seed=seed)
    with _clock(folder) as minutes:
        (trained,) = behaviour.train(config, world, 1)
    returns = {"dream_ppo": _play(config, trained.policy())}
    known = [value for value in trained.returns if not np.isnan(value)]
    notes = {"return_in_the_dream": round(known[-1], 4)} if known else {}
    return {"returns": returns, "minutes": {"dream_ppo": minutes()}, "notes": notes} | _data(plan)


def _data(plan: Plan) -> dict[str, str]:
    return {"data": data.read_info(plan.data).fingerprint}


def _ladder(plan: Plan, config: Config, agents: dict[str, Dreamer], minutes: float) -> dict[str, Any]:
    """Plays agents both ways, and tells what data they learned from."""
    modes: dict[str, Literal["sample", "mode"]] = {"returns": "sample", "by_mode": "mode"}
    played = {
        key: {name: _play(config, DreamerPolicy(agent, mode)) for name, agent in agents.items()}
        for key, mode in modes.items()
    }
    return played | {"minutes": dict.fromkeys(agents, minutes)} | _data(plan)


def cloned(agent: Dreamer) -> Dreamer:
    """Returns the agent with its cloned prior in the policy's place."""
    return eqx.tree_at(lambda d: d.policy, agent, agent.prior)


@contextlib.contextmanager
def _clock(folder: Path) -> Iterator[Callable[[], float]]:
    """Counts minutes of work, those of earlier, interrupted attempts included."""
    file = folder / "seconds.txt"
    with writing.seconds(file):
        yield lambda: float(file.read_text()) / 60


def gather(plan: Plan, out: Path) -> dict[str, Entry]:
    """Returns the entries that the finished units make, and writes them to the ledger.

    An entry of the ledger is replaced by one that has all of its training seeds, and kept until then: a run that has
    just begun would be a poor trade for a result.
    """
    config, held = plan.config(DATA_SEED), read_entries(out, plan.name)
    entries: dict[str, Entry] = {}
    for kind, methods in UNITS.items():
        seeds = (DATA_SEED,) if kind == "references" else plan.seeds
        done = {seed: file for seed in seeds if (file := plan.unit(kind, seed) / "unit.json").exists()}
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
                command=plan.command,
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
    for *row, _ in rows(entries):  # commits stand in the ledger's file; a terminal has no room for them
        table.add_row(*row)
    console.print(table)
    if (gain := improvement(entries)) is not None:
        mean, low, high = gain
        console.print(f"imagination minus cloning, paired over seeds: {mean:+.3f} ({low:+.3f} to {high:+.3f})\n")
