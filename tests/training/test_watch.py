"""Phases that held-out episodes end: what is left out, and that a run goes on as if it had not stopped."""

from itertools import islice

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import equal
from training.faults import STEPS, Planted, source, world

from dreamer4.config import OptimizerConfig, PhaseConfig, load
from dreamer4.training import init_state, train


def settings(rate):
    optimizer = OptimizerConfig(learning_rate=rate, warmup=0.0, decay=0.5)
    return PhaseConfig(steps=40, batch_size=4, length=3, optimizer=optimizer, ema=0.0, patience=2, look_every=2)


STILL, FALLING = settings(1e-30), settings(1e-3)


class Late(Planted):
    """Asks for something else after a quarter of the run."""

    @property
    def switches(self):
        return (0.25,)


def run(config, kind=Planted, state=None, seeds=1):
    phase, data = kind(jnp.zeros(STEPS, jnp.int32)), source()
    agent = world() if seeds == 1 else jax.tree.map(lambda x: jnp.stack([x, x]) if eqx.is_array(x) else x, world())
    latents = jnp.zeros((data.num_frames, 1, 1) if seeds == 1 else (seeds, data.num_frames, 1, 1))
    state = init_state(phase, agent, config, seeds) if state is None else state
    given = {"seed": 0, "seeds": seeds, "latents": latents, "held_out": (data, latents)}
    return train(phase, config, state, data, **given)


def taken(training):
    found = [(int(np.max(state.step)), counts(state), metrics) for state, metrics in training]
    return [step for step, _, _ in found], found


def counts(state):
    leaves = jax.tree_util.tree_leaves_with_path(state.opt_state)
    return {int(np.max(x)) for path, x in leaves if getattr(path[-1], "name", None) == "count"}


def test_a_phase_that_learns_no_more_goes_on_where_its_rate_falls():
    """Looks at steps 2, 4 and 6: the first is the best there is, and two have waited."""
    steps, found = taken(run(STILL))
    assert steps == [1, 2, 3, 4, 5, *range(20, 41)]
    assert found[5][1] == {20} and found[-1][1] == {40}, "the schedule stands there too"
    assert "held_out" not in found[0][2] and all("held_out" in metrics for _, _, metrics in found[1:])


def test_a_phase_that_learns_takes_all_its_steps():
    steps, found = taken(run(FALLING))
    assert steps == list(range(1, 41))
    assert found[-1][2]["held_out"] < found[1][2]["held_out"]


def test_it_waits_only_once_the_loss_asks_for_all_that_it_will():
    """The look at step 10 is the first that can count as waiting."""
    assert taken(run(STILL, Late))[0] == [*range(1, 12), *range(20, 41)]


def test_seeds_side_by_side_end_together():
    steps, found = taken(run(STILL, seeds=2))
    assert steps == [1, 2, 3, 4, 5, *range(20, 41)]
    assert found[-1][2]["held_out"].shape == (2,)


def test_a_run_that_stops_between_two_looks_goes_on_bitwise():
    def arrays(taken):
        return [jax.tree.leaves(jax.tree.map(np.asarray, eqx.filter(state, eqx.is_array))) for state, _ in taken]

    whole = arrays(run(STILL))
    *_, (state, _) = islice(run(STILL), 5)
    rest = arrays(run(STILL, state=state))
    assert len(rest) == len(whole) - 5
    assert all(equal(a, b) for a, b in zip(whole[5:], rest, strict=True))


def test_without_patience_nobody_looks():
    never = STILL.model_copy(update={"patience": 0})
    assert all("held_out" not in metrics for _, metrics in run(never))


def test_imagination_has_no_such_loss():
    with pytest.raises(ValueError, match=r"imagination\.patience"):
        load("tiny", overrides=["train.imagination.patience=2"])
