"""The rows of a batch: a function of one row becomes one of all, at once or in parts, on one device or on many."""

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, PyTree


AXES = ("data", "fsdp")  # of a mesh of devices

Metrics = dict[str, Float[Array, ""]]


def masked_mean(x: Float[Array, "*dims"], mask: Bool[Array, "*dims"]) -> Float[Array, ""]:
    """Returns the mean over the true entries of `mask`, and 0 if there are none."""
    return jnp.sum(jnp.where(mask, x, 0.0)) / jnp.maximum(mask.sum().astype(jnp.float32), 1.0)


def split_rows(tree: PyTree) -> PyTree:
    """Says, in a jitted function, that the leading axis is split over all devices of the current mesh, if it can be."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return tree
    return constrain(tree, lambda x: rows_layout(x.shape[0], mesh))


def rows_layout(rows: int, mesh) -> NamedSharding:
    """Returns how a leading axis of some rows lies on a mesh: split over all devices, if it can be."""
    return NamedSharding(mesh, P(AXES if rows % mesh.size == 0 else None))


def constrain(tree: PyTree, sharding: Callable) -> PyTree:
    """Says, in a jitted function, where each array of a tree lies."""
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, sharding(x)) if eqx.is_array(x) else x, tree)


def _single(function: Callable) -> Callable:
    """Returns `vmap(function)` for batches of one row."""

    def apply(*rows):
        return jax.tree.map(lambda x: x[None], function(*jax.tree.map(lambda x: x[0], rows)))

    return apply


def over_rows(function: Callable, parts: int) -> Callable:
    """Returns `vmap(function)` that takes the rows in as many parts, one after another.

    Of a part no more than its results stays in memory; for the gradient, which adds up over the parts, it is computed
    a second time. Rows that `parts` does not divide are taken in as many parts as divide both.
    """

    def apply(*rows):
        size = jax.tree.leaves(rows)[0].shape[0]
        number = math.gcd(parts, size)
        if number == 1:
            return jax.vmap(function)(*rows)
        # Every n-th row, so that each part lies on all devices that the batch lies on.
        given = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(size // number, number, *x.shape[1:]), 1, 0), rows)
        # A single row goes without `vmap`: a batch axis of one would make XLA's CPU back end copy before products.
        rowwise = jax.vmap(function) if number < size else _single(function)
        part = jax.checkpoint(rowwise, prevent_cse=False)  # a loop keeps the two computations apart
        _, taken = jax.lax.scan(lambda _, rows: (None, part(*split_rows(rows))), None, given)
        return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(size, *x.shape[2:]), taken)

    return apply
