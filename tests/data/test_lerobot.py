"""LeRobot data sets of versions 2.1 and 3.0, written here by their description, and what is read of them."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from dreamer4.data import open_reader
from dreamer4.errors import InputError


av = pytest.importorskip("av")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

LENGTHS, FPS, TASKS = (5, 9, 6), 30, ("push the block", "lift it")
TOP, SIDE = "observation.images.top", "observation.images.side"
RANDOM = np.random.default_rng(0)
ACTIONS = [RANDOM.uniform(-3, 5, (n, 2)).astype(np.float32) for n in LENGTHS]
LOW, HIGH = (reduce(np.concatenate(ACTIONS), axis=0) for reduce in (np.min, np.max))


def levels(camera, episode):
    """Returns the grey level of each frame of an episode, as one camera sees it."""
    return 20 + 70 * episode + 8 * np.arange(LENGTHS[episode]) + 3 * (camera == SIDE)


def film(path, episodes, camera, codec):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=FPS)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        stream.options = {"crf": "10", "g": "4"} | ({"preset": "12"} if "av1" in codec else {})
        for level in np.concatenate([levels(camera, e) for e in episodes]):
            picture = np.full((64, 96, 3), level, np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())


def table(episodes, images=False):
    rows = {"action": [], "next.reward": [], "next.success": [], "task_index": []}
    rows |= {"episode_index": [], "frame_index": []} | ({TOP: []} if images else {})
    for e in episodes:
        n = LENGTHS[e]
        rows["action"] += ACTIONS[e].tolist()
        rows["next.reward"] += [0.0] * (n - 2) + [0.25, 1.0 * e]
        rows["next.success"] += [False] * (n - 1) + [e == 1]
        rows["task_index"] += [e % 2] * n
        rows["episode_index"] += [e] * n
        rows["frame_index"] += list(range(n))
        for level in levels(TOP, e) if images else ():
            file = io.BytesIO()
            Image.fromarray(np.full((64, 96, 3), level, np.uint8)).save(file, "PNG")
            rows[TOP].append({"bytes": file.getvalue(), "path": None})
    return pa.table(rows)


def write(folder, version, codec="libx264", images=False):
    """Writes the data set; version 3 with two episodes in its first table and film, one in its second."""
    modern, files = version == "v3.0", ((0, 1), (2,))
    kinds = {TOP: "image"} if images else {TOP: "video", SIDE: "video"}
    features = {"action": {"dtype": "float32", "shape": [2]}}
    features |= {camera: {"dtype": kind, "shape": [64, 96, 3]} for camera, kind in kinds.items()}
    info = {"codebase_version": version, "fps": FPS, "features": features, "chunks_size": 1000}
    meta = folder / "meta"
    meta.mkdir(parents=True)
    (meta / "info.json").write_text(json.dumps(info))
    stats = {"action": {"min": LOW.tolist(), "max": HIGH.tolist(), "q01": [-2.0, -2.0], "q99": [2.0, 2.0]}}
    if not modern:
        for e in range(len(LENGTHS)):
            name = f"episode_{e:06d}"
            (folder / "data/chunk-000").mkdir(parents=True, exist_ok=True)
            pq.write_table(table([e], images), folder / f"data/chunk-000/{name}.parquet")
            for camera in () if images else kinds:
                film(folder / f"videos/chunk-000/{camera}/{name}.mp4", [e], camera, codec)
        lines = {
            "episodes": [{"episode_index": e, "tasks": [TASKS[e % 2]], "length": n} for e, n in enumerate(LENGTHS)],
            "tasks": [{"task_index": i, "task": task} for i, task in enumerate(TASKS)],
            "episodes_stats": [
                {"episode_index": e, "stats": {"action": {"min": a.min(0).tolist(), "max": a.max(0).tolist()}}}
                for e, a in enumerate(ACTIONS)
            ],
        }
        for name, entries in lines.items():
            (meta / f"{name}.jsonl").write_text("\n".join(map(json.dumps, entries)) + "\n")
        return folder
    (meta / "stats.json").write_text(json.dumps(stats))
    pq.write_table(pa.table({"task_index": [0, 1], "__index_level_0__": list(TASKS)}), meta / "tasks.parquet")
    entries = []
    for number, episodes in enumerate(files):
        (folder / "data/chunk-000").mkdir(parents=True, exist_ok=True)
        with pq.ParquetWriter(folder / f"data/chunk-000/file-{number:03d}.parquet", table([0], images).schema) as out:
            for e in episodes:
                out.write_table(table([e], images))  # a row group an episode
        for camera in () if images else kinds:
            film(folder / f"videos/{camera}/chunk-000/file-{number:03d}.mp4", episodes, camera, codec)
        first = 0
        for e in episodes:
            entry = {"episode_index": e, "length": LENGTHS[e], "data/chunk_index": 0, "data/file_index": number}
            for camera in kinds:
                # Seconds as they come about in float32, just below a frame.
                at = {"chunk_index": 0, "file_index": number, "from_timestamp": float(np.float32(first / FPS)) - 1e-4}
                entry |= {f"videos/{camera}/{name}": value for name, value in at.items()}
            entries.append(entry)
            first += LENGTHS[e]
    (meta / "episodes/chunk-000").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(entries), meta / "episodes/chunk-000/file-000.parquet")
    return folder


def assert_read(reader, camera):
    assert reader.lengths.tolist() == list(LENGTHS) and reader.tasks == TASKS
    assert reader.task.tolist() == [0, 1, 0] and reader.is_terminal.tolist() == [False, True, False]
    assert reader.spec.action.continuous_dim == 2 and reader.spec.num_tasks == 2
    for e, n in enumerate(LENGTHS):
        whole = reader.window(e, 0, n)
        np.testing.assert_allclose(whole.frame.mean(axis=(1, 2, 3)), levels(camera, e), atol=3)
        scaled = 2 * (ACTIONS[e].astype(float) - LOW) / (HIGH - LOW).astype(float) - 1
        np.testing.assert_allclose(whole.continuous[1:], scaled[:-1], atol=1e-6)
        assert whole.action_mask.tolist() == [False] + [True] * (n - 1)
        assert whole.reward.tolist() == [0] * (n - 1) + [0.25 + e]
        part = reader.window(e, 2, 3)
        np.testing.assert_array_equal(part.frame, whole.frame[2:5])
        np.testing.assert_array_equal(part.continuous, whole.continuous[2:5])


@pytest.mark.parametrize(("version", "codec"), [("v2.1", "libx264"), ("v3.0", "libx264"), ("v3.0", "libsvtav1")])
def test_both_versions_and_codecs_are_read_alike(tmp_path, version, codec):
    if codec not in av.codecs_available:
        pytest.skip(f"no {codec} here")
    write(tmp_path, version, codec)
    assert_read(open_reader(tmp_path, "all", camera=SIDE), SIDE)


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_pictures_in_tables_are_frames(tmp_path, version):
    assert_read(open_reader(write(tmp_path, version, images=True), "all"), TOP)


def test_a_camera_is_chosen_by_name_and_actions_by_quantiles(tmp_path):
    write(tmp_path, "v3.0")
    with pytest.raises(InputError, match=f"{TOP}, {SIDE}. Choose one"):
        open_reader(tmp_path)
    with pytest.raises(InputError, match=f"Did you mean.*{TOP}"):
        open_reader(tmp_path, camera=TOP[:-1])
    reader = open_reader(tmp_path, "all", camera=TOP, quantiles=True, size=(32, 48))
    expected = np.clip(ACTIONS[1] / 2, -1, 1)[:-1]
    np.testing.assert_allclose(reader.window(1, 0, LENGTHS[1]).continuous[1:], expected, atol=1e-6)
    assert reader.window(0, 0, 1).frame.shape == (1, 32, 48, 3)
    assert any("clipped" in line for line in reader.findings)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda f: (f / "meta/stats.json").unlink(), "episodes_stats.jsonl"),
        (lambda f: (f / f"videos/{TOP}/chunk-000/file-001.mp4").unlink(), "does not exist, but episode 2"),
        (
            lambda f: film(f / f"videos/{TOP}/chunk-000/file-000.mp4", [1], TOP, "libx264"),
            "has 9 frames, but episode 1",
        ),
        (lambda f: pq.write_table(table([1]), f / "data/chunk-000/file-000.parquet"), "0 rows of episode 0"),
        (lambda f: (f / "data/chunk-000/file-000.parquet").write_bytes(b"PAR1"), "cannot be read"),
        (lambda f: (f / "meta/info.json").write_text('{"fps": 30}'), "has no entry 'features'"),
    ],
)
def test_what_is_missing_or_does_not_fit_is_refused_by_name(tmp_path, spoil, told):
    write(tmp_path, "v3.0")
    spoil(tmp_path)
    with pytest.raises(InputError, match=told):
        open_reader(tmp_path, camera=TOP)
