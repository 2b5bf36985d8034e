"""`dreamer4 data`: the commands about data sets; the work is in `describe` and `imports`."""

import enum
from pathlib import Path
from typing import Annotated

import typer

from dreamer4_cli import viewing


app = typer.Typer(no_args_is_help=True, help="Data sets.")
app.command()(viewing.check)
app.command()(viewing.plan)


class Timings(enum.StrEnum):
    """What row t of imported actions belongs to."""

    led_to = "led-to"
    taken_at = "taken-at"


@app.command("import")
def import_data(
    source: Annotated[Path, typer.Argument(help="Folder with one file or sub-folder per episode.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The data set, a new folder.")],
    timing: Annotated[
        Timings,
        typer.Option(
            "--action-timing",
            help="What row t of actions and rewards belongs to: what led to frame t, or what was done at frame t. "
            "Matters where there are as many rows as frames.",
        ),
    ] = Timings.led_to,
    actions: Annotated[
        str | None,
        typer.Option(
            "--actions",
            metavar="SPEC",
            help="Classes by component and continuous dimensions: 3 or 2,5,continuous:2. Default: what the data needs.",
        ),
    ] = None,
    bounds: Annotated[
        str | None,
        typer.Option(
            "--bounds",
            metavar="LOW:HIGH",
            help="Range of continuous actions, one or one each: -2:2 or -1:1,0:5; data: the range that occurs.",
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option("--size", metavar="HEIGHTxWIDTH", help="Resize frames, by area; the height comes first."),
    ] = None,
    fps: Annotated[
        float | None,
        typer.Option("--fps", help="Frames a second of videos, each held until the next. Default: every stored frame."),
    ] = None,
    cut: Annotated[
        int | None,
        typer.Option(
            "--cut", metavar="FRAMES", min=2, help="Most frames of an episode; longer ones are cut into several."
        ),
    ] = None,
    ignore: Annotated[
        str | None, typer.Option("--ignore", metavar="A,B", help="Labels and columns to pass over: timestamp,index.")
    ] = None,
    held_out: Annotated[float, typer.Option("--held-out", help="Share of the episodes kept for evaluation.")] = 0.1,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**31 - 1, help="Draws the split.")] = 0,
) -> None:
    """Make a data set of your own episodes: .npz files, videos or folders of images.

    An .npz file has `frame` [T H W] or [T H W C] as uint8, and any of `action` [T] or [T components], `continuous`
    [T dims], `reward` [T], `is_terminal`, `action_mask` [T], `task` and `relevant`.

    A video (.mp4 .m4v .mov .mkv .webm .avi .gif) has these labels in NAME.actions.csv, .json or .npz beside it, a
    folder of images (.png .jpg .bmp .webp) in an actions.csv, .json or .npz within. Without them it is unlabelled.

    docs/data.md describes all of it.
    """
    existing = viewing.existing(source)
    from dreamer4_cli import imports as work

    work.import_data(
        existing,
        out,
        actions=actions,
        bounds=bounds,
        timing=timing.value,
        size=size,
        fps=fps,
        cut=cut,
        ignore=ignore,
        held_out=held_out,
        seed=seed,
    )


@app.command()
def prompts(
    source: Annotated[Path, typer.Argument(help="Data set of an environment with prompts.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The data set, a new folder.")],
) -> None:
    """Cut episodes where another task was asked for, into episodes of each task; what was held out stays held out."""
    existing = viewing.existing(source)
    from dreamer4_cli import imports as work

    work.cut_by_prompt(existing, out)


@app.command()
def merge(
    sources: Annotated[list[Path], typer.Argument(help="Data sets, two or more.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The data set, a new folder.")],
) -> None:
    """Make one data set of several; what each holds out stays held out."""
    existing = [viewing.existing(source) for source in sources]
    from dreamer4_cli import imports as work

    work.merge_data(existing, out)
