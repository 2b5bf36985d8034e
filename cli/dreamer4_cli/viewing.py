"""The commands that show an agent and what came out of runs; the work is in the modules that they name."""

import os
from pathlib import Path
from typing import Annotated

import typer

from dreamer4.errors import InputError
from dreamer4_cli import options
from dreamer4_cli.options import calls, existing, opt, there


def report(
    runs: Annotated[list[Path], there("Run folders; several are compared.")],
    out: Annotated[
        Path | None, opt("HTML file. Default: report.html in the run, or comparison.html.", metavar="FILE")
    ] = None,
    task: options.Task = None,
) -> None:
    """Write a run's report again, as far as the run has come, or one page that compares runs."""
    from dreamer4.run import pages

    typer.echo(f"report:  {pages.report(runs, out, task=task)}")


def dream(
    path: options.Agent,
    out: Annotated[Path, opt("A new .gif or .mp4.", metavar="FILE", show_default=False)],
    actions: Annotated[
        str,
        opt(
            "policy, random, none, data (those of the episode, beside the truth), or a list such as 0,2x5,1: "
            "one entry a frame, xN repeats, and a colon separates components, 1:0:-0.5.",
            metavar="WHAT",
        ),
    ] = "policy",
    episode: Annotated[int, opt("Which held-out episode it starts from.", min=0)] = 0,
    context: Annotated[int, opt("Real frames before the dream.", min=1)] = 1,
    length: Annotated[int | None, opt("Frames to dream. Default: the list, or the longest episode.", min=1)] = None,
    num_steps: Annotated[int | None, opt("K, denoise passes of a frame. Default: the agent's.", min=1)] = None,
    seed: options.DrawnFrom = 0,
    fps: Annotated[float, opt("Frames per second.", min=0.1, max=50.0)] = 6.0,
    dataset: options.Episodes = None,
    task: options.Task = None,
) -> None:
    """Dream on from a real episode under actions of your choice, into a film; it stops where the model sees the end."""
    if out.suffix not in (".gif", ".mp4"):
        raise InputError(f"--out: got {out}, expected a name that ends in .gif or .mp4.")
    if os.path.lexists(out):
        raise InputError(f"--out: {out} exists. Choose another name.")
    from dreamer4.serving.film import write_film

    how = {"actions": actions, "episode": episode, "context": context, "length": length, "num_steps": num_steps}
    typer.echo(write_film(path, out, **how, seed=seed, fps=fps, dataset=dataset, task=task))


@calls("listing")
def runs(
    folder: Annotated[Path, typer.Argument(help="Where to look.", callback=existing)] = Path("runs"),
) -> None:
    """List the runs below a folder: how far each has come, and what came out."""


@calls("play")
def play(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN_OR_CHECKPOINT",
            help="Run folder, checkpoint, exported folder, hf://USER/NAME, or a shipped agent such as catch.",
            show_default=False,
        ),
    ] = None,
    port: Annotated[int, opt("Port; 0: any free one.", min=0, max=65535)] = 7860,
    host: Annotated[str, opt("Address to listen on. Any but this machine's own wants --token as well.")] = "127.0.0.1",
    token: Annotated[str | None, opt("What the link holds, 16 characters or more. Default: a random one.")] = None,
    allow: Annotated[
        list[str] | None,
        opt(
            "Another name under which browsers reach the server, behind a tunnel or a proxy; repeat for more. "
            "https://NAME:PORT if the proxy speaks HTTPS.",
            metavar="NAME:PORT",
        ),
    ] = None,
    prefix: Annotated[
        str,
        opt(
            "Path below which a proxy shows the page, such as JupyterHub's /user/me/proxy/absolute/7860.",
            "--root-path",
            metavar="/PATH",
        ),
    ] = "",
    dataset: options.Episodes = None,
    member: options.Member = 0,
    task: options.Task = None,
    show: Annotated[bool, opt("Open the page in a browser.", "--open")] = False,
) -> None:
    """Play an agent's dream in the browser, beside the real game. Without a name: what there is to play."""
