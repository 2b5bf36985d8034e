"""The server of the page: one file over HTTP, one socket per session, and who is let in.

A page on the internet can make a browser open sockets to this machine, with any Host through DNS rebinding. So before a
socket is accepted its Host and its Origin must each be, letter by letter, one that is allowed, and it must bring the
token that only the link printed at the start holds. The link carries the token behind `#`, which browsers send nowhere;
the page hands it on as a subprotocol, which stands in no log and in no history.
"""

import asyncio
import contextlib
import hashlib
import importlib.util
import re
import secrets
from base64 import b64encode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from dreamer4.errors import InputError
from dreamer4.reporting import media
from dreamer4.serving.play import protocol, recording
from dreamer4.serving.play.session import Session
from dreamer4.serving.play.stage import Stage


PROTOCOL = "dreamer4"
PAGE = Path(__file__).with_name("page.html")

# Why a socket was closed: 4000 and up are ours, the others the protocol's own.
UNSUPPORTED, POLICY, FULL, IDLE, TOTAL = 1003, 1008, 1013, 4001, 4002

_SLOWEST_READER = 20.0  # seconds in which an answer must be taken


@dataclass(frozen=True)
class Limits:
    """What the server grants.

    Attributes:
        sessions: at the same time.
        idle: seconds without a request, after which a session is let go.
        total: seconds after which any session is.
    """

    sessions: int = 4
    idle: float = 300.0
    total: float = 3600.0


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


class PlayServer:
    """Sessions on one stage, each with its own state, one after the other on one thread.

    JAX spreads each operation over the processors by itself; steps of several sessions at once would only slow each
    other down. Files are made on a second thread, so that nobody waits for another one's film.
    """

    def __init__(self, stage: Stage, admission: Admission, *, limits: Limits | None = None, prefix: str = ""):
        """Sets a server up: an ASGI application, for any ASGI server to run.

        Args:
            stage: what is played.
            admission: who is let in.
            limits: what is granted.
            prefix: path below which a proxy that leaves it in place shows the page, such as `/user/me/proxy/7860`.
        """
        self._stage, self._limits = stage, limits or Limits()
        self._steps = ThreadPoolExecutor(1, thread_name_prefix="step")
        self._files = ThreadPoolExecutor(1, thread_name_prefix="file")
        self._open = 0
        self._page, policy = _page()
        self._headers = {
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cache-Control": "no-store",
        }
        routes = [
            route
            for place in dict.fromkeys(("", prefix))
            for route in (Route(f"{place}/", self._show_page), WebSocketRoute(f"{place}/session", self._play))
        ]
        self._guarded = Guard(Starlette(routes=routes), admission)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answers one ASGI connection."""
        await self._guarded(scope, receive, send)

    @property
    def sessions(self) -> int:
        """Number of open sessions."""
        return self._open

    async def _show_page(self, request: Request) -> HTMLResponse:
        return HTMLResponse(self._page, headers=self._headers)

    async def _play(self, socket: WebSocket) -> None:
        await socket.accept(subprotocol=PROTOCOL)
        if self._open >= self._limits.sessions:
            await socket.close(FULL, f"All {self._limits.sessions} places are taken. Try again later.")
            return
        self._open += 1
        try:
            with contextlib.suppress(WebSocketDisconnect):
                await self._converse(socket, Session(self._stage))
        finally:
            self._open -= 1

    async def _converse(self, socket: WebSocket, session: Session) -> None:
        loop, limits = asyncio.get_running_loop(), self._limits
        end = loop.time() + limits.total
        hello = protocol.pack_hello(self._stage, formats=_formats(), idle=limits.idle, total=limits.total)
        await _send(socket, hello)
        while True:
            left = end - loop.time()
            try:
                async with asyncio.timeout(max(0.0, min(limits.idle, left))):
                    message = await socket.receive()
            except TimeoutError:
                late = left <= limits.idle  # not by the clock: a timer may go off a moment early
                why = "The time of this session is over." if late else "Nothing was asked for a while."
                await socket.close(TOTAL if late else IDLE, why)
                return
            if message["type"] == "websocket.disconnect":
                return
            if message.get("text") is None:
                await socket.close(UNSUPPORTED, "Expected text.")
                return
            try:
                answer = await self._answer(session, protocol.parse(message["text"]))
            except InputError as error:
                await socket.close(POLICY, str(error).encode()[:120].decode(errors="ignore"))
                return
            await _send(socket, answer)

    async def _answer(self, session: Session, request: protocol.Request) -> bytes:
        match request:
            case protocol.Start():
                what = partial(
                    session.start, request.mode, episode=request.episode, passed=request.passed, seed=request.seed
                )
            case protocol.Step():
                what = partial(
                    session.step,
                    request.by,
                    discrete=request.discrete,
                    continuous=request.continuous,
                    num_steps=request.num_steps,
                    twice=request.twice,
                )
            case protocol.Look():
                what = partial(session.look, request.mode)
            case protocol.Record():
                what = partial(session.record, request.on)
            case protocol.Fetch():
                return await self._on(self._files, partial(self._file, session, request))
        return protocol.pack_moment(await self._on(self._steps, what))

    async def _on(self, threads: ThreadPoolExecutor, what: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(threads, what)

    def _file(self, session: Session, request: protocol.Fetch) -> bytes:
        name = re.sub(r"[^A-Za-z0-9._-]+", "_", self._stage.name)
        if request.what == "episode":
            body = recording.archive(
                session.episodes(), spec=self._stage.spec, environment=self._stage.env_config, seed=session.seed
            )
            return protocol.pack({"type": "file", "name": f"{name}.zip", "kind": "application/zip"}, body=body)
        film = recording.compose(session.film())
        if request.what == "gif":
            body, kind = media.gif(film, fps=min(request.fps, 50.0)), "image/gif"
        else:
            body, kind = media.mp4(film, fps=request.fps), "video/mp4"
        return protocol.pack({"type": "file", "name": f"{name}.{request.what}", "kind": kind}, body=body)


async def _send(socket: WebSocket, answer: bytes) -> None:
    # One who does not read is let go, and never has more than this one answer waiting.
    try:
        async with asyncio.timeout(_SLOWEST_READER):
            await socket.send_bytes(answer)
    except TimeoutError:
        raise WebSocketDisconnect(POLICY, "The answer was not taken.") from None


def _formats() -> tuple[str, ...]:
    return ("gif", "mp4") if importlib.util.find_spec("av") is not None else ("gif",)


def _page() -> tuple[str, str]:
    """Returns the page, and the policy that lets run what stands in it and nothing else."""
    text = PAGE.read_text(encoding="utf-8")
    digests = {
        tag: " ".join(
            f"'sha256-{b64encode(hashlib.sha256(block.encode()).digest()).decode()}'"
            for block in re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        )
        for tag in ("script", "style")
    }
    policy = (
        f"default-src 'none'; script-src {digests['script']}; style-src {digests['style']}; connect-src 'self'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text, policy


def loopback(port: int) -> frozenset[str]:
    """Returns the names by which this machine calls itself."""
    return frozenset(f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]"))
