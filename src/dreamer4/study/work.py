"""The work of a study: each stage trained once for all cells that share it, each cell measured once, rows written."""

import itertools
import json
import multiprocessing
import shlex
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from dreamer4 import data
from dreamer4.allocator import keep_freed
from dreamer4.baselines import OFFLINE, suited
from dreamer4.config import Config, override
from dreamer4.data import AbstractPolicy, DeviceSource
from dreamer4.dreamer import Dreamer
from dreamer4.envs import AbstractEnvironment
from dreamer4.errors import InputError, nearest
from dreamer4.evaluation import Played
from dreamer4.evaluation.statistics import Rate, event_rates
from dreamer4.files import check_place, write_atomically
from dreamer4.nn.flops import parameters
from dreamer4.run import behaviour, latents, offline, pages, sizes
from dreamer4.run.facts import device, source_commit
from dreamer4.run.folder import RunFolder
from dreamer4.run.playing import play_agent, play_policy
from dreamer4.run.reporter import SILENT, Reporter
from dreamer4.run.stages import Collect, Train, execute
from dreamer4.study.plan import MEASURED_AT, STAGES, Cell, Measure, Seeds, Study, still_holds
from dreamer4.study.rows import Row, publish, read_row, row_file
from dreamer4.types import Action


SPEED_FRAMES = 64

# Everybody plays the same episodes.
EVALUATION_SEED = 0

# How a policy acts, by what its measure's name ends with.
MODES: dict[str, Literal["sample", "mode"]] = {"": "sample", ", greedy": "mode"}

# What the measures of returns are called.
VALUES = {
    "return": [name + suffix for name in ("cloned", "imagination") for suffix in MODES],
    "references": ["random", "data", *(f"{name} from frames{suffix}" for name in OFFLINE for suffix in MODES)],
    "ppo": ["PPO, online"],
}


def run_study(
    study: Study,
    *,
    runs: Path,
    out: Path,
    only: Sequence[str] = (),
    workers: int = 1,
    command: str = "",
    report: Reporter = SILENT,
) -> Path:
    """Trains and measures what is missing of a study, writes its rows, and draws its table and figure.

    Args:
        study: the study.
        runs: where its stages lie; what is finished there is not done again.
        out: where its rows lie, below its name. Seeds that a row holds are not trained again, as long as its settings
            are those of today: so several machines, or one that lost its runs, can work on the same rows.
        only: names of cells; all by default.
        workers: stages worked on side by side, each in a process of its own.
        command: what a person types for the same.
        report: is told how it goes.

    Returns:
        The page with the table.

    Raises:
        InputError: if the study, or the configuration of a cell, is refused.
    """
    cells, commit = study.cells(only), str(source_commit())
    check_comparisons(study)
    rows = {cell: _published(out, study, cell) for cell in cells}
    missing = {
        cell: [seeds for seeds in study.every_seed if row is None or seeds not in row.seeds]
        for cell, row in rows.items()
    }
    wanted = [(cell, seeds) for cell in cells for seeds in missing[cell]]
    for cell in cells:
        sizes.check_paths(cell.config((0, 0)), ())  # devices and memory are for the processes that train
        check_place(row_file(out, study, cell))
    check_place(runs / "measured")
    for stage in STAGES[: STAGES.index(study.last) + 1]:
        first = {cell.fingerprint(stage, seeds): (runs, stage, cell, seeds) for cell, seeds in reversed(wanted)}
        left = [job for job in reversed(first.values()) if not _finished(*job)]
        report.say(f"{stage}: {len(first) - len(left)} of {len(first)} done before")
        _each(_train, left, workers, report)
    jobs = {
        _measured(runs, name, cell, seeds): (runs, name, cell, seeds, commit)
        for cell, seeds in wanted
        for name in study.measure
    }
    _each(_measure, [job for file, job in jobs.items() if not file.exists()], workers, report)
    for cell, row in rows.items():
        if not missing[cell]:
            continue
        more = _row(runs, study, cell, missing[cell], command)
        file = row_file(out, study, cell)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, (row.with_more(more) if row else more).model_dump_json(indent=1) + "\n")
    return publish(out, study)


def _published(out: Path, study: Study, cell: Cell) -> Row | None:
    """Returns the row of a cell if more seeds can be added to it: today's settings would give the same numbers."""
    file = row_file(out, study, cell)
    if not file.exists():
        return None
    row = read_row(file)
    return row if row.made_by and still_holds(json.loads(row.made_by), cell.made_by(study)) else None


def check_comparisons(study: Study) -> None:
    """Raises an `InputError` if a comparison names what is not measured."""
    known = [name for measure in study.measure for name in VALUES.get(measure, ())]
    for name in itertools.chain(*itertools.chain(*study.compare.values()), study.scale or ()):
        if name.rpartition(": ")[2] not in known:  # behind the name of a task
            raise InputError(f"compare: {study.study} measures no {name!r}. {nearest(name, known)}")


def _row(runs: Path, study: Study, cell: Cell, every_seed: Sequence[Seeds], command: str) -> Row:
    """Returns what the measures of a cell came to."""
    told = [
        [json.loads(_measured(runs, name, cell, seeds).read_text()) for seeds in every_seed] for name in study.measure
    ]
    flat = list(itertools.chain(*told))
    return Row(
        study=study.study,
        cell=cell.name,
        preset=cell.preset,
        settings=cell.settings,
        seeds=tuple(every_seed),
        values={name: tuple(one["values"][name] for one in each) for each in told for name in each[0]["values"]},
        rates={name: tuple(one["rates"][name] for one in each) for each in told for name in each[0].get("rates", {})},
        curves={name: tuple(tuple(one["curves"][name]) for one in each) for each in told for name in each[0]["curves"]},
        minutes=tuple(max(each[i]["minutes"] for each in told) for i in range(len(every_seed))),
        data=tuple(sorted({one["data"] for one in flat})),
        device=", ".join(sorted({one["device"] for one in flat})),
        commit=", ".join(sorted({one["commit"] for one in flat})),
        command=command,
        made_by=json.dumps(cell.made_by(study), separators=(",", ":")),
    )


def _each(work: Callable, jobs: Sequence[tuple], workers: int, report: Reporter) -> None:
    """Works through jobs, side by side if there may be several."""
    if workers == 1:
        for job in jobs:
            work(*job, report=report)
        return
    # One process for each job, so that none keeps the compiled programs of another.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=keep_freed, max_tasks_per_child=1) as pool:
        try:
            for future in [pool.submit(work, *job) for job in jobs]:
                future.result()
        except BrokenProcessPool as error:
            raise InputError(
                "study: a process ended without a word, most likely because memory ran out. The same command goes on; "
                "with --workers 1 it needs the least memory."
            ) from error


def _folder(runs: Path, stage: str, cell: Cell, seeds: Seeds) -> RunFolder:
    return RunFolder(runs / f"{stage}-{cell.fingerprint(stage, seeds)}")


def _chain(runs: Path, stage: str, cell: Cell, seeds: Seeds) -> list[RunFolder]:
    """Returns the folders of a stage and of all before it."""
    return [_folder(runs, name, cell, seeds) for name in STAGES[: STAGES.index(stage) + 1]]


def _finished(runs: Path, stage: str, cell: Cell, seeds: Seeds) -> bool:
    run = _folder(runs, stage, cell, seeds)
    if stage == STAGES[0]:
        return _dataset(runs, cell, seeds).exists()
    newest = run.checkpoints(stage).latest_valid()
    return newest is not None and int(newest.name) == getattr(cell.config(seeds).train, stage).steps


def _dataset(runs: Path, cell: Cell, seeds: Seeds) -> Path:
    """Returns the data set of a cell: what it names, or what the first stage collects for all training seeds."""
    named = cell.config(seeds).data.path
    # As it is found from any folder, since the stages' own settings name it.
    return (_folder(runs, STAGES[0], cell, seeds).data if named is None else Path(named)).absolute()


def _train(runs: Path, stage: str, cell: Cell, seeds: Seeds, *, report: Reporter = SILENT) -> None:
    """Works on a stage to its end, from the end of the one before it."""
    *before, run = _chain(runs, stage, cell, seeds)
    report.say(f"{stage} of {cell.name}, seeds {seeds}: {run.path}")
    if not before:
        execute(_own(run, cell.collecting(seeds)), run.path, (Collect(),), report=report, resume=run.is_run)
        return
    path = f"data.path={json.dumps(str(_dataset(runs, cell, seeds)))}"
    config = _own(run, override(cell.config(seeds), [path]))
    origin = before[-1].path if len(before) > 1 else None
    execute(config, run.path, (Train(stage),), report=report, resume=run.is_run, origin=origin)


def _own(run: RunFolder, config: Config) -> Config:
    """Returns the settings that a stage was begun with: another cell's may differ in what comes later."""
    return run.read_config() if run.is_run else config


def _measured(runs: Path, measure: Measure, cell: Cell, seeds: Seeds) -> Path:
    return runs / "measured" / f"{measure}-{cell.measured(measure, seeds)}.json"


def _measure(runs: Path, measure: Measure, cell: Cell, seeds: Seeds, commit: str, *, report: Reporter = SILENT) -> None:
    """Takes a measure of one training seed of a cell, and writes what came out."""
    report.say(f"measuring {measure} of {cell.name}, seeds {seeds}")
    chain, config = _chain(runs, MEASURED_AT[measure], cell, seeds), cell.config(seeds)
    dataset, begun = _dataset(runs, cell, seeds), time.monotonic()
    found = _MEASURES[measure](config, chain[-1].path, dataset, report)
    seconds = sum(float(run.seconds_file.read_text()) for run in chain if run.seconds_file.exists())
    if len(chain) == 1:  # a measure that trains
        seconds = time.monotonic() - begun
    told = {
        "values": found.values,
        "curves": found.curves,
        "rates": {
            name: {event: rate.model_dump() for event, rate in each.items()} for name, each in found.rates.items()
        },
        "minutes": round(seconds / 60, 2),
        "data": data.read_info(dataset).fingerprint,
        "device": device(),
        "commit": commit,
    }
    file = _measured(runs, measure, cell, seeds)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps(told, indent=1) + "\n")


def _speed(agent: Dreamer) -> float:
    """Returns how many frames a second one dream has, in one compiled loop, the fastest of five."""
    action: Action = agent.decide(agent.init()).mode()

    @eqx.filter_jit
    def dream(agent, key):
        def step(memory, key):
            imagined, memory = agent.imagine_step(memory, action, key=key)
            return memory, jnp.sum(imagined.latent)

        return jax.lax.scan(step, agent.init(), jr.split(key, SPEED_FRAMES))[1]

    dream(agent, jr.key(0)).block_until_ready()
    seconds = []
    for i in range(1, 6):
        begun = time.perf_counter()
        dream(agent, jr.key(i)).block_until_ready()
        seconds.append(time.perf_counter() - begun)
    return SPEED_FRAMES / min(seconds)


@dataclass(frozen=True)
class Found:
    """Values by name, curves by dreamt frame, and how often the events of an environment happened."""

    values: dict[str, float]
    curves: dict[str, Sequence[float]] = field(default_factory=dict)
    rates: dict[str, dict[str, Rate]] = field(default_factory=dict)

    @classmethod
    def of(cls, env: AbstractEnvironment, outcomes: dict[str, Played]) -> "Found":
        """Returns what policies, by name, came to; of the events those alone that are asked for, if any are."""
        asked, rates = env.prompts or env.events, {}
        if asked:
            told = {name: event_rates(env.events, played.happened) for name, played in outcomes.items()}
            rates = {name: {event: rate[event] for event in asked} for name, rate in told.items()}
        return cls({name: float(played.returns.mean()) for name, played in outcomes.items()}, rates=rates)


def _dreams(config: Config, run: Path, dataset: Path, report: Reporter) -> Found:
    agent = Dreamer.load(run)
    ((quality, _),) = pages.measure(config, [agent], dataset, seed=config.seed, heads=False)
    own = quality.passes[quality.num_steps]
    values = {"parameters": float(parameters(agent.dynamics)), "dreamt frames/s": _speed(agent)}
    values |= _labels(config, dataset) | {"exact": own.mean.exact, "PSNR": own.mean.psnr}
    values |= {"PSNR last frame": own.psnr[-1]}
    values |= {"PSNR over shuffled actions": quality.comparisons.psnr_over_shuffled_actions}
    if own.mean.ssim is not None:
        values["SSIM"] = own.mean.ssim
    if own.mean.lpips is not None:
        values["LPIPS"] = own.mean.lpips
    if quality.fvd is not None:
        values |= {f"FVD, {name}": value for name, value in quality.fvd.distances.items()}
        values |= {"FVD, half of the truth from the other": quality.fvd.floor, "FVD, videos": float(quality.fvd.videos)}
    values |= {f"PSNR, K={k}": curve.mean.psnr for k, curve in quality.passes.items() if len(quality.passes) > 1}
    return Found(values, {"PSNR": own.psnr})


def _labels(config: Config, dataset: Path) -> dict[str, float]:
    """Returns how many training frames tell which action led to them, and of which action there are the fewest."""
    info = data.read_info(dataset)
    if latents.streams(config, info):  # then all are told, and they are not held in memory
        return {}
    source = DeviceSource.from_episodes(data.read_episodes(dataset, "train")).with_labels(config.data.labelled)
    told = np.asarray(source.action.discrete)[np.asarray(source.action_mask)]
    each = [np.bincount(told[:, i], minlength=n).min() for i, n in enumerate(info.spec.action.num_classes)]
    rarest = {"labelled frames of the rarest action": float(min(each))} if each else {}
    return {"labelled frames": float(len(told))} | rarest


def _in_each(worlds: Sequence[sizes.World], play: Callable[[sizes.World], dict[str, Played]]) -> Found:
    """Returns what policies come to in the world of each task; if it is not alone, its name stands before theirs."""
    values, rates = {}, {}
    for world in worlds:
        before, found = f"{world.name}: " if len(worlds) > 1 else "", Found.of(world.env, play(world))
        values |= {before + name: value for name, value in found.values.items()}
        rates |= {before + name: rate for name, rate in found.rates.items()}
    return Found(values, rates=rates)


def _returns(config: Config, run: Path, dataset: Path, report: Reporter) -> Found:
    agent, episodes = Dreamer.load(run), config.evaluation.episodes
    heads = {"cloned": "prior", "imagination": "policy"}

    def play(world: sizes.World) -> dict[str, Played]:
        return {
            name + suffix: play_agent(
                config, agent, world.env, episodes, head, mode, EVALUATION_SEED, report, world.task
            )
            for name, head in heads.items()
            for suffix, mode in MODES.items()
        }

    return _in_each(sizes.worlds(config, data.read_info(dataset).spec), play)


def _references(config: Config, run: Path, dataset: Path, report: Reporter) -> Found:
    info = data.read_info(dataset)
    every = offline.episodes_of(dataset, info)

    def play(world: sizes.World) -> dict[str, Played]:
        episodes = every.of_task(world.task)
        outcomes = {"random": _played(config, world.env, data.random_policy(info.spec))}
        for name in suited(episodes.spec):
            trained = offline.train(config, name, episodes, config.seed, report)
            for suffix, mode in MODES.items():
                acting = offline.acting(trained, world.env, episodes.spec, mode)
                outcomes[f"{name} from frames{suffix}"] = _played(config, world.env, acting)
        return outcomes

    found = _in_each(sizes.worlds(config, info.spec), play)
    return replace(found, values=found.values | {"data": info.return_mean})


def _ppo(config: Config, run: Path, dataset: Path, report: Reporter) -> Found:
    def play(world: sizes.World) -> dict[str, Played]:
        (trained,) = behaviour.train(config, "ppo", world.env, 1, report)
        return {"PPO, online": _played(config, world.env, trained.policy())}

    return _in_each(sizes.worlds(config, data.read_info(dataset).spec), play)


def _played(config: Config, env: AbstractEnvironment, policy: AbstractPolicy) -> Played:
    """Returns what a policy comes to in the episodes that every other one is judged by."""
    return play_policy(config, policy, env, config.evaluation.episodes, EVALUATION_SEED)


_MEASURES: dict[Measure, Callable[[Config, Path, Path, Reporter], Found]] = {
    "dreams": _dreams,
    "return": _returns,
    "references": _references,
    "ppo": _ppo,
}


def command_line(
    path: Path, *, quick: bool, only: Sequence[str], data_seeds: int | None = None, seeds: int | None = None
) -> str:
    """Returns what a person types for the rows of a study."""
    parts = ["dreamer4 study", shlex.quote(str(path)), *(["--quick"] if quick else [])]
    counts = {"--data-seeds": data_seeds, "--seeds": seeds}
    parts += [f"{name} {count}" for name, count in counts.items() if count is not None]
    return " ".join([*parts, *(f"--only {shlex.quote(name)}" for name in only)])
