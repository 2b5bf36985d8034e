"""The commands that show what is there: their options; the work is in `pages`, `dreaming` and `listing`."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from dreamer4.errors import InputError
from dreamer4_cli import options


def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders; several are compared.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="HTML file. Default: report.html in the run, or comparison.html."),
    ] = None,
) -> None:
    """Write a run's report again, as far as the run has come, or one page that compares runs."""
    for run in runs:
        existing(run)
    from dreamer4.run import pages

    typer.echo(f"report:  {pages.report(runs, out)}")


def dream(
    path: Annotated[Path, typer.Argument(help="Run folder or checkpoint.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="A new .gif or .mp4.", show_default=False)],
    actions: Annotated[
        str,
        typer.Option(
            "--actions",
            metavar="WHAT",
            help="policy, random, none, data (those of the episode, beside the truth), or a list such as 0,2x5,1: one "
            "entry a frame, xN repeats, and a colon separates components, 1:0:-0.5.",
        ),
    ] = "policy",
    episode: Annotated[int, typer.Option("--episode", min=0, help="Which held-out episode it starts from.")] = 0,
    context: Annotated[int, typer.Option("--context", min=1, help="Real frames before the dream.")] = 1,
    length: Annotated[
        int | None,
        typer.Option("--length", min=1, help="Frames to dream. Default: the list, or the longest episode."),
    ] = None,
    num_steps: Annotated[
        int | None, typer.Option("--num-steps", min=1, help="K, denoise passes of a frame. Default: the agent's.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**31 - 1, help="Draws the dream.")] = 0,
    fps: Annotated[float, typer.Option("--fps", min=0.1, max=50.0, help="Frames per second.")] = 6.0,
    dataset: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="Data set of the episode. Default: the agent's own."),
    ] = None,
    task: options.Task = None,
) -> None:
    """Dream on from a real episode under actions of your choice, into a film; it stops where the model sees the end."""
    existing(path)
    if out.suffix not in (".gif", ".mp4"):
        raise InputError(f"--out: got {out}, expected a name that ends in .gif or .mp4.")
    if os.path.lexists(out):
        raise InputError(f"--out: {out} exists. Choose another name.")
    if dataset is not None:
        existing(dataset)
    from dreamer4_cli import dreaming

    dreaming.dream(
        path,
        out,
        actions=actions,
        episode=episode,
        context=context,
        length=length,
        num_steps=num_steps,
        seed=seed,
        fps=fps,
        dataset=dataset,
        task=task,
    )


def runs(
    folder: Annotated[Path, typer.Argument(help="Where to look.")] = Path("runs"),
) -> None:
    """List the runs below a folder: how far each has come, and what came out."""
    existing(folder)
    from dreamer4_cli import listing

    listing.runs(folder)


def check(
    path: Annotated[Path, typer.Argument(help="A data set, or data that is read in place.", show_default=False)],
    option: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="NAME=VALUE", help="What the reader of the format takes; repeat for more."),
    ] = None,
) -> None:
    """Read a whole data set and name every broken file, or tell what was repaired in data of another format."""
    existing(path)
    from dreamer4_cli import run as work

    work.check_data(path, dict(map(_option, option or ())))


def _option(text: str) -> tuple[str, object]:
    """Returns name and value of an option; a value that is no JSON is text."""
    name, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"--option: got {text!r}, expected NAME=VALUE.")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def plan(
    sample: Annotated[
        Path, typer.Argument(help="Data to measure, or a part of it, read in place.", show_default=False)
    ],
    preset: options.Preset = "paper",
    config: options.File = None,
    overrides: options.Overrides = None,
    hours: Annotated[
        float | None, typer.Option("--hours", min=0, help="Of all of the data. Default: the sample's.")
    ] = None,
    rate: Annotated[float, typer.Option("--rate", min=0.1, help="Frames per second of the data.")] = 20.0,
    tflops: Annotated[
        float,
        typer.Option(
            "--tflops", min=0.001, help="What a device does in fact, as `python -m benchmarks speed` measures it."
        ),
    ] = 300.0,
    cores: Annotated[int, typer.Option("--cores", min=1, help="Cores that read and decode.")] = 16,
    devices: Annotated[int, typer.Option("--devices", min=1, help="Devices that encode and train.")] = 8,
    shard: Annotated[float, typer.Option("--shard", min=1, help="Megabytes of a shard of latents.")] = 1024.0,
) -> None:
    """Tell what much data takes: bytes, hours of each stage, shards; by the rates of a sample on this machine."""
    existing(sample)
    resolved, _ = options.resolve(preset if config is None else None, config, overrides)
    from dreamer4_cli import data_plan

    sizes = {"cores": cores, "devices": devices, "shard": shard * 1e6}
    data_plan.plan(sample, resolved, hours=hours, rate=rate, tflops=tflops, **sizes)


def existing(path: Path | None) -> Path:
    """Returns the path.

    Raises:
        InputError: if nothing is there.
    """
    # Not Path.exists, which raises where a name is too long or a folder is closed to us.
    if path is None or not os.path.exists(path):
        raise InputError(f"{path}: no such file or folder.")
    return path
