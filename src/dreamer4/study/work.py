"""The work of a study: each stage trained once for all cells that share it, each cell measured once, rows written."""

import json
import multiprocessing
import shlex
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from dreamer4 import data
from dreamer4.config import Config, override
from dreamer4.dreamer import Dreamer
from dreamer4.files import write_atomically
from dreamer4.nn.flops import parameters
from dreamer4.run import pages, sizes
from dreamer4.run.facts import device, source_commit
from dreamer4.run.folder import RunFolder
from dreamer4.run.reporter import SILENT, Reporter
from dreamer4.run.stages import Collect, Train, execute, play_agent
from dreamer4.study.plan import STAGES, Cell, Study
from dreamer4.study.rows import Row, publish, row_file
from dreamer4.types import Action


SPEED_FRAMES = 64


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
        out: where its rows lie, below its name.
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
    wanted = [(cell, seed) for cell in cells for seed in range(study.seeds)]
    for cell in cells:
        sizes.check_paths(cell.config(0))
    for stage in STAGES[: STAGES.index(study.last) + 1]:
        first = {cell.fingerprint(stage, seed): (runs, stage, cell, seed) for cell, seed in reversed(wanted)}
        missing = [job for job in reversed(first.values()) if not _finished(*job)]
        report.say(f"{stage}: {len(first) - len(missing)} of {len(first)} done before")
        _each(_train, missing, workers, report)
    jobs = [(runs, study, cell, seed, commit) for cell, seed in wanted]
    _each(_measure, [job for job in jobs if not _measured(*job[:4]).exists()], workers, report)
    for cell in cells:
        told = [json.loads(_measured(runs, study, cell, seed).read_text()) for seed in range(study.seeds)]
        row = Row(
            study=study.study,
            cell=cell.name,
            preset=cell.preset,
            settings=cell.settings,
            seeds=tuple(range(study.seeds)),
            values={name: tuple(one["values"][name] for one in told) for name in told[0]["values"]},
            curves={name: tuple(tuple(one["curves"][name]) for one in told) for name in told[0]["curves"]},
            minutes=tuple(one["minutes"] for one in told),
            data=tuple(sorted({one["data"] for one in told})),
            device=", ".join(sorted({one["device"] for one in told})),
            commit=", ".join(sorted({one["commit"] for one in told})),
            command=command,
        )
        file = row_file(out, study, cell)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, row.model_dump_json(indent=1) + "\n")
    return publish(out, study)


def _each(work: Callable, jobs: Sequence[tuple], workers: int, report: Reporter) -> None:
    """Works through jobs, side by side if there may be several."""
    if workers == 1:
        for job in jobs:
            work(*job, report=report)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for future in [pool.submit(work, *job) for job in jobs]:
            future.result()


def _folder(runs: Path, stage: str, cell: Cell, seed: int) -> RunFolder:
    return RunFolder(runs / f"{stage}-{cell.fingerprint(stage, seed)}")


def _chain(runs: Path, stage: str, cell: Cell, seed: int) -> list[RunFolder]:
    """Returns the folders of a stage and of all before it."""
    return [_folder(runs, name, cell, seed) for name in STAGES[: STAGES.index(stage) + 1]]


def _finished(runs: Path, stage: str, cell: Cell, seed: int) -> bool:
    run = _folder(runs, stage, cell, seed)
    if stage == STAGES[0]:
        return _dataset(runs, cell).exists()
    newest = run.checkpoints(stage).latest_valid()
    return newest is not None and int(newest.name) == getattr(cell.config(seed).train, stage).steps


def _dataset(runs: Path, cell: Cell) -> Path:
    """Returns the data set of a cell: what it names, or what the first stage collects for all seeds."""
    named = cell.config(0).data.path
    return _folder(runs, STAGES[0], cell, 0).data if named is None else Path(named)


def _train(runs: Path, stage: str, cell: Cell, seed: int, *, report: Reporter = SILENT) -> None:
    """Works on a stage to its end, from the end of the one before it."""
    *before, run = _chain(runs, stage, cell, seed)
    report.say(f"{stage} of {cell.name}, seed {seed}: {run.path}")
    if not before:
        execute(_own(run, cell.config(0)), run.path, (Collect(),), report=report, resume=run.is_run)
        return
    config = _own(run, override(cell.config(seed), [f"data.path={json.dumps(str(_dataset(runs, cell)))}"]))
    origin = before[-1].path if len(before) > 1 else None
    execute(config, run.path, (Train(stage),), report=report, resume=run.is_run, origin=origin)


def _own(run: RunFolder, config: Config) -> Config:
    """Returns the settings that a stage was begun with: another cell's may differ in what comes later."""
    return run.read_config() if run.is_run else config


def _measured(runs: Path, study: Study, cell: Cell, seed: int) -> Path:
    of = cell.fingerprint(study.last, seed)
    return runs / "measured" / f"{'-'.join(sorted(study.measure))}-{of}-{cell.config(seed).evaluation.episodes}.json"


def _measure(runs: Path, study: Study, cell: Cell, seed: int, commit: str, *, report: Reporter = SILENT) -> None:
    """Measures one training seed of a cell, and writes what came out."""
    report.say(f"measuring {cell.name}, seed {seed}")
    chain, config = _chain(runs, study.last, cell, seed), cell.config(seed)
    dataset, agent = _dataset(runs, cell), Dreamer.load(chain[-1].path)
    info = data.read_info(dataset)
    values: dict[str, float] = {"parameters": parameters(agent.dynamics), "dreamt frames/s": _speed(agent)}
    curves: dict[str, Sequence[float]] = {}
    if "dreams" in study.measure:
        ((quality, _),) = pages.measure(config, [agent], dataset, seed=seed, heads=False)
        own = quality.passes[quality.num_steps]
        values |= {"exact": own.mean.exact, "PSNR": own.mean.psnr}
        values |= {"PSNR last frame": own.psnr[-1]}
        values |= {"PSNR over shuffled actions": quality.comparisons.psnr_over_shuffled_actions}
        if own.mean.ssim is not None:
            values["SSIM"] = own.mean.ssim
        values |= {f"PSNR, K={k}": curve.mean.psnr for k, curve in quality.passes.items() if len(quality.passes) > 1}
        curves["PSNR"] = own.psnr
    if "return" in study.measure:
        env, episodes = sizes.environment(config, info.spec), config.evaluation.episodes
        for name, mode in (("return", "sample"), ("return, greedy", "mode")):
            values[name] = float(play_agent(config, agent, env, episodes, "policy", mode, seed, report).mean())
    seconds = sum(float(run.seconds_file.read_text()) for run in chain if run.seconds_file.exists())
    told = {
        "values": values,
        "curves": curves,
        "minutes": round(seconds / 60, 2),
        "data": info.fingerprint,
        "device": device(),
        "commit": commit,
    }
    file = _measured(runs, study, cell, seed)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps(told, indent=1) + "\n")


def _speed(agent: Dreamer) -> float:
    """Returns how many frames a second one dream has, in one compiled loop, the fastest of five."""
    heads = agent.policy(agent.readout(agent.init()))
    action: Action = heads.mode()

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


def command_line(path: Path, *, quick: bool, only: Sequence[str]) -> str:
    """Returns what a person types for the rows of a study."""
    parts = ["dreamer4 study", shlex.quote(str(path)), *(["--quick"] if quick else [])]
    return " ".join([*parts, *(f"--only {shlex.quote(name)}" for name in only)])
