"""The probes are worth what they say."""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from probes import PROBES, ChosenReward, ConstantReward, DelayedReward, MatchedReward, ObservedReward

from dreamer4.data import AbstractPolicy, collect, random_policy
from dreamer4.types import Action


class Fixed(AbstractPolicy):
    """A policy from a function of the frame to a choice."""

    choose: Callable = eqx.field(static=True)

    def init(self):
        return None

    def __call__(self, memory, time_step, action, action_mask, *, key):
        choice = jnp.reshape(self.choose(time_step.frame), 1)
        return Action(choice.astype(jnp.int32), jnp.zeros(0)), memory


def always_one(frame):
    return jnp.ones(())


def see_colour(frame):
    return frame[0, 0, 0] > 127


OPTIMAL = {
    ConstantReward: always_one,
    ObservedReward: always_one,
    DelayedReward: always_one,
    ChosenReward: always_one,
    MatchedReward: see_colour,
}


def returns(env, policy):
    return np.array([e.total for e in collect(env, policy, episodes=400, key=jr.key(0), num_envs=400)])


@pytest.mark.parametrize("probe", PROBES, ids=lambda p: p.__name__)
def test_random_and_optimal_return(probe):
    env = probe()
    # Three standard errors of a coin of +1 and -1; a return that is certain must be met exactly.
    tolerance = 0.15
    for policy, expected in ((random_policy(env.spec), env.random_return), (Fixed(OPTIMAL[probe]), env.optimal_return)):
        got = returns(env, policy)
        assert abs(got.mean() - expected) <= (tolerance if got.std() else 0.0)
    assert env.optimal_return >= env.random_return


def test_only_sight_finds_the_match():
    assert abs(returns(MatchedReward(), Fixed(always_one)).mean()) < 0.15
    assert returns(MatchedReward(), Fixed(lambda frame: ~see_colour(frame))).mean() == -1


def test_the_observed_reward_is_the_colour_of_the_first_frame():
    for episode in collect(ObservedReward(), random_policy(ObservedReward().spec), episodes=20, key=jr.key(1)):
        assert episode.total == (1 if episode.frame[0, 0, 0, 0] == 255 else -1)


def test_the_delayed_reward_comes_last_and_the_frames_tell_the_time():
    (episode,) = collect(DelayedReward(), Fixed(always_one), episodes=1, key=jr.key(0))
    np.testing.assert_array_equal(episode.reward, [0, 0, 0, 1])
    np.testing.assert_array_equal(episode.frame[:, 1, 0, 0], [0, 85, 170, 255])


@pytest.mark.parametrize("probe", PROBES, ids=lambda p: p.__name__)
def test_only_coloured_probes_show_a_colour(probe):
    env = probe()
    colours = {int(env.reset(key=key)[1].frame[0, 0, 0]) for key in jr.split(jr.key(0), 8)}
    assert colours == ({0, 255} if env.coloured else {0})
