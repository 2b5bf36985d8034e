"""Importing a user's own episodes: what goes in comes out on our clock, and bad input is told file by file."""

import io
import json
import shutil
import warnings
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dreamer4.data import check, footage, import_folder, read_episodes, read_info
from dreamer4.data.arrays import read_arrays, read_headers
from dreamer4.data.footage import resize
from dreamer4.data.order import in_natural_order
from dreamer4.errors import InputError
from dreamer4.types import ActionSpec


T = 6

# Which of them have a reward matters to one test alone, and that one expects to be warned.
pytestmark = pytest.mark.filterwarnings("ignore:.*episodes have no reward:UserWarning")


def frames(seed=0, length=T, shape=(4, 5, 3)):
    return np.random.default_rng(seed).integers(0, 256, (length, *shape), np.uint8)


def save(path, **arrays):
    np.savez_compressed(path, **arrays)


def arrays(seed=0, length=T, **changes):
    rng = np.random.default_rng(seed)
    made = {
        "frame": frames(seed, length),
        "action": rng.integers(0, 4, length),
        "reward": np.arange(length, dtype=np.float64),
        "is_terminal": np.arange(length) == length - 1,
    }
    return {name: value for name, value in (made | changes).items() if value is not None}


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "mine"
    path.mkdir()
    return path


def run(source, **keywords):
    """Imports, and returns the episodes in the order of their names."""
    out = source.parent / "out"
    import_folder(source, out, **{"held_out": 0.0, **keywords})
    assert check(out) == []
    return read_episodes(out)


def refused(source, **keywords):
    with pytest.raises(InputError) as caught:
        run(source, **keywords)
    assert [path.name for path in source.parent.iterdir()] == [source.name], "nothing is written"
    return str(caught.value)


def test_episodes_without_a_reward_among_others_are_told_of(source):
    for name, reward in (("a", np.arange(6.0)), ("b", None), ("c", None)):
        save(source / f"{name}.npz", **arrays(1, reward=reward))
    with pytest.warns(UserWarning, match=r"2 of 3 episodes have no reward, b\.npz for one\. They count as 0"):
        rewards = [episode.reward.sum() for episode in run(source)]
    assert rewards == [15, 0, 0]


def test_arrays_come_in_bit_by_bit(source):
    first = arrays(1, action=np.array([0, 1, 3, 2, 1, 0]), task=np.int64(2), relevant=np.False_)
    second = arrays(2, frame=frames(2)[..., :], action=np.array([2, 0, 0, 1, 1, 0], np.uint8), is_terminal=None)
    save(source / "b10.npz", **second)
    save(source / "b9.npz", **first)
    one, two = run(source)
    np.testing.assert_array_equal(one.frame, first["frame"])
    np.testing.assert_array_equal(two.frame, second["frame"])
    np.testing.assert_array_equal(one.discrete[1:, 0], first["action"][1:])
    np.testing.assert_array_equal(one.action_mask, [False] + [True] * 5)
    np.testing.assert_array_equal(one.reward, np.arange(6))
    assert (one.is_terminal, one.task, one.relevant) == (True, 2, False)
    assert (two.is_terminal, two.task, two.relevant) == (False, 0, True)
    info = read_info(source.parent / "out")
    assert (info.spec.action, info.num_tasks, info.frame_shape) == (ActionSpec((4,)), 3, (4, 5, 3))
    assert info.environment["kwargs"]["timing"] == "led-to"


def test_led_to_and_taken_at_and_rows_between_frames_are_one_clock(source):
    """The pixels of frame t tell the sum of the actions before it, so the right alignment can be seen."""
    chosen = np.array([1, 2, 0, 2, 1])
    seen = np.concatenate([[0], np.cumsum(chosen)]).astype(np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8)
    save(source / "between.npz", frame=seen, action=chosen, reward=chosen * 1.0)
    (between,) = run(source)
    np.testing.assert_array_equal(np.diff(between.frame[:, 0, 0, 0].astype(int)), between.discrete[1:, 0])
    np.testing.assert_array_equal(between.reward[1:], chosen)

    for timing, rows in (("led-to", np.append(0, chosen)), ("taken-at", np.append(chosen, 0))):
        folder = source.parent / timing / "mine"
        folder.mkdir(parents=True)
        save(folder / "a.npz", frame=seen, action=rows, reward=rows * 1.0)
        (same,) = run(folder, timing=timing)
        np.testing.assert_array_equal(same.discrete, between.discrete)
        np.testing.assert_array_equal(same.reward, between.reward)
        np.testing.assert_array_equal(same.action_mask, between.action_mask)


def test_a_reward_of_the_first_frame_that_is_no_number_is_as_good_as_none(source):
    save(source / "a.npz", **arrays(reward=np.array([np.nan, 1, 2, 3, 4, 5])))
    (episode,) = run(source)
    np.testing.assert_array_equal(episode.reward, np.arange(6))


def test_a_table_may_begin_with_the_mark_that_spreadsheets_write(source):
    (source / "walk").mkdir()
    for number, frame in enumerate(frames()):
        Image.fromarray(frame).save(source / "walk" / f"{number}.png")
    (source / "walk" / "actions.csv").write_text("action\n0\n1\n2\n1\n0\n1\n", encoding="utf-8-sig")
    (episode,) = run(source)
    np.testing.assert_array_equal(episode.discrete[:, 0], [0, 1, 2, 1, 0, 1])
    (source / "actions.json").write_text('{"action": [0, 1]}', encoding="utf-8-sig")
    np.testing.assert_array_equal(read_arrays(source / "actions.json")["action"], [0, 1])


@pytest.mark.parametrize(("name", "value"), [("reward", 1.0), ("is_terminal", True)])
def test_what_would_be_lost_at_the_end_is_refused(source, name, value):
    rows = np.zeros(T, type(value))
    rows[-1] = value
    save(source / "a.npz", **{**arrays(reward=None, is_terminal=None), name: rows})
    assert f"a.npz: {name} is {value} in the last row" in refused(source, timing="taken-at")


def test_continuous_actions_are_scaled_from_their_bounds(source):
    rows = np.linspace([-2, 0], [2, 10], T)
    save(source / "a.npz", **arrays(action=None, continuous=rows))
    assert "a.npz: continuous is -1.2 at frame 1, dimension 0" in refused(source)
    assert "outside its bounds -1 to 1" in refused(source, bounds=[(-1.0, 1.0)])
    assert "expected one pair" in refused(source, bounds=[(-2.0, 2.0)] * 3)
    (episode,) = run(source, bounds=[(-2.0, 2.0), (0.0, 10.0)])
    np.testing.assert_allclose(episode.continuous[1:], np.linspace([-1, -1], [1, 1], T)[1:], atol=1e-6)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_an_action_on_its_bound_is_within_it_in_any_precision(source, kind):
    """The nearest float32 to 0.4 is larger than 0.4."""
    rows = np.clip(np.linspace([-1], [1], T), -0.4, 0.4).astype(kind)
    save(source / "a.npz", **arrays(action=None, continuous=rows))
    (episode,) = run(source, bounds=[(-0.4, 0.4)])
    np.testing.assert_allclose(episode.continuous[1:, 0], [-1, -0.5, 0.5, 1, 1], atol=1e-3)
    shutil.rmtree(source.parent / "out")
    for wrong in (np.nextafter(kind(0.4), kind(1)), kind(np.inf), kind(np.nan)):
        rows[-1] = wrong
        save(source / "a.npz", **arrays(action=None, continuous=rows))
        assert "at frame 5, dimension 0, outside its bounds" in refused(source, bounds=[(-0.4, 0.4)])
        if not np.isfinite(wrong):  # neither within bounds that its precision cannot hold
            assert "at frame 5, dimension 0, outside its bounds" in refused(source, bounds=[(-1e300, 1e300)])


def test_unknown_actions_are_masked_and_may_be_anything(source):
    mask = np.array([0, 1, 0, 1, 1, 1], bool)
    save(source / "a.npz", **arrays(action=np.array([-1, 2, -7, 0, 1, 1]), action_mask=mask))
    save(source / "b.npz", frame=frames(1))
    one, two = run(source)
    np.testing.assert_array_equal(one.action_mask, mask)
    np.testing.assert_array_equal(one.discrete[:, 0], [0, 2, 0, 0, 1, 1])
    assert not two.action_mask.any()
    assert read_info(source.parent / "out").num_classes == (3,)


def test_video_without_any_action_is_told_what_can_be_learned_of_it(source):
    save(source / "a.npz", frame=frames()[..., 0])
    with pytest.warns(UserWarning, match="no episode has actions.*train tokenizer.*--actions 4"):
        (episode,) = run(source)
    assert episode.discrete.shape == (T, 1) and not episode.action_mask.any()
    shutil.rmtree(source.parent / "out")
    (episode,) = run(source, actions=ActionSpec((5, 2), 1))
    assert (episode.frame.shape, episode.discrete.shape, episode.continuous.shape) == ((T, 4, 5, 1), (T, 2), (T, 1))
    assert not episode.action_mask.any()


def test_a_folder_of_images_in_the_order_of_their_numbers(source):
    (source / "walk").mkdir()
    truth = frames(3, 12)
    for number, frame in enumerate(truth):
        Image.fromarray(frame).save(source / "walk" / f"frame{number}.png")
    rows = "\n".join(f"{t % 3}, {t / 20}, {-t / 20}, {t}, true" for t in range(12))
    (source / "walk" / "actions.csv").write_text(f"action, continuous_0, continuous_1, reward, action_mask\n{rows}\n")
    text = refused(source)
    assert "walk: action_mask is True at the first frame" in text
    (source / "walk" / "actions.csv").write_text(
        (source / "walk" / "actions.csv").read_text().replace("true", "false", 1)
    )
    (episode,) = run(source)
    np.testing.assert_array_equal(episode.frame, truth)
    np.testing.assert_array_equal(episode.discrete[1:, 0], np.arange(1, 12) % 3)
    np.testing.assert_allclose(episode.continuous[1:], np.arange(1, 12)[:, None] / 20 * [[1, -1]], atol=1e-6)


def test_an_animation_with_labels_beside_it(source):
    palette = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
    truth = palette[np.random.default_rng(0).integers(0, 4, (5, 8, 8))]
    first, *rest = [Image.fromarray(frame) for frame in truth]
    first.save(source / "a.gif", save_all=True, append_images=rest)
    (source / "a.actions.json").write_text(json.dumps({"action": [0, 1, 1, 0], "is_terminal": True}))
    (episode,) = run(source)
    np.testing.assert_array_equal(episode.frame, truth)
    np.testing.assert_array_equal(episode.discrete[:, 0], [0, 0, 1, 1, 0])
    assert episode.is_terminal


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """A video of ten frames, each of one grey."""
    av = pytest.importorskip("av")
    path = tmp_path_factory.mktemp("video") / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264rgb", rate=10, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = 32, 16, "rgb24"
        for level in range(10):
            image = np.full((16, 32, 3), 20 * level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_a_video_with_labels_beside_it(source, video):
    (source / "a.mp4").write_bytes(video.read_bytes())
    save(source / "a.actions.npz", action=np.append(7, np.arange(9) % 2), reward=np.zeros(9))
    (episode,) = run(source, size=(4, 8))
    assert read_info(source.parent / "out").num_classes == (2,), "of the ten frames that ten rows and nine tell of"
    assert episode.frame.shape == (10, 4, 8, 3)
    np.testing.assert_array_equal(episode.frame[:, 0, 0, 0], 20 * np.arange(10))
    np.testing.assert_array_equal(episode.discrete[1:, 0], np.arange(9) % 2)


def test_a_broken_or_short_video_is_refused(source, video):
    (source / "a.mp4").write_bytes(video.read_bytes()[:-200])
    assert "a.mp4: it " in refused(source, actions=ActionSpec((2,)))
    (source / "a.mp4").write_bytes(video.read_bytes())
    save(source / "a.actions.npz", action=np.arange(15) % 2)
    assert "a.mp4: action has 15 rows, expected 10" in refused(source)
    save(source / "a.actions.npz", action=np.arange(10), reward=np.zeros(15))
    assert "a.mp4: reward has 15 rows, expected 10" in refused(source)


def test_a_playlist_that_calls_itself_a_video_opens_no_other_file(source, tmp_path, video):
    (source / "a.mp4").write_text(f"ffconcat version 1.0\nfile '{video}'\n")
    (source / "b.mp4").write_text(f"#EXTM3U\n#EXTINF:1,\n{video}\n#EXT-X-ENDLIST\n")
    text = refused(source, actions=ActionSpec((2,)))
    assert "a.mp4: it cannot be decoded" in text
    assert "b.mp4: it cannot be decoded" in text


def test_resizing_averages_over_areas():
    frame = frames(0, 1, (4, 6, 5))[0]
    means = frame.reshape(2, 2, 3, 2, 5).mean(axis=(1, 3))
    # Pillow rounds once for each axis.
    assert np.abs(resize(frame, (2, 3)).astype(float) - means).max() <= 1
    np.testing.assert_array_equal(resize(frame, (4, 6)), frame)
    np.testing.assert_array_equal(resize(frame, (8, 12)), frame.repeat(2, axis=0).repeat(2, axis=1))


def test_a_size_that_puts_the_width_first_is_warned_of_once():
    lying = np.zeros((18, 32, 3), np.uint8)
    with pytest.warns(UserWarning, match=r"32x18 is height x width.* it is 18x32"):
        assert resize(lying, (32, 18)).shape == (32, 18, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for size in ((32, 18), (9, 16), (16, 16)):
            resize(lying, size)


def test_numbers_in_names_count_as_numbers(tmp_path):
    names = ["2", "10", "a2b3", "a2b10", "a10", "b"]
    assert [path.name for path in in_natural_order([tmp_path / name for name in sorted(names)])] == names


class Trap:
    """Unpickling this would make a file."""

    def __reduce__(self):
        return (open, ("unpickled", "w"))


def plant_link(source):
    save(source.parent.parent / "outside.npz", **arrays())
    (source / "bad.npz").symlink_to(source.parent.parent / "outside.npz")


def plant_image_link(source):
    Image.fromarray(frames()[0]).save(source.parent.parent / "outside.png")
    (source / "bad.d").mkdir()
    (source / "bad.d" / "0.png").symlink_to(source.parent.parent / "outside.png")


def images(source, *shapes):
    (source / "bad.d").mkdir()
    for number, shape in enumerate(shapes):
        Image.fromarray(np.zeros(shape, np.uint8)).save(source / "bad.d" / f"{number}.png")


def twin(source, name):
    Image.open(source / "bad.d" / "0.png").save(source / "bad.d" / name)


def bad(**changes):
    return lambda source: save(source / "bad.npz", **arrays(**changes))


def raw(content):
    return lambda source: (source / "bad.npz").write_bytes(content)


def archive(*members, **keywords):
    def plant(source):
        with zipfile.ZipFile(source / "bad.npz", "w", **keywords) as file:
            for name, content in members:
                file.writestr(name, content)

    return plant


def header(text, body=b""):
    text = text.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + body


def described(shape, descr="'|u1'"):
    return header(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}", bytes(12))


def sidecar(name, text):
    def plant(source):
        Image.fromarray(frames()[0]).save(source / "bad.gif")
        (source / name).write_text(text)

    return plant


BAD = [
    ("frame is float32, expected uint8", bad(frame=np.zeros((T, 4, 5, 3), np.float32))),
    ("frame has shape (4, 5)", bad(frame=np.zeros((4, 5), np.uint8))),
    ("frame has shape (0, 4, 5, 3)", bad(frame=np.zeros((0, 4, 5, 3), np.uint8))),
    ("it has no array named frame; it has action", bad(frame=None)),
    ("it names actions, which is unknown. Did you mean action", bad(actions=np.zeros(T, int))),
    ("its frames have shape (4, 7, 3)", bad(frame=frames(shape=(4, 7, 3)))),
    ("action has 4 rows, expected 6, one a frame, or 5", bad(action=np.zeros(4, int))),
    ("reward has 9 rows", bad(reward=np.zeros(9))),
    ("action is float64", bad(action=np.full(T, 0.5))),
    ("a discrete action lies outside its classes", bad(action=np.array([0, 0, -1, 0, 0, 0]))),
    ("continuous dimensions) are (2, 0), expected (1, 0)", bad(action=np.zeros((T, 2), int))),
    ("action has a value beyond 32 bits", bad(action=np.full(T, 2**40))),
    ("a reward is not finite", bad(reward=np.array([0, 1, np.nan, 0, 0, 0]))),
    ("is_terminal is True at frame 2, before the last", bad(is_terminal=np.arange(T) == 2)),
    ("action_mask, but neither action nor continuous", bad(action=None, action_mask=np.ones(T, bool))),
    ("task is int64 of shape (6,), expected integers, a single value", bad(task=np.zeros(T, int))),
    ("its task is -1", bad(task=np.int64(-1))),
    ("reward holds Python objects, which are never loaded", bad(reward=np.array([Trap()] * T))),
    ("it cannot be read", raw(b"")),
    ("it cannot be read", raw(b"PK\x05\x06 not a zip")),
    ("it holds something else than arrays", archive(("frame.txt", "x"))),
    ("it holds 65 arrays", archive(*[(f"{i}.npy", "") for i in range(65)])),
    ("it is compressed in a way", archive(("frame.npy", "x"), compression=zipfile.ZIP_LZMA)),
    ("it cannot be read: the magic string", archive(("frame.npy", "something"))),
    ("frame claims (1000, 1000, 100) of uint8", archive(("frame.npy", described("(1000, 1000, 100)")))),
    ("frame claims the shape", archive(("frame.npy", described("(2, 100000, 100000)")))),
    ("frame claims the shape (-1, -12)", archive(("frame.npy", described("(-1, -12)")))),
    ("frame is <U3, expected booleans", archive(("frame.npy", described("(1,)", "'<U3'")))),
    ("it cannot be read", archive(("frame.npy", header("{1: 2, 'a': [}")))),
    ("it cannot be read", archive(("frame.npy", header("{1: 2, 'a': 3}")))),
    ("it leads out of the imported folder", plant_link),
    ("0.png leads out of the imported folder", plant_image_link),
    ("it is a folder without images", lambda source: (source / "bad.d").mkdir()),
    ("frame 1 has shape (4, 6, 3), but the first (4, 5, 3)", lambda source: images(source, (4, 5, 3), (4, 6, 3))),
    ("it holds actions.txt, which is no image", lambda s: [images(s, (4, 5)), (s / "bad.d" / "actions.txt").touch()]),
    ("it is no episode", lambda source: (source / "bad.txt").write_text("notes")),
    ("it belongs to no episode", lambda source: (source / "bad.actions.csv").write_text("action\n0\n")),
    ("expected one of them", lambda source: [sidecar(f"bad.actions.{kind}", "{}")(source) for kind in ("csv", "json")]),
    ("line 3: action is 'x', expected a number", sidecar("bad.actions.csv", "action\n0\nx\n")),
    ("line 2 has 1 values, expected 2", sidecar("bad.actions.csv", "action,reward\n0\n")),
    ("it names a column twice", sidecar("bad.actions.csv", "action,action\n0,1\n")),
    ("it has an entry twice", sidecar("bad.actions.json", '{"action": [0, 1], "action": [1, 1]}')),
    ("0.png and 0.webp have one name or number", lambda s: [images(s, (4, 5)), twin(s, "0.webp")]),
    ("0.png and 00.png have one name or number", lambda s: [images(s, (4, 5)), twin(s, "00.png")]),
    (
        "bad.gif has its name and labels",
        lambda s: [sidecar("bad.actions.csv", "action\n0\n")(s), (s / "bad.mp4").touch()],
    ),
    ("it is a data set, not an episode", lambda s: [(s / "bad.d").mkdir(), (s / "bad.d" / "dataset.json").touch()]),
    ("it is empty", sidecar("bad.actions.csv", "")),
    ("the columns of action are not", sidecar("bad.actions.csv", "action_0,action_2\n0,1\n")),
    ("it is no JSON object", sidecar("bad.actions.json", "[1]")),
    ("it cannot be read", sidecar("bad.actions.json", "[" * 100_000)),
    ("the lists of action have unlike lengths", sidecar("bad.actions.json", '{"action": [[1], [1, 2]]}')),
    ("reward holds something else than numbers", sidecar("bad.actions.json", '{"reward": ["1"]}')),
    ("it cannot be decoded", lambda source: (source / "bad.gif").write_bytes(b"GIF89a")),
    ("it cannot be decoded", lambda source: (source / "bad.mp4").write_bytes(b"no video")),
]


@pytest.mark.parametrize(("words", "plant"), BAD, ids=[f"{i}-{case[0][:40]}" for i, case in enumerate(BAD)])
def test_wrong_input_is_refused_with_the_file_and_the_reason(tmp_path, source, monkeypatch, words, plant):
    monkeypatch.chdir(source)
    source = tmp_path / "deep" / "mine"
    source.mkdir(parents=True)
    save(source / "a.npz", **arrays())
    plant(source)
    text = refused(source)
    (line,) = [line for line in text.splitlines() if "bad" in line]
    assert words in line, text
    assert not (tmp_path / "mine" / "unpickled").exists()


def test_all_bad_files_are_named_at_once_up_to_a_limit(source):
    save(source / "a.npz", **arrays())
    for number in range(25):
        save(source / f"b{number}.npz", **arrays(reward=np.full(T, np.inf)))
    text = refused(source)
    assert "25 problems" in text
    assert text.count("a reward is not finite") == 20
    assert text.endswith("and 5 more.")


def test_options_that_mean_nothing_are_refused(source):
    save(source / "A.NPZ", **arrays())
    (source / "A.NPZ.npz").rename(source / "A.NPZ")
    assert "the 0 continuous dimensions" in refused(source, bounds=[(0.0, 1.0)])
    assert "expected a height and a width" in refused(source, size=(0, 4))
    (source / "A.actions.csv").write_text("action\n0\n")
    assert "A.actions.csv: it belongs to no episode" in refused(source)
    (source / "A.actions.csv").unlink()
    assert len(run(source)) == 1


def test_a_folder_that_is_none_or_empty_is_refused(source):
    assert "holds no episodes" in refused(source)
    with pytest.raises(InputError, match="is no folder"):
        import_folder(source / "a.npz", source / "out")
    save(source / ".hidden.npz", **arrays())
    assert "holds no episodes" in refused(source)


def test_an_absurd_class_index_is_taken_only_where_it_is_stated(source):
    save(source / "a.npz", **arrays(action=np.array([0, 1, 5000, 0, 0, 0])))
    assert "State the actions if that is meant" in refused(source)
    (episode,) = run(source, actions=ActionSpec((5001,)))
    assert episode.discrete.max() == 5000


@pytest.mark.parametrize(("timing", "dropped"), [("led-to", 0), ("taken-at", T - 1)])
@pytest.mark.parametrize("absurd", [7, 5000])
def test_a_row_that_is_dropped_makes_no_class(source, timing, dropped, absurd):
    rows = np.array([0, 1, 2, 2, 1, 0])
    rows[dropped] = absurd
    save(source / "a.npz", **arrays(action=rows, reward=None, is_terminal=None))
    run(source, timing=timing)
    assert read_info(source.parent / "out").num_classes == (3,)


@pytest.mark.parametrize(("timing", "row"), [("led-to", 3), ("taken-at", 2)])
def test_a_mask_of_other_length_than_the_actions_counts_no_masked_class(source, timing, row):
    """Five actions between six frames; a mask of a row a frame hides the third, on its own clock."""
    mask = np.arange(T) > 0 if timing == "led-to" else np.ones(T, bool)
    mask[row] = False
    save(source / "a.npz", **arrays(action=np.array([0, 1, 9, 2, 1]), action_mask=mask, reward=None, is_terminal=None))
    (episode,) = run(source, timing=timing)
    assert read_info(source.parent / "out").num_classes == (3,)
    np.testing.assert_array_equal(episode.action_mask, [False, True, True, False, True, True])


def test_an_absurd_number_of_tasks_is_refused(source):
    save(source / "a.npz", **arrays())
    save(source / "b.npz", **arrays(task=np.int64(10**9)))
    text = refused(source, actions=ActionSpec((4,)))
    assert "b.npz: its task is 1000000000" in text and "Number the tasks from 0" in text


def test_one_episode_at_a_time_is_decoded(source, monkeypatch):
    for number in range(3):
        save(source / f"{number}.npz", **arrays(number))
    read, written = [], []
    monkeypatch.setattr(
        "dreamer4.data.imports.read_frames", lambda footage, size, channels: read.append(footage.path.name) or frames()
    )
    run(source, progress=lambda done, total: written.append((done, total, len(read))))
    assert written == [(1, 3, 1), (2, 3, 2), (3, 3, 3)]


def archived():
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays())
    return stream.getvalue()


ARCHIVE = archived()


@settings(max_examples=300)
@given(st.integers(0, 10**6), st.integers(1, 255))
def test_a_changed_byte_of_an_archive_is_harmless_or_refused_in_words(tmp_path_factory, place, change):
    content = bytearray(ARCHIVE)
    content[place % len(content)] ^= change
    path = tmp_path_factory.getbasetemp() / "changed.npz"
    path.write_bytes(content)
    try:
        read_headers(path)
        found = read_arrays(path)
    except InputError:
        return
    # Time stamps and the like, a name (which the importer compares with those it knows), or the end of the list.
    assert {a.tobytes() for a in found.values()} <= {np.asarray(a).tobytes() for a in arrays().values()}


def counted(source, name, *, lost=False, labels=None, seed=0):
    """An episode with one row between two frames; a frame of it may be lost."""
    made = {"action": np.arange(T - 1), "reward": np.arange(T - 1.0)} if labels is None else labels
    save(source / name, frame=frames(seed)[: T - lost], **made)


def test_episodes_that_count_their_rows_in_two_ways_are_refused(source):
    for number in range(6):
        counted(source, f"{number}.npz", lost=number in (2, 4))
    text = refused(source)
    assert "count action in two ways: 2.npz, 4.npz with as many rows as frames" in text
    assert "such as 0.npz, with one row fewer" in text


def test_a_frame_lost_from_a_video_is_found_while_it_is_decoded(source, video):
    for number in range(3):
        (source / f"{number}.mp4").write_bytes(video.read_bytes())
        (source / f"{number}.actions.csv").write_text("action\n" + "1\n" * (10 if number == 2 else 9))
    assert "2.mp4 with as many rows as frames" in refused(source)


@pytest.mark.parametrize("kind", [np.uint8, bool, np.float32])
def test_classes_written_one_hot_are_refused_until_they_are_stated(source, kind):
    name = "continuous" if kind is np.float32 else "action"
    counted(source, "a.npz", labels={name: np.eye(3, dtype=kind)[[0, 1, 2, 2, 0]]})
    assert f"{name} looks like 3 classes written one-hot" in refused(source)
    stated = ActionSpec((), 3) if name == "continuous" else ActionSpec((2, 2, 2))
    (episode,) = run(source, actions=stated)
    assert (episode.discrete if name == "action" else episode.continuous)[1:].sum(axis=1).tolist() == [1] * 5


def test_numbers_written_as_floats_and_columns_count_as_what_they_are(source):
    last = (np.arange(T - 1) == T - 2).astype(np.float32)[:, None]
    labels = {"action": np.array([0.0, 1, 2, 1, 0]), "reward": np.ones((T - 1, 1)), "is_terminal": last}
    counted(source, "a.npz", labels=labels)
    (episode,) = run(source)
    assert (episode.discrete[1:, 0].tolist(), episode.total, episode.is_terminal) == ([0, 1, 2, 1, 0], 5.0, True)


def test_bounds_are_suggested_for_every_dimension_and_may_be_taken_from_the_data(source):
    rng = np.random.default_rng(0)
    values = rng.uniform(-1, 1, (T - 1, 4)) * [90, 1, 50, 0] + [0, 0, 50, -7.5]
    values[:2] = [[-90, -1, 0, -7.5], [90, 1, 100, -7.5]]
    counted(source, "a.npz", labels={"continuous": values})
    text = refused(source)
    assert "--bounds=-90:90,-1.00:1.00,0:100,-8.50:-6.50" in text, text
    (episode,) = run(source, bounds="data")
    np.testing.assert_allclose(episode.continuous[1:3], [[-1, -1, -1, 0], [1, 1, 1, 0]], atol=1e-6)


def test_bounds_that_squash_a_dimension_are_told_of(source):
    values = np.linspace([-180, -1], [180, 1], T - 1)
    counted(source, "a.npz", labels={"continuous": values})
    with pytest.warns(UserWarning, match=r"dimensions \[1\] use less than a twentieth of their bounds"):
        run(source, bounds=[(-180, 180)])


@pytest.mark.filterwarnings("error")
def test_a_reward_beyond_32_bits_is_refused_and_nothing_else_is_said(source):
    counted(source, "a.npz", labels={"action": np.arange(5), "reward": np.array([0, 0, 1e300, 0, 0])})
    assert "a.npz: reward is 1e+300 at frame 3, beyond the numbers of 32 bits" in refused(source)


TABLES = [
    ("1,-0.5\n2,0\n", "its first line is ['1', '-0.5'], expected names of columns, such as action,reward"),
    (",action\n0,1\n", "column 1 has no name, as pandas writes its index"),
    ("action;reward\n1;0,5\n", "separated by semicolons"),
    ("action\treward\n1\t0\n", "separated by tabs"),
    ("action,reward\n0,\n", "line 2: reward is '', expected a number. Give any number there"),
    ("action,timestamp,index\n0,0,0\n", "it names timestamp, index, which are unknown. Known: action"),
    ("action,done\n0,0\n", "name it is_terminal; where it is True at a time limit too"),
    ("action,truncated\n0,0\n", "a limit is told by is_terminal being False"),
    (b"\xff\xfea\x00", "it is UTF-16"),
]


@pytest.mark.parametrize(("text", "words"), TABLES, ids=[words for _, words in TABLES])
def test_a_table_is_told_of_under_its_own_name(source, text, words):
    Image.fromarray(frames()[0]).save(source / "run.gif")
    (source / "run.actions.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    (line,) = refused(source).splitlines()[1:]
    assert line.strip().startswith("run.actions.csv: ") and words in line


def test_blank_lines_at_the_end_names_in_capitals_and_ignored_columns_are_no_obstacle(source):
    (source / "walk").mkdir()
    for t, frame in enumerate(frames()):
        Image.fromarray(frame).save(source / "walk" / f"{t}.png")
    (source / "walk" / "actions.CSV").write_text("action,index\n" + "1,7\n" * (T - 1) + "\n,\n")
    (episode,) = run(source, ignore=["index"])
    assert episode.discrete[1:, 0].tolist() == [1] * 5


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a.hdf5", "Write each episode as NAME.npz"),
        ("data.tfrecord-00000-of-00001", "Write each episode as NAME.npz"),
        ("a.ts", "Copy it into another container"),
        ("a.zip", "Unpack it"),
        ("a.jsonl", "named NAME.actions.csv"),
        ("0.png", "a folder of their own"),
        ("run.csv", "rename it to run.actions.csv"),
        ("folder/train/a.npz", "Import the folder folder itself"),
    ],
)
def test_formats_of_others_are_told_the_way_on(source, name, words):
    Image.fromarray(frames()[0]).save(source / "run.gif")
    (source / name).parent.mkdir(parents=True, exist_ok=True)
    (source / name).write_bytes(b"something")
    assert words in refused(source)


def test_a_long_recording_becomes_several_episodes(tmp_path, monkeypatch):
    frame = np.arange(11, dtype=np.uint8)[:, None, None] * np.ones((2, 2), np.uint8)
    labels = {"action": np.arange(11) % 3, "reward": np.arange(11.0), "is_terminal": np.arange(11) == 10}
    (tmp_path / "src").mkdir()
    np.savez(tmp_path / "src" / "0.npz", frame=frame, **labels)
    # A piece fits where the whole does not.
    monkeypatch.setattr(footage, "MAX_BYTES", 4 * 2 * 2)
    with pytest.raises(InputError, match="--cut"):
        import_folder(tmp_path / "src", tmp_path / "whole")
    import_folder(tmp_path / "src", tmp_path / "cut", cut=4)
    parts = read_episodes(tmp_path / "cut")
    assert [part.frame[:, 0, 0, 0].tolist() for part in parts] == [[0, 1, 2], [3, 4, 5, 6], [7, 8, 9, 10]]
    for part in parts:
        known = part.frame[1:, 0, 0, 0]
        assert part.action_mask.tolist() == [False] + [True] * len(known)
        np.testing.assert_array_equal(part.discrete[1:, 0], known % 3)
        np.testing.assert_array_equal(part.reward, [0, *known])
    assert [part.is_terminal for part in parts] == [False, False, True]
