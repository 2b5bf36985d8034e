"""Drawing the next frame: K denoise passes that read the cache, one commit pass that writes it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from dreamer4.dynamics.shortcut.network import AbstractNetwork
from dreamer4.dynamics.shortcut.noise import Levels, NoisyFrames, as_past
from dreamer4.errors import InputError
from dreamer4.nn import Stream
from dreamer4.types import Action


def commit(
    network: AbstractNetwork,
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
        network: the model.
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
    grid = network.grid
    frame = as_past(grid, grid.snap(context_signal), z, action, action_mask, task, key=key)
    _, h, entry = network.step(frame, task, stream)
    assert h is not None  # there is a task
    return h, Stream(stream.cache.write(entry, stream.position), stream.position + 1)


def denoise(
    network: AbstractNetwork,
    action: Action,
    action_mask: Bool[Array, ""],
    stream: Stream,
    num_steps: int | Int[Array, ""],
    *,
    task: Int[Array, ""] | None = None,
    shortcuts: bool = True,
    key: PRNGKeyArray,
) -> tuple[Float[Array, "Nz Dz"], Float[Array, "Nz Dz"]]:
    """Draws the next frame from pure noise in `num_steps` equal steps; the cache is only read.

    Each pass is labelled with the signal level its input has, and moves `z` by `d (z_hat - z) / (1 - tau)`; the last
    one returns the prediction itself.

    Args:
        network: the model.
        action: action that leads to the frame.
        action_mask: whether it is known.
        stream: the past.
        num_steps: K, a power of two that divides k_max. If it is an array, one compiled program serves every K, but no
            gradient can be taken.
        task: whose components the action has; None: it has all.
        shortcuts: whether the model knows large steps; if not, every pass is labelled with the finest one.
        key: randomness of the noise.

    Returns:
        The frame, and the clean estimate after half of the passes (after the only one, if K is 1).
    """
    grid = network.grid

    def denoised(z, i, step_index):
        label = step_index if shortcuts else jnp.asarray(grid.finest, jnp.int32)
        frame = NoisyFrames(z, Levels(i * grid.stride(step_index), label), action, action_mask, task)
        return _denoise_pass(network, frame, i, step_index, stream)

    noise = grid.noise((network.num_spatial, network.spatial_dim), key=key)
    if isinstance(num_steps, int):
        if num_steps not in grid.passes:
            raise InputError(f"num_steps: got {num_steps}, expected a power of two that divides k_max = {grid.k_max}.")
        step_index = jnp.asarray(num_steps.bit_length() - 1, jnp.int32)

        def scanned(z, i):
            return denoised(z, i, step_index)

        z, estimates = jax.lax.scan(scanned, noise, jnp.arange(num_steps))
        return z, estimates[max(num_steps // 2 - 1, 0)]
    count = num_steps.astype(jnp.int32)
    step_index = 31 - jax.lax.clz(count)
    middle = jnp.maximum(count // 2 - 1, 0)

    def looped(i, carry):
        z, halfway = carry
        z, z_hat = denoised(z, i, step_index)
        return z, jnp.where(i == middle, z_hat, halfway)

    return jax.lax.fori_loop(0, count, looped, (noise, noise))


def _denoise_pass(network, frame, i, step_index, stream):
    """Returns the latents after pass i, and the clean estimate that moved them."""
    z, (z_hat, _, _) = frame.z, network.step(frame, None, stream)
    # d / (1 - tau) = 1 / (K - i), which is exactly 1 in the last pass.
    remaining = (jnp.asarray(1, jnp.int32) << step_index) - i
    return z + (z_hat - z) / remaining.astype(jnp.float32), z_hat
