"""The contract of a dynamics model."""

from abc import abstractmethod

import equinox as eqx
from jaxtyping import Array, Float, Int

from dreamer4.dynamics.noise import NoiseGrid, NoisyFrames
from dreamer4.errors import InputError
from dreamer4.nn import Entry, Stream


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
        self, frames: NoisyFrames, task: Int[Array, ""] | None, segment: Int[Array, " T"] | None = None
    ) -> tuple[Float[Array, "T Nz Dz"], Float[Array, "T E"] | None]:
        """Predicts a clip.

        Args:
            frames: the clip.
            task: the task, or None to leave the agent tokens out.
            segment: frames of different segments do not see each other; None: one segment.

        Returns:
            The prediction of the clean latents, and the agent read-out `h` (None without a task).
        """

    @abstractmethod
    def prefill(
        self, frames: NoisyFrames, task: Int[Array, ""] | None, segment: Int[Array, " T"] | None = None
    ) -> tuple[Float[Array, "T Nz Dz"], Float[Array, "T E"] | None, Entry]:
        """Predicts a clip as `__call__` does, and returns the cache entries of its frames."""

    def drafts(
        self, frames: NoisyFrames, entries: Entry, segment: Int[Array, " T"] | None = None
    ) -> Float[Array, "T Nz Dz"]:
        """Predicts every frame of a clip as `step` would after the frames before it, all at once.

        A model need not have it; only the mode `drafts` of `dynamics.shortcut` trains by it.

        Args:
            frames: drafts of the frames.
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
        self, frame: NoisyFrames, task: Int[Array, ""] | None, stream: Stream
    ) -> tuple[Float[Array, "Nz Dz"], Float[Array, " E"] | None, Entry]:
        """Predicts the next frame, a single one, against the cache, without writing to it.

        Returns:
            The prediction, the agent read-out (None without a task), and the entry that remembers the frame.
        """
