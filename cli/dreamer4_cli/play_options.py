"""The options of `dreamer4 play`; what it does stands in `play`, whose imports are heavy."""

from pathlib import Path
from typing import Annotated

import typer

from dreamer4_cli import options, viewing


def play(
    name: Annotated[
        str,
        typer.Argument(
            metavar="RUN_OR_CHECKPOINT",
            help="Run folder, checkpoint, exported folder, or the name of an agent that comes with dreamer4: catch.",
            show_default=False,
        ),
    ],
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0: any free one.")] = 7860,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on. Any but this machine's own wants --token as well.")
    ] = "127.0.0.1",
    token: Annotated[
        str | None, typer.Option("--token", help="What the link holds, 16 characters or more. Default: a random one.")
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            "--allow",
            metavar="NAME:PORT",
            help="Another name under which browsers reach the server, behind a tunnel or a proxy; repeat for more. "
            "https://NAME:PORT if the proxy speaks HTTPS.",
        ),
    ] = None,
    root_path: Annotated[
        str,
        typer.Option(
            "--root-path",
            metavar="/PATH",
            help="Path below which a proxy shows the page, such as JupyterHub's /user/me/proxy/absolute/7860.",
        ),
    ] = "",
    dataset: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="Data set of recorded starts. Default: the agent's own."),
    ] = None,
    member: Annotated[int, typer.Option("--member", min=0, help="Which training seed, if the run has several.")] = 0,
    task: options.Task = None,
    show: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Play an agent's dream in the browser, beside the real game."""
    if dataset is not None:
        viewing.existing(dataset)
    from dreamer4_cli import play as work

    work.play(
        name,
        host=host,
        port=port,
        token=token,
        allow=allow or (),
        prefix=root_path,
        dataset=dataset,
        member=member,
        task=task,
        show=show,
    )
