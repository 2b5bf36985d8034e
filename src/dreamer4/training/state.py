"""Everything that evolves during training, as one PyTree."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from dreamer4.config import OptimizerConfig
from dreamer4.dreamer import Dreamer
from dreamer4.training.guard import Guard


RMS_DECAY = 0.99
RMS_FLOOR = 1e-8


class RunningRMS(eqx.Module):
    """The running root mean square of a loss term, by which the term is divided (arXiv 2509.24527, section 3).

    The mean starts unbiased: after one term the RMS is that term.
    """

    mean_square: Float[Array, ""]
    count: Int[Array, ""]

    @classmethod
    def init(cls) -> "RunningRMS":
        """Returns the state before the first term."""
        return cls(jnp.zeros(()), jnp.zeros((), jnp.int32))

    def update(self, term: Float[Array, ""]) -> "RunningRMS":
        """Takes a term in. A term of exactly zero had nothing to learn from (no labels in the batch) and is skipped."""
        term = jax.lax.stop_gradient(term)
        mean_square = RMS_DECAY * self.mean_square + (1.0 - RMS_DECAY) * jnp.square(term)
        absent = term == 0
        return RunningRMS(
            jnp.where(absent, self.mean_square, mean_square), jnp.where(absent, self.count, self.count + 1)
        )

    def value(self) -> Float[Array, ""]:
        """Returns the RMS, bounded away from zero."""
        weight = 1.0 - RMS_DECAY ** jnp.maximum(self.count, 1).astype(jnp.float32)
        return jnp.sqrt(self.mean_square / weight + RMS_FLOOR**2)


class Watch(eqx.Module):
    """What looks at held-out episodes have shown.

    Attributes:
        best: the least loss; infinite before the first look.
        waited: looks since.
    """

    best: Float[Array, "*seeds"]
    waited: Int[Array, "*seeds"]

    @classmethod
    def init(cls) -> "Watch":
        """Returns the state before the first look."""
        return cls(jnp.full((), jnp.inf), jnp.zeros((), jnp.int32))

    def take(self, loss: Float[Array, ""]) -> "Watch":
        """Returns the state after a look; a loss that is no number is no better."""
        return Watch(jnp.fmin(self.best, loss), jnp.where(loss < self.best, 0, self.waited + 1))


class TrainState(eqx.Module):
    """The state of one phase.

    Attributes:
        model: the weights that gradients act on.
        ema: their running average, which is what the next phase, imagination and evaluation use.
        opt_state: the optimiser's state, over the trainable arrays.
        loss_scale: running RMS per named loss term.
        step: training steps done.
        guard: what a step is judged by before it is taken.
        watch: what held-out episodes have told, where they decide when the phase is over.
    """

    model: Dreamer
    ema: Dreamer
    opt_state: PyTree
    loss_scale: dict[str, RunningRMS]
    step: Int[Array, ""]
    guard: Guard
    watch: Watch


# What a checkpoint of an earlier version lacks: they begin anew in a run that goes on from one.
ADDED = ("guard", "watch")


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Returns the learning rate over a run: linear warm-up, constant, linear decay to zero."""
    warmup, decay = round(config.warmup * steps), round(config.decay * steps)
    parts = [
        optax.linear_schedule(config.learning_rate / max(warmup, 1), config.learning_rate, warmup),
        optax.constant_schedule(config.learning_rate),
        optax.linear_schedule(config.learning_rate, 0.0, max(decay, 1)),
    ]
    return optax.join_schedules(parts, [warmup, max(steps - decay, warmup)])


def build_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Builds the optimiser that a configuration describes, for a run of `steps` steps.

    Matrices alone decay; with Muon, those of the layers. Gains, biases and learned tokens do not: those of the agent
    have no gradient until its phase begins, and would come to it as next to nothing.
    """
    rate = schedule(config, steps)
    if config.kind == "adamw":
        update = optax.adamw(rate, b2=0.99, weight_decay=config.weight_decay, mask=_matrices)
    else:
        update = optax.contrib.muon(
            rate,
            weight_decay=config.weight_decay,
            adam_b2=0.99,
            consistent_rms=0.2,  # updates of the size that Adam's would have, so that one learning rate serves both
            muon_weight_dimension_numbers=_stacked_matrices,
        )
    return optax.chain(optax.clip_by_global_norm(config.clip), update)


def _matrices(params: PyTree) -> PyTree[bool]:
    """Marks the weights of products: matrices by the name that `nn.Linear` and `equinox.nn` give them."""

    def mark(path, leaf):
        return getattr(path[-1], "name", None) == "weight" and leaf.ndim - _is_stacked(path) >= 2

    return jax.tree_util.tree_map_with_path(mark, params)


def _stacked_matrices(params: PyTree) -> PyTree:
    """Marks the matrices of scanned layers, `[groups in out]`, for Muon; everything else is left to Adam."""

    def mark(path, leaf):
        stacked = _is_stacked(path) and leaf.ndim == 3
        return optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2) if stacked else None

    return jax.tree_util.tree_map_with_path(mark, params)


def _is_stacked(path: tuple) -> bool:
    """Returns whether a leaf holds the weights of many layers, along its first axis."""
    return any(getattr(part, "name", None) == "groups" for part in path)


def ema_decay(half_life: float, steps: int, step: Int[Array, ""]) -> Float[Array, ""]:
    """Returns the decay of the weight average at a step.

    A fixed decay that suits a long run averages a short one away, so the half-life is a share of the run. Early on the
    average follows the weights, for it knows nothing yet.

    Args:
        half_life: share of the run; 0 turns averaging off.
        steps: length of the run.
        step: current step.
    """
    if half_life == 0:
        return jnp.zeros(())
    final = 0.5 ** (1.0 / (half_life * steps))
    taken = step.astype(jnp.float32)
    return jnp.minimum(final, (1.0 + taken) / (10.0 + taken))
