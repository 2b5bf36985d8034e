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
from jax.scipy.special import betaln, digamma
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Shaped

from dreamer4.types import Action


_EDGE = 1e-3  # of [0, 1]: recorded actions often lie on an end, where the density of a Beta is 0 or grows beyond bounds


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
    """A Gaussian. Not in the paper, whose actions are discrete."""

    loc: Float[Array, "*batch"]
    log_scale: Float[Array, "*batch"]

    def sample(self, *, key: PRNGKeyArray) -> Float[Array, "*batch"]:
        return self.loc + jnp.exp(self.log_scale) * jr.normal(key, self.loc.shape)

    def log_prob(self, event: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        scaled = (event - self.loc) * jnp.exp(-self.log_scale)
        return -(0.5 * jnp.square(scaled) + self.log_scale + 0.5 * np.log(2 * np.pi))

    def mode(self) -> Float[Array, "*batch"]:
        return self.loc

    def mean(self) -> Float[Array, "*batch"]:
        """Returns the centre."""
        return self.loc

    def tempered(self, temperature: float | Float[Array, ""]) -> "Normal":
        """Returns it with its spread multiplied."""
        return Normal(self.loc, self.log_scale + jnp.log(temperature))

    def entropy(self) -> Float[Array, "*batch"]:
        return self.log_scale + 0.5 * np.log(2 * np.pi * np.e)

    def kl(self, other: "Normal") -> Float[Array, "*batch"]:
        ratio = jnp.exp(2 * (self.log_scale - other.log_scale))
        shift = jnp.square((self.loc - other.loc) * jnp.exp(-other.log_scale))
        return 0.5 * (ratio + shift - 1) + other.log_scale - self.log_scale


class Bins(AbstractDistribution):
    """A number in [-1, 1] as one of K evenly spaced bins, the outermost centred on the ends.

    Unlike a Gaussian it can be torn between two actions, and its gradients are bounded. A draw lies anywhere in its
    bin, so all of [-1, 1] is reached; its probability is that of the bin. The paper bins the mouse likewise (11 x 11).
    """

    logits: Float[Array, "*batch K"]

    @property
    def centres(self) -> Float[Array, " K"]:
        """Centres of the bins, ascending from -1 to 1."""
        return jnp.linspace(-1.0, 1.0, self.logits.shape[-1])

    def sample(self, *, key: PRNGKeyArray) -> Float[Array, "*batch"]:
        key_bin, key_within = jr.split(key)
        centre = self.centres[jr.categorical(key_bin, self.logits, axis=-1)]
        half = 1.0 / (self.logits.shape[-1] - 1)
        return jnp.clip(centre + jr.uniform(key_within, centre.shape, minval=-half, maxval=half), -1.0, 1.0)

    def log_prob(self, event: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        """Returns the log-probability of the bin that holds the event; what lies outside counts to the end bins."""
        last = self.logits.shape[-1] - 1
        index = jnp.round((jnp.clip(event, -1.0, 1.0) + 1.0) * (last / 2)).astype(jnp.int32)
        return Categorical(self.logits).log_prob(index)

    def mode(self) -> Float[Array, "*batch"]:
        return self.centres[jnp.argmax(self.logits, axis=-1)]

    def mean(self) -> Float[Array, "*batch"]:
        """Returns the expected centre."""
        return jnp.sum(Categorical(self.logits).mean() * self.centres, axis=-1)

    def tempered(self, temperature: float | Float[Array, ""]) -> "Bins":
        """Returns it with its logits divided."""
        return Bins(self.logits / temperature)

    def entropy(self) -> Float[Array, "*batch"]:
        return Categorical(self.logits).entropy()

    def kl(self, other: "Bins") -> Float[Array, "*batch"]:
        return Categorical(self.logits).kl(Categorical(other.logits))


class Beta(AbstractDistribution):
    """A Beta distribution stretched over [-1, 1]. Not in the paper.

    Attributes:
        alpha: exponent that draws towards 1; above 1, so that there is one mode, inside.
        beta: exponent that draws towards -1; likewise.
    """

    alpha: Float[Array, "*batch"]
    beta: Float[Array, "*batch"]

    def sample(self, *, key: PRNGKeyArray) -> Float[Array, "*batch"]:
        return 2.0 * jr.beta(key, self.alpha, self.beta) - 1.0

    def log_prob(self, event: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        """Returns the log-density; the ends, where it is none, count as 0.002 before them."""
        share = jnp.clip((event + 1.0) / 2.0, _EDGE, 1.0 - _EDGE)
        logs = (self.alpha - 1.0) * jnp.log(share) + (self.beta - 1.0) * jnp.log1p(-share)
        return logs - betaln(self.alpha, self.beta) - np.log(2.0)

    def mode(self) -> Float[Array, "*batch"]:
        return (self.alpha - self.beta) / (self.alpha + self.beta - 2.0)

    def mean(self) -> Float[Array, "*batch"]:
        """Returns the expected number."""
        return (self.alpha - self.beta) / (self.alpha + self.beta)

    def tempered(self, temperature: float | Float[Array, ""]) -> "Beta":
        """Returns it with its log-density divided."""
        return Beta(1.0 + (self.alpha - 1.0) / temperature, 1.0 + (self.beta - 1.0) / temperature)

    def entropy(self) -> Float[Array, "*batch"]:
        a, b = self.alpha, self.beta
        inside = (a - 1.0) * digamma(a) + (b - 1.0) * digamma(b) - (a + b - 2.0) * digamma(a + b)
        return betaln(a, b) - inside + np.log(2.0)

    def kl(self, other: "Beta") -> Float[Array, "*batch"]:
        a, b, other_a, other_b = self.alpha, self.beta, other.alpha, other.beta
        both = (other_a - a + other_b - b) * digamma(a + b)
        return betaln(other_a, other_b) - betaln(a, b) + (a - other_a) * digamma(a) + (b - other_b) * digamma(b) + both


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
    """Independent components of a factored action: categoricals, and the dimensions of one continuous vector.

    Log-probabilities, entropies and divergences are sums over the components, of which the continuous vector is one.

    Attributes:
        discrete: one distribution for each discrete component.
        continuous: the distribution of each dimension of the continuous vector.
        present: which components there are, the discrete ones first; None: all. The others add nothing, whatever stands
            in their place, and are drawn as 0.
        averaged: whether the continuous vector counts as the mean over its dimensions rather than as their sum, so that
            six joints weigh no more than one in a loss; then no log-probability of the vector, but one per dimension.
    """

    discrete: tuple[Categorical, ...]
    continuous: Normal | Bins | Beta
    averaged: bool = eqx.field(static=True, default=False)
    present: Bool[Array, "*some C"] | None = None

    def _has(self, shape: tuple[int, ...]) -> Bool[Array, "*batch C"]:
        """Returns which components there are, for a continuous vector of a shape."""
        full = (*shape[:-1], len(self.discrete) + shape[-1])
        return jnp.ones(full, bool) if self.present is None else jnp.broadcast_to(self.present, full)

    def _own(self, action: Action) -> Action:
        """Returns an action with 0 in place of what is not there."""
        has, count = self._has(action.continuous.shape), len(self.discrete)
        return Action(
            jnp.where(has[..., :count], action.discrete, 0), jnp.where(has[..., count:], action.continuous, 0.0)
        )

    def _sum(self, parts: list[Float[Array, "*batch"]], dims: Float[Array, "*batch D"]) -> Float[Array, "*batch"]:
        has, count = self._has(dims.shape), len(self.discrete)
        own = has[..., count:]
        dims = jnp.sum(jnp.where(own, dims, 0.0), axis=-1)
        if self.averaged:
            dims = dims / jnp.maximum(own.sum(axis=-1), 1).astype(jnp.float32)
        return sum((jnp.where(has[..., i], part, 0.0) for i, part in enumerate(parts)), dims)

    def sample(self, *, key: PRNGKeyArray) -> Action:
        *keys, key_continuous = jr.split(key, len(self.discrete) + 1)
        drawn = [d.sample(key=k) for d, k in zip(self.discrete, keys, strict=True)]
        return self._own(_joined(drawn, self.continuous.sample(key=key_continuous)))

    def log_prob(self, event: Action) -> Float[Array, "*batch"]:
        event = self._own(event)
        parts = [d.log_prob(event.discrete[..., i]) for i, d in enumerate(self.discrete)]
        return self._sum(parts, self.continuous.log_prob(event.continuous))

    def mode(self) -> Action:
        return self._own(_joined([d.mode() for d in self.discrete], self.continuous.mode()))

    def tempered(self, temperature: float | Float[Array, ""]) -> "ActionDistribution":
        """Returns it with logits divided, and the spread of Gaussians multiplied."""
        discrete = tuple(Categorical(part.logits / temperature) for part in self.discrete)
        return ActionDistribution(discrete, self.continuous.tempered(temperature), self.averaged, self.present)

    def entropy(self) -> Float[Array, "*batch"]:
        return self._sum([d.entropy() for d in self.discrete], self.continuous.entropy())

    def kl(self, other: "ActionDistribution") -> Float[Array, "*batch"]:
        parts = [d.kl(o) for d, o in zip(self.discrete, other.discrete, strict=True)]
        theirs: Any = other.continuous  # of the same kind
        return self._sum(parts, self.continuous.kl(theirs))


def _joined(discrete: list[Int[Array, "*batch"]], continuous: Float[Array, "*batch D"]) -> Action:
    empty = jnp.zeros((*continuous.shape[:-1], 0), jnp.int32)
    return Action(jnp.stack(discrete, axis=-1).astype(jnp.int32) if discrete else empty, continuous)
