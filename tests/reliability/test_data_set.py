"""A damaged data set is found: planted faults, flipped bits, files lost, cut, swapped or closed to the reader."""

import hashlib
import json
import os
import shutil
from dataclasses import fields

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from dreamer4.data import Episode, check, read_episodes, read_info, write_dataset
from dreamer4.data.record import pack, unpack
from dreamer4.errors import InputError
from dreamer4.types import ActionSpec, DataSpec


LENGTHS = (4, 6, 3, 5, 5, 4)
FIELDS = [field.name for field in fields(Episode)]


def episode(number, length):
    rng = np.random.default_rng(number)
    return Episode(
        frame=rng.integers(0, 256, (length, 2, 3, 1), np.uint8),
        discrete=rng.integers(0, 3, (length, 1), np.int32),
        continuous=rng.uniform(-1, 1, (length, 2)).astype(np.float32),
        action_mask=np.arange(length) > 0,
        reward=rng.normal(size=length).astype(np.float32),
        is_terminal=number % 2 == 0,
    )


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A data set of two episodes a shard."""
    path = tmp_path_factory.mktemp("sound") / "set"
    episodes = [episode(number, length) for number, length in enumerate(LENGTHS)]
    spec = DataSpec((2, 3, 1), ActionSpec((3,), 2))
    info = write_dataset(
        path, episodes, spec=spec, environment={"id": "toy"}, policy="random", seed=0, held_out=0.3, shard_bytes=40
    )
    assert [shard.episodes for shard in info.shards] == [2, 2, 2]
    assert check(path) == []
    return path


@pytest.fixture
def dataset(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "set")


def describe(path, **changes):
    file = path / "dataset.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def shard(path, number=0):
    return path / f"shard-{number:05d}.array_record"


def records(path):
    reader = ArrayRecordReader(str(shard(path)))
    found = [bytes(record) for record in reader.read_all()]
    reader.close()
    return found


def rewrite(path, new):
    """Puts records into the first shard as a program would that knows the format: size and checksum are right."""
    writer = ArrayRecordWriter(str(shard(path)), "group_size:1")
    for record in new:
        writer.write(record)
    writer.close()
    data = shard(path).read_bytes()
    listed = json.loads((path / "dataset.json").read_text())["shards"]
    listed[0] |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "episodes": len(new)}
    describe(path, shards=listed)


def change(path, number=1, **changes):
    """Changes fields of one episode of the first shard; a change is a value, or a function of the old one."""
    new = records(path)
    old = unpack(new[number])
    values = {name: getattr(old, name) for name in FIELDS}
    values |= {name: to(values[name]) if callable(to) else to for name, to in changes.items()}
    new[number] = pack(Episode(**values))
    rewrite(path, new)


def put(*place):
    *index, value = place

    def to(array):
        array = array.copy()
        array[tuple(index)] = value
        return array

    return to


def every_array(to):
    return {name: to for name in ("frame", "discrete", "continuous", "action_mask", "reward")}


def cut_record(path):
    first, second = records(path)
    rewrite(path, [first, second[:-20]])


def glue(path):
    """Makes one record of two episodes, a boundary lost."""
    first, second = (unpack(record) for record in records(path))
    arrays = {
        name: np.concatenate([getattr(first, name), getattr(second, name)])
        for name in ("frame", "discrete", "continuous", "action_mask", "reward")
    }
    rewrite(path, [pack(Episode(**arrays, is_terminal=second.is_terminal))])


def shift(rows):
    """Delays by a step, as a converter does that takes actions for those of the frame before."""
    return np.concatenate([rows[:1], rows[:-1]])


def reverse_shards(path):
    describe(path, shards=json.loads((path / "dataset.json").read_text())["shards"][::-1])


# What was planted, the words of the report, and how.
FAULTS = [
    ("a shard's bytes changed", "does not match its SHA-256", lambda p: flip(shard(p), 100, 3)),
    ("a shard cut short", "bytes, expected", lambda p: os.truncate(shard(p), 80)),
    ("a shard is missing", "is missing", lambda p: shard(p, 1).unlink()),
    ("a shard listed twice", "listed twice", lambda p: describe(p, shards=2 * read_json(p)["shards"])),
    ("shards in another order", "disagrees|fingerprint", reverse_shards),
    ("a record cut short", "checksum does not match", cut_record),
    ("an episode left out", "shards hold 5 episodes", lambda p: rewrite(p, records(p)[1:])),
    ("an episode twice", "shards hold 7 episodes", lambda p: rewrite(p, [*records(p), records(p)[0]])),
    ("two episodes glued together", "shards hold 5 episodes", glue),
    ("no frames", "episode 1: it has no frames", lambda p: change(p, **every_array(lambda x: x[:0]))),
    ("the last frame lost", "lengths disagrees", lambda p: change(p, **every_array(lambda x: x[:-1]))),
    ("frames of another size", "frames have shape", lambda p: change(p, frame=lambda x: x[:, :, :2])),
    ("no actions", "actions have 0 discrete", lambda p: change(p, discrete=lambda x: x[:, :0])),
    ("an unknown class", "outside its classes", lambda p: change(p, discrete=put(2, 0, 3))),
    ("a continuous action beyond 1", "not a number in [-1, 1]", lambda p: change(p, continuous=put(2, 0, 1.5))),
    ("an action that is NaN", "not a number in [-1, 1]", lambda p: change(p, continuous=put(2, 1, np.nan))),
    ("an action before the first frame", "no action led", lambda p: change(p, action_mask=put(0, True))),
    ("actions a step late", "action_counts|fingerprint", lambda p: change(p, discrete=shift, continuous=shift)),
    ("an infinite reward", "reward is not finite", lambda p: change(p, reward=put(1, np.inf))),
    ("a reward that is NaN where none arrived", "reward is not finite", lambda p: change(p, reward=put(0, np.nan))),
    ("rewards of another scale", "returns disagrees", lambda p: change(p, reward=lambda x: 10 * x)),
    ("an end that was none", "fingerprint", lambda p: change(p, is_terminal=lambda x: not x)),
    ("a task that does not exist", "its task is 3", lambda p: change(p, task=3)),
    ("a held-out episode that does not exist", "held_out does not list", lambda p: describe(p, held_out=[1, 6])),
    ("classes without end", "action_counts does not hold", lambda p: describe(p, num_classes=[10**12])),
    ("episodes without end", "num_episodes is 1000000000000", lambda p: describe(p, num_episodes=10**12)),
]


@pytest.mark.parametrize(("words", "plant"), [case[1:] for case in FAULTS], ids=[case[0] for case in FAULTS])
def test_a_planted_fault_is_found_and_refused(dataset, words, plant):
    plant(dataset)
    found = check(dataset)
    assert any(part in problem for part in words.split("|") for problem in found), found
    with pytest.raises(InputError, match="set"):
        read_episodes(dataset)


def read_json(path):
    return json.loads((path / "dataset.json").read_text())


def flip(file, place, bit):
    data = bytearray(file.read_bytes())
    data[place] ^= 1 << bit
    file.write_bytes(data)


def same(path, other):
    """Tells whether two data sets say and hold the same."""
    if read_info(path) != read_info(other):
        return False
    pairs = zip(read_episodes(path), read_episodes(other), strict=True)
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for a, b in pairs for name in FIELDS)


def test_of_200_flipped_bits_each_is_found_or_changes_nothing(dataset, sound):
    rng = np.random.default_rng(0)
    names = sorted(file.name for file in sound.iterdir())
    undetected = []
    for turn in range(200):
        name = names[turn % len(names)]
        place, bit = int(rng.integers((sound / name).stat().st_size)), int(rng.integers(8))
        flip(dataset / name, place, bit)
        if not check(dataset):
            undetected.append((name, place, bit))
            assert same(dataset, sound), undetected
        else:
            with pytest.raises(InputError):
                read_episodes(dataset)
        shutil.copyfile(sound / name, dataset / name)
    # The last digits of a number in dataset.json may lie beyond its precision; a shard has no bit to spare.
    assert {name for name, _, _ in undetected} <= {"dataset.json"}
    assert len(undetected) <= 4


@pytest.mark.parametrize("name", ["dataset.json", "shard-00000.array_record", "shard-00002.array_record"])
@pytest.mark.parametrize("fault", ["deleted", "emptied", "truncated", "lengthened", "replaced", "a folder", "a link"])
def test_a_harmed_file_is_found(dataset, sound, name, fault):
    file = dataset / name
    content = file.read_bytes()
    file.unlink()
    if fault == "emptied":
        file.touch()
    elif fault == "truncated":
        file.write_bytes(content[:-1] if name.startswith("shard") else content[:-3])
    elif fault == "lengthened":
        file.write_bytes(content + b"\0")
    elif fault == "replaced":
        file.write_bytes(shard(sound, 1).read_bytes())
    elif fault == "a folder":
        file.mkdir()
    elif fault == "a link":
        file.symlink_to(dataset / "nowhere")
    assert check(dataset)
    with pytest.raises(InputError):
        read_episodes(dataset)


def test_swapped_shards_and_a_foreign_description_are_found(dataset, sound, tmp_path):
    first, second = shard(dataset).read_bytes(), shard(dataset, 2).read_bytes()
    shard(dataset).write_bytes(second)
    shard(dataset, 2).write_bytes(first)
    assert len(check(dataset)) == 2

    other = tmp_path / "other"
    episodes = [episode(number + 50, length) for number, length in enumerate(LENGTHS)]
    write_dataset(other, episodes, spec=read_info(sound).spec, environment={}, policy="random", seed=0, shard_bytes=40)
    shutil.copyfile(sound / "dataset.json", other / "dataset.json")
    assert len(check(other)) == 3


@pytest.mark.parametrize("name", ["dataset.json", "shard-00001.array_record"])
def test_a_file_closed_to_the_reader_is_told_in_words(dataset, monkeypatch, name):
    opened = type(dataset).open

    def closed(self, *args, **kwargs):
        # Not by its permission bits, which an administrator's process would not be held up by.
        if self.name == name:
            raise PermissionError(13, "Permission denied")
        return opened(self, *args, **kwargs)

    monkeypatch.setattr(type(dataset), "open", closed)
    (found,) = check(dataset)
    assert f"{name} cannot be read: Permission denied" in found
    with pytest.raises(InputError, match="Permission denied"):
        read_episodes(dataset)
