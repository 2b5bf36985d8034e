"""`dreamer4 data`: the commands about data sets; the work is in the modules that they name."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from dreamer4.errors import InputError
from dreamer4_cli import options
from dreamer4_cli.options import calls, opt, there


app = typer.Typer(no_args_is_help=True, help="Data sets.")

NewData = Annotated[Path, opt("The data set, a new folder.", "--out", metavar="DIR")]


@app.command()
def check(
    path: Annotated[Path, there("A data set, or data that is read in place.")],
    option: Annotated[
        list[str] | None, opt("What the reader of the format takes; repeat for more.", metavar="NAME=VALUE")
    ] = None,
) -> None:
    """Read a whole data set and name every broken file, or tell what was repaired in data of another format."""
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


@app.command()
def plan(
    sample: Annotated[Path, there("Data to measure, or a part of it, read in place.")],
    preset: options.Preset = "paper",
    config: options.File = None,
    overrides: options.Overrides = None,
    hours: Annotated[float | None, opt("Of all of the data. Default: the sample's.", min=0)] = None,
    rate: Annotated[float, opt("Frames per second of the data.", min=0.1)] = 20.0,
    tflops: Annotated[
        float, opt("What a device does in fact, as `python -m benchmarks speed` measures it.", min=0.001)
    ] = 300.0,
    cores: Annotated[int, opt("Cores that read and decode.", min=1)] = 16,
    devices: Annotated[int, opt("Devices that encode and train.", min=1)] = 8,
    shard: Annotated[float, opt("Megabytes of a shard of latents.", min=1)] = 1024.0,
) -> None:
    """Tell what much data takes: bytes, hours of each stage, shards; by the rates of a sample on this machine."""
    resolved, _ = options.resolve(preset if config is None else None, config, overrides)
    from dreamer4_cli import data_plan

    sizes = {"cores": cores, "devices": devices, "shard": shard * 1e6}
    data_plan.plan(sample, resolved, hours=hours, rate=rate, tflops=tflops, **sizes)


@app.command("import")
@calls("imports")
def import_data(
    source: Annotated[Path, there("Folder with one file or sub-folder per episode.")],
    out: NewData,
    timing: Annotated[
        Literal["led-to", "taken-at"],
        opt(
            "What row t of actions and rewards belongs to: what led to frame t, or what was done at frame t. "
            "Matters where there are as many rows as frames.",
            "--action-timing",
        ),
    ] = "led-to",
    actions: Annotated[
        str | None,
        opt(
            "Classes by component and continuous dimensions: 3 or 2,5,continuous:2. Default: what the data needs.",
            metavar="SPEC",
        ),
    ] = None,
    bounds: Annotated[
        str | None,
        opt(
            "Range of continuous actions, one or one each: -2:2 or -1:1,0:5; data: the range that occurs.",
            metavar="LOW:HIGH",
        ),
    ] = None,
    size: Annotated[str | None, opt("Resize frames, by area; the height comes first.", metavar="HEIGHTxWIDTH")] = None,
    fps: Annotated[
        float | None, opt("Frames a second of videos, each held until the next. Default: every stored frame.")
    ] = None,
    cut: Annotated[
        int | None, opt("Most frames of an episode; longer ones are cut into several.", metavar="FRAMES", min=2)
    ] = None,
    ignore: Annotated[str | None, opt("Labels and columns to pass over: timestamp,index.", metavar="A,B")] = None,
    held_out: Annotated[float, opt("Share of the episodes kept for evaluation.")] = 0.1,
    seed: options.DrawnFrom = 0,
) -> None:
    """Make a data set of your own episodes: .npz files, videos or folders of images.

    An .npz file has `frame` [T H W] or [T H W C] as uint8, and any of `action` [T] or [T components], `continuous`
    [T dims], `reward` [T], `is_terminal`, `action_mask` [T], `task` and `relevant`.

    A video (.mp4 .m4v .mov .mkv .webm .avi .gif) has these labels in NAME.actions.csv, .json or .npz beside it, a
    folder of images (.png .jpg .bmp .webp) in an actions.csv, .json or .npz within. Without them it is unlabelled.

    docs/data.md describes all of it.
    """


@app.command()
@calls("imports", "cut_by_prompt")
def prompts(
    source: Annotated[Path, there("Data set of an environment with prompts.")],
    out: NewData,
) -> None:
    """Cut episodes where another task was asked for, into episodes of each task; what was held out stays held out."""


@app.command()
@calls("imports", "merge_data")
def merge(
    sources: Annotated[list[Path], there("Data sets, two or more.")],
    out: NewData,
) -> None:
    """Make one data set of several; what each holds out stays held out."""
