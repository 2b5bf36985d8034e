"""A tokenizer of each patch by itself, for worlds that are drawn from tiles. Not in the paper."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from dreamer4.config import TokenizerConfig
from dreamer4.errors import InputError
from dreamer4.nn import Linear, RingCache, RMSNorm, Stream, SwiGLU
from dreamer4.nn.flops import matrix_parameters
from dreamer4.tokenizer.base import AbstractTokenizer, LatentStats
from dreamer4.tokenizer.patches import count_patches, patchify, unpatchify
from dreamer4.types import DataSpec


class PatchNetwork(eqx.Module):
    """What maps one patch to its code, or back: residual SwiGLU layers, without attention and without a place."""

    inwards: Linear
    norms: tuple[RMSNorm, ...]
    layers: tuple[SwiGLU, ...]
    norm: RMSNorm
    outwards: Linear

    def __init__(self, in_size: int, width: int, out_size: int, *, layers: int, key: PRNGKeyArray):
        """Builds the network with `layers` layers of `width` features, each with twice as many gated units."""
        key_in, key_out, *keys = jr.split(key, layers + 2)
        self.inwards = Linear(in_size, width, use_bias=True, key=key_in)
        self.norms = tuple(RMSNorm(width) for _ in keys)
        self.layers = tuple(SwiGLU(width, 2 * width, key=key) for key in keys)
        self.norm = RMSNorm(width)
        self.outwards = Linear(width, out_size, use_bias=True, key=key_out)

    def __call__(self, x: Float[Array, "*dims D_in"]) -> Float[Array, "*dims D_out"]:
        """Maps the last axis."""
        x = self.inwards(x)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(norm(x))
        return self.outwards(self.norm(x))


class PatchwiseTokenizer(AbstractTokenizer):
    """Codes each patch of a frame by itself, with the same small network wherever it lies, behind a tanh bottleneck.

    A tile then has one code at every place, and a change of one tile changes one code, where the latents of
    `CausalTokenizer` each tell of the whole frame. So the dynamics learns what moves where, and not what a frame looks
    like with one tile changed. It keeps no past, and masks nothing, since no patch could be told from the others. The
    codes are regrouped, row by row, into the `Nz x Dz` tokens the dynamics sees: neighbours within a row share a token.
    """

    encoder: PatchNetwork
    decoder: PatchNetwork
    stats: LatentStats
    frame_shape: tuple[int, int, int] = eqx.field(static=True)
    patch: tuple[int, int] = eqx.field(static=True)
    num_patches: int = eqx.field(static=True)
    num_spatial: int = eqx.field(static=True)
    spatial_dim: int = eqx.field(static=True)
    pixel_zero: float = eqx.field(static=True)

    def __init__(
        self,
        *,
        frame_shape: tuple[int, int, int],
        patch: tuple[int, int],
        latent_dim: int,
        num_spatial: int,
        width: int = 128,
        layers: int = 2,
        pixel_zero: float = 0.5,
        key: PRNGKeyArray,
    ):
        """Builds the tokenizer.

        Args:
            frame_shape: height, width, channels.
            patch: height and width of a patch.
            latent_dim: channels of the code of a patch, Db.
            num_spatial: tokens after regrouping, Nz; divides the number of patches.
            width: features of encoder and decoder.
            layers: layers of each.
            pixel_zero: pixel value in [0, 1] that the network sees, and starts out drawing, as zero.
            key: randomness of the weights.

        Raises:
            InputError: if the patch is larger than the frame, or the patches do not share out among the tokens.
        """
        self.num_patches = count_patches(frame_shape, patch)
        if self.num_patches % num_spatial:
            raise InputError(
                f"tokenizer.num_spatial: got {num_spatial}, which does not divide the {self.num_patches} patches of "
                f"{patch[0]} x {patch[1]} in a frame. Choose a divisor, such as {self.num_patches}."
            )
        key_in, key_out = jr.split(key)
        patch_dim = patch[0] * patch[1] * frame_shape[2]
        self.encoder = PatchNetwork(patch_dim, width, latent_dim, layers=layers, key=key_in)
        self.decoder = PatchNetwork(latent_dim, width, patch_dim, layers=layers, key=key_out)
        self.frame_shape, self.patch = frame_shape, patch
        self.num_spatial = num_spatial
        self.spatial_dim = self.num_patches * latent_dim // num_spatial
        self.stats = LatentStats.identity(self.num_spatial, self.spatial_dim)
        self.pixel_zero = pixel_zero

    def _raw(self, video):
        codes = jnp.tanh(self.encoder(2.0 * (patchify(video, self.patch) - self.pixel_zero)))
        return codes.reshape(-1, self.num_spatial, self.spatial_dim)

    def _frames(self, raw):
        patches = self.decoder(raw.reshape(raw.shape[0], self.num_patches, -1))
        return 0.5 * unpatchify(patches, self.patch, self.frame_shape) + self.pixel_zero

    def encode(self, video: Float[Array, "T H W C"]) -> Float[Array, "T Nz Dz"]:
        return self.stats.standardise(self._raw(video))

    def decode(self, latent: Float[Array, "T Nz Dz"]) -> Float[Array, "T H W C"]:
        return self._frames(self.stats.restore(latent))

    def reconstruct(
        self, video: Float[Array, "T H W C"], *, key: PRNGKeyArray
    ) -> tuple[Float[Array, "T H W C"], Bool[Array, "T P"]]:
        return self._frames(self._raw(video)), jnp.zeros((video.shape[0], self.num_patches), bool)

    def init_encoder(self) -> Stream:
        return Stream(RingCache.empty((), 1, 1, 1, jnp.float32), jnp.zeros((), jnp.int32))  # nothing to remember

    def encode_step(self, frame: Float[Array, "H W C"], stream: Stream) -> tuple[Float[Array, "Nz Dz"], Stream]:
        return self.encode(frame[None])[0], Stream(stream.cache, stream.position + 1)

    def init_decoder(self) -> Stream:
        return self.init_encoder()

    def decode_step(self, latent: Float[Array, "Nz Dz"], stream: Stream) -> tuple[Float[Array, "H W C"], Stream]:
        return self.decode(latent[None])[0], Stream(stream.cache, stream.position + 1)

    def encoder_flops(self, *, frames: int) -> int:
        return 2 * self.num_patches * matrix_parameters(self.encoder)

    def decoder_flops(self, *, frames: int) -> int:
        return 2 * self.num_patches * matrix_parameters(self.decoder)


def build_patchwise(config: TokenizerConfig, spec: DataSpec, *, key: PRNGKeyArray) -> PatchwiseTokenizer:
    """Builds the tokenizer that a configuration describes, for the frames of `spec`."""
    if config.num_latents != (patches := count_patches(spec.frame_shape, config.patch)):
        raise InputError(
            f"tokenizer.num_latents: got {config.num_latents}, but a patchwise tokenizer has one for each of the "
            f"{patches} patches of {config.patch[0]} x {config.patch[1]} in a frame. Set it to {patches}."
        )
    return PatchwiseTokenizer(
        frame_shape=spec.frame_shape,
        patch=config.patch,
        latent_dim=config.latent_dim,
        num_spatial=config.num_spatial,
        width=config.patchwise.width,
        layers=config.patchwise.layers,
        pixel_zero=config.pixel_zero,
        key=key,
    )
