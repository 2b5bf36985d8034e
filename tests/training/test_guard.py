"""Steps that would do harm are left out bit by bit, and sound ones are not."""

import copy
import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import equal
from training.faults import FAULTS, STEPS, Planted, planted, world
from training.faults import source as made

from dreamer4.config import GuardConfig, OptimizerConfig, PhaseConfig
from dreamer4.errors import DivergenceError
from dreamer4.training import build_optimizer, draw_and_step, init_state, train
from dreamer4.training.guard import Guard


WINDOW = 16
CONFIG = PhaseConfig(
    steps=STEPS,
    batch_size=2,
    length=3,
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup=0.0, decay=0.5),
    guard=GuardConfig(window=WINDOW, abort_after=4),
    ema=0.5,
)


class Switching(Planted):
    """Asks for something else from step `WINDOW` on."""

    @property
    def switches(self):
        return (0.1, WINDOW / STEPS)


@pytest.fixture(scope="module")
def source():
    return made()


@pytest.fixture(scope="module")
def small():
    return world()


@pytest.fixture(scope="module")
def step():
    """One compiled step for every fault and every data set."""
    optimizer = build_optimizer(CONFIG.optimizer, STEPS)
    jitted = eqx.filter_jit(lambda phase, *given: draw_and_step(phase, optimizer, CONFIG, *given))
    return lambda phase, state, source: jitted(phase, state, source, jr.key(0))


def kept(state):
    """What a step that is left out must not touch."""
    return eqx.filter((state.model, state.ema, state.opt_state, state.loss_scale), eqx.is_array)


@pytest.fixture(scope="module")
def settled(step, small, source):
    """A state whose window is filled."""
    state = init_state(planted({0: 0}), small, CONFIG)
    for _ in range(WINDOW):
        state, metrics = step(planted({0: 0}), state, source)
        assert metrics["skipped"] == 0
    return state


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_changes_nothing_but_the_step(step, settled, source, fault):
    phase = planted({WINDOW: 1 + FAULTS.index(fault), WINDOW + 1: 1 + FAULTS.index(fault)})
    first, metrics = step(phase, settled, source)
    assert (metrics["skipped"], metrics["skipped_in_a_row"]) == (1, 1)
    assert equal(kept(first), kept(settled)) and first.step == WINDOW + 1
    second, metrics = step(phase, first, source)
    assert (metrics["skipped"], metrics["skipped_in_a_row"]) == (1, 2)
    assert equal(kept(second), kept(settled))
    third, metrics = step(phase, second, source)
    assert (metrics["skipped"], metrics["skipped_in_a_row"]) == (0, 0)
    assert not equal(kept(third), kept(settled))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(kept(third)))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["reward", "latent", "action"])
def test_a_batch_that_holds_no_number_is_left_out(step, settled, source, name, value):
    spoilt = jax.tree.map(
        lambda x: jnp.full_like(x, value) if jnp.issubdtype(x.dtype, jnp.inexact) else x, getattr(source, name)
    )
    state, metrics = step(planted({0: 0}), settled, dataclasses.replace(source, **{name: spoilt}))
    assert metrics["skipped"] == 1 and equal(kept(state), kept(settled))
    assert np.isfinite(metrics["near"]), "the loss alone would not have told"


def test_the_first_steps_know_no_spikes_but_what_is_not_finite(step, small, source):
    phase = planted({2: FAULTS.index("loss x 100") + 1, 3: FAULTS.index("NaN loss") + 1})
    state = init_state(phase, small, CONFIG)
    skipped = []
    for _ in range(4):
        state, metrics = step(phase, state, source)
        skipped.append(float(metrics["skipped"]))
    assert skipped == [0, 0, 0, 1]


def test_a_run_ends_when_too_many_steps_in_a_row_are_left_out(small, source):
    # Three in a row are borne, then four are not; each is told of when the step after it is on its way.
    phase = planted(dict.fromkeys([3, 4, 5, 8, 9, 10, 11, 12, 13], 1))
    done = 0
    with pytest.raises(DivergenceError) as caught:
        for _ in train(phase, CONFIG, init_state(phase, small, CONFIG), source, seed=0):
            done += 1
    assert (caught.value.step, caught.value.skipped, done) == (12, 4, 12)


def test_where_a_loss_asks_for_something_else_it_is_judged_anew(step, settled, source):
    huge = planted(dict.fromkeys(range(WINDOW, STEPS), 1 + FAULTS.index("loss x 100")))
    for phase, first in ((huge, 1), (Switching(huge.faults), 0)):
        state, metrics = step(phase, settled, source)
        assert metrics["skipped"] == first
    for _ in range(WINDOW):  # and from there on by what it is now
        state, metrics = step(phase, state, source)
        assert metrics["skipped"] == 0


def test_after_a_switch_spikes_are_left_out_again(step, settled, source):
    phase = Switching(planted({2 * WINDOW: 1 + FAULTS.index("loss x 100")}).faults)
    state, skipped = settled, []
    for _ in range(WINDOW + 1):
        state, metrics = step(phase, state, source)
        skipped.append(float(metrics["skipped"]))
    assert skipped == [0] * WINDOW + [1]


def test_the_last_steps_of_a_run_count_too(small, source):
    phase = planted(dict.fromkeys(range(STEPS - 4, STEPS), 1))
    with pytest.raises(DivergenceError, match=f"step {STEPS}"):
        list(train(phase, CONFIG, init_state(phase, small, CONFIG), source, seed=0))


# The guard alone.


@eqx.filter_jit
def _judged(guard, figures, sigma):
    def body(guard, pair):
        good, guard = guard.judge(pair, jnp.array(True), sigma)
        return guard, (good, guard.limits(3.0))

    return jax.lax.scan(body, guard, figures)[1]


def judged(figures, window=128, sigma=10.0):
    """Returns which of a sequence of figures pass, and the limits of three deviations after each."""
    guard = Guard.init(GuardConfig(window=window))
    return tuple(map(np.asarray, _judged(guard, jnp.asarray(figures, jnp.float32), jnp.asarray(sigma))))


def test_limits_are_those_of_the_window():
    figures = np.random.default_rng(0).uniform(0.0, 1.0, (40, 2)) ** 6  # so that deviations are above the mean
    _, limits = judged(figures, window=16, sigma=1e6)
    for count in (5, 7, 8, 11, 16, 17, 40):
        last = figures[:count][-16:].astype(np.float32)
        expected = last.mean(0) + 3 * np.maximum(last.std(0), last.mean(0)) if count >= 8 else [np.inf, np.inf]
        np.testing.assert_allclose(limits[count - 1], expected, rtol=1e-5)


COUNT = 4000  # one program for all sequences


def test_noise_with_a_heavy_tail_passes_and_spikes_do_not():
    rng = np.random.default_rng(0)
    figures = np.exp(0.5 * rng.normal(size=(COUNT, 2)))
    assert judged(figures)[0].mean() > 0.999
    places = rng.choice(np.arange(64, COUNT, 39), 100, replace=False)
    figures[places, rng.integers(2, size=100)] = 100 * figures.mean()
    good, _ = judged(figures)
    assert not good[places].any()
    assert np.delete(good, places).mean() > 0.999


def test_a_new_level_is_a_spike_for_some_steps_only():
    figures = np.ones((COUNT, 2))
    figures[200:, 0] = 30.0
    good, _ = judged(figures)
    assert 0 < (~good).sum() < GuardConfig().abort_after
    assert not good[200] and good[220:].all()


def test_after_nothing_but_zeros_it_finds_its_measure():
    figures = np.zeros((COUNT, 2))
    figures[150:] = 1.0
    good, _ = judged(figures)
    assert good[:151].all() and good[155:].all()


def test_the_error_passes_from_one_process_to_another():
    error = DivergenceError(34, 10, "Go on.")
    again = copy.copy(error)  # by the same recipe as between processes
    assert (str(again), again.step, again.skipped) == (str(error), 34, 10)
