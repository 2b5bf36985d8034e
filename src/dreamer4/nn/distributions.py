"""Distributions as PyTrees: sample, log-probability, mode, mean, entropy and exact divergence.

Parameters are float32 and the event axes come last, so that leading axes are whatever the caller has.
"""

from abc import abstractmethod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, Shaped

from dreamer4.types import Action


def symlog(x: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
    """Compresses large magnitudes: `sign(x) ln(1 + |x|)`."""
    return jnp.sign(x) * jnp.log1p(jnp.abs(x))


def symexp(x: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
    """Inverts `symlog`: `sign(x) (exp(|x|) - 1)`."""
    return jnp.sign(x) * jnp.expm1(jnp.abs(x))


class AbstractDistribution(eqx.Module):
    """A distribution over events; `*batch` are the axes before the event's."""

    @abstractmethod
    def sample(self, *, key: PRNGKeyArray) -> Shaped[Array, "..."] | Action:
        """Draws one event per batch element."""

    @abstractmethod
    def log_prob(self, event: Shaped[Array, "..."] | Action) -> Float[Array, "..."]:
        """Returns the log-probability (or log-density) of an event, in nats."""

    @abstractmethod
    def mode(self) -> Shaped[Array, "..."] | Action:
        """Returns the most likely event."""

    @abstractmethod
    def entropy(self) -> Float[Array, "..."]:
        """Returns the (differential) entropy, in nats."""

    @abstractmethod
    def kl(self, other: Any) -> Float[Array, "..."]:
        """Returns the exact divergence KL[self || other], in nats; `other` is of the same kind."""


class Categorical(AbstractDistribution):
    """One of K classes."""

    logits: Float[Array, "*batch K"]

    def _log_probs(self):
        return jax.nn.log_softmax(self.logits.astype(jnp.float32), axis=-1)

    def sample(self, *, key: PRNGKeyArray) -> Int[Array, "*batch"]:
        return jr.categorical(key, self.logits, axis=-1)

    def log_prob(self, event: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
        return jnp.take_along_axis(self._log_probs(), event[..., None], axis=-1)[..., 0]

    def mode(self) -> Int[Array, "*batch"]:
        return jnp.argmax(self.logits, axis=-1)

    def mean(self) -> Float[Array, "*batch K"]:
        """Returns the class probabilities, the mean of the one-hot event."""
        return jax.nn.softmax(self.logits.astype(jnp.float32), axis=-1)

    def entropy(self) -> Float[Array, "*batch"]:
        log_probs = self._log_probs()
        return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)

    def kl(self, other: "Categorical") -> Float[Array, "*batch"]:
        own, theirs = self._log_probs(), other._log_probs()
        return jnp.sum(jnp.exp(own) * (own - theirs), axis=-1)


class Bernoulli(AbstractDistribution):
    """A yes or no, as 1.0 or 0.0."""

    logit: Float[Array, "*batch"]

    def sample(self, *, key: PRNGKeyArray) -> Float[Array, "*batch"]:
        return jr.bernoulli(key, self.mean()).astype(jnp.float32)

    def log_prob(self, event: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        return event * jax.nn.log_sigmoid(self.logit) + (1 - event) * jax.nn.log_sigmoid(-self.logit)

    def mode(self) -> Float[Array, "*batch"]:
        return (self.logit > 0).astype(jnp.float32)

    def mean(self) -> Float[Array, "*batch"]:
        """Returns the probability of yes."""
        return jax.nn.sigmoid(self.logit)

    def entropy(self) -> Float[Array, "*batch"]:
        mean = self.mean()
        return -mean * jax.nn.log_sigmoid(self.logit) - (1 - mean) * jax.nn.log_sigmoid(-self.logit)

    def kl(self, other: "Bernoulli") -> Float[Array, "*batch"]:
        mean = self.mean()
        yes = jax.nn.log_sigmoid(self.logit) - jax.nn.log_sigmoid(other.logit)
        no = jax.nn.log_sigmoid(-self.logit) - jax.nn.log_sigmoid(-other.logit)
        return mean * yes + (1 - mean) * no


class Normal(AbstractDistribution):
    """A diagonal Gaussian over vectors. Not in the paper, whose actions are discrete."""

    loc: Float[Array, "*batch K"]
    log_scale: Float[Array, "*batch K"]

    def sample(self, *, key: PRNGKeyArray) -> Float[Array, "*batch K"]:
        return self.loc + jnp.exp(self.log_scale) * jr.normal(key, self.loc.shape)

    def log_prob(self, event: Float[Array, "*batch K"]) -> Float[Array, "*batch"]:
        scaled = (event - self.loc) * jnp.exp(-self.log_scale)
        return -jnp.sum(0.5 * jnp.square(scaled) + self.log_scale + 0.5 * np.log(2 * np.pi), axis=-1)

    def mode(self) -> Float[Array, "*batch K"]:
        return self.loc

    def mean(self) -> Float[Array, "*batch K"]:
        """Returns the centre."""
        return self.loc

    def entropy(self) -> Float[Array, "*batch"]:
        return jnp.sum(self.log_scale + 0.5 * np.log(2 * np.pi * np.e), axis=-1)

    def kl(self, other: "Normal") -> Float[Array, "*batch"]:
        ratio = jnp.exp(2 * (self.log_scale - other.log_scale))
        shift = jnp.square((self.loc - other.loc) * jnp.exp(-other.log_scale))
        return jnp.sum(0.5 * (ratio + shift - 1) + other.log_scale - self.log_scale, axis=-1)


class SymexpTwoHot(AbstractDistribution):
    """A scalar as a categorical over bins that are spaced evenly in symlog, as in Dreamer 3.

    A target is split between the two bins around it, in proportion to its distance in raw units, so that the expected
    bin equals the target. The mean is the expectation of the raw bins: decoding the mean in symlog space and expanding
    it afterwards would be biased for every distribution that is not a single bin.
    """

    logits: Float[Array, "*batch K"]
    limit: float = eqx.field(static=True)

    def __init__(self, logits: Float[Array, "*batch K"], limit: float = 20.0):
        """Wraps logits over an odd number of bins from symexp(-limit) to symexp(limit)."""
        if logits.shape[-1] % 2 == 0:
            raise ValueError(f"SymexpTwoHot: got {logits.shape[-1]} bins, expected an odd number, to have one at zero.")
        self.logits = logits
        self.limit = limit

    @property
    def bins(self) -> Float[Array, " K"]:
        """Values of the bins, ascending, antisymmetric, exactly 0 in the middle."""
        half = np.linspace(0.0, self.limit, self.logits.shape[-1] // 2 + 1, dtype=np.float64)
        positive = np.expm1(half)
        return jnp.asarray(np.concatenate([-positive[:0:-1], positive]), jnp.float32)

    def _log_probs(self):
        return jax.nn.log_softmax(self.logits.astype(jnp.float32), axis=-1)

    def two_hot(self, value: Float[Array, "*batch"]) -> Float[Array, "*batch K"]:
        """Splits a value between its two neighbouring bins; values beyond the ends go to the end bins."""
        bins = self.bins
        value = jnp.clip(value, bins[0], bins[-1])[..., None]
        above = jnp.clip(jnp.sum(bins <= value, axis=-1), 1, bins.shape[0] - 1)
        low, high = bins[above - 1], bins[above]
        share = (value[..., 0] - low) / (high - low)
        count = bins.shape[0]
        return (
            jax.nn.one_hot(above, count) * share[..., None] + jax.nn.one_hot(above - 1, count) * (1 - share)[..., None]
        )

    def sample(self, *, key: PRNGKeyArray) -> Float[Array, "*batch"]:
        return self.bins[jr.categorical(key, self.logits, axis=-1)]

    def log_prob(self, event: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        """Returns the negative cross-entropy between the two-hot target and the bins (eqs 9 and 10)."""
        return jnp.sum(self.two_hot(event) * self._log_probs(), axis=-1)

    def mode(self) -> Float[Array, "*batch"]:
        return self.bins[jnp.argmax(self.logits, axis=-1)]

    def mean(self) -> Float[Array, "*batch"]:
        """Returns the expected bin."""
        probs = jax.nn.softmax(self.logits.astype(jnp.float32), axis=-1)
        half = self.logits.shape[-1] // 2
        # Bins reach 5e8, so opposite ones are paired before they are summed: a symmetric distribution has mean 0.0.
        return jnp.sum((probs[..., half + 1 :] - probs[..., :half][..., ::-1]) * self.bins[half + 1 :], axis=-1)

    def entropy(self) -> Float[Array, "*batch"]:
        return Categorical(self.logits).entropy()

    def kl(self, other: "SymexpTwoHot") -> Float[Array, "*batch"]:
        return Categorical(self.logits).kl(Categorical(other.logits))


class ActionDistribution(AbstractDistribution):
    """Independent components of a factored action: categoricals and one Gaussian.

    Log-probabilities, entropies and divergences are sums over the components.
    """

    discrete: tuple[Categorical, ...]
    continuous: Normal

    def sample(self, *, key: PRNGKeyArray) -> Action:
        *keys, key_continuous = jr.split(key, len(self.discrete) + 1)
        batch = self.continuous.loc.shape[:-1]
        drawn = [d.sample(key=k).astype(jnp.int32) for d, k in zip(self.discrete, keys, strict=True)]
        discrete = jnp.stack(drawn, axis=-1) if drawn else jnp.zeros((*batch, 0), jnp.int32)
        return Action(discrete, self.continuous.sample(key=key_continuous))

    def log_prob(self, event: Action) -> Float[Array, "*batch"]:
        parts = [d.log_prob(event.discrete[..., i]) for i, d in enumerate(self.discrete)]
        return sum(parts, self.continuous.log_prob(event.continuous))

    def mode(self) -> Action:
        batch = self.continuous.loc.shape[:-1]
        chosen = [d.mode().astype(jnp.int32) for d in self.discrete]
        discrete = jnp.stack(chosen, axis=-1) if chosen else jnp.zeros((*batch, 0), jnp.int32)
        return Action(discrete, self.continuous.mode())

    def tempered(self, temperature: float | Float[Array, ""]) -> "ActionDistribution":
        """Returns it with the logits of discrete components divided and the spread of continuous ones multiplied."""
        discrete = tuple(Categorical(part.logits / temperature) for part in self.discrete)
        spread = Normal(self.continuous.loc, self.continuous.log_scale + jnp.log(temperature))
        return ActionDistribution(discrete, spread)

    def entropy(self) -> Float[Array, "*batch"]:
        return sum((d.entropy() for d in self.discrete), self.continuous.entropy())

    def kl(self, other: "ActionDistribution") -> Float[Array, "*batch"]:
        parts = (d.kl(o) for d, o in zip(self.discrete, other.discrete, strict=True))
        return sum(parts, self.continuous.kl(other.continuous))
