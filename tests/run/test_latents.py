"""Latents of a run that another run starts from, and what of a stream the heads are trained to the end on."""

import numpy as np
import pytest
from helpers import equal

from dreamer4.config import load, override
from dreamer4.data import Episode, open_reader, write_dataset
from dreamer4.run import latents
from dreamer4.run.folder import RunFolder
from dreamer4.run.latents import take_over
from dreamer4.types import ActionSpec, DataSpec


LENGTHS = (3, 5, 2, 4, 6, 3, 4, 2, 5, 3)


def write(path, held_out):
    rng = np.random.default_rng(0)

    def episode(number, length):
        return Episode(
            rng.integers(0, 256, (length, 2, 2, 1)).astype(np.uint8),
            rng.integers(0, 3, (length, 1)).astype(np.int32),
            np.zeros((length, 0), np.float32),
            np.arange(length) > 0,
            np.full(length, number * 7 % 10 / 8, np.float32),
            True,
            task=number % 2,
        )

    spec = DataSpec((2, 2, 1), ActionSpec((3,), 0), 2)
    episodes = [episode(i, n) for i, n in enumerate(LENGTHS)]
    write_dataset(path, episodes, spec=spec, environment={"id": "x"}, policy="y", seed=0, held_out=held_out)
    return path


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write(tmp_path_factory.mktemp("streamed") / "set", 0.3)


def streamed(path, config):
    """The training episodes of a set, a latent of each frame in its place."""
    info, reader = latents.told_info(config, path), open_reader(path)
    own = latents.streamed(config, info, reader)
    return own.with_latents(np.arange(2.0 * reader.lengths.sum(), dtype=np.float32).reshape(-1, 1, 2))


def test_heads_of_a_stream_are_trained_on_all_that_a_device_would_hold(dataset):
    config = override(load("tiny"), ["data.relevant=0.5"])
    source = streamed(dataset, config)
    train, held_out = latents.for_heads(config, dataset, source, 4)
    held = latents.draw(override(config, ["data.source=device"]), dataset, ("agent",))
    latent = source.reader._latent
    assert equal(train, held.device.with_latents(latent))
    assert equal(held_out, held.held_out)
    assert not np.all(train.relevant) and not np.all(held_out.relevant)
    reader = open_reader(dataset)
    latents.streamed(config, latents.told_info(config, dataset), reader)
    assert np.all(reader.relevant)  # which another run in this process may read as well


def test_of_more_than_memory_holds_whole_episodes_are_drawn(dataset, monkeypatch):
    config = load("tiny")
    source = streamed(dataset, config)
    monkeypatch.setattr(latents, "HEADS_BYTES", 4 * (2 + 4) * 9)  # nine frames of two latents and a read-out of four
    train, _ = latents.for_heads(config, dataset, source, 4)
    assert 0 < train.num_frames <= 9 and train.num_episodes == len(train.length)
    starts = np.cumsum(source.reader.lengths) - source.reader.lengths
    begins = np.asarray(train.latent[train.start, 0, 0]) / 2
    assert set(begins.tolist()) <= set(starts.tolist())
    monkeypatch.setattr(latents, "HEADS_BYTES", 1)
    train, _ = latents.for_heads(config, dataset, source, 4)
    assert train.num_episodes == 1


def test_without_held_out_episodes_nothing_tells_when_heads_are_done(tmp_path):
    path, config = write(tmp_path / "set", 0.0), load("tiny")
    assert latents.for_heads(config, path, streamed(path, config), 4) is None


def test_latents_are_taken_over_once_and_stay_those_of_both(tmp_path):
    theirs, ours = RunFolder(tmp_path / "theirs"), RunFolder(tmp_path / "ours")
    ours.path.mkdir()
    take_over(theirs.path, ours)
    assert list(ours.path.iterdir()) == []

    shard = theirs.latents / "tokenizer-data" / "shard-0"
    shard.parent.mkdir(parents=True)
    shard.write_bytes(b"latents")
    take_over(theirs.path, ours)
    taken = ours.latents / "tokenizer-data" / "shard-0"
    assert taken.read_bytes() == b"latents" and [path.name for path in ours.path.iterdir()] == ["latents"]

    shard.unlink()
    shard.write_bytes(b"others")
    take_over(theirs.path, ours)
    assert taken.read_bytes() == b"latents"


def test_what_is_taken_from_a_closed_run_is_our_own(tmp_path):
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    store = theirs / "latents" / "a-b"
    store.mkdir(parents=True)
    ours.mkdir()
    (store / "shard-00000.npy").write_bytes(b"x")
    for folder in (store, store.parent):  # a shared disk, readable and no more
        folder.chmod(0o555)
    take_over(theirs, RunFolder(ours))
    assert (ours / "latents" / "a-b" / "shard-00000.npy").read_bytes() == b"x"
    assert all(folder.stat().st_mode & 0o200 for folder in (ours / "latents", ours / "latents" / "a-b"))
