"""The terms of eq 5."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import distance, generic

from dreamer4 import tokenizer as tokenizers
from dreamer4.config import TokenizerConfig
from dreamer4.tokenizer import RandomFeatures, tokenizer_loss
from dreamer4.types import ActionSpec, DataSpec


FRAMES, FRAME = 5, (4, 6, 2)


@pytest.fixture(scope="module")
def tokenizer():
    transformer = {"width": 16, "depth": 2, "heads": 2, "kv_heads": 2, "time_every": 2, "context_length": 4}
    settings = {"patch": (2, 3), "num_latents": 4, "latent_dim": 3, "num_spatial": 2}
    config = TokenizerConfig.model_validate({"encoder": transformer, "decoder": transformer, **settings})
    return generic(tokenizers.build, config, DataSpec(FRAME, ActionSpec((2,))), key=jr.key(0))


@pytest.fixture(scope="module")
def video():
    return jr.uniform(jr.key(1), (FRAMES, *FRAME))


@pytest.fixture(scope="module")
def perceptual():
    return RandomFeatures(2, widths=(3, 4))


@eqx.filter_jit
def terms(tokenizer, video, valid, perceptual, key):
    return tokenizer_loss(tokenizer, video, valid, perceptual, key=key)


def reference_features(kernels, prediction, target):
    """Convolution, rectifier and unit vectors written out, in float64."""
    total, pair = 0.0, [np.asarray(v, np.float64) for v in (prediction, target)]
    for kernel in kernels:
        kernel = np.asarray(kernel, np.float64)  # (O I 3 3)
        outs = []
        for image in pair:
            padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
            out = np.zeros((*image.shape[:2], kernel.shape[0]))
            for i, j in np.ndindex(*image.shape[:2]):
                out[i, j] = np.einsum("hwc,ochw->o", padded[i : i + 3, j : j + 3], kernel)
            outs.append(np.maximum(out, 0))
        pair = outs
        units = [v / np.sqrt((v**2).sum(-1, keepdims=True) + 1e-6) for v in pair]
        total += np.mean((units[0] - units[1]) ** 2)
    return total


def test_the_terms_are_means_over_all_pixels_of_the_valid_frames(tokenizer, video, perceptual):
    key, valid = jr.key(4), jnp.array([True, True, True, False, False])
    reconstruction, hidden = eqx.filter_jit(tokenizer.reconstruct)(video, key=key)
    assert hidden[:3].any() and not hidden[:3].all()
    values = terms(tokenizer, video, valid, perceptual, key)
    squared = (np.asarray(reconstruction, np.float64) - np.asarray(video)) ** 2
    assert abs(values["mse"] / squared[:3].mean() - 1) < 1e-5
    features = [reference_features(perceptual.kernels, reconstruction[t], video[t]) for t in range(3)]
    assert abs(values["perceptual"] / np.mean(features) - 1) < 1e-4


def test_padding_does_not_count(tokenizer, video, perceptual):
    valid = jnp.array([True, True, True, False, False])
    clean = terms(tokenizer, video, valid, perceptual, jr.key(4))
    spoiled = terms(tokenizer, video.at[3:].set(1.0), valid, perceptual, jr.key(4))
    assert distance(clean, spoiled) == 0.0
    nothing = terms(tokenizer, video, jnp.zeros(FRAMES, bool), perceptual, jr.key(4))
    assert all(value == 0.0 for value in nothing.values())


def test_the_perceptual_term_is_optional(tokenizer, video):
    assert set(terms(tokenizer, video, jnp.ones(FRAMES, bool), None, jr.key(0))) == {"mse"}


def test_features_tell_videos_apart_frame_by_frame(video, perceptual):
    assert not perceptual(video, video).any()
    moved = perceptual(video.at[2].set(jnp.roll(video[2], 1, axis=0)), video)
    assert moved[2] > 1e-3 and not np.delete(moved, 2).any()


def test_the_gradient_goes_to_the_prediction_and_not_to_the_kernels(video, perceptual):
    def loss(both):
        features, prediction = both
        return features(prediction, video).sum()

    of_features, of_prediction = eqx.filter_jit(eqx.filter_grad(loss))((perceptual, video[::-1]))
    assert not any(leaf.any() for leaf in jax.tree.leaves(of_features))
    assert np.isfinite(of_prediction).all() and np.abs(of_prediction).max() > 1e-4
    equal_videos = jax.jit(jax.grad(lambda v: perceptual(v, video).sum()))(video)
    assert np.isfinite(equal_videos).all()


def test_features_depend_on_the_seed_alone():
    first, again, other = (RandomFeatures(2, widths=(3, 4), seed=s) for s in (0, 0, 1))
    assert distance(first, again) == 0.0 and distance(first, other) > 0.01
