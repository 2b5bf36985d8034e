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
    help="What agents reach, how fast it is, and which promises hold. Results lie in benchmarks/results.",
)
app.callback()(commands.root)


@app.command()
def results(
    names: Annotated[
        list[str] | None, typer.Argument(help="Benchmarks, named as their presets; all by default.", show_default=False)
    ] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="The main comparison alone, on Catch and CartPole with two seeds: about a quarter of an hour.",
        ),
    ] = False,
    seeds: Annotated[
        int | None, typer.Option("--seeds", min=1, help="Training seeds. Default: 5, or 2 if quick.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            metavar="PART",
            help="Part of it: references, dreamer, cloning, ppo, dream_ppo, other_objective; repeat for more.",
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Runs side by side. Default: 1, or 2 if quick.")
    ] = None,
    together: Annotated[bool, typer.Option("--together", help="All seeds in one program, for a GPU.")] = False,
    runs: Annotated[Path | None, typer.Option("--runs", metavar="DIR", help="Where data sets and runs lie.")] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="The ledger.")] = None,
    table: Annotated[bool, typer.Option("--table", help="Print what the ledger holds, and run nothing.")] = False,
) -> None:
    """Run every method on every benchmark over training seeds, and print the ledger; what is done is not done again."""
    from benchmarks import results as work

    # What is quick never mixes with what is published.
    place = Path("runs/bench-quick" if quick else "runs/bench")
    ledger = place / "ledger" if quick else Path("benchmarks/results")
    work.results(
        names or (),
        seeds=seeds,
        quick=quick,
        workers=workers or (2 if quick else 1),
        runs=runs or place,
        out=out or ledger,
        only_table=table,
        only=only or (),
        together=together,
    )


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


app.command()(speed_options.speed)


if __name__ == "__main__":
    app(prog_name="python -m benchmarks")
