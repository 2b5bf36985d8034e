"""Playing in the real environment: whole episodes, the right sums, and chance that belongs to the episode.

The tape environment writes every action down as a digit of the return, so a return tells the whole episode: the action
chosen at the first frame is the units digit, the next one the tens.
"""

import dataclasses
import importlib
import sys
from inspect import unwrap

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from agent.fakes import oracle
from helpers import compilations
from jaxtyping import Array, Float, Int, PRNGKeyArray

from dreamer4.data import collect, find_problems
from dreamer4.envs import AbstractEnvironment, CounterEnvironment
from dreamer4.errors import InputError
from dreamer4.evaluation import DreamerPolicy, acting, evaluate
from dreamer4.evaluation import play as play_policy
from dreamer4.nn import ActionDistribution, Categorical, Normal
from dreamer4.training import stack_members
from dreamer4.types import Action, ActionSpec, DataSpec, TimeStep


DIGITS, SHORTEST = 5, 2
LEVEL = 255 // DIGITS


class TapeState(eqx.Module):
    secret: Int[Array, ""]
    index: Int[Array, ""]


class Tape(AbstractEnvironment):
    """An episode has a secret s from 0 to 4, shown in the frame, and 2 + s actions; reward i is action i times 10^i."""

    spec: DataSpec = eqx.field(default=DataSpec((2, 2, 1), ActionSpec((DIGITS,))), static=True)
    max_steps: int = eqx.field(default=SHORTEST + DIGITS - 1, static=True)

    def reset(self, *, key: PRNGKeyArray) -> tuple[TapeState, TimeStep]:
        state = TapeState(jr.randint(key, (), 0, DIGITS), jnp.zeros((), jnp.int32))
        return state, self._time_step(state, jnp.zeros(()), jnp.zeros((), jnp.int32))

    def step(self, state: TapeState, action: Action, *, key: PRNGKeyArray) -> tuple[TapeState, TimeStep]:
        # Beyond its end the environment pays absurdly, so that a step too many is seen.
        ended = state.index >= SHORTEST + state.secret
        reward = jnp.where(ended, 1e9, action.discrete[0] * 10.0**state.index)
        state = TapeState(state.secret, state.index + 1)
        return state, self._time_step(state, reward, action.discrete[0])

    @property
    def events(self) -> tuple[str, ...]:
        return "second action", "fifth action"

    def happened(self, state):
        return state.index >= jnp.array([2, 5])

    def _time_step(self, state, reward, action):
        pixels = jnp.stack([state.secret, state.index, action, action]).astype(jnp.uint8) * LEVEL
        is_last = state.index == SHORTEST + state.secret
        return TimeStep(pixels.reshape(2, 2, 1), reward, state.index == 0, is_last, is_last)


class Rule(eqx.Module):
    """Opens with the secret plus `shift`; later adds 1 to the last action, as told and as seen in the frame."""

    shift: Int[Array, ""]
    softness: Float[Array, ""]

    def __call__(self, h: Float[Array, "*dims E"], task=None) -> ActionDistribution:
        secret, _, seen, told, known = jnp.round(h).astype(jnp.int32)
        last = jnp.where(seen == told, told, DIGITS)  # an action told that is not the one seen breaks the sequence
        chosen = jnp.where(known == 1, last + 1, secret + self.shift) % DIGITS
        logits = jax.nn.one_hot(chosen, DIGITS) / self.softness
        return ActionDistribution((Categorical(logits),), Normal(jnp.zeros(0), jnp.zeros(0)))


@pytest.fixture(scope="module")
def dreamer():
    # One object, so that the functions it holds are one compilation.
    dreamer = oracle(
        Tape().spec,
        size=3,
        read=lambda frame: jnp.round(frame.reshape(-1)[:3] * 255 / LEVEL),
        transition=lambda state, action: state,
        reward=lambda h: h[0],
        continuation=lambda h: h[0],
    )
    return with_rules(dreamer, 0)


def with_rules(dreamer, shift, softness=1e-3, prior_shift=0):
    rules = Rule(jnp.asarray(shift), jnp.float32(softness)), Rule(jnp.asarray(prior_shift), jnp.float32(softness))
    return eqx.tree_at(lambda d: (d.policy, d.prior), dreamer, rules)


def play(dreamer, episodes=40, batch_size=40, seed=0, **settings):
    return jax.tree.map(
        np.asarray, evaluate(dreamer, Tape(), episodes=episodes, batch_size=batch_size, key=jr.key(seed), **settings)
    )


def digits(total, count):
    return [int(total) // 10**i % 10 for i in range(count)]


def secrets(played):
    return played.length - 1 - SHORTEST


def test_each_action_is_told_back_with_the_frame_it_led_to(dreamer):
    played = play(dreamer)
    assert len(set(secrets(played))) == DIGITS
    for total, secret in zip(played.returns, secrets(played), strict=True):
        expected = [(secret + i) % DIGITS for i in range(SHORTEST + secret)]
        assert digits(total, SHORTEST + secret) == expected
        # And not a step more.
        assert total < 10 ** (SHORTEST + secret)


def test_episodes_end_by_themselves(dreamer):
    played = play(dreamer)
    assert np.all(played.finished)
    assert played.returns.shape == played.length.shape == played.finished.shape == (40,)
    assert played.length.min() >= SHORTEST + 1 and played.length.max() <= Tape().max_steps + 1


def test_an_event_is_told_with_the_frame_it_first_happened_at(dreamer):
    played = play(dreamer)
    second, fifth = played.happened.T
    np.testing.assert_array_equal(second, 2)
    np.testing.assert_array_equal(fifth, np.where(secrets(played) >= 3, 5, -1))


def test_batches_do_not_matter(dreamer):
    soft = with_rules(dreamer, 0, softness=1.0)
    # 40 is no multiple of 7: the last batch is filled up, and cut.
    for a, b in zip(*map(jax.tree.leaves, (play(soft), play(soft, batch_size=7))), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_second_evaluation_compiles_nothing(dreamer):
    play(dreamer)
    with compilations() as compiled:
        play(dreamer, seed=1)
    assert not compiled


def test_an_episode_depends_on_its_number_alone(dreamer):
    soft = with_rules(dreamer, 0, softness=1.0)
    few, many = play(soft, episodes=7, batch_size=7), play(soft)
    np.testing.assert_array_equal(few.returns, many.returns[:7])
    # Different episodes differ, in their starts and in what a soft policy draws.
    assert len(set(many.returns)) > 20
    assert not np.array_equal(play(soft, seed=1).returns, many.returns)


def test_two_policies_meet_the_same_starts(dreamer):
    one, other = play(with_rules(dreamer, 1)), play(with_rules(dreamer, 3))
    np.testing.assert_array_equal(secrets(one), secrets(other))
    np.testing.assert_array_equal(one.returns % 10, (secrets(one) + 1) % DIGITS)
    np.testing.assert_array_equal(other.returns % 10, (secrets(one) + 3) % DIGITS)


def test_members_play_side_by_side_what_each_plays_alone(dreamer):
    pair = [DreamerPolicy(with_rules(dreamer, shift)) for shift in (0, 1)]
    settings = {"episodes": 5, "batch_size": 3, "key": jr.key(0)}
    together = play_policy(stack_members(pair), Tape(), members=2, **settings)
    alone = [play_policy(policy, Tape(), **settings) for policy in pair]
    assert together.returns.shape == (2, 5)
    for name in ("returns", "length", "finished", "happened"):
        np.testing.assert_array_equal(getattr(together, name), np.stack([getattr(played, name) for played in alone]))
    assert not np.array_equal(together.returns[0], together.returns[1])


def test_the_prior_can_play(dreamer):
    played = play(with_rules(dreamer, 1, prior_shift=4), policy="prior")
    np.testing.assert_array_equal(played.returns % 10, (secrets(played) + 4) % DIGITS)


def test_mode_and_a_low_temperature_take_the_likeliest_action(dreamer):
    soft = with_rules(dreamer, 0, softness=1.0)
    certain = play(dreamer).returns
    np.testing.assert_array_equal(play(soft, mode="mode").returns, certain)
    np.testing.assert_array_equal(play(soft, temperature=1e-3).returns, certain)
    assert not np.array_equal(play(soft).returns, certain)


class Renewed(Tape):
    """The tape as an endless stream of episodes, as data is collected from."""

    def step(self, state: TapeState, action: Action, *, key: PRNGKeyArray) -> tuple[TapeState, TimeStep]:
        ended = state.index == SHORTEST + state.secret
        moved = super().step(state, action, key=key)
        return jax.tree.map(lambda fresh, old: jnp.where(ended, fresh, old), self.reset(key=key), moved)


def test_a_dreamer_acts_for_its_task(dreamer):
    assert [int(DreamerPolicy(dreamer, task=task).init().world.task) for task in (0, 1)] == [0, 1]
    assert int(DreamerPolicy(dreamer).init().world.task) == 0


def test_a_dreamer_acts_for_the_task_that_the_environment_asks_for(dreamer):
    policy = DreamerPolicy(dreamer, prompt=lambda state: state.index)
    memory, state = policy.init(), TapeState(jnp.array(3), jnp.array(1))
    assert int(policy.peek(memory, state).world.task) == 1
    assert int(DreamerPolicy(dreamer).peek(memory, state).world.task) == 0


def test_a_dreamer_collects_as_it_plays(dreamer):
    for episode in collect(Renewed(), DreamerPolicy(dreamer), episodes=12, key=jr.key(0), num_envs=4):
        secret, taken = int(episode.frame[0, 0, 0, 0]) // LEVEL, episode.discrete[1:, 0]
        np.testing.assert_array_equal(taken, (secret + np.arange(SHORTEST + secret)) % DIGITS)


class Box(AbstractEnvironment):
    """Five actions of two numbers; pays for every number outside [-1, 1]. Goes on with a new episode."""

    spec: DataSpec = eqx.field(default=DataSpec((2, 2, 1), ActionSpec((), 2)), static=True)
    max_steps: int = eqx.field(default=5, static=True)

    def reset(self, *, key: PRNGKeyArray) -> tuple[Int[Array, ""], TimeStep]:
        return jnp.zeros((), jnp.int32), self._time_step(jnp.zeros((), jnp.int32), jnp.zeros(()))

    def step(self, state: Int[Array, ""], action: Action, *, key: PRNGKeyArray) -> tuple[Int[Array, ""], TimeStep]:
        state = jnp.where(state == 5, 0, state + 1)
        outside = (jnp.abs(action.continuous) > 1).sum().astype(jnp.float32)
        return state, self._time_step(state, jnp.where(state == 0, 0.0, outside))

    def _time_step(self, state, reward):
        frame = jnp.full((2, 2, 1), state, jnp.uint8)
        return TimeStep(frame, reward, state == 0, state == 5, state == 5)


class Wide(eqx.Module):
    """Often draws beyond 1 in the first number, and has its mode there in the second."""

    loc: Float[Array, "2"]

    def __call__(self, h: Float[Array, "*dims E"], task=None) -> ActionDistribution:
        return ActionDistribution((), Normal(self.loc, jnp.zeros(2)))


def test_continuous_actions_stay_in_their_bounds():
    dreamer = oracle(
        Box().spec,
        size=1,
        read=lambda frame: frame.reshape(-1)[:1],
        transition=lambda state, action: state,
        reward=lambda h: h[0],
        continuation=lambda h: h[0],
    )
    wide = Wide(jnp.array([0.95, 1.2]))
    dreamer = eqx.tree_at(lambda d: (d.policy, d.prior), dreamer, (wide, wide))
    for mode in ("sample", "mode"):
        assert not evaluate(dreamer, Box(), episodes=8, mode=mode, key=jr.key(0)).returns.any()
    for episode in collect(Box(), DreamerPolicy(dreamer), episodes=8, key=jr.key(0), num_envs=4):
        assert find_problems(episode, Box().spec) == []
        assert (episode.continuous[1:] == 1).any() and (np.abs(episode.continuous[1:]) < 1).any()
    # What imagination learns from is the draw itself.
    drawn = jax.vmap(lambda key: dreamer.act(dreamer.init(), key=key).continuous)(jr.split(jr.key(0), 100))
    assert (drawn > 1).any()


def test_progress_counts_episodes(dreamer):
    told = []
    play(dreamer, episodes=20, batch_size=7, progress=lambda done, total: told.append((done, total)))
    assert told == [(7, 20), (14, 20), (20, 20)]


class Endless(Tape):
    """An environment that breaks its promise of a last frame."""

    max_steps: int = eqx.field(default=3, static=True)

    def _time_step(self, state, reward, action):
        step = super()._time_step(state, reward, action)
        no = jnp.array(False)
        return dataclasses.replace(step, is_last=no, is_terminal=no, reward=jnp.ones(()))


def test_an_endless_episode_is_cut_at_the_limit_and_said_so(dreamer):
    played = evaluate(dreamer, Endless(), episodes=3, batch_size=3, key=jr.key(0))
    assert not np.any(played.finished)
    np.testing.assert_array_equal(played.length, 4)
    np.testing.assert_array_equal(played.returns, 3.0)


@pytest.mark.parametrize("terminates", [True, False])
def test_the_counter_pays_its_sum(terminates):
    env = CounterEnvironment(length=5, num_actions=3, terminates=terminates)
    dreamer = oracle(
        env.spec,
        size=1,
        read=lambda frame: frame[0, 0],
        transition=lambda state, action: state,
        reward=lambda h: h[0],
        continuation=lambda h: h[0],
    )
    played = evaluate(dreamer, env, episodes=4, batch_size=3, key=jr.key(0))
    # A limit ends an episode as well as a termination does.
    assert np.all(played.finished) and np.all(played.length == 5) and np.all(played.returns == 0 + 1 + 2 + 3 + 4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "greedy"}, "'greedy', expected 'sample' or 'mode'"),
        ({"policy": "clone"}, "'clone', expected 'policy' or 'prior'"),
        ({"temperature": -1.0}, "temperature: got -1.0"),
        ({"temperature": float("nan")}, "temperature: got nan"),
        ({"episodes": 0}, "episodes=0, expected a whole number of at least 1"),
        ({"episodes": True}, "episodes=True, expected a whole number"),
        ({"batch_size": 0}, "batch_size=0, expected a whole number of at least 1"),
        ({"key": 0}, "evaluate: key: got 0, expected a random key of JAX"),
    ],
)
def test_how_to_act_is_one_of_what_there_is(dreamer, settings, message, monkeypatch):
    # Without the suite's check of annotations, as users have it.
    monkeypatch.setattr(importlib.import_module("dreamer4.evaluation.play"), "acting", unwrap(acting))
    with pytest.raises(InputError, match=message):
        unwrap(evaluate)(dreamer, Tape(), **{"episodes": 4, "key": jr.key(0), **settings})


def test_an_agent_is_not_played_in_another_world(dreamer):
    for env in (Box(), CounterEnvironment(length=5, num_actions=DIGITS, terminates=True)):
        with pytest.raises(InputError, match="the agent was made for frames"):
            unwrap(evaluate)(dreamer, env, episodes=2, key=jr.key(0))


def test_temperature_is_no_part_of_the_program_and_zero_is_greedy(dreamer):
    soft = with_rules(dreamer, 0, softness=1.0)
    play(soft, temperature=2.0)
    with compilations() as compiled:
        cold = play(soft, temperature=0.0)
    assert not compiled
    np.testing.assert_array_equal(cold.returns, play(dreamer).returns)


def test_few_episodes_are_not_played_as_many(dreamer, monkeypatch):
    seen = []
    module = sys.modules["dreamer4.evaluation.play"]  # its name in the package is the function's
    batch = module._play_batch
    monkeypatch.setattr(module, "_play_batch", lambda p, e, keys, *m: seen.append(len(keys)) or batch(p, e, keys, *m))
    evaluate(dreamer, Tape(), episodes=1, key=jr.key(0))
    assert seen == [1]
