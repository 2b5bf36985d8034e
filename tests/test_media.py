"""Pictures show the pixels they are given, and mark those that differ."""

import io

import numpy as np
import pytest
from PIL import Image

from dreamer4 import media
from dreamer4.errors import InputError
from dreamer4.media import gif, png, side_by_side, to_rgb


def blank(length=4, channels=1):
    return np.zeros((length, 5, 3, channels), np.uint8)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_any_number_of_channels_becomes_rgb_in_squares(channels):
    frames = blank(2, channels)
    frames[1, 2, 1, channels - 1] = 255
    image = to_rgb(frames, scale=3)
    assert image.shape == (2, 15, 9, 3) and image.dtype == np.uint8
    assert not image[0].any()
    assert (image[1, 6:9, 3:6] == image[1, 6, 3]).all() and image[1, 6, 3].any()
    assert not image[1, :6].any() and not image[1, 9:].any()


def test_png_is_lossless():
    image = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    assert (np.asarray(Image.open(io.BytesIO(png(image)))) == image).all()


def test_gif_keeps_every_frame_its_time_and_few_colours_exactly():
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (200, 3), dtype=np.uint8)
    frames = colours[rng.integers(0, 200, (6, 16, 16))]
    image = Image.open(io.BytesIO(gif(frames, fps=5)))
    assert image.n_frames == 6 and image.info["loop"] == 0
    for t in range(6):
        image.seek(t)
        assert image.info["duration"] == 200
        assert (np.asarray(image.convert("RGB")) == frames[t]).all()


def test_gif_shows_whole_frames_though_it_holds_what_changes():
    frames = np.zeros((5, 12, 17, 3), np.uint8)
    frames[1, 3, 5] = frames[2, 3, 5] = (250, 10, 20)  # comes, stays, goes, and more than it comes again
    frames[4, 2:9, 1:16] = np.random.default_rng(0).integers(0, 256, (7, 15, 3), np.uint8)
    content = gif(frames, fps=50)
    assert len(content) < 2 * len(gif(frames[[0, 4]], fps=50))
    image = Image.open(io.BytesIO(content))
    assert image.n_frames == 5
    for t in range(5):
        image.seek(t)
        assert image.info["duration"] == 20
        assert (np.asarray(image.convert("RGB")) == frames[t]).all()
    one = Image.open(io.BytesIO(gif(frames[4:], fps=50)))
    assert one.n_frames == 1 and (np.asarray(one.convert("RGB")) == frames[4]).all()


@pytest.mark.parametrize("length, fps", [(0, 5), (1, 0), (1, 51)])
def test_impossible_films_are_refused(length, fps):
    with pytest.raises(InputError, match="gif"):
        gif(np.zeros((length, 2, 2, 3), np.uint8), fps=fps)


def test_differing_pixels_are_red_in_the_third_panel_only():
    truth, dream = blank(), blank()
    dream[3, 1, 1] = 255
    film = side_by_side(truth, dream, context_length=2, scale=4)
    panel = film.shape[2] // 3
    is_red = (film == np.array(media.WRONG)).all(axis=-1)
    assert is_red[3, :, 2 * panel :].sum() >= 16  # the pixel, a square of 4
    assert not is_red[3, :, :panel].any()
    assert not is_red[:3].any()


def test_frames_are_judged_behind_the_context_only():
    truth, dream = blank(5), blank(5)
    dream[0, 0, 0] = dream[3, 0, 0] = 200
    dream[4, 0, 0] = 100
    colours = media.frame_colours(truth, dream, 2)
    assert colours == [media._CONTEXT, media._CONTEXT, media.RIGHT, media.WRONG, media.RIGHT]


def test_sheets_have_a_row_per_strip():
    strip = to_rgb(blank(6), scale=2)
    one = media.film_strip(strip)
    assert media.contact_sheet([strip, strip, strip]).shape == (3 * one.shape[0], one.shape[1], 3)


@pytest.mark.parametrize("shape, scale", [((10, 5, 1), 13), ((64, 64, 3), 2), ((360, 640, 3), 1)])
def test_scale_brings_any_frame_near_the_wanted_size(shape, scale):
    assert media.fitting_scale(shape, 128) == scale


def test_a_marked_dream_is_red_where_it_differs_and_nowhere_else():
    truth, dream = blank(1, 3), blank(1, 3)
    dream[0, 1, 1] = 255
    truth[0, 3, 2] = 255
    picture = media.marked(truth, dream, scale=2)[0]
    assert picture.shape == (10, 6, 3)
    colour = picture[::2, ::2].astype(int)
    red = colour[..., 0] - colour[..., 1] > 50
    assert sorted(map(tuple, np.argwhere(red))) == [(1, 1), (3, 2)]
    assert colour[1, 1].sum() > colour[3, 2].sum(), "what is missing is darker than what is too much"
    assert not colour[~red].any()


def test_mp4_is_a_film_of_even_sides():
    av = pytest.importorskip("av")
    frames = np.zeros((5, 20, 32, 3), np.uint8)
    frames[2:] = (40, 200, 90)
    with av.open(io.BytesIO(media.mp4(frames, fps=6.0))) as container:
        decoded = [frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(video=0)]
        assert container.streams.video[0].average_rate == 6
    assert [frame.shape for frame in decoded] == [(20, 32, 3)] * 5
    with pytest.raises(InputError, match="even sides"):
        media.mp4(frames[:, 1:], fps=6.0)
    assert abs(decoded[0]).max() < 12 and abs(decoded[4] - (40, 200, 90)).max() < 12
