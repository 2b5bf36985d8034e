"""Segments of VPT with every defect that recorders and downloads are known for, and what their labels should be."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dreamer4.data.vpt import CONTROLS, TASKS


DEFECTS = (
    "stuck_attack",
    "scroll",
    "extra_frame",
    "missing_frame",
    "null_mouse",
    "null_keyboard",
    "late_stats",
    "carried_stats",
    "gui_jump",
    "mac_scale",
    "unknown_key",
    "f3",
    "broken_line",
    "html_instead_of_mp4",
    "wrong_fps",
    "missing_segment",
)
# Rows of the script, by what happens in them; windows are open in GUI.
ATTACK, GUI, SLOT, LOST, OTHER = range(8, 13), range(20, 30), 40, 15, 34
LATE, EARLIER = 5, 7
_LOG, _PLANKS, _STONE = (
    f"minecraft.{name}"
    for name in ("mine_block:minecraft.oak_log", "craft_item:minecraft.oak_planks", "mine_block:minecraft.stone")
)


@dataclass
class Truth:
    """What was really done in a segment: which controls, turns in degrees, and events as row, task, amount."""

    stem: str
    controls: np.ndarray
    camera: np.ndarray
    yaw: np.ndarray
    events: list


def write_vpt(folder, segments=2, rows=60, seed=0, defects=None, size=(36, 64), session="0123456789ab", frame_lag=0):
    """Writes an index and the segments of one recording.

    Args:
        folder: may exist.
        segments: number of segments, each going on where the one before ended.
        rows: of a segment, at least 50.
        seed: of what the player does.
        defects: names from `DEFECTS` by number of the segment.
        size: height and width of the frames.
        session: 12 hexadecimal digits.
        frame_lag: by how many ticks the film is behind the rows.
    """
    folder, random = Path(folder), np.random.default_rng(seed)
    truths, listed, stats, yaw = [], [], {"minecraft.custom:minecraft.play_one_minute": 1}, 350.0
    for number in range(segments):
        bad = set((defects or {}).get(number, ()))
        assert bad <= set(DEFECTS)
        version = "6.8" if "mac_scale" in bad else "10.0"
        stem = f"some-alias-{session}-20220101-{120000 + number * 300:06d}"
        listed.append(f"data/{version}/{stem}.mp4")
        if "carried_stats" in bad:
            stats = stats | {_LOG: EARLIER}
        table, truth, yaw, stats = _play(rows, random, bad, yaw, stats, number)
        truth.stem = stem
        truths.append(truth)
        if "missing_segment" in bad:
            continue
        place = folder / "data" / version
        place.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(row) for row in table]
        if "broken_line" in bad:
            lines[30] = lines[30][:50]
        (place / f"{stem}.jsonl").write_text("\n".join(lines) + "\n")
        if "html_instead_of_mp4" in bad:
            (place / f"{stem}.mp4").write_text("<?xml version='1.0'?><Error><Code>BlobNotFound</Code></Error>")
            continue
        count = rows + ("extra_frame" in bad) - ("missing_frame" in bad)
        shown = [min(max(t - frame_lag, 0), rows) for t in range(count)]
        windows = [t in GUI for t in shown]
        _film(place / f"{stem}.mp4", truth.yaw[shown], windows, size, 30 if "wrong_fps" in bad else 20)
    (folder / "all_10xx.json").write_text(json.dumps({"basedir": "https://example.org/", "relpaths": listed}))
    return truths


def _play(rows, random, bad, yaw, stats, number):
    """Plays one segment; returns the rows as recorded, what was really done, and where it ended."""
    motion = random.integers(-20, 21, (rows, 2))
    motion[:, 1] = np.where(np.arange(rows) % 2, -1, 1) * abs(motion[:, 1])
    motion[[GUI.start - 1, GUI.stop - 1]] = 0
    down = random.random((rows, 4)) < 0.5
    keys = {"w": "forward", "space": "jump", "a": "left", "left.shift": "sneak"}
    controls, camera = np.zeros((rows, len(CONTROLS)), bool), np.zeros((rows, 2))
    table, events, cursor, pitch, slot, yaws = [], [], np.array([640.0, 360.0]), 0.0, number % 2, [yaw]
    stats = dict(stats)
    for t in range(rows):
        gui, both = t in GUI, t in GUI[:-1]
        happened = {10: (_LOG, 1), 25: (_PLANKS, 4)} | ({0: (_STONE, 1)} if number else {})
        if t in happened:
            name, amount = happened[t]
            stats[name] = stats.get(name, 0) + amount
            events.append(
                (t, TASKS.index({_LOG: "mine_log", _PLANKS: "craft_planks"}.get(name, "mine_cobblestone")), amount)
            )
        pressed = [key for key, is_down in zip(keys, down[t], strict=True) if is_down and not gui]
        for key in pressed:
            controls[t, CONTROLS.index(keys[key])] = True
        if t == GUI.start - 1:
            pressed.append("e")
        if t == GUI.stop - 1:
            pressed.append("escape")
        controls[t, CONTROLS.index("inventory")] = t in (GUI.start - 1, GUI.stop - 1)
        if t == SLOT:
            controls[t, CONTROLS.index(f"hotbar.{slot + 4}")] = True
            pressed += [] if "scroll" in bad else [str(slot + 4)]
        controls[t, CONTROLS.index("attack")] = t in ATTACK
        held = [0] if t in ATTACK or ("stuck_attack" in bad and t < ATTACK.start) else []
        newly = [0] if t == ATTACK.start or ("stuck_attack" in bad and t == 0) else []
        dx, dy = motion[t].tolist()
        if t in GUI:
            camera[t] = np.array([dx, dy]) / 2 * 0.15 * both
        else:
            camera[t] = np.array([dx, dy]) * 0.15
        place = cursor if gui or "gui_jump" not in bad else np.array([900.0, 100.0])
        scale = 0.5 if "mac_scale" in bad and gui else 1
        mouse = {"x": place[0], "y": place[1], "dx": dx * scale, "dy": dy * scale, "dwheel": 0.0}
        mouse |= {"scaledX": place[0] / 2 - 320, "scaledY": place[1] / 2 - 180, "buttons": held, "newButtons": newly}
        if "unknown_key" in bad and t == OTHER:
            pressed.append("p")
            mouse["buttons"] = [*held, 4]
        if "f3" in bad and t == OTHER:
            pressed.append("f3")
        keyboard = {"keys": [f"key.keyboard.{key}" for key in pressed], "newKeys": [], "chars": ""}
        lost = t == LOST
        table.append(
            {
                "mouse": None if lost and "null_mouse" in bad else mouse,
                "keyboard": None if lost and "null_keyboard" in bad else keyboard,
                "isGuiOpen": gui,
                "isGuiInventory": gui,
                "hotbar": slot + 3 * (t > SLOT),
                "yaw": yaws[-1],
                "pitch": pitch,
                "tick": t,
                "milli": 1_650_000_000_000 + (number * rows + t) * 50,
                "inventory": [],
                "stats": {} if "late_stats" in bad and t < LATE else dict(stats),
            }
        )
        if both:
            cursor = cursor + motion[t]
        if not gui:
            pitch += dy * 0.15
        yaws.append(yaws[-1] + (0 if gui else dx * 0.15))
    return table, Truth("", controls, camera, np.array(yaws), events), yaws[-1], stats


def _film(path, yaw, windows, size, rate):
    """Films a wall of random colours that turns with the view, at two pixels a degree, behind an open window."""
    import av

    height, width = size
    wall = np.random.default_rng(0).integers(0, 256, (6, 90, 3), np.uint8).repeat(height // 6, 0).repeat(8, 1)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=rate)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.options = {"crf": "12", "preset": "ultrafast"}
        for angle, window in zip(yaw, windows, strict=True):
            frame = wall[:, (np.arange(width) + round(angle * 2)) % wall.shape[1]].copy()
            if window:
                frame[height // 4 : -height // 4, width // 4 : -width // 4] = 198
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode())
