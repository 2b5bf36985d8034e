"""How a task becomes a token: a learned row for its number, or a projection of the vector that tells it."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from dreamer4.nn import Embedding, Linear
from dreamer4.types import DataSpec


class TaskVectors(eqx.Module):
    """Given vectors, one of each task, scaled to a root mean square of 1 and projected; only the projection learns."""

    project: Linear
    vectors: tuple[tuple[float, ...], ...] = eqx.field(static=True)

    @property
    def count(self) -> int:
        """How many tasks there are."""
        return len(self.vectors)

    def __call__(self, task: Int[Array, "*dims"]) -> Float[Array, "*dims D"]:
        """Returns the token of a task."""
        vector = jnp.asarray(self.vectors)[task]
        size = jnp.sqrt(jnp.mean(jnp.square(vector), axis=-1, keepdims=True))
        return self.project(vector / jnp.maximum(size, 1e-6))


def build_task_input(spec: DataSpec, width: int, *, key: PRNGKeyArray) -> Embedding | TaskVectors:
    """Returns what makes tokens of `width` features of the tasks of some data."""
    if not spec.vectors:
        return Embedding(spec.num_tasks, width, key=key)
    return TaskVectors(Linear(len(spec.vectors[0]), width, use_bias=True, key=key), spec.vectors)
