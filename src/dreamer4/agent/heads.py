"""Heads on the agent read-out `h` (arXiv 2509.24527, section 3.3): small MLPs with one output per predicted offset.

Offset n of the reward and continuation heads speaks of frame `t + n`, offset n of the policy of action `t + 1 + n`,
since `h[t]` has already seen action t. Called plainly a head answers for now, offset 0, which is all that acting and
imagining use; `offsets` gives every offset, for training.
"""

import math
from abc import abstractmethod
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int, PRNGKeyArray

from dreamer4.config import AgentConfig, ContinuousConfig
from dreamer4.errors import InputError, nearest
from dreamer4.nn import MLP, ActionDistribution, Bernoulli, Beta, Bins, Categorical, Linear, Normal, SymexpTwoHot
from dreamer4.types import ActionSpec


class AbstractContinuous(eqx.Module):
    """How a policy head turns its outputs into the distribution of one dimension of a continuous action.

    Attributes:
        size: outputs for each dimension; all 0 give the policy that training starts from.
    """

    size: eqx.AbstractVar[int]

    @abstractmethod
    def __call__(self, raw: Float[Array, "*dims D {self.size}"]) -> Normal | Bins | Beta:
        """Returns the distribution of each dimension."""


class BinnedActions(AbstractContinuous):
    """Evenly spaced bins; at first all alike."""

    size: int = eqx.field(static=True)

    def __call__(self, raw: Float[Array, "*dims D {self.size}"]) -> Bins:
        return Bins(raw)


class NormalActions(AbstractContinuous):
    """A Gaussian whose mean lies in (-1, 1), as in Dreamer 3.

    Its spread lies between `least_scale` and 1: a wider policy would mostly be clipped. A narrow one cannot explore,
    and the gradients of its log-density grow with the inverse square of its spread.
    """

    least_scale: float = eqx.field(static=True)
    size: int = eqx.field(static=True, default=2)

    def __call__(self, raw: Float[Array, "*dims D {self.size}"]) -> Normal:
        low = math.log(self.least_scale)
        return Normal(jnp.tanh(raw[..., 0]), low - low * jax.nn.sigmoid(raw[..., 1]))


class BetaActions(AbstractContinuous):
    """A Beta distribution with one mode, broad at first."""

    size: int = eqx.field(static=True, default=2)

    def __call__(self, raw: Float[Array, "*dims D {self.size}"]) -> Beta:
        exponents = 1.0 + jax.nn.softplus(raw)
        return Beta(exponents[..., 0], exponents[..., 1])


CONTINUOUS: dict[str, Callable[[ContinuousConfig], AbstractContinuous]] = {
    "bins": lambda config: BinnedActions(size=config.bins),
    "beta": lambda config: BetaActions(),
    "normal": lambda config: NormalActions(least_scale=config.least_scale),
}


def build_continuous(config: ContinuousConfig) -> AbstractContinuous:
    """Builds the registered kind of continuous policy that a configuration names."""
    if config.kind not in CONTINUOUS:
        raise InputError(f"agent.continuous.kind: unknown {config.kind!r}. {nearest(config.kind, CONTINUOUS)}")
    return CONTINUOUS[config.kind](config)


class PolicyHead(eqx.Module):
    """The policy: a product distribution over the components of an action, the continuous ones averaged."""

    mlp: MLP
    spec: ActionSpec = eqx.field(static=True)
    continuous: AbstractContinuous
    length: int = eqx.field(static=True)

    def __init__(
        self,
        in_size: int,
        spec: ActionSpec,
        *,
        continuous: AbstractContinuous,
        hidden: int,
        layers: int,
        length: int,
        key: PRNGKeyArray,
    ):
        """Builds a policy for actions of `spec` that predicts `length` offsets; it starts out uniform."""
        outputs = sum(spec.num_classes) + continuous.size * spec.continuous_dim
        self.mlp = MLP(in_size, hidden, length * outputs, layers=layers, scale=0.0, key=key)
        self.spec, self.continuous, self.length = spec, continuous, length

    def offsets(self, h: Float[Array, "*dims E"], task: Int[Array, "*some"] | None = None) -> ActionDistribution:
        """Returns distributions of shape `[*dims, L]`; offset n is of action `t + 1 + n`.

        They are over the components that the tasks have, whose axes broadcast to those of `h`; None: over all.
        """
        return self._distribution(self._raw(h), None if task is None else task[..., None])

    def __call__(self, h: Float[Array, "*dims E"], task: Int[Array, "*some"] | None = None) -> ActionDistribution:
        """Returns the distribution of the next action; `task` as for `offsets`."""
        return self._distribution(self._raw(h)[..., 0, :], task)

    def _raw(self, h: Float[Array, "*dims E"]) -> Float[Array, "*dims L outputs"]:
        raw = self.mlp(h)
        return raw.reshape(*raw.shape[:-1], self.length, -1)

    def _distribution(self, raw: Float[Array, "*dims outputs"], task: Int[Array, "*some"] | None) -> ActionDistribution:
        bounds = [sum(self.spec.num_classes[: i + 1]) for i in range(len(self.spec.num_classes))]
        *discrete, rest = jnp.split(raw, bounds, axis=-1)
        rest = rest.reshape(*rest.shape[:-1], self.continuous.size, self.spec.continuous_dim).swapaxes(-1, -2)
        present = self.spec.components(task) if self.spec.present else None
        return ActionDistribution(tuple(map(Categorical, discrete)), self.continuous(rest), True, present)


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
    continuous = build_continuous(config.continuous)
    size = {"hidden": config.hidden, "layers": config.layers}
    bins = {"num_bins": config.num_bins, "limit": config.bin_limit}
    return Heads(
        PolicyHead(in_size, spec, continuous=continuous, length=config.mtp_length, **size, key=key_policy),
        ScalarHead(in_size, length=config.mtp_length, **size, **bins, key=key_reward),
        ContinuationHead(in_size, length=config.mtp_length, **size, key=key_continuation),
        ScalarHead(in_size, length=1, **size, **bins, key=key_value),
    )
