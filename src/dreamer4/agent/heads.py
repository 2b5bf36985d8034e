"""Heads on the agent read-out `h` (arXiv 2509.24527, section 3.3): small MLPs with one output per predicted offset.

Offset n of the reward and continuation heads speaks of frame `t + n`, offset n of the policy of action `t + 1 + n`,
since `h[t]` has already seen action t. Called plainly a head answers for now, offset 0, which is all that acting and
imagining use; `offsets` gives every offset, for training.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from dreamer4.config import AgentConfig
from dreamer4.nn import MLP, ActionDistribution, Bernoulli, Categorical, Linear, Normal, SymexpTwoHot
from dreamer4.types import ActionSpec


# Continuous actions live in [-1, 1]; a policy wider than this would mostly be clipped, a narrower one cannot explore.
LOG_SCALE_RANGE = (-4.0, 0.0)


class PolicyHead(eqx.Module):
    """The policy: a product distribution over the components of an action."""

    mlp: MLP
    spec: ActionSpec = eqx.field(static=True)
    length: int = eqx.field(static=True)

    def __init__(self, in_size: int, spec: ActionSpec, *, hidden: int, layers: int, length: int, key: PRNGKeyArray):
        """Builds a policy for actions of `spec` that predicts `length` offsets; it starts out uniform."""
        outputs = sum(spec.num_classes) + 2 * spec.continuous_dim
        self.mlp = MLP(in_size, hidden, length * outputs, layers=layers, scale=0.0, key=key)
        self.spec = spec
        self.length = length

    def offsets(self, h: Float[Array, "*dims E"]) -> ActionDistribution:
        """Returns distributions of shape `[*dims, L]`; offset n is of action `t + 1 + n`."""
        raw = self.mlp(h)
        raw = raw.reshape(*raw.shape[:-1], self.length, -1)
        bounds = [sum(self.spec.num_classes[: i + 1]) for i in range(len(self.spec.num_classes))]
        *discrete, continuous = jnp.split(raw, bounds, axis=-1)
        loc, width = jnp.split(continuous, 2, axis=-1)
        low, high = LOG_SCALE_RANGE
        log_scale = low + (high - low) * jax.nn.sigmoid(width)
        return ActionDistribution(tuple(Categorical(logits) for logits in discrete), Normal(jnp.tanh(loc), log_scale))

    def __call__(self, h: Float[Array, "*dims E"]) -> ActionDistribution:
        """Returns the distribution of the next action."""
        return jax.tree.map(lambda leaf: leaf[..., 0, :], self.offsets(h))


class ScalarHead(eqx.Module):
    """A scalar per offset as a symexp two-hot distribution: rewards, and with one offset values."""

    mlp: MLP
    limit: float = eqx.field(static=True)
    length: int = eqx.field(static=True)

    def __init__(
        self,
        in_size: int,
        *,
        hidden: int,
        layers: int,
        length: int,
        num_bins: int = 255,
        limit: float = 20.0,
        key: PRNGKeyArray,
    ):
        """Builds a head of `length` offsets over bins from symexp(-limit) to symexp(limit); its first mean is 0."""
        self.mlp = MLP(in_size, hidden, length * num_bins, layers=layers, scale=0.0, key=key)
        self.limit = limit
        self.length = length

    def offsets(self, h: Float[Array, "*dims E"]) -> SymexpTwoHot:
        """Returns distributions of shape `[*dims, L]`; offset n is of frame `t + n`."""
        raw = self.mlp(h)
        return SymexpTwoHot(raw.reshape(*raw.shape[:-1], self.length, -1), self.limit)

    def __call__(self, h: Float[Array, "*dims E"]) -> SymexpTwoHot:
        """Returns the distribution for the current frame."""
        return SymexpTwoHot(self.offsets(h).logits[..., 0, :], self.limit)


class ContinuationHead(eqx.Module):
    """The probability that the episode goes on at a frame, per offset."""

    mlp: MLP
    length: int = eqx.field(static=True)

    def __init__(self, in_size: int, *, hidden: int, layers: int, length: int, key: PRNGKeyArray):
        """Builds a head of `length` offsets."""
        self.mlp = MLP(in_size, hidden, length, layers=layers, scale=0.0, key=key)
        self.length = length

    def offsets(self, h: Float[Array, "*dims E"]) -> Bernoulli:
        """Returns distributions of shape `[*dims, L]`; offset n is of frame `t + n`."""
        return Bernoulli(self.mlp(h))

    def __call__(self, h: Float[Array, "*dims E"]) -> Bernoulli:
        """Returns the distribution for the current frame."""
        return Bernoulli(self.mlp(h)[..., 0])


class LatentHead(eqx.Module):
    """The latents of the current frame, by a linear map.

    Not in the paper. What no other head asks for fades from `h` in finetuning, such as the state of a game long before
    its outcome, when the data's actions ignore it; a policy that imagination trains on `h` then misses it.
    """

    readout: Linear
    num_spatial: int = eqx.field(static=True)

    def __init__(self, in_size: int, num_spatial: int, spatial_dim: int, *, key: PRNGKeyArray):
        """Builds a head for `num_spatial` tokens of `spatial_dim` channels."""
        self.readout = Linear(in_size, num_spatial * spatial_dim, use_bias=True, key=key)
        self.num_spatial = num_spatial

    def __call__(self, h: Float[Array, "*dims E"]) -> Float[Array, "*dims Nz Dz"]:
        """Returns the expected latents of the current frame."""
        flat = self.readout(h.astype(jnp.float32))
        return flat.reshape(*flat.shape[:-1], self.num_spatial, -1)


class Heads(eqx.Module):
    """The four heads of an agent, as built together."""

    policy: PolicyHead
    reward: ScalarHead
    continuation: ContinuationHead
    value: ScalarHead


def build_heads(config: AgentConfig, in_size: int, spec: ActionSpec, *, key: PRNGKeyArray) -> Heads:
    """Builds the heads that a configuration describes, on read-outs of `in_size` features."""
    key_policy, key_reward, key_continuation, key_value = jr.split(key, 4)
    size = {"hidden": config.hidden, "layers": config.layers}
    bins = {"num_bins": config.num_bins, "limit": config.bin_limit}
    return Heads(
        PolicyHead(in_size, spec, length=config.mtp_length, **size, key=key_policy),
        ScalarHead(in_size, length=config.mtp_length, **size, **bins, key=key_reward),
        ContinuationHead(in_size, length=config.mtp_length, **size, key=key_continuation),
        ScalarHead(in_size, length=1, **size, **bins, key=key_value),
    )
