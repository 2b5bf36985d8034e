"""`dreamer4 play`: what is refused before anything is loaded, and who may come in."""

import socket
from pathlib import Path

import pytest

from dreamer4.errors import InputError
from dreamer4.serving.play import stage
from dreamer4_cli import play as command


def play(name="catch", *, host="127.0.0.1", port=0, token=None, allow=()):
    command.play(name, host=host, port=port, token=token, allow=allow, prefix="", dataset=None, member=0, show=False)


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch):
    def load(*args, **kwargs):
        raise AssertionError("loaded before everything was checked")

    monkeypatch.setattr(command, "load_stage", load)


GOOD = "sixteen-letters-"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "no-such-agent"}, "no-such-agent is no file or folder"),
        ({"name": "x" * 5000}, "is no file or folder"),
        ({"host": "0.0.0.0"}, "choose a --token"),
        ({"host": "192.0.2.1"}, "choose a --token"),
        ({"host": "::"}, "choose a --token"),
        ({"host": "0.0.0.0", "token": GOOD}, "--allow my-machine:7860"),
        ({"host": "my-machine"}, "expected an IP address"),
        ({"token": "short"}, "--token: got 5 characters"),
        ({"token": "has spaces, and more"}, "--token: got 20 characters"),
        ({"allow": ["http://x"]}, "--allow: got 'http://x'"),
        ({"allow": ["x/path"]}, "--allow: got 'x/path'"),
        ({"allow": ["*"]}, "--allow: got '*'"),
        ({"allow": ["x:port"]}, "--allow: got 'x:port'"),
    ],
)
def test_what_is_refused(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "catch").mkdir()
    with pytest.raises(InputError) as error:
        play(**options)
    assert message in str(error.value)


def test_a_port_in_use_is_told_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "catch").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(InputError, match="cannot listen on 127.0.0.1"):
        play(port=taken.getsockname()[1])


def test_who_may_come_in():
    own = command.admit("127.0.0.1", 80, GOOD, ())
    assert own.hosts == {"127.0.0.1:80", "localhost:80", "[::1]:80"}
    assert own.origins == {"http://127.0.0.1:80", "http://localhost:80", "http://[::1]:80"}
    open_ = command.admit("192.0.2.1", 80, GOOD, ["https://Play.example"])
    assert open_.hosts - own.hosts == {"192.0.2.1:80", "play.example"}
    assert {"https://play.example", "http://192.0.2.1:80"} <= open_.origins
    # Every address is no name that a browser would send.
    assert command.admit("0.0.0.0", 80, GOOD, ["box:80"]).hosts - own.hosts == {"box:80"}


def test_a_path_comes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shipped" / "catch").mkdir(parents=True)
    monkeypatch.setattr(stage, "PRETRAINED", tmp_path / "shipped")
    assert stage.find_agent("catch") == tmp_path / "shipped" / "catch"
    with pytest.raises(InputError, match="Did you mean catch"):
        stage.find_agent("catsh")
    (tmp_path / "catch").mkdir()
    assert stage.find_agent("catch") == Path("catch")
