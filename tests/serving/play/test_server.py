"""Who is let in and what a stranger can do: a real server on a real socket, and clients of all kinds."""

import contextlib
import gc
import http.client
import json
import random
import re
from pathlib import Path

import jax
import pytest
from play_server import PREFIX, TOKEN, Running
from websockets.exceptions import ConnectionClosed, InvalidStatus

from dreamer4.serving.play import protocol
from dreamer4.serving.play.server import PAGE, Limits


def ask(page, **message):
    page.send(json.dumps(message))
    return protocol.unpack(page.recv())


def closed(page):
    """Returns code and reason with which the server closes a socket."""
    with pytest.raises(ConnectionClosed) as caught:
        while True:
            page.recv(timeout=300)
    return caught.value.rcvd.code, caught.value.rcvd.reason


@pytest.fixture(scope="module")
def running():
    with Running() as running:
        yield running


def test_the_page_lies_below_the_path_of_a_proxy_too(running):
    assert running.get()[0].status == running.get(PREFIX + "/")[0].status == 200
    assert running.get("/other/")[0].status == 404
    with running.session(path=PREFIX + "/session") as page:
        assert ask(page, type="start", mode="dream", episode=0, seed=0)[0]["type"] == "moment"
    with pytest.raises(InvalidStatus):  # who is let in is asked there as well
        running.socket(path=PREFIX + "/session", token="wrong-token-0123456")
    # The page opens its socket beside itself, whatever stands before its place.
    assert 'new URL("session", location.href' in PAGE.read_text()


def test_another_task_of_the_agent_is_chosen_on_the_same_page(running):
    with running.socket() as page:
        first = protocol.unpack(page.recv())[0]
        assert first["tasks"] == ["Catch-bsuite", "recorded"] and (first["task"], first["game"]) == (0, True)
        other = ask(page, type="choose", task=1)[0]
        assert (other["type"], other["task"], other["name"], other["game"]) == ("hello", 1, "recorded", False)
        # What is played from now on is the other one, which has no game to begin.
        assert ask(page, type="start", mode="both", episode=0, seed=0)[0]["mode"] == "dream"
        page.send(json.dumps({"type": "choose", "task": 2}))
        assert "expected 0 to 1" in closed(page)[1]


class TestAdmission:
    FOREIGN = [
        "http://evil.example",
        "null",
        "",
        "http://localhost.evil.com:{port}",
        "http://127.0.0.1.evil.com:{port}",
        "http://127.0.0.1:{port}.evil.com",
        "http://127.0.0.1",
        "http://127.0.0.1:1",
        "https://127.0.0.1:{port}",
        "http://127.0.0.1:{port}/",
        "http://user@127.0.0.1:{port}",
        "HTTP://127.0.0.1:{port}",
        "file://",
        "http://other.example:7001",
    ]

    @pytest.mark.parametrize("origin", FOREIGN)
    def test_a_foreign_origin(self, running, origin):
        with pytest.raises(InvalidStatus) as refused:
            running.socket(origin=origin.format(port=running.port))
        assert refused.value.response.status_code == 403

    @pytest.mark.parametrize(
        "host", ["evil.example:{port}", "localhost.evil.com:{port}", "127.0.0.1:1", "127.0.0.1", "0.0.0.0:{port}"]
    )
    def test_a_foreign_host(self, running, host):
        name = host.format(port=running.port)
        with pytest.raises(InvalidStatus) as refused:
            running.socket(host=name)
        assert refused.value.response.status_code == 403
        answer, body = running.get(Host=name)
        assert answer.status == 403 and b"--allow" in body

    @pytest.mark.parametrize(
        "protocols",
        [
            [],
            ["dreamer4"],
            ["dreamer4", "token."],
            ["dreamer4", "token.wrong-token-0123456"],
            ["dreamer4", f"token.{TOKEN}x"],
            ["dreamer4", f"token.{TOKEN[:-1]}"],
            ["dreamer4", "token.no", f"token.{TOKEN}"],
            [f"token.{TOKEN}"],
        ],
    )
    def test_a_missing_or_wrong_token(self, running, protocols):
        with pytest.raises(InvalidStatus) as refused:
            running.socket(protocols=protocols)
        assert refused.value.response.status_code == 403

    def test_nobody_was_let_in_so_far(self, running):
        # Refused before accept: no session was ever opened.
        before = len(jax.live_arrays())
        with pytest.raises(InvalidStatus):
            running.socket(token="x" * 20)
        assert (running.sessions, len(jax.live_arrays())) == (0, before)

    def test_two_hosts_or_origins_are_nobodys(self, running):
        with pytest.raises(InvalidStatus):
            running.socket(additional_headers={"Origin": f"http://{running.host}"})

    def test_own_names_and_allowed_ones(self, running):
        for name in (running.host, f"localhost:{running.port}", f"[::1]:{running.port}"):
            assert running.get(Host=name)[0].status == 200
            with running.session(host=name, origin=f"http://{name}") as page:
                assert page.subprotocol == "dreamer4"
        with running.session(host="other.example:7000", origin="http://other.example:7000"):
            pass
        with running.session(host="behind.example", origin="https://behind.example"):
            pass

    def test_the_token_is_nowhere_to_be_read(self, running):
        answer, body = running.get()
        assert TOKEN.encode() not in body and TOKEN not in str(answer.headers)


class TestPage:
    def test_nothing_but_the_page_is_served(self, running):
        assert running.get()[1] == PAGE.read_bytes()
        for path in ("/session", "/x", "/../pyproject.toml", "/page.html", "/%2e%2e/server.py"):
            assert running.get(path)[0].status in (404, 403), path
        connection = http.client.HTTPConnection("127.0.0.1", running.port)
        connection.request("POST", "/", body=b"x", headers={"Host": running.host})
        assert connection.getresponse().status == 405

    def test_it_asks_nobody_else_for_anything(self, running):
        text = PAGE.read_text()
        assert not re.search(r"(src|href)=[\"'](?!data:)", text)
        assert not re.search(
            r"@import|url\(|fetch\(|XMLHttpRequest|localStorage|innerHTML|insertAdjacentHTML|eval\(", text
        )
        assert re.findall(r"https?://[\w.]+", text) == ["http://www.w3.org"]  # the name of SVG, not an address
        policy = running.get()[0].headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert running.get()[0].headers["X-Frame-Options"] == "DENY"

    def test_it_ships_with_the_package(self):
        assert PAGE.parent == Path(protocol.__file__).parent


class TestManners:
    def test_a_session(self, running):
        with running.session() as page:
            moment, arrays, _ = ask(page, type="start", mode="both", seed=3)
            assert moment["time"] == 0 and set(arrays) == {"game", "dream"}
            moment, arrays, _ = ask(page, type="step", discrete=[0], num_steps=2)
            assert moment["time"] == 1 and arrays["dream"].shape == (10, 5, 3)
            ask(page, type="record", on=True)
            ask(page, type="record", on=False)
            for what, magic in (("gif", b"GIF8"), ("episode", b"PK")):
                header, _, body = ask(page, type="fetch", what=what)
                assert header["type"] == "file" and body.startswith(magic)
                assert re.fullmatch(r"Catch-bsuite\.(gif|zip)", header["name"])

    @pytest.mark.parametrize(
        ("message", "code"),
        [
            ("not json", 1008),
            (b"binary", 1003),
            ('{"type": "step", "num_steps": 4}', 1008),
            ('{"type": "start", "mode": "game", "episode": 99}', 1008),
            ("x" * (protocol.MAX_MESSAGE + 1), 1009),
        ],
    )
    def test_bad_manners_end_a_session_with_a_reason(self, running, message, code):
        with running.session() as page:
            page.send(message)
            assert closed(page)[0] == code

    def test_strangers_words_change_nothing(self, running, caplog):
        words = random.Random(0)
        for _ in range(25):
            with running.session() as page, contextlib.suppress(ConnectionClosed):
                for _ in range(4):
                    size = words.choice([0, 1, 7, 200, 60_000])
                    page.send(
                        words.choice([words.randbytes(size), words.randbytes(size).decode("latin-1"), "{}", "[]"])
                    )
                    page.recv(timeout=300)
        with running.session() as page:
            assert ask(page, type="start", mode="dream")[0]["type"] == "moment"
        assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]

    def test_four_places(self, running):
        with contextlib.ExitStack() as stack:
            pages = [stack.enter_context(running.session()) for _ in range(4)]
            with running.socket() as fifth:
                assert closed(fifth)[0] == 1013
            assert ask(pages[0], type="start", mode="dream")[0]["type"] == "moment"
        running.empty()
        with running.session():
            pass

    def test_who_leaves_leaves_nothing(self, running):
        def arrays():
            running.empty()
            gc.collect()
            return len(jax.live_arrays())

        with running.session() as page:
            ask(page, type="start", mode="both")
            inside = len(jax.live_arrays())
        base = arrays()
        assert base < inside
        for i in range(5):
            with running.session() as page:
                ask(page, type="start", mode="both", seed=i)
                page.send(json.dumps({"type": "step", "discrete": [1], "num_steps": 2}))
                if i % 2:
                    page.socket.close()  # without a word, in the middle of a step
        assert arrays() == base

    def test_idle_and_total_time(self):
        with Running(Limits(idle=0.3, total=60)) as short, short.session() as page:
            assert closed(page)[0] == 4001
        with Running(Limits(idle=60, total=0.3)) as short, short.session() as page:
            assert closed(page)[0] == 4002
