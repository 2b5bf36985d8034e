"""What a session leaves behind: films that show what was shown, and data sets that read back."""

import io
import tracemalloc
import zipfile

import numpy as np
import pytest
from PIL import Image
from play_stage import LEFT, STAY, act, stage

from dreamer4 import media
from dreamer4.data import check, read_episodes, read_info
from dreamer4.serving.play.recording import Picture, archive, compose
from dreamer4.serving.play.session import Session


def picture(*names, differs=False, seed=0):
    random = np.random.default_rng(seed)
    return Picture({name: random.integers(0, 256, (5, 3, 3), np.uint8) for name in names}, differs)


def test_a_single_view_is_enlarged_and_nothing_else():
    film = np.stack(list(compose([picture("dream", seed=i) for i in range(3)])))
    assert film.shape == (3, 320, 192, 3)
    for i in range(3):
        assert np.array_equal(film[i, ::64, ::64], picture("dream", seed=i).images["dream"])


def test_side_by_side_marks_what_differs_and_keeps_panels():
    film = compose([picture("game", "dream"), picture("game", "dream", differs=True), picture("dream")])
    right, wrong, alone = film
    half = right.shape[1] // 2
    assert np.array_equal(right[:, :half], wrong[:, :half])  # the game's panel tells nothing of the dream
    assert (right[:, half:] == media.RIGHT).all(-1).any() and not (right[:, half:] == media.WRONG).all(-1).any()
    assert (wrong[:, half:] == media.WRONG).all(-1).any()
    assert (alone[:, :half] == np.array(media.GROUND)).all()


@pytest.mark.parametrize("size", [(10, 5), (7, 9), (210, 160), (501, 333)])
def test_sides_are_even(size):
    black = np.zeros((*size, 3), np.uint8)
    (frame,) = compose([Picture({"game": black, "dream": black}, False)])
    assert frame.shape[0] % 2 == 0 and frame.shape[1] % 2 == 0


@pytest.mark.parametrize("kind", ["gif", "mp4"])
def test_a_long_film_takes_no_more_memory_than_a_short_one(kind):
    if kind == "mp4":
        pytest.importorskip("av")

    def peak(length):
        pictures = [picture("game", "dream", seed=i) for i in range(length)]
        tracemalloc.start()
        try:
            content = getattr(media, kind)(compose(pictures), fps=10)
            return tracemalloc.get_traced_memory()[1] - len(content)
        finally:
            tracemalloc.stop()

    (frame,) = compose([picture("game", "dream")])
    assert peak(40) < peak(8) + 4 * frame.nbytes


def test_mp4_plays_back_what_was_shown():
    av = pytest.importorskip("av")
    frames = np.zeros((6, 64, 96, 3), np.uint8)
    for t in range(6):
        frames[t, :, 16 * t : 16 * t + 16] = (250, 120, 30)
    with av.open(io.BytesIO(media.mp4(frames, fps=12))) as container:
        stream = container.streams.video[0]
        assert float(stream.average_rate) == 12
        shown = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
    assert shown.shape == frames.shape
    assert np.abs(shown.astype(int) - frames).mean() < 4


@pytest.mark.parametrize("frames", [np.zeros((0, 4, 4, 3)), np.zeros((1, 5, 4, 3)), np.zeros((1, 4, 5, 3))])
def test_mp4_refuses_what_it_cannot_hold(frames):
    with pytest.raises(ValueError, match="mp4: got"):
        media.mp4(frames.astype(np.uint8), fps=10)


def test_a_session_becomes_data_and_a_film(tmp_path):
    session = Session(stage())
    session.start("both", episode=None, seed=3)
    session.record(True)
    for action in (LEFT, STAY):
        act(session, action)
    packed = archive(session.episodes(), spec=stage().spec, environment=stage().env_config, seed=3)
    with zipfile.ZipFile(io.BytesIO(packed)) as file:
        for name in file.namelist():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(file.read(name))
    for name in ("game", "dream"):
        assert check(tmp_path / name) == []
        assert read_info(tmp_path / name).environment == {**stage().env_config, "world": name}
        (episode,) = read_episodes(tmp_path / name)
        assert np.array_equal(episode.frame, session.episodes()[name].frame)
    with Image.open(io.BytesIO(media.gif(compose(session.film()), fps=6))) as animation:
        assert animation.n_frames == 3
