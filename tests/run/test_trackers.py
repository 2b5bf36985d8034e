"""Trackers show what the log holds, and are refused before any work if they cannot."""

import builtins
import io
import sys
import threading
import types
import warnings
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event

from dreamer4.errors import InputError
from dreamer4.run import trackers
from dreamer4.run.metrics import MetricLog, read_metrics


def events(folder):
    found = []
    for file in sorted(folder.iterdir()):
        content = file.read_bytes()
        while content:
            size = int.from_bytes(content[:8], "little")
            found.append(Event.FromString(content[12 : 12 + size]))
            content = content[16 + size :]
    return found


def values(folder):
    """Returns value by name and step as a viewer sees them, which forgets what a purge names."""
    seen = {}
    for event in events(folder):
        if event.session_log.status == 1:  # START, with the step from which everything older is void
            seen = {key: value for key, value in seen.items() if key[1] < event.step}
        seen |= {(value.tag, event.step): round(value.simple_value, 4) for value in event.summary.value}
    return seen


def test_tensorboard_shows_what_the_log_holds(tmp_path):
    log = MetricLog(tmp_path / "metrics.jsonl", trackers.start("tensorboard", tmp_path, {}))
    log.truncate("agent", 0)
    log.append("agent", 2, {"loss": 0.5, "by_seed": [1.0, 2.0], "word": "x", "bad": float("nan")})
    log.append("agent", 4, {"loss": 0.25})
    log.close()
    shown = {("loss", 2): 0.5, ("by_seed/seed0", 2): 1.0, ("by_seed/seed1", 2): 2.0, ("loss", 4): 0.25}
    assert values(tmp_path / "tensorboard" / "agent") == shown
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [2, 4]


def test_a_resumed_run_takes_back_what_it_writes_again(tmp_path):
    for last in (6, 4):
        log = MetricLog(tmp_path / "metrics.jsonl", trackers.start("tensorboard", tmp_path, {}))
        log.truncate("agent", 2 if last == 4 else 0)
        for step in range(4 if last == 4 else 2, last + 1, 2):
            log.append("agent", step, {"loss": step / last})
        log.close()
    assert values(tmp_path / "tensorboard" / "agent") == {("loss", 2): 0.3333, ("loss", 4): 1.0}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_ends_the_showing_and_not_the_training(tmp_path, monkeypatch):
    def opener(file, *args, opened=io.open, **kwargs):
        return opened("/dev/full" if "tfevents" in str(file) else file, *args, **kwargs)

    for module in (builtins, io):
        monkeypatch.setattr(module, "open", opener)

    def train():
        log = MetricLog(tmp_path / "metrics.jsonl", trackers.start("tensorboard", tmp_path, {}))
        log.truncate("agent", 0)
        for step in range(100):
            log.append("agent", step, {"loss": 0.5})
        log.close()

    thread = threading.Thread(target=train, daemon=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        thread.start()
        thread.join(timeout=300)
    assert not thread.is_alive(), "training waits for the disk"
    (warned,) = caught
    assert "No space left on device" in str(warned.message) and "Training goes on" in str(warned.message)
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == list(range(100))


def test_a_tracker_that_fails_later_is_told_nothing_more(tmp_path):
    class Failing(trackers.AbstractTracker):
        def write(self, phase, step, metrics):
            told.append(step)
            if step == 4:
                raise RuntimeError("the service is gone")

        def truncate(self, phase, step):
            told.append(phase)

        def close(self):
            told.append("closed")

    told = []
    log = MetricLog(tmp_path / "metrics.jsonl", Failing())
    log.truncate("agent", 0)
    log.append("agent", 2, {"loss": 0.5})
    with pytest.warns(UserWarning, match="the service is gone"):
        log.append("agent", 4, {"loss": 0.5})
    log.append("agent", 6, {"loss": 0.5})
    log.close()
    assert told == ["agent", 2, 4]
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [2, 4, 6]


@pytest.fixture
def wandb(monkeypatch):
    """What the package is told, in the place of the package: the arguments of each run, and then its calls."""
    told = []
    run = types.SimpleNamespace(
        define_metric=lambda name, **kwargs: told.append((name, kwargs)),
        log=told.append,
        finish=lambda: told.append("finished"),
    )
    module = types.ModuleType("wandb")
    module.__spec__ = types.SimpleNamespace()
    module.api, module.login = types.SimpleNamespace(api_key="a key"), lambda key=None: True
    module.init = lambda **kwargs: told.append(kwargs) or run
    monkeypatch.setitem(sys.modules, "wandb", module)
    return told


def test_wandb_gets_the_same_stream(tmp_path, wandb):
    trackers.check("wandb")
    log = MetricLog(tmp_path / "run" / "metrics.jsonl", trackers.start("wandb", tmp_path / "run", {"seed": 0}))
    log.append("agent", 2, {"loss": 0.5, "word": "x"})
    log.append("agent", 4, {"loss": 0.25})
    log.close()
    begun, *told = wandb
    assert (begun["name"], begun["config"]) == ("run", {"seed": 0})
    assert told == [
        ("agent/step", {}),
        ("agent/*", {"step_metric": "agent/step"}),
        {"agent/step": 2, "agent/loss": 0.5},
        {"agent/step": 4, "agent/loss": 0.25},
        "finished",
    ]


def test_a_run_that_goes_on_is_one_run_of_wandb(tmp_path, wandb):
    for name in ("run", "run", "other", "run"):
        trackers.start("wandb", tmp_path / name, {})
    first, again, other, last = (kwargs["id"] for kwargs in wandb)
    assert first and first == again == last != other
    assert all(kwargs["resume"] == "allow" for kwargs in wandb)


def test_a_missing_wandb_is_refused(monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"not installed.*\[wandb\]"):
        trackers.check("wandb")
    trackers.check("tensorboard")


def test_without_a_tracker_nothing_is_written_beside_the_log(tmp_path):
    log = MetricLog(tmp_path / "metrics.jsonl", trackers.start("none", tmp_path, {}))
    log.append("agent", 2, {"loss": 0.5})
    log.close()
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("newer", [False, True])
def test_wandb_without_a_key_is_refused_before_work(tmp_path, wandb, monkeypatch, newer):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    monkeypatch.delenv("WANDB_MODE", raising=False)
    sys.modules["wandb"].api.api_key = None
    if newer:
        del sys.modules["wandb"].api
        sys.modules["wandb"].login = lambda *, verify=True, prompt=True: verify or prompt
    with pytest.raises(InputError, match="no key"):
        trackers.check("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    trackers.check("wandb")


def test_what_wandb_refuses_is_told_in_words(tmp_path, wandb, monkeypatch):
    def refuse(**kwargs):
        raise RuntimeError("no such project")

    sys.modules["wandb"].init = refuse
    with pytest.raises(InputError, match="does not start: no such project"):
        trackers.start("wandb", tmp_path, {})
