"""Every part by itself, with plain sizes: a tokenizer, a world model, and the agent that holds them.

Nothing here needs a data set, a configuration file or a checkpoint. The tokenizer is trained for some seconds on
drifting squares, so its numbers mean something; the world model and the agent are not trained at all, so of them only
shapes and guarantees can be shown. `make demo` trains everything.

Run: python examples/00_quickstart.py
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax

from dreamer4.config import ShortcutConfig, load
from dreamer4.dreamer import Dreamer
from dreamer4.dynamics.shortcut import (
    Levels,
    NoiseGrid,
    NoisyFrames,
    ShortcutDynamics,
    TransformerNetwork,
    build_forcing,
    corrupt,
    dynamics_layout,
)
from dreamer4.imagination import imagine
from dreamer4.nn import GroupedQueryAttention, Transformer
from dreamer4.tokenizer import CausalTokenizer, LatentStats, tokenizer_loss
from dreamer4.tokenizer.causal import decoder_layout, encoder_layout
from dreamer4.types import Action, ActionSpec, DataSpec


FRAMES, FRAME, WIDTH = 8, (8, 8, 1), 32
SPEC = DataSpec(FRAME, ActionSpec((3,)))


def drifting_square(key):
    """Draws a clip of a 2 x 2 square that moves by one pixel a frame and wraps around."""
    start, speed = jr.randint(key, (2,), 0, 8), jr.randint(jr.fold_in(key, 1), (2,), -1, 2)
    image = jnp.zeros((8, 8)).at[:2, :2].set(1.0)
    return jax.vmap(lambda t: jnp.roll(image, start + t * speed, (0, 1)))(jnp.arange(FRAMES))[..., None]


def transformer(layout, key):
    """Builds two layers: one attends within a frame, one through time over a window of six frames."""

    def attention(*, key):
        return GroupedQueryAttention(WIDTH, heads=2, kv_heads=1, key=key)

    return Transformer(layout, width=WIDTH, depth=2, time_every=2, context_length=6, attention=attention, key=key)


def build_tokenizer(key):
    """Four patches of 4 x 4 pixels become four tokens of eight numbers."""
    key_encoder, key_decoder, key_rest = jr.split(key, 3)
    return CausalTokenizer(
        transformer(encoder_layout(num_patches=4, num_latents=4, time_tokens="all"), key_encoder),
        transformer(decoder_layout(num_patches=4, num_latents=4, time_tokens="all"), key_decoder),
        frame_shape=FRAME,
        patch=(4, 4),
        latent_dim=8,
        num_spatial=4,
        mask_max=0.3,
        key=key_rest,
    )


@eqx.filter_jit
def train(tokenizer, steps, key):
    """Trains a tokenizer as a masked autoencoder; the whole run is one scan."""
    optimiser = optax.adam(1e-3)
    arrays, static = eqx.partition(tokenizer, eqx.is_inexact_array)

    def loss(arrays, key):
        model = eqx.combine(arrays, static)
        keys = jr.split(key, (16, 2))
        everything = jnp.ones(FRAMES, bool)
        return jax.vmap(lambda k: tokenizer_loss(model, drifting_square(k[0]), everything, None, key=k[1])["mse"])(
            keys
        ).mean()

    def step(state, key):
        arrays, optimiser_state = state
        gradient = jax.grad(loss)(arrays, key)
        updates, optimiser_state = optimiser.update(gradient, optimiser_state)
        return (optax.apply_updates(arrays, updates), optimiser_state), None

    (arrays, _), _ = jax.lax.scan(step, (arrays, optimiser.init(arrays)), jr.split(key, steps))
    trained = eqx.combine(arrays, static)
    # The statistics are measured, never trained.
    return eqx.tree_at(lambda t: t.stats, trained, tokenizer.stats)


@eqx.filter_jit
def error(tokenizer, videos):
    """Returns the mean squared error of encoding and decoding, nothing hidden."""
    return jnp.mean((jax.vmap(lambda v: tokenizer.decode(tokenizer.encode(v)))(videos) - videos) ** 2)


def main():
    key_build, key_train, key_test, key_world, key_agent, key_live = jr.split(jr.key(0), 6)

    print("1. The tokenizer: frames to a few numbers and back.")
    tokenizer = build_tokenizer(key_build)
    videos = jax.vmap(drifting_square)(jr.split(key_test, 64))
    before, blank = error(tokenizer, videos), jnp.mean((videos - videos.mean()) ** 2)
    tokenizer = train(tokenizer, 600, key_train)
    codes = eqx.filter_jit(eqx.filter_vmap(tokenizer.encode))(videos)
    tokenizer = eqx.tree_at(lambda t: t.stats, tokenizer, LatentStats.measure(codes.reshape(-1, 4, 8)))
    latent = tokenizer.stats.standardise(codes[0])  # what tokenizer.encode(videos[0]) returns from here on
    print(f"   a clip {videos[0].shape} becomes latents {latent.shape}")
    print(f"   squared error on new clips: {before:.3f} untrained, {error(tokenizer, videos):.4f} after 600 steps,")
    print(f"   {blank:.4f} if every pixel were guessed as the mean")

    print("2. The world model: clean latents from noisy ones, the past and the action. It is untrained here.")
    key_transformer, key_rest = jr.split(key_world)
    network = TransformerNetwork(
        transformer(dynamics_layout(num_spatial=4, num_registers=1, num_agent_tokens=1), key_transformer),
        spatial_dim=8,
        spec=SPEC,
        grid=NoiseGrid(16),
        key=key_rest,
    )
    grid = network.grid
    tau_index = jnp.array([15, 15, 15, 15, 15, 15, 15, 0])  # seven frames nearly clean, the last one pure noise
    noisy = corrupt(latent, grid.noise(latent.shape, key=key_live), grid.tau(tau_index))
    action, known = Action(jnp.ones((FRAMES, 1), jnp.int32), jnp.zeros((FRAMES, 0))), jnp.ones(FRAMES, bool)
    levels = Levels(tau_index, step_index=jnp.full(FRAMES, grid.finest))
    z_hat, h = eqx.filter_jit(network)(NoisyFrames(noisy, levels, action, known), jnp.array(0))
    assert h is not None  # it is None only where no task is given
    print(f"   prediction {z_hat.shape}, read-out for the agent {h.shape}")

    now = jax.tree.map(lambda leaf: leaf[0], action)
    forcing = build_forcing(ShortcutConfig(k_max=16), context_signal=0.9)
    dynamics = ShortcutDynamics(network, forcing, num_steps=4)
    dreamt, past = eqx.filter_jit(dynamics.imagine)(dynamics.init(jnp.array(0)), now, key=key_live)
    print(
        f"   it dreams a frame {dreamt.latent.shape} in 4 passes, and one more remembers it: "
        f"frames so far {past.stream.position}"
    )

    print("3. The agent: both, and its heads, in one module.")
    settings = ["tokenizer.patch=[4, 4]", "dynamics.shortcut.k_max=16"]
    agent = Dreamer.build(load("tiny", overrides=settings), SPEC, key=key_agent)
    size = sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(agent, eqx.is_inexact_array)))

    @eqx.filter_jit
    def live(agent, video, key):
        """Watches a clip frame by frame, acts, and dreams on for five frames."""

        def watch(memory, frame):
            return agent.observe(memory, frame, Action.null(SPEC.action), jnp.array(False), key=key), None

        memory, _ = jax.lax.scan(watch, agent.init(), video)
        return agent.act(memory, key=key), imagine(agent, memory, 5, key=key)

    chosen, dream = live(agent, videos[0], key_live)
    print(f"   {size:,} parameters; after {FRAMES} frames it chose action {int(chosen.discrete[0])}, at random as yet")
    print(f"   its dream of five frames: latents {dream.latent.shape}, actions {dream.action.discrete[:, 0].tolist()},")
    print(f"   rewards {dream.reward.tolist()} (an untrained reward head says exactly 0)")
    print(
        "   agent.tokenizer.decode turns such latents into frames: noise, until it is trained. `make demo` does that."
    )


if __name__ == "__main__":
    main()
