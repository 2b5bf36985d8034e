"""Several processes: what does not fit together is refused, and two that train together are as good as one."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cli.test_stopping import configuration, described, trained
from training.faults import STEPS, planted, source, world

from dreamer4.config import load
from dreamer4.dreamer import PHASES
from dreamer4.errors import InputError
from dreamer4.run import processes
from dreamer4.run.folder import RunFolder
from dreamer4.run.metrics import MetricLog, read_metrics
from dreamer4.run.phase import Work
from dreamer4.run.reporter import SILENT
from dreamer4.run.stages import Session, resume_command
from dreamer4_cli.console import invoked


TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ((None, 2, None), "--processes: given without --coordinator"),
        ((None, None, 1), "--process: given without --coordinator"),
        (("auto", 2, 1), "--processes and --process: given with --coordinator auto"),
        (("10.0.0.1:1234", None, None), "expected --processes and --process"),
        (("10.0.0.1:1234", 2, None), "expected --processes and --process"),
        (("10.0.0.1", 2, 0), "HOST:PORT"),
        (("10.0.0.1:http", 2, 0), "HOST:PORT"),
        ((":1234", 2, 0), "HOST:PORT"),
        (("10.0.0.1:1234", 2, 2), "expected 0 to 1"),
    ],
)
def test_what_does_not_fit_together_is_refused(given, match):
    with pytest.raises(InputError, match=match), processes.joined(*given):
        pytest.fail("went on")


def test_alone_nothing_is_waited_for():
    with processes.joined(None, None, None):
        assert processes.first() and not processes.several()
        processes.wait("nobody")
        vote = processes.Vote()
        assert [vote.any(wish) for wish in (False, True, False)] == [False, True, False]


def test_several_do_not_collect(monkeypatch, tmp_path):
    monkeypatch.setattr(processes, "several", lambda: True)
    with pytest.raises(InputError, match="dreamer4 collect --out"):
        Session(load("tiny"), RunFolder(tmp_path), SILENT, "again", PHASES, seconds=float).dataset()
    assert list(tmp_path.iterdir()) == []


def test_the_command_to_go_on_is_called_as_this_one_was_and_names_the_hardware(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    folder.open(load("tiny"))
    monkeypatch.setattr("sys.argv", ["elsewhere/.venv/bin/dreamer4"])  # of no shell's path
    line = f"elsewhere/.venv/bin/dreamer4 train agent --run {tmp_path} --resume"
    assert resume_command(f"{invoked()} train agent", folder, load("tiny")) == line
    monkeypatch.setattr("shutil.which", lambda name: f"elsewhere/.venv/bin/{name}")
    moved = load("tiny", overrides=["train.mesh.data=4", "dynamics.transformer.remat=true"])
    assert resume_command(f"{invoked()} train all", folder, moved) == (
        f"dreamer4 train all --run {tmp_path} --resume --set dynamics.transformer.remat=true --set train.mesh.data=4"
    )


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two processes of `two_processes.py` said and left."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    script = [sys.executable, str(TESTS / "cli" / "two_processes.py"), str(folder), str(port)]
    started = [subprocess.Popen([*script, str(i)], env=env, stderr=subprocess.PIPE, text=True) for i in range(2)]
    errors = [started[0].communicate(timeout=300)[1]]
    errors.append(started[1].communicate(timeout=300)[1])
    told = [[json.loads(line) for line in text.splitlines() if line.startswith("{")] for text in errors]
    assert all(told), "\n".join(text[-3000:] for text in errors)
    return {
        "folder": folder,
        "told": [line[0] for line in told],
        "codes": [process.returncode for process in started],
        "logs": [read_metrics(folder / f"run-{i}.jsonl") for i in range(2)],
        "lost": read_metrics(folder / "lost-1.jsonl"),
    }


def losses(log):
    return {line["step"]: (line["near"], line["gradient_norm"], line["skipped"]) for line in log}


def test_both_tell_the_losses_of_one(two, tmp_path):
    config = configuration("train.dynamics.batch_size=4")
    log = MetricLog(tmp_path / "metrics.jsonl")
    alone = Work(config, RunFolder(tmp_path), source(), described(), log, {}, "again")
    trained(alone, planted({12: 1}), world())
    first, second = map(losses, two["logs"])
    assert first == second
    expected = {step: told for step, told in losses(read_metrics(log.path)).items() if step in first}
    assert len(expected) > 15 and expected[STEPS][0] < expected[4][0] and expected[16][2] == 1
    for step, told in expected.items():
        # Where one left off its steps are told apart, so a line of the others may be of fewer.
        if step not in (28, 30):
            np.testing.assert_allclose(first[step], told, rtol=1e-6)


def test_a_signal_to_one_stops_both_at_the_same_step(two):
    first, second = two["told"]
    assert first == second == {"whole": True, "stopped": 15, "steps": first["steps"]}
    assert 25 <= first["steps"][-1] <= 30
    assert RunFolder(two["folder"] / "run").checkpoints("dynamics").latest_valid() is not None


def test_who_loses_the_other_ends(two):
    assert two["codes"][0] == 9 and two["codes"][1] not in (0, None)
    assert two["lost"][-1]["step"] < STEPS


def test_auto_without_a_scheduler_is_refused(monkeypatch):
    def nobody(*args, **kwargs):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr("jax.distributed.initialize", nobody)
    with pytest.raises(InputError, match="auto: no scheduler"), processes.joined("auto", None, None):
        pytest.fail("went on")


def test_a_port_that_is_taken_is_refused():
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        with pytest.raises(InputError, match="cannot be used here"):
            processes._check_port(f"127.0.0.1:{other.getsockname()[1]}")


def test_processes_of_different_settings_refuse_each_other(monkeypatch):
    monkeypatch.setattr(processes, "several", lambda: True)
    monkeypatch.setattr("jax.process_count", lambda: 2)
    other = np.zeros(2, np.uint32)
    monkeypatch.setattr(
        "jax.experimental.multihost_utils.process_allgather", lambda mine: np.stack([mine, theirs(mine)])
    )
    theirs = lambda mine: mine  # noqa: E731
    processes.agree(load("tiny"))
    theirs = lambda mine: other  # noqa: E731
    with pytest.raises(InputError, match="Processes 1 of 2 were started with other settings"):
        processes.agree(load("tiny"))


def test_who_waits_in_vain_says_so():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = (
        f"from dreamer4.run import processes\nprocesses.JOINING = 1\n"
        f"with processes.joined('127.0.0.1:{port}', 2, 0): raise AssertionError('alone')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=200)
    assert done.returncode == 2, done.stderr
    assert "did not find each other within 1 s" in done.stderr and "Traceback" not in done.stderr
