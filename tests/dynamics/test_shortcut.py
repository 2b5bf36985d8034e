"""Noise levels, targets and segments of shortcut forcing (eqs 4-8)."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import distance, equal
from jaxtyping import TypeCheckError
from scipy.stats import chisquare

from dreamer4.config import ShortcutConfig
from dreamer4.dynamics.shortcut import (
    Levels,
    NoiseGrid,
    NoisyFrames,
    as_past,
    bootstrap_levels,
    bootstrap_target,
    build_forcing,
    context_levels,
    corrupt,
    flow_levels,
    paper_levels,
    ramp,
    space_weight,
)
from dreamer4.types import Action, ActionSpec


GRID = NoiseGrid(8)
DRAWS = 20_000
# Every (signal, step) pair of the grid: step sizes 1, 1/2, 1/4, 1/8, signals 0, d, ..., 1 - d.
PAIRS = [(i * (8 >> s), s) for s in range(4) for i in range(1 << s)]


def fits(counts, shares=None):
    """Whether counts fit equal (or given) shares; one key in ten thousand fails by chance, and the key is fixed."""
    counts = np.asarray(counts, float)
    expected = None if shares is None else counts.sum() * np.asarray(shares)
    return chisquare(counts, expected).pvalue > 1e-4


# ---- the grid and eq 4


def test_the_grid():
    assert GRID.finest == 3 and NoiseGrid(64).finest == 6
    assert GRID.tau(jnp.arange(9)).tolist() == [i / 8 for i in range(9)]
    assert GRID.stride(jnp.arange(4)).tolist() == [8, 4, 2, 1]
    assert [NoiseGrid(64).snap(signal) for signal in (0.0, 0.5, 0.9, 0.99, 1.0)] == [0, 32, 58, 63, 63]
    assert GRID.snap(0.9) == 7


@pytest.mark.parametrize("scale", [0.5, 1.0, 4.0])
def test_noise_of_another_scale(scale):
    grid = NoiseGrid(64, scale)
    noise = np.asarray(grid.noise((100, 200), key=jr.key(0)))
    assert abs(noise.std() - scale) < 0.02 * scale
    tau = np.arange(65) / 64
    np.testing.assert_allclose(grid.level(jnp.arange(65)), (1 - tau) * scale + tau, rtol=1e-6)
    signal = tau[:64] / ((1 - tau[:64]) * scale + tau[:64])
    for asked in (0.0, 0.3, 0.9, 1.0):
        closest = np.abs(signal - asked).min()
        assert abs(signal[grid.snap(asked)] - asked) <= max(closest, 1e-9) + np.diff(signal).max() / 2


@pytest.mark.parametrize(
    ("draw", "coarsest", "finest"), [(paper_levels, 0, 3), (bootstrap_levels, 0, 2), (flow_levels, 3, 3)]
)
def test_levels_are_uniform_over_step_sizes_and_over_the_signals_each_step_reaches(draw, coarsest, finest):
    levels = draw(GRID, DRAWS, key=jr.key(0))
    tau, step = np.asarray(levels.tau_index), np.asarray(levels.step_index)
    assert {(t, s) for t, s in zip(tau.tolist(), step.tolist(), strict=True)} == {
        (t, s) for t, s in PAIRS if coarsest <= s <= finest
    }
    assert (tau / 8 <= 1 - 2.0**-step).all()
    sizes = np.bincount(step, minlength=4)[coarsest : finest + 1]
    assert len(sizes) == 1 or fits(sizes)
    for s in range(max(coarsest, 1), finest + 1):
        assert fits(np.bincount(tau[step == s] // (8 >> s), minlength=1 << s))


def test_every_frame_has_a_pair_of_its_own():
    levels = paper_levels(GRID, DRAWS, key=jr.key(1))
    for values in (levels.tau_index, levels.step_index):
        values = np.asarray(values, float)
        assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.03


def test_context_levels_are_context_or_pure_noise():
    levels = context_levels(GRID, DRAWS, 7, 0.8, key=jr.key(0))
    assert set(np.unique(levels.tau_index)) == {0, 7}
    assert set(np.unique(levels.step_index)) == {GRID.finest}
    assert fits(np.bincount(np.asarray(levels.tau_index) // 7), [0.2, 0.8])


def test_signal_one_is_clean_and_signal_zero_is_noise():
    z, noise = jr.normal(jr.key(0), (3, 2, 4)), jr.normal(jr.key(1), (3, 2, 4))
    mixed = corrupt(z, noise, jnp.array([0.0, 1.0, 0.25]))
    assert distance(mixed, np.stack([noise[0], z[1], 0.75 * noise[2] + 0.25 * z[2]])) < 1e-6


@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_the_past_is_labelled_with_the_noise_that_is_in_it(batch, scale):
    z, known = 10 * jr.normal(jr.key(0), (*batch, 40, 50)), jr.bernoulli(jr.key(1), 0.5, batch)
    action = Action(jr.randint(jr.key(2), (*batch, 1), 0, 3), jnp.zeros((*batch, 0)))
    past = as_past(NoiseGrid(8, scale), 5, z, action, known, key=jr.key(3))
    assert (past.levels.tau_index == 5).all() and (past.levels.step_index == GRID.finest).all()
    assert past.levels.tau_index.shape == past.levels.step_index.shape == batch
    noise = (np.asarray(past.z) - 5 / 8 * np.asarray(z)) / (3 / 8) / scale
    assert abs(noise.mean()) < 0.1 and abs(noise.std() - 1) < 0.05
    assert abs(np.corrcoef(noise.ravel(), np.asarray(z).ravel())[0, 1]) < 0.1
    assert equal(past.action, action) and equal(past.action_mask, known)


def test_frames_and_labels_of_different_lengths_are_refused():
    with pytest.raises(TypeCheckError):
        NoisyFrames(
            jnp.zeros((4, 2, 3)), Levels(jnp.zeros(4, jnp.int32), jnp.zeros(4, jnp.int32)),
            Action.null(ActionSpec((3,)), 4), jnp.ones(3, bool),
        )  # fmt: skip


def test_the_ramp_is_eq_8():
    tau = jnp.linspace(0, 1, 9)
    assert distance(ramp(tau), 0.9 * np.linspace(0, 1, 9) + 0.1) < 1e-6
    assert distance(ramp(tau, floor=1.0), np.ones(9)) < 1e-6


# ---- eq 7

MIX = np.random.default_rng(0).normal(size=(3, 3))


def arbitrary(z, tau_index, step_index, xp=jnp):
    """A model that reads all frames, the signal and the step size; the same in NumPy and JAX."""
    past = xp.cumsum(z, axis=0) / xp.arange(1, z.shape[0] + 1)[:, None, None]
    tau, step = tau_index[:, None, None] / 8.0, step_index[:, None, None] * 1.0
    return xp.tanh((z + past) @ xp.asarray(MIX, z.dtype) + 2.0 * tau - xp.sin(1.0 + step)) * 1.5


@pytest.fixture(scope="module")
def example():
    """One frame of every pair, in mixed order."""
    order = np.random.default_rng(1).permutation(len(PAIRS))
    tau_index, step_index = (np.array([PAIRS[i][n] for i in order]) for n in (0, 1))
    z = np.random.default_rng(2).normal(size=(len(PAIRS), 2, 3))
    return z, tau_index, step_index


def reference_target(z, tau_index, step_index):
    """The velocities of both half steps and their mean as a point in clean space, by eq 7 in float64."""
    coarse = (step_index < 3)[:, None, None]
    tau, size = tau_index[:, None, None] / 8, np.where(coarse, 0.5 ** step_index[:, None, None], 0)
    half_index = np.minimum(step_index + 1, 3)
    first_clean = arbitrary(z, tau_index, half_index, np)
    first = (first_clean - z) / (1 - tau)
    moved = z + first * size / 2
    tau_moved = tau + size / 2
    second_clean = arbitrary(moved, np.round(tau_moved[:, 0, 0] * 8).astype(int), half_index, np)
    second = (second_clean - moved) / (1 - tau_moved)
    return (first + second) / 2, z + (1 - tau) * (first + second) / 2, (first_clean + second_clean) / 2


def shown(z, tau_index, step_index):
    levels = Levels(jnp.asarray(tau_index, jnp.int32), jnp.asarray(step_index, jnp.int32))
    length = len(tau_index)
    return NoisyFrames(
        jnp.asarray(z, jnp.float32), levels, Action.null(ActionSpec((3,)), length), jnp.ones(length, bool)
    )


def model(frames):
    return arbitrary(frames.z, frames.levels.tau_index, frames.levels.step_index)


@pytest.fixture(scope="module")
def target(example):
    return jax.jit(lambda frames: bootstrap_target(model, GRID, frames))(shown(*example))


def test_the_target_is_the_mean_velocity_of_two_half_steps_of_the_whole_clip(example, target):
    _, expected, _ = reference_target(*example)
    coarse = example[2] < 3
    assert distance(np.asarray(target)[coarse], expected[coarse]) < 1e-5


def test_averaging_clean_predictions_would_be_another_target(example, target):
    _, _, averaged = reference_target(*example)
    coarse = example[2] < 3
    assert distance(np.asarray(target)[coarse], averaged[coarse]) > 0.1


def test_clean_space_error_is_velocity_error_times_the_squared_remaining_noise(example, target):
    z, tau_index, step_index = example
    velocity, _, _ = reference_target(*example)
    predicted = arbitrary(z, tau_index, step_index, np)
    tau = tau_index[:, None, None] / 8
    in_velocities = (1 - tau) ** 2 * ((predicted - z) / (1 - tau) - velocity) ** 2
    coarse = step_index < 3
    assert distance(((predicted - np.asarray(target)) ** 2)[coarse], in_velocities[coarse]) < 1e-4


def test_an_error_in_velocity_space_is_that_of_velocities(example):
    z, tau_index, step_index = example
    predicted, clean = arbitrary(z, tau_index, step_index, np), z[::-1]
    tau = tau_index / 8
    left = (1 - tau)[:, None, None]
    velocities = np.mean(((predicted - z) / left - (clean - z) / left) ** 2, axis=(1, 2))
    in_clean = np.mean((predicted - clean) ** 2, axis=(1, 2))
    np.testing.assert_allclose(space_weight(jnp.asarray(tau, jnp.float32), "v") * in_clean, velocities, rtol=1e-5)
    np.testing.assert_array_equal(space_weight(jnp.asarray(tau, jnp.float32), "x"), 1.0)


def test_teachers_are_asked_at_half_the_step_and_at_the_level_they_have_reached(example):
    _, tau_index, step_index = example
    calls = []

    def spy(frames):
        calls.append(tuple(np.asarray(x) for x in (frames.z, frames.levels.tau_index, frames.levels.step_index)))
        return model(frames)

    with jax.disable_jit():  # the half steps are a loop, which would show the spy no values
        bootstrap_target(spy, GRID, shown(*example))
    (z_1, tau_1, step_1), (z_2, tau_2, step_2) = calls
    coarse = step_index < 3
    half = np.where(coarse, 8 >> np.minimum(step_index + 1, 3), 0)
    assert np.array_equal(step_1[coarse], step_index[coarse] + 1) and np.array_equal(step_1, step_2)
    # Below twice the finest step the teacher is the branch that learns from data.
    assert (step_1[step_index == 2] == GRID.finest).all()
    assert np.array_equal(tau_1, tau_index) and np.array_equal(tau_2, tau_index + half)
    assert {(t, s) for t, s in zip(tau_2[coarse], step_2[coarse], strict=True)} <= set(PAIRS)
    # All coarse frames move together, the finest stay.
    moved = np.abs(z_2 - z_1).max(axis=(1, 2)) > 1e-6
    assert np.array_equal(moved, coarse)


def test_no_gradient_reaches_model_or_input_through_the_target(example):
    frames = shown(*example)

    def loss(scale, z):
        return jnp.sum(bootstrap_target(lambda f: scale * model(f), GRID, frames.at(z, frames.levels)) ** 2)

    by_scale, by_z = jax.jit(jax.grad(loss, argnums=(0, 1)))(jnp.array(1.3), frames.z)
    assert by_scale == 0.0 and not by_z.any()


def test_a_model_without_curvature_is_its_own_target(example):
    clean = jr.normal(jr.key(5), example[0].shape)
    target = bootstrap_target(lambda _: clean, GRID, shown(*example))
    assert distance(target, clean) < 1e-5


# ---- the draws of a batch


def forcing(**settings):
    return build_forcing(ShortcutConfig(k_max=8, **settings), context_signal=0.9)


@eqx.filter_jit
def rows(forcing, keys):
    """Flow rows and bootstrap rows of 40 frames."""
    return [jax.vmap(lambda k, f=f: f(40, key=k))(keys) for f in (forcing.flow_row, forcing.bootstrap_row)]


def test_paper_mode_teaches_every_row_and_split_mode_a_share():
    paper, split = forcing(mode="paper"), forcing(mode="split", bootstrap_fraction=0.25)
    assert paper.bootstrap_rows(12) == 12 and split.bootstrap_rows(12) == 3
    keys = jr.split(jr.key(0), 50)
    (_, paper_rows), (split_flow, split_rows) = rows(paper, keys), rows(split, keys)
    assert set(np.unique(paper_rows.step_index)) == {0, 1, 2, 3}
    assert set(np.unique(split_rows.step_index)) == {0, 1, 2}
    assert set(np.unique(split_flow.step_index)) == {3}
    assert set(np.unique(split_flow.tau_index)) == set(range(8))


@pytest.mark.parametrize(
    ("fraction", "size", "taught"),
    [(0.25, 2, 1), (0.25, 3, 1), (0.9, 3, 2), (0.01, 8, 1), (0.0, 8, 0), (1.0, 8, 8), (0.3, 10, 3)],
)
def test_a_share_leaves_a_row_of_either_kind(fraction, size, taught):
    assert forcing(mode="split", bootstrap_fraction=fraction).bootstrap_rows(size) == taught


def test_flow_rows_are_context_rows_in_the_share_asked_for():
    drawn, _ = rows(forcing(context_fraction=0.3, context_keep=0.5), jr.split(jr.key(0), 2000))
    assert set(np.unique(drawn.step_index)) == {GRID.finest}
    assert fits(np.bincount(np.isin(drawn.tau_index, [0, 7]).all(-1)), [0.7, 0.3])


def test_drafts_are_pure_noise_in_the_share_asked_for_and_uniform_otherwise():
    flow, taught = rows(forcing(mode="drafts", noise_fraction=0.6), jr.split(jr.key(0), 2000))
    assert set(np.unique(flow.step_index)) == {GRID.finest} and set(np.unique(taught.step_index)) == {0, 1, 2}
    # A uniform level is pure noise one time in eight.
    assert fits(np.bincount(np.asarray(flow.tau_index).ravel()), [0.6 + 0.4 / 8] + [0.4 / 8] * 7)


def test_rows_are_images_chunks_or_long_clips_in_the_shares_asked_for():
    settings = forcing(image_fraction=0.3, chunk_length=4, long_fraction=0.1)
    draw = eqx.filter_jit(eqx.filter_vmap(lambda f, k: f.segments(12, key=k), in_axes=(None, 0)))
    segment, image = (np.asarray(x) for x in draw(settings, jr.split(jr.key(0), 4000)))
    separate = (segment == np.arange(12)).all(-1)
    chunks = (segment == np.arange(12) // 4).all(-1)
    long = (segment == segment[:, :1]).all(-1)
    assert np.array_equal(separate, image)
    assert (separate | chunks | long).all()
    assert fits([separate.sum(), chunks.sum(), long.sum()], [0.3, 0.63, 0.07])


def test_without_chunks_or_images_a_row_is_one_clip():
    segment, image = forcing(image_fraction=0.0).segments(6, key=jr.key(0))
    assert segment.tolist() == [0] * 6 and not image
