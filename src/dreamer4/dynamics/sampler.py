"""Drawing the next frame: K denoise passes that read the cache, one commit pass that writes it."""

from abc import abstractmethod
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from dreamer4.config import SamplerConfig
from dreamer4.dynamics.base import AbstractDynamics
from dreamer4.dynamics.noise import Levels, NoisyFrames, as_past
from dreamer4.errors import InputError, nearest
from dreamer4.nn import Stream
from dreamer4.types import Action


def commit(
    dynamics: AbstractDynamics,
    z: Float[Array, "Nz Dz"],
    action: Action,
    action_mask: Bool[Array, ""],
    task: Int[Array, ""],
    stream: Stream,
    context_signal: float,
    *,
    key: PRNGKeyArray,
) -> tuple[Float[Array, " E"], Stream]:
    """Makes a finished frame part of the past.

    The frame, real or imagined, is passed through the model once as the past holds it (`as_past`). Its entry is written
    and its read-out returned.

    Args:
        dynamics: the model.
        z: the clean frame.
        action: action that led to it.
        action_mask: whether it is known.
        task: the task.
        stream: the past.
        context_signal: signal level, 1 is clean; snapped to the closest trained level.
        key: randomness of the noise.

    Returns:
        The agent read-out `h` of the frame, and the past including it.
    """
    grid = dynamics.grid
    frame = as_past(grid, grid.snap(context_signal), z, action, action_mask, key=key)
    _, h, entry = dynamics.step(frame, task, stream)
    assert h is not None  # there is a task
    return h, Stream(stream.cache.write(entry, stream.position), stream.position + 1)


def denoise(
    dynamics: AbstractDynamics,
    action: Action,
    action_mask: Bool[Array, ""],
    stream: Stream,
    num_steps: int,
    *,
    key: PRNGKeyArray,
) -> Float[Array, "Nz Dz"]:
    """Draws the next frame from pure noise in `num_steps` equal steps; the cache is only read.

    Each pass is labelled with the signal level its input has, and moves `z` by `d (z_hat - z) / (1 - tau)`; the last
    one returns the prediction itself.

    Args:
        dynamics: the model.
        action: action that leads to the frame.
        action_mask: whether it is known.
        stream: the past.
        num_steps: K, a power of two that divides k_max.
        key: randomness of the noise.
    """
    grid = dynamics.grid
    if grid.k_max % num_steps or num_steps & (num_steps - 1):
        raise InputError(f"sampler: got {num_steps} steps, expected a power of two that divides k_max = {grid.k_max}.")
    step_index = jnp.asarray(num_steps.bit_length() - 1, jnp.int32)

    def body(z, i):
        return _denoise_pass(dynamics, z, i, step_index, action, action_mask, stream)[0], None

    noise = jr.normal(key, (dynamics.num_spatial, dynamics.spatial_dim))
    z, _ = jax.lax.scan(body, noise, jnp.arange(num_steps))
    return z


def denoise_watched(
    dynamics: AbstractDynamics,
    action: Action,
    action_mask: Bool[Array, ""],
    stream: Stream,
    step_index: Int[Array, ""],
    *,
    key: PRNGKeyArray,
) -> tuple[Float[Array, "Nz Dz"], Float[Array, "Nz Dz"]]:
    """Draws the same frame as `denoise` with `2 ** step_index` steps, and keeps what the model believed half way.

    The number of steps is traced, so that one compiled program serves every K. No gradient can be taken.

    Args:
        dynamics: the model.
        action: action that leads to the frame.
        action_mask: whether it is known.
        stream: the past.
        step_index: logarithm of K to base two, at most `grid.finest`.
        key: randomness of the noise.

    Returns:
        The frame, and the clean estimate after half of the passes (after the only one, if K is 1).
    """
    count = jnp.asarray(1, jnp.int32) << step_index
    middle = jnp.maximum(count // 2 - 1, 0)

    def body(i, carry):
        z, halfway = carry
        z, z_hat = _denoise_pass(dynamics, z, i, step_index, action, action_mask, stream)
        return z, jnp.where(i == middle, z_hat, halfway)

    noise = jr.normal(key, (dynamics.num_spatial, dynamics.spatial_dim))
    return jax.lax.fori_loop(0, count, body, (noise, noise))


def _denoise_pass(dynamics, z, i, step_index, action, action_mask, stream):
    """Returns the latents after pass i, and the clean estimate that moved them."""
    levels = Levels(i * dynamics.grid.stride(step_index), step_index)
    z_hat, _, _ = dynamics.step(NoisyFrames(z, levels, action, action_mask), None, stream)
    # d / (1 - tau) = 1 / (K - i), which is exactly 1 in the last pass.
    remaining = (jnp.asarray(1, jnp.int32) << step_index) - i
    return z + (z_hat - z) / remaining.astype(jnp.float32), z_hat


class AbstractSampler(eqx.Module):
    """Advances the world by one frame."""

    context_signal: eqx.AbstractVar[float]

    @abstractmethod
    def __call__(
        self,
        dynamics: AbstractDynamics,
        stream: Stream,
        action: Action,
        task: Int[Array, ""],
        *,
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, "Nz Dz"], Float[Array, " E"], Stream]:
        """Draws the frame that an action leads to, and makes it part of the past.

        Returns:
            The frame's clean latents, its agent read-out `h`, and the past including it.
        """


class ShortcutSampler(AbstractSampler):
    """K large steps, the fast sampler that shortcut forcing trains for."""

    num_steps: int = eqx.field(static=True)
    context_signal: float = eqx.field(static=True)

    def __init__(self, num_steps: int = 4, context_signal: float = 0.9):
        """Builds the sampler: `num_steps` a power of two, `context_signal` 1 for clean context."""
        self.num_steps, self.context_signal = num_steps, context_signal

    def __call__(
        self,
        dynamics: AbstractDynamics,
        stream: Stream,
        action: Action,
        task: Int[Array, ""],
        *,
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, "Nz Dz"], Float[Array, " E"], Stream]:
        key_denoise, key_commit = jr.split(key)
        known = jnp.array(True)
        z = denoise(dynamics, action, known, stream, self.num_steps, key=key_denoise)
        h, stream = commit(dynamics, z, action, known, task, stream, self.context_signal, key=key_commit)
        return z, h, stream


class FlowSampler(AbstractSampler):
    """k_max smallest steps, all of them trained on data: the slow reference for `ShortcutSampler`."""

    context_signal: float = eqx.field(static=True)

    def __init__(self, context_signal: float = 0.9):
        """Builds the sampler; `context_signal` is 1 for clean context."""
        self.context_signal = context_signal

    def __call__(
        self,
        dynamics: AbstractDynamics,
        stream: Stream,
        action: Action,
        task: Int[Array, ""],
        *,
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, "Nz Dz"], Float[Array, " E"], Stream]:
        sampler = ShortcutSampler(dynamics.grid.k_max, self.context_signal)
        return sampler(dynamics, stream, action, task, key=key)


SAMPLERS: dict[str, Callable[[SamplerConfig], AbstractSampler]] = {
    "shortcut": lambda config: ShortcutSampler(config.num_steps, config.context_signal),
    "flow": lambda config: FlowSampler(config.context_signal),
}


def build_sampler(config: SamplerConfig) -> AbstractSampler:
    """Builds the registered sampler that a configuration names."""
    if config.kind not in SAMPLERS:
        raise InputError(f"sampler.kind: unknown {config.kind!r}. {nearest(config.kind, SAMPLERS)}")
    return SAMPLERS[config.kind](config)
