"""A folder that appears whole or not at all, also where several processes make it, or one is killed."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from dreamer4.errors import InputError
from dreamer4.files import check_place, new_folder, write_atomically


# What a process does that is killed in the middle, or waits there until it is told to go on.
MAKE = """
import os, signal, sys
from pathlib import Path
from dreamer4.files import new_folder
with new_folder(Path(sys.argv[1])) as hidden:
    (hidden / "mine").write_text("theirs")
    print("there", flush=True)
    sys.stdin.readline() or os.kill(os.getpid(), signal.SIGKILL)
"""


def other(path):
    """Starts another process that makes the folder, and returns it in the middle of its work."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", MAKE, str(path)], **pipes)
    assert process.stdout.readline() == "there\n"
    return process


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_a_file_is_replaced_whole_by_a_writer_of_its_own_and_stays_where_that_fails(tmp_path, monkeypatch):
    file = tmp_path / "deep" / "file.json"
    write_atomically(file, "old ü")
    replace = Path.replace

    def meanwhile(partial, target):
        assert file.read_text(encoding="utf-8") == "old ü"  # until the last moment
        monkeypatch.setattr(Path, "replace", replace)
        write_atomically(file, b"between")  # by another writer, which must not take this one's file
        return replace(partial, target)

    monkeypatch.setattr(Path, "replace", meanwhile)
    write_atomically(file, "new")
    assert file.read_text() == "new" and names(file.parent) == ["file.json"]
    (tmp_path / "full").mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomically(tmp_path / "full", "new")
    assert names(tmp_path) == ["deep", "full"]


def test_a_folder_appears_at_the_end_of_the_block_and_others_may_read_it(tmp_path):
    path = tmp_path / "deep" / "folder"
    with new_folder(path) as hidden:
        (hidden / "a").touch()
        assert not path.exists() and hidden.name.startswith(".")
    assert names(path.parent) == ["folder"] and names(path) == ["a"]
    (tmp_path / "usual").mkdir()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "usual").stat().st_mode)


def test_a_block_that_raises_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "folder") as hidden:
        (hidden / "a").touch()
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_what_a_killed_process_left_is_removed_and_what_one_still_writes_stays(tmp_path):
    killed, alive = other(tmp_path / "folder"), other(tmp_path / "folder")
    killed.communicate()
    assert len(names(tmp_path)) == 2
    (tmp_path / ".folder.notes.tmp").touch()  # of somebody else
    with new_folder(tmp_path / "folder") as hidden:
        assert len(names(tmp_path)) == 3
        (hidden / "mine").write_text("ours")
    alive.communicate("go on\n")
    assert alive.returncode == 1
    assert names(tmp_path) == [".folder.notes.tmp", "folder"] and (tmp_path / "folder/mine").read_text() == "ours"


@pytest.mark.parametrize("place", ["folder", "file", "link", "file/within"])
def test_a_place_where_no_folder_can_be_made_is_told_before_the_work(tmp_path, place):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    reason = (
        "cannot be made: a part of its path is a file" if place == "file/within" else "exists, and is never overwritten"
    )
    with pytest.raises(InputError, match=f"{place} {reason}"), new_folder(tmp_path / place):
        raise AssertionError("the work was begun")
    assert names(tmp_path) == ["file", "folder", "link"]


def test_a_folder_that_another_took_for_a_leftover_is_made_anew(tmp_path, monkeypatch):
    """Between making a folder and locking it, another process may remove it."""
    opened, first = os.open, []

    def removed_before(folder, flags, *more):
        if not first:
            first.append(Path(folder))
            first[0].rmdir()
        return opened(folder, flags, *more)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", removed_before)
        with new_folder(tmp_path / "folder") as hidden:
            assert hidden != first[0]
    assert names(tmp_path) == ["folder"]


@pytest.mark.parametrize("place", ["file/within", "file/deep/within", "link/within", "x" * 250])
def test_a_place_that_cannot_be_written_is_refused_and_nothing_is_left(tmp_path, place):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="cannot be written"):
        check_place(tmp_path / place)
    check_place(tmp_path / "new" / "deep")
    assert names(tmp_path) == ["file", "link"]
