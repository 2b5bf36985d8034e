"""A batch that is taken in parts has the loss, the metrics and the gradient of the whole."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from agent.fakes import TINY, TINY_SPEC, build_tiny, randomised
from training.test_phases import clips

from dreamer4.config import override
from dreamer4.dreamer import PHASES
from dreamer4.nn.rows import over_rows
from dreamer4.training import build_phase


ROWS = 12


@pytest.mark.parametrize("parts", [1, 2, 3, 4, 5, 8, 12])
def test_rows_keep_their_order_and_their_gradient(parts):
    rng = np.random.default_rng(0)
    x, weight = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((ROWS, 3), (3,)))
    keys = jr.split(jr.key(0), ROWS)

    def loss(weight, x, apply):
        def row(x, key, nothing):
            return {"value": jnp.tanh(weight * x).sum() * jr.normal(key), "nothing": nothing}

        told = apply(row)(x, keys, jnp.zeros((ROWS, 4, 0)))  # as of an environment without continuous actions
        assert told["nothing"].shape == (ROWS, 4, 0)
        return jnp.sum(told["value"] ** 2), told["value"]

    wanted, got = (
        jax.value_and_grad(loss, (0, 1), has_aux=True)(weight, x, apply)
        for apply in (jax.vmap, lambda row: over_rows(row, parts))
    )
    for a, b in zip(jax.tree.leaves(wanted), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("parts", "size"), [(1, 12), (2, 6), (3, 4), (8, 3), (5, 12)])
def test_no_more_than_a_part_is_computed_at_once(parts, size):
    seen = []

    def whole(x):
        seen.append(x.shape[0])
        return x.sum(axis=1)

    @jax.custom_batching.custom_vmap
    def row(x):
        return x.sum()

    @row.def_vmap
    def _(axis_size, in_batched, x):
        return whole(x), True

    over_rows(row, parts)(jnp.ones((ROWS, 3)))
    assert set(seen) == {size}


@pytest.mark.parametrize("name", PHASES)
def test_a_phase_takes_its_own_setting(name):
    settings = [f"train.{name}.batch_size=6", f"train.{name}.accumulate=3"]
    phases = {n: build_phase(n, override(TINY, settings), TINY_SPEC) for n in PHASES}
    assert {n: vars(phase)["accumulate"] for n, phase in phases.items()} == dict.fromkeys(PHASES, 1) | {name: 3}


def test_loss_metrics_and_gradient_are_those_of_the_whole_batch():
    # Rows unlike each other: padded, irrelevant, images, teachers; parts of two rows have other means than four.
    rng, tiny = np.random.default_rng(3), randomised(build_tiny())
    batch = clips(rng, relevant=jnp.array([True, False, True, True]), uniform=jnp.array([True, True, False, True]))

    def differentiated(accumulate):
        phase = build_phase("agent", override(TINY, [f"train.agent.accumulate={accumulate}"]), TINY_SPEC)
        trained, frozen = eqx.partition(tiny, phase.trainable(tiny))

        @eqx.filter_jit
        def gradient(trained):
            def loss(trained):
                terms, metrics = phase.loss(eqx.combine(trained, frozen), batch, jnp.ones(()), key=jr.key(1))
                return sum(terms.values()), terms | metrics

            return jax.value_and_grad(loss, has_aux=True)(trained)

        return gradient(trained)

    (loss, metrics), gradient = differentiated(1)
    (other, told), split = differentiated(2)
    np.testing.assert_allclose(other, loss, rtol=1e-6)
    assert metrics.keys() == told.keys()
    for name, value in metrics.items():
        np.testing.assert_allclose(told[name], value, rtol=1e-6, err_msg=name)
    leaves = zip(jax.tree.leaves(gradient), jax.tree.leaves(split), strict=True)
    # Rounding: 3e-7 seen where XLA fuses little, up to 1.5e-5 where it fuses as here; means of parts would be far off.
    assert all(np.abs(np.asarray(a) - np.asarray(b)).max() <= 5e-5 * max(np.abs(a).max(), 1.0) for a, b in leaves)
