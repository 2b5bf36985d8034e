"""The loss of shortcut forcing over a batch: what is noisy, who teaches, and what is predicted after which past."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from dreamer4.agent.objectives import masked_mean
from dreamer4.dreamer import Dreamer
from dreamer4.dynamics import AbstractDynamics, Levels, ShortcutForcing, bootstrap_target, corrupt, ramp
from dreamer4.errors import InputError
from dreamer4.training.placement import split_rows
from dreamer4.training.rows import Metrics, over_rows
from dreamer4.types import Action, Trajectory


class _Rows(eqx.Module):
    """A batch as the dynamics is trained on it: latents, noisy latents, their labels, and who sees whom.

    `z_past` is what the frames are as the past of others, in the mode `drafts`.
    """

    z: Float[Array, "B T Nz Dz"]
    z_noisy: Float[Array, "B T Nz Dz"]
    z_past: Float[Array, "B T Nz Dz"] | None
    levels: Levels
    action: Action
    action_mask: Bool[Array, "B T"]
    segment: Int[Array, "B T"]


def _predictor(forcing: ShortcutForcing, dynamics: AbstractDynamics, row: _Rows, task: Int[Array, ""] | None):
    """Returns the model of one row as a function of noisy latents and labels, and the row's read-outs `h`, if any.

    In the mode `drafts` the read-outs are those of the past, which is what an acting agent has. Otherwise they are
    those of the noisy frames, and come with the prediction.
    """
    if row.z_past is None:

        def predict(z, tau_index, step_index):
            return dynamics(z, tau_index, step_index, row.action, row.action_mask, task, row.segment)

        return predict

    past = forcing.context_labels(row.action_mask.shape[0])
    _, h, entries = dynamics.prefill(
        row.z_past, past.tau_index, past.step_index, row.action, row.action_mask, task, row.segment
    )

    def draft(z, tau_index, step_index):
        return dynamics.drafts(z, tau_index, step_index, row.action, row.action_mask, entries, row.segment), h

    return draft


def _targets(
    forcing: ShortcutForcing, dynamics: AbstractDynamics, rows: _Rows, progress: Float[Array, ""], accumulate: int
) -> Float[Array, "B T Nz Dz"]:
    """Returns what each frame should be predicted as: the data, or for coarse steps what two half steps lead to."""

    def teach(row):
        predict = _predictor(forcing, dynamics, row, None)
        return bootstrap_target(lambda *noisy: predict(*noisy)[0], forcing.grid, row.z_noisy, row.levels)

    # Until teachers start, coarse steps learn from the data too, so that no teacher is untrained.
    started = progress >= forcing.bootstrap_start
    taught = jax.lax.cond(started, over_rows(teach, accumulate), lambda rows: rows.z, rows)
    coarse = rows.levels.step_index < forcing.grid.finest
    return jax.lax.stop_gradient(jnp.where(coarse[..., None, None], taught, rows.z))


def dynamics_loss(
    dreamer: Dreamer,
    forcing: ShortcutForcing,
    batch: Trajectory,
    progress: Float[Array, ""],
    *,
    with_agent: bool,
    accumulate: int = 1,
    key: PRNGKeyArray,
) -> tuple[Float[Array, ""], Metrics, Float[Array, "B T E"] | None, Bool[Array, " B"]]:
    """Returns the shortcut-forcing loss of a batch (eq 7 with the ramp of eq 8), and the read-outs it produced.

    The teachers of the bootstrap rows run first, without gradient, on those rows only; one differentiated pass over all
    rows follows. In the mode `drafts` only frames with a past count, since a dream always starts from a frame.

    Returns:
        The loss; metrics; read-outs `h` (None without agent); and which rows were trained as separate images.
    """
    if batch.latent is None:
        raise InputError("dynamics: the batch holds frames, not latents. Encode the data set first.")
    grid = forcing.grid
    size, length = batch.reward.shape
    taught = forcing.bootstrap_rows(size)
    key_levels, key_segments, key_noise = jr.split(key, 3)
    keys = jr.split(key_levels, size)
    levels = jax.tree.map(
        lambda a, b: jnp.concatenate([a, b]),
        jax.vmap(lambda k: forcing.bootstrap_row(length, key=k))(keys[:taught]),
        jax.vmap(lambda k: forcing.flow_row(length, key=k))(keys[taught:]),
    )
    segment, image = jax.vmap(lambda k: forcing.segments(length, key=k))(jr.split(key_segments, size))
    tau = grid.tau(levels.tau_index)
    z_noisy = corrupt(batch.latent, jr.normal(key_noise, batch.latent.shape), tau)
    z_past, counted = None, batch.valid & batch.uniform[:, None]
    if forcing.drafts:
        noise = jr.normal(jr.fold_in(key_noise, 1), batch.latent.shape)
        z_past = corrupt(batch.latent, noise, grid.tau(jnp.full_like(levels.tau_index, forcing.context_index)))
        follows = jnp.diff(segment, axis=1, prepend=-1) == 0
        counted &= follows | image[:, None]
    rows = _Rows(batch.latent, z_noisy, z_past, levels, batch.action, batch.action_mask & ~image[:, None], segment)

    target = batch.latent
    if taught:
        first = split_rows(jax.tree.map(lambda x: x[:taught], rows))
        frozen = jax.lax.stop_gradient(dreamer.dynamics)
        target = jnp.concatenate([_targets(forcing, frozen, first, progress, accumulate), batch.latent[taught:]])

    def predict(row, task):
        predict = _predictor(forcing, dreamer.dynamics, row, task)
        return predict(row.z_noisy, row.levels.tau_index, row.levels.step_index)

    if with_agent:
        z_hat, h = over_rows(predict, accumulate)(rows, batch.task)
    else:
        z_hat, h = over_rows(lambda row: predict(row, None), accumulate)(rows)
    error = jnp.mean((z_hat - target) ** 2, axis=(-2, -1))
    loss = masked_mean(ramp(tau, floor=forcing.ramp_floor) * error, counted)
    coarse = levels.step_index < grid.finest
    from_noise = (levels.tau_index == 0) & ~image[:, None]
    metrics = {
        "flow": masked_mean(error, counted & ~coarse),
        "flow_from_noise": masked_mean(error, counted & ~coarse & from_noise),
        "bootstrap": masked_mean(error, counted & coarse),
    }
    return loss, metrics, h, image
