"""The contract of a tokenizer, and the statistics of its latents."""

from abc import abstractmethod

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from dreamer4.nn import Stream


# A channel that hardly varies carries nothing, but dividing by its spread would blow its noise up to unit variance.
MIN_STD = 0.02


class LatentStats(eqx.Module):
    """Mean and spread of each latent channel over the training data.

    The dynamics mixes latents with unit noise, so they must have unit scale. Until they are measured the statistics are
    the identity, and `measured` is False.
    """

    mean: Float[Array, "Nz Dz"]
    std: Float[Array, "Nz Dz"]
    measured: Bool[Array, ""]

    @classmethod
    def identity(cls, num_spatial: int, spatial_dim: int) -> "LatentStats":
        """Returns statistics that change nothing."""
        shape = (num_spatial, spatial_dim)
        return cls(jnp.zeros(shape), jnp.ones(shape), jnp.array(False))

    @classmethod
    def measure(cls, latent: Float[Array, "N Nz Dz"]) -> "LatentStats":
        """Measures the statistics of raw latents."""
        return cls.of(latent.mean(0), latent.std(0))

    @classmethod
    def of(cls, mean: Float[Array | np.ndarray, "Nz Dz"], std: Float[Array | np.ndarray, "Nz Dz"]) -> "LatentStats":
        """Returns statistics that were measured."""
        mean, std = (jnp.asarray(x, jnp.float32) for x in (mean, std))
        return cls(mean, jnp.maximum(std, MIN_STD), jnp.array(True))

    def standardise(self, latent: Float[Array, "*T Nz Dz"]) -> Float[Array, "*T Nz Dz"]:
        """Maps raw latents to zero mean and unit variance."""
        return (latent - self.mean) / self.std

    def restore(self, latent: Float[Array, "*T Nz Dz"]) -> Float[Array, "*T Nz Dz"]:
        """Maps standardised latents back."""
        return latent * self.std + self.mean


class AbstractTokenizer(eqx.Module):
    """Maps frames to a few continuous tokens and back, causally in time.

    Frames are float32 in [0, 1]; latents are standardised, `Nz` tokens of `Dz` channels.
    """

    frame_shape: eqx.AbstractVar[tuple[int, int, int]]
    num_spatial: eqx.AbstractVar[int]
    spatial_dim: eqx.AbstractVar[int]
    stats: eqx.AbstractVar[LatentStats]

    @abstractmethod
    def encode(self, video: Float[Array, "T H W C"]) -> Float[Array, "T Nz Dz"]:
        """Encodes a clip; the latents of a frame depend on no later frame."""

    @abstractmethod
    def decode(self, latent: Float[Array, "T Nz Dz"]) -> Float[Array, "T H W C"]:
        """Decodes a clip; a frame depends on no later latent. Values may leave [0, 1] slightly."""

    @abstractmethod
    def reconstruct(
        self, video: Float[Array, "T H W C"], *, key: PRNGKeyArray
    ) -> tuple[Float[Array, "T H W C"], Bool[Array, "T P"]]:
        """Encodes and decodes under the random masking of training.

        Returns:
            The reconstruction, and which patches of the input were hidden.
        """

    @abstractmethod
    def init_encoder(self) -> Stream:
        """Returns the start of a frame-by-frame encoding."""

    @abstractmethod
    def encode_step(self, frame: Float[Array, "H W C"], stream: Stream) -> tuple[Float[Array, "Nz Dz"], Stream]:
        """Encodes the next frame; over a clip this equals `encode`."""

    @abstractmethod
    def init_decoder(self) -> Stream:
        """Returns the start of a frame-by-frame decoding."""

    @abstractmethod
    def decode_step(self, latent: Float[Array, "Nz Dz"], stream: Stream) -> tuple[Float[Array, "H W C"], Stream]:
        """Decodes the next frame; over a clip this equals `decode`."""

    @abstractmethod
    def encoder_flops(self, *, frames: int) -> int:
        """Counts the operations that encode one frame; `frames` as for `nn.flops.transformer_flops`."""

    @abstractmethod
    def decoder_flops(self, *, frames: int) -> int:
        """Counts the operations that decode one frame; `frames` as for `nn.flops.transformer_flops`."""
