"""Agent finetuning: cloning, reward and continuation with multi-token prediction (eq 9)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dreamer4.agent.heads import ContinuationHead, LatentHead, PolicyHead, ScalarHead
from dreamer4.nn.rows import masked_mean
from dreamer4.types import Trajectory


def offset_index(length: int, count: int, first: int) -> tuple[Int[Array, "T L"], Bool[Array, "T L"]]:
    """Returns frame `t + first + n` for each frame t and offset n, clipped to the clip, and whether it lies within."""
    index = jnp.arange(length)[:, None] + first + jnp.arange(count)
    return jnp.minimum(index, length - 1), index < length


def agent_losses(
    policy: PolicyHead,
    reward: ScalarHead,
    continuation: ContinuationHead,
    h: Float[Array, "T E"],
    row: Trajectory,
) -> tuple[dict[str, Float[Array, ""]], dict[str, Int[Array, ""]]]:
    """Returns the terms of eq 9 for one clip, each the mean negative log-likelihood in nats over its targets.

    - `cloning`: actions `t + 1 + n`, where they are known; only on relevant clips.
    - `reward`: rewards `t + n`, except at first frames, where none has arrived.
    - `continuation`: whether the episode goes on at frame `t + n`.

    Targets beyond the clip or on padding do not count. Eq 9 sums n from 0 to L; "length 8" reads as L outputs.

    Args:
        policy: head of L offsets.
        reward: head of L offsets.
        continuation: head of L offsets.
        h: read-outs of the clip.
        row: the clip.

    Returns:
        The terms, 0 without targets, and the number of targets of each. In a batch a clip should weigh by it
        (`weighted_mean`), or the few frames of a clip that is mostly padding would weigh more than others.
    """
    length = h.shape[0]

    def target(leaf, index):
        return jax.tree.map(lambda x: x[index], leaf)

    ahead, inside = offset_index(length, policy.length, 1)
    known = inside & row.valid[ahead] & row.action_mask[ahead] & row.valid[:, None] & row.relevant
    cloning = masked_mean(-policy.offsets(h, row.task).log_prob(target(row.action, ahead)), known)

    now, inside = offset_index(length, reward.length, 0)
    arrived = inside & row.valid[now] & ~row.is_first[now]
    rewards = masked_mean(-reward.offsets(h).log_prob(row.reward[now]), arrived)

    now, inside = offset_index(length, continuation.length, 0)
    goes_on = 1.0 - row.is_terminal[now].astype(jnp.float32)
    reached = inside & row.valid[now]
    ends = masked_mean(-continuation.offsets(h).log_prob(goes_on), reached)

    terms = {"cloning": cloning, "reward": rewards, "continuation": ends}
    return terms, {"cloning": known.sum(), "reward": arrived.sum(), "continuation": reached.sum()}


def weighted_mean(x: Float[Array, " B"], count: Int[Array, " B"]) -> Float[Array, ""]:
    """Returns the mean over all targets of a batch, from the mean over each clip's and their number; 0 without any."""
    weight = count.astype(jnp.float32)
    return jnp.sum(x * weight) / jnp.maximum(weight.sum(), 1.0)


def reconstruction_loss(
    head: LatentHead, h: Float[Array, "T E"], latent: Float[Array, "T Nz Dz"], valid: Bool[Array, " T"]
) -> Float[Array, ""]:
    """Returns the mean squared error of the frames' clean latents as reconstructed from their read-outs.

    Args:
        head: the head.
        h: read-outs of a clip.
        latent: its latents, without noise.
        valid: False at padding, which does not count.
    """
    error = jnp.mean((head(h) - latent) ** 2, axis=(-2, -1))
    return masked_mean(error, valid)
