"""Frames as people keep them: what a file says about its picture holds, and what is not whole or not clear is told."""

import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreamer4.data import VideoReader, import_folder, read_episodes
from dreamer4.data.footage import open_footage, read_frames
from dreamer4.data.order import in_natural_order
from dreamer4.data.readers.pictures import decode
from dreamer4.errors import InputError
from dreamer4.types import ActionSpec


# Colours of the corners: upper left, upper right, lower left, lower right.
CORNERS = np.array([[220, 30, 30], [30, 220, 30], [30, 30, 220], [220, 220, 220]], np.uint8)


def picture(height=16, width=24):
    rows = [np.repeat(CORNERS[i : i + 2], width // 2, axis=0) for i in (0, 2)]
    return np.repeat(np.stack(rows), height // 2, axis=0)


def corners(frame):
    """Returns the number of the colour in each corner."""
    seen = frame[[2, 2, -3, -3], [2, -3, 2, -3]].astype(int)
    return np.abs(seen[:, None] - CORNERS.astype(int)).sum(axis=-1).argmin(axis=1).tolist()


def frames_of(path, channels=3):
    return read_frames(open_footage(path, lambda _: True), None, channels)


def encode(path, *streams, codec="libx264", times=None, container_options=None):
    """Writes films of equal length side by side into one file."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w", options=container_options or {}) as out:
        made = []
        for frames in streams:
            stream = out.add_stream(codec, rate=20)
            stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv444p"
            made.append(stream)
        for t in range(len(streams[0])):
            for stream, frames in zip(made, streams, strict=True):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(frames[t]), format="rgb24")
                if times is not None:
                    frame.pts = times[t]
                out.mux(stream.encode(frame))
        for stream in made:
            out.mux(stream.encode())
    return path


def film(length=8):
    return np.repeat(picture()[None], length, axis=0)


@pytest.mark.parametrize(
    ("matrix", "shape", "shown"),
    [
        ((0, 1, -1, 0), (24, 16), [2, 0, 3, 1]),
        ((0, -1, 1, 0), (24, 16), [1, 3, 0, 2]),
        ((-1, 0, 0, -1), (16, 24), [3, 2, 1, 0]),
        ((-1, 0, 0, 1), (16, 24), [1, 0, 3, 2]),
    ],
    ids=["clockwise", "anticlockwise", "upside down", "mirrored"],
)
def test_a_video_is_shown_turned_as_it_says(tmp_path, matrix, shape, shown):
    path = encode(tmp_path / "phone.mp4", film())
    data = bytearray(path.read_bytes())
    a, b, c, d = (n * 65536 for n in matrix)
    at = data.index(b"tkhd") + 44
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    frames = frames_of(path)
    assert frames.shape[1:3] == shape
    assert {tuple(corners(frame)) for frame in frames} == {tuple(shown)}


@pytest.mark.parametrize(
    ("value", "shown"), [(3, [3, 2, 1, 0]), (6, [2, 0, 3, 1]), (8, [1, 3, 0, 2]), (2, [1, 0, 3, 2])]
)
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_an_image_is_shown_turned_as_it_says(tmp_path, value, shown, suffix):
    exif = Image.Exif()
    exif[0x0112] = value
    Image.fromarray(picture()).save(tmp_path / f"0{suffix}", exif=exif, quality=95)
    (frame,) = frames_of(tmp_path)
    assert corners(frame) == shown
    np.testing.assert_array_equal(decode((tmp_path / f"0{suffix}").read_bytes()), frame)  # as a cell of a table


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "gif"])
def test_what_nobody_sees_below_transparent_pixels_is_no_frame(tmp_path, mode):
    hidden = np.random.default_rng(0).integers(50, 256, (8, 8, 4), np.uint8)
    hidden[..., 3] = 0
    hidden[2:4, 2:4] = 255
    image = Image.fromarray(hidden)
    if mode == "LA":
        image = image.convert("LA")
    if mode in ("P", "gif"):
        image = Image.fromarray((hidden[..., 3] > 0).astype(np.uint8)).convert("P")
        image.putpalette([200, 0, 200, 255, 255, 255] + [0] * 762)
    path = tmp_path / "a.gif" if mode == "gif" else tmp_path
    image.save(path if mode == "gif" else tmp_path / "0.png", **({"transparency": 0} if mode in ("P", "gif") else {}))
    (frame,) = frames_of(path, 1 if mode == "LA" else 3)
    np.testing.assert_array_equal(frame, np.where(hidden[..., 3:] > 0, 255, 0) * np.ones_like(frame))
    if mode != "gif":
        np.testing.assert_array_equal(decode((tmp_path / "0.png").read_bytes()), frame)


def test_colour_wins_over_grey_within_an_episode_and_among_episodes(tmp_path):
    colour = np.full((4, 4, 3), (9, 8, 7), np.uint8)
    for episode, images in (("a", [np.full((4, 4), 5, np.uint8)] * 2), ("b", [np.full((4, 4), 5, np.uint8), colour])):
        (tmp_path / "in" / episode).mkdir(parents=True)
        for t, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / "in" / episode / f"{t}.png")
    import_folder(tmp_path / "in", tmp_path / "out", actions=ActionSpec((2,)), held_out=0.0)
    first, second = read_episodes(tmp_path / "out")
    assert np.unique(first.frame).tolist() == [5] and first.frame.shape == (2, 4, 4, 3)
    np.testing.assert_array_equal(second.frame[1], colour)


def test_several_pictures_in_one_image_are_refused(tmp_path):
    first, *more = [Image.fromarray(np.full((4, 4, 3), n, np.uint8)) for n in (0, 100, 200)]
    first.save(tmp_path / "0.png", save_all=True, append_images=more)
    with pytest.raises(InputError, match=r"0\.png: it holds several pictures"):
        frames_of(tmp_path)


def test_a_cover_before_the_film_is_not_the_film(tmp_path):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "a.mp4"), "w") as out:
        cover, stream = out.add_stream("mjpeg", rate=20), out.add_stream("libx264", rate=20)
        cover.width, cover.height, cover.pix_fmt = 10, 10, "yuvj420p"
        stream.height, stream.width, stream.pix_fmt = 16, 24, "yuv444p"
        out.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((10, 10, 3), np.uint8), format="rgb24")))
        out.mux(cover.encode())
        for frame in film():
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert frames_of(tmp_path / "a.mp4").shape == (8, 16, 24, 3)


def test_a_second_camera_is_told_of(tmp_path):
    path = encode(tmp_path / "robot.mkv", film(), film()[:, ::-1, ::-1])
    with pytest.warns(UserWarning, match="more than one film. Taken is stream 0.*left out: 1 of 24 x 16"):
        assert corners(frames_of(path)[0]) == [0, 1, 2, 3]


def test_frames_that_are_not_evenly_spaced_are_told_of(tmp_path):
    path = encode(tmp_path / "screen.mkv", film(), times=[0, 1, 2, 6, 7, 8, 9, 10])
    with pytest.warns(UserWarning, match="not evenly spaced: 0.05 s apart as a rule, 0.2 s behind frame 2"):
        frames_of(path)
    with pytest.warns(UserWarning, match="not evenly spaced"):
        VideoReader(tmp_path)
    first, *rest = (Image.fromarray(np.full((4, 4, 3), 30 * i, np.uint8)) for i in range(8))
    # A tool that makes animations small shows one of two equal frames twice as long.
    for name, times in (("even", [50] * 8), ("uneven", [50, 50, 100, *[50] * 5])):
        first.save(tmp_path / f"{name}.gif", save_all=True, append_images=rest, duration=times, loop=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frames_of(tmp_path / "even.gif")
    with pytest.warns(UserWarning, match="uneven.gif: its frames are not evenly spaced: 0.05 s.*0.1 s behind frame 2"):
        frames_of(tmp_path / "uneven.gif")


def test_frames_are_held_until_the_next_is_shown(tmp_path):
    # Shown at 0, 0.05, 0.3 and 0.45 s; each as bright as its number.
    bright = np.repeat(np.arange(4, dtype=np.uint8)[:, None] * 60, 16 * 24 * 3, axis=1).reshape(4, 16, 24, 3)
    path = encode(tmp_path / "screen.mkv", bright, times=[0, 1, 6, 9])
    images = [Image.fromarray(frame) for frame in bright]
    images[0].save(
        tmp_path / "screen.gif", save_all=True, append_images=images[1:], duration=[50, 250, 150, 50], loop=0
    )
    for file in (path, tmp_path / "screen.gif"):
        for fps, held in ((20, [0, 1, 1, 1, 1, 1, 2, 2, 2, 3]), (10, [0, 1, 1, 2, 2, 3]), (None, [0, 1, 2, 3])):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore" if fps is None else "error")
                seen = read_frames(open_footage(file, lambda _: True, fps), None, 3)
            assert np.round(seen.mean(axis=(1, 2, 3)) / 60).tolist() == held, (file, fps)


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_a_video_that_is_not_whole_is_refused(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (40, 16, 24, 3), np.uint8)
    # With the index in front an MP4 can still be opened.
    whole = encode(tmp_path / f"a{suffix}", noise, container_options={"movflags": "faststart"} if "4" in suffix else {})
    assert len(frames_of(whole)) == 40
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    with pytest.raises(InputError, match="cut short|cannot be decoded"):
        frames_of(whole)


def test_a_matroska_film_that_ends_before_the_time_it_declares_is_refused(tmp_path):
    path = encode(tmp_path / "a.mkv", film(40))
    data = path.read_bytes()
    at = data.index(b"\x44\x89\x88") + 3  # its duration, as a float of 64 bits
    path.write_bytes(data[:at] + struct.pack(">d", 2 * struct.unpack(">d", data[at : at + 8])[0]) + data[at + 8 :])
    for read in (frames_of, lambda path: VideoReader(path.parent)):
        with pytest.raises(InputError, match=r"it ends after 2\.00 s, but declares 4\.00 s"):
            read(path)


@pytest.mark.parametrize(
    "names",
    [
        ["t0.png", "t0.05.png", "t0.1.png", "t0.15.png", "t1.png", "t1.5.png"],
        ["t-10.png", "t-9.png", "t0.png", "t3.png"],
        ["-2.5.png", "-1.png", "0.png", "1e-05.png", "0.5.png"],
        ["run-1.png", "run-2.png", "run-10.png"],
        ["2024-01-05.png", "2024-01-12.png", "2024-02-01.png"],
        ["take1.9.png", "take1.10.png", "take1.11.png"],
        ["x_-1_b.png", "x_0_a.png", "x_2_a.png"],
    ],
    ids=lambda names: names[0],
)
def test_numbers_in_names_are_read_as_people_write_them(names):
    assert [path.name for path in in_natural_order([Path(name) for name in sorted(names)])] == names


def test_a_picture_that_is_missing_among_numbered_ones_is_told_of(tmp_path):
    for t in (0, 2, 4, 8, 10):
        Image.fromarray(picture()).save(tmp_path / f"f{t:03d}.png")
    with pytest.warns(UserWarning, match=r"the numbers jump from f004\.png to f008\.png"):
        frames_of(tmp_path)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_frames_with_channels_first_are_refused(tmp_path, channels):
    np.savez(tmp_path / "a.npz", frame=np.zeros((5, channels, 16, 24), np.uint8))
    with pytest.raises(InputError, match=f"looks like {channels} channels first.*moveaxis"):
        frames_of(tmp_path / "a.npz")


def test_axes_that_may_be_others_are_told_of(tmp_path):
    for name, shape in (("few", (5, 3, 4, 7)), ("many", (5, 20, 20, 32)), ("picture", (20, 20, 3))):
        np.savez(tmp_path / f"{name}.npz", frame=np.zeros(shape, np.uint8))
        with pytest.warns(UserWarning, match=f"{name}.npz: frame has shape"):
            open_footage(tmp_path / f"{name}.npz", lambda _: True)


def test_frames_of_a_film_are_kept_in_one_block(tmp_path):
    """Where each small frame had a place of its own, large ones freed between them left holes that stayed unused."""
    path = encode(tmp_path / "a.mkv", film(12))
    frames = read_frames(open_footage(path, lambda _: True), (4, 6), 3)
    assert frames.shape == (12, 4, 6, 3)
    base = frames
    while not isinstance(base, bytearray):
        base = base.obj if isinstance(base, memoryview) else base.base
    assert len(base) == frames.nbytes
