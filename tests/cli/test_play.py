"""`dreamer4 play`: what is refused before anything is loaded, and who may come in."""

import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dreamer4 import hub
from dreamer4.dreamer import find_checkpoint
from dreamer4.errors import InputError
from dreamer4.serving.play.admission import admit
from dreamer4_cli import play as command
from dreamer4_cli.app import app


def play(name="catch", *, host="127.0.0.1", port=0, token=None, allow=()):
    command.play(name, host=host, port=port, token=token, allow=allow, prefix="", dataset=None, member=0, show=False)


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch):
    def load(*args, **kwargs):
        raise AssertionError("loaded before everything was checked")

    monkeypatch.setattr(command, "load_stages", load)


GOOD = "sixteen-letters-"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "no-such-agent"}, "no-such-agent: no such file or folder"),
        ({"name": "x" * 5000}, "no such file or folder"),
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
    own = admit("127.0.0.1", 80, GOOD, ())
    assert own.hosts == {"127.0.0.1:80", "localhost:80", "[::1]:80"}
    assert own.origins == {"http://127.0.0.1:80", "http://localhost:80", "http://[::1]:80"}
    open_ = admit("192.0.2.1", 80, GOOD, ["https://Play.example"])
    assert open_.hosts - own.hosts == {"192.0.2.1:80", "play.example"}
    assert {"https://play.example", "http://192.0.2.1:80"} <= open_.origins
    # Every address is no name that a browser would send.
    assert admit("0.0.0.0", 80, GOOD, ["box:80"]).hosts - own.hosts == {"box:80"}


def test_a_path_comes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shipped" / "catch").mkdir(parents=True)
    monkeypatch.setattr(hub, "SHIPPED", tmp_path / "shipped")
    assert hub.existing("catch") == tmp_path / "shipped" / "catch"
    assert hub.existing(Path("shipped/catch")) == Path("shipped/catch")
    with pytest.raises(InputError, match=r"catsh: no such file or folder\. Did you mean catch\?$"):
        hub.existing("catsh")
    with pytest.raises(InputError, match=r"nowhere/catch: no such file or folder\.$"):
        hub.existing("nowhere/catch")
    (tmp_path / "catch").mkdir()
    assert hub.existing("catch") == Path("catch")


def test_every_command_knows_the_agent_that_ships(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "Catch-bsuite" in (said := CliRunner().invoke(app, ["info", "catch"])).output, said.output
    assert find_checkpoint(hub.local("catch")) == hub.SHIPPED / "catch"
