"""The laws of every registered tokenizer, and the patches, masks and bottleneck of CausalTokenizer."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import distance, equal, generic, influence
from scipy.stats import kstest

from dreamer4 import tokenizer as tokenizers
from dreamer4.config import TokenizerConfig
from dreamer4.errors import InputError
from dreamer4.tokenizer import LatentStats, patchify, unpatchify
from dreamer4.tokenizer.base import MIN_STD
from dreamer4.types import ActionSpec, DataSpec


FRAMES, WINDOW = 9, 4  # the ring of 4 wraps twice over 9 frames
FRAME, PATCH, PATCHES = (4, 6, 2), (2, 3), 4


def build(frame_shape=FRAME, **settings):
    transformer = {"width": 16, "depth": 2, "heads": 2, "kv_heads": 2, "time_every": 2, "context_length": WINDOW}
    defaults = {"patch": PATCH, "num_latents": 4, "latent_dim": 3, "num_spatial": 2}
    config = {"encoder": transformer, "decoder": transformer, **defaults, **settings}
    spec = DataSpec(frame_shape, ActionSpec((2,)))
    return generic(tokenizers.build, TokenizerConfig.model_validate(config), spec, key=jr.key(0))


# How many frames a code and a frame see of codes and frames. Where the queries sit out the time layer, which is the
# last, the past does not reach them.
REACH = {("causal", "all"): (WINDOW, WINDOW), ("causal", "latents"): (WINDOW, 1), ("patchwise", "all"): (1, 1)}


def test_the_laws_are_checked_of_every_registered_tokenizer():
    assert {kind for kind, _ in REACH} == set(tokenizers.TOKENIZERS)


@pytest.fixture(scope="module", params=REACH, ids="-".join)
def law(request):
    """A tokenizer, and how far encoder and decoder see."""
    kind, time_tokens = request.param
    return build(kind=kind, time_tokens=time_tokens), REACH[request.param]


@pytest.fixture(scope="module")
def tokenizer(law):
    return law[0]


@pytest.fixture(scope="module")
def plain():
    return build()


@pytest.fixture(scope="module")
def video():
    return jr.uniform(jr.key(1), (FRAMES, *FRAME))


@pytest.fixture(scope="module")
def latent():
    return jr.uniform(jr.key(2), (FRAMES, 2, 6), minval=-1.0)


@eqx.filter_jit
def encode(tokenizer, video):
    return tokenizer.encode(video)


@eqx.filter_jit
def decode(tokenizer, latent):
    return tokenizer.decode(latent)


@eqx.filter_jit
def reconstruct(tokenizer, video, key):
    return tokenizer.reconstruct(video, key=key)


# ---- the contract


def test_codes_depend_on_no_later_frame_and_frames_on_no_later_code(law, video, latent):
    tokenizer, reach = law
    age = np.subtract.outer(np.arange(FRAMES), np.arange(FRAMES))
    for function, clip, seen in zip((tokenizer.encode, tokenizer.decode), (video, latent), reach, strict=True):
        assert np.array_equal(influence(function, clip) > 0, (age >= 0) & (age < seen))


def test_frame_by_frame_equals_whole_clips_beyond_the_window(tokenizer, video, latent):
    @eqx.filter_jit
    def stepwise(tokenizer, video, latent):
        def body(streams, frame):
            code, encoder = tokenizer.encode_step(frame[0], streams[0])
            image, decoder = tokenizer.decode_step(frame[1], streams[1])
            return (encoder, decoder), (code, image)

        return jax.lax.scan(body, (tokenizer.init_encoder(), tokenizer.init_decoder()), (video, latent))

    (encoder, decoder), (codes, images) = stepwise(tokenizer, video, latent)
    assert distance(codes, encode(tokenizer, video)) < 1e-5
    assert distance(images, decode(tokenizer, latent)) < 1e-5
    assert encoder.position == decoder.position == FRAMES


def test_statistics_standardise_codes_and_are_undone_before_decoding(tokenizer, video, latent):
    stats = LatentStats(jr.normal(jr.key(3), (2, 6)), jr.uniform(jr.key(4), (2, 6), minval=0.5), jnp.array(True))
    identity = LatentStats.identity(2, 6)
    raw, scaled = (eqx.tree_at(lambda t: t.stats, tokenizer, s) for s in (identity, stats))
    codes = encode(raw, video)
    assert distance(encode(scaled, video), (codes - stats.mean) / stats.std) < 1e-5
    assert distance(decode(scaled, (latent - stats.mean) / stats.std), decode(raw, latent)) < 1e-5
    # Training goes around the statistics, so the two agree to the bit.
    key = jr.key(5)
    assert equal(reconstruct(raw, video, key), reconstruct(scaled, video, key))


# ---- patches


def test_patches_are_cut_row_by_row():
    video = jr.uniform(jr.key(0), (3, 4, 6, 2))
    patches = patchify(video, PATCH)
    assert patches.shape == (3, PATCHES, 12)
    for i, (row, column) in enumerate([(0, 0), (0, 3), (2, 0), (2, 3)]):
        assert equal(patches[:, i], video[:, row : row + 2, column : column + 3].reshape(3, 12))
    assert equal(unpatchify(patches, PATCH, FRAME), video)


def test_a_patch_larger_than_the_frame_is_refused():
    with pytest.raises(InputError, match=r"4 x 6, larger than frames of 10 x 5"):
        build((10, 5, 1), patch=(4, 6))


@pytest.fixture(scope="module")
def uneven():
    """Frames of 5 x 7 in patches of 2 x 3: a row and two columns are padding."""
    return build((5, 7, 1)), jr.uniform(jr.key(3), (3, 5, 7, 1))


def test_frames_that_patches_do_not_tile_are_padded_with_their_edge_and_cut_to_their_size(uneven):
    tokenizer, video = uneven
    patches = patchify(video, PATCH)
    assert patches.shape == (3, 9, 6)
    assert equal(unpatchify(patches, PATCH, (5, 7, 1)), video)
    corner = patches[:, 8].reshape(3, 2, 3)
    assert equal(corner, jnp.broadcast_to(video[:, 4:, 6:, 0], corner.shape))
    # As a tokenizer of whole patches would encode the padded film; what that draws beyond the frame is cut off.
    padded = jnp.pad(video, ((0, 0), (0, 1), (0, 2), (0, 0)), mode="edge")
    whole = build((6, 9, 1))
    latent = encode(tokenizer, video)
    assert distance(latent, encode(whole, padded)) < 1e-5
    assert distance(decode(tokenizer, latent), decode(whole, latent)[:, :5, :7]) < 1e-5


def test_no_loss_asks_for_what_is_drawn_on_padding(uneven):
    _, video = uneven
    asked = jax.grad(lambda patches: unpatchify(patches, PATCH, (5, 7, 1)).sum())(patchify(video, PATCH))
    real = np.zeros((3, 6, 9, 1))
    real[:, :5, :7] = 1
    assert equal(asked, patchify(jnp.asarray(real), PATCH))


# ---- who sees whom


def test_the_pixel_that_counts_as_zero_shifts_what_is_seen_and_what_is_drawn(plain, video, latent):
    shifted = build(pixel_zero=0.2)
    assert distance(encode(shifted, video - 0.3), encode(plain, video)) < 1e-5
    assert distance(decode(shifted, latent) + 0.3, decode(plain, latent)) < 1e-5
    # At zero nothing but the bias enters.
    tokens = shifted._encoder_tokens(jnp.full((1, *FRAME), 0.2), None)[0, :PATCHES]
    assert distance(tokens, np.tile(shifted.patch_in.bias, (PATCHES, 1))) < 1e-6


def test_patches_never_see_latents_and_latents_see_everything(plain):
    tokens = jr.normal(jr.key(0), (1, plain.encoder.layout.size, 16))
    acts = influence(plain.encoder, tokens, outputs=2, inputs=2)[0, :, 0] > 0
    patch, latent = (plain.encoder.layout.slots(name) for name in ("patch", "latent"))
    assert (patch.stop - patch.start, latent.stop - latent.start) == (PATCHES, 4)
    assert acts[patch, patch].all() and not acts[patch, latent].any()
    assert acts[latent].all()


def test_decoder_latents_never_see_queries_and_queries_see_everything(plain):
    tokens = jr.normal(jr.key(0), (1, plain.decoder.layout.size, 16))
    acts = influence(plain.decoder, tokens, outputs=2, inputs=2)[0, :, 0] > 0
    query, latent = (plain.decoder.layout.slots(name) for name in ("query", "latent"))
    assert acts[latent, latent].all() and not acts[latent, query].any()
    assert acts[query].all()


@pytest.mark.parametrize("time_tokens", ["all", "latents"])
def test_only_latents_pass_through_time_in_the_smaller_variant(time_tokens):
    tokenizer = build(time_tokens=time_tokens)
    for transformer, start in (
        (tokenizer.encoder, tokenizer.init_encoder),
        (tokenizer.decoder, tokenizer.init_decoder),
    ):
        layout = transformer.layout
        flags = np.array(layout.through_time())
        assert flags[layout.slots("latent")].all()
        rest = np.delete(flags, np.r_[layout.slots("latent")])
        assert (rest.all() if time_tokens == "all" else not rest.any()) and len(rest)
        assert start().cache.key.shape[1] == flags.sum()
    assert build(time_tokens="latents").init_decoder().cache.key.shape[1] == 4


# ---- masking


def test_each_image_hides_its_patches_at_a_rate_of_its_own():
    many = build((32, 32, 1), patch=(1, 1), mask_max=0.6)
    # Nothing but the masks is asked for, so nothing but the masks is computed.
    draw = eqx.filter_jit(lambda keys: jax.vmap(lambda k: many.reconstruct(jnp.zeros((4, 32, 32, 1)), key=k)[1])(keys))
    hidden = np.asarray(draw(jr.split(jr.key(0), 500)))
    rates = hidden.mean(-1)
    assert rates.max() < 0.68 and kstest(rates.ravel() / 0.6, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(rates[:, 0], rates[:, 1])[0, 1]) < 0.15
    # Given the rate, patches are independent: halves of an image differ as coins do.
    left, right = hidden[..., :512].mean(-1), hidden[..., 512:].mean(-1)
    spread = np.mean((left - right) ** 2 / np.maximum(2 * rates * (1 - rates) / 512, 1e-6))
    assert 0.8 < spread < 1.2


def test_hidden_patches_do_not_act_and_visible_ones_do(plain, video):
    key = jr.key(3)
    _, hidden = reconstruct(plain, video, key)
    assert 0.1 < hidden.mean() < 0.8
    patches = patchify(video, PATCH)
    acts = influence(lambda p: plain.reconstruct(unpatchify(p, PATCH, FRAME), key=key)[0], patches, inputs=2)
    assert not acts[:, hidden].any()
    assert (acts.sum(0)[~hidden] > 0).all()


def test_without_masking_reconstruction_is_decoding_what_was_encoded(video):
    unmasked = build(mask_max=0.0)
    reconstruction, hidden = reconstruct(unmasked, video, jr.key(0))
    assert not hidden.any()
    assert distance(reconstruction, decode(unmasked, encode(unmasked, video))) < 1e-5


# ---- the bottleneck


def test_raw_codes_are_bounded_by_one(plain, video):
    raw = eqx.tree_at(lambda t: t.stats, plain, LatentStats.identity(2, 6))
    loud = eqx.tree_at(lambda t: t.bottleneck.weight, raw, 100 * plain.bottleneck.weight)
    codes = np.abs(encode(loud, video))
    assert codes.max() <= 1.0 and np.mean(codes > 0.99) > 0.8
    scaled = eqx.tree_at(lambda t: t.stats, loud, plain.stats)
    assert np.abs(plain.stats.restore(encode(scaled, video))).max() <= 1.0 + 1e-5


def test_there_is_no_second_tanh_before_the_decoder(plain):
    raw = eqx.tree_at(lambda t: t.stats, plain, LatentStats.identity(2, 6))
    small, large = (np.abs(influence(raw.decode, jnp.full((1, 2, 6), level))).sum() for level in (0.0, 5.0))
    # A tanh at 5 has slope 2e-4; the norm in front of the first layer alone costs far less.
    assert large > small / 300


def test_codes_are_regrouped_row_by_row(video):
    def grouped(num_spatial):
        stats = LatentStats.identity(num_spatial, 12 // num_spatial)
        return eqx.tree_at(lambda t: t.stats, build(num_spatial=num_spatial), stats)

    two, four = grouped(2), grouped(4)
    packed, codes = np.asarray(encode(two, video)), np.asarray(encode(four, video))
    assert packed.shape == (FRAMES, 2, 6) and codes.shape == (FRAMES, 4, 3)
    # Nb = 4 latents of Db = 3: channel c of token m is number m * 6 + c of the frame.
    for m in range(2):
        for c in range(6):
            assert distance(packed[:, m, c], codes[:, (6 * m + c) // 3, (6 * m + c) % 3]) < 1e-6
    assert distance(decode(two, packed), decode(four, codes)) < 1e-5


# ---- statistics


def test_measured_statistics_give_zero_mean_and_unit_variance_and_invert():
    raw = jr.normal(jr.key(0), (500, 2, 3)) * jnp.array([0.1, 1.0, 3.0]) + jnp.array([5.0, -1.0, 0.0])
    stats = LatentStats.measure(raw)
    scaled = stats.standardise(raw)
    assert distance(scaled.mean(0), np.zeros((2, 3))) < 1e-4
    assert distance(scaled.std(0), np.ones((2, 3))) < 1e-4
    assert distance(stats.restore(scaled), raw) < 1e-5
    assert stats.measured and not LatentStats.identity(2, 3).measured


def test_a_channel_that_hardly_varies_is_not_blown_up():
    raw = jnp.stack([jnp.full((10, 2), 0.7), 1e-6 * jr.normal(jr.key(0), (10, 2))], axis=-1)
    stats = LatentStats.measure(raw)
    assert distance(stats.std, np.full((2, 2), MIN_STD)) < 1e-8
    assert np.abs(stats.standardise(raw)).max() < 1e-3


def test_the_identity_changes_nothing():
    raw = jr.normal(jr.key(0), (4, 2, 3))
    assert equal(LatentStats.identity(2, 3).standardise(raw), raw)
