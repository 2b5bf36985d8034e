"""Recordings of VPT as they lie on disk: windows on our clock, and what cannot be used left out by name."""

import json

import numpy as np
import pytest
from vpt_segments import DEFECTS, GUI, LOST, write_vpt

from dreamer4.data import VptReader, find_problems, open_reader, read_episodes, read_info
from dreamer4.data.vpt import TASKS, Mouse
from dreamer4.data.vpt.lag import find_lag, shifts
from dreamer4.errors import InputError


pytest.importorskip("av")

REFUSED = {
    "missing_frame": "its film has 59 frames, expected 60",
    "broken_line": "line 31 of its rows cannot be read",
    "html_instead_of_mp4": "it cannot be decoded",
    "wrong_fps": "its film has 30 frames a second",
    "missing_segment": "neither film nor rows",
}


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """Returns a reader of a clean segment and one of each defect, and the truth of each by name."""
    folder = tmp_path_factory.mktemp("vpt")
    truths = write_vpt(folder, segments=1 + len(DEFECTS), defects={n: [d] for n, d in enumerate(DEFECTS, 1)})
    return VptReader(folder), dict(zip(("clean", *DEFECTS), truths, strict=True))


def test_every_defect_is_repaired_or_refused_by_name(everything):
    reader, truths = everything
    assert len(reader) == 1 + len(DEFECTS) - len(REFUSED)
    for defect, why in REFUSED.items():
        (told,) = [line for line in reader.findings if truths[defect].stem in line]
        assert why in told
    kept = [name for name in truths if name not in REFUSED]
    for episode, name in enumerate(kept):
        length, truth = int(reader.lengths[episode]), truths[name]
        assert length == 60 + (name == "extra_frame")
        window = reader.window(episode, 0, length)
        known = np.ones(length, bool)
        known[[0, LOST + 1] if "null" in name else [0]] = False
        np.testing.assert_array_equal(window.action_mask, known)
        taken = np.flatnonzero(known)
        np.testing.assert_array_equal(window.discrete[taken, :23], truth.controls[taken - 1])
        np.testing.assert_array_equal(window.discrete[taken, 23], Mouse().classes(truth.camera[taken - 1]))


def test_windows_are_parts_of_the_whole_and_show_what_the_rows_tell(everything):
    reader, truths = everything
    whole = reader.window(0, 0, 60)
    assert whole.frame.shape == (60, 36, 64, 3)
    for start, length in ((0, 1), (17, 20), (59, 1)):
        part = reader.window(0, start, length)
        for name in ("frame", "discrete", "action_mask", "reward"):
            np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[start : start + length])
    tip = whole.frame[GUI.start, 18, 32]  # a window opens with the pointer in the middle
    assert tip.max() < 100, "the pointer is drawn in an open window"
    turned = shifts(whole.frame)
    outside = np.array([t not in GUI and t + 1 not in GUI for t in range(59)])
    expected = np.diff(np.round(truths["clean"].yaw[:60] * 2))
    np.testing.assert_array_equal(turned[outside], expected[outside])


def test_rewards_are_events_in_the_frame_that_shows_them(everything, tmp_path):
    reader, _ = everything
    assert np.flatnonzero(reader.window(0, 0, 60).reward).tolist() == [10, 25]
    write_vpt(tmp_path, segments=2)
    logs = VptReader(tmp_path, task="mine_log")
    assert np.flatnonzero(logs.window(1, 0, 60).reward).tolist() == [10] and logs.relevant.all()
    assert not VptReader(tmp_path, task="mine_diamond").relevant.any()
    with pytest.raises(InputError, match="mine_diamond"):
        VptReader(tmp_path, task="mine_diamonds")
    assert {line.split(" x ")[1] for line in logs.findings if "mine_" in line} <= set(TASKS)


def test_an_event_on_a_seam_is_found_whatever_the_order_of_the_index(tmp_path):
    write_vpt(tmp_path, segments=2, rows=50)
    index = tmp_path / "all_10xx.json"
    told = json.loads(index.read_text())
    index.write_text(json.dumps(told | {"relpaths": told["relpaths"][::-1]}))
    reader = VptReader(tmp_path)
    assert [labels.events[0, 0] for labels in reader.labels] == [0, 10]


@pytest.mark.parametrize("lag", [1, -1])
def test_a_film_out_of_step_with_its_rows_is_refused(tmp_path, lag):
    write_vpt(tmp_path, segments=1, rows=120, frame_lag=lag)
    with pytest.raises(InputError, match=f"1 ticks {'behind' if lag > 0 else 'before'} its rows"):
        VptReader(tmp_path)


def test_a_film_that_cannot_be_decoded_is_left_out(tmp_path):
    write_vpt(tmp_path, segments=2, rows=120)
    film = sorted(tmp_path.rglob("*.mp4"))[0]
    data = bytearray(film.read_bytes())
    at = data.index(b"mdat") + 400
    data[at : at + 3000] = bytes(3000)
    film.write_bytes(data)
    reader = VptReader(tmp_path)
    assert len(reader) == 1 and any(film.stem in line for line in reader.findings)


def test_a_view_that_never_turns_tells_no_lag():
    frames = np.random.default_rng(0).integers(0, 256, (41, 8, 16, 3), np.uint8)
    assert find_lag(frames, np.zeros(40), np.zeros(40, bool)) is None


@pytest.mark.parametrize(("noise", "lag"), [(1.5, 0), (0.0, 1)])
def test_a_lag_is_told_only_where_it_fits_clearly_better_than_none(monkeypatch, noise, lag):
    random = np.random.default_rng(0)
    slow = np.convolve(random.normal(size=240), np.ones(20) / 20, "valid")[:200]  # alike from tick to tick
    turn = slow if noise else random.normal(size=200)
    shown = np.roll(turn, 1) + noise * slow.std() * random.normal(size=200)
    monkeypatch.setattr("dreamer4.data.vpt.lag.shifts", lambda frames: shown)
    assert find_lag(np.zeros((201, 1, 1, 3), np.uint8), turn, np.zeros(200, bool)) == lag


def test_recordings_are_split_whole_and_labels_cut_by_hours(tmp_path):
    for number in range(4):
        write_vpt(tmp_path / "in" / str(number), segments=2, rows=50, session=f"{number:012x}")
    for index in tmp_path.rglob("*.json"):
        index.unlink()
    folder = tmp_path / "in"
    parts = [open_reader(folder, split) for split in ("train", "held_out")]
    assert [len(part) for part in parts] == [6, 2] and parts[0].fingerprint != parts[1].fingerprint
    few = open_reader(folder, "all", label_hours=100 / 20 / 3600, size=(18, 32))
    assert [few.window(e, 0, 50).action_mask.any() for e in range(8)] == [True, True] + [False] * 6
    assert few.window(0, 0, 2).frame.shape == (2, 18, 32, 3) == (2, *few.spec.frame_shape)
    with pytest.raises(InputError, match="Did you mean label_hours"):
        open_reader(folder, label_hour=3)


def test_a_single_recording_is_not_cut_for_a_split(tmp_path):
    write_vpt(tmp_path, segments=2, rows=50)
    assert len(open_reader(tmp_path)) == 2
    with pytest.raises(InputError, match="Add another recording"):
        open_reader(tmp_path, "held_out")


def test_an_index_is_data_and_its_text_tells_what_was_repaired(tmp_path, capsys):
    from dreamer4_cli import describe

    write_vpt(tmp_path, segments=2, rows=50, defects={0: ["scroll"], 1: ["wrong_fps"]})
    describe.check_data(tmp_path / "all_10xx.json", {"size": [18, 32]})
    told = " ".join(capsys.readouterr().out.split())
    assert "(18, 32, 3)" in told and "1 x slot changed without a key" in told and "30 frames a second" in told
    (tmp_path / "other.json").write_text(json.dumps({"a": 1}))
    with pytest.raises(InputError, match="no format"):
        open_reader(tmp_path / "other.json")


def test_a_file_names_data_and_how_it_is_read_and_describes_it_as_ours(tmp_path):
    for number in range(2):
        write_vpt(tmp_path / "in" / str(number), segments=1, rows=50, session=f"{number:012x}")
    named = tmp_path / "logs.yaml"
    named.write_text("path: in\nsize: [18, 32]\ntask: mine_log\n")
    info, reader = read_info(named), open_reader(named, "all")
    assert info.frame_shape == (18, 32, 3) and info.lengths == (50, 50) and info.returns == (1.0, 1.0)
    assert [sum(counts) for counts in info.action_counts] == [98] * 24
    (train,), (held_out,) = read_episodes(named, "train"), read_episodes(named, "held_out")
    assert find_problems(train, info.spec) == [] == find_problems(held_out, info.spec)
    np.testing.assert_array_equal(held_out.frame, reader.window(info.held_out[0], 0, 50).frame)
    assert open_reader(named, "train").fingerprint == info.part("train") != info.part("held_out")
    assert open_reader(named, "all") is reader, "what has not changed is not opened twice"
    named.write_text("path: in\nsize: [9, 16]\n")
    assert read_info(named).frame_shape == (9, 16, 3)
    write_vpt(tmp_path / "in" / "2", segments=1, rows=50, session=f"{2:012x}")
    assert len(read_info(named).lengths) == 3
    named.write_text("size: [9, 16]\n")
    with pytest.raises(InputError, match="names no data"):
        read_info(named)
