"""Dreams by the clock: which action leads where, what is read at which state, and where a dream ends.

The world is written down: a state is (index, last action), and an action moves the index by one plus itself.
"""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from agent.fakes import OracleHead, oracle
from jaxtyping import Array, Float

from dreamer4.errors import InputError
from dreamer4.imagination import imagine
from dreamer4.nn import ActionDistribution, Categorical, Normal
from dreamer4.types import Action, ActionSpec, DataSpec, Trajectory


CHOICES, HORIZON = 3, 4
SPEC = DataSpec((2, 2, 1), ActionSpec((CHOICES,)))


def transition(state, action):
    chosen = action.discrete[0].astype(jnp.float32)
    return jnp.stack([state[0] + 1.0 + chosen, chosen])


def planned(index):
    """The action that the policy of these tests chooses at a state, different at neighbouring states."""
    return (index // 2) % CHOICES


class Planner(eqx.Module):
    """Chooses `planned` for certain."""

    def __call__(self, h: Float[Array, "*dims E"], task=None) -> ActionDistribution:
        logits = 1e3 * jax.nn.one_hot(planned(h[..., 0].astype(jnp.int32)), CHOICES)
        empty = jnp.zeros((*h.shape[:-1], 0))
        return ActionDistribution((Categorical(logits),), Normal(empty, empty))


@pytest.fixture(scope="module")
def dreamer():
    dreamer = oracle(
        SPEC,
        size=2,
        read=lambda frame: frame[0, 0, 0] * jnp.ones(2),
        transition=transition,
        reward=lambda h: 100.0 * h[2] + h[0],  # h is index, last action as seen, last action as told, known
        continuation=lambda h: jnp.where(h[0] < 10, 0.9, 0.1),
    )
    return eqx.tree_at(lambda d: (d.policy, d.prior), dreamer, (Planner(), Planner()))


def row(index, action):
    """A clip of latents of a real past."""
    length = len(index)
    mask = jnp.arange(length) > 0
    return Trajectory(
        frame=None,
        latent=jnp.stack([jnp.asarray(index, jnp.float32), jnp.asarray(action, jnp.float32)], -1)[:, None],
        action=Action(jnp.asarray(action, jnp.int32)[:, None], jnp.zeros((length, 0))),
        action_mask=mask,
        reward=jnp.zeros(length),
        is_first=~mask,
        is_last=jnp.zeros(length, bool),
        is_terminal=jnp.zeros(length, bool),
        valid=jnp.ones(length, bool),
        task=jnp.array(0),
        relevant=jnp.array(True),
        uniform=jnp.array(True),
    )


@eqx.filter_jit
def dream(dreamer, row, count, horizon=HORIZON, actions=None, num_steps=None, seed=0):
    key_recall, key_dream = jr.split(jr.key(seed))
    memory = dreamer.recall(row, count, key=key_recall)
    return memory, imagine(dreamer, memory, horizon, actions=actions, num_steps=num_steps, key=key_dream)


PAST = row([0, 2, 5, 9], [0, 1, 2, 1])


@pytest.fixture(scope="module")
def rollout(dreamer):
    return jax.tree.map(np.asarray, dream(dreamer, PAST, jnp.array(2))[1])


def follow(index, horizon=HORIZON):
    """States and actions of the plan, by hand."""
    states, actions = [index], []
    for _ in range(horizon):
        actions.append(planned(states[-1]))
        states.append(states[-1] + 1 + actions[-1])
    return np.array(states), np.array(actions)


def test_an_action_is_chosen_at_its_state_and_leads_to_the_next(rollout):
    states, actions = follow(2)
    assert len(set(actions)) > 1
    np.testing.assert_array_equal(rollout.h[:, 0], states)
    np.testing.assert_array_equal(rollout.action.discrete[:, 0], actions)
    # h of state i + 1 has seen action i, in its frame and as the action that led to it.
    np.testing.assert_array_equal(rollout.h[1:, 1], actions)
    np.testing.assert_array_equal(rollout.h[1:, 2], actions)
    np.testing.assert_allclose(rollout.latent[:, 0, 0], states[1:], atol=1e-4)


def test_state_zero_is_the_last_frame_of_the_context(rollout):
    # Frame 1 of the clip: index 2, reached by the real action 1.
    np.testing.assert_array_equal(rollout.h[0], [2, 1, 1, 1])


def test_no_imagined_action_is_a_null_action(rollout):
    np.testing.assert_array_equal(rollout.h[1:, 3], np.ones(HORIZON))


def test_reward_and_continuation_are_read_where_they_arrive(rollout):
    states, actions = follow(2)
    np.testing.assert_allclose(rollout.reward, 100.0 * actions + states[1:], rtol=1e-6)
    np.testing.assert_allclose(rollout.continuation, np.where(states[1:] < 10, 0.9, 0.1), rtol=1e-6)


def test_alive_ends_at_the_predicted_end(rollout):
    # State 4 is the end, and the action taken in state 3 still counts.
    states, _ = follow(2)
    np.testing.assert_array_equal(states, [2, 4, 7, 8, 10])
    assert rollout.alive.tolist() == [True] * 4
    assert rollout.continuation[-1] < 0.5


@pytest.mark.parametrize(("count", "expected"), [(3, [True, True, False, False]), (4, [True, False, False, False])])
def test_steps_at_and_behind_a_predicted_end_are_masked(dreamer, count, expected):
    _, rollout = dream(dreamer, PAST, jnp.array(count))
    states = np.asarray(rollout.h[:, 0])
    first_end = int(np.argmax(states >= 10))
    # The end state's own action is masked, the action that led into it is not.
    assert rollout.alive.tolist() == [i < first_end for i in range(HORIZON)] == expected


def test_a_dream_that_wakes_up_again_stays_dead(dreamer):
    # Continuation dips below one half at index 4 only.
    dips = eqx.tree_at(lambda d: d.continuation, dreamer, OracleHead(lambda h: jnp.where(h[0] == 4, 0.0, 1.0)))
    _, rollout = dream(dips, PAST, jnp.array(2))
    assert rollout.continuation.tolist() == [0.0, 1.0, 1.0, 1.0]
    assert rollout.alive.tolist() == [True, False, False, False]


def test_given_actions_are_followed(dreamer):
    forced = jnp.array([[2], [2], [0], [1]], jnp.int32)
    _, rollout = dream(dreamer, PAST, jnp.array(1), actions=Action(forced, jnp.zeros((HORIZON, 0))))
    np.testing.assert_array_equal(rollout.action.discrete, forced)
    np.testing.assert_array_equal(rollout.h[:, 0], [0, 3, 6, 7, 9])


def test_a_horizon_of_one(dreamer):
    _, rollout = dream(dreamer, PAST, jnp.array(1), horizon=1)
    assert rollout.h[:, 0].tolist() == [0, 1] and rollout.alive.tolist() == [True]
    assert rollout.reward.shape == rollout.continuation.shape == rollout.action.discrete[:, 0].shape == (1,)


def test_a_longer_dream_begins_like_a_shorter_one_in_a_certain_world(dreamer, rollout):
    _, longer = dream(dreamer, PAST, jnp.array(2), horizon=2 * HORIZON)
    np.testing.assert_array_equal(longer.h[: HORIZON + 1], rollout.h)
    # Past the capacity of the cache too: 2 + 8 frames in a ring of 8.
    np.testing.assert_array_equal(longer.h[:, 0], follow(2, 2 * HORIZON)[0])


@pytest.mark.parametrize("steps", [4, 2])
def test_the_number_of_passes_can_be_chosen_for_one_dream(dreamer, rollout, steps):
    _, other = dream(dreamer, PAST, jnp.array(2), num_steps=steps)
    np.testing.assert_array_equal(other.h, rollout.h)
    with pytest.raises(InputError, match="num_steps: got 3, expected one of"):
        dream(dreamer, PAST, jnp.array(2), num_steps=3)


def test_a_noisier_context_signal_reaches_the_dream(dreamer, rollout):
    # At signal 0.5 states are read through as much noise as signal, so the dream must differ.
    noisier = eqx.tree_at(lambda d: d.dynamics, dreamer, dataclasses.replace(dreamer.dynamics, context_signal=0.5))
    _, other = dream(noisier, PAST, jnp.array(2))
    assert not np.array_equal(other.h[1:, 0], rollout.h[1:, 0])


def test_a_dream_is_a_function_of_its_key():
    spec = DataSpec((2, 2, 1), ActionSpec((CHOICES,)))
    free = oracle(
        spec,
        size=2,
        read=lambda frame: jnp.zeros(2),
        transition=transition,
        reward=lambda h: h[0],
        continuation=lambda h: jnp.ones(()),
    )
    actions = [dream(free, PAST, jnp.array(2), horizon=8, seed=s)[1].action.discrete.tolist() for s in (0, 0, 1)]
    assert actions[0] == actions[1] != actions[2]
    # Steps of one dream draw independently: an untrained policy is uniform and takes more than one action.
    assert len({a for (a,) in actions[0]}) > 1


def test_no_gradient_passes_through_a_dream():
    # A continuous policy draws by reparameterisation, so without a barrier a reward would reach every part.
    spec = DataSpec((2, 2, 1), ActionSpec((), 1))
    smooth = oracle(
        spec,
        size=2,
        read=lambda frame: jnp.zeros(2),
        transition=lambda state, action: state + action.continuous[0],
        reward=lambda h: h[0] + h[2],
        continuation=lambda h: jax.nn.sigmoid(h[0]),
    )
    past = eqx.tree_at(lambda r: r.action, PAST, Action(jnp.zeros((4, 0), jnp.int32), jnp.zeros((4, 1))))

    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(dreamer):
        _, rollout = dream.__wrapped__(dreamer, past, jnp.array(2))
        leaves = [x for x in jax.tree.leaves(rollout) if jnp.issubdtype(x.dtype, jnp.floating)]
        return sum(jnp.sum(x) for x in leaves)

    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradient(smooth)))
