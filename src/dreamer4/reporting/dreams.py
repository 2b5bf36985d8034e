"""How good the dreams are: held-out episodes dreamt again under their own actions, frame by frame against the truth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from dreamer4.data import DeviceSource
from dreamer4.dreamer import Dreamer
from dreamer4.dynamics import AbstractSampler, ShortcutSampler
from dreamer4.errors import InputError
from dreamer4.imagination import imagine
from dreamer4.reporting.quality import matching_frames, psnr
from dreamer4.types import Trajectory, to_float, to_uint8


@dataclass(frozen=True)
class DreamQuality:
    """What was measured on held-out episodes.

    Attributes:
        context_length: true frames the model was given.
        episodes: number of episodes.
        accuracy: by number K of denoise passes, the share of frames exactly right at each step after the context.
        controls: the same at K of the agent's own sampler for actions shuffled in time, and for repeating the last
            frame of the context.
        truth: true frames of a few episodes.
        dream: the frames dreamt in their place.
        tokenizer_psnr: of all reconstructions, dB.
        tokenizer_exact: share of reconstructed frames with every pixel right.
        original: a few frames, then as the encoder saw them in training, then as decoded.
    """

    context_length: int
    episodes: int
    accuracy: Mapping[int, list[float]]
    controls: Mapping[str, list[float]]
    truth: UInt8[np.ndarray, "N T H W C"]
    dream: UInt8[np.ndarray, "N T H W C"]
    tokenizer_psnr: float
    tokenizer_exact: float
    reconstructions: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]

    @property
    def mean_accuracy(self) -> dict[int, float]:
        """Share of all dreamt frames that are exactly right, by K."""
        return {steps: float(np.mean(values)) for steps, values in self.accuracy.items()}


@eqx.filter_jit
def dream_videos(
    dreamer: Dreamer, rows: Trajectory, sampler: AbstractSampler, context_length: int, *, key: PRNGKeyArray
) -> Float[Array, "B T H W C"]:
    """Dreams whole clips from their first frames, under the actions that were taken in them.

    Args:
        dreamer: the agent.
        rows: clips of latents.
        sampler: how to draw frames.
        context_length: true frames given, at least 1.
        key: randomness of the dreams.

    Returns:
        Decoded frames, the context included.
    """

    def dream(row, key):
        key_recall, key_dream = jr.split(key)
        memory = dreamer.recall(row, jnp.asarray(context_length), key=key_recall)
        actions = jax.tree.map(lambda leaf: leaf[context_length:], row.action)
        horizon = row.reward.shape[0] - context_length
        rollout = imagine(dreamer, memory, horizon, actions=actions, sampler=sampler, key=key_dream)
        return dreamer.tokenizer.decode(jnp.concatenate([row.latent[:context_length], rollout.latent]))

    return jax.vmap(dream)(rows, jr.split(key, rows.reward.shape[0]))


def shuffle_actions(rows: Trajectory, context_length: int, *, key: PRNGKeyArray) -> Trajectory:
    """Puts the actions behind the context in a random order; a model that uses its actions must then err."""

    def shuffle(action, key):
        order = jr.permutation(key, jnp.arange(context_length, action.discrete.shape[0]))
        return jax.tree.map(lambda leaf: leaf.at[context_length:].set(leaf[order]), action)

    shuffled = jax.vmap(shuffle)(rows.action, jr.split(key, rows.reward.shape[0]))
    return eqx.tree_at(lambda r: r.action, rows, shuffled)


def measure_dreams(
    dreamer: Dreamer,
    source: DeviceSource,
    latents: Float[Array, "N Nz Dz"],
    *,
    levels: Sequence[float],
    num_steps: Sequence[int] = (1, 2, 4, 8),
    context_length: int = 1,
    max_episodes: int = 200,
    shown: int = 6,
    key: PRNGKeyArray,
) -> DreamQuality:
    """Dreams held-out episodes again and compares them with what happened.

    A step counts the episodes that reach it; nothing is dreamt beyond the end of an episode or the dynamics' context.

    Args:
        dreamer: the agent.
        source: held-out episodes, with frames.
        latents: their latents.
        levels: the pixel values that occur, in [0, 1]; dreams are rounded to the nearest.
        num_steps: numbers K of denoise passes to try; those that do not divide k_max are left out.
        context_length: true frames given.
        max_episodes: episodes used, the first ones.
        shown: episodes whose frames are returned.
        key: randomness of the dreams.
    """
    length = min(source.max_length, dreamer.dynamics.context_length)
    if length <= context_length:
        raise InputError(
            f"measure_dreams: got {context_length} context frames, but clips of {length}. Give fewer context frames."
        )
    index = jnp.arange(min(max_episodes, source.num_episodes))
    truth = source.episodes(index, length)
    rows = source.with_latents(latents).episodes(index, length)
    assert truth.frame is not None
    assert rows.latent is not None
    frames, valid = np.asarray(truth.frame), np.asarray(truth.valid)

    def right(video):
        return matching_frames(np.asarray(to_uint8(video)), frames, levels)

    def by_step(hits):
        counts = np.maximum(valid.sum(0), 1)
        return [round(float(x), 4) for x in ((hits & valid).sum(0) / counts)[context_length:]]

    own = getattr(dreamer.sampler, "num_steps", dreamer.dynamics.grid.k_max)
    allowed = [k for k in num_steps if dreamer.dynamics.grid.k_max % k == 0]
    signal = dreamer.sampler.context_signal
    videos = {
        k: dream_videos(dreamer, rows, ShortcutSampler(k, signal), context_length, key=key) for k in {*allowed, own}
    }
    shuffled = shuffle_actions(rows, context_length, key=key)
    wrong = dream_videos(dreamer, shuffled, ShortcutSampler(own, signal), context_length, key=key)
    last = np.repeat(frames[:, context_length - 1 : context_length], length, axis=1)

    decoded = np.asarray(jax.vmap(dreamer.tokenizer.decode)(rows.latent))
    some, keys = to_float(truth.frame[:shown]), jr.split(key, min(shown, len(index)))
    rebuilt, hidden = jax.vmap(lambda video, key: dreamer.tokenizer.reconstruct(video, key=key))(some, keys)
    seen = _grey_out(np.asarray(truth.frame[:shown]), np.asarray(hidden), dreamer)
    middle = length // 2
    return DreamQuality(
        context_length=context_length,
        episodes=len(index),
        accuracy={k: by_step(right(videos[k])) for k in sorted(videos)},
        controls={
            "actions shuffled": by_step(right(wrong)),
            "last frame repeated": by_step(matching_frames(last, frames, levels)),
        },
        truth=frames[:shown],
        dream=np.asarray(to_uint8(videos[own][:shown])),
        tokenizer_psnr=psnr(np.clip(decoded, 0.0, 1.0)[valid], np.asarray(to_float(truth.frame))[valid]),
        tokenizer_exact=float(right(jnp.asarray(decoded))[valid].mean()),
        reconstructions=[
            (frames[i, middle], seen[i, middle], np.asarray(to_uint8(rebuilt[i, middle]))) for i in range(len(keys))
        ],
    )


def _grey_out(frames, hidden, dreamer):
    """Shows hidden patches as mid grey, where the tokenizer has patches."""
    patch = getattr(dreamer.tokenizer, "patch", None)
    if patch is None:
        return frames
    rows, columns = frames.shape[2] // patch[0], frames.shape[3] // patch[1]
    mask = hidden.reshape(*frames.shape[:2], rows, columns).repeat(patch[0], axis=2).repeat(patch[1], axis=3)
    return np.where(mask[..., None], np.uint8(127), frames)
