"""The units of `python -m benchmarks results` at work: each trains one method, plays it, and leaves what it came to.

A world model that was interrupted goes on from its newest checkpoint; cloning from pixels and PPO, which are short,
begin anew. A unit over several training seeds trains them side by side in one program, and plays them so.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import numpy as np

from benchmarks.plan import DATA_SEED, EVALUATION_SEED, Plan
from dreamer4 import data, envs
from dreamer4.config import Config, ObjectiveConfig
from dreamer4.data import AbstractPolicy, DeviceSource, random_policy
from dreamer4.dreamer import PHASES, Dreamer
from dreamer4.evaluation import DreamerPolicy, play
from dreamer4.files import write_atomically
from dreamer4.run import behaviour, stopping, writing
from dreamer4.run.folder import RunFolder
from dreamer4.run.metrics import MetricLog
from dreamer4.run.phase import mean_over
from dreamer4.serving.dream import DreamWorld
from dreamer4.training import CloningPhase, init_dreamer, init_state, member, stack_members, stream
from dreamer4.training import train as train_phase
from dreamer4_cli import run as work
from dreamer4_cli.console import ConsoleReporter, ProgressBar, console


# A dream costs a hundred times a step of the games it stands for, so PPO gets fewer of them.
DREAM_STEPS = 200_000

# By this variable XLA sizes its pool of threads on a CPU. Sums are split among them, so their rounding depends on how
# many there are, and PPO amplifies it. With one, a data set is the same on any number of cores of one kind.
ONE_THREAD = {"NPROC": "1"}

# What a unit found, for each of its training seeds.
Found = list[dict[str, Any]]


def collect(plan: Plan) -> None:
    """Collects the data set of a benchmark. For a process of its own, which has `ONE_THREAD` in its environment."""
    with stopping.installed():
        work.collect(plan.config(DATA_SEED, collecting=True), plan.data)


def run_unit(plan: Plan, kind: str, seeds: tuple[int, ...]) -> None:
    """Runs one unit of work; what it prints goes to `log.txt` in its folder."""
    find = {
        "references": _references,
        "cloning": _cloning,
        "dreamer": _dreamer,
        "other_objective": _other_objective,
        "ppo": _ppo,
        "dream_ppo": _dream_ppo,
    }[kind]
    record(plan, kind, seeds, lambda folder: find(plan, seeds, folder))


def record(plan: Plan, kind: str, seeds: tuple[int, ...], find: Callable[[Path], Found]) -> None:
    """Runs work of any kind in its folder, and records what it found for each seed, by which it is done."""
    folder = plan.work(kind, seeds)
    folder.mkdir(parents=True, exist_ok=True)
    commit = work.source_commit() or "unknown"  # of the code that runs; by the end there may be another
    with stopping.installed(), (folder / "log.txt").open("a") as log, contextlib.redirect_stdout(log):
        found = find(folder)
    episodes = plan.config(seeds[0]).evaluation.episodes
    facts = {"device": work.device(), "commit": commit, "episodes": episodes, "command": plan.command}
    for seed, unit in zip(seeds, found, strict=True):
        file = plan.result(kind, seed)
        write_atomically(file, json.dumps(facts | unit, indent=1) + "\n")


def _play(config: Config, policies: Sequence[AbstractPolicy]) -> list[float]:
    """Returns the mean return of policies, which play side by side."""
    count = config.evaluation.episodes
    played = play(
        stack_members(policies),
        envs.make(config.env),
        episodes=count,
        batch_size=min(config.evaluation.batch_size, count),
        members=len(policies),
        key=stream(EVALUATION_SEED, "evaluate"),
    )
    return [float(mean) for mean in np.atleast_1d(np.mean(played.returns, axis=-1))]


def _references(plan: Plan, seeds: tuple[int, ...], folder: Path) -> Found:
    config = plan.config(seeds[0])
    (by_chance,) = _play(config, [random_policy(envs.make(config.env).spec)])
    mean = data.read_info(plan.data).return_mean
    return [{"returns": {"random": by_chance, "data": mean}, "minutes": {"random": 0.0, "data": 0.0}} | _data(plan)]


def _dreamer(plan: Plan, seeds: tuple[int, ...], folder: Path) -> Found:
    config, run = plan.config(seeds[0], seeds=len(seeds)), RunFolder(folder / "run")
    with _clock(folder) as minutes:
        work.train(config, run.path, PHASES, resume=run.is_run)
    agents = _agents(run, len(seeds))
    methods = {"world_model_cloning": [cloned(agent) for agent in agents], "imagination": agents}
    return _ladder(plan, config, methods, minutes())


def _other_objective(plan: Plan, seeds: tuple[int, ...], folder: Path) -> Found:
    """Trains imagination with the other objective, at the prior weight of the paper."""
    kind = "pmpo" if plan.config(seeds[0]).imagination.objective.kind == "policy_gradient" else "policy_gradient"
    objective = f"imagination.objective.kind={kind}", f"imagination.objective.beta={ObjectiveConfig().beta}"
    return imagine_again(plan, seeds, folder, method=kind, settings=objective)


def imagine_again(plan: Plan, seeds: tuple[int, ...], folder: Path, *, method: str, settings: Sequence[str]) -> Found:
    """Trains imagination with other settings in the world models of seeds, from their cloned policies, and plays it."""
    config, run = plan.config(seeds[0], *settings, seeds=len(seeds)), RunFolder(folder / "run")
    with _clock(folder) as minutes:
        work.train(config, run.path, ("imagination",), resume=run.is_run, origin=plan.world(seeds[0])[0])
    return _ladder(plan, config, {method: _agents(run, len(seeds))}, minutes())


def _cloning(plan: Plan, seeds: tuple[int, ...], folder: Path) -> Found:
    count = len(seeds)
    config = plan.config(seeds[0], seeds=count)
    spec = data.read_info(plan.data).spec
    source = DeviceSource.from_episodes(data.read_episodes(plan.data, "train"))
    # As many steps as the transformer is trained for with a world model.
    steps = config.train.dynamics.steps + config.train.agent.steps
    phase, settings = CloningPhase(), config.train.agent.model_copy(update={"steps": steps})
    log = MetricLog(folder / "metrics.jsonl")
    log.truncate(phase.name, 0)
    with _clock(folder) as minutes, ProgressBar(phase.name, total=steps, console=console) as bar:
        state = init_state(phase, init_dreamer(config, spec), settings, count)
        training = train_phase(phase, settings, state, source, seed=seeds[0], seeds=count)
        for state, metrics in training:  # noqa: B007
            bar.advance(1)
            if bar.completed % config.train.log_every == 0:
                log.append(phase.name, bar.completed, mean_over([metrics], count))
    agents = [phase.finish(member(state.ema, i, count)) for i in range(count)]
    return _ladder(plan, config, {"cloning": agents}, minutes())


def _ppo(plan: Plan, seeds: tuple[int, ...], folder: Path) -> Found:
    config = plan.config(seeds[0])
    with _clock(folder) as minutes:
        trained = behaviour.train(config, envs.make(config.env), len(seeds), ConsoleReporter())
    returns = _play(config, [run.policy() for run in trained])
    each = minutes() / len(seeds)
    return [{"returns": {"ppo": value}, "minutes": {"ppo": each}} for value in returns]


def _dream_ppo(plan: Plan, seeds: tuple[int, ...], folder: Path) -> Found:
    """Trains PPO in the world model of the seed, and plays it in the real environment."""
    (seed,) = seeds
    config = plan.config(seed)
    config = plan.config(seed, f"ppo.steps={min(config.ppo.steps, DREAM_STEPS)}")
    run, place = plan.world(seed)
    world = DreamWorld.load(run, member=place, seed=seed)
    with _clock(folder) as minutes:
        (trained,) = behaviour.train(config, world, 1, ConsoleReporter())
    (mean,) = _play(config, [trained.policy()])
    known = [value for value in trained.returns if not np.isnan(value)]
    notes = {"return_in_the_dream": round(known[-1], 4)} if known else {}
    return [{"returns": {"dream_ppo": mean}, "minutes": {"dream_ppo": minutes()}, "notes": notes} | _data(plan)]


def _data(plan: Plan) -> dict[str, str]:
    return {"data": data.read_info(plan.data).fingerprint}


def _agents(run: RunFolder, count: int) -> list[Dreamer]:
    return [Dreamer.load(run.path, member=i) for i in range(count)]


def _ladder(plan: Plan, config: Config, methods: dict[str, list[Dreamer]], minutes: float) -> Found:
    """Plays the agents of each method both ways, and tells for each training seed what data they learned from."""
    modes: dict[str, Literal["sample", "mode"]] = {"returns": "sample", "by_mode": "mode"}
    played = {
        key: {name: _play(config, [DreamerPolicy(a, mode) for a in agents]) for name, agents in methods.items()}
        for key, mode in modes.items()
    }
    each = dict.fromkeys(methods, minutes / config.seeds)
    return [
        {key: {name: values[i] for name, values in means.items()} for key, means in played.items()}
        | {"minutes": each}
        | _data(plan)
        for i in range(config.seeds)
    ]


def cloned(agent: Dreamer) -> Dreamer:
    """Returns the agent with its cloned prior in the policy's place."""
    return eqx.tree_at(lambda d: d.policy, agent, agent.prior)


@contextlib.contextmanager
def _clock(folder: Path) -> Iterator[Callable[[], float]]:
    """Counts minutes of work, those of earlier, interrupted attempts included."""
    file = folder / "seconds.txt"
    with writing.seconds(file):
        yield lambda: float(file.read_text()) / 60
