"""A run folder as a page, and several of them as another."""

import os
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float

from dreamer4 import checkpoint, data
from dreamer4.config import Config, to_yaml
from dreamer4.data import DatasetInfo, DeviceSource, Episode
from dreamer4.dreamer import Dreamer, find_checkpoint, read_description
from dreamer4.errors import InputError
from dreamer4.evaluation.clips import Starts, first_frames
from dreamer4.evaluation.dreams import NO_FRAMES, DreamFrames, DreamQuality, measure_dreams
from dreamer4.evaluation.results import Results
from dreamer4.evaluation.stills import reconstructions
from dreamer4.files import check_place
from dreamer4.pretrained import I3D, LPIPS
from dreamer4.reporting import Report, write_report
from dreamer4.reporting.comparison import ComparedRun, comparison_page
from dreamer4.reporting.page import write_page
from dreamer4.run.facts import run_results
from dreamer4.run.folder import RunFolder
from dreamer4.run.metrics import read_metrics
from dreamer4.run.sizes import reading
from dreamer4.training import encode_source, stream
from dreamer4.training.flops import parameters


REAL_EPISODES = 50


def report(paths: Sequence[Path], out: Path | None, *, task: str | int | None = None) -> Path:
    """Writes the page of one run, or one page that compares several, and returns its file.

    Args:
        paths: run folders.
        out: the file; by default `report.html` in the run, which is made again, or a new `comparison.html` here.
        task: name or number of the task to tell of; None: all. The file of a run is then `report-task<number>.html`.

    Raises:
        InputError: if a folder is no run or never learned the task, or `out` is another file that exists.
    """
    runs = [RunFolder(path) for path in paths]
    for run in runs:
        run.read_config()
    tasks = [_find_task(run, task) for run in runs]
    own = runs[0].report_file
    own = own if tasks[0] is None else own.with_stem(f"{own.stem}-task{tasks[0]}")
    place = out or (own if len(runs) == 1 else Path("comparison.html"))
    if os.path.lexists(place) and not (len(runs) == 1 and place.resolve() == own.resolve()):
        raise InputError(f"report: {place} exists, and only a run's own report is made again. Choose another --out.")
    check_place(place)
    if len(runs) == 1:
        write_report(place, _page_of(runs[0], tasks[0]))
    else:
        write_page(place, comparison_page([_compared(run, task) for run, task in zip(runs, tasks, strict=True)]))
    return place


def _find_task(run: RunFolder, task: str | int | None) -> int | None:
    return None if task is None else read_description(find_checkpoint(run.path))[1].find_task(task)


def _results(run: RunFolder, task: int | None) -> Results | None:
    """Returns what came out of a run, in one of its tasks if that is asked for."""
    results = run_results(run)
    if results is None or task is None or not results.by_task:
        return results
    name = read_description(find_checkpoint(run.path))[1].names[task]
    return results.model_copy(update={"returns": results.by_task.get(name, {}), "by_task": {}})


def _page_of(run: RunFolder, task: int | None) -> Report:
    """Returns the page of a run, as far as it has come: dreams and frames are made again from its newest agent."""
    config, results = run.read_config(), _results(run, task)
    try:
        step = find_checkpoint(run.path)
    except InputError:
        return run_page(run, results)
    phase = checkpoint.read_meta(step)["phase"]
    agent, path = Dreamer.load(step), Path(config.data.path or run.data)
    info = data.read_info(path)
    told = [] if task is None else [f"Of the task {info.spec.names[task]} alone."]
    if not info.held_out:  # there is nothing to dream again; what else is known is told
        return run_page(run, results, notes=told)
    held_out = DeviceSource.from_episodes(read_held_out(path, task))
    known = bool(held_out.action_mask.any())
    if phase != "tokenizer" and known:
        trained = phase in ("agent", "imagination")
        measured = measure(config, [agent], path, seed=config.seed, heads=trained, task=task)[0]
        return run_page(run, results, *measured, notes=told)
    few = np.arange(min(6, held_out.num_episodes))
    pictures = reconstructions(agent, held_out, few, key=stream(config.seed, "evaluate"))
    if not known:
        told.append("No action is known in the held-out episodes, so no dream can be held against the truth.")
    return run_page(run, results, frames=DreamFrames(reconstructions=pictures), notes=told)


def read_held_out(dataset: Path, task: int | None) -> list[Episode]:
    """Returns the held-out episodes of a data set, or those of one task.

    Raises:
        InputError: if there are none of the task.
    """
    episodes = data.read_episodes(dataset, "held_out")
    found = [e for e in episodes if task is None or e.task == task]
    if episodes and not found:
        raise InputError(f"--task {task}: {dataset} holds out no episode of it, so none can be dreamt. Name another.")
    return found


def _compared(run: RunFolder, task: int | None) -> ComparedRun:
    config = run.read_config()
    metrics = read_metrics(run.metrics_file) if run.metrics_file.exists() else []
    settings = dict(_leaves(config.model_dump(mode="json")))
    return ComparedRun(str(run.path), settings, _results(run, task), metrics)


def _leaves(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    found = []
    for name, value in tree.items():
        found += _leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, str(value))]
    return found


def measure_agent(
    config: Config,
    agent: Dreamer,
    info: DatasetInfo,
    source: DeviceSource,
    latents: Float[Array, "N Nz Dz"],
    starts: Starts,
    **how: Any,
) -> tuple[DreamQuality, DreamFrames]:
    """Returns what `measure_dreams` does of held-out episodes, judged by what a configuration asks for.

    Args:
        config: of the run.
        agent: of one training seed.
        info: of the data set.
        source: its held-out episodes.
        latents: their latents.
        starts: where the dreams begin.
        how: the other arguments of `measure_dreams`.

    Raises:
        InputError: if the weights of a judge are not installed, or it has none for such frames.
    """
    return measure_dreams(
        agent,
        source,
        latents,
        starts,
        levels=[level / 255 for level in (info.frame_levels or range(256))],
        **reading(config, info.spec),
        lpips=eqx.filter_jit(LPIPS.load(info.spec.frame_shape)) if config.evaluation.lpips else None,
        video_features=eqx.filter_jit(I3D.load()) if config.evaluation.fvd else None,
        **how,
    )


def measure(
    config: Config, agents: Sequence[Dreamer], dataset: Path, *, seed: int, heads: bool = True, task: int | None = None
) -> list[tuple[DreamQuality, DreamFrames]]:
    """Dreams a run's held-out episodes from their first frame, with each of its training seeds.

    Args:
        config: of the run.
        agents: one for each training seed.
        dataset: its data set.
        seed: of the first agent's noise.
        heads: whether reward and continuation heads are trained.
        task: whose episodes are dreamt; None: of all.
    """
    info = data.read_info(dataset)
    held_out = DeviceSource.from_episodes(read_held_out(dataset, task))
    return [
        measure_agent(
            config,
            agent,
            info,
            held_out,
            encode_source(agent, held_out),
            first_frames(held_out, config.evaluation.clips),
            num_steps=config.evaluation.passes,
            horizon=min(held_out.max_length, max(agent.dynamics.context_length or held_out.max_length, 2))
            - 1,  # a context of one frame dreams too
            heads=heads,
            key=stream(seed + i, "evaluate"),
        )
        for i, agent in enumerate(agents)
    ]


def run_page(
    run: RunFolder,
    results: Results | None,
    quality: DreamQuality | None = None,
    frames: DreamFrames = NO_FRAMES,
    notes: Sequence[str] = (),
) -> Report:
    """Returns the page of a run.

    Args:
        run: the run.
        results: what came out; None if the run is not finished.
        quality: of its dreams; None if there are none yet.
        frames: to be looked at.
        notes: what else is to be said.
    """
    config = run.read_config()
    facts = {"environment": config.env.id, "preset": config.preset, "seed": config.seed}
    if results is not None:
        told = {"minutes": results.minutes, "device": results.device, "commit": results.commit}
        facts |= {name: value for name, value in told.items() if value}
        if quality is not None and results.world_model.returns is not None and isinstance(quality.returns, str):
            quality = quality.model_copy(update={"returns": results.world_model.returns})
    return Report(
        title=f"Dreamer 4 on {config.env.id}",
        run=facts,
        provenance=_provenance(run, config, results),
        packages=_packages(),
        returns={} if results is None else results.returns,
        by_task={} if results is None else results.by_task,
        metrics=read_metrics(run.metrics_file) if run.metrics_file.exists() else (),
        world=quality,
        frames=frames,
        notes=notes,
        config=to_yaml(config),
    )


def _provenance(run: RunFolder, config: Config, results: Results | None) -> dict[str, Any]:
    told: dict[str, Any] = {"training seeds": config.seeds}
    try:
        step = find_checkpoint(run.path)
    except InputError:
        return told
    meta = checkpoint.read_meta(step)
    told["checkpoint"] = f"{meta['phase']}, step {step.name}"
    told["parameters"] = f"{parameters(checkpoint.read_leaves(step, at='ema')):,}"
    told["data"] = f"fingerprint {meta['data'][:16]}"
    if results is not None and results.memory_gb:
        told["memory"] = f"{results.memory_gb} GB at most"
    overrides = f" --seeds {config.seeds}" if config.seeds > 1 else ""
    told["command"] = f"dreamer4 demo --config config.yaml{overrides}"
    return told


def _packages() -> dict[str, str]:
    return {
        "dreamer4": metadata.version("dreamer4-eqx"),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "equinox": eqx.__version__,
    }
