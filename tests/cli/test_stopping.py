"""Signals at any moment: what was computed is saved, what is left is clean, and the exit code says which it was."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import equal
from training.faults import STEPS, planted, world
from training.faults import source as made

from dreamer4 import checkpoint
from dreamer4.config import load
from dreamer4.data import DatasetInfo
from dreamer4.errors import DivergenceError, InputError
from dreamer4.run import phase, stopping
from dreamer4.run.folder import RunFolder
from dreamer4.run.metrics import MetricLog, read_metrics
from dreamer4.run.phase import Work, mean_over
from dreamer4.training import init_state, loop, stream
from dreamer4.training.loop import step_keys


TERM = signal.SIGTERM


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Waits less, and never ends the process of the tests."""
    monkeypatch.setattr(stopping, "GRACE", 0.2)
    monkeypatch.setattr(stopping, "_leave_now", lambda number: None)


def until(condition):
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextlib.contextmanager
def heard(number):
    """Answers a signal as by default, which a background job of a shell, or of nohup, would ignore."""
    handler = signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(number, handler)


class TestSignals:
    def test_where_nothing_is_at_stake_it_ends_at_once(self):
        with pytest.raises(stopping.Stopped) as caught, stopping.installed():
            signal.raise_signal(TERM)
            pytest.fail("went on")
        assert caught.value.signum == TERM

    @pytest.mark.parametrize("number", stopping.SIGNALS)
    def test_inside_hold_it_waits_for_the_end_of_it(self, monkeypatch, number):
        ended, done = [], []
        monkeypatch.setattr(stopping, "_leave_now", ended.append)
        with heard(number), pytest.raises(stopping.Stopped), stopping.installed(), stopping.hold():
            with stopping.hold():
                signal.raise_signal(number)
                until(stopping.requested)
                assert stopping.signum() == number
            done.append("inner")
        assert (ended, done) == ([], ["inner"])

    def test_with_nothing_to_lose_it_is_ended_from_outside(self, monkeypatch):
        ended = threading.Event()
        monkeypatch.setattr(stopping, "_leave_now", lambda number: ended.set())
        with pytest.raises(stopping.Stopped), stopping.installed(), stopping.hold():
            stopping.losing(False)
            signal.raise_signal(TERM)
            assert ended.wait(300)

    def test_everything_is_as_before_afterwards(self):
        before = [signal.getsignal(number) for number in stopping.SIGNALS]
        with stopping.installed():
            assert [signal.getsignal(number) for number in stopping.SIGNALS] != before
        assert [signal.getsignal(number) for number in stopping.SIGNALS] == before
        assert not stopping.requested()

    def test_what_is_ignored_stays_ignored(self):
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            with stopping.installed():
                signal.raise_signal(signal.SIGINT)
        finally:
            signal.signal(signal.SIGINT, handler)

    def test_who_answers_signals_by_himself_is_left_alone(self, monkeypatch):
        ended, heard = [], []
        monkeypatch.setattr(stopping, "_leave_now", ended.append)
        with stopping.installed():
            signal.signal(TERM, lambda number, frame: heard.append(number))
            signal.raise_signal(TERM)
            time.sleep(0.5)
        assert (ended, heard) == ([], [TERM])

    def test_another_thread_installs_nothing(self):
        def work():
            with stopping.installed():
                found.append([signal.getsignal(number) for number in stopping.SIGNALS])

        found, before = [], [signal.getsignal(number) for number in stopping.SIGNALS]
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert found == [before]


# One instruction of Python that takes long, as compiling is.
SCRIPT = """
    import hashlib, signal, sys, time, types
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from dreamer4.run import stopping
    run = types.ModuleType("dreamer4_cli.run")
    def demo(*args, **kwargs):
        stopping.note("Go on.")
        with stopping.hold():
            stopping.losing({losing})
            print("working", flush=True)
            hashlib.pbkdf2_hmac("sha256", b"", b"", {rounds})
            print("saved", flush=True)
    run.demo = demo
    import dreamer4_cli
    dreamer4_cli.run = sys.modules["dreamer4_cli.run"] = run
    from dreamer4_cli.app import main
    sys.argv = ["dreamer4", "demo"]
    main()
"""


def process(losing, rounds):
    script = textwrap.dedent(SCRIPT).format(losing=losing, rounds=rounds)
    started = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert started.stdout is not None and started.stdout.readline() == "working\n"
    return started


class TestProcess:
    def test_an_instruction_that_never_ends_does_not_hold_up_who_has_nothing_to_lose(self):
        with process(losing=False, rounds=10**9) as started:
            started.send_signal(TERM)
            assert started.communicate(timeout=300) == ("", "Terminated. Go on.\n")
        assert started.returncode == 143

    def test_who_has_something_to_lose_saves_it(self):
        with process(losing=True, rounds=10**6) as started:
            started.send_signal(signal.SIGINT)
            assert started.communicate(timeout=300) == ("saved\n", "Interrupted. Go on.\n")
        assert started.returncode == 130

    def test_a_second_signal_ends_it_at_once(self):
        with process(losing=True, rounds=10**9) as started:
            while started.poll() is None:  # signals that come before the first is answered are one
                started.send_signal(TERM)
                time.sleep(0.2)
            assert started.communicate(timeout=300) == ("", "")
        assert started.returncode == 143


def described():
    """What a data set says of itself; of its eight episodes two are for training."""
    return DatasetInfo.model_construct(
        fingerprint="f" * 64, num_episodes=8, lengths=(1,) * 8, held_out=(0, 1, 2, 3, 4, 6)
    )


def configuration(*overrides):
    """A run of the phase of one number."""
    keys = ["train.save_every=10", "train.log_every=4", "agent.balanced=false"]
    settings = [f"train.dynamics.{x}" for x in (f"steps={STEPS}", "batch_size=2", "length=3")]
    guard = "train.dynamics.guard={window: 16, abort_after: 4}"
    return load("tiny", overrides=[*settings, guard, *keys, *overrides])


@pytest.fixture(scope="module")
def source():
    return made()


@pytest.fixture(scope="module")
def small():
    return world()


@pytest.fixture
def work(tmp_path, source):
    def make(*overrides):
        run = RunFolder(tmp_path)
        return Work(
            configuration(*overrides),
            run,
            source,
            described(),
            MetricLog(run.metrics_file),
            {},
            "dreamer4 train all --resume",
        )

    return make


def trained(work, number, small, saved=None):
    settings, steps = work.config.train.dynamics, work.run.checkpoints("dynamics")
    state = init_state(number, small, settings)
    if saved is not None:
        state = checkpoint.load(steps.path(saved), state)
    with stopping.hold():
        return work.train(number, settings, state, None, steps)


class TestTraining:
    def test_a_stopped_phase_goes_on_to_the_same_end(self, work, small, monkeypatch):
        whole = trained(work("train.save_every=100"), planted({0: 0}), small)
        lines = read_metrics(work().run.metrics_file)

        append = MetricLog.append

        def interrupt(log, phase, step, metrics):
            append(log, phase, step, metrics)
            if step == 24:
                signal.raise_signal(TERM)

        monkeypatch.setattr(MetricLog, "append", interrupt)
        with pytest.raises(stopping.Stopped), stopping.installed():
            trained(work(), planted({0: 0}), small)
        steps = work().run.checkpoints("dynamics")
        # Asked at the end of step 24, it leaves after the next one.
        assert steps.steps() == [10, 20, 25] and checkpoint.verify(steps.path(25)) == []
        assert "saved step 25 of 64" in stopping.message(TERM) and "train all --resume" in stopping.message(TERM)
        assert read_metrics(work().run.metrics_file)[-1]["step"] == 25

        monkeypatch.setattr(MetricLog, "append", append)
        end = trained(work("train.save_every=100"), planted({0: 0}), small, saved=25)
        assert equal(jnp.asarray(end.step), whole.step) and equal(end.guard, whole.guard)
        assert equal(end.model.dynamics.network.gain, whole.model.dynamics.network.gain)
        assert equal(end.ema.dynamics.network.gain, whole.ema.dynamics.network.gain)
        again = read_metrics(work().run.metrics_file)
        assert [r["step"] for r in again] == sorted({*range(4, STEPS + 1, 4), 10, 25})
        told = {r["step"]: r["near"] for r in again}
        assert all(told[r["step"]] == r["near"] for r in lines if r["step"] > 28)

    def test_metrics_are_read_when_the_next_step_runs_already(self, work, small, monkeypatch):
        order = []

        def watched(*args, **kwargs):
            for taken in training(*args, **kwargs):
                order.append("step")
                yield taken

        training = loop.train
        monkeypatch.setattr(phase, "train", watched)
        monkeypatch.setattr(MetricLog, "append", lambda log, name, step, metrics: order.append(step))
        trained(work(), planted({0: 0}), small)
        taken = {entry: order[:i].count("step") for i, entry in enumerate(order) if entry != "step"}
        saves = {*range(10, STEPS, 10), STEPS}
        assert taken == {step: step + (step not in saves) for step in sorted({*range(4, STEPS + 1, 4), *saves})}

    def test_a_signal_in_the_last_step_lets_the_phase_end(self, work, small, monkeypatch):
        append = MetricLog.append

        def interrupt(log, phase, step, metrics):
            append(log, phase, step, metrics)
            if step == STEPS:
                signal.raise_signal(TERM)

        monkeypatch.setattr(MetricLog, "append", interrupt)
        ended = []
        with pytest.raises(stopping.Stopped), stopping.installed(), stopping.hold():
            ended.append(trained(work("train.save_every=100"), planted({0: 0}), small).step)
        assert ended == [STEPS]


class TestDivergence:
    def test_a_run_that_comes_to_nothing_says_where(self, work, small):
        work = work()
        with pytest.raises(DivergenceError, match="step 34.*last checkpoint is .*30") as caught:
            trained(work, planted(dict.fromkeys(range(30, STEPS), 1)), small)
        (file,) = work.run.path.glob("diverged-*.json")
        assert str(file) in str(caught.value)
        told = json.loads(file.read_text())
        assert (told["phase"], told["step"], told["skipped_in_a_row"]) == ("dynamics", 34, 4)
        assert told["last_checkpoint"] == os.path.join("checkpoints", "dynamics", "30")
        assert [step["step"] for step in told["steps"]][-4:] == [31, 32, 33, 34]
        assert [step["metrics"]["near"] for step in told["steps"]][-4:] == ["NaN"] * 4
        # The very rows that step 34 was made of.
        keys = step_keys(stream(work.config.seed, "dynamics"), 33)
        drawn = work.source.draw(2, 3, key=keys[0])
        episodes, frames = drawn.episode, drawn.offset
        rows = [{"episode": (5, 7)[int(e)], "frame": int(f)} for e, f in zip(episodes, frames, strict=True)]
        assert told["steps"][-1]["batch"] == [rows]
        last = read_metrics(work.run.metrics_file)[-1]
        assert (last["step"], last["skipped"]) == (34, 2)

    def test_means_are_of_the_steps_that_were_taken(self):
        steps = [
            {"loss": np.array([1.0, np.nan]), "skipped": np.array([0.0, 1.0]), "skipped_in_a_row": np.zeros(2)},
            {"loss": np.array([3.0, np.nan]), "skipped": np.array([0.0, 1.0]), "skipped_in_a_row": np.zeros(2)},
            {"loss": np.array([9e9, 5.0]), "skipped": np.array([1.0, 0.0]), "skipped_in_a_row": np.zeros(2)},
        ]
        assert mean_over(steps, 2) == {"loss": [2.0, 5.0], "skipped": [1.0, 2.0]}
        (alone,) = ([{name: value[1] for name, value in step.items()} for step in steps[:2]],)
        means = mean_over(alone, 1)
        assert np.isnan(means["loss"]) and means["skipped"] == 2


class TestDisk:
    @pytest.fixture
    def full(self, monkeypatch):
        """A disk that takes no checkpoints but that of step 10."""
        save = checkpoint.steps.save

        def fill(path, tree, **kwargs):
            if path.name != "10":
                raise InputError(f"Cannot save {path}.") from OSError(28, "No space left on device")
            save(path, tree, **kwargs)

        monkeypatch.setattr(checkpoint.steps, "save", fill)

    def test_a_full_disk_ends_a_run_that_says_nothing_else(self, work, small, full):
        with pytest.raises(InputError, match="Step 10 was saved before"):
            trained(work(), planted({0: 0}), small)
        assert read_metrics(work().run.metrics_file)[-1]["step"] == 20

    def test_or_a_warning_is_all(self, work, small, full):
        with pytest.warns(UserWarning, match="Step 10 was saved before.*Training goes on") as told:
            end = trained(work("train.on_save_error=continue"), planted({0: 0}), small)
        assert end.step == STEPS and len(told) == 5
        assert work().run.checkpoints("dynamics").steps() == [10]

    def test_a_log_that_cannot_be_written_stays_whole(self, tmp_path, monkeypatch):
        log = MetricLog(tmp_path / "metrics.jsonl")
        log.append("agent", 1, {"loss": 1.0})
        before = log.path.read_bytes()
        log.path.rename(tmp_path / "moved")
        log.path.mkdir()  # as good as a closed disk
        with pytest.warns(UserWarning, match="Training goes on"):
            log.append("agent", 2, {"loss": 1.0})
        log.path.rmdir()
        (tmp_path / "moved").rename(log.path)
        assert log.path.read_bytes() == before


@pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU"])
def test_a_warning_ends_a_command_in_order_however_often_it_comes(name):
    number = getattr(signal, name)
    with heard(number), pytest.raises(stopping.Stopped) as caught, stopping.installed(), stopping.hold():
        for _ in range(3):
            os.kill(os.getpid(), number)
    assert caught.value.signum == number and name in stopping.message(number)
