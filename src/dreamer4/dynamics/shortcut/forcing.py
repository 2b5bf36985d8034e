"""Shortcut forcing: which noise level and step size each frame gets, and what its prediction should be (eqs 4-8).

A frame whose step size is the finest learns from the data (flow). A frame with a larger step learns from the model
itself (bootstrap): two steps of half the size, taken under stop-gradient, say where one step should lead. The target is
written in clean space, `z + (1 - tau) (b' + b'') / 2`; its squared distance to the prediction equals the velocity error
times (1 - tau)^2 of eq 7, and nothing that is differentiated contains a division.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from dreamer4.config import ShortcutConfig
from dreamer4.dynamics.shortcut.noise import Levels, NoiseGrid, NoisyFrames


def paper_levels(grid: NoiseGrid, length: int, *, key: PRNGKeyArray) -> Levels:
    """Draws a pair per frame as in eq 4: step size uniform over 1, 1/2, ..., 1/k_max, signal uniform on its grid."""
    return _levels(grid, length, 0, grid.finest, key=key)


def bootstrap_levels(grid: NoiseGrid, length: int, *, key: PRNGKeyArray) -> Levels:
    """Draws a pair per frame among the step sizes that learn from teachers: all but the finest."""
    return _levels(grid, length, 0, grid.finest - 1, key=key)


def flow_levels(grid: NoiseGrid, length: int, *, key: PRNGKeyArray) -> Levels:
    """Draws a signal level per frame at the finest step size."""
    return _levels(grid, length, grid.finest, grid.finest, key=key)


def context_levels(grid: NoiseGrid, length: int, context_index: int, keep: float, *, key: PRNGKeyArray) -> Levels:
    """Draws frames as they are met at inference: context at its signal level with probability `keep`, else pure noise.

    Not in the paper. In a small world almost everything about a frame can be read off the frame itself while any of it
    shines through the noise; these rows are where a small model learns to read the past.
    """
    kept = jr.bernoulli(key, keep, (length,))
    return Levels(jnp.where(kept, context_index, 0), jnp.full(length, grid.finest))


def draft_levels(grid: NoiseGrid, length: int, noise: float, *, key: PRNGKeyArray) -> Levels:
    """Draws a signal level per frame at the finest step size, pure noise with probability `noise` in the first place.

    Not in the paper. Where the world leaves nothing to chance, pure noise is where its rules are learned.
    """
    key_flow, key_noise = jr.split(key)
    flow = flow_levels(grid, length, key=key_flow)
    return Levels(jnp.where(jr.bernoulli(key_noise, noise, (length,)), 0, flow.tau_index), flow.step_index)


def _levels(grid, length, coarsest, finest, *, key):
    key_step, key_tau = jr.split(key)
    step_index = jr.randint(key_step, (length,), coarsest, finest + 1)
    # tau is uniform over 0, d, 2d, ..., 1 - d: 2^step_index values.
    multiple = jnp.floor(jr.uniform(key_tau, (length,)) * (1 << step_index).astype(jnp.float32)).astype(jnp.int32)
    return Levels(multiple * grid.stride(step_index), step_index)


def ramp(tau: Float[Array, "*T"], *, floor: float = 0.1) -> Float[Array, "*T"]:
    """Returns the loss weight of a signal level, eq 8: `(1 - floor) tau + floor`, with floor 0.1 in the paper."""
    return (1.0 - floor) * tau + floor


def bootstrap_target(
    predict: Callable[[NoisyFrames], Float[Array, "T Nz Dz"]], grid: NoiseGrid, frames: NoisyFrames
) -> Float[Array, "T Nz Dz"]:
    """Returns the clean-space target of eq 7's bootstrap branch, under stop-gradient.

    All frames of the clip move half a step together, so in the second half step the past is half denoised as well.
    Frames at the finest step have no half: they stay where they are, and their target is not to be used.

    Args:
        predict: the model as a function of a noisy clip.
        grid: the grid of the labels.
        frames: the clip.
    """
    levels = frames.levels
    halved = levels.step_index < grid.finest
    half_index = jnp.minimum(levels.step_index + 1, grid.finest)
    half = jnp.where(halved, grid.stride(half_index), 0)

    def half_step(z, tau_index):
        # On the grid tau + d/2 <= 1 - d/2, so the divisor is at least 1/k_max.
        tau = grid.tau(tau_index)[:, None, None]
        velocity = (predict(frames.at(z, Levels(tau_index, half_index))) - z) / (1.0 - tau)
        return z + velocity * grid.tau(half)[:, None, None], velocity

    # A loop, so that the model is compiled once for both half steps.
    tau_indices = jnp.stack([levels.tau_index, levels.tau_index + half])
    _, velocities = jax.lax.scan(half_step, frames.z, tau_indices)
    tau = grid.tau(levels.tau_index)[:, None, None]
    return jax.lax.stop_gradient(frames.z + (1.0 - tau) * velocities.mean(0))


def space_weight(tau: Float[Array, "*T"], space: str) -> Float[Array, "*T"]:
    """Returns what a squared error of clean latents is multiplied by to be one of space `x` or `v`.

    The velocity towards clean latents is `(z_hat - z) / (1 - tau)`, so its squared error is theirs over `(1 - tau)^2`,
    the factor that eq 7 takes back. Signal levels in training stay below 1.
    """
    return {"x": jnp.ones_like(tau), "v": 1.0 / jnp.square(1.0 - tau)}[space]


class AbstractForcing(eqx.Module):
    """How frames are shown in training: how much noise is in each, by how large a step it is removed, who sees whom.

    Attributes:
        settings: the branch `dynamics.shortcut`.
        context_index: index of the signal level of past frames at inference.
    """

    settings: ShortcutConfig = eqx.field(static=True)
    context_index: int = eqx.field(static=True)
    given_past: ClassVar[bool] = False  # whether each frame is predicted after a past as when acting

    @property
    def grid(self) -> NoiseGrid:
        """The signal levels and step sizes."""
        return NoiseGrid(self.settings.k_max, self.settings.noise_scale)

    @property
    def has_shortcuts(self) -> bool:
        """Whether steps larger than the finest are trained."""
        return self.bootstrap_rows(2) > 0

    @abstractmethod
    def bootstrap_rows(self, batch_size: int) -> int:
        """Returns how many rows of a batch, its first ones, need teachers."""

    @abstractmethod
    def bootstrap_row(self, length: int, *, key: PRNGKeyArray) -> Levels:
        """Draws the labels of a row that needs teachers."""

    @abstractmethod
    def flow_row(self, length: int, *, key: PRNGKeyArray) -> Levels:
        """Draws the labels of a row that learns from the data alone."""

    def segments(self, length: int, *, key: PRNGKeyArray) -> tuple[Int[Array, " T"], Bool[Array, ""]]:
        """Draws what a row is: separate images, short clips, or one long clip, all of the same shape.

        Returns:
            The segment number of each frame, and whether the row is images (which have no actions either).
        """
        key_image, key_long = jr.split(key)
        frame = jnp.arange(length)
        segment = jnp.zeros(length, jnp.int32)
        if self.settings.chunk_length is not None:
            segment = jnp.where(
                jr.bernoulli(key_long, self.settings.long_fraction), segment, frame // self.settings.chunk_length
            )
        image = jr.bernoulli(key_image, self.settings.image_fraction)
        return jnp.where(image, frame, segment), image


class DiffusionForcing(AbstractForcing):
    """Eq 4 literally: a level and a step size for each frame, so every row has frames that need teachers."""

    def bootstrap_rows(self, batch_size: int) -> int:
        return batch_size

    def bootstrap_row(self, length: int, *, key: PRNGKeyArray) -> Levels:
        return paper_levels(self.grid, length, key=key)

    def flow_row(self, length: int, *, key: PRNGKeyArray) -> Levels:
        return flow_levels(self.grid, length, key=key)


class SplitForcing(AbstractForcing):
    """A share of the rows needs teachers, so that the others cost none; not in the paper.

    A share of 0 is diffusion forcing without shortcuts.
    """

    def bootstrap_rows(self, batch_size: int) -> int:
        """Returns how many rows of a batch, its first ones, need teachers.

        Of a batch that is to have both kinds of rows, each has at least one: without the first, nothing would train the
        coarse steps that a sampler takes, and without the second, nothing would tell the model what the data is.
        """
        share = self.settings.bootstrap_fraction
        rows = round(share * batch_size)
        return min(max(rows, 1), batch_size - 1) if 0 < share < 1 else rows

    def bootstrap_row(self, length: int, *, key: PRNGKeyArray) -> Levels:
        return bootstrap_levels(self.grid, length, key=key)

    def flow_row(self, length: int, *, key: PRNGKeyArray) -> Levels:
        key_kind, key_flow, key_context = jr.split(key, 3)
        flow = flow_levels(self.grid, length, key=key_flow)
        context = context_levels(self.grid, length, self.context_index, self.settings.context_keep, key=key_context)
        chosen = jr.bernoulli(key_kind, self.settings.context_fraction)
        return jax.tree.map(lambda a, b: jnp.where(chosen, a, b), context, flow)


class TeacherForcing(SplitForcing):
    """Rows as in `SplitForcing`, each frame after the true past at the context's level; not in the paper."""

    given_past: ClassVar[bool] = True

    def flow_row(self, length: int, *, key: PRNGKeyArray) -> Levels:
        return draft_levels(self.grid, length, self.settings.noise_fraction, key=key)


FORCINGS: dict[str, type[AbstractForcing]] = {
    "paper": DiffusionForcing,
    "split": SplitForcing,
    "drafts": TeacherForcing,
}


def build_forcing(settings: ShortcutConfig, *, context_signal: float) -> AbstractForcing:
    """Builds the forcing that a configuration names; `context_signal` is the signal level of past frames."""
    grid = NoiseGrid(settings.k_max, settings.noise_scale)
    return FORCINGS[settings.mode](settings, grid.snap(context_signal))
