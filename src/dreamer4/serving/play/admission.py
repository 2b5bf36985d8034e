"""Who is let in to a page.

A page on the internet can make a browser open sockets to this machine, with any Host through DNS rebinding. So before a
socket is accepted its Host and its Origin must each be, letter by letter, one that is allowed, and it must bring the
token that only the link printed at the start holds. The link carries the token behind `#`, which browsers send nowhere;
the page hands it on as a subprotocol, which stands in no log and in no history.
"""

import ipaddress
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import PlainTextResponse

from dreamer4.errors import InputError


PROTOCOL = "dreamer4"
POLICY = 1008  # why a socket was closed, by the protocol of sockets

_SHORTEST_TOKEN = 16
_TOKEN = re.compile(r"[A-Za-z0-9_-]+")  # what a subprotocol and a link can both hold
_NAME = re.compile(r"(https://)?([A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\])(:[0-9]{1,5})?")


@dataclass(frozen=True)
class Admission:
    """Who is let in.

    Attributes:
        token: what the link holds.
        hosts: allowed values of the Host header, as `name:port`.
        secure: those of them that are reached through a proxy which speaks HTTPS to browsers.
    """

    token: str
    hosts: frozenset[str]
    secure: frozenset[str] = field(default_factory=frozenset)

    @property
    def origins(self) -> frozenset[str]:
        """Allowed values of the Origin header."""
        return frozenset(f"http://{host}" for host in self.hosts) | frozenset(f"https://{h}" for h in self.secure)

    def refusal(self, headers: list[tuple[bytes, bytes]], *, socket: bool) -> str:
        """Returns why a request is refused, or nothing.

        Args:
            headers: of the request, names in lower case.
            socket: whether it asks for a socket.
        """
        host = _only(headers, b"host")
        if host not in self.hosts:
            return f"Host {host!r} is not allowed here. If it is yours, start with --allow {host or 'NAME:PORT'}."
        if not socket:
            return ""
        if _only(headers, b"origin") not in self.origins:
            return "This origin is not allowed here."
        offered = [part.strip() for part in (_only(headers, b"sec-websocket-protocol") or "").split(",")]
        given = next((part.removeprefix("token.") for part in offered if part.startswith("token.")), "")
        if PROTOCOL not in offered or not secrets.compare_digest(given.encode(), self.token.encode()):
            return "The token is missing or wrong. Use the link that the command printed."
        return ""


def _only(headers: list[tuple[bytes, bytes]], name: bytes) -> str | None:
    """Returns the value of a header that occurs once; one that occurs twice is nobody's."""
    values = [value for key, value in headers if key == name]
    return values[0].decode("latin-1") if len(values) == 1 else None


class Guard:
    """Refuses requests before anything else sees them: sockets before they are accepted."""

    def __init__(self, app: Any, admission: Admission):
        """Guards an ASGI application."""
        self._app, self._admission = app, admission

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answers one ASGI connection."""
        kind = scope["type"]
        if kind in ("http", "websocket"):
            why = self._admission.refusal(scope["headers"], socket=kind == "websocket")
            if why and kind == "websocket":
                await receive()
                await send({"type": "websocket.close", "code": POLICY, "reason": why})
                return
            if why:
                await PlainTextResponse(why, status_code=403)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def admit(host: str, port: int, token: str, allow: Sequence[str]) -> Admission:
    """Returns who is let in: this machine under its own names, the address listened on, and the names given."""
    hosts = {f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]")}
    if not is_loopback(host) and not ipaddress.ip_address(host).is_unspecified:
        hosts.add(f"{in_link(host)}:{port}")
    names = [name.removeprefix("https://").lower() for name in allow]
    secure = {name.removeprefix("https://").lower() for name in allow if name.startswith("https://")}
    return Admission(token, frozenset(hosts | set(names)), frozenset(secure))


def check_access(host: str, token: str | None, allow: Sequence[str]) -> None:
    """Refuses ways to be reached that cannot be, or that would let strangers in.

    Raises:
        InputError: saying which option of `dreamer4 play` is at fault.
    """
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


def is_loopback(host: str) -> bool:
    """Tells whether an address is this machine's own, which no other can reach."""
    return host == "localhost" or ipaddress.ip_address(host).is_loopback


def in_link(host: str) -> str:
    """Returns an address as a link writes it."""
    return f"[{host}]" if ":" in host else host
