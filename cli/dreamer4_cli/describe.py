"""Telling what something is without training it: a configuration, a run, a checkpoint, a data set."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import numpy as np
from rich.console import Console
from rich.table import Table

from dreamer4 import checkpoint, data
from dreamer4.config import Config
from dreamer4.dreamer import PHASES, read_description, weights_of
from dreamer4.errors import InputError
from dreamer4.run import trackers
from dreamer4.run.folder import RunFolder
from dreamer4.run.sizes import check_sizes, data_spec, is_to_come
from dreamer4.run.stages import Evaluate
from dreamer4.training.encoding import FRAMES, side_by_side
from dreamer4.training.flops import parameters, step_flops


console = Console(markup=False)  # names may hold brackets
_READ = 256  # frames at a time

_MOST_READ = 4 * 1024**3  # bytes of a data set whose labels are looked at to describe it


def dry_run(config: Config, wanted: Sequence[str] = PHASES, *, judged: bool = False) -> None:
    """Checks a configuration whole and prints parameters, operations and memory; trains nothing, writes nothing.

    Only the devices are not looked at: a run may be planned on another machine. A data set of one's own is read whole.

    Args:
        config: the configuration.
        wanted: the phases that are to be trained on the data set.
        judged: whether the agent is to be played and measured at the end, as a demo does.
    """
    trackers.check(config.train.tracker)
    spec = data_spec(config)
    dreamer, phases = check_sizes(config, spec)
    pixels = ""
    if config.data.path is not None and not is_to_come(config):
        path = Path(config.data.path)
        if judged:
            Evaluate().check(config, spec)
        episodes = data.read_episodes(path, "train", frames=False)
        for phase in phases:
            if phase.name in wanted:
                phase.check(episodes)
        frames = sum(episode.length for episode in episodes)
        pixels = f" The {frames:,} training frames of {path} take {frames * math.prod(spec.frame_shape) / 1e6:,.1f} MB."
    parts = Table("part", "parameters", title=f"{config.preset}: {config.env.id}, frames {spec.frame_shape}")
    for name in ("tokenizer", "dynamics", "policy", "reward", "continuation", "value"):
        parts.add_row(name, f"{parameters(getattr(dreamer, name)):,}")
    parts.add_row("all", f"{parameters(dreamer):,}", style="bold")
    console.print(parts)

    total = parameters(dreamer)
    table = Table("phase", "steps", "trained", "GFLOP per step", "state, MB")
    for name, phase in zip(PHASES, phases, strict=True):
        settings = getattr(config.train, name)
        trained = parameters(eqx.filter(dreamer, phase.trainable(dreamer)))
        flops = step_flops(name, dreamer, config)
        # Weights and their average, two moments and the gradient of what is trained, in float32, per training seed.
        megabytes = 4 * config.seeds * (2 * total + 3 * trained) / 1e6
        table.add_row(
            name, str(settings.steps), f"{trained:,}", f"{config.seeds * flops / 1e9:,.2f}", f"{megabytes:,.1f}"
        )
    console.print(table)
    console.print("Operations count matrix products; memory is the training state without activations." + pixels)
    episodes, frames, size = side_by_side(dreamer.tokenizer, FRAMES)
    console.print(
        f"Encoding takes {frames} frames of {episodes} episodes at a time, about {size / 1e6:,.0f} MB without weights."
    )


def info(path: Path) -> None:
    """Prints what a run folder, a checkpoint or a data set is."""
    if (path / "dataset.json").is_file():
        _data_info(path)
    elif checkpoint.is_checkpoint(path):
        _checkpoint_info(path)
    elif RunFolder(path).is_run:
        _run_info(RunFolder(path))
    elif data.format_of(path) is not None:
        _reader_info(path, data.open_reader(path, "all"))
    else:
        raise InputError(
            f"{path} is no data set (dataset.json, or of a format that is read in place), no checkpoint "
            f"({checkpoint.MANIFEST}) and no run (config.yaml)."
        )


def _facts(title: str, rows: dict[str, object]) -> None:
    table = Table(title=title, show_header=False, title_justify="left")
    for name, value in rows.items():
        table.add_row(name, str(value))
    console.print(table)


def _data_info(path: Path) -> None:
    about = data.read_info(path)
    _facts(
        f"data set {path}",
        {
            "environment": about.environment.get("id", about.environment),
            "policy": about.policy,
            "episodes": f"{about.num_episodes} ({len(about.held_out)} held out)",
            "frames": f"{about.num_frames} of {about.frame_shape}",
            "actions": f"classes {about.num_classes}, {about.continuous_dim} continuous",
            "tasks": ", ".join(about.spec.names),
            "return": f"{about.return_mean:.3f} (from {about.return_min:.3f} to {about.return_max:.3f})",
            **label_facts(path, about),
            "fingerprint": about.fingerprint[:16],
        },
    )


def _reader_info(path: Path, reader: data.AbstractReader) -> None:
    action = reader.spec.action
    _facts(
        f"data {path}",
        {
            "recordings": len(set(reader.recordings)) or len(reader),
            "episodes": f"{len(reader)} ({int(reader.relevant.sum())} relevant)",
            "frames": f"{int(reader.lengths.sum())} of {reader.spec.frame_shape}",
            "actions": f"classes {action.num_classes}, {action.continuous_dim} continuous",
            "fingerprint": reader.fingerprint[:16],
        },
    )
    for line in reader.findings:
        console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)


def label_facts(path: Path, about: data.DatasetInfo) -> dict[str, str]:
    """Returns what the labels of a data set span, which it reads whole; nothing of one that is larger than memory."""
    if sum(shard.size for shard in about.shards) > _MOST_READ:
        return {}
    episodes = data.read_episodes(path, frames=False)
    mask = np.concatenate([e.action_mask for e in episodes])
    rewards = np.concatenate([e.reward[1:] for e in episodes])
    facts = {"known actions": f"{mask.sum():,} of {len(mask) - len(episodes):,}"}
    if rewards.any():
        facts["rewards"] = f"{rewards.min():g} to {rewards.max():g}, {(rewards != 0).mean():.1%} of them not 0"
    if about.continuous_dim and mask.any():
        values = np.concatenate([e.continuous for e in episodes])[mask]
        spans = np.stack([values.min(axis=0), values.max(axis=0)])
        kwargs = about.environment.get("kwargs")
        bounds = kwargs.get("bounds") if isinstance(kwargs, dict) else None
        if bounds is not None:
            low, high = np.asarray(bounds).T
            spans = low + (spans + 1) / 2 * (high - low)
        facts["continuous"] = ", ".join(f"{low:.4g} to {high:.4g}" for low, high in spans.T)
    return facts


def _checkpoint_info(path: Path) -> None:
    meta = checkpoint.read_meta(path)
    config, spec = read_description(path)
    problems = checkpoint.verify(path)
    _facts(
        f"checkpoint {path}",
        {
            "phase": meta.get("phase", "?"),
            "step": path.name if path.name.isdigit() else "exported",
            "preset": config.preset,
            "environment": config.env.id,
            "training seeds": config.seeds,
            "frames": spec.frame_shape,
            "tasks": ", ".join(spec.names),
            "parameters": f"{parameters(checkpoint.read_leaves(path, at=weights_of(path))):,}",
            "state": "; ".join(problems) if problems else "whole",
        },
    )


def _run_info(run: RunFolder) -> None:
    config = run.read_config()
    rows: dict[str, object] = {"preset": config.preset, "environment": config.env.id, "seed": config.seed}
    for phase in PHASES:
        steps = run.checkpoints(phase).steps()
        wanted = getattr(config.train, phase).steps
        rows[phase] = f"step {steps[-1]} of {wanted}" if steps else "not begun"
    rows["results"] = run.results_file if run.results_file.exists() else "none yet"
    _facts(f"run {run.path}", rows)


def print_labels(path: Path, about: data.DatasetInfo) -> None:
    """Prints `label_facts`, a line each."""
    for name, fact in label_facts(path, about).items():
        console.print(f"{name}: {fact}", markup=False, highlight=False, soft_wrap=True)


def check_data(path: Path, options: dict[str, Any]) -> None:
    """Reads a whole data set; raises with the list of problems if there are any.

    Of data of another format it is told what was repaired or left out.

    Args:
        path: of the data.
        options: of the format's reader.
    """
    if not data.is_dataset(path) and data.format_of(path) is not None:
        reader = data.open_reader(path, "all", **options)
        for episode, length in enumerate(reader.lengths):
            for start in range(0, int(length), _READ):
                reader.window(episode, start, min(_READ, int(length) - start))
        _reader_info(path, reader)
        return
    problems = data.check(path)
    if problems:
        raise InputError(f"{path} has {len(problems)} problems:\n" + "\n".join(f"  {p}" for p in problems))
    about = data.read_info(path)
    console.print(f"{path}: {about.num_episodes} episodes, {about.num_frames} frames, no problems.", soft_wrap=True)
    print_labels(path, about)
