"""Sources: no window crosses an episode, every frame is drawn, and the key decides."""

import shutil

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from dreamer4.data import (
    BalancedSource,
    DeviceSource,
    EndsSource,
    Episode,
    OwnReader,
    StreamSource,
    VideoReader,
    check,
    feed,
    read_episodes,
    read_info,
    write_dataset,
)
from dreamer4.errors import InputError
from dreamer4.types import ActionSpec, DataSpec


LENGTHS = (3, 10, 1, 7, 4)


def episode(number, length, **flags):
    """Pixels tell the episode, rewards tell the index; actions are index and number."""
    index = np.arange(length)
    return Episode(
        frame=np.full((length, 1, 2, 1), number, np.uint8),
        discrete=index[:, None].astype(np.int32),
        continuous=np.full((length, 1), number / 10, np.float32),
        action_mask=index > 0,
        reward=index.astype(np.float32),
        **{"is_terminal": number % 2 == 0, **flags},
    )


@pytest.fixture(scope="module")
def source():
    return DeviceSource.from_episodes([episode(i, n, task=i, relevant=i in (1, 3)) for i, n in enumerate(LENGTHS)])


@eqx.filter_jit
def draw(source, batch_size, length, key):
    return source.sample(batch_size, length, key=key)


def sample(source, batch_size, length, seed):
    return draw(source, batch_size, length, jr.key(seed))


def leaves_equal(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: (np.asarray(x) == np.asarray(y)).all(), a, b))


def test_no_window_crosses_an_episode_in_100_000(source):
    batch = jax.tree.map(np.asarray, sample(source, 100_000, 4, 0))
    number = batch.task
    length = np.array(LENGTHS)[number][:, None]
    assert (batch.frame == number[:, None, None, None, None]).all()
    position = batch.reward[:, :1] + np.arange(4)
    np.testing.assert_array_equal(batch.valid, position < length)
    np.testing.assert_array_equal(batch.reward, np.where(batch.valid, position, 0))
    np.testing.assert_array_equal(batch.action.discrete[..., 0], np.minimum(position, length - 1))
    np.testing.assert_array_equal(batch.is_first, position == 0)
    np.testing.assert_array_equal(batch.is_last, position == length - 1)
    np.testing.assert_array_equal(batch.is_terminal, batch.is_last & (number % 2 == 0)[:, None])
    np.testing.assert_array_equal(batch.action_mask, (position > 0) & batch.valid)
    np.testing.assert_array_equal(batch.relevant, np.isin(number, (1, 3)))
    assert batch.uniform.all()


def test_windows_are_those_that_overlap_an_episode_by_two_frames_or_hold_all_of_it(source):
    batch = sample(source, 60_000, 4, 1)
    counts = np.zeros((len(LENGTHS), 10))
    np.add.at(counts, (np.asarray(batch.task), np.asarray(batch.reward[:, 0], int)), 1)
    expected = np.zeros_like(counts)
    for number, n in enumerate(LENGTHS):
        for begin in range(-3, n):
            expected[number, min(max(begin, 0), n - 2 if n > 4 else 0)] += 1
    expected *= 60_000 / expected.sum()
    # Five standard deviations.
    np.testing.assert_array_less(abs(counts - expected), 5 * expected**0.5 + 0.5)


def test_the_ends_of_an_episode_are_drawn_as_often_as_its_middle():
    source = DeviceSource.from_episodes([episode(0, 100)])
    batch = sample(source, 40_000, 8, 6)
    seen = np.bincount(np.asarray(batch.reward, int)[batch.valid], minlength=100)
    middle = seen[20:80].mean()
    assert middle == pytest.approx(40_000 * 8 / 107, rel=0.02)
    for frame in (0, 99):
        assert seen[frame] == pytest.approx(middle, rel=0.1)
    assert seen.min() > 0.85 * middle
    assert seen.max() < 2.1 * middle


def test_the_place_of_a_frame_in_its_window_does_not_tell_whether_it_is_the_last():
    source = DeviceSource.from_episodes([episode(0, 100)])
    batch = jax.tree.map(np.asarray, sample(source, 60_000, 8, 7))
    assert not batch.is_last[:, 0].any()
    # Of the windows with a frame at a place, the share in which it is the last of its episode.
    share = batch.is_last.sum(axis=0) / batch.valid.sum(axis=0)
    np.testing.assert_allclose(share[2:], 1 / 100, rtol=0.25)
    assert share[1] == pytest.approx(2 / 107, rel=0.25)


def test_a_window_of_one_frame_may_be_the_last(source):
    batch = sample(source, 3_000, 1, 8)
    frames = np.asarray(batch.reward)[np.asarray(batch.task) == 1]
    assert set(frames.ravel()) == set(range(10))


def test_an_episode_shorter_than_the_window_is_padded_with_its_last_frame(source):
    batch = sample(source, 300, 12, 2)
    lengths = np.array(LENGTHS)[batch.task]
    np.testing.assert_array_equal(batch.valid.sum(axis=1), lengths)
    assert batch.is_first[:, 0].all()
    np.testing.assert_array_equal(batch.is_last.sum(axis=1), 1)
    padding = ~np.asarray(batch.valid)
    for name in ("reward", "is_first", "is_last", "is_terminal", "action_mask"):
        assert not np.asarray(getattr(batch, name))[padding].any()
    assert (batch.frame == batch.task[:, None, None, None, None]).all()


def test_the_same_key_draws_the_same_batch(source):
    assert leaves_equal(source.sample(32, 3, key=jr.key(0)), sample(source, 32, 3, 0))
    assert not leaves_equal(sample(source, 32, 3, 0), sample(source, 32, 3, 1))


def test_a_source_is_an_argument_of_a_jitted_function(source):
    traces = []

    @eqx.filter_jit
    def step(source, key):
        traces.append(None)
        return source.sample(4, 3, key=key)

    step(source, jr.key(0))
    step(source, jr.key(1))
    assert len(traces) == 1


def test_latents_take_the_place_of_their_frames(source):
    latent = jnp.arange(source.num_frames, dtype=jnp.float32)[:, None, None] * jnp.ones((1, 2, 3))
    tokenized = source.with_latents(latent)
    plain, tokens = sample(source, 50, 4, 3), sample(tokenized, 50, 4, 3)
    assert tokens.frame is None
    assert tokens.latent.shape == (50, 4, 2, 3)
    starts = np.cumsum((0, *LENGTHS))[:-1]
    row = starts[plain.task][:, None] + np.asarray(plain.action.discrete[..., 0])
    np.testing.assert_array_equal(tokens.latent[..., 0, 0], row)
    np.testing.assert_array_equal(tokens.reward, plain.reward)
    assert (tokenized.max_length, tokenized.num_episodes) == (source.max_length, source.num_episodes)
    with pytest.raises(InputError, match="one per frame, 25"):
        source.with_latents(latent[1:])


@pytest.mark.parametrize(("share", "labelled"), [(0.0, 0), (0.4, 2), (1.0, 5)])
def test_the_first_share_of_the_episodes_keeps_its_actions(source, share, labelled):
    rows = source.with_labels(share).episodes(jnp.arange(5), source.max_length)
    expected = [n - 1 if i < labelled else 0 for i, n in enumerate(LENGTHS)]
    assert rows.action_mask.sum(1).tolist() == expected
    assert leaves_equal(rows.action, source.episodes(jnp.arange(5), source.max_length).action)


def test_whole_episodes_come_from_their_first_frame(source):
    assert (source.num_episodes, source.max_length, source.num_frames) == (5, 10, 25)
    whole = eqx.filter_jit(source.episodes)(jnp.arange(5), source.max_length)
    np.testing.assert_array_equal(whole.valid.sum(axis=1), LENGTHS)
    np.testing.assert_array_equal(whole.reward.sum(axis=1), [n * (n - 1) / 2 for n in LENGTHS])
    np.testing.assert_array_equal(whole.is_last.sum(axis=1), 1)
    cut = eqx.filter_jit(source.episodes)(jnp.array([1, 0]), 5)
    np.testing.assert_array_equal(cut.valid.sum(axis=1), [5, 3])
    np.testing.assert_array_equal(cut.is_last.any(axis=1), [False, True])


@pytest.mark.parametrize("batch_size", [1, 9, 64])
def test_a_balanced_batch_is_half_uniform_half_relevant(source, batch_size):
    batch = sample(BalancedSource(source), batch_size, 4, 0)
    half = batch_size // 2
    assert (batch.relevant.sum(), batch.uniform.sum()) == (half, batch_size - half)
    assert not (batch.relevant & batch.uniform).any()
    assert batch.uniform[::2].all()  # so that any stretch of the batch holds as many of either
    assert np.isin(batch.task[np.asarray(batch.relevant)], (1, 3)).all()


def test_each_task_has_an_equal_share_of_the_relevant_rows():
    # Task 4 has one relevant episode of 3 frames, task 2 three with 21 together; task 0 has none.
    flags = [(0, 5, False), (2, 10, True), (4, 3, True), (2, 7, True), (4, 30, False), (2, 4, True)]
    episodes = [episode(i, length, task=task, relevant=known) for i, (task, length, known) in enumerate(flags)]
    batch = sample(BalancedSource(DeviceSource.from_episodes(episodes)), 40_000, 4, 0)
    number, task = np.asarray(batch.frame[1::2, 0, 0, 0, 0]), np.asarray(batch.task[1::2])
    assert set(number) == {1, 2, 3, 5} and set(task) == {2, 4}
    np.testing.assert_allclose(np.mean(task == 4), 0.5, atol=0.015)
    # Within a task every place counts alike: an episode of n frames has n + 3 of them.
    shares = [np.mean(number[task == 2] == i) for i in (1, 3, 5)]
    np.testing.assert_allclose(shares, np.array([13, 10, 7]) / 30, atol=0.02)


def test_a_task_has_its_share_of_both_halves_of_a_balanced_batch():
    episodes = [episode(i, 5, task=task, relevant=i < 3) for i, task in enumerate((0, 2, 2, 1))]
    shared = DeviceSource.from_episodes(episodes).with_shares(np.array([1.0, 4.0, 3.0]))
    task = np.asarray(sample(BalancedSource(shared), 40_000, 4, 0).task)
    # Task 1 has nothing relevant, so the others share what it leaves.
    for half, shares in ((task[1::2], (1 / 4, 0, 3 / 4)), (task[::2], (1 / 8, 4 / 8, 3 / 8))):
        np.testing.assert_allclose(np.bincount(half, minlength=3) / len(half), shares, atol=0.015)


def test_the_uniform_half_of_a_balanced_batch_sees_every_episode(source):
    batch = sample(BalancedSource(source), 400, 4, 0)
    assert set(np.asarray(batch.task)[np.asarray(batch.uniform)]) == set(range(5))
    assert leaves_equal(batch, sample(BalancedSource(source), 400, 4, 0))


def test_balance_needs_something_relevant():
    with pytest.raises(InputError, match="flagged relevant"):
        BalancedSource(DeviceSource.from_episodes([episode(0, 3, relevant=False)]))


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_a_share_of_the_rows_holds_an_end_and_the_others_are_the_sources_own(source, share):
    ends, plain = EndsSource(source, share), source.draw(400, 4, key=jr.split(jr.key(1), 3)[0])
    rows, batch = ends.draw(400, 4, key=jr.key(1)), sample(ends, 400, 4, 1)
    chosen = np.arange(400) % round(1 / share) == round(1 / share) - 1  # evenly, so that every stretch has its share
    assert batch.is_terminal.any(1)[chosen].all() and batch.uniform.all()
    assert not batch.is_terminal.any(1)[~chosen].all() or share == 1
    assert (rows.episode == plain.episode)[~chosen].all() and (rows.offset == plain.offset)[~chosen].all()
    assert (batch.relevant == np.isin(rows.episode, (1, 3))).all()


def test_ends_stand_anywhere_in_their_windows_and_each_episode_has_as_many():
    lengths, terminal = (3, 10, 1, 40, 9), (True, True, True, False, True)
    episodes = [episode(i, n, is_terminal=end) for i, (n, end) in enumerate(zip(lengths, terminal, strict=True))]
    batch = sample(EndsSource(DeviceSource.from_episodes(episodes), 1.0), 40_000, 4, 0)
    number, place = np.asarray(batch.frame[:, 0, 0, 0, 0]), np.asarray(batch.is_terminal).argmax(1)
    assert batch.is_terminal.any(1).all()
    for i, places in enumerate([(1, 2), (1, 2, 3), (0,), (), (1, 2, 3)]):
        counts = np.bincount(place[number == i], minlength=4)
        np.testing.assert_allclose(counts.sum() / 40_000, 0.25 * terminal[i], atol=0.01)
        # An episode of three frames is shown from its first one by two of three draws.
        law = {0: (0, 1 / 3, 2 / 3, 0), 2: (1, 0, 0, 0), 3: (0,) * 4}.get(i, [np.isin(p, places) / 3 for p in range(4)])
        np.testing.assert_allclose(counts / max(1, counts.sum()), law, atol=0.015)
    assert sample(EndsSource(DeviceSource.from_episodes(episodes), 1.0), 50, 1, 0).is_terminal.all()


def test_ends_of_latents_are_those_of_frames_and_of_none_are_refused(source):
    latent = np.arange(25, dtype=np.float32)[:, None, None] * np.ones((1, 2, 3), np.float32)
    ends = sample(EndsSource(source, 0.5).with_latents(latent), 50, 4, 3)
    assert leaves_equal(ends, sample(EndsSource(source.with_latents(latent), 0.5), 50, 4, 3))
    with pytest.raises(InputError, match="none of the 1 episodes ended by termination.*train.dynamics.ends=0"):
        EndsSource(DeviceSource.from_episodes([episode(1, 3)]), 0.5)


def test_a_set_that_is_relevant_as_a_whole_trains_both():
    batch = sample(DeviceSource.from_episodes([episode(0, 3), episode(1, 4)]), 8, 2, 0)
    assert batch.relevant.all()
    assert batch.uniform.all()


def test_episodes_that_cannot_be_laid_end_to_end_are_refused():
    with pytest.raises(InputError, match="no episodes"):
        DeviceSource.from_episodes([])
    with pytest.raises(InputError, match="episode 1 has no frames"):
        DeviceSource.from_episodes([episode(0, 2), episode(1, 0)])
    other = Episode(**{**vars(episode(0, 2)), "frame": np.zeros((2, 3, 3, 1), np.uint8)})
    with pytest.raises(InputError, match="sizes"):
        DeviceSource.from_episodes([episode(0, 2), other])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("stream") / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dreamer4.data.format._CHUNK_BYTES", 6)  # 3 frames a record
        made = [episode(i, n, task=i, relevant=i in (1, 3)) for i, n in enumerate(LENGTHS)]
        spec = DataSpec((1, 2, 1), ActionSpec((10,), 1), 5)
        info = write_dataset(path, made, spec=spec, environment={}, policy="p", seed=0, held_out=0, shard_bytes=30)
    assert (info.chunk, info.schema_version, len(info.shards) > 1) == (3, 3, True)
    return path


@pytest.fixture(scope="module")
def streamed(folder):
    return StreamSource(OwnReader(folder))


class TestStream:
    """A source that stays on disk gives what the one on the device gives, bit by bit."""

    def test_a_data_set_cut_into_pieces_is_read_whole(self, folder, source):
        assert check(folder) == []
        assert leaves_equal(DeviceSource.from_episodes(read_episodes(folder)), source)

    @pytest.mark.parametrize("length", [1, 4, 12])
    @pytest.mark.parametrize("wrap", [lambda x: x, BalancedSource, lambda x: EndsSource(x, 0.3)])
    def test_batches_are_those_of_the_device(self, source, streamed, wrap, length):
        plain, read = sample(wrap(source), 200, length, 3), wrap(streamed).sample(200, length, key=jr.key(3))
        assert leaves_equal(plain, read)
        assert [x.dtype for x in jax.tree.leaves(plain)] == [x.dtype for x in jax.tree.leaves(read)]

    def test_latents_take_the_place_of_frames(self, source, streamed):
        latent = np.arange(25, dtype=np.float32)[:, None, None] * np.ones((1, 2, 3), np.float32)
        read = streamed.with_latents(latent).sample(50, 4, key=jr.key(3))
        assert leaves_equal(sample(source.with_latents(latent), 50, 4, 3), read)
        with pytest.raises(InputError, match="24 rows"):
            streamed.with_latents(latent[1:])

    @pytest.mark.parametrize("processes", [1, 2, 4])
    def test_the_rows_of_all_processes_make_the_batch(self, streamed, processes):
        source = BalancedSource(streamed)
        rows = jax.tree.map(np.asarray, source.draw(8, 4, key=jr.key(0)))
        share = 8 // processes
        parts = [
            source.read(jax.tree.map(lambda x: x[p * share : (p + 1) * share], rows), 4)  # noqa: B023
            for p in range(processes)
        ]
        assert leaves_equal(jax.tree.map(lambda *xs: np.concatenate(xs), *parts), source.read(rows, 4))

    def test_batches_come_in_the_order_of_their_steps_from_any_step_on(self, source, streamed):
        key = jr.key(5)
        fed = list(feed(streamed, lambda step: jr.fold_in(key, step), range(3, 12), 4, 3))
        assert len(fed) == 9
        for step, batch in zip(range(3, 12), fed, strict=True):
            assert leaves_equal(batch, draw(source, 4, 3, jr.fold_in(key, step)))

    def test_a_file_that_changed_is_named(self, folder, streamed, tmp_path):
        copy = shutil.copytree(folder, tmp_path / "data")
        reader = OwnReader(copy)
        shard = copy / read_info(copy).shards[0].name
        shard.write_bytes(bytes(shard.stat().st_size))
        with pytest.raises(InputError, match="shard-00000.array_record: record 0 cannot be read any more"):
            reader.window(0, 0, 2)
        with pytest.raises(InputError, match="does not match its SHA-256"):
            OwnReader(copy)


def test_a_video_is_read_in_place_from_anywhere(tmp_path):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "film.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=20, options={"g": "12", "crf": "10", "bf": "2"})
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        for index in range(50):
            frame = np.full((16, 32, 3), 5 * index, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    reader = VideoReader(tmp_path)
    assert (list(reader.lengths), reader.spec.frame_shape) == ([50], (16, 32, 3))
    for start, length in ((0, 1), (49, 1), (7, 20), (12, 3), (35, 15)):
        window = reader.window(0, start, length)
        told = window.frame.mean(axis=(1, 2, 3)) / 5
        np.testing.assert_allclose(told, np.arange(start, start + length), atol=0.4)
        assert not window.action_mask.any()
    batch = StreamSource(reader).sample(4, 6, key=jr.key(0))
    assert batch.frame.shape == (4, 6, 16, 32, 3)
    (tmp_path / "torn.mp4").write_bytes((tmp_path / "film.mp4").read_bytes()[:500])
    with pytest.raises(InputError, match=r"torn\.mp4"):
        VideoReader(tmp_path)
