"""The one training loop of the offline baselines: Adam on random decisions, to a held-out criterion or a number."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from dreamer4.baselines.actor_critic import ActorCritic
from dreamer4.baselines.decisions import Decisions
from dreamer4.config import OfflineConfig


# What is learned from one decision: of the network, of its running average, of the data and the decision's number.
Loss = Callable[[ActorCritic, ActorCritic, Decisions, Int[Array, ""]], Float[Array, ""]]

_ROWS = 512  # held-out decisions judged at a time


class Fitted(eqx.Module):
    """What a training came to.

    Attributes:
        network: the running average of the weights, of the best look where there was a criterion.
        steps: gradient steps behind it.
        taken: gradient steps taken in all.
        held_out: its mean loss on held-out decisions; None: there was no criterion.
    """

    network: ActorCritic
    steps: int
    taken: int
    held_out: float | None


def fit(
    loss: Loss,
    network: ActorCritic,
    decisions: Decisions,
    settings: OfflineConfig,
    *,
    held_out: Decisions | None,
    steps: int,
    progress: Callable[[int, float | None], None] | None = None,
    key: PRNGKeyArray,
) -> Fitted:
    """Trains a network on decisions drawn anew for each step, each with the same chance.

    Args:
        loss: of one decision; its mean over a batch, by weights, is minimised.
        network: the start.
        decisions: what is learned from.
        settings: sizes and rates.
        held_out: decisions that decide when to stop: when their loss has not fallen at `settings.patience` looks, one
            every `settings.every` steps. The best look is returned. None: after `steps`.
        steps: most steps, rounded up to whole looks.
        progress: called at every look with steps so far and the held-out loss.
        key: randomness of the batches.
    """
    optimizer = optax.adam(settings.learning_rate)
    state = (network, network, optimizer.init(eqx.filter(network, eqx.is_inexact_array)))
    best, taken, waited = Fitted(network, 0, 0, None), 0, 0
    while taken < steps and waited < settings.patience:
        state = _advance(loss, settings, decisions, state, jr.fold_in(key, taken))
        taken += settings.every
        judged = None if held_out is None else float(_judge(loss, state[1], held_out))
        if judged is None or best.held_out is None or judged < best.held_out:
            best, waited = Fitted(state[1], taken, taken, judged), 0
        else:
            waited += 1
        if progress is not None:
            progress(taken, judged)
    return Fitted(best.network, best.steps, taken, best.held_out)


@eqx.filter_jit
def _advance(loss: Loss, settings: OfflineConfig, decisions: Decisions, state: PyTree, key: PRNGKeyArray) -> PyTree:
    arrays, static = eqx.partition(state, eqx.is_array)
    optimizer = optax.adam(settings.learning_rate)

    def step(arrays, key):
        network, average, opt_state = eqx.combine(arrays, static)
        index = jr.randint(key, (settings.batch_size,), 0, decisions.count)
        grads = eqx.filter_grad(lambda n: _mean(loss, n, average, decisions, index))(network)
        with jax.numpy_dtype_promotion("standard"):  # optax takes numbers to the power of counted steps
            updates, opt_state = optimizer.update(grads, opt_state)
        network = eqx.apply_updates(network, updates)
        average = jax.tree.map(
            lambda a, n: a + settings.average * (n - a) if eqx.is_inexact_array(a) else a, average, network
        )
        return eqx.filter((network, average, opt_state), eqx.is_array), None

    arrays, _ = jax.lax.scan(step, arrays, jr.split(key, settings.every))
    return eqx.combine(arrays, static)


def _mean(
    loss: Loss, network: ActorCritic, average: ActorCritic, decisions: Decisions, index: Int[Array, " B"]
) -> Float[Array, ""]:
    weight = decisions.weight[index]
    losses = jax.vmap(lambda i: loss(network, average, decisions, i))(index)
    return jnp.sum(weight * losses) / jnp.maximum(jnp.sum(weight), 1e-8)


def each(f: Callable[[Int[Array, ""]], Array], decisions: Decisions) -> Array:
    """Returns a function of each decision, computed a few hundred at a time."""
    return jax.lax.map(f, jnp.arange(decisions.count), batch_size=min(_ROWS, decisions.count))


@eqx.filter_jit
def _judge(loss: Loss, network: ActorCritic, held_out: Decisions) -> Float[Array, ""]:
    losses = each(lambda i: loss(network, network, held_out, i), held_out)
    return jnp.sum(held_out.weight * losses) / jnp.sum(held_out.weight)
