"""Latents of a data set: each as an acting agent would compute it, in memory and in a store that cannot be torn."""

import dataclasses
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from agent.fakes import TINY, TINY_SPEC, build_tiny, randomised

from dreamer4 import tokenizer as tokenizers
from dreamer4.data import BalancedSource, DeviceSource, Episode, LatentStore, OwnReader, StreamSource, write_dataset
from dreamer4.data.readers import LatentReader
from dreamer4.errors import InputError
from dreamer4.tokenizer import LatentStats
from dreamer4.training import encode_source, encode_store, encoding, fingerprint, measure_store


LENGTHS = (8, 3, 5, 6, 4, 8)


@pytest.fixture(scope="module")
def episodes():
    rng = np.random.default_rng(0)
    return [
        Episode(
            frame=rng.integers(0, 256, (length, *TINY_SPEC.frame_shape)).astype(np.uint8),
            discrete=rng.integers(0, 3, (length, 1)).astype(np.int32),
            continuous=rng.uniform(-1, 1, (length, 2)).astype(np.float32),
            action_mask=np.arange(length) > 0,
            reward=rng.normal(size=length).astype(np.float32),
            is_terminal=bool(i % 2),
            task=i % 2,
            relevant=i != 2,
        )
        for i, length in enumerate(LENGTHS)
    ]


@pytest.fixture(scope="module")
def source(episodes):
    return DeviceSource.from_episodes(episodes)


@pytest.fixture(scope="module")
def tiny():
    return randomised(build_tiny())


def test_a_data_set_is_encoded_episode_by_episode_from_its_start(tiny, source, episodes, monkeypatch):
    monkeypatch.setattr(encoding, "EPISODES", 4)  # two batches, the second filled up
    monkeypatch.setattr(encoding, "FRAMES", 3)  # the last frames of a call lie beyond the end
    calls, encode_frames = [], encoding._encode_frames
    monkeypatch.setattr(encoding, "_encode_frames", lambda *args: calls.append(args[2].shape) or encode_frames(*args))
    stats = tiny.tokenizer.stats
    shifted = dataclasses.replace(stats, mean=stats.mean + 0.3, std=2.0 * stats.std)
    dreamer = eqx.tree_at(lambda d: d.tokenizer.stats, tiny, shifted)
    tokenizer, latents = dreamer.tokenizer, encode_source(dreamer, source)

    padded = np.stack([np.resize(e.frame, (max(LENGTHS), *TINY_SPEC.frame_shape)) for e in episodes])
    video = jnp.asarray(padded, jnp.float32) / 255.0

    def kept(rows):
        return np.concatenate([rows[i, :length] for i, length in enumerate(LENGTHS)])

    # What each episode gives alone, frame by frame from its start. They are two programs, in which sums may be taken in
    # another order: by some compilers and processors the same bit by bit, by others up to some roundings of 6e-8.
    step = eqx.filter_jit(lambda tokenizer, frame, stream: jax.vmap(tokenizer.encode_step)(frame, stream))
    stream = jax.tree.map(lambda x: jnp.stack([x] * len(LENGTHS)), tokenizer.init_encoder())
    rows = []
    for t in range(max(LENGTHS)):
        latent, stream = step(tokenizer, video[:, t], stream)
        rows.append(latent)
    np.testing.assert_allclose(latents, kept(np.stack(rows, 1)), rtol=0, atol=4e-6)
    # The order of sums differs between the frame-by-frame and the parallel pass.
    whole = eqx.filter_jit(lambda tokenizer, video: jax.vmap(tokenizer.encode)(video))(tokenizer, video)
    np.testing.assert_allclose(latents, kept(whole), rtol=1e-4, atol=1e-5)
    # Lengths 3 4 5 6 take two calls, 8 8 three: 60 frames where padding to the longest took 64, all of one shape.
    assert calls == [(4, 3, *TINY_SPEC.frame_shape)] * 5


def test_unlike_lengths_are_encoded_without_padding_each_to_the_longest(tiny, episodes, monkeypatch):
    monkeypatch.setattr(encoding, "EPISODES", 4)
    calls = []

    def count(tokenizer, stream, frames):
        calls.append(frames.shape[0] * frames.shape[1])
        return stream, jnp.zeros((*frames.shape[:2], tokenizer.num_spatial, tokenizer.spatial_dim))

    monkeypatch.setattr(encoding, "_encode_frames", count)
    monkeypatch.setattr(encoding, "FRAMES", 8)
    parts = ("frame", "discrete", "continuous", "action_mask", "reward")
    long = dataclasses.replace(
        episodes[0], **{name: np.concatenate([getattr(episodes[0], name)] * 5) for name in parts}
    )
    encode_source(tiny, DeviceSource.from_episodes([*episodes[1:4], long, *episodes[1:4], episodes[4]]))
    assert sum(calls) == 4 * 8 + 4 * 40  # one of eight episodes is long: not all of them cost as much


@pytest.mark.parametrize("side", [8, 64, 256])
def test_the_larger_the_frames_the_fewer_at_a_time(monkeypatch, side):
    monkeypatch.setattr(encoding, "MEMORY_BYTES", 2**20)
    spec = dataclasses.replace(TINY_SPEC, frame_shape=(side, side, 3))
    shapes = eqx.filter_eval_shape(tokenizers.build, TINY.tokenizer, spec, key=jr.key(0))
    episodes, frames, size = encoding.side_by_side(shapes, 1000)
    assert size <= 2**20 or (episodes, frames) == (1, 1)
    assert size > 2**19 or episodes == encoding.EPISODES  # what there is room for is used


# The store.


@pytest.fixture(scope="module")
def reader(episodes, tmp_path_factory):
    path = tmp_path_factory.mktemp("encoding") / "data"
    write_dataset(path, episodes, spec=TINY_SPEC, environment={}, policy="p", seed=0, held_out=0)
    return OwnReader(path)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def encode(tiny, reader, folder, **how):
    frame = int(np.prod(TINY_SPEC.frame_shape)) + 2 * tiny.tokenizer.num_spatial * tiny.tokenizer.spatial_dim
    encode_store(tiny.tokenizer, reader, folder, shard_bytes=11 * frame, **how)


def opened(tiny, reader, folder):
    return LatentStore(folder, tokenizer=fingerprint(tiny.tokenizer), data=reader.fingerprint)


@pytest.fixture(scope="module")
def folder(tiny, reader, tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "latents"
    encode(tiny, reader, path)
    return path


@pytest.fixture(scope="module")
def raw(tiny, source):
    plain = LatentStats.identity(tiny.tokenizer.num_spatial, tiny.tokenizer.spatial_dim)
    return np.asarray(encode_source(eqx.tree_at(lambda d: d.tokenizer.stats, tiny, plain), source))


def test_a_store_gives_the_batches_of_a_data_set_in_latents(tiny, reader, source, folder, raw):
    names = sorted(path.name for path in folder.iterdir())
    # 8 + 3, 5 + 6 and 4 frames fit into a shard of 11; the last episode of 8 into one of its own.
    assert names == ["latents.json", *(f"shard-{i:05d}.{kind}" for i in range(4) for kind in ("json", "npy"))]
    stats = LatentStats.measure(jnp.asarray(raw))
    mean, std = np.asarray(stats.mean), np.asarray(stats.std)
    kept = (raw.astype(np.float16).astype(np.float32) - mean) / std
    store = opened(tiny, reader, folder).standardised(mean, std)
    assert (store.spec, store.fingerprint) == (reader.spec, reader.fingerprint)
    np.testing.assert_array_equal(np.concatenate(list(store.blocks())), kept)
    for wrap in (lambda x: x, BalancedSource):
        theirs = wrap(source.with_latents(kept)).sample(64, 5, key=jr.key(0))
        ours = wrap(StreamSource(store)).sample(64, 5, key=jr.key(0))
        assert jax.tree.all(jax.tree.map(lambda x, y: (np.asarray(x) == np.asarray(y)).all(), theirs, ours))


def test_statistics_are_those_of_all_latents(tiny, reader, folder, raw):
    measured, wanted = measure_store(opened(tiny, reader, folder)), LatentStats.measure(jnp.asarray(raw))
    np.testing.assert_allclose(measured.mean, wanted.mean, atol=2e-4)
    np.testing.assert_allclose(measured.std, wanted.std, atol=2e-4)
    assert bool(measured.measured)


def test_what_a_killed_process_left_is_never_read_and_its_whole_shards_are_kept(
    tiny, reader, folder, tmp_path, monkeypatch
):
    window, path = reader.window, tmp_path / "latents"

    def cut(episode, *args, **how):
        if episode == 3:
            raise KeyboardInterrupt
        return window(episode, *args, **how)

    monkeypatch.setattr(reader, "window", cut)
    with pytest.raises(KeyboardInterrupt):
        encode(tiny, reader, path)
    # As a process that was killed in the middle of a shard, or before its description was written, leaves it.
    (path / ".shard-00001.npy.0123abcd.tmp").write_bytes(b"half")
    (path / "shard-00001.npy").write_bytes(b"half")
    with pytest.raises(InputError, match=r"3 of its 4 shards are missing, the first is shard-00001\.npy"):
        opened(tiny, reader, path)
    asked = []
    monkeypatch.setattr(reader, "window", lambda episode, *a, **k: asked.append(episode) or window(episode, *a, **k))
    encode(tiny, reader, path)
    assert set(asked) == {2, 3, 4, 5}
    assert content(path) == content(folder)


def test_several_processes_share_the_shards(tiny, reader, folder, tmp_path):
    for i in (1, 0):
        encode(tiny, reader, tmp_path / "latents", part=(i, 2))
    assert content(tmp_path / "latents") == content(folder)


def test_a_store_of_another_tokenizer_or_of_other_data_is_refused(tiny, reader, folder):
    other = eqx.tree_at(lambda d: d.tokenizer.mask_token, tiny, replace_fn=lambda x: x + 1e-6)
    with pytest.raises(InputError, match="latents of another tokenizer"):
        opened(other, reader, folder)
    with pytest.raises(InputError, match="latents of another tokenizer"):
        encode(other, reader, folder)
    with pytest.raises(InputError, match="latents of other data"):
        LatentStore(folder, tokenizer=fingerprint(tiny.tokenizer), data="another")
    moved = eqx.tree_at(lambda d: d.tokenizer.stats.mean, tiny, replace_fn=lambda x: x + 1)
    assert fingerprint(moved.tokenizer) == fingerprint(tiny.tokenizer)  # what lies there are raw latents


def test_a_shard_that_was_damaged_is_named(tiny, reader, folder, tmp_path):
    path = tmp_path / "latents"
    encode(tiny, reader, path)
    shard = path / "shard-00002.npy"
    torn = bytearray(shard.read_bytes())
    torn[-1] ^= 1
    shard.write_bytes(torn)
    with pytest.raises(InputError, match=r"shard-00002\.npy is not what was written"):
        opened(tiny, reader, path)
    shard.with_suffix(".json").unlink()
    encode(tiny, reader, path)
    assert content(path) == content(folder)


def test_latents_that_float16_cannot_hold_are_refused(tiny, reader, tmp_path):
    huge = eqx.tree_at(lambda d: d.tokenizer.bottleneck.bias, tiny, replace_fn=lambda x: x * jnp.nan)
    with pytest.raises(InputError, match="float16"):
        encode(huge, reader, tmp_path / "latents")


def test_frames_are_not_read_where_latents_stand_for_them(reader, monkeypatch):
    window, asked = reader.window, []
    monkeypatch.setattr(reader, "window", lambda *a, frames=True: asked.append(frames) or window(*a, frames=frames))
    given = LatentReader(reader, np.zeros((sum(LENGTHS), 1, 1), np.float32)).window(1, 1, 2)
    assert (asked, given.frame, given.latent.shape) == ([False], None, (2, 1, 1))
