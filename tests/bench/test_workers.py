"""Pieces of work in processes of their own, and how they end."""

import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.units import ONE_THREAD
from benchmarks.workers import Workers
from dreamer4.errors import InputError

from . import pieces


def test_each_piece_has_a_process_to_itself_and_no_more_are_at_work_than_asked_for(tmp_path):
    with Workers(2) as at_work:
        todo, most = ["a", "b", "c"], 0
        while todo or at_work.names:
            while todo and at_work.free:
                name = todo.pop(0)
                at_work.begin(name, pieces.tell, tmp_path, name)
            most = max(most, len(at_work.names))
            assert (tmp_path / at_work.finish()).exists()
    assert most == 2
    assert len({(tmp_path / name).read_text() for name in "abc"} | {str(os.getpid())}) == 4


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the switch")
def test_memory_that_is_freed_stays_with_each_process(tmp_path):
    with Workers(1) as at_work:
        at_work.begin("faults", pieces.allocate, tmp_path, "faults")
        at_work.finish()
    assert int((tmp_path / "faults").read_text()) < 16  # of at least 32 huge pages, or 16,384 small ones


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="needs two cores of Linux"
)
def test_rounding_does_not_depend_on_the_cores_where_a_process_has_one_thread(tmp_path):
    with Workers(3) as at_work:
        at_work.begin("one core", pieces.add, tmp_path, "one core", 1)
        at_work.begin("one thread", pieces.add, tmp_path, "one thread", 2, variables=ONE_THREAD)
        at_work.begin("two threads", pieces.add, tmp_path, "two threads", 2)
        told = {name: (tmp_path / name).read_text() for name in (at_work.finish() for _ in range(3))}
    assert told["one core"] == told["one thread"] != told["two threads"]
    assert "NPROC" not in os.environ


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
    with (
        pytest.raises(InputError, match=r"dreamer seed 3: its process ended without a word.*--workers 1"),
        Workers(1) as at_work,
    ):
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


def bench(folder):
    """Begins a long piece of work as a command of a terminal would, in a process group of its own."""
    code = (
        "import signal, sys; from pathlib import Path; from bench import pieces; from dreamer4.run import stopping\n"
        "from benchmarks.workers import Workers\n"
        "if __name__ == '__main__':\n"
        "    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it\n"
        "    with stopping.installed(), Workers(1) as at_work:\n"
        "        at_work.begin('long', pieces.work, Path(sys.argv[1]), 'long'); at_work.finish()\n"
    )
    script = folder / "command.py"
    script.write_text(code)
    path = os.pathsep.join([str(Path(__file__).parent.parent), *filter(None, sys.path)])
    command = [sys.executable, str(script), str(folder)]
    child = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path}, start_new_session=True)
    wait_for(lambda: (folder / "long").exists())
    return child, int((folder / "long").read_text())


def wait_for(holds):
    for _ in range(1200):
        if holds():
            return
        time.sleep(0.1)
    raise TimeoutError


def gone(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{process}/stat").exists() and ") Z " in Path(f"/proc/{process}/stat").read_text()


def test_ctrl_c_in_a_terminal_which_all_processes_hear_lets_them_save(tmp_path):
    command, worker = bench(tmp_path)
    os.killpg(command.pid, signal.SIGINT)
    try:
        command.wait(120)
    finally:
        command.kill()
    assert (tmp_path / "long.saved").exists() and gone(worker)


def test_where_the_command_is_killed_its_processes_end_after_their_piece(tmp_path):
    command, worker = bench(tmp_path)
    command.kill()
    command.wait(120)
    time.sleep(0.5)
    assert not gone(worker)  # it is at its piece
    os.kill(worker, signal.SIGTERM)
    wait_for(lambda: gone(worker))
    assert (tmp_path / "long.saved").exists()
