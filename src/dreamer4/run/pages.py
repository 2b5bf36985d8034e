"""A run folder as a page, and several of them as another."""

import os
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TypedDict

import equinox as eqx
import jax
import numpy as np

from dreamer4 import checkpoint, data
from dreamer4.config import Config, to_yaml
from dreamer4.data import DeviceSource
from dreamer4.dreamer import Dreamer, find_checkpoint
from dreamer4.errors import InputError
from dreamer4.evaluation.clips import first_frames
from dreamer4.evaluation.dreams import NO_FRAMES, DreamFrames, DreamQuality, measure_dreams
from dreamer4.evaluation.fvd import VideoFeatures
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
from dreamer4.tokenizer import Perceptual
from dreamer4.training import encode_source, stream
from dreamer4.training.flops import parameters


REAL_EPISODES = 50


def report(paths: Sequence[Path], out: Path | None) -> Path:
    """Writes the page of one run, or one page that compares several, and returns its file.

    Args:
        paths: run folders.
        out: the file; by default `report.html` in the run, which is made again, or a new `comparison.html` here.

    Raises:
        InputError: if a folder is no run, or `out` is another file that exists.
    """
    runs = [RunFolder(path) for path in paths]
    for run in runs:
        run.read_config()
    place = out or (runs[0].report_file if len(runs) == 1 else Path("comparison.html"))
    if os.path.lexists(place) and not (len(runs) == 1 and place.resolve() == runs[0].report_file.resolve()):
        raise InputError(f"report: {place} exists, and only a run's own report is made again. Choose another --out.")
    check_place(place)
    if len(runs) == 1:
        write_report(place, _page_of(runs[0]))
    else:
        write_page(place, comparison_page([_compared(run) for run in runs]))
    return place


def _page_of(run: RunFolder) -> Report:
    """Returns the page of a run, as far as it has come: dreams and frames are made again from its newest agent."""
    config, results = run.read_config(), run_results(run)
    try:
        step = find_checkpoint(run.path)
    except InputError:
        return run_page(run, results)
    phase = checkpoint.read_meta(step)["phase"]
    agent, path = Dreamer.load(step), Path(config.data.path or run.data)
    if not data.read_info(path).held_out:  # there is nothing to dream again; what else is known is told
        return run_page(run, results)
    held_out = DeviceSource.from_episodes(data.read_episodes(path, "held_out"))
    known = bool(held_out.action_mask.any())
    if phase != "tokenizer" and known:
        trained = phase in ("agent", "imagination")
        return run_page(run, results, *measure(config, [agent], path, seed=config.seed, heads=trained)[0])
    few = np.arange(min(6, held_out.num_episodes))
    pictures = reconstructions(agent, held_out, few, key=stream(config.seed, "evaluate"))
    notes = [] if known else ["No action is known in the held-out episodes, so no dream can be held against the truth."]
    return run_page(run, results, frames=DreamFrames(reconstructions=pictures), notes=notes)


def _compared(run: RunFolder) -> ComparedRun:
    config = run.read_config()
    metrics = read_metrics(run.metrics_file) if run.metrics_file.exists() else []
    settings = dict(_leaves(config.model_dump(mode="json")))
    return ComparedRun(str(run.path), settings, run_results(run), metrics)


def _leaves(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    found = []
    for name, value in tree.items():
        found += _leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, str(value))]
    return found


class Judges(TypedDict):
    """What dreams are judged by beside their pixels."""

    lpips: Perceptual | None
    video_features: VideoFeatures | None


def judges(config: Config, frame_shape: tuple[int, int, int]) -> Judges:
    """Returns what a configuration asks dreams to be judged by.

    Raises:
        InputError: if its weights are not installed, or it has none for such frames.
    """
    asked = config.evaluation
    return Judges(
        lpips=eqx.filter_jit(LPIPS.load(frame_shape)) if asked.lpips else None,
        video_features=eqx.filter_jit(I3D.load()) if asked.fvd else None,
    )


def measure(
    config: Config, agents: Sequence[Dreamer], dataset: Path, *, seed: int, heads: bool = True
) -> list[tuple[DreamQuality, DreamFrames]]:
    """Dreams a run's held-out episodes from their first frame, with each of its training seeds.

    Args:
        config: of the run.
        agents: one for each training seed.
        dataset: its data set.
        seed: of the first agent's noise.
        heads: whether reward and continuation heads are trained.
    """
    info = data.read_info(dataset)
    held_out = DeviceSource.from_episodes(data.read_episodes(dataset, "held_out"))
    levels = [level / 255 for level in (info.frame_levels or range(256))]
    return [
        measure_dreams(
            agent,
            held_out,
            encode_source(agent, held_out),
            first_frames(held_out, config.evaluation.clips),
            levels=levels,
            **reading(config, info.spec),
            num_steps=config.evaluation.passes,
            **judges(config, info.spec.frame_shape),
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
