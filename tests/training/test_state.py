"""What evolves beside the weights: loss scales, the learning rate, the optimiser's state, the weight average."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.tree_util import keystr, tree_flatten_with_path

from dreamer4.config import OptimizerConfig, load
from dreamer4.dreamer import Dreamer
from dreamer4.training import RunningRMS, build_optimizer
from dreamer4.training.state import RMS_DECAY, ema_decay, schedule
from dreamer4.types import ActionSpec, DataSpec


# Loss scales.


@eqx.filter_jit
def rms_after(terms):
    state = RunningRMS.init()
    for term in terms:
        state = state.update(term)
    return state.value(), state.count


@settings(max_examples=30, deadline=None)
@given(st.lists(st.one_of(st.just(0.0), st.floats(1e-3, 1e3)), min_size=4, max_size=4))
def test_rms_is_the_unbiased_average_of_squares(terms):
    value, count = rms_after([jnp.float32(t) for t in terms])
    kept = [t for t in terms if t != 0]
    weights = RMS_DECAY ** np.arange(len(kept))[::-1]
    expected = np.sqrt(np.sum(weights * np.square(kept)) / weights.sum()) if kept else 0.0
    np.testing.assert_allclose(value, expected, rtol=1e-3, atol=2e-8)  # 1 - 0.99**n in float32 has few digits
    assert count == len(kept)


@pytest.mark.parametrize("term", [1e-4, 1.0, -3.0, 1e4])
def test_the_first_term_is_its_own_scale(term):
    value, _ = rms_after([jnp.float32(term)] + [jnp.zeros(())] * 3)
    np.testing.assert_allclose(value, abs(term), rtol=1e-4)


def test_a_constant_term_keeps_its_scale():
    value, _ = rms_after([jnp.float32(0.7)] * 4)
    np.testing.assert_allclose(value, 0.7, rtol=1e-4)


def test_a_term_of_zero_changes_nothing():
    state = RunningRMS.init().update(jnp.float32(2.0))
    same = state.update(jnp.zeros(()))
    assert same.mean_square == state.mean_square and same.count == state.count


def test_before_any_term_division_is_finite():
    assert RunningRMS.init().value() > 0 and np.isfinite(0.0 / RunningRMS.init().value())


def test_no_gradient_passes_through_the_scale():
    def normalised(term):
        return term / RunningRMS.init().update(term).value()

    # With a gradient through the scale, x / |x| would have slope 0.
    np.testing.assert_allclose(jax.grad(normalised)(jnp.float32(4.0)), 0.25, rtol=1e-4)


# The learning rate.


def rates(warmup, decay, steps):
    curve = schedule(OptimizerConfig(learning_rate=0.1, warmup=warmup, decay=decay), steps)
    return np.asarray(jax.vmap(curve)(jnp.arange(steps + 1)))


@pytest.mark.parametrize(("warmup", "decay"), [(0.1, 0.5), (0.2, 0.8), (0.0, 0.5), (0.1, 0.0), (0.0, 0.0), (0.0, 1.0)])
def test_rate_rises_stays_and_falls_to_zero(warmup, decay):
    steps = 100
    rate = rates(warmup, decay, steps)
    up, down = round(warmup * steps), round(decay * steps)
    assert np.all(rate[:steps] > 0), "no step of the run may be wasted"
    assert np.all(np.diff(rate[: up + 1]) > 0) and np.all(np.diff(rate[steps - down :]) < 0)
    np.testing.assert_allclose(rate[up : steps - down], 0.1, rtol=1e-5)
    np.testing.assert_allclose(rate.max(), 0.1, rtol=1e-5)
    if warmup:
        np.testing.assert_allclose(rate[: up + 1], np.linspace(0.1 / up, 0.1, up + 1), rtol=1e-5)
    if decay:
        np.testing.assert_allclose(rate[steps - down :], np.linspace(0.1, 0.0, down + 1), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_a_short_run_still_learns(steps):
    assert np.all(rates(0.05, 0.5, steps)[:steps] > 0)


# The weight average.


def averaged(half_life, steps, values):
    average = values[0]
    for step, value in enumerate(values[1:]):
        decay = float(ema_decay(half_life, steps, jnp.asarray(step)))
        average = decay * average + (1 - decay) * value
    return average


def test_the_average_forgets_half_within_its_half_life():
    # Weights that jump late in the run: after `half_life * steps` more steps the average is half way.
    steps, half_life = 1000, 0.02
    values = np.zeros(961)
    values[-20:] = 1.0
    np.testing.assert_allclose(averaged(half_life, steps, values), 0.5, atol=1e-3)


def test_the_average_follows_closely_at_first():
    # A fixed decay of this half-life would keep 87 % of the initial weights after 100 steps.
    values = np.r_[0.0, np.ones(100)]
    assert averaged(0.05, 10_000, values) > 0.99
    assert ema_decay(0.05, 10_000, jnp.asarray(0)) == pytest.approx(0.1)


def test_a_half_life_of_zero_keeps_no_average():
    assert ema_decay(0.0, 100, jnp.asarray(50)) == 0


@pytest.mark.parametrize("step", [0, 3, 50, 99])
def test_the_decay_is_a_weight(step):
    for half_life in (1e-3, 0.02, 0.9):
        assert 0 <= ema_decay(half_life, 100, jnp.asarray(step)) < 1


# Optimisers.


class Layer(eqx.Module):
    weight: jax.Array


class Stack(eqx.Module):
    """Two scanned layers under the name that marks them, and a read-out beside them."""

    groups: Layer
    readout: jax.Array


def toy():
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    return Stack(Layer(0.3 * normal(2, 4, 4)), 0.3 * normal(4, 1)), normal(32, 4), normal(4, 1)


def toy_loss(model, x, target):
    y = x
    for weight in model.groups.weight:
        y = y + jnp.tanh(y @ weight)
    return jnp.mean((y @ model.readout - x @ target) ** 2)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_an_optimiser_brings_a_loss_down(kind):
    model, x, target = toy()
    optimizer = build_optimizer(OptimizerConfig(kind=kind, learning_rate=2e-2, warmup=0.1, decay=0.5), 100)

    @eqx.filter_jit
    def run(model, x, target):
        def body(carry, _):
            model, state = carry
            loss, gradient = jax.value_and_grad(toy_loss)(model, x, target)
            updates, state = optimizer.update(gradient, state, model)
            return (eqx.apply_updates(model, updates), state), loss

        return jax.lax.scan(body, (model, optimizer.init(model)), length=100)

    (trained, _), losses = run(model, x, target)
    assert losses[-1] < 0.1 * losses[0]
    assert not np.array_equal(trained.groups.weight, model.groups.weight)
    assert not np.array_equal(trained.readout, model.readout)


def first_updates(kind, gradient, model, **settings):
    optimizer = build_optimizer(OptimizerConfig(kind=kind, learning_rate=1e-2, warmup=0, decay=0, **settings), 10)
    return jax.jit(lambda gradient, model: optimizer.update(gradient, optimizer.init(model), model)[0])(gradient, model)


def test_muon_orthogonalises_stacked_matrices_and_nothing_else():
    model, x, target = toy()
    gradient = jax.jit(jax.grad(toy_loss))(model, x, target)
    muon, adam = (first_updates(kind, gradient, model) for kind in ("muon", "adamw"))
    # The first step of Adam is the sign of the gradient; Muon's Adam looks ahead, and so steps a little further.
    size = np.abs(muon.readout / adam.readout)
    np.testing.assert_allclose(size, size[0, 0] * np.ones((4, 1)), rtol=1e-4)
    assert np.all(np.sign(muon.readout) == -np.sign(gradient.readout))
    for update in muon.groups.weight:
        # Each layer alone: its singular values are pulled together, to within what five iterations reach.
        values = np.linalg.svd(update, compute_uv=False)
        assert values.max() / values.min() < 2.5, values
    raw = np.linalg.svd(gradient.groups.weight[0], compute_uv=False)
    assert raw.max() / raw.min() > 5
    # Both move about as far, so that one learning rate serves both.
    size = [np.sqrt(np.mean(np.square(u.groups.weight))) for u in (muon, adam)]
    assert 0.1 < size[0] / size[1] < 1


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_weight_decay_pulls_matrices_to_zero_and_leaves_gains_biases_and_learned_tokens(kind):
    config = load("tiny")
    dreamer = Dreamer.build(config, DataSpec((10, 5, 1), ActionSpec((3,))), key=jax.random.key(0))
    model = jax.tree.map(jnp.ones_like, eqx.filter(dreamer.dynamics, eqx.is_inexact_array))  # some begin at zero
    updates = first_updates(kind, jax.tree.map(jnp.zeros_like, model), model, weight_decay=0.5)
    decayed = set()
    for (path, update), weight in zip(tree_flatten_with_path(updates)[0], jax.tree.leaves(model), strict=True):
        if np.any(update):
            decayed.add(keystr(path))
            np.testing.assert_allclose(update, -1e-2 * 0.5 * weight, rtol=1e-4, atol=1e-7)
    names = {keystr(path) for path, _ in tree_flatten_with_path(model)[0]}
    layers = {name for name in names if name.endswith(".weight") and ".groups" in name}
    assert len(layers) > 10
    assert decayed == layers | (
        {".network.spatial_in.weight", ".network.flow_head.weight"} if kind == "adamw" else set()
    )


def test_a_gain_that_is_called_weight_does_not_decay():
    class Other(eqx.Module):
        norm: eqx.nn.LayerNorm
        groups: Layer  # gains of two layers
        out: eqx.nn.Linear

    model = Other(eqx.nn.LayerNorm(4), Layer(jnp.ones((2, 4))), eqx.nn.Linear(4, 3, key=jax.random.key(0)))
    model = eqx.filter(model, eqx.is_inexact_array)
    updates = first_updates("adamw", jax.tree.map(jnp.zeros_like, model), model, weight_decay=0.5)
    assert np.any(updates.out.weight)
    assert not np.any(updates.norm.weight) and not np.any(updates.groups.weight)


def test_a_huge_gradient_is_clipped_by_its_global_norm():
    model, x, target = toy()
    gradient = jax.jit(jax.grad(toy_loss))(model, x, target)
    scaled = lambda factor: jax.tree.map(lambda g: factor * g, gradient)  # noqa: E731
    optimizer = build_optimizer(OptimizerConfig(clip=1e-2, warmup=0, decay=0), 10)
    # Adam alone forgets the scale of one gradient, not of two: after a tiny one, a clipped huge one still weighs.

    @jax.jit
    def second(factor):
        _, state = optimizer.update(scaled(1e-4), optimizer.init(model), model)
        return optimizer.update(scaled(factor), state, model)[0]

    for a, b in zip(*(jax.tree.leaves(second(factor)) for factor in (1e6, 1e9)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4)
