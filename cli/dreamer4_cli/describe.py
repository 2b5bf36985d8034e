"""Telling what something is without training it: a configuration, a run, a checkpoint, a data set."""

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax

from dreamer4 import checkpoint, data
from dreamer4.config import Config
from dreamer4.dreamer import PHASES, read_description, weights_of
from dreamer4.errors import InputError
from dreamer4.run import memory, trackers
from dreamer4.run.folder import RunFolder
from dreamer4.run.sizes import check_sizes, data_spec, is_to_come
from dreamer4.run.stages import Evaluate
from dreamer4.training.encoding import FRAMES, side_by_side
from dreamer4.training.flops import parameters, step_flops
from dreamer4_cli.console import facts, say, show


def dry_run(config: Config, wanted: Sequence[str] = PHASES, *, judged: bool = False) -> None:
    """Checks a configuration whole and prints parameters, operations and memory; trains nothing, writes nothing.

    A data set of one's own is read whole. What does not fit into this machine's memory is refused, when all is told:
    but where the data or the devices are still to come, for then the run is planned for another machine.

    Args:
        config: the configuration.
        wanted: the phases that are to be trained on the data set.
        judged: whether the agent is to be played and measured at the end, as a demo does.
    """
    trackers.check(config.train.tracker)
    spec = data_spec(config)
    dreamer, phases = check_sizes(config, spec)
    pixels, about = "", None
    if config.data.path is not None and not is_to_come(config):
        path = Path(config.data.path)
        about = data.read_info(path)
        if judged:
            Evaluate().check(config, spec)
        episodes = data.read_episodes(path, "train", frames=False)
        for phase in phases:
            if phase.name in wanted:
                phase.check(episodes)
        frames = sum(episode.length for episode in episodes)
        pixels = f" The {frames:,} training frames of {path} take {frames * math.prod(spec.frame_shape) / 1e6:,.1f} MB."
    names = ("tokenizer", "dynamics", "policy", "reward", "continuation", "value")
    parts = [(name, f"{parameters(getattr(dreamer, name)):,}") for name in names]
    title = f"{config.preset}: {config.env.id}, frames {spec.frame_shape}"
    show(("part", "parameters"), [*parts, ("all", f"{parameters(dreamer):,}")], title=title, strong="all")
    rows = []
    for name, phase in zip(PHASES, phases, strict=True):
        trained = parameters(eqx.filter(dreamer, phase.trainable(dreamer)))
        flops = config.seeds * step_flops(name, dreamer, config) / 1e9
        state = memory.state_bytes(config, dreamer, phase) / 1e6
        steps = str(getattr(config.train, name).steps)
        rows.append((name, steps, f"{trained:,}", f"{flops:,.2f}", f"{state:,.1f}"))
    show(("phase", "steps", "trained", "GFLOP per step", "state, MB"), rows)
    say("Operations count matrix products; memory is the training state without activations." + pixels)
    episodes, frames, size = side_by_side(dreamer.tokenizer, FRAMES)
    say(f"Encoding takes {frames} frames of {episodes} episodes at a time, about {size / 1e6:,.0f} MB without weights.")
    with contextlib.suppress(RuntimeError):  # no such device: that of another machine
        if not is_to_come(config) and config.train.mesh.size <= jax.device_count():
            memory.check(config, spec, dreamer, [phase for phase in phases if phase.name in wanted], about)


def info(path: Path) -> None:
    """Prints what a run folder, a checkpoint or a data set is."""
    if data.is_dataset(path):
        facts(f"data set {path}", _of_data(path))
    elif checkpoint.is_checkpoint(path):
        facts(f"checkpoint {path}", _of_checkpoint(path))
    elif RunFolder(path).is_run:
        facts(f"run {path}", _of_run(RunFolder(path)))
    elif data.format_of(path) is not None:
        _print_reader(path, data.open_reader(path, "all"))
    else:
        raise InputError(
            f"{path} is no data set (dataset.json, or of a format that is read in place), no checkpoint "
            f"({checkpoint.MANIFEST}) and no run (config.yaml)."
        )


def _of_data(path: Path) -> dict[str, object]:
    about = data.read_info(path)
    return {
        "environment": about.environment.get("id", about.environment),
        "policy": about.policy,
        "episodes": f"{about.num_episodes} ({len(about.held_out)} held out)",
        "frames": f"{about.num_frames} of {about.frame_shape}",
        "actions": f"classes {about.num_classes}, {about.continuous_dim} continuous",
        "tasks": ", ".join(about.spec.names),
        "return": f"{about.return_mean:.3f} (from {about.return_min:.3f} to {about.return_max:.3f})",
        **data.label_facts(path, about),
        "fingerprint": about.fingerprint[:16],
    }


def _of_checkpoint(path: Path) -> dict[str, object]:
    config, spec = read_description(path)
    return {
        "phase": checkpoint.read_meta(path).get("phase", "?"),
        "step": path.name if path.name.isdigit() else "exported",
        "preset": config.preset,
        "environment": config.env.id,
        "training seeds": config.seeds,
        "frames": spec.frame_shape,
        "tasks": ", ".join(spec.names),
        "parameters": f"{parameters(checkpoint.read_leaves(path, at=weights_of(path))):,}",
        "state": "; ".join(checkpoint.verify(path)) or "whole",
    }


def _of_run(run: RunFolder) -> dict[str, object]:
    config = run.read_config()
    rows: dict[str, object] = {"preset": config.preset, "environment": config.env.id, "seed": config.seed}
    for phase in PHASES:
        steps = run.checkpoints(phase).steps()
        rows[phase] = f"step {steps[-1]} of {getattr(config.train, phase).steps}" if steps else "not begun"
    return rows | {"results": run.results_file if run.results_file.exists() else "none yet"}


def _print_reader(path: Path, reader: data.AbstractReader) -> None:
    action = reader.spec.action
    rows = {
        "recordings": len(set(reader.recordings)) or len(reader),
        "episodes": f"{len(reader)} ({int(reader.relevant.sum())} relevant)",
        "frames": f"{int(reader.lengths.sum())} of {reader.spec.frame_shape}",
        "actions": f"classes {action.num_classes}, {action.continuous_dim} continuous",
        "fingerprint": reader.fingerprint[:16],
    }
    facts(f"data {path}", rows)
    for line in reader.findings:
        say(f"  {line}")


def check_data(path: Path, options: dict[str, Any]) -> None:
    """Reads a whole data set; raises with the list of problems if there are any.

    Of data of another format it is told what was repaired or left out.

    Args:
        path: of the data.
        options: of the format's reader.
    """
    if not data.is_dataset(path) and data.format_of(path) is not None:
        reader = data.open_reader(path, "all", **options)
        data.read_through(reader)
        _print_reader(path, reader)
        return
    problems = data.check(path)
    if problems:
        raise InputError(f"{path} has {len(problems)} problems:\n" + "\n".join(f"  {p}" for p in problems))
    about = data.read_info(path)
    say(f"{path}: {about.num_episodes} episodes, {about.num_frames} frames, no problems.")
    for name, told in data.label_facts(path, about).items():
        say(f"{name}: {told}")
