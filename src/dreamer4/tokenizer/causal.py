"""The causal masked-autoencoder tokenizer (arXiv 2509.24527, section 3.1)."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from dreamer4.config import TokenizerConfig
from dreamer4.nn import Linear, Stream, TokenGroup, TokenLayout, Transformer
from dreamer4.nn import transformer as transformers
from dreamer4.nn.flops import transformer_flops
from dreamer4.nn.layers import initial_tokens
from dreamer4.tokenizer.base import AbstractTokenizer, LatentStats
from dreamer4.tokenizer.patches import count_patches, patchify, unpatchify
from dreamer4.types import DataSpec


def encoder_layout(num_patches: int, num_latents: int, time_tokens: str) -> TokenLayout:
    """Returns the encoder's slots: latents see everything, patches see patches, hence never a latent."""
    return TokenLayout(
        (
            TokenGroup("patch", num_patches, ("patch",), through_time=time_tokens == "all"),
            TokenGroup("latent", num_latents, ("patch", "latent")),
        )
    )


def decoder_layout(num_patches: int, num_latents: int, time_tokens: str) -> TokenLayout:
    """Returns the decoder's slots: latents see latents, queries see queries and latents."""
    return TokenLayout(
        (
            TokenGroup("latent", num_latents, ("latent",)),
            TokenGroup("query", num_patches, ("latent", "query"), through_time=time_tokens == "all"),
        )
    )


class CausalTokenizer(AbstractTokenizer):
    """A masked autoencoder over patches with a tanh bottleneck.

    Encoder and decoder are block-causal transformers, so both run frame by frame. Each image hides its patches with a
    probability drawn from U(0, mask_max); the hidden ones are replaced by a learned embedding. The `Nb x Db` bottleneck
    is regrouped, row by row, into the `Nz x Dz` tokens the dynamics sees. Frames that patches do not tile are padded
    before they are encoded, and cut to their size when they are decoded.
    """

    patch_in: Linear
    mask_token: Float[Array, " D"]
    encoder: Transformer
    bottleneck: Linear
    unbottleneck: Linear
    decoder: Transformer
    patch_out: Linear
    stats: LatentStats
    frame_shape: tuple[int, int, int] = eqx.field(static=True)
    patch: tuple[int, int] = eqx.field(static=True)
    num_latents: int = eqx.field(static=True)
    latent_dim: int = eqx.field(static=True)
    num_spatial: int = eqx.field(static=True)
    spatial_dim: int = eqx.field(static=True)
    mask_max: float = eqx.field(static=True)
    pixel_zero: float = eqx.field(static=True)

    def __init__(
        self,
        encoder: Transformer,
        decoder: Transformer,
        *,
        frame_shape: tuple[int, int, int],
        patch: tuple[int, int],
        latent_dim: int,
        num_spatial: int,
        mask_max: float = 0.9,
        pixel_zero: float = 0.5,
        key: PRNGKeyArray,
    ):
        """Builds the tokenizer around two transformers.

        Args:
            encoder: over the slots of `encoder_layout`.
            decoder: over the slots of `decoder_layout`.
            frame_shape: height, width, channels.
            patch: height and width of a patch.
            latent_dim: channels of a latent token, Db.
            num_spatial: tokens after regrouping, Nz; divides `Nb * Db`.
            mask_max: upper end of the mask rate.
            pixel_zero: pixel value in [0, 1] that the network sees, and starts out drawing, as zero.
            key: randomness of the remaining weights.
        """
        key_in, key_mask, key_down, key_up, key_out = jr.split(key, 5)
        width_in, width_out = encoder.slot.shape[-1], decoder.slot.shape[-1]
        latents = encoder.layout.slots("latent")
        patch_dim = patch[0] * patch[1] * frame_shape[2]
        self.num_latents, self.latent_dim = latents.stop - latents.start, latent_dim
        self.patch_in = Linear(patch_dim, width_in, use_bias=True, key=key_in)
        self.mask_token = initial_tokens(key_mask, (width_in,))
        self.encoder = encoder
        self.bottleneck = Linear(width_in, latent_dim, use_bias=True, key=key_down)
        self.unbottleneck = Linear(latent_dim, width_out, use_bias=True, key=key_up)
        self.decoder = decoder
        self.patch_out = Linear(width_out, patch_dim, use_bias=True, key=key_out)
        self.frame_shape, self.patch = frame_shape, patch
        self.num_spatial = num_spatial
        self.spatial_dim = self.num_latents * latent_dim // num_spatial
        self.stats = LatentStats.identity(self.num_spatial, self.spatial_dim)
        self.mask_max = mask_max
        self.pixel_zero = pixel_zero

    def _encoder_tokens(self, video, hidden):
        patches = self.patch_in(2.0 * (patchify(video, self.patch) - self.pixel_zero))
        if hidden is not None:
            patches = jnp.where(hidden[..., None], self.mask_token, patches)
        # Latent tokens enter as zeros: their learned value is the slot embedding that the transformer adds.
        latents = jnp.zeros((video.shape[0], self.num_latents, patches.shape[-1]), patches.dtype)
        return jnp.concatenate([patches, latents], axis=1)

    def _read_latents(self, tokens):
        bottleneck = jnp.tanh(self.bottleneck(tokens[:, self.encoder.layout.slots("latent")]))
        return bottleneck.reshape(-1, self.num_spatial, self.spatial_dim)

    def _decoder_tokens(self, raw):
        latents = self.unbottleneck(raw.reshape(-1, self.num_latents, self.latent_dim))
        queries = self.decoder.layout.slots("query")
        zeros = jnp.zeros((raw.shape[0], queries.stop - queries.start, latents.shape[-1]), latents.dtype)
        return jnp.concatenate([latents, zeros], axis=1)

    def _read_frames(self, tokens):
        patches = self.patch_out(tokens[:, self.decoder.layout.slots("query")])
        return 0.5 * unpatchify(patches, self.patch, self.frame_shape) + self.pixel_zero

    def encode(self, video: Float[Array, "T H W C"]) -> Float[Array, "T Nz Dz"]:
        return self.stats.standardise(self._read_latents(self.encoder(self._encoder_tokens(video, None))))

    def decode(self, latent: Float[Array, "T Nz Dz"]) -> Float[Array, "T H W C"]:
        return self._read_frames(self.decoder(self._decoder_tokens(self.stats.restore(latent))))

    def reconstruct(
        self, video: Float[Array, "T H W C"], *, key: PRNGKeyArray
    ) -> tuple[Float[Array, "T H W C"], Bool[Array, "T P"]]:
        key_rate, key_mask = jr.split(key)
        patches = self.encoder.layout.slots("patch")
        rate = jr.uniform(key_rate, (video.shape[0], 1), maxval=self.mask_max)
        hidden = jr.uniform(key_mask, (video.shape[0], patches.stop - patches.start)) < rate
        raw = self._read_latents(self.encoder(self._encoder_tokens(video, hidden)))
        return self._read_frames(self.decoder(self._decoder_tokens(raw))), hidden

    def init_encoder(self) -> Stream:
        return Stream(self.encoder.init_cache(), jnp.zeros((), jnp.int32))

    def encode_step(self, frame: Float[Array, "H W C"], stream: Stream) -> tuple[Float[Array, "Nz Dz"], Stream]:
        tokens = self._encoder_tokens(frame[None], None)[0]
        tokens, entry = self.encoder.step(tokens, stream.cache, stream.position)
        stream = Stream(stream.cache.write(entry, stream.position), stream.position + 1)
        return self.stats.standardise(self._read_latents(tokens[None])[0]), stream

    def init_decoder(self) -> Stream:
        return Stream(self.decoder.init_cache(), jnp.zeros((), jnp.int32))

    def decode_step(self, latent: Float[Array, "Nz Dz"], stream: Stream) -> tuple[Float[Array, "H W C"], Stream]:
        tokens = self._decoder_tokens(self.stats.restore(latent)[None])[0]
        tokens, entry = self.decoder.step(tokens, stream.cache, stream.position)
        stream = Stream(stream.cache.write(entry, stream.position), stream.position + 1)
        return self._read_frames(tokens[None])[0], stream

    def encoder_flops(self, *, frames: int) -> int:
        patches = self.encoder.layout.slots("patch").stop
        ends = patches * self.patch_in.weight.size + self.num_latents * self.bottleneck.weight.size
        return transformer_flops(self.encoder, frames=frames) + 2 * ends

    def decoder_flops(self, *, frames: int) -> int:
        queries = self.decoder.layout.slots("query")
        ends = self.num_latents * self.unbottleneck.weight.size
        ends += (queries.stop - queries.start) * self.patch_out.weight.size
        return transformer_flops(self.decoder, frames=frames) + 2 * ends


def build_causal(config: TokenizerConfig, spec: DataSpec, *, key: PRNGKeyArray) -> CausalTokenizer:
    """Builds the tokenizer that a configuration describes, for the frames of `spec`."""
    num_patches = count_patches(spec.frame_shape, config.patch)
    key_encoder, key_decoder, key_rest = jr.split(key, 3)
    layout_in = encoder_layout(num_patches, config.num_latents, config.time_tokens)
    layout_out = decoder_layout(num_patches, config.num_latents, config.time_tokens)
    return CausalTokenizer(
        transformers.build(layout_in, config.encoder, key=key_encoder),
        transformers.build(layout_out, config.decoder, key=key_decoder),
        frame_shape=spec.frame_shape,
        patch=config.patch,
        latent_dim=config.latent_dim,
        num_spatial=config.num_spatial,
        mask_max=config.mask_max,
        pixel_zero=config.pixel_zero,
        key=key_rest,
    )
