"""`dreamer4 play`: an agent and its worlds on a page of this machine's own."""

import ipaddress
import re
import secrets
import socket
import webbrowser
from collections.abc import Sequence
from pathlib import Path

import uvicorn
from rich.console import Console

from dreamer4.errors import InputError
from dreamer4.serving.play.protocol import MAX_MESSAGE
from dreamer4.serving.play.server import Admission, Limits, PlayServer, loopback
from dreamer4.serving.play.session import Session
from dreamer4.serving.play.stage import Stage, find_agent, load_stage


console = Console()

_SHORTEST_TOKEN = 16
_TOKEN = re.compile(r"[A-Za-z0-9_-]+")  # what a subprotocol and a link can both hold
_NAME = re.compile(r"(https://)?([A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\])(:[0-9]{1,5})?")
_PREFIX = re.compile(r"(/[A-Za-z0-9._~@%+-]+)+/?")
_CONNECTIONS = 64


def play(
    name: str,
    *,
    host: str,
    port: int,
    token: str | None,
    allow: Sequence[str],
    prefix: str,
    dataset: Path | None,
    member: int,
    show: bool,
    task: str | None = None,
) -> None:
    """Serves the page until it is interrupted.

    Args:
        name: a path, or the name of a shipped agent.
        host: address to listen on.
        port: port to listen on; 0 for any free one.
        token: what lets a page in; None: a random one.
        allow: further names under which the server is reached.
        prefix: path below which a proxy shows the page.
        dataset: where recorded starts come from; None: the agent's own.
        member: which of several training seeds.
        task: name or number of the task to play; None: the first.
        show: whether to open the page in a browser.
    """
    path = find_agent(name)
    _check_access(host, token, allow)
    if prefix and not _PREFIX.fullmatch(prefix):
        raise InputError(f"--root-path: got {prefix!r}, expected a path such as /user/me/proxy/absolute/7860.")
    prefix = prefix.rstrip("/")
    listener = _listen(host, port)
    try:
        port = listener.getsockname()[1]
        admission = admit(host, port, token or secrets.token_urlsafe(24), allow)
        stage = load_stage(path, dataset=dataset, member=member, task=task)
        _say(f"{stage.name}: {path}, phase {stage.phase}, {len(stage.episodes)} recorded starts")
        if stage.absent:
            _say(stage.absent)
        _say("compiling ...")
        warm_up(stage)
        link = f"http://{_address(host)}:{port}{prefix}/#token={admission.token}"
        _say(f"\nPlay at  {link}\n")
        if not _is_loopback(host):
            _say(f"Others on the network reach this server at {host}, and whoever has the link may play.")
        for name in allow if prefix else ():
            _say(f"Behind the proxy: {name}{prefix}/#token={admission.token}")
        _say("Stop with Ctrl-C.")
        if show:
            webbrowser.open(link)
        server(stage, admission, prefix=prefix).run(sockets=[listener])
    finally:
        listener.close()


def server(stage: Stage, admission: Admission, limits: Limits | None = None, *, prefix: str = "") -> uvicorn.Server:
    """Returns the server of a stage, bounded in all that a stranger could make grow."""
    config = uvicorn.Config(
        PlayServer(stage, admission, limits=limits, prefix=prefix),
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="off",
        ws_max_size=MAX_MESSAGE,
        ws_max_queue=4,
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=1,
    )
    return uvicorn.Server(config)


def warm_up(stage: Stage) -> None:
    """Runs every program of a session once, so that no player waits for a compiler."""
    session = Session(stage)
    new = None if stage.env is not None else 0
    nothing = {
        "discrete": list(stage.controls.idle),
        "continuous": [0.0] * stage.controls.continuous,
        "num_steps": stage.own_passes,
    }
    if stage.episodes:
        session.start("dream", episode=0)
    session.start("dream", episode=new)
    session.step("player", **nothing)
    for policy in stage.policies:
        session.step(policy, **nothing)
    if stage.env is not None:
        session.start("game", episode=None)
        session.step("player", **nothing)


def admit(host: str, port: int, token: str, allow: Sequence[str]) -> Admission:
    """Returns who is let in: this machine under its own names, the address listened on, and the names given."""
    hosts = set(loopback(port))
    if not _is_loopback(host) and not ipaddress.ip_address(host).is_unspecified:
        hosts.add(f"{_address(host)}:{port}")
    names = [_bare(name) for name in allow]
    secure = {_bare(name) for name in allow if name.startswith("https://")}
    return Admission(token, frozenset(hosts | set(names)), frozenset(secure))


def _check_access(host: str, token: str | None, allow: Sequence[str]) -> None:
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        raise InputError(f"--host: got {host!r}, expected an IP address, such as 127.0.0.1 or 0.0.0.0.") from None
    if token is not None and (len(token) < _SHORTEST_TOKEN or not _TOKEN.fullmatch(token)):
        raise InputError(
            f"--token: got {len(token)} characters, expected at least {_SHORTEST_TOKEN} letters, digits, - or _. "
            "Leave it out for a random one."
        )
    if not address.is_loopback and token is None:
        raise InputError(
            f"--host {host}: others on the network could reach the server, so choose a --token of at least "
            f"{_SHORTEST_TOKEN} characters as well."
        )
    if address.is_unspecified and not allow:
        raise InputError(
            f"--host {host}: listens on every address, so tell under which name browsers come, "
            "such as --allow my-machine:7860."
        )
    for name in allow:
        if not _NAME.fullmatch(name):
            raise InputError(f"--allow: got {name!r}, expected NAME:PORT or https://NAME:PORT, without a path.")


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise InputError(
            f"--port {port}: cannot listen on {host}: {error.strerror or error}. Choose another, or --port 0 for any."
        ) from None


def _is_loopback(host: str) -> bool:
    return host == "localhost" or ipaddress.ip_address(host).is_loopback


def _address(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _bare(name: str) -> str:
    return name.removeprefix("https://").lower()


def _say(line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
