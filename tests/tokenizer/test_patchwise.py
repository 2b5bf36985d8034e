"""What PatchwiseTokenizer adds to the laws of a tokenizer: every patch by itself, and all of them alike."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import distance, generic, influence

from dreamer4.errors import InputError
from dreamer4.tokenizer import LatentStats, PatchwiseTokenizer, patchify, unpatchify


FRAME, PATCH, PATCHES = (4, 6, 2), (2, 2), 6


def build(num_spatial=3, frame_shape=FRAME, **settings):
    sizes = {"latent_dim": 3, "width": 16, "patch": PATCH, **settings}
    tokenizer = generic(PatchwiseTokenizer, frame_shape=frame_shape, num_spatial=num_spatial, **sizes, key=jr.key(0))
    return eqx.tree_at(lambda t: t.stats, tokenizer, LatentStats.identity(num_spatial, tokenizer.spatial_dim))


@pytest.fixture(scope="module")
def tokenizer():
    return build()


def test_a_token_tells_of_its_own_patches_alone_and_they_are_drawn_from_it_alone(tokenizer):
    patches = jr.uniform(jr.key(1), (1, PATCHES, 8))
    own = np.repeat(np.eye(3, dtype=bool), 2, axis=1)  # two neighbours in a row share a token
    seen = influence(lambda p: tokenizer.encode(unpatchify(p, PATCH, FRAME)), patches, outputs=2, inputs=2)
    assert np.array_equal(seen[0, :, 0] > 0, own)
    latent = jr.uniform(jr.key(2), (1, 3, 6), minval=-1.0)
    drawn = influence(lambda z: patchify(tokenizer.decode(z), PATCH), latent, outputs=2, inputs=2)
    assert np.array_equal(drawn[0, :, 0] > 0, own.T)


def test_a_patch_has_one_code_wherever_it_lies(tokenizer):
    order = np.array([3, 5, 1, 0, 4, 2])
    patches = jr.uniform(jr.key(1), (1, PATCHES, 8))
    codes, moved = (
        np.asarray(tokenizer.encode(unpatchify(p, PATCH, FRAME))).reshape(PATCHES, 3)
        for p in (patches, patches[:, order])
    )
    assert distance(moved, codes[order]) < 1e-6
    assert len(np.unique(codes.round(4), axis=0)) == PATCHES


def test_codes_are_bounded_by_one_and_tell_bright_patches_from_dark_ones():
    tokenizer = build(pixel_zero=0.0)
    bright = jnp.linspace(0.1, 1.0, 8)[:, None, None, None] * jr.uniform(jr.key(3), (1, *FRAME))
    codes = tokenizer.encode(bright)
    assert np.abs(codes).max() <= 1.0
    assert np.abs(np.diff(codes, axis=0)).max((1, 2)).min() > 1e-3  # what scaling alone changes, a norm would hide


def test_training_hides_no_patch(tokenizer):
    video = jr.uniform(jr.key(1), (5, *FRAME))
    drawn, hidden = tokenizer.reconstruct(video, key=jr.key(2))
    assert hidden.shape == (5, PATCHES) and not hidden.any()
    assert distance(drawn, tokenizer.decode(tokenizer.encode(video))) < 1e-5


def test_the_pixel_that_counts_as_zero_shifts_what_is_seen_and_what_is_drawn(tokenizer):
    video, latent = jr.uniform(jr.key(1), (2, *FRAME)), jr.uniform(jr.key(2), (2, 3, 6), minval=-1.0)
    shifted = build(pixel_zero=0.2)
    assert distance(shifted.encode(video - 0.3), tokenizer.encode(video)) < 1e-5
    assert distance(shifted.decode(latent) + 0.3, tokenizer.decode(latent)) < 1e-5


def test_tokens_that_the_patches_do_not_share_out_among_are_refused():
    with pytest.raises(InputError, match=r"got 4, which does not divide the 6 patches of 2 x 2"):
        build(num_spatial=4)
