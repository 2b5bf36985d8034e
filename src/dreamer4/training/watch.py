"""Held-out episodes decide when a phase has learned enough: a phase whose loss on them no longer falls winds down.

Steps of a phase are then a bound. When `patience` looks in a row have shown nothing better, the run leaves out what is
left until the learning rate falls (`OptimizerConfig.decay`), and takes that last stretch as any run does.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PyTree

from dreamer4.config import PhaseConfig
from dreamer4.dreamer import Dreamer
from dreamer4.training.guard import choose
from dreamer4.training.state import TrainState, Watch


BATCHES = 8  # of a look, the same at each


def decay_start(config: PhaseConfig) -> int:
    """Returns the step from which the learning rate falls."""
    return max(
        config.steps - round(config.optimizer.decay * config.steps), round(config.optimizer.warmup * config.steps)
    )


@eqx.filter_jit
def _losses(given: PyTree, dreamer: Dreamer) -> Float[Array, "*seeds"]:
    phase, config, seeds, source, latents, key = given

    def one(latents, key, dreamer):
        data = source if latents is None else source.with_latents(latents)

        def batch(key):
            key_batch, key_loss = jr.split(key)
            rows = data.sample(config.batch_size, config.length, key=key_batch)
            terms, _ = phase.loss(dreamer, rows, jnp.ones(()), key=key_loss)
            return sum((weight * terms[name] for name, weight in phase.weights.items()), jnp.zeros(()))

        return jnp.mean(jax.lax.map(batch, jr.split(key, BATCHES)))

    axes = (eqx.if_array(0), 0, eqx.if_array(0))
    return (one if seeds == 1 else eqx.filter_vmap(one, in_axes=axes))(latents, key, dreamer)


def look(given: PyTree, state: TrainState) -> tuple[TrainState, Float[Array, "*seeds"]]:
    """Looks at held-out episodes, and moves a phase that has learned enough to where its learning rate falls.

    Args:
        given: phase, settings, number of seeds, held-out episodes, their latents, root keys of the phase.
        state: where training stands.

    Returns:
        The state, and the loss of the averaged weights on some batches of held-out episodes, the same at each look: the
        terms by weight, as the end of the run asks for them. Training seeds side by side are judged by its mean.
    """
    phase, config = given[:2]
    losses = _losses(given, state.ema)
    watch = state.watch.take(jnp.mean(losses))
    step, start = int(jnp.max(state.step)), decay_start(config)
    settled = step >= config.steps * max(phase.switches, default=0.0)
    # Before the loss asks for all that it will, it may stand still for want of anything new.
    watch = choose(jnp.array(settled), watch, Watch(watch.best, jnp.zeros_like(watch.waited)))
    at, opt_state = state.step, state.opt_state
    if step < start and int(jnp.max(watch.waited)) >= config.patience:
        at = jnp.full_like(at, start)
        opt_state = jax.tree_util.tree_map_with_path(
            lambda path, x: jnp.full_like(x, start) if getattr(path[-1], "name", None) == "count" else x, opt_state
        )
    return eqx.tree_at(lambda s: (s.watch, s.step, s.opt_state), state, (watch, at, opt_state)), losses
