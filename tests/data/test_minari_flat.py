"""Minari data sets, and flat arrays cut into episodes: labels come through exactly, frames by their number."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from dreamer4.data import open_reader
from dreamer4.errors import InputError


h5py = pytest.importorskip("h5py")

LENGTHS = (4, 7)
BOX = {"type": "Box", "dtype": "float32", "shape": [2], "low": [-2.0, 0.0], "high": [2.0, float("inf")]}
PICTURE = {"type": "Box", "dtype": "uint8", "shape": [32, 40, 3], "low": 0, "high": 255}


def level(episode, t):
    return 100 * episode + 10 * t


def jpeg(value):
    file = io.BytesIO()
    Image.fromarray(np.full((32, 40, 3), value, np.uint8)).save(file, "JPEG")
    return np.frombuffer(file.getvalue(), np.uint8)


def write_minari(folder, space=BOX, actions=None, observation=PICTURE, at="observations", raw=False):
    data = folder / "name" / "task-v0" / "data"
    data.mkdir(parents=True)
    about = {"data_format": "hdf5", "observation_space": json.dumps(observation), "action_space": json.dumps(space)}
    (data / "metadata.json").write_text(json.dumps(about))
    random = np.random.default_rng(0)
    actions = actions or [np.stack([random.uniform(-2, 2, n), random.uniform(0, 9, n)], 1) for n in LENGTHS]
    with h5py.File(data / "main_data.hdf5", "w") as file:
        for e, n in reversed(list(enumerate(LENGTHS))):
            group = file.create_group(f"episode_{e}")
            if raw:
                group[at] = np.stack([np.full((32, 40, 3), level(e, t), np.uint8) for t in range(n + 1)])
            else:
                pictures = [jpeg(level(e, t)) for t in range(n + 1)]
                group.create_dataset(at, (n + 1,), h5py.vlen_dtype(np.uint8))
                for t, picture in enumerate(pictures):
                    group[at][t] = picture
            group["actions"], group["rewards"] = actions[e], np.arange(n) + 0.5
            group["terminations"] = np.arange(n) == n - 1 if e else np.zeros(n, bool)
            group["truncations"] = np.zeros(n, bool)
    return data.parent, actions


@pytest.mark.parametrize("raw", [True, False])
def test_minari_comes_through(tmp_path, raw):
    path, actions = write_minari(tmp_path, raw=raw)
    reader = open_reader(path, "all")
    assert reader.lengths.tolist() == [5, 8] and reader.is_terminal.tolist() == [False, True]
    high = max(a[:, 1].max() for a in actions)  # of what occurs, where the space has no bound
    low = min(a[:, 1].min() for a in actions)
    for e, n in enumerate(LENGTHS):
        window = reader.window(e, 0, n + 1)
        np.testing.assert_allclose(window.frame.mean(axis=(1, 2, 3)), level(e, np.arange(n + 1)), atol=2)
        np.testing.assert_allclose(window.continuous[1:, 0], actions[e][:, 0] / 2, atol=1e-6)
        np.testing.assert_allclose(window.continuous[1:, 1], 2 * (actions[e][:, 1] - low) / (high - low) - 1, atol=1e-6)
        assert window.reward[1:].tolist() == (np.arange(n) + 0.5).tolist()
        np.testing.assert_array_equal(reader.window(e, 2, 2).frame, window.frame[2:4])


def test_classes_of_minari_begin_at_their_start_and_one_camera_is_chosen(tmp_path):
    observation = {"type": "Dict", "subspaces": {"a": PICTURE, "b": {"type": "Tuple", "subspaces": [PICTURE]}}}
    taken = [np.arange(n) % 3 + 5 for n in LENGTHS]
    space = {"type": "Discrete", "n": 3, "start": 5, "dtype": "int64"}
    path, _ = write_minari(tmp_path, space, taken, observation, "observations/b/_index_0")
    with pytest.raises(InputError, match="a, b/_index_0. Choose one"):
        open_reader(path)
    reader = open_reader(path / "data", "all", camera="b/_index_0", size=(8, 10))
    assert reader.spec.action.num_classes == (3,) and reader.spec.frame_shape == (8, 10, 3)
    assert reader.window(1, 0, 8).discrete[1:, 0].tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_minari_itself_writes_what_is_read(tmp_path, monkeypatch):
    minari = pytest.importorskip("minari")
    gym = pytest.importorskip("gymnasium")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))

    class World(gym.Env):
        observation_space = gym.spaces.Box(0, 255, (32, 40, 3), np.uint8)
        action_space = gym.spaces.Discrete(4)

        def reset(self, *, seed=None, options=None):
            self.t = 0
            return np.zeros((32, 40, 3), np.uint8), {}

        def step(self, action):
            self.t += 1
            return np.full((32, 40, 3), 20 * self.t + action, np.uint8), float(action), self.t == 5, False, {}

    world = minari.DataCollector(World(), data_format="hdf5")
    for _ in range(3):
        world.reset()
        for action in (3, 1, 2, 0, 3):
            world.step(action)
    world.create_dataset(
        "some/world/test-v0", eval_env=None, algorithm_name="x", author="x", author_email="x", code_permalink="x"
    )
    reader = open_reader(tmp_path / "some" / "world" / "test-v0", "all")
    window = reader.window(2, 0, 6)
    assert window.discrete[1:, 0].tolist() == window.reward[1:].tolist() == [3, 1, 2, 0, 3]
    np.testing.assert_allclose(window.frame[1:, 0, 0, 0], [23, 41, 62, 80, 103], atol=2)
    assert reader.is_terminal.all() and reader.lengths.tolist() == [6, 6, 6]


def flat(n=10, **more):
    frames = np.arange(n, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 6, 3), np.uint8)
    return {"observations": frames, "actions": np.arange(n) % 3, "rewards": np.arange(n) * 1.0} | more


def write_flat(path, arrays):
    if path.suffix == ".npz":
        np.savez(path, **arrays)
        return path
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values
    return path


@pytest.mark.parametrize("suffix", [".npz", ".hdf5"])
def test_flat_arrays_are_cut_where_episodes_end(tmp_path, suffix):
    terminals, timeouts = np.arange(10) == 3, np.arange(10) == 7
    reader = open_reader(
        write_flat(tmp_path / f"a{suffix}", flat(terminals=terminals, timeouts=timeouts, extra=timeouts)), "all"
    )
    assert reader.lengths.tolist() == [4, 4, 2] and reader.is_terminal.tolist() == [True, False, False]
    window = reader.window(1, 0, 4)
    assert window.frame[:, 0, 0, 0].tolist() == [4, 5, 6, 7]
    assert window.discrete[1:, 0].tolist() == [1, 2, 0] and window.action_mask.tolist() == [False, True, True, True]
    assert window.reward.tolist() == [0, 4, 5, 6 + 7], "the last reward is not lost with the frame it led to"
    assert reader.findings == ("passed over: extra",)


@pytest.mark.parametrize("suffix", [".npz", ".hdf5"])
def test_data_of_other_frames_has_another_fingerprint(tmp_path, suffix):
    def fingerprint(name, at):
        arrays = flat(5000, is_last=np.arange(5000) % 10 == 9)
        arrays["observations"][at:] //= 2
        return open_reader(write_flat(tmp_path / f"{name}{suffix}", arrays), "all").fingerprint

    assert fingerprint("a", 5000) == fingerprint("b", 5000) != fingerprint("c", 4900)


def test_minari_of_other_frames_has_another_fingerprint(tmp_path):
    path, _ = write_minari(tmp_path, raw=True)
    same, other = (shutil.copytree(path, tmp_path / name) for name in ("same", "other"))
    with h5py.File(other / "data" / "main_data.hdf5", "r+") as file:
        file["episode_1/observations"][3] = 7
    fingerprints = [open_reader(p, "all").fingerprint for p in (path, same, other)]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def test_rows_that_led_to_their_frame_stay_there(tmp_path):
    arrays = flat(is_first=np.isin(np.arange(10), [0, 6]))
    arrays["actions"] = np.eye(3, dtype=np.float32)[arrays["actions"]]
    reader = open_reader(write_flat(tmp_path / "a.npz", arrays), "all", led_to=["action", "reward"])
    window = reader.window(1, 0, 4)
    assert window.discrete[1:, 0].tolist() == [1, 2, 0] and window.reward[1:].tolist() == [7, 8, 9]
    mixed = open_reader(tmp_path / "a.npz", "all", led_to=["reward"]).window(1, 0, 4)
    assert mixed.discrete[1:, 0].tolist() == [0, 1, 2] and mixed.reward[1:].tolist() == [7, 8, 9]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, "no end of an episode"),
        ({"is_last": np.zeros(9, bool)}, "is_last has 9 rows, but there are 10 frames"),
        ({"is_last": np.zeros(10, bool), "observations": np.zeros((10, 4, 6, 3))}, "float64, expected uint8"),
        ({"is_last": np.zeros(10, bool), "observations": np.zeros((10, 4, 6, 7), np.uint8)}, "1 or 3 channels"),
        ({"is_last": np.zeros(10, bool), "actions": np.full((10, 1), np.nan)}, "finite"),
        ({"is_last": np.zeros(10, bool), "rewards": np.full(10, 1e300)}, r"a\.npz: reward .*too large for 32 bits"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, change, told):
    with pytest.raises(InputError, match=told):
        open_reader(write_flat(tmp_path / "a.npz", flat() | change), "all")
