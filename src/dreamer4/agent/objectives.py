"""Policy objectives: how advantages move a policy that must stay close to its prior (eq 11)."""

from abc import abstractmethod
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dreamer4.config import ObjectiveConfig
from dreamer4.errors import InputError, nearest
from dreamer4.nn.rows import masked_mean


MAX_WEIGHT = 20.0  # of an action in advantage-weighted regression


class PolicyBatch(eqx.Module):
    """What an objective sees of a batch of rollouts.

    Attributes:
        logp: log-probability of each action taken, differentiable in the policy.
        prior_kl: exact KL[policy || prior] at each state, differentiable in the policy.
        advantage: lambda-return minus value, treated as a constant.
        mask: False for states at or behind the end of the imagined episode.
    """

    logp: Float[Array, "B T"]
    prior_kl: Float[Array, "B T"]
    advantage: Float[Array, "B T"]
    mask: Bool[Array, "B T"]


class AbstractPolicyObjective(eqx.Module):
    """A loss over a whole batch. It must not be vmapped: its set sizes are those of the batch."""

    @abstractmethod
    def __call__(self, batch: PolicyBatch) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Returns the loss and metrics."""


def _in_units_of_size(batch: PolicyBatch) -> tuple[Float[Array, "B T"], Float[Array, ""]]:
    """Returns advantages, constant and 0 where masked, over their root mean square, and that."""
    advantage = jnp.where(batch.mask, jax.lax.stop_gradient(batch.advantage), 0.0)
    size = jnp.sqrt(masked_mean(jnp.square(advantage), batch.mask))
    return advantage / jnp.maximum(size, 1e-8), size


class PMPO(AbstractPolicyObjective):
    """Preference optimisation from the sign of the advantage (eq 11).

    Actions with advantage >= 0 become likelier, the others less likely, each set averaged over its own size; an empty
    set contributes nothing. The size of an advantage plays no part, so no return needs normalising.
    """

    alpha: float = eqx.field(static=True)
    beta: float = eqx.field(static=True)

    def __init__(self, alpha: float = 0.5, beta: float = 0.3):
        """Builds the objective.

        Args:
            alpha: weight of the positive set, in [0, 1]; the negative set gets `1 - alpha`.
            beta: weight of KL[policy || prior], at least 0.
        """
        if not 0 <= alpha <= 1 or beta < 0:
            raise InputError(f"PMPO: got alpha={alpha}, beta={beta}, expected 0 <= alpha <= 1 and beta >= 0.")
        self.alpha, self.beta = alpha, beta

    def __call__(self, batch: PolicyBatch) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        advantage = jax.lax.stop_gradient(batch.advantage)
        positive = batch.mask & (advantage >= 0)
        negative = batch.mask & (advantage < 0)
        kl = masked_mean(batch.prior_kl, batch.mask)
        loss = (1.0 - self.alpha) * masked_mean(batch.logp, negative) - self.alpha * masked_mean(batch.logp, positive)
        share = positive.sum() / jnp.maximum(batch.mask.sum(), 1)
        return loss + self.beta * kl, {"prior_kl": kl, "positive_share": share}


class AdvantageWeighted(AbstractPolicyObjective):
    """Advantage-weighted regression (Peng et al., arXiv 1910.00177, algorithm 1), and the same pull to the prior.

        L = -mean(min(exp(A / (temperature * rms(A))), 20) ln pi(a|s)) + beta KL[pi || prior]

    It imitates every action, better ones more, so a single bad one is never pushed away. Here the advantage is in units
    of its own size, which makes one temperature fit all rewards. Not in the paper; here for comparison.
    """

    beta: float = eqx.field(static=True)
    temperature: float = eqx.field(static=True)

    def __init__(self, beta: float = 0.3, temperature: float = 1.0):
        """Builds the objective.

        Args:
            beta: weight of KL[policy || prior], at least 0.
            temperature: above 0; small ones listen to the best actions alone.
        """
        if beta < 0 or temperature <= 0:
            raise InputError(
                f"AdvantageWeighted: got beta={beta}, temperature={temperature}, expected beta >= 0 and a temperature "
                "above 0."
            )
        self.beta, self.temperature = beta, temperature

    def __call__(self, batch: PolicyBatch) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        advantage, size = _in_units_of_size(batch)
        # The bound of the authors' code; without one, a single lucky action makes the whole gradient.
        weight = jnp.minimum(jnp.exp(advantage / self.temperature), MAX_WEIGHT)
        kl = masked_mean(batch.prior_kl, batch.mask)
        loss = -masked_mean(weight * batch.logp, batch.mask)
        return loss + self.beta * kl, {"prior_kl": kl, "advantage_size": size}


class PolicyGradient(AbstractPolicyObjective):
    """The plain policy gradient with the advantage in units of its own size, and the same pull to the prior.

    Unlike PMPO it listens to how large an advantage is. Not in the paper; here for comparison.
    """

    beta: float = eqx.field(static=True)

    def __init__(self, beta: float = 0.3):
        """Builds the objective; `beta` weighs KL[policy || prior]."""
        if beta < 0:
            raise InputError(f"PolicyGradient: got beta={beta}, expected beta >= 0.")
        self.beta = beta

    def __call__(self, batch: PolicyBatch) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        advantage, size = _in_units_of_size(batch)
        kl = masked_mean(batch.prior_kl, batch.mask)
        gain = masked_mean(batch.logp * advantage, batch.mask)
        return -gain + self.beta * kl, {"prior_kl": kl, "advantage_size": size}


OBJECTIVES: dict[str, Callable[[ObjectiveConfig], AbstractPolicyObjective]] = {
    "pmpo": lambda config: PMPO(config.alpha, config.beta),
    "awr": lambda config: AdvantageWeighted(config.beta, config.temperature),
    "policy_gradient": lambda config: PolicyGradient(config.beta),
}


def build_objective(config: ObjectiveConfig) -> AbstractPolicyObjective:
    """Builds the registered objective that a configuration names."""
    if config.kind not in OBJECTIVES:
        raise InputError(f"imagination.objective.kind: unknown {config.kind!r}. {nearest(config.kind, OBJECTIVES)}")
    return OBJECTIVES[config.kind](config)
