"""Sticky actions, on the counter, whose frames show the action that was carried out."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from dreamer4.config import EnvConfig
from dreamer4.envs import CounterEnvironment, GymnaxEnvironment, StickyActions, make
from dreamer4.errors import InputError
from dreamer4.types import Action


CLASSES, STEPS = 100, 3000


@pytest.fixture(scope="module")
def played():
    """Actions chosen, and by their frames the actions carried out (-1 at a first frame)."""
    env = CounterEnvironment(30, CLASSES)
    sticky = StickyActions(env, 0.3)
    chosen = jr.randint(jr.key(1), (STEPS,), 0, CLASSES)

    def body(state, step):
        choice, key = step
        state, time_step = sticky.step(state, Action(choice[None], jnp.zeros(0)), key=key)
        return state, env.decode(time_step.frame)[1]

    start, _ = sticky.reset(key=jr.key(0))
    done = jax.jit(lambda: jax.lax.scan(body, start, (chosen, jr.split(jr.key(2), STEPS)))[1])()
    return np.asarray(chosen), np.asarray(done)


def test_an_action_is_the_chosen_one_or_the_one_carried_out_before(played):
    chosen, done = played
    inside = (done[1:] >= 0) & (done[:-1] >= 0)
    repeated = inside & (done[1:] == done[:-1]) & (done[1:] != chosen[1:])
    assert ((done[1:] == chosen[1:]) | repeated)[inside].all()
    # Of 2,900 decisions; a repetition shows unless the choice was the same.
    assert repeated[inside].mean() == pytest.approx(0.3 * (1 - 1 / CLASSES), abs=0.03)
    # What sticks is what was done, not what was chosen: so the same action can last for several steps.
    again = repeated[1:] & repeated[:-1]
    assert again.sum() == pytest.approx(0.3 * repeated.sum(), rel=0.25)


def test_nothing_sticks_across_the_start_of_an_episode(played):
    chosen, done = played
    opening = np.flatnonzero((done[:-1] == -1) & (done[1:] >= 0)) + 1
    assert len(opening) > 80
    np.testing.assert_array_equal(done[opening], chosen[opening])


def test_the_configuration_wraps_what_it_names():
    plain, sticky = (make(EnvConfig(id="Catch-bsuite", sticky_actions=p)) for p in (0.0, 0.25))
    assert isinstance(plain, GymnaxEnvironment)
    assert isinstance(sticky, StickyActions)
    assert (sticky.probability, sticky.spec, sticky.max_steps) == (0.25, plain.spec, plain.max_steps)


def test_a_probability_out_of_range_is_refused():
    with pytest.raises(InputError, match="sticky_actions"):
        StickyActions(CounterEnvironment(2, 2), 1.0)
    with pytest.raises(ValueError, match="sticky_actions"):
        EnvConfig(sticky_actions=-0.1)
