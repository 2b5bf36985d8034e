"""RLDS data sets, written here as TensorFlow writes them: an Example of protocol buffers in each record."""

import io

import numpy as np
import pytest
from PIL import Image

from dreamer4.data import open_reader
from dreamer4.errors import InputError


LENGTHS = (4, 6, 5)
WORDS = (b"open it", b"close it", b"open it")
ACTIONS = [np.random.default_rng(e).uniform(-3, 2, (n, 2)).astype(np.float32) for e, n in enumerate(LENGTHS)]


def varint(number):
    number, out = number % (1 << 64), b""
    while number >= 128:
        number, out = number >> 7, out + bytes([number & 127 | 128])
    return out + bytes([number])


def field(number, content):
    return varint(number << 3 | 2) + varint(len(content)) + content


def feature(values):
    if isinstance(values, list):
        return field(1, b"".join(field(1, value) for value in values))
    if values.dtype.kind == "f":
        return field(2, field(1, values.astype("<f4").tobytes()))
    return field(3, field(1, b"".join(varint(int(v)) for v in values)))


def example(features):
    entries = (field(1, name.encode()) + field(2, feature(values)) for name, values in features.items())
    return field(1, b"".join(field(1, entry) for entry in entries))


def png(level):
    file = io.BytesIO()
    Image.fromarray(np.full((8, 10, 3), level, np.uint8)).save(file, "PNG")
    return file.getvalue()


def episode(e, actions):
    n = LENGTHS[e]
    return {
        "steps/observation/image": [png(50 * e + t) for t in range(n)],
        "steps/action": actions.reshape(-1),
        "steps/reward": np.arange(n, dtype=np.float32) + 0.5,
        "steps/is_first": (np.arange(n) == 0).astype(int),
        "steps/is_terminal": (np.arange(n) == n - 1).astype(int) * (e == 1),
        "steps/language_instruction": [WORDS[e]] * n,
        "episode_metadata/file_path": [b"somewhere"],
    }


def write(folder, episodes):
    (folder / "features.json").write_text("{}")
    for number, part in enumerate((episodes[:2], episodes[2:])):
        records = [example(e) for e in part]
        framed = b"".join(len(r).to_bytes(8, "little") + b"\0\0\0\0" + r + b"\0\0\0\0" for r in records)
        (folder / f"it-train.tfrecord-0000{number}-of-00002").write_bytes(framed)
    return folder


def test_episodes_come_through(tmp_path):
    reader = open_reader(write(tmp_path, [episode(e, a) for e, a in enumerate(ACTIONS)]), "all")
    assert reader.lengths.tolist() == list(LENGTHS) and reader.is_terminal.tolist() == [False, True, False]
    assert reader.tasks == ("close it", "open it") and reader.task.tolist() == [1, 0, 1]
    together = np.concatenate(ACTIONS).astype(float)
    low, high = together.min(axis=0), together.max(axis=0)
    for e, n in enumerate(LENGTHS):
        window = reader.window(e, 0, n)
        assert window.frame[:, 0, 0, 0].tolist() == [50 * e + t for t in range(n)]
        np.testing.assert_allclose(window.continuous[1:], (2 * (ACTIONS[e] - low) / (high - low) - 1)[:-1], atol=1e-6)
        assert window.reward[1:].tolist() == [t + 0.5 for t in range(n - 1)], "the last one means nothing"
        np.testing.assert_array_equal(reader.window(e, 1, 2).frame, window.frame[1:3])


def test_integers_are_classes_and_features_are_chosen_by_name(tmp_path):
    episodes = []
    for e, n in enumerate(LENGTHS):
        made = episode(e, ACTIONS[e])
        made |= {"steps/action/arm": np.arange(n) % 3, "steps/action/other": made.pop("steps/action")}
        episodes.append(made | {"steps/observation/wrist": [png(7)] * n})
    write(tmp_path, episodes)
    with pytest.raises(InputError, match="observation/image, observation/wrist. Choose by the option camera"):
        open_reader(tmp_path)
    with pytest.raises(InputError, match="Did you mean action/arm"):
        open_reader(tmp_path, camera="observation/wrist", action="action/arms")
    reader = open_reader(tmp_path, "all", camera="observation/wrist", action="action/arm", size=(4, 5))
    window = reader.window(1, 0, 6)
    assert window.discrete[1:, 0].tolist() == [0, 1, 2, 0, 1] and window.frame.shape == (6, 4, 5, 3)
    assert np.unique(window.frame).tolist() == [7]


def test_integers_below_zero_are_read_and_are_no_classes(tmp_path):
    actions = [np.arange(n) - 1 for n in LENGTHS]
    reader = open_reader(write(tmp_path, [episode(e, a) for e, a in enumerate(actions)]), "all")
    np.testing.assert_allclose(reader.window(1, 0, 6).continuous[1:, 0], np.arange(5) / 5 * 2 - 1, atol=1e-6)


@pytest.mark.parametrize(
    "spoil", [lambda b: b[:-9], lambda b: b"\xff" * 20 + b, lambda b: b[:12] + b"\xff" * 30 + b[42:]]
)
def test_a_file_that_is_cut_or_spoilt_is_refused_by_name(tmp_path, spoil):
    write(tmp_path, [episode(e, a) for e, a in enumerate(ACTIONS)])
    file = tmp_path / "it-train.tfrecord-00000-of-00002"
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(InputError, match=file.name):
        open_reader(tmp_path)
