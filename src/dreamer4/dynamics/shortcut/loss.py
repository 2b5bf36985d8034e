"""The loss of shortcut forcing over a batch: what is noisy, who teaches, and what is predicted after which past."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int, PRNGKeyArray

from dreamer4.dynamics.base import WorldLoss
from dreamer4.dynamics.shortcut.forcing import AbstractForcing, bootstrap_target, ramp, space_weight
from dreamer4.dynamics.shortcut.network import AbstractNetwork
from dreamer4.dynamics.shortcut.noise import NoisyFrames, as_past, corrupt
from dreamer4.errors import InputError
from dreamer4.nn.rows import masked_mean, over_rows, split_rows
from dreamer4.types import Trajectory


class _Rows(eqx.Module):
    """A batch as the dynamics is trained on it: latents, the frames shown, and who sees whom.

    `past` is what the frames are as the past of others, where the forcing gives one.
    """

    z: Float[Array, "B T Nz Dz"]
    frames: NoisyFrames
    past: NoisyFrames | None
    segment: Int[Array, "B T"]


def _predictor(network: AbstractNetwork, row: _Rows, task: Int[Array, ""] | None):
    """Returns the model of one row as a function of noisy frames; it gives read-outs `h` too, if there is a task.

    Where rows have a past, the read-outs are those of the past, which is what an acting agent has. Otherwise they are
    those of the noisy frames, and come with the prediction.
    """
    if row.past is None:
        return lambda frames: network(frames, task, row.segment)
    _, h, entries = network.prefill(row.past, task, row.segment)
    return lambda frames: (network.drafts(frames, entries, row.segment), h)


def _targets(
    forcing: AbstractForcing, network: AbstractNetwork, rows: _Rows, progress: Float[Array, ""], accumulate: int
) -> Float[Array, "B T Nz Dz"]:
    """Returns what each frame should be predicted as: the data, or for coarse steps what two half steps lead to."""

    def teach(row):
        predict = _predictor(network, row, None)
        return bootstrap_target(lambda frames: predict(frames)[0], forcing.grid, row.frames)

    # Until teachers start, coarse steps learn from the data too, so that no teacher is untrained.
    started = progress >= forcing.settings.bootstrap_start
    taught = jax.lax.cond(started, over_rows(teach, accumulate), lambda rows: rows.z, rows)
    coarse = rows.frames.levels.step_index < forcing.grid.finest
    return jax.lax.stop_gradient(jnp.where(coarse[..., None, None], taught, rows.z))


def shortcut_loss(
    network: AbstractNetwork,
    forcing: AbstractForcing,
    batch: Trajectory,
    progress: Float[Array, ""],
    *,
    with_readout: bool,
    accumulate: int = 1,
    space: str = "x",
    key: PRNGKeyArray,
) -> WorldLoss:
    """Returns the shortcut-forcing loss of a batch (eq 7 with the ramp of eq 8), and the read-outs it produced.

    The error is taken in `space`, x or v (`space_weight`); metrics are errors of clean latents in any case.

    The teachers of the bootstrap rows run first, without gradient, on those rows only; one differentiated pass over all
    rows follows. Where the forcing gives a past, only frames with one count, since a dream always starts from a frame.
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
    tau, known = grid.tau(levels.tau_index), batch.action_mask & ~image[:, None]
    z_noisy = corrupt(batch.latent, grid.noise(batch.latent.shape, key=key_noise), tau)
    tasks = jnp.broadcast_to(batch.task[:, None], known.shape)
    frames = NoisyFrames(z_noisy, levels, batch.action, known, tasks)
    past, counted = None, batch.valid & batch.uniform[:, None]
    if forcing.given_past:
        key_past = jr.fold_in(key_noise, 1)
        past = as_past(grid, forcing.context_index, batch.latent, batch.action, known, tasks, key=key_past)
        follows = jnp.diff(segment, axis=1, prepend=-1) == 0
        counted &= follows | image[:, None]
    rows = _Rows(batch.latent, frames, past, segment)

    target = batch.latent
    if taught:
        first = split_rows(jax.tree.map(lambda x: x[:taught], rows))
        frozen = jax.lax.stop_gradient(network)
        target = jnp.concatenate([_targets(forcing, frozen, first, progress, accumulate), batch.latent[taught:]])

    def predict(row, task):
        return _predictor(network, row, task)(row.frames)

    if with_readout:
        z_hat, h = over_rows(predict, accumulate)(rows, batch.task)
    else:
        z_hat, h = over_rows(lambda row: predict(row, None), accumulate)(rows)
    error = jnp.mean((z_hat - target) ** 2, axis=(-2, -1))
    weight = ramp(tau, floor=forcing.settings.ramp_floor) * space_weight(tau, space)
    loss = masked_mean(weight * error, counted)
    coarse = levels.step_index < grid.finest
    from_noise = (levels.tau_index == 0) & ~image[:, None]
    metrics = {
        "flow": masked_mean(error, counted & ~coarse),
        "flow_from_noise": masked_mean(error, counted & ~coarse & from_noise),
        "bootstrap": masked_mean(error, counted & coarse),
    }
    return WorldLoss(loss, metrics, h, image)
