"""What the recorder of Luanti writes, read back as recordings of VPT: with a game that is only a turning picture."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import EXAMPLES

from dreamer4.data import VptReader
from dreamer4.data.vpt import CONTROLS


pytest.importorskip("av")
ROWS = 60
WINDOW = range(40, 50)


@pytest.fixture
def recorder(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES / "luanti"))
    import record

    yield record
    for name in ("record", "players", "game"):
        sys.modules.pop(name, None)


def test_rows_and_film_are_read_as_they_were_played(recorder, tmp_path):
    random = np.random.default_rng(0)
    scene = np.repeat(random.integers(0, 256, (360, 200, 3)).astype(np.uint8), 8, axis=1)  # a pixel to 0.1 degrees
    game = SimpleNamespace(pos=np.array([1.0, 2.0, 3.0]), slot=2, things={0: ("oak_log", 3)}, yaw=0.0, pitch=5.0)
    segment, before, motion = (
        recorder.Segment(tmp_path / "some-0123456789ab-20260101-120000.jsonl"),
        recorder.Input(),
        [],
    )
    for t in range(ROWS + 1):
        game.window, game.cursor = ("table" if t in WINDOW else None), (320, 180)
        game.stats = {"minecraft.mine_block:minecraft.oak_log": 2} if t >= 20 else {}
        game.frame = np.roll(scene, round(game.yaw * 10), axis=1)[:, :640]
        if t == ROWS:
            break
        dx = 0 if t in WINDOW or t + 1 in WINDOW else int(random.integers(-20, 21))
        given = recorder.Input({"w", "left.shift"} if t % 3 else set(), {0} if t > 5 else set(), dx)
        segment.add(game.frame, recorder.row(game, given, before, t, 10**12))
        before = given
        motion.append(dx)
        game.yaw -= dx * 0.15  # to the left
    segment.close(game.frame)
    reader = VptReader(tmp_path, size=(18, 32))
    (labels,) = reader.labels
    assert reader.lengths.tolist() == [ROWS + 1] and not any("left out" in line for line in reader.findings)
    np.testing.assert_allclose(labels.camera[:, 0], np.array(motion) * 0.15, atol=1e-5)
    down = {name: labels.controls >> n & 1 for n, name in enumerate(CONTROLS)}
    np.testing.assert_array_equal(down["forward"], np.arange(ROWS) % 3 > 0)
    np.testing.assert_array_equal(down["sneak"], down["forward"])
    np.testing.assert_array_equal(down["attack"], np.arange(ROWS) > 5)
    assert np.flatnonzero(reader.window(0, 0, ROWS).reward).tolist() == [20]
    np.testing.assert_array_equal(np.isfinite(labels.cursor[:, 0]), np.isin(np.arange(ROWS), WINDOW))
    assert not list(tmp_path.glob("*.part"))
