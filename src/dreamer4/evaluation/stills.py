"""A few dreams and reconstructions, to be looked at."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Float, Int, PRNGKeyArray, UInt8

from dreamer4.data import DeviceSource
from dreamer4.dreamer import Dreamer
from dreamer4.evaluation.clips import Clips
from dreamer4.tokenizer import patch_grid
from dreamer4.types import to_float, to_uint8


def film(
    clips: Clips, index: int, truth: UInt8[np.ndarray, "H h w c"], video: Float[np.ndarray, "H h w c"]
) -> tuple[UInt8[np.ndarray, "_ h w c"], UInt8[np.ndarray, "_ h w c"], int]:
    """Returns true frames, the same with the dream behind the context, and how many were given."""
    length, given = int(clips.valid[index].sum()), int(clips.given[index])
    episode, start = clips.episode_and_start(np.array([index]))
    before = np.asarray(clips.source.stretches(episode, start - given, given).frame)[0]
    dreamt = np.asarray(to_uint8(jnp.asarray(video[:length])))
    return np.concatenate([before, truth[:length]]), np.concatenate([before, dreamt]), given


def reconstructions(
    dreamer: Dreamer, source: DeviceSource, episodes: Int[np.ndarray, " E"], *, key: PRNGKeyArray
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Returns the most hidden frame of each episode, as it is, as the encoder sees it in training, and as decoded."""
    length = min(source.max_length, dreamer.dynamics.context_length or source.max_length)
    frames = source.episodes(jnp.asarray(episodes), length).frame
    assert frames is not None
    keys = jr.split(key, len(episodes))
    rebuilt, hidden = jax.vmap(lambda video, key: dreamer.tokenizer.reconstruct(video, key=key))(to_float(frames), keys)
    original = np.asarray(frames)
    masked = _grey_out(original, np.asarray(hidden), dreamer)
    # Of each episode the frame of which most is hidden: one that is seen whole is no riddle.
    within = np.arange(length) < np.asarray(source.length)[episodes, None]
    chosen = np.where(within, np.asarray(hidden).mean(axis=-1), -1.0).argmax(axis=1)
    return [(original[i, t], masked[i, t], np.asarray(to_uint8(rebuilt[i, t]))) for i, t in enumerate(chosen)]


def _grey_out(frames, hidden, dreamer):
    """Shows hidden patches as mid grey, where the tokenizer has patches."""
    patch = getattr(dreamer.tokenizer, "patch", None)
    if patch is None:
        return frames
    height, width = frames.shape[2:4]
    grid = hidden.reshape(*frames.shape[:2], *patch_grid(frames.shape[2:], patch))
    mask = grid.repeat(patch[0], axis=2).repeat(patch[1], axis=3)[:, :, :height, :width]
    return np.where(mask[..., None], np.uint8(127), frames)
