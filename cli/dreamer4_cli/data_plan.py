"""`dreamer4 data plan`: what it takes to train on a lot of data, as a table."""

from pathlib import Path

from dreamer4.config import Config
from dreamer4.run.cost import measure, stages
from dreamer4.types import ActionSpec, DataSpec
from dreamer4_cli.console import say, show


def plan(
    path: Path,
    config: Config,
    *,
    hours: float | None,
    rate: float,
    tflops: float,
    cores: int,
    devices: int,
    shard: float,
) -> None:
    """Measures a sample and prints what all of the data takes; the arguments are the options of the command."""
    reader, rates = measure(path)
    declared = config.data.spec
    spec = reader.spec
    if declared is not None:
        spec = DataSpec(
            declared.frame_shape, ActionSpec(declared.num_classes, declared.continuous_dim), declared.num_tasks
        )
    here = float(reader.lengths.sum())
    frames = here if hours is None else hours * 3600 * rate
    rows = []
    for stage in stages(config, spec, rates, frames, tflops):
        workers = cores if stage.device == "core" else devices
        shards = -(-stage.size // shard) if stage.name == "encode" else 0
        taken = (f"{stage.hours:,.3g} {stage.device}", f"{stage.hours / workers:,.3g}") if stage.hours else ("", "")
        scale, unit = (1e12, "TB") if stage.size >= 1e12 else (1e9, "GB")
        size = f"{stage.size / scale:,.3g} {unit}" if stage.size else ""
        rows.append((stage.name, stage.rate, *taken, size, f"{shards:,.0f}" if shards else ""))
    title = (
        f"{frames / 3600 / rate:,.4g} h, {frames:,.0f} frames, from a sample of {here:,.0f}; {config.preset}, "
        f"{tflops:g} TFLOP/s a device"
    )
    split = f"on {cores} cores, {devices} devices"
    show(("stage", "rate of one", "hours on one", split, "bytes", "shards"), rows, title=title)
    say("Rates of cores are of this machine, measured just now; operations count matrix products. Latents are float16.")
