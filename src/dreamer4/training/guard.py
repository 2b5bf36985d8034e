"""Steps that would do harm: not finite, or far out of proportion. The training step leaves them out."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from dreamer4.config import GuardConfig


FIGURES = ("loss", "gradient")


class Guard(eqx.Module):
    """What a step is judged by: the figures of the steps before it.

    Attributes:
        recent: the last figures that were finite, in a ring; rows as in `FIGURES`.
        count: figures taken in so far.
        in_a_row: steps left out, counted back from the newest one.
    """

    recent: Float[Array, "2 window"]
    count: Int[Array, ""]
    in_a_row: Int[Array, ""]

    @classmethod
    def init(cls, config: GuardConfig) -> "Guard":
        """Returns the guard before the first step."""
        return cls(jnp.zeros((2, config.window)), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))

    def forget(self, when: Bool[Array, ""]) -> "Guard":
        """Returns the guard as before the first step if `when` is true, but for the steps left out in a row."""
        return Guard(self.recent, jnp.where(when, 0, self.count), self.in_a_row)

    def limits(self, sigma: float | Float[Array, ""]) -> Float[Array, "2"]:
        """Returns what a figure may be at most; infinite until half the window is filled.

        A deviation below the mean counts as the mean, so nothing within `1 + sigma` times the mean is refused. A loss
        that has settled varies by a few per cent, and a batch that holds the rare event to be learned would stand out.
        """
        window = self.recent.shape[1]
        filled = jnp.arange(window) < self.count
        mean = jnp.mean(self.recent, axis=1, where=filled)
        deviation = jnp.std(self.recent, axis=1, where=filled)
        known = (self.count >= window // 2) & (mean > 0)
        return jnp.where(known, mean + sigma * jnp.maximum(deviation, mean), jnp.inf)

    def judge(
        self, figures: Float[Array, "2"], finite: Bool[Array, ""], sigma: float | Float[Array, ""]
    ) -> tuple[Bool[Array, ""], "Guard"]:
        """Tells whether a step may be taken, and takes its figures in.

        A figure beyond its limit is taken in as the limit. So the limit follows when a phase changes what it asks for,
        and a few faults do not raise it to where the next one passes.

        Args:
            figures: the size of the loss, and of the gradient.
            finite: whether everything else about the step is.
            sigma: deviations above the mean that are refused.
        """
        limits = self.limits(sigma)
        finite = finite & jnp.all(jnp.isfinite(figures))
        good = finite & jnp.all(figures <= limits)
        place = self.count % self.recent.shape[1]
        recent = self.recent.at[:, place].set(jnp.minimum(figures, limits))
        return good, Guard(
            jnp.where(finite, recent, self.recent),
            jnp.where(finite, self.count + 1, self.count),
            jnp.where(good, 0, self.in_a_row + 1),
        )


def loss_size(terms: dict[str, Float[Array, ""]], weights: dict[str, float]) -> Float[Array, ""]:
    """Returns the weighted sum of the magnitudes of the loss terms, as they are and not divided by their running RMS.

    A term that is almost always tiny tells of rare events by what would be a spike of its own.
    """
    return sum((abs(weight) * jnp.abs(terms[name]) for name, weight in weights.items()), jnp.zeros(()))


def all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Tells whether every number of a tree is finite."""
    floats = [x for x in jax.tree.leaves(tree) if eqx.is_inexact_array(x)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in floats])) if floats else jnp.array(True)


def choose(taken: Bool[Array, ""], new: PyTree, old: PyTree) -> PyTree:
    """Returns one of two trees, bit by bit."""
    return jax.tree.map(lambda a, b: jnp.where(taken, a, b) if eqx.is_array(a) else a, new, old)
