"""Dreaming the episodes of a data set again: batches of clips, their dreams as latents, the frames of these."""

from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray, UInt8

from dreamer4.dreamer import Dreamer
from dreamer4.evaluation.clips import Clips
from dreamer4.tokenizer import AbstractTokenizer
from dreamer4.types import Action, Trajectory


class Dreamt(eqx.Module):
    """A batch of dreams, as latents.

    Attributes:
        latent: the dreamt frames.
        reward: expected rewards at them.
        continuation: probabilities that the episode goes on at them.
        value: the policy's value at them; means nothing before imagination training.
        movement: how far the clean estimate of a frame moved in the second half of its denoise passes, RMS.
    """

    latent: Float[Array, "*B H Nz Dz"]
    reward: Float[Array, "*B H"]
    continuation: Float[Array, "*B H"]
    value: Float[Array, "*B H"]
    movement: Float[Array, "*B H"]


@eqx.filter_jit
def dream(
    dreamer: Dreamer,
    given: Trajectory,
    count: Int[Array, " B"],
    actions: Action,
    truth: Float[Array, "B H Nz Dz"],
    observed: bool,
    num_steps: Int[Array, ""],
    *,
    key: Key[Array, " B"],
) -> Dreamt:
    """Dreams on from the first frames of clips under given actions, at any number of denoise passes.

    Args:
        dreamer: the agent.
        given: clips of latents, no longer than the dynamics' context.
        count: how many of their frames are given, at least 1.
        actions: actions of the frames to dream, `[B, H, ...]`.
        truth: the true latents of those frames.
        observed: whether each true frame is taken in after it was dreamt, so that the heads read the real past.
        num_steps: K.
        key: one key for each clip.
    """

    def clip(given, count, actions, truth, key):
        key_recall, key_dream = jr.split(key)
        memory = dreamer.recall(given, count, key=key_recall)

        def body(memory, step):
            action, true, key = step
            imagined, following = dreamer.imagine_step(memory, action, num_steps=num_steps, key=key)
            if observed:
                following = dreamer.observe_latent(memory, true, action, jnp.array(True), key=jr.split(key)[1])
            return following, (imagined.latent, dreamer.readout(following), imagined.movement)

        keys = jr.split(key_dream, truth.shape[0])
        _, (latent, h, movement) = jax.lax.scan(body, memory, (actions, truth, keys))
        reward, continuation, value = (f(h).mean() for f in (dreamer.reward, dreamer.continuation, dreamer.value))
        return Dreamt(latent, reward, continuation, value, movement)

    return jax.vmap(clip)(given, count, actions, truth, key)


@eqx.filter_jit
def view(
    tokenizer: AbstractTokenizer,
    given: Float[Array, "B C Nz Dz"],
    count: Int[Array, " B"],
    dreamt: Float[Array, "B H Nz Dz"],
) -> tuple[Float[Array, "B H h w c"], Float[Array, "B H"]]:
    """Decodes dreams behind their contexts.

    Args:
        tokenizer: the tokenizer.
        given: latents of the context.
        count: how many of them are given.
        dreamt: latents of the frames that follow.

    Returns:
        The frames in [0, 1], and the RMS change of each latent when its frame is encoded again.
    """

    def clip(given, count, dreamt):
        time = jnp.arange(given.shape[0] + dreamt.shape[0])
        later = dreamt[jnp.clip(time - count, 0, dreamt.shape[0] - 1)]
        latent = jnp.where((time < count)[:, None, None], given[jnp.minimum(time, given.shape[0] - 1)], later)
        video = jnp.clip(tokenizer.decode(latent), 0.0, 1.0)
        residual = _rms(tokenizer.encode(video) - latent)
        horizon = dreamt.shape[0]
        return (
            jax.lax.dynamic_slice_in_dim(video, count, horizon),
            jax.lax.dynamic_slice_in_dim(residual, count, horizon),
        )

    return jax.vmap(clip)(given, count, dreamt)


@dataclass(frozen=True)
class Batch:
    """Clips of one batch on the device, ready to be dreamt in several ways."""

    dreamer: Dreamer
    count: Int[Array, " B"]
    given: Trajectory
    context: Float[Array, "B C Nz Dz"]
    truth: Float[Array, "B H Nz Dz"]
    before: UInt8[np.ndarray, "B 1 h w c"]
    frames: UInt8[np.ndarray, "B H h w c"]
    reward: Float[Array, "B H"]
    terminal: Bool[Array, "B H"]
    index: Int[Array, " B"]
    key: PRNGKeyArray

    @classmethod
    def load(cls, dreamer: Dreamer, clips: Clips, index: Int[np.ndarray, " B"], *, key: PRNGKeyArray) -> "Batch":
        episode, start = clips.episode_and_start(index)
        count = jnp.asarray(clips.given[index])
        given = clips.encoded.stretches(episode, start - count, clips.context_length)
        truth = clips.encoded.stretches(episode, start, clips.horizon).latent
        seen = clips.source.stretches(episode, start, clips.horizon)
        before = clips.source.stretches(episode, start - 1, 1).frame
        assert given.latent is not None and truth is not None and seen.frame is not None
        seen_frames, rows = np.asarray(seen.frame), jnp.asarray(index)
        return cls(
            dreamer, count, given, given.latent, truth, np.asarray(before), seen_frames, seen.reward, seen.is_terminal,
            rows, key,
        )  # fmt: skip

    def dream(self, steps: int, actions: Action, *, seed: int = 0, observed: bool = False) -> Dreamt:
        """Dreams the clips with K = `steps`, under the actions that all clips have in `actions`."""
        noise = jr.fold_in(self.key, seed)
        keys = jax.vmap(lambda i: jr.fold_in(noise, i))(self.index)
        taken = jax.tree.map(lambda x: x[self.index], actions)
        num_steps = jnp.asarray(steps)
        return dream(self.dreamer, self.given, self.count, taken, self.truth, observed, num_steps, key=keys)

    def look(self, latent: Float[Array, "B H Nz Dz"]) -> tuple[np.ndarray, np.ndarray]:
        """Returns frames and decode-encode residuals of dreamt latents, on the host."""
        video, residual = view(self.dreamer.tokenizer, self.context, self.count, latent)
        return np.asarray(video), np.asarray(residual)

    def last_frame(self) -> UInt8[np.ndarray, "B H h w c"]:
        """Returns the last given frame in place of every dreamt one."""
        return np.broadcast_to(self.before, self.frames.shape)


def _rms(x):
    return jnp.sqrt(jnp.mean(jnp.square(x), axis=(-2, -1)))
