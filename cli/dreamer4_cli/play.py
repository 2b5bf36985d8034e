"""`dreamer4 play`: an agent and its worlds on a page of this machine's own."""

import re
import secrets
import socket
import webbrowser
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from dreamer4 import hub
from dreamer4.errors import InputError
from dreamer4.serving.play.admission import admit, check_access, in_link, is_loopback
from dreamer4.serving.play.server import server
from dreamer4.serving.play.stage import load_stages
from dreamer4_cli.console import say
from dreamer4_cli.listing import playable


_PREFIX = re.compile(r"(/[A-Za-z0-9._~@%+-]+)+/?")


def play(
    name: str | None,
    *,
    host: str,
    port: int,
    token: str | None,
    allow: Sequence[str] | None,
    prefix: str,
    dataset: Path | None,
    member: int,
    show: bool,
    task: str | None = None,
) -> None:
    """Serves the page until it is interrupted; the arguments are the options of the command."""
    if name is None:
        playable(Path("runs"))
        return
    path, allow = hub.existing(name), allow or ()
    check_access(host, token, allow)
    if prefix and not _PREFIX.fullmatch(prefix):
        raise InputError(f"--root-path: got {prefix!r}, expected a path such as /user/me/proxy/absolute/7860.")
    prefix = prefix.rstrip("/")
    listener = _listen(host, port)
    try:
        port = listener.getsockname()[1]
        admission = admit(host, port, token or secrets.token_urlsafe(24), allow)
        stages = load_stages(path, dataset=dataset, member=member, task=task)
        stage = stages.first
        say(f"{stage.name}: {path}, phase {stage.phase}, {len(stage.episodes)} recorded starts")
        if len(stage.tasks) > 1:
            say(f"the page chooses among {len(stage.tasks)} tasks: {', '.join(stage.tasks)}")
        if stage.absent:
            say(stage.absent)
        link = f"http://{in_link(host)}:{port}{prefix}/#token={admission.token}"
        say(f"\nPlay at  {link}\n")
        if not is_loopback(host):
            say(f"Others on the network reach this server at {host}, and whoever has the link may play.")
        for name in allow if prefix else ():
            say(f"Behind the proxy: {name}{prefix}/#token={admission.token}")
        say("The first frame comes when its programs are compiled, which are kept for the next time. Stop with Ctrl-C.")
        if show:
            webbrowser.open(link)
        serving = server(stages, admission, prefix=prefix)
        app: Any = serving.config.app
        warming = app.warm_up(lambda: serving.should_exit)

        def end_if_it_failed(done: Future[None]) -> None:
            serving.should_exit |= done.exception() is not None

        warming.add_done_callback(end_if_it_failed)
        serving.run(sockets=[listener])
        if warming.done():
            warming.result()  # of what went wrong, such as too little memory
    finally:
        listener.close()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise InputError(
            f"--port {port}: cannot listen on {host}: {error.strerror or error}. Choose another, or --port 0 for any."
        ) from None
