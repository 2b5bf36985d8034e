"""The interactive dynamics model (arXiv 2509.24527, section 3.2): a network, how it is trained, how it draws."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from dreamer4.config import DynamicsConfig, SamplerConfig
from dreamer4.dynamics.base import AbstractDynamics, Flops, Imagined, WorldLoss
from dreamer4.dynamics.shortcut.forcing import AbstractForcing, build_forcing
from dreamer4.dynamics.shortcut.loss import shortcut_loss
from dreamer4.dynamics.shortcut.network import AbstractNetwork, build_network
from dreamer4.dynamics.shortcut.noise import as_past
from dreamer4.dynamics.shortcut.sampler import commit, denoise
from dreamer4.errors import InputError
from dreamer4.nn import Stream
from dreamer4.types import Action, DataSpec, Trajectory


class ShortcutState(eqx.Module):
    """The frames that a network remembers.

    Attributes:
        stream: its cache.
        h: read-out of the newest frame; zero before the first.
        task: the task.
    """

    stream: Stream
    h: Float[Array, " E"]
    task: Int[Array, ""]


class ShortcutDynamics(AbstractDynamics):
    """A network of noisy frames, trained by shortcut forcing, that draws a frame in K large steps.

    Attributes:
        network: the network.
        forcing: how it is trained.
        num_steps: K, a power of two that divides k_max.
        context_signal: signal level of past frames, 1 is clean; snapped to the closest trained level.
        loss_space: where the error is taken, x or v (`space_weight`).
    """

    network: AbstractNetwork
    forcing: AbstractForcing
    num_steps: int = eqx.field(static=True)
    context_signal: float = eqx.field(static=True)
    loss_space: str = eqx.field(static=True, default="x")

    def __init__(
        self,
        network: AbstractNetwork,
        forcing: AbstractForcing,
        num_steps: int = 4,
        context_signal: float = 0.9,
        loss_space: str = "x",
    ):
        """Puts the parts together; see the attributes.

        Raises:
            InputError: the grid of the network does not know `num_steps`.
        """
        self.network, self.forcing, self.num_steps, self.context_signal = network, forcing, num_steps, context_signal
        self.loss_space = loss_space
        if num_steps not in network.grid.passes:
            raise InputError(
                f"num_steps: got {num_steps}, expected a power of two that divides k_max = {network.grid.k_max}."
            )

    @property
    def agent_dim(self) -> int:
        return self.network.agent_dim

    @property
    def context_length(self) -> int:
        return self.network.context_length

    @property
    def passes(self) -> tuple[int, ...]:
        return self.network.grid.passes

    @property
    def num_tasks(self) -> int | None:
        return self.network.num_tasks

    @property
    def own_passes(self) -> int:
        return self.num_steps

    def with_passes(self, num_steps: int) -> "ShortcutDynamics":
        return dataclasses.replace(self, num_steps=num_steps)

    def init(self, task: Int[Array, ""]) -> ShortcutState:
        return ShortcutState(self.network.init_cache(), jnp.zeros(self.agent_dim), jnp.asarray(task, jnp.int32))

    def observe(
        self,
        state: ShortcutState,
        latent: Float[Array, "Nz Dz"],
        action: Action,
        action_mask: Bool[Array, ""],
        *,
        key: PRNGKeyArray,
    ) -> ShortcutState:
        signal = self.context_signal
        h, stream = commit(self.network, latent, action, action_mask, state.task, state.stream, signal, key=key)
        return ShortcutState(stream, h, state.task)

    def imagine(
        self,
        state: ShortcutState,
        action: Action,
        *,
        action_mask: Bool[Array, ""] | None = None,
        num_steps: int | Int[Array, ""] | None = None,
        key: PRNGKeyArray,
    ) -> tuple[Imagined, ShortcutState]:
        key_denoise, key_commit = jr.split(key)
        known = jnp.array(True) if action_mask is None else action_mask
        count = self.num_steps if num_steps is None else num_steps
        how = {"task": state.task, "shortcuts": self.forcing.has_shortcuts, "key": key_denoise}
        z, halfway = jax.lax.stop_gradient(denoise(self.network, action, known, state.stream, count, **how))
        following = self.observe(state, z, action, known, key=key_commit)
        movement = jnp.where(jnp.asarray(count) > 1, jnp.sqrt(jnp.mean(jnp.square(z - halfway))), 0.0)
        return jax.lax.stop_gradient((Imagined(z, movement), following))

    def readout(self, state: ShortcutState) -> Float[Array, " E"]:
        return state.h

    def _prefill(self, clip, *, key):
        grid = self.network.grid
        signal = grid.snap(self.context_signal)
        tasks = jnp.broadcast_to(clip.task, clip.action_mask.shape)
        past = as_past(grid, signal, clip.latent, clip.action, clip.action_mask, tasks, key=key)
        _, h, entries = self.network.prefill(past, clip.task)
        assert h is not None  # there is a task
        return h, entries

    def readouts(self, clip: Trajectory, *, key: PRNGKeyArray) -> Float[Array, "T E"]:
        return self._prefill(clip, key=key)[0]

    def recall(self, clip: Trajectory, count: Int[Array, ""], *, key: PRNGKeyArray) -> ShortcutState:
        """Returns the state after the first `count` latents of a clip, at least 1, in one pass."""
        h, entries = self._prefill(clip, key=key)
        cache = self.network.init_cache().cache.fill(entries, count)
        return ShortcutState(Stream(cache, count), h[count - 1], clip.task)

    def loss(
        self,
        clips: Trajectory,
        progress: Float[Array, ""],
        *,
        with_readout: bool,
        accumulate: int = 1,
        key: PRNGKeyArray,
    ) -> WorldLoss:
        how = {"with_readout": with_readout, "accumulate": accumulate, "space": self.loss_space}
        return shortcut_loss(self.network, self.forcing, clips, progress, **how, key=key)

    def flops(self, *, rows: int, length: int, with_readout: bool) -> Flops:
        """Counts the operations; a differentiated pass costs three forward passes.

        A row with teachers adds two forward passes, and a past that the forcing gives one more.
        """
        count, seen = self.network.flops, self.context_length + 1
        past = count(frames=length, agent=False)
        teachers, learning = 2 * past, count(frames=length, agent=with_readout)
        if self.forcing.given_past:
            draft = count(frames=length + 1, agent=False)
            teachers, learning = past + 2 * draft, learning + draft
        loss = length * (self.forcing.bootstrap_rows(rows) * teachers + 3 * rows * learning)
        observe = count(frames=seen, agent=True)
        imagine = self.num_steps * count(frames=seen, agent=False) + observe
        return Flops(loss, length * count(frames=length, agent=True), observe, imagine)


def build_shortcut(
    config: DynamicsConfig,
    sampler: SamplerConfig,
    num_spatial: int,
    spatial_dim: int,
    spec: DataSpec,
    *,
    key: PRNGKeyArray,
) -> ShortcutDynamics:
    """Builds the dynamics that a configuration describes, for latents of `num_spatial` x `spatial_dim`."""
    network = build_network(config, num_spatial, spatial_dim, spec, key=key)
    forcing = build_forcing(config.shortcut, context_signal=sampler.context_signal)
    num_steps = network.grid.k_max if sampler.kind == "flow" else sampler.num_steps
    return ShortcutDynamics(network, forcing, num_steps, sampler.context_signal, config.loss_space)
