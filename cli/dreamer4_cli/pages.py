"""`dreamer4 report`, and the end of a demo: a run folder as a page, several of them as another."""

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
from rich.console import Console

import dreamer4
from dreamer4 import checkpoint, data
from dreamer4.config import Config, to_yaml
from dreamer4.data import DeviceSource
from dreamer4.dreamer import Dreamer, find_checkpoint
from dreamer4.errors import InputError
from dreamer4.evaluation.clips import first_frames
from dreamer4.evaluation.dreams import CEILING, LAST_REPEATED, SHUFFLED, DreamQuality, measure_dreams, tells_exactness
from dreamer4.evaluation.stills import reconstructions
from dreamer4.files import read_bytes
from dreamer4.reporting import Report, write_report
from dreamer4.reporting.comparison import ComparedRun, render_comparison
from dreamer4.reporting.report import write_page
from dreamer4.training import encode_source, stream
from dreamer4.training.flops import parameters
from dreamer4.training.folder import RunFolder
from dreamer4.training.metrics import read_metrics


console = Console()

CLIPS = 200
_MAX_RESULTS = 10**7  # bytes
_RETURNS_UNKNOWN = "Not measured here. dreamer4 evaluate RUN --world-model compares the two."


def report(paths: Sequence[Path], out: Path | None) -> None:
    """Writes the page of one run, or one page that compares several.

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
    if len(runs) == 1:
        write_report(place, _page_of(runs[0]))
    else:
        write_page(place, render_comparison([_compared(run) for run in runs]))
    console.print(f"report:  {place}", markup=False, highlight=False, soft_wrap=True)


def _page_of(run: RunFolder) -> Report:
    """Returns the page of a run, as far as it has come: dreams and frames are made again from its newest agent."""
    config, results = run.read_config(), read_results(run)
    try:
        step = find_checkpoint(run.path)
    except InputError:
        return run_page(run, results, None)
    phase = checkpoint.read_meta(step)["phase"]
    agent, path = Dreamer.load(step), Path(config.data.path or run.data)
    if not data.read_info(path).held_out:  # there is nothing to dream again; what else is known is told
        return run_page(run, results, None)
    if phase != "tokenizer":
        trained = phase in ("agent", "imagination")
        return run_page(run, results, measure(config, [agent], path, seed=config.seed, heads=trained)[0])
    held_out = DeviceSource.from_episodes(data.read_episodes(path, "held_out"))
    few = np.arange(min(6, held_out.num_episodes))
    pictures = reconstructions(agent, held_out, few, key=stream(config.seed, "evaluate"))
    return run_page(run, results, None, pictures)


def _compared(run: RunFolder) -> ComparedRun:
    config = run.read_config()
    metrics = read_metrics(run.metrics_file) if run.metrics_file.exists() else []
    settings = dict(_leaves(config.model_dump(mode="json")))
    return ComparedRun(str(run.path), settings, read_results(run), metrics)


def _leaves(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    found = []
    for name, value in tree.items():
        found += _leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, str(value))]
    return found


def read_results(run: RunFolder) -> dict[str, Any]:
    """Returns a run's `results.json`; nothing if it has none.

    Raises:
        InputError: if it is no JSON object.
    """
    if not run.results_file.exists():
        return {}
    try:
        results = json.loads(read_bytes(run.results_file, limit=_MAX_RESULTS))
    except (ValueError, RecursionError) as error:
        raise error if isinstance(error, InputError) else InputError(f"{run.results_file} is not JSON.") from None
    if not isinstance(results, dict):
        raise InputError(f"{run.results_file} holds no JSON object.")
    return results


def measure(
    config: Config, agents: Sequence[Dreamer], dataset: Path, *, seed: int, heads: bool = True
) -> list[DreamQuality]:
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
            first_frames(held_out, CLIPS),
            levels=levels,
            horizon=min(held_out.max_length, max(agent.dynamics.context_length, 2))
            - 1,  # a context of one frame dreams too
            heads=heads,
            key=stream(seed + i, "evaluate"),
        )
        for i, agent in enumerate(agents)
    ]


def summary(qualities: Sequence[DreamQuality]) -> dict[str, Any]:
    """Returns what `results.json` tells of the world models: means over training seeds.

    Shares of exact frames, of dreams and controls, are left out where they tell nothing. `mean_exact` is of all frames,
    `exact_frames` of each step.
    """

    def mean(values):
        return np.mean(values, axis=0).round(4).tolist()

    first, ceilings = qualities[0], [q.controls[CEILING] for q in qualities]
    exact = tells_exactness(first.record())
    controls = (SHUFFLED, LAST_REPEATED) if exact else ()
    return {
        "tokenizer_psnr": round(float(np.mean([c.mean_psnr for c in ceilings])), 2),
        "tokenizer_exact": round(float(np.mean([c.mean_exact for c in ceilings])), 5),
        "context_length": first.context_length,
        "episodes": first.frames[0],
        "psnr": {str(k): round(float(np.mean([q.passes[k].mean_psnr for q in qualities])), 2) for k in first.passes},
        "num_steps": first.num_steps,
        "mean_exact": {str(k): mean([q.passes[k].mean_exact for q in qualities]) for k in first.passes}
        if exact
        else {},
        "exact_frames": {str(k): mean([q.passes[k].exact for q in qualities]) for k in first.passes} if exact else {},
        "controls": {name: mean([q.controls[name].exact for q in qualities]) for name in controls},
    }


def run_page(
    run: RunFolder,
    results: dict[str, Any],
    quality: DreamQuality | None,
    pictures: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]] = (),
) -> Report:
    """Returns the page of a run.

    Args:
        run: the run.
        results: what `results.json` holds; empty if the run is not finished.
        quality: of its dreams; None if there are none yet.
        pictures: reconstructions, where `quality` has none.
    """
    config = run.read_config()
    facts = {"environment": config.env.id, "preset": config.preset, "seed": config.seed}
    facts |= {name: results[name] for name in ("minutes", "device", "commit") if results.get(name)}
    world = {} if quality is None else quality.record() | {"returns": _RETURNS_UNKNOWN}
    return Report(
        title=f"Dreamer 4 on {config.env.id}",
        run=facts,
        provenance=_provenance(run, config, results),
        packages={name: version for name, version in _packages().items()},
        returns=results.get("returns", {}),
        metrics=read_metrics(run.metrics_file) if run.metrics_file.exists() else (),
        reconstructions=pictures if quality is None else quality.reconstructions,
        dreams=() if quality is None else quality.shown,
        dream_grids=() if quality is None else quality.grids,
        dream_accuracy={} if quality is None else {k: curves.exact for k, curves in quality.passes.items()},
        dream_controls={}
        if quality is None
        else {name: quality.controls[name].exact for name in (SHUFFLED, LAST_REPEATED)},
        world_model=world,
        config=to_yaml(config),
    )


def _provenance(run: RunFolder, config: Config, results: dict[str, Any]) -> dict[str, Any]:
    told: dict[str, Any] = {"training seeds": config.seeds}
    try:
        step = find_checkpoint(run.path)
    except InputError:
        return told
    meta = checkpoint.read_meta(step)
    told["checkpoint"] = f"{meta['phase']}, step {step.name}"
    told["parameters"] = f"{parameters(checkpoint.read_leaves(step, at='ema')):,}"
    told["data"] = f"fingerprint {meta['data'][:16]}"
    if results.get("memory_gb"):
        told["memory"] = f"{results['memory_gb']} GB at most"
    overrides = f" --seeds {config.seeds}" if config.seeds > 1 else ""
    told["command"] = f"dreamer4 demo --config config.yaml{overrides}"
    return told


def _packages() -> dict[str, str]:
    return {
        "dreamer4": dreamer4.__version__,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "equinox": eqx.__version__,
    }


def device() -> str:
    """Returns what computes, as people call it."""
    device = jax.devices()[0]
    return device.device_kind if device.platform != "cpu" else f"{os.cpu_count()} CPU cores"


def source_commit(root: Path = Path(__file__).parents[2]) -> str | None:
    """Returns the commit of a source checkout, marked if its code has changes; None for an installed package."""
    if not (root / ".git").exists():
        return None
    try:
        git = ["git", "-C", str(root)]
        commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)  # noqa: S603
        # Results are what code made, not code: the first entry of a ledger must not mark the second.
        status = [*git, "status", "--porcelain", "--", ".", ":(exclude)benchmarks/results"]
        changes = subprocess.run(status, capture_output=True, text=True, check=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if changes.stdout.strip() else "")
