"""A play server on a thread, for the tests of play: real sockets, real refusals."""

import contextlib
import http.client
import socket
import threading
import time

from play_stage import tasks
from websockets.sync.client import connect

from dreamer4.serving.play import protocol
from dreamer4.serving.play.admission import admit
from dreamer4.serving.play.server import server
from dreamer4.serving.play.stage import Stages


PREFIX = "/user/me/proxy/7860"
TOKEN = "a-token-for-tests-0123"


class Running:
    """A server on a free port, on a thread of its own."""

    def __init__(self, limits=None):
        self.limits, self.port = limits, 0

    def __enter__(self):
        # A server closes the socket that it was given, so each start has its own.
        self.listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self.listener.getsockname()[1]
        self.host = f"127.0.0.1:{self.port}"
        allow = ["Other.example:7000", "https://behind.example"]
        self.server = server(Stages(tasks), admit("127.0.0.1", self.port, TOKEN, allow), self.limits, prefix=PREFIX)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listener]}, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *exception):
        self.server.should_exit = True
        self.thread.join(10)
        self.listener.close()

    @property
    def sessions(self):
        return self.server.config.app.sessions

    def empty(self):
        """Waits until everybody has left."""
        deadline = time.monotonic() + 300
        while self.sessions:
            assert time.monotonic() < deadline, self.sessions
            time.sleep(0.01)

    def socket(self, *, origin=None, token=TOKEN, protocols=None, host=None, path="/session", **options):
        """Opens a socket as a page of `origin` would that reached the server as `host`."""
        offered = protocols if protocols is not None else ["dreamer4", f"token.{token}"]
        return connect(
            f"ws://{host or self.host}{path}",
            sock=socket.create_connection(("127.0.0.1", self.port)),
            origin=f"http://{self.host}" if origin is None else origin or None,
            subprotocols=offered or None,
            proxy=None,
            **options,
        )

    @contextlib.contextmanager
    def session(self, **options):
        with self.socket(**options) as page:
            assert protocol.unpack(page.recv())[0]["type"] == "hello"
            yield page

    def get(self, path="/", **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        connection.request("GET", path, headers={"Host": self.host, **headers})
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer, body
