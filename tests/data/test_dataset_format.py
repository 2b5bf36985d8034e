"""The format on disk: what goes in comes out, and what is wrong is found."""

import errno
import hashlib
import json
import struct
import zlib
from inspect import unwrap

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dreamer4.data import Episode, check, read_episodes, read_info, write_dataset
from dreamer4.data.record import pack, unpack
from dreamer4.errors import InputError
from dreamer4.types import ActionSpec, DataSpec


SPEC = DataSpec((3, 2, 1), ActionSpec((2, 5), 2), num_tasks=4)
FIELDS = ("frame", "discrete", "continuous", "action_mask", "reward", "is_terminal", "task", "relevant")


def episode(seed, length=None, **changes):
    rng = np.random.default_rng(seed)
    length = length or int(rng.integers(2, 9))
    fields = {
        "frame": rng.integers(0, 256, (length, 3, 2, 1), np.uint8),
        "discrete": np.stack([rng.integers(0, n, length, np.int32) for n in (2, 5)], axis=1),
        "continuous": rng.uniform(-1, 1, (length, 2)).astype(np.float32),
        "action_mask": np.arange(length) > 0,
        "reward": rng.normal(size=length).astype(np.float32),
        "is_terminal": bool(rng.integers(2)),
        "task": int(rng.integers(4)),
        "relevant": bool(rng.integers(2)),
    }
    return Episode(**{**fields, **changes})


def write(path, episodes, **changes):
    keywords = {"spec": SPEC, "environment": {"id": "test", "kwargs": {}}, "policy": "random", "seed": 3, **changes}
    return write_dataset(path, episodes, **keywords)


def assert_same(a, b):
    for name in FIELDS:
        x, y = getattr(a, name), getattr(b, name)
        assert type(x) is type(y)
        if isinstance(x, np.ndarray):
            assert (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes()), name
        else:
            assert x == y


def test_the_keys_of_an_episode_of_several_records_come_back(tmp_path, monkeypatch):
    monkeypatch.setattr("dreamer4.data.format._CHUNK_BYTES", 18)  # 3 frames a record
    keys = np.arange(16, dtype=np.uint32).reshape(8, 2)
    long, without = episode(0, 8, key=keys), episode(1, 7)
    assert write(tmp_path / "set", [long, without]).chunk == 3
    first, second = read_episodes(tmp_path / "set")
    np.testing.assert_array_equal(first.key, keys)
    assert_same(first, long)
    assert second.key is None


@pytest.fixture
def dataset(tmp_path):
    """A sound data set of three shards."""
    path = tmp_path / "set"
    info = write(path, [episode(i) for i in range(12)], shard_bytes=120)
    assert len(info.shards) > 2
    return path


def edit(path, **changes):
    file = path / "dataset.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def replace_shard(path, records):
    """Puts records into the first shard and mends what `dataset.json` says about the file."""
    shards = json.loads((path / "dataset.json").read_text())["shards"]
    file = path / shards[0]["name"]
    writer = ArrayRecordWriter(str(file), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()
    data = file.read_bytes()
    shards[0] |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "episodes": len(records)}
    edit(path, shards=shards)


def first_shard(path):
    return path / "shard-00000.array_record"


def first_episodes(path):
    return read_episodes(path)[: read_info(path).shards[0].episodes]


def swap_first(path, **changes):
    first, *rest = first_episodes(path)
    changed = Episode(**{**{name: getattr(first, name) for name in FIELDS}, **changes})
    replace_shard(path, [pack(e) for e in (changed, *rest)])


@pytest.mark.parametrize("shard_bytes", [1, 100, 10**6])
def test_what_goes_in_comes_out_bit_by_bit(tmp_path, shard_bytes):
    episodes = [episode(i) for i in range(9)]
    info = write(tmp_path / "deep" / "set", episodes, shard_bytes=shard_bytes)
    for ours, theirs in zip(read_episodes(tmp_path / "deep" / "set"), episodes, strict=True):
        assert_same(ours, theirs)
    assert check(tmp_path / "deep" / "set") == []
    assert read_info(tmp_path / "deep" / "set") == info
    assert len(info.shards) == {1: 9, 100: info.num_frames * 6 // 100, 10**6: 1}[shard_bytes] or shard_bytes == 100


def test_the_description_counts_what_there_is(tmp_path):
    episodes = [episode(i) for i in range(20)]
    info = write(tmp_path / "set", episodes)
    returns = [e.reward[1:].astype(float).sum() for e in episodes]
    assert info.spec == SPEC
    assert (info.num_episodes, info.num_frames) == (20, sum(e.length for e in episodes))
    np.testing.assert_allclose(info.returns, returns)
    np.testing.assert_allclose(
        (info.return_mean, info.return_min, info.return_max), (np.mean(returns), np.min(returns), np.max(returns))
    )
    assert info.lengths == tuple(e.length for e in episodes)
    for component, n in enumerate(SPEC.action.num_classes):
        taken = np.concatenate([e.discrete[1:, component] for e in episodes])
        assert info.action_counts[component] == tuple((taken == c).sum() for c in range(n))
    assert info.frame_levels is None


def test_few_pixel_values_are_listed(tmp_path):
    frame = np.array([0, 7, 255, 7, 0, 0], np.uint8).reshape(1, 3, 2, 1).repeat(4, axis=0)
    assert write(tmp_path / "set", [episode(0, 4, frame=frame)]).frame_levels == (0, 7, 255)


@pytest.mark.parametrize(("number", "share", "held_out"), [(20, 0.25, 5), (20, 0.001, 1), (3, 0.99, 2), (4, 0.0, 0)])
def test_the_split_is_a_partition_drawn_by_the_seed(tmp_path, number, share, held_out):
    episodes = [episode(i) for i in range(number)]
    info = write(tmp_path / "a", episodes, held_out=share)
    assert len(info.held_out) == held_out
    assert sorted(info.indices("train") + info.indices("held_out")) == list(info.indices("all")) == list(range(number))
    assert write(tmp_path / "b", episodes, held_out=share).held_out == info.held_out
    for split in ("train", "held_out"):
        for ours, index in zip(read_episodes(tmp_path / "a", split), info.indices(split), strict=True):
            assert_same(ours, episodes[index])
    with pytest.raises(InputError, match="expected train, held_out or all"):
        read_episodes(tmp_path / "a", "test")


def test_equal_data_has_an_equal_fingerprint_and_one_bit_changes_it(tmp_path):
    episodes = [episode(i) for i in range(4)]
    one = write(tmp_path / "a", episodes).fingerprint
    assert write(tmp_path / "b", episodes, shard_bytes=1).fingerprint == one
    episodes[2].frame[0, 0, 0, 0] ^= 1
    assert write(tmp_path / "c", episodes).fingerprint != one


def test_a_data_set_is_never_overwritten(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine.txt").write_text("keep")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("folder", "link"):
        with pytest.raises(InputError, match="never overwritten"):
            write(tmp_path / name, [episode(0)])
    assert (tmp_path / "folder" / "mine.txt").read_text() == "keep"


@pytest.mark.parametrize("keywords", [{"held_out": 1.0}, {"held_out": -0.1}, {"environment": {"id": object()}}])
def test_arguments_that_make_no_sense_are_refused_and_leave_nothing(tmp_path, keywords):
    with pytest.raises(InputError, match="expected"):
        write(tmp_path / "set", [episode(0), episode(1)], **keywords)
    assert not list(tmp_path.iterdir())


def test_an_interrupt_leaves_nothing_and_a_kill_nothing_that_stays(tmp_path, monkeypatch):
    def interrupted():
        yield episode(0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "set", interrupted())
    assert not list(tmp_path.iterdir())
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("shutil.rmtree", lambda *args, **kwargs: None)  # the dead tidy nothing up
        write(tmp_path / "set", interrupted())
    assert [entry.name[0] for entry in tmp_path.iterdir()] == ["."]
    write(tmp_path / "set", [episode(0), episode(1)])
    assert [entry.name for entry in tmp_path.iterdir()] == ["set"] and check(tmp_path / "set") == []


def test_of_two_writers_at_once_one_writes_a_sound_set_and_the_other_is_told(tmp_path):
    def slower():
        yield episode(0)
        write(tmp_path / "set", [episode(1), episode(2)])
        yield episode(3)

    with pytest.raises(InputError, match="set exists by now: another process wrote it meanwhile"):
        write(tmp_path / "set", slower())
    assert [entry.name for entry in tmp_path.iterdir()] == ["set"] and check(tmp_path / "set") == []
    assert_same(read_episodes(tmp_path / "set")[0], episode(1))


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("dreamer4.data.format.pack", fail)
    with pytest.raises(OSError, match="disk full"):
        write(tmp_path / "set", [episode(0)])
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_as_one_by_the_writer_of_records_too(tmp_path, monkeypatch):
    class Full:
        def __init__(self, *_):
            pass

        def write(self, _):
            raise RuntimeError("write() failed: No space left on device; writing shard; at byte 65536")

    monkeypatch.setattr("dreamer4.data.format.ArrayRecordWriter", Full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        write(tmp_path / "set", [episode(0)])
    assert caught.value.errno == errno.ENOSPC and not list(tmp_path.iterdir())


@pytest.mark.parametrize("seed", [-1, 2.5, None])
def test_a_seed_of_nothing_is_refused_before_anything_is_written(tmp_path, seed):
    with pytest.raises(InputError, match="set: got seed="):
        unwrap(write_dataset)(tmp_path / "set", [episode(0)], spec=SPEC, environment={}, policy="", seed=seed)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("make", [lambda: ActionSpec((2,), True), lambda: DataSpec((4, 0, 1), ActionSpec((2,)))])
def test_a_specification_of_no_frame_or_action_is_refused(make):
    with pytest.raises(InputError, match="expected"):
        make()


def broken_episodes():
    base = episode(0, 5)

    def changed(name, index, value):
        array = getattr(base, name).copy()
        array[index] = value
        return {name: array}

    return {
        "the first frame": changed("action_mask", 0, True),
        "outside its classes": changed("discrete", (2, 1), 5),
        "a discrete action": changed("discrete", (1, 0), -1),
        r"in \[-1, 1\]": changed("continuous", (3, 0), 1.01),
        "a continuous action": changed("continuous", (3, 1), np.nan),
        "action_mask hides is not finite": changed("continuous", (0, 1), np.nan),
        "a reward is not finite": changed("reward", 4, np.inf),
        "its task is 4": {"task": 4},
        "frames have shape": {"frame": np.zeros((5, 2, 2, 1), np.uint8)},
        "discrete components": {"discrete": base.discrete[:, :1]},
        "it has no frames": {
            name: getattr(base, name)[:0] for name in ("frame", "discrete", "continuous", "action_mask", "reward")
        },
    }


@pytest.mark.parametrize("problem", broken_episodes())
def test_a_broken_episode_is_not_written_and_is_found_where_another_program_wrote_it(tmp_path, dataset, problem):
    changes = broken_episodes()[problem]
    with pytest.raises(InputError, match=f"episode 1 .*{problem}"):
        write(tmp_path / "new", [episode(1), episode(0, 5, **changes)])
    assert not (tmp_path / "new").exists()
    replace_shard(dataset, [pack(episode(0, 5, **changes))] + [pack(e) for e in first_episodes(dataset)[1:]])
    (found,) = check(dataset)
    assert found.startswith("episode 0: ")
    with pytest.raises(InputError, match=problem):
        read_episodes(dataset)


@pytest.mark.parametrize(
    ("problem", "name", "change"),
    [
        ("reward has 4 steps, but there are 5 frames", "reward", lambda x: x[1:]),
        ("action_mask has 6 steps", "action_mask", lambda x: np.append(x, True)),
        ("frame is float32 with 4 axes, expected uint8", "frame", lambda x: x.astype(np.float32)),
        ("discrete is int32 with 1 axes", "discrete", lambda x: x[:, 0]),
        ("reward is a list, expected an array of float32", "reward", lambda x: x.tolist()),
        ("it has no frames", "frame", lambda x: None),
    ],
)
def test_arrays_of_unlike_lengths_or_kinds_are_not_written(tmp_path, problem, name, change):
    wrong = object.__new__(Episode)  # past the type checker of the tests, which no user has
    vars(wrong).update(vars(episode(0, 5)))
    vars(wrong)[name] = change(vars(wrong)[name])
    with pytest.raises(InputError, match=problem):
        write(tmp_path / "set", [wrong])


def test_episodes_are_written_as_they_come(tmp_path):
    def one_by_one():
        for number in range(5):
            yield episode(number)
            assert any(path.name.startswith(".set.") for path in tmp_path.iterdir())

    assert write(tmp_path / "set", one_by_one()) == write(tmp_path / "list", [episode(i) for i in range(5)])
    with pytest.raises(InputError, match="no episodes"):
        write(tmp_path / "none", iter([]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["list", "set"]


def flip(path):
    data = bytearray(first_shard(path).read_bytes())
    data[len(data) // 2] ^= 4
    first_shard(path).write_bytes(data)


def link(path):
    outside = path.parent / "outside"
    first_shard(path).rename(outside)
    first_shard(path).symlink_to(outside)


def rename_shard(path, name):
    shards = json.loads((path / "dataset.json").read_text())["shards"]
    edit(path, shards=[{**shards[0], "name": name}, *shards[1:]])


def not_array_record(path):
    replace_shard(path, [])
    first_shard(path).write_bytes(b"something else")
    shards = json.loads((path / "dataset.json").read_text())["shards"]
    shards[0] |= {"size": 14, "sha256": hashlib.sha256(b"something else").hexdigest(), "episodes": 2}
    edit(path, shards=shards)


def damage_record(path):
    first, *rest = [pack(e) for e in first_episodes(path)]
    replace_shard(path, [first[:-9] + bytes([first[-9] ^ 1]) + first[-8:], *rest])


def list_twice(path):
    shards = json.loads((path / "dataset.json").read_text())["shards"]
    edit(path, shards=[*shards, shards[0]])


def break_text(path):
    (path / "dataset.json").write_text("{" + (path / "dataset.json").read_text())


FAULTS = {
    "is missing": lambda p: first_shard(p).unlink(),
    "bytes, expected": lambda p: first_shard(p).write_bytes(first_shard(p).read_bytes()[:-5]),
    "does not match its SHA-256": flip,
    "leaves the folder": link,
    "'../shard-00000.array_record' leaves": lambda p: rename_shard(p, "../shard-00000.array_record"),
    "'/etc/passwd' leaves": lambda p: rename_shard(p, "/etc/passwd"),
    "cannot be read as ArrayRecord": not_array_record,
    "a record of shard-00000.array_record is damaged: its checksum": damage_record,
    "holds|shards hold": lambda p: replace_shard(p, [pack(e) for e in first_episodes(p)[1:]]),
    "is listed twice": list_twice,
    "num_frames disagrees": lambda p: edit(p, num_frames=7),
    "lengths disagrees": lambda p: edit(p, lengths=[3] * 12),
    "returns disagrees": lambda p: edit(p, returns=[0.0] * 12),
    "action_counts disagrees": lambda p: edit(p, action_counts=[[1, 1], [1] * 5]),
    "frame_levels disagrees": lambda p: edit(p, frame_levels=[0, 1]),
    "return_mean disagrees": lambda p: edit(p, return_mean=100.0),
    "the shards hold 12 episodes, but num_episodes is 13": lambda p: edit(p, num_episodes=13),
    "held_out does not list": lambda p: edit(p, held_out=[1, 99]),
    "fingerprint": lambda p: swap_first(p, relevant=not first_episodes(p)[0].relevant),
    "the fingerprint does not match": lambda p: edit(p, policy="another"),
    "reads up to 4. Upgrade": lambda p: edit(p, schema_version=5),
    "is not JSON": break_text,
    "environment: Input should be": lambda p: edit(p, environment=3),
    "colour: Extra": lambda p: edit(p, colour=3),
    "expected a whole number of at least 2": lambda p: edit(p, num_classes=[1, 5]),
    "it has no dataset.json": lambda p: (p / "dataset.json").unlink(),
}


@pytest.mark.parametrize("problem", FAULTS)
def test_every_planted_fault_is_found_and_refused(dataset, problem):
    FAULTS[problem](dataset)
    found = check(dataset)
    assert any(part in entry for entry in found for part in problem.split("|")), found
    with pytest.raises(InputError) as caught:
        read_episodes(dataset)
    assert str(dataset) in str(caught.value)
    assert str(caught.value).endswith("."), "the message ends with what to do"


def test_extra_files_are_reported_but_do_not_get_in_the_way(dataset):
    (dataset / "shard-00099.array_record").write_bytes(b"")
    assert check(dataset) == ["shard-00099.array_record is an extra file"]
    assert len(read_episodes(dataset)) == 12


def sealed(body):
    return body + struct.pack("<I", zlib.crc32(body))


def with_header(header, payload=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return sealed(b"D4E1" + struct.pack("<I", len(text)) + text + payload)


def header_of(record):
    (size,) = struct.unpack("<I", record[4:8])
    return json.loads(record[8 : 8 + size])


def parses_or_refuses(record):
    try:
        back = unpack(record)
    except InputError:
        return None
    assert isinstance(back, Episode)
    return back


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400), st.booleans())
@example(b"", True)
@example(b"D4E1\xff\xff\xff\xff", True)
def test_arbitrary_bytes_are_refused_in_words(data, mark):
    assert parses_or_refuses(sealed(b"D4E1" + data) if mark else data) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_record_with_a_forged_header_is_an_episode_or_refused_in_words(data):
    header = header_of(pack(episode(0, 3)))
    place = data.draw(st.sampled_from(["fields", "is_terminal", "task", "relevant", "field", "shape", "size"]))
    if place in header:
        header[place] = data.draw(JSON)
    elif place == "field":
        header["fields"][data.draw(st.integers(0, 4))] = data.draw(JSON)
    else:
        shape = header["fields"][data.draw(st.integers(0, 4))]
        if place == "shape":
            shape[2] = data.draw(JSON)
        else:
            shape[2][0] = data.draw(st.integers(-(2**70), 2**70) | st.booleans() | st.floats())
    parses_or_refuses(with_header(header, data.draw(st.binary(max_size=60))))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 255), st.booleans())
def test_a_changed_byte_is_an_episode_or_refused_in_words(place, change, seal):
    record = bytearray(pack(episode(1, 4)))
    place %= len(record) - 4
    record[place] ^= change
    result = parses_or_refuses(sealed(bytes(record[:-4])) if seal else bytes(record))
    assert seal or result is None


@pytest.mark.parametrize(
    "shape", [[2**40, 1, 1, 1], [0, 2**31 - 1, 2**31 - 1, 2**31 - 1], [3, 10**30, 1, 1], [-1, 3, 2, 1]]
)
def test_a_header_cannot_ask_for_more_than_its_record_holds(shape):
    header = header_of(pack(episode(0, 3)))
    for field in header["fields"]:
        field[2] = [shape[0], *field[2][1:]]
    header["fields"][0][2] = shape
    with pytest.raises(InputError, match="shape of frame|header describes"):
        unpack(with_header(header))


def test_deep_nesting_and_truth_values_beyond_one_are_refused():
    with pytest.raises(InputError, match="not JSON|other keys"):
        unpack(with_header(b"[" * 60_000))
    record = pack(episode(0, 3))
    body = bytearray(record[:-4])
    body[-3 * 4 - 1] = 2  # the last byte of action_mask, before three rewards
    with pytest.raises(InputError, match="neither 0 nor 1"):
        unpack(sealed(bytes(body)))


@pytest.mark.parametrize("cut", [1, 4, 30, 100])
def test_a_truncated_record_is_refused(cut):
    with pytest.raises(InputError):
        unpack(pack(episode(0, 8))[:-cut])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 30))
def test_records_round_trip(seed, length):
    original = episode(seed, length)
    assert_same(unpack(pack(original)), original)
