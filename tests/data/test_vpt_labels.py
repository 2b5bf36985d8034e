"""Rows of VPT: what recorders got wrong is put right and counted, and what was right stays, bit by bit."""

import json

import numpy as np
import pytest
from vpt_segments import EARLIER, GUI, LATE, LOST, OTHER, write_vpt

from dreamer4.data.vpt import CONTROLS, LADDER, TASKS, Mouse, find_segments, label, read_rows
from dreamer4.data.vpt.actions import unpack
from dreamer4.data.vpt.segments import held_out
from dreamer4.data.vpt.tasks import climb
from dreamer4.errors import InputError


CLEAN = {"escape that closed a window": 1, "cursor drawn in an open window": 10}
CLEAN |= {"cursor put in the middle by a window": 2}


@pytest.fixture
def no_films(monkeypatch):
    pytest.importorskip("av")
    monkeypatch.setattr("vpt_segments._film", lambda path, *_: path.write_bytes(b"film"))


def labelled(folder, **kwargs):
    """Returns labels and truth of each segment that is there."""
    truths = {truth.stem: truth for truth in write_vpt(folder, **kwargs)}
    found, before = [], None
    for segment in find_segments(folder)[0]:
        rows = read_rows(segment.rows)
        found.append((label(rows, segment.version, before), truths[segment.rows.stem]))
        before = rows
    return found


def assert_true(labels, truth, lost=()):
    """Holds labels against what was done, but for rows whose input was lost."""
    kept = np.setdiff1d(np.arange(len(labels)), lost)
    np.testing.assert_array_equal(unpack(labels.controls)[kept], truth.controls[kept])
    np.testing.assert_allclose(labels.camera, truth.camera, atol=1e-4)
    assert labels.known.tolist() == [t not in lost for t in range(len(labels))]


def test_clean_rows_are_labelled_as_played_over_a_seam(no_films, tmp_path):
    for labels, truth in labelled(tmp_path, segments=3):
        assert_true(labels, truth)
        assert labels.events.tolist() == [list(event) for event in truth.events]
        assert labels.repairs == CLEAN
    assert truth.events[0] == (0, TASKS.index("mine_cobblestone"), 1), "the event on the seam"


@pytest.mark.parametrize(
    ("defect", "repair", "number"),
    [
        ("stuck_attack", "attack stuck at the start", 8),
        ("scroll", "slot changed without a key", 1),
        ("gui_jump", None, 0),
        ("mac_scale", "motion in a window scaled by a recorder for Mac", 9),
        ("unknown_key", "key or button that is no control", 1),
        ("f3", "F3 down, with text over the picture", 1),
        ("null_mouse", "mouse or keyboard lost", 1),
        ("null_keyboard", "mouse or keyboard lost", 1),
        ("extra_frame", None, 0),
    ],
)
def test_a_defect_is_repaired_and_counted(no_films, tmp_path, defect, repair, number):
    ((labels, truth),) = labelled(tmp_path, segments=1, defects={0: [defect]})
    assert_true(labels, truth, lost=[LOST] if "null" in defect else [])
    assert labels.repairs == CLEAN | ({repair: number} if repair else {})
    assert OTHER not in GUI


def test_motion_in_a_window_whose_next_cursor_is_lost_is_that_of_the_mouse(no_films, tmp_path):
    write_vpt(tmp_path, segments=1, defects={0: ["mac_scale"]})
    (segment,), _ = find_segments(tmp_path)
    lines = [json.loads(line) for line in segment.rows.read_text().splitlines()]
    straight = label(read_rows(segment.rows), "6.8")
    lines[GUI.start + 3]["mouse"] = None
    segment.rows.write_text("\n".join(json.dumps(line) for line in lines))
    crooked = label(read_rows(segment.rows), "6.8")
    assert np.abs(straight.camera[GUI.start + 2]).max() > 0
    np.testing.assert_allclose(crooked.camera[GUI.start + 2], straight.camera[GUI.start + 2], atol=1e-5)


def test_rows_without_view_and_counters_are_labelled_by_the_mouse(no_films, tmp_path):
    (truth,) = write_vpt(tmp_path, segments=1)
    (segment,), _ = find_segments(tmp_path)
    lines = [json.loads(line) for line in segment.rows.read_text().splitlines()]
    stripped = [{k: v for k, v in line.items() if k not in ("yaw", "pitch", "stats")} for line in lines]
    segment.rows.write_text("\n".join(json.dumps(line) for line in stripped))
    labels = label(read_rows(segment.rows), "10.0")
    assert_true(labels, truth)
    assert not len(labels.events) and labels.repairs["turn told by the mouse alone"] == 59


def test_a_turn_of_half_a_circle_is_no_turn(no_films, tmp_path):
    write_vpt(tmp_path, segments=1)
    (segment,), _ = find_segments(tmp_path)
    lines = [json.loads(line) for line in segment.rows.read_text().splitlines()]
    for line in lines[50:]:
        line["yaw"] += 181
    segment.rows.write_text("\n".join(json.dumps(line) for line in lines))
    labels = label(read_rows(segment.rows), "10.0")
    assert labels.camera[49].tolist() == [0, 0] and labels.repairs["turn by more than 180 degrees"] == 1


def test_counters_that_come_late_or_from_before_are_no_events(no_films, tmp_path):
    ((labels, truth),) = labelled(tmp_path / "carried", segments=1, defects={0: ["carried_stats"]})
    assert EARLIER not in labels.events[:, 2]
    assert labels.events.tolist() == [list(event) for event in truth.events]
    assert labels.repairs["counters carried over from before"] == 1
    (_, (labels, truth)) = labelled(tmp_path / "late", segments=2, defects={1: ["late_stats"]})
    assert labels.repairs["counters told late"] == 1
    assert labels.events.tolist() == [[LATE, *truth.events[0][1:]], *map(list, truth.events[1:])]


def test_nothing_is_an_event_of_a_segment_whose_predecessor_is_missing(no_films, tmp_path):
    (_, (labels, truth)) = labelled(tmp_path, segments=3, defects={1: ["missing_segment"]})
    assert labels.events.tolist() == [list(event) for event in truth.events if event[0] > 0]
    assert find_segments(tmp_path)[1] == [f"{truth.stem[:-6]}120300: neither film nor rows"]


@pytest.mark.parametrize(
    ("line", "change", "told"),
    [
        (30, lambda row: "{", "line 31 of its rows cannot be read"),
        (
            2,
            lambda row: json.dumps({k: v for k, v in row.items() if k != "mouse"}),
            "line 3 of its rows has no entry 'mouse'",
        ),
        (0, lambda row: json.dumps(row | {"hotbar": 9}), "hotbar"),
        (0, lambda row: json.dumps(row | {"yaw": float("inf")}), "2\\^31"),
        (0, lambda row: json.dumps([1]), "line 1 of its rows"),
        (0, lambda row: "[" * 100_000, "line 1 of its rows"),
    ],
)
def test_rows_that_cannot_be_read_are_refused(no_films, tmp_path, line, change, told):
    write_vpt(tmp_path, segments=1)
    (segment,), _ = find_segments(tmp_path)
    lines = segment.rows.read_text().splitlines()
    lines[line] = change(json.loads(lines[line]))
    segment.rows.write_text("\n".join(lines))
    with pytest.raises(InputError, match=told):
        read_rows(segment.rows)


def test_both_spellings_of_an_index_and_a_bare_folder_name_the_same_segments(no_films, tmp_path):
    write_vpt(tmp_path, segments=2)
    index = tmp_path / "all_10xx.json"
    found = find_segments(tmp_path)
    assert len(found[0]) == 2 and found[0][0].recording == "some-alias-0123456789ab"
    told = json.loads(index.read_text())
    told["relpaths"] = [entry.removeprefix("data/").removesuffix(".mp4") for entry in told["relpaths"]]
    index.write_text(json.dumps(told))
    assert find_segments(index) == find_segments(tmp_path) == found
    index.unlink()
    assert find_segments(tmp_path) == found == find_segments(tmp_path / "data" / "10.0")


@pytest.mark.parametrize("text", ['{"relpaths": ["../../etc/passwd"]}', '{"relpaths": 3}', '{"basedir": ""}', "[1"])
def test_an_index_that_is_none_or_leads_elsewhere_is_refused(tmp_path, text):
    path = tmp_path / "index.json"
    path.write_text(text.replace("../../etc", ".."))
    with pytest.raises(InputError, match=r"index\.json"):
        find_segments(path)


def test_a_split_never_cuts_a_recording_and_keeps_what_it_held_out():
    names = [f"player-{n:012x}" for n in range(50)]
    chosen = held_out(names * 3, 0.1)
    assert len(chosen) == 5 and chosen <= set(names)
    assert len(chosen & held_out(names[1:], 0.1)) >= 4
    assert not held_out(names[:1], 0.5) and len(held_out(names[:2], 0.01)) == 1


def test_classes_of_the_mouse_are_those_of_the_paper():
    # Centres and upper edges of bins, worked out by hand from the formula.
    centres = [0, 0.615, 1.609, 3.215, 5.809, 10]
    mouse = Mouse()
    np.testing.assert_allclose(mouse.degrees(np.arange(60, 66))[:, 0], centres, atol=1e-3)
    for number, edge in enumerate([0.27, 1.05, 2.32, 4.36, 7.66]):
        turns = np.array([[edge - 0.02, 0], [edge + 0.02, 0], [0, -edge - 0.02]])
        assert mouse.classes(turns).tolist() == [60 + number, 61 + number, 60 - 11 * (number + 1)]
    np.testing.assert_array_equal(mouse.classes(mouse.degrees(np.arange(121))), np.arange(121))
    np.testing.assert_allclose(Mouse(30, 5).degrees(np.array([61, 64]))[:, 0], [2.586, 19.16], atol=5e-3)
    with pytest.raises(InputError, match="max_degrees"):
        Mouse(0)


def test_controls_and_tasks_are_those_of_the_paper():
    assert len(CONTROLS) == 23 and len(set(CONTROLS)) == 23 and len(TASKS) == 20
    assert {task for task, _ in LADDER} <= set(TASKS) and len(LADDER) == 25


def test_the_ladder_is_climbed_by_the_task_asked_for():
    log, planks = TASKS.index("mine_log"), TASKS.index("craft_planks")
    events = np.array([[0, planks, 20], [1, log, 9], [2, log, 3], [3, planks, 16], [4, log, 1], [5, planks, 4]])
    assert climb(LADDER, events).tolist() == [0, 0, 1, 1, 1, 2]


# Rows as a recorder writes them, one after another: what changes, and below it what the labels must be, bit by bit.
GOLDEN = [
    ({"yaw": -112.35006, "pitch": 8.099996, "hotbar": 4}, ["w", "left.control"], [0], [0]),
    ({"yaw": -112.35006, "pitch": 8.099996, "hotbar": 4}, ["w"], [0], []),
    ({"yaw": -110.40006, "pitch": 7.9499965, "hotbar": 4}, ["space"], [0, 1], [0, 1]),
    ({"yaw": -110.40006, "pitch": 7.9499965, "hotbar": 7, "isGuiOpen": True}, [], [], []),
    ({"yaw": -110.40006, "pitch": 7.9499965, "hotbar": 7, "isGuiOpen": True}, ["escape"], [2], [2]),
    ({"yaw": 79.6, "pitch": 7.9499965, "hotbar": 7}, ["f3", "5"], [], []),
    ({"yaw": 79.6, "pitch": -2.0, "hotbar": 4}, [], [], []),
]
CURSOR = [(640, 360), (640, 360), (640, 360), (640, 360), (652, 345), (652, 345), (640, 360)]


def test_golden_rows(tmp_path):
    lines = []
    for (state, keys, buttons, newly), (x, y) in zip(GOLDEN, CURSOR, strict=True):
        mouse = {"x": x, "y": y, "dx": 3, "dy": -2, "buttons": buttons, "newButtons": newly}
        keyboard = {"keys": [f"key.keyboard.{key}" for key in keys]}
        lines.append(json.dumps({"isGuiOpen": False, "stats": {}} | state | {"mouse": mouse, "keyboard": keyboard}))
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    labels = label(read_rows(tmp_path / "a.jsonl"), "9.0")
    named = [{name for name, down in zip(CONTROLS, row, strict=True) if down} for row in unpack(labels.controls)]
    assert named == [
        {"forward", "sprint"},  # attack is stuck
        {"forward"},
        {"jump", "attack", "use", "hotbar.8"},  # freed; the slot changes in the next frame
        set(),
        {"inventory", "pickItem"},  # escape closes the window
        {"hotbar.5"},
        set(),
    ]
    turns = [[0, 0], [-110.40006 + 112.35006, 7.9499965 - 8.099996], [0, 0], [6 * 0.15, -7.5 * 0.15], [0, 0]]
    turns += [[0, -2.0 - 7.9499965], [3 * 0.15, -2 * 0.15]]
    np.testing.assert_array_equal(labels.camera, np.array(turns).astype(np.float32))
    assert Mouse().classes(labels.camera).tolist() == [60, 62, 60, 39, 60, 5, 50]
    assert not labels.idle.any()
    assert np.isfinite(labels.cursor[:, 0]).tolist() == [False, False, False, True, True, False, False]
