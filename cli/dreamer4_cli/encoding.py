"""`dreamer4 encode`: latents of a data set, ahead of the phases that read them, by as many processes as one likes."""

import re
from pathlib import Path
from typing import Annotated

import typer

from dreamer4.errors import InputError
from dreamer4_cli import viewing


def encode(
    path: Annotated[Path, typer.Argument(help="Run folder, or a data set.", show_default=False)],
    tokenizer: Annotated[
        Path | None, typer.Argument(help="Run whose tokenizer encodes the data set.", show_default=False)
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            "--shard", metavar="I/N", help="The I-th of N shares of the work, 1/N to N/N. Default: all of it."
        ),
    ] = None,
) -> None:
    """Encode training episodes into the folder of a run, where its later phases find them; what is there is kept.

    With a data set, a run: a run that starts --from that one on this data takes the latents over.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", shard or "1/1")
    part = (int(found[1]) - 1, int(found[2])) if found else (0, 0)
    if not 0 <= part[0] < part[1]:
        raise InputError(f"--shard: got {shard}, expected I/N with I from 1 to N, such as 2/8.")
    run = viewing.existing(tokenizer or path)
    viewing.existing(path)
    from dreamer4.run import latents, stopping
    from dreamer4_cli.console import ConsoleReporter, say

    stopping.note("What is encoded so far is kept. Go on with the same command.")
    for store in latents.encode_run(run, None if tokenizer is None else path, ConsoleReporter(), part=part):
        say(f"latents: {store}")
