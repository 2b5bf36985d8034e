"""Frame quality against scikit-image and by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from dreamer4.errors import InputError
from dreamer4.evaluation import exact_frames, matching_frames, psnr, ssim
from dreamer4.evaluation.quality import frame_ssim, squared_errors


def pair(shape, seed=0):
    rng = np.random.default_rng(seed)
    target = rng.random(shape)
    return np.clip(target + 0.1 * rng.normal(size=shape), 0, 1), target


@pytest.mark.parametrize("shape", [(12, 9, 1), (5, 16, 16, 3)])
def test_psnr_is_that_of_scikit_image(shape):
    prediction, target = pair(shape)
    expected = peak_signal_noise_ratio(target, prediction, data_range=1.0)
    np.testing.assert_allclose(psnr(prediction, target), expected, rtol=1e-6)


def test_psnr_by_hand():
    assert psnr(np.full((2, 2, 1), 0.6), np.full((2, 2, 1), 0.5)) == pytest.approx(20.0)
    assert psnr(np.ones((2, 2, 1)), np.ones((2, 2, 1))) == float("inf")


@pytest.mark.parametrize("shape, window", [((16, 20, 3), 7), ((10, 5, 1), 5), ((9, 9, 2), 3), ((4, 8, 1), 3)])
def test_ssim_is_that_of_scikit_image(shape, window):
    prediction, target = pair(shape)
    expected = structural_similarity(target, prediction, win_size=window, data_range=1.0, channel_axis=-1)
    np.testing.assert_allclose(ssim(prediction, target, window=window), expected, rtol=1e-6)


def test_ssim_takes_the_largest_window_that_fits():
    prediction, target = pair((10, 5, 1))
    assert ssim(prediction, target) == ssim(prediction, target, window=5)


def test_ssim_of_a_batch_is_the_mean_and_of_equals_is_one():
    prediction, target = pair((3, 2, 12, 12, 1))
    each = [ssim(p, t) for p, t in zip(prediction.reshape(6, 12, 12, 1), target.reshape(6, 12, 12, 1), strict=True)]
    assert ssim(prediction, target) == pytest.approx(np.mean(each))
    assert ssim(target, target) == pytest.approx(1.0)


@pytest.mark.parametrize("shape, window", [((2, 9, 1), 7), ((9, 9, 1), 4)])
def test_ssim_refuses_windows_that_make_no_sense(shape, window):
    with pytest.raises(InputError, match="window"):
        ssim(*pair(shape), window=window)


def test_bytes_and_floats_say_the_same():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (2, 8, 8, 1), dtype=np.uint8)
    for measure in (psnr, ssim):
        np.testing.assert_allclose(measure(a, b), measure(a / 255, jnp.asarray(b)), rtol=1e-12)


def test_a_frame_is_right_only_if_all_its_pixels_are():
    target = np.zeros((4, 3, 3, 1))
    prediction = target + 0.49
    prediction[1, 0, 0, 0] = 0.51
    prediction[3] = 0.9
    assert matching_frames(prediction, target, (0, 1)).tolist() == [True, False, True, False]
    assert exact_frames(prediction, target, (0, 1)) == 0.5


def test_rounding_goes_to_the_nearest_of_any_levels_in_any_order():
    levels = (1.0, 0.0, 0.2)
    target = np.array([0.0, 0.2, 0.2, 1.0]).reshape(4, 1, 1, 1)
    near = np.array([0.09, 0.11, 0.59, 0.61]).reshape(4, 1, 1, 1)
    assert exact_frames(near, target, levels) == 1.0
    assert exact_frames(near[::-1], target, levels) == 0.5


def test_every_level_of_a_byte_is_told_apart():
    frames = np.arange(256, dtype=np.uint8).reshape(256, 1, 1, 1)
    levels = [i / 255 for i in range(256)]
    assert exact_frames(frames, frames, levels) == 1.0
    assert exact_frames(frames, np.roll(frames, 1), levels) == 0.0


def test_one_level_is_no_question():
    with pytest.raises(InputError, match="levels"):
        exact_frames(np.zeros((1, 1, 1)), np.zeros((1, 1, 1)), (0.0,))


def test_each_frame_of_a_batch_is_judged_by_itself():
    prediction, target = pair((3, 2, 9, 9, 2))
    errors, similarity = squared_errors(prediction, target), frame_ssim(prediction, target)
    assert errors.shape == similarity.shape == (3, 2)
    p, t = prediction[2, 1], target[2, 1]
    np.testing.assert_allclose(-10 * np.log10(errors[2, 1]), peak_signal_noise_ratio(t, p, data_range=1.0), rtol=1e-6)
    expected = structural_similarity(t, p, win_size=7, data_range=1.0, channel_axis=-1)
    np.testing.assert_allclose(similarity[2, 1], expected, rtol=1e-6)
