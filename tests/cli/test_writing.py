"""A run knows how long it took, in however many pieces."""

import json

import pytest

from dreamer4.errors import InputError
from dreamer4.training.folder import RunFolder
from dreamer4_cli import writing


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path)


@pytest.fixture
def clock(monkeypatch):
    """The time, as the test says."""
    now = [100.0]
    monkeypatch.setattr(writing.time, "monotonic", lambda: now[0])
    return now


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
    monkeypatch.setattr(writing.os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(InputError, match="the first"), writing.clock(folder):
        raise InputError("the first")
