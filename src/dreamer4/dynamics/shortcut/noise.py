"""Frames mixed with noise: how much is in each, how it is labelled, and what a model is shown."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from dreamer4.types import Action


class NoiseGrid(eqx.Module):
    """The discrete signal levels and step sizes of shortcut forcing.

    The flow runs from noise to data: `x_tau = (1 - tau) noise + tau data`, so tau = 0 is pure noise and tau = 1 is
    clean. Both quantities live on a grid and are handled by index:

    - `tau = tau_index / k_max`, `tau_index` from 0 to k_max;
    - `step_size = 2 ** -step_index`, `step_index` from 0 (one step from noise to data) to `finest` (k_max steps).

    Where a choice, say whether an action is carried out, shows in many numbers at once, a little signal gives it away:
    it falls in the first few of k_max levels, and large steps pass it by, always on the likelier side. More noise moves
    it to the middle (Chen, arXiv 2301.10972; the timestep shift of arXiv 2403.03206, with `noise_scale` as its factor).

    Attributes:
        k_max: finest number of steps.
        noise_scale: standard deviation of the noise, with latents of unit scale; above 0. The paper has 1.
    """

    k_max: int = eqx.field(static=True)
    noise_scale: float = eqx.field(static=True, default=1.0)

    @property
    def finest(self) -> int:
        """Index of the smallest step size, `1 / k_max`."""
        return self.k_max.bit_length() - 1

    @property
    def passes(self) -> tuple[int, ...]:
        """The numbers K of equal steps from noise to data, ascending."""
        return tuple(2**i for i in range(self.finest + 1))

    def tau(self, tau_index: Int[Array, "*dims"]) -> Float[Array, "*dims"]:
        """Returns signal levels in [0, 1]."""
        return tau_index.astype(jnp.float32) / self.k_max

    def stride(self, step_index: Int[Array, "*dims"]) -> Int[Array, "*dims"]:
        """Returns step sizes in units of the grid of signal levels."""
        return self.k_max >> step_index

    def noise(self, shape: tuple[int, ...], *, key: PRNGKeyArray) -> Float[Array, "..."]:
        """Draws the noise that latents are mixed with."""
        return self.noise_scale * jr.normal(key, shape)

    def level(self, tau_index: Int[Array, "*dims"]) -> Float[Array, "*dims"]:
        """Returns the sum of the weights of noise and latents: what a mixture is divided by to be of unit scale."""
        tau = self.tau(tau_index)
        return (1.0 - tau) * self.noise_scale + tau

    def snap(self, signal: float) -> int:
        """Returns the index of the trained signal level closest to `signal`; 1 - 1/k_max is the highest trained.

        With noise of another scale, `signal` is what it is after division by `level`: tau / ((1 - tau) scale + tau).
        """
        tau = signal * self.noise_scale / (1.0 - signal + signal * self.noise_scale)
        return min(max(round(tau * self.k_max), 0), self.k_max - 1)


class Levels(eqx.Module):
    """Noise labels: the signal level and the step size of each frame, by index into a `NoiseGrid`."""

    tau_index: Int[Array, "*batch"]
    step_index: Int[Array, "*batch"]


class NoisyFrames(eqx.Module):
    """Frames as a model is shown them: a clip has one leading axis, a single frame none, a batch of clips two.

    Attributes:
        z: latents, mixed with noise frame by frame.
        levels: how much noise is in each, and by how large a step it is to be removed.
        action: action that led to each frame.
        action_mask: where it is known.
        task: whose components the action has; None: it has all.
    """

    z: Float[Array, "*batch Nz Dz"]
    levels: Levels
    action: Action
    action_mask: Bool[Array, "*batch"]
    task: Int[Array, "*batch"] | None = None

    def at(self, z: Float[Array, "*batch Nz Dz"], levels: Levels) -> "NoisyFrames":
        """Returns the same frames elsewhere between noise and data."""
        return NoisyFrames(z, levels, self.action, self.action_mask, self.task)


def corrupt(
    z: Float[Array, "*T Nz Dz"], noise: Float[Array, "*T Nz Dz"], tau: Float[Array, "*T"]
) -> Float[Array, "*T Nz Dz"]:
    """Mixes latents with noise: `(1 - tau) noise + tau z`."""
    tau = tau[..., None, None]
    return (1.0 - tau) * noise + tau * z


def as_past(
    grid: NoiseGrid,
    tau_index: int,
    z: Float[Array, "*batch Nz Dz"],
    action: Action,
    action_mask: Bool[Array, "*batch"],
    task: Int[Array, "*batch"] | None = None,
    *,
    key: PRNGKeyArray,
) -> NoisyFrames:
    """Returns clean frames as the past holds them.

    They are mixed with noise down to one signal level, and labelled with exactly that level and the finest step. The
    paper's "signal level 0.1" of the context is an amount of noise: past frames are corrupted slightly.

    Args:
        grid: the grid of the labels.
        tau_index: index of the context's signal level, `grid.snap` of the sampler's `context_signal`.
        z: clean latents, real or imagined.
        action: action that led to each frame.
        action_mask: where it is known.
        task: as of `NoisyFrames`.
        key: randomness of the noise.
    """
    shape = action_mask.shape
    levels = Levels(jnp.full(shape, tau_index, jnp.int32), jnp.full(shape, grid.finest, jnp.int32))
    noisy = corrupt(z, grid.noise(z.shape, key=key), grid.tau(levels.tau_index))
    return NoisyFrames(noisy, levels, action, action_mask, task)
