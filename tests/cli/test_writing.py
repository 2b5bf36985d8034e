"""One process at a time writes to a run, which knows how long it took, in however many pieces."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dreamer4.config import load
from dreamer4.errors import InputError
from dreamer4.run import writing
from dreamer4.run.folder import RunFolder
from dreamer4.run.stages import AbstractStage, execute


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path)


@pytest.fixture
def clock(monkeypatch):
    """The time, as the test says."""
    now = [100.0]
    monkeypatch.setattr(writing.time, "monotonic", lambda: now[0])
    return now


HOLDER = """
import sys, time
from pathlib import Path
from dreamer4.run.folder import RunFolder
from dreamer4.run import writing
with writing.alone(RunFolder(Path(sys.argv[1]))):
    print("writing", flush=True)
    time.sleep(600)
"""


def test_a_run_has_one_writer_until_that_one_ends_or_dies(folder):
    with writing.alone(folder):
        with pytest.raises(InputError, match="another process writes to this run"), writing.alone(folder):
            pytest.fail("two write")
    other = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder.path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None and other.stdout.readline() == "writing\n"
        with pytest.raises(InputError, match="another process writes to this run"), writing.alone(folder):
            pytest.fail("two write")
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait(60)
    with writing.alone(folder):
        pass


def test_of_several_processes_the_first_keeps_others_out_for_all(folder, monkeypatch):
    with writing.alone(folder), monkeypatch.context() as patched:
        patched.setattr(writing.processes, "first", lambda: False)
        with writing.alone(folder):
            pass


@pytest.mark.parametrize("lacking", ["module", "disk"])
def test_where_there_are_no_locks_a_run_goes_on_without(folder, monkeypatch, lacking):
    if lacking == "module":
        monkeypatch.setattr(writing, "fcntl", None)
    else:
        monkeypatch.setattr(writing.fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(37, "No locks available")))
    with writing.alone(folder), writing.alone(folder):
        pass


class Refused(AbstractStage):
    def __call__(self, session):
        pytest.fail("began")


def test_a_second_process_is_refused_before_it_writes(folder):
    config = load("tiny")
    folder.open(config)
    with writing.alone(folder), pytest.raises(InputError, match="another process writes to this run"):
        execute(config, folder.path, (Refused(),), resume=True)
    assert sorted(file.name for file in folder.path.iterdir()) == ["config.yaml", "lock"]


def test_seconds_of_interrupted_pieces_add_up(folder, clock):
    with pytest.raises(KeyboardInterrupt), writing.clock(folder) as seconds:
        clock[0] += 90.0
        assert seconds() == 90.0
        raise KeyboardInterrupt
    clock[0] += 1000.0  # nobody works
    with writing.clock(folder) as seconds:
        clock[0] += 30.0
        assert seconds() == 120.0
    assert float(folder.seconds_file.read_text()) == 120.0


def test_a_finished_run_that_kept_no_count_goes_on_from_its_results(folder, clock):
    folder.results_file.write_text(json.dumps({"minutes": 2.0}))
    with writing.clock(folder) as seconds:
        clock[0] += 3.0
        assert seconds() == 123.0


def test_a_count_that_is_none_is_refused(folder):
    folder.seconds_file.write_text("soon")
    with pytest.raises(InputError, match=r"seconds\.txt: got 'soon', expected a number"), writing.clock(folder):
        pass


def test_a_full_disk_hides_no_message(folder, monkeypatch):
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(InputError, match="the first"), writing.clock(folder):
        raise InputError("the first")
