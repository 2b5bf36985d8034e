"""Shared by the suite: what acts on what, generic weights, closeness of trees, what is compiled."""

import importlib.util
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np


EXAMPLES = Path(__file__).parents[1] / "examples"
# Presets of worlds that an extra brings.
EXTRA = dict.fromkeys(("dmc", "control4", "control10", "control30"), "dm_control") | {"craftax": "craftax"}


def influence(f, x, *args, outputs=1, inputs=1):
    """Returns how strongly each position of `x` acts on each of `f(x, *args)`, shape `[outputs..., inputs...]`.

    A position is an index into the first `outputs` axes of the result or the first `inputs` axes of `x`. One random
    projection per output position is differentiated, so an entry is exactly 0.0 where the block of the Jacobian is
    exactly zero, and for no other reason.
    """
    result = np.asarray(_strengths(f, x, args, outputs, inputs))
    assert np.isfinite(result).all()
    return result


@eqx.filter_jit
def _strengths(f, x, args, outputs, inputs):
    y, pull = jax.vjp(lambda x: f(x, *args), x)
    lead, rest = y.shape[:outputs], y.ndim - outputs
    count = math.prod(lead)
    direction = jr.normal(jr.key(7), y.shape, y.dtype)
    seeds = jnp.eye(count, dtype=y.dtype).reshape(count, *lead, *(1,) * rest) * direction
    (gradient,) = jax.vmap(pull)(seeds)
    return jnp.abs(gradient).sum(axis=tuple(range(1 + inputs, gradient.ndim))).reshape(*lead, *x.shape[:inputs])


def generic(build, *args, seed=0, **kwargs):
    """Returns what `build(*args, **kwargs)` builds, with weights of its own: none is zero or alike by initialisation.

    Nothing is initialised, so nothing is compiled; that is most of the time of a small test.
    """
    random = np.random.default_rng(seed)

    def fill(path, leaf):
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.zeros(leaf.shape, leaf.dtype)
        name = jax.tree_util.keystr(path).rpartition(".")[2]
        if name == "weight":
            values = random.normal(size=leaf.shape) / leaf.shape[-2] ** 0.5
        else:
            values = random.uniform(-0.3, 0.3, leaf.shape) + (name in ("scale", "std"))
        return jnp.asarray(values, leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, eqx.filter_eval_shape(build, *args, **kwargs))


def distance(a, b):
    """Returns the largest absolute difference between two trees of equal structure; NaN counts as infinite."""
    gaps = jax.tree.map(lambda x, y: np.abs(np.asarray(x, np.float64) - np.asarray(y, np.float64)).max(initial=0), a, b)
    largest = max(jax.tree.leaves(gaps), default=0.0)
    return math.inf if math.isnan(largest) else float(largest)


def equal(a, b):
    """Returns whether two trees are the same, bit by bit."""
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: np.array_equal(np.asarray(x), np.asarray(y)), a, b)))


@contextmanager
def compilations() -> Iterator[list[float]]:
    """Collects the seconds of every program that is compiled, or read from a cache, inside the block."""
    compiled: list[float] = []

    def listen(event, seconds, **_):
        if event.endswith("backend_compile_duration"):
            compiled.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def load_example(name):
    """Imports `examples/<name>.py`, whose name is not an identifier."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
