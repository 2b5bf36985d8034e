"""The loss of a batch (eqs 7 and 8), on a world whose every error is known beforehand."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from dreamer4.config import ShortcutConfig
from dreamer4.dynamics.shortcut import AbstractNetwork, NoiseGrid, build_forcing, shortcut_loss
from dreamer4.types import Action, ActionSpec, DataSpec, Trajectory


ROWS, FRAMES = 200, 40
SPEC = DataSpec((10, 5, 1), ActionSpec((3,)))


class Ladder(AbstractNetwork):
    """Predicts, everywhere, `rise` times the index of the step size.

    A step and its teachers are one index apart, and so are the finest step and data at `rise * (finest + 1)`: every
    error of the loss is `rise`, squared.
    """

    rise: jax.Array
    grid: NoiseGrid = eqx.field(default=NoiseGrid(8))
    num_spatial: int = eqx.field(static=True, default=2)
    spatial_dim: int = eqx.field(static=True, default=3)
    agent_dim: int = eqx.field(static=True, default=1)
    context_length: int = eqx.field(static=True, default=8)

    def __call__(self, frames, task, segment=None):
        return jnp.broadcast_to(self.rise * frames.levels.step_index[:, None, None].astype(float), frames.z.shape), None

    def prefill(self, frames, task, segment=None):
        return None, None, frames

    def drafts(self, frames, entries, segment=None):
        # Wrong by 99 at frames without a past, and where the past is not at the context's level.
        past = entries
        noise = jnp.sqrt(jnp.mean((past.z - 7 / 8 * 8.0) ** 2, axis=(-2, -1)))  # one eighth of unit noise around 7
        wrong = (past.levels.tau_index != 7) | (past.levels.step_index != 3) | (noise > 0.5)
        wrong |= jnp.diff(segment, prepend=-1) != 0
        return 99.0 * wrong[:, None, None] + self(frames, None)[0]

    init_cache = step = flops = prefill


class Masked(Ladder):
    """A ladder whose drafts are wrong by 99 where the past tells other actions than the drafts are told."""

    def drafts(self, frames, entries, segment=None):
        wrong = entries.action_mask != frames.action_mask
        return 99.0 * wrong[:, None, None] + self(frames, None)[0]


@pytest.fixture(scope="module")
def ladder():
    return Ladder(jnp.array(2.0))


@pytest.fixture(scope="module")
def batch():
    flags = jnp.zeros((ROWS, FRAMES), bool)
    return Trajectory(
        frame=None,
        latent=jnp.full((ROWS, FRAMES, 2, 3), 8.0),
        action=Action.null(SPEC.action, ROWS, FRAMES),
        action_mask=~flags,
        reward=jnp.zeros((ROWS, FRAMES)),
        is_first=flags,
        is_last=flags,
        is_terminal=flags,
        valid=~flags,
        task=jnp.zeros(ROWS, jnp.int32),
        relevant=jnp.ones(ROWS, bool),
        uniform=jnp.ones(ROWS, bool),
    )


@eqx.filter_jit
def loss(network, forcing, batch, progress, space="x"):
    def total(network):
        world = shortcut_loss(network, forcing, batch, progress, with_readout=False, space=space, key=jr.key(0))
        return world.loss, world.metrics

    (value, metrics), gradient = eqx.filter_value_and_grad(total, has_aux=True)(network)
    return value, metrics, gradient.rise


def forcing(**settings):
    return build_forcing(ShortcutConfig(k_max=8, **settings), context_signal=0.9)


def mean_ramp(step_index):
    """The mean weight of eq 8 over the signals that a step size reaches."""
    count = 2**step_index
    return np.mean(0.9 * np.arange(count) / count + 0.1)


def test_both_branches_have_their_error_and_the_same_ramp(ladder, batch):
    value, metrics, _ = loss(ladder, forcing(mode="paper", bootstrap_start=0.0), batch, jnp.array(1.0))
    assert abs(metrics["flow"] - 4.0) < 1e-4
    assert abs(metrics["bootstrap"] - 4.0) < 1e-4
    # The step size is uniform over the four of the grid; 8,000 frames give the mean ramp to about 0.003.
    assert abs(value / 4.0 - np.mean([mean_ramp(s) for s in range(4)])) < 0.01


def test_the_loss_space_weighs_each_signal_and_leaves_the_metrics(ladder, batch):
    settings = forcing(mode="split", bootstrap_fraction=0.0, ramp_floor=1.0)
    value, metrics, _ = loss(ladder, settings, batch, jnp.array(1.0), "v")
    assert abs(metrics["flow"] - 4.0) < 1e-4
    assert abs(value / 4.0 / np.mean((1 - np.arange(8) / 8) ** -2.0) - 1) < 0.03


def test_the_noise_of_the_past_has_the_scale_of_the_grid(batch):
    louder = Ladder(jnp.array(2.0), NoiseGrid(8, 8.0))
    settings = forcing(mode="drafts", image_fraction=0.0, ramp_floor=1.0, noise_scale=8.0)
    assert settings.grid == louder.grid
    value, _, _ = loss(louder, settings, batch, jnp.array(1.0))
    assert value > 1000.0  # an eighth of it is unit noise, which the ladder does not take for that of the context


def test_split_mode_gives_teachers_their_share_of_rows(ladder, batch):
    value, metrics, _ = loss(
        ladder, forcing(mode="split", bootstrap_fraction=0.4, bootstrap_start=0.0), batch, jnp.array(1.0)
    )
    assert abs(metrics["flow"] - 4.0) < 1e-4 and abs(metrics["bootstrap"] - 4.0) < 1e-4
    expected = 0.6 * mean_ramp(3) + 0.4 * np.mean([mean_ramp(s) for s in range(3)])
    assert abs(value / 4.0 - expected) < 0.01


def test_images_have_no_actions_as_the_past_of_drafts_either(ladder, batch):
    settings = forcing(mode="drafts", bootstrap_fraction=0.4, bootstrap_start=0.0, image_fraction=0.5, ramp_floor=1.0)
    masked = Masked(jnp.array(2.0))
    value, _, _ = loss(masked, settings, batch, jnp.array(1.0))
    assert abs(value - 4.0) < 1e-4


@pytest.mark.parametrize("chunk", [None, 5])
def test_drafts_follow_a_past_at_the_contexts_level_and_count_only_behind_one(ladder, batch, chunk):
    settings = forcing(
        mode="drafts", bootstrap_fraction=0.4, bootstrap_start=0.0, image_fraction=0.0, chunk_length=chunk,
        long_fraction=0.0, ramp_floor=1.0,
    )  # fmt: skip
    value, metrics, _ = loss(ladder, settings, batch, jnp.array(1.0))
    for error in (value, metrics["flow"], metrics["flow_from_noise"], metrics["bootstrap"]):
        assert abs(error - 4.0) < 1e-4


def test_before_teachers_start_coarse_steps_learn_from_the_data(ladder, batch):
    early = forcing(mode="paper", bootstrap_start=0.5)
    _, metrics, _ = loss(ladder, early, batch, jnp.array(0.4))
    # Data lie at 2 * 4, and the coarse predictions at 2 * 0, 2 * 1 and 2 * 2.
    assert abs(metrics["flow"] - 4.0) < 1e-4
    assert abs(metrics["bootstrap"] - np.mean([64.0, 36.0, 16.0])) < 1.0
    _, metrics, _ = loss(ladder, early, batch, jnp.array(0.6))
    assert abs(metrics["bootstrap"] - 4.0) < 1e-4


def test_the_gradient_is_that_of_the_prediction_alone(ladder, batch):
    """Were the teacher differentiated, `rise` would shrink the distance of neighbours: another gradient, always > 0."""
    every = forcing(mode="split", bootstrap_fraction=1.0, bootstrap_start=0.0)
    _, _, gradient = loss(ladder, every, batch, jnp.array(1.0))
    # d/drise of ramp * (rise * s - target)^2 with target = rise * (s + 1) held fixed is -2 * rise * s * ramp.
    expected = np.mean([-2 * 2.0 * s * mean_ramp(s) for s in range(3)])
    assert abs(gradient - expected) < 0.05


def test_padding_and_rows_kept_from_the_world_model_do_not_count(ladder, batch):
    settings = forcing(mode="split", bootstrap_fraction=0.0)
    spoiled = eqx.tree_at(
        lambda b: (b.latent, b.valid, b.uniform),
        batch,
        (
            batch.latent.at[:, 30:].set(99.0).at[150:].set(-99.0),
            batch.valid.at[:, 30:].set(False),
            batch.uniform.at[150:].set(False),
        ),
    )
    value, metrics, _ = loss(ladder, settings, spoiled, jnp.array(1.0))
    assert abs(metrics["flow"] - 4.0) < 1e-4
    assert abs(value / 4.0 - mean_ramp(3)) < 0.02
