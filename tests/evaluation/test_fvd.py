"""FVD: the distance by hand and by SciPy, and what counts as a video."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from dreamer4.errors import InputError
from dreamer4.evaluation.fvd import REORDERED, TRUTH, Videos, frechet_distance, whole


def means(videos):
    """Features that know each frame's mean and its place."""
    return 255 * np.asarray(videos).mean(axis=(2, 3, 4))


def test_the_distance_is_that_of_the_formula():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(50, 4)), rng.normal(size=(40, 4)) @ rng.normal(size=(4, 4)) + 1
    sa, sb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(sa + sb - 2 * sqrtm(sa @ sb).real)
    assert frechet_distance(a, b) == pytest.approx(expected) == pytest.approx(frechet_distance(b, a))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_of_normals_that_differ_in_their_mean_alone_it_is_its_square():
    a = np.random.default_rng(0).normal(size=(20, 3))
    assert frechet_distance(a, a + [3, 0, 4]) == pytest.approx(25)


def test_videos_are_whole_stretches_and_the_order_of_frames_counts():
    frames = np.arange(5 * 33, dtype=np.uint8).reshape(5, 33, 1, 1, 1) + np.zeros((5, 33, 2, 2, 1), np.uint8)
    valid = np.ones((5, 33), bool)
    valid[4, 20] = False  # so the second of its two stretches is none
    videos = Videos(means, valid)
    videos.add(TRUTH, frames, valid)
    videos.add("dream", frames[:, ::-1], valid)
    found = videos.distances()
    assert (found.videos, found.frames) == (9, 16)
    assert found.distances["dream"] > 0 and found.distances[REORDERED] > 0


def test_a_clip_that_fills_the_last_batch_counts_once():
    valid = np.ones((3, 2), bool)
    assert whole(valid, np.array([0, 1]), 3).all()
    assert whole(valid, np.array([2, 2]), 3).tolist() == [[True, True], [False, False]]


def test_too_few_frames_or_videos_are_refused():
    with pytest.raises(InputError, match="8 frames"):
        Videos(means, np.ones((9, 8), bool))
    with pytest.raises(InputError, match="2 held-out stretches"):
        Videos(means, np.r_[np.ones((2, 9), bool), np.zeros((9, 9), bool)])
    with pytest.raises(InputError, match="at least two"):
        frechet_distance(np.zeros((1, 2)), np.zeros((3, 2)))
