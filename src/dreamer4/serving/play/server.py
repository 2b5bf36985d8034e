"""The server of the page: one file over HTTP, one socket per session; `admission` says who is let in."""

import asyncio
import contextlib
import hashlib
import importlib.util
import re
from base64 import b64encode
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from dreamer4 import media
from dreamer4.errors import InputError
from dreamer4.serving.play import protocol, recording
from dreamer4.serving.play.admission import POLICY, PROTOCOL, Admission, Guard
from dreamer4.serving.play.session import Session, warm_up
from dreamer4.serving.play.stage import Stages


PAGE = Path(__file__).with_name("page.html")

# Why a socket was closed: 4000 and up are ours, the others the protocol's own.
UNSUPPORTED, FULL, IDLE, TOTAL = 1003, 1013, 4001, 4002

_CONNECTIONS = 64
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


class PlayServer:
    """Sessions on the stages of one agent, each with its own state, one after the other on one thread.

    JAX spreads each operation over the processors by itself; steps of several sessions at once would only slow each
    other down. Files are made on a second thread, so that nobody waits for another one's film.
    """

    def __init__(self, stages: Stages, admission: Admission, *, limits: Limits | None = None, prefix: str = ""):
        """Sets a server up: an ASGI application, for any ASGI server to run.

        Args:
            stages: what is played.
            admission: who is let in.
            limits: what is granted.
            prefix: path below which a proxy that leaves it in place shows the page, such as `/user/me/proxy/7860`.
        """
        self._stages, self._limits = stages, limits or Limits()
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

    def warm_up(self, stop: Callable[[], bool]) -> "Future[None]":
        """Begins to compile what sessions need, while the page is served; players wait for it and no longer."""
        return self._steps.submit(warm_up, self._stages.first, stop)

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
            # Cancelled where the server ends while a player waits for a step.
            with contextlib.suppress(WebSocketDisconnect, asyncio.CancelledError):
                await self._converse(socket, Session(self._stages.first))
        finally:
            self._open -= 1

    async def _converse(self, socket: WebSocket, session: Session) -> None:
        loop, limits = asyncio.get_running_loop(), self._limits
        end = loop.time() + limits.total
        hello = partial(protocol.pack_hello, formats=_formats(), idle=limits.idle, total=limits.total)
        await _send(socket, hello(session.stage))
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
                request = protocol.parse(message["text"])
                if isinstance(request, protocol.Choose):
                    session = Session(await self._on(self._steps, partial(self._stages.find, request.task)))
                    answer = hello(session.stage)
                else:
                    answer = await self._answer(session, request)
            except InputError as error:
                await socket.close(POLICY, str(error).encode()[:120].decode(errors="ignore"))
                return
            await _send(socket, answer)

    async def _answer(self, session: Session, request: protocol.Asked) -> bytes:
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
        stage = session.stage
        name = re.sub(r"[^A-Za-z0-9._-]+", "_", stage.name)
        if request.what == "episode":
            body = recording.archive(
                session.episodes(), spec=stage.spec, environment=stage.env_config, seed=session.seed
            )
            return protocol.pack({"type": "file", "name": f"{name}.zip", "kind": "application/zip"}, body=body)
        film = recording.compose(session.film())
        if request.what == "gif":
            body, kind = media.gif(film, fps=min(request.fps, 50.0)), "image/gif"
        else:
            body, kind = media.mp4(film, fps=request.fps), "video/mp4"
        return protocol.pack({"type": "file", "name": f"{name}.{request.what}", "kind": kind}, body=body)


def server(stages: Stages, admission: Admission, limits: Limits | None = None, *, prefix: str = "") -> uvicorn.Server:
    """Returns the server of an agent's stages, bounded in all that a stranger could make grow."""
    config = uvicorn.Config(
        PlayServer(stages, admission, limits=limits, prefix=prefix),
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="off",
        ws_max_size=protocol.MAX_MESSAGE,
        ws_max_queue=4,
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=1,
    )
    return uvicorn.Server(config)


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
