"""Compiled programs outlive the process that compiled them, wherever that is possible."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from dreamer4_cli import compile_cache


# The command line as it is, with a run that compiles one small program and tells what the cache did.
SCRIPT = """
    import json, sys, types

    def demo(*args, **kwargs):
        import jax
        counts = {"hits": 0, "misses": 0}
        def listen(event, **_):
            name = event.rpartition("_")[2]
            if event.startswith("/jax/compilation_cache/cache_"):
                counts[name] += 1
        jax.monitoring.register_event_listener(listen)
        value = jax.jit(lambda x: x * 2 + 1)(3.0)
        print(json.dumps({"value": float(value)} | counts))

    run = types.ModuleType("dreamer4_cli.run")
    run.demo = demo
    import dreamer4_cli
    dreamer4_cli.run = sys.modules["dreamer4_cli.run"] = run
    from dreamer4_cli.app import main
    sys.argv = ["dreamer4", *sys.argv[1:], "demo"]
    main()
"""


@pytest.fixture
def start(tmp_path):
    """Returns a function that starts the command line in a home of its own, and returns counts and messages."""

    def run(*args: str, **variables: str) -> tuple[dict, str]:
        ours = ("JAX_COMP", "JAX_ENABLE_COMP", "JAX_PERS", "XDG_", "DREAMER4_")
        clean = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(SCRIPT), *args],
            capture_output=True,
            text=True,
            timeout=300,
            cwd=tmp_path,
            env=clean | {"HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"} | variables,
        )
        assert done.returncode == 0, done.stderr
        counts = json.loads(done.stdout)
        assert counts.pop("value") == 7.0
        return counts, done.stderr

    return run


def files(folder: Path) -> int:
    return sum(1 for path in folder.rglob("*") if path.is_file())


def test_the_second_start_finds_what_the_first_compiled(start, tmp_path):
    first, _ = start()
    assert (first["hits"], first["misses"]) == (0, files(tmp_path))
    assert first["misses"] > 0
    second, errors = start()
    assert (second["hits"], second["misses"]) == (first["misses"], 0)
    assert errors == ""


@pytest.mark.parametrize(
    ("args", "variables"),
    [(("--compile-cache", "off"), {}), ((), {"DREAMER4_COMPILE_CACHE": "off"})],
    ids=["option", "variable"],
)
def test_it_can_be_turned_off(start, tmp_path, args, variables):
    counts, errors = start(*args, **variables)
    assert counts == {"hits": 0, "misses": 0}
    assert errors == ""
    assert files(tmp_path) == 0


def test_it_can_be_moved(start, tmp_path):
    counts, _ = start("--compile-cache", str(tmp_path / "there"))
    assert counts["misses"] == files(tmp_path / "there") == files(tmp_path)
    counts, _ = start(DREAMER4_COMPILE_CACHE=str(tmp_path / "there"))
    assert counts["misses"] == 0


def test_a_folder_that_cannot_be_written_to_stops_nothing(start, tmp_path):
    (tmp_path / "file").touch()
    counts, errors = start("--compile-cache", str(tmp_path / "file" / "cache"))
    assert counts == {"hits": 0, "misses": 0}
    assert "cannot be written" in errors
    counts, errors = start(HOME=str(tmp_path / "file"))
    assert counts == {"hits": 0, "misses": 0}
    assert errors == ""


class TestWhere:
    """The choice alone, in this process: it only sets variables."""

    @pytest.fixture(autouse=True)
    def environment(self, monkeypatch, tmp_path):
        for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "XDG_CACHE_HOME"):
            monkeypatch.setenv(name, "")  # so that it is restored, whatever the test makes of it
            monkeypatch.delenv(name)
        monkeypatch.setenv("HOME", str(tmp_path))

    @pytest.mark.parametrize(("platform", "folder"), [("linux", ".cache"), ("darwin", "Library/Caches")])
    def test_by_default_in_the_cache_folder_of_the_platform(self, monkeypatch, tmp_path, platform, folder):
        monkeypatch.setattr(sys, "platform", platform)
        assert compile_cache.enable(None)
        assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / folder / "dreamer4" / "xla")

    def test_in_the_folder_that_xdg_names(self, monkeypatch, tmp_path):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "mine"))
        compile_cache.enable(None)
        assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / "mine" / "dreamer4" / "xla")

    def test_where_jax_was_told_to_unless_we_are_told_otherwise(self, monkeypatch, tmp_path):
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "gs://bucket/cache")
        assert compile_cache.enable(None)
        assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "gs://bucket/cache"
        assert compile_cache.enable(str(tmp_path))
        assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path)

    def test_nowhere_for_a_user_without_a_home(self, monkeypatch):
        monkeypatch.setattr(os.path, "expanduser", lambda path: path)
        assert not compile_cache.enable(None)
        assert "JAX_COMPILATION_CACHE_DIR" not in os.environ
