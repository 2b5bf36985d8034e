"""The measurements of a working copy: `python -m benchmarks`, in its root folder."""

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.speed import options as speed_options
from dreamer4_cli import app as commands
from dreamer4_cli.endings import Commands


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="How fast it is, and which promises hold. What agents reach is asked by `dreamer4 study`.",
)
app.callback()(commands.root)


@app.command()
def reliability(
    rows: Annotated[list[str] | None, typer.Argument(help="Rows; all by default.", show_default=False)] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Few of everything: some minutes on two CPU cores.")] = False,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The table as JSON, a new file.")] = Path(
        "runs/reliability.json"
    ),
    runs: Annotated[
        Path, typer.Option("--runs", metavar="DIR", help="Where the runs lie meanwhile, a new folder.")
    ] = Path("runs/reliability"),
) -> None:
    """Stop, kill and spoil small runs, and print which promises about them were kept."""
    from tests.reliability import suite as work

    work.reliability(rows or (), quick=quick, out=out, place=runs)


@app.command()
def curves(
    runs: Annotated[
        list[Path], typer.Argument(help="Runs of presets, or their stages in a study.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where PRESET.json is written anew.")] = Path(
        "benchmarks/results/curves"
    ),
) -> None:
    """Write the expected curves of presets, mean and range over runs, as the site draws them."""
    from benchmarks import curves as work

    for file in work.curves(runs, out):
        typer.echo(file)


app.command()(speed_options.speed)


if __name__ == "__main__":
    app(prog_name="python -m benchmarks")
