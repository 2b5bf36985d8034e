"""Pieces of work in processes of their own, and how they end."""

import os
import time

import pytest

from dreamer4.errors import InputError
from dreamer4_cli.bench.workers import Workers

from . import pieces


def test_each_piece_has_a_process_to_itself_and_no_more_are_at_work_than_asked_for(tmp_path):
    with Workers(2) as at_work:
        todo, most = ["a", "b", "c"], 0
        while todo or at_work.names:
            while todo and at_work.free:
                name = todo.pop(0)
                at_work.begin(name, pieces.tell, tmp_path, name)
            most = max(most, len(at_work.names))
            for name in at_work.finish():
                assert (tmp_path / name).exists()
    assert most == 2
    assert len({(tmp_path / name).read_text() for name in "abc"} | {str(os.getpid())}) == 4


def test_what_one_raises_ends_the_others_which_save_first(tmp_path):
    began = time.monotonic()
    with pytest.raises(ValueError, match="this piece fails"), Workers(2) as at_work:
        at_work.begin("long", pieces.work, tmp_path, "long")
        at_work.begin("wrong", pieces.fail, tmp_path, "long")
        while True:
            at_work.finish()
    assert (tmp_path / "long.saved").exists()
    assert time.monotonic() - began < 120  # not the ten minutes of the long one
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "long").read_text()), 0)


def test_a_process_that_is_killed_is_told_by_its_name(tmp_path):
    with pytest.raises(InputError, match=r"dreamer seed 3: its process was killed.*--workers 1"), Workers(1) as at_work:
        at_work.begin("dreamer seed 3", pieces.die, tmp_path, "dead")
        at_work.finish()
    assert (tmp_path / "dead").exists()


def test_leaving_ends_what_has_only_just_begun(tmp_path):
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), Workers(3) as at_work:
        for name in "abc":
            at_work.begin(name, pieces.work, tmp_path, name)
        raise KeyboardInterrupt
    assert time.monotonic() - began < 120
