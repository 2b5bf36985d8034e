"""`dreamer4 study`."""

from pathlib import Path
from typing import Annotated

import typer

from dreamer4_cli import viewing


def study(
    file: Annotated[Path, typer.Argument(help="The study, a YAML file.", show_default=False)],
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="CELL", help="One cell; repeat for more. Default: all.")
    ] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Stages side by side.")] = 1,
    quick: Annotated[bool, typer.Option("--quick", help="A first look, as the study's file defines it.")] = False,
    data_seeds: Annotated[
        int | None, typer.Option("--data-seeds", min=1, help="The first of its data sets alone. Default: all.")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option("--seeds", min=1, help="The first training seeds alone. Default: all.")
    ] = None,
    only_table: Annotated[
        bool, typer.Option("--table", help="Draw the table of the rows there are; run nothing.")
    ] = False,
    runs: Annotated[Path, typer.Option("--runs", metavar="DIR", help="Where stages lie.")] = Path("runs/studies"),
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where results lie.")] = Path("benchmarks/results"),
) -> None:
    """Train and measure every cell of a study, one row each, and draw its table; what is done is not done again."""
    viewing.existing(file)
    from dreamer4.study import read_study
    from dreamer4.study.rows import publish
    from dreamer4.study.work import command_line, run_study
    from dreamer4_cli.console import ConsoleReporter, say

    asked = read_study(file)
    asked = (asked.made_quick() if quick else asked).first(data_seeds, seeds)
    if only_table:
        say(str(publish(out, asked)))
        return
    command = command_line(file, quick=quick, only=only or (), data_seeds=data_seeds, seeds=seeds)
    where = {"runs": runs, "out": out, "only": only or (), "workers": workers}
    say(str(run_study(asked, **where, command=command, report=ConsoleReporter())))
