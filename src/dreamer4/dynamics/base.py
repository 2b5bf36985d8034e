"""The contract of a dynamics model, and the grid of signal levels and step sizes it is trained on."""

from abc import abstractmethod

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dreamer4.errors import InputError
from dreamer4.nn import Entry, Stream
from dreamer4.types import Action


class NoiseGrid(eqx.Module):
    """The discrete signal levels and step sizes of shortcut forcing.

    The flow runs from noise to data: `x_tau = (1 - tau) noise + tau data`, so tau = 0 is pure noise and tau = 1 is
    clean. Both quantities live on a grid and are handled by index:

    - `tau = tau_index / k_max`, `tau_index` from 0 to k_max;
    - `step_size = 2 ** -step_index`, `step_index` from 0 (one step from noise to data) to `finest` (k_max steps).
    """

    k_max: int = eqx.field(static=True)

    @property
    def finest(self) -> int:
        """Index of the smallest step size, `1 / k_max`."""
        return self.k_max.bit_length() - 1

    def tau(self, tau_index: Int[Array, "*dims"]) -> Float[Array, "*dims"]:
        """Returns signal levels in [0, 1]."""
        return tau_index.astype(jnp.float32) / self.k_max

    def stride(self, step_index: Int[Array, "*dims"]) -> Int[Array, "*dims"]:
        """Returns step sizes in units of the grid of signal levels."""
        return self.k_max >> step_index

    def snap(self, signal: float) -> int:
        """Returns the index of the trained signal level closest to `signal`; 1 - 1/k_max is the highest trained."""
        return min(max(round(signal * self.k_max), 0), self.k_max - 1)


class AbstractDynamics(eqx.Module):
    """Predicts clean latents from noisy ones, given the past, actions and the noise labels (x-prediction).

    Every method takes `task=None` for a pass without agent tokens; the world's prediction is the same with and
    without, since nothing reads the agent tokens.
    """

    grid: eqx.AbstractVar[NoiseGrid]
    num_spatial: eqx.AbstractVar[int]
    spatial_dim: eqx.AbstractVar[int]
    agent_dim: eqx.AbstractVar[int]
    context_length: eqx.AbstractVar[int]

    @abstractmethod
    def __call__(
        self,
        z_noisy: Float[Array, "T Nz Dz"],
        tau_index: Int[Array, " T"],
        step_index: Int[Array, " T"],
        action: Action,
        action_mask: Bool[Array, " T"],
        task: Int[Array, ""] | None,
        segment: Int[Array, " T"] | None = None,
    ) -> tuple[Float[Array, "T Nz Dz"], Float[Array, "T E"] | None]:
        """Predicts a clip.

        Args:
            z_noisy: latents, mixed with noise frame by frame.
            tau_index: signal level of each frame.
            step_index: step size of each frame.
            action: action that led to each frame.
            action_mask: where it is known.
            task: the task, or None to leave the agent tokens out.
            segment: frames of different segments do not see each other; None: one segment.

        Returns:
            The prediction of the clean latents, and the agent read-out `h` (None without a task).
        """

    @abstractmethod
    def prefill(
        self,
        z_noisy: Float[Array, "T Nz Dz"],
        tau_index: Int[Array, " T"],
        step_index: Int[Array, " T"],
        action: Action,
        action_mask: Bool[Array, " T"],
        task: Int[Array, ""] | None,
        segment: Int[Array, " T"] | None = None,
    ) -> tuple[Float[Array, "T Nz Dz"], Float[Array, "T E"] | None, Entry]:
        """Predicts a clip as `__call__` does, and returns the cache entries of its frames."""

    def drafts(
        self,
        z_noisy: Float[Array, "T Nz Dz"],
        tau_index: Int[Array, " T"],
        step_index: Int[Array, " T"],
        action: Action,
        action_mask: Bool[Array, " T"],
        entries: Entry,
        segment: Int[Array, " T"] | None = None,
    ) -> Float[Array, "T Nz Dz"]:
        """Predicts every frame of a clip as `step` would after the frames before it, all at once.

        A model need not have it; only the mode `drafts` of `dynamics.shortcut` trains by it.

        Args:
            z_noisy: drafts of the frames.
            tau_index: signal level of each draft.
            step_index: step size of each draft.
            action: action that led to each frame.
            action_mask: where it is known.
            entries: what `prefill` returned for the frames as the past holds them.
            segment: as given to `prefill`.

        Raises:
            InputError: if the model does not have it.
        """
        raise InputError(
            f"dynamics.shortcut.mode: got drafts, but {type(self).__name__} has no method drafts. Write it, or choose "
            "another mode."
        )

    @abstractmethod
    def init_cache(self) -> Stream:
        """Returns the start of a frame-by-frame prediction."""

    @abstractmethod
    def step(
        self,
        z_noisy: Float[Array, "Nz Dz"],
        tau_index: Int[Array, ""],
        step_index: Int[Array, ""],
        action: Action,
        action_mask: Bool[Array, ""],
        task: Int[Array, ""] | None,
        stream: Stream,
    ) -> tuple[Float[Array, "Nz Dz"], Float[Array, " E"] | None, Entry]:
        """Predicts the next frame against the cache, without writing to it.

        Returns:
            The prediction, the agent read-out (None without a task), and the entry that remembers the frame.
        """
