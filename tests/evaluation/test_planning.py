"""Planning in a probe whose right action the policy holds unlikely."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from agent.fakes import oracle
from jaxtyping import Array, Float
from probes import ChosenReward

from dreamer4.errors import InputError
from dreamer4.evaluation import evaluate, play
from dreamer4.evaluation.planning import PlanningPolicy, mean_of_equals
from dreamer4.nn import ActionDistribution, Categorical, Normal
from dreamer4.types import Action


class Wrong(eqx.Module):
    """Takes action 0, which costs, nine times of ten."""

    def __call__(self, h: Float[Array, "*dims E"], task=None) -> ActionDistribution:
        logits = jnp.broadcast_to(jnp.log(jnp.array([0.9, 0.1])), (*h.shape[:-1], 2))
        empty = jnp.zeros((*h.shape[:-1], 0))
        return ActionDistribution((Categorical(logits),), Normal(empty, empty))


@pytest.fixture(scope="module")
def dreamer():
    dreamer = oracle(
        ChosenReward().spec,
        size=2,
        read=lambda frame: jnp.stack([jnp.round(frame[1, 0, 0]), jnp.zeros(())]),
        transition=lambda state, action: jnp.stack([state[0] + 1, action.discrete[0].astype(jnp.float32)]),
        reward=lambda h: jnp.where(h[0] == 1, 2.0 * h[2] - 1.0, -50.0 * h[2]),  # behind the end action 1 looks terrible
        continuation=lambda h: (h[0] < 1).astype(jnp.float32),
    )
    return eqx.tree_at(lambda d: (d.policy, d.prior), dreamer, (Wrong(), Wrong()))


def test_planning_finds_what_the_greedy_policy_misses(dreamer):
    env = ChosenReward()
    greedy = evaluate(dreamer, env, episodes=8, mode="mode", key=jr.key(0))
    planned = play(PlanningPolicy(dreamer, dreams=64, horizon=3, discount=0.9), env, episodes=8, key=jr.key(0))
    np.testing.assert_array_equal(greedy.returns, -np.ones(8))
    np.testing.assert_array_equal(planned.returns, np.ones(8))


def test_futures_of_one_action_are_averaged():
    action = Action(jnp.array([[0], [1], [0], [1]]), jnp.zeros((4, 0)))
    np.testing.assert_allclose(mean_of_equals(action, jnp.array([9.0, 4.0, -5.0, 2.0])), [2, 3, 2, 3])


@pytest.mark.parametrize(("dreams", "horizon", "discount"), [(0, 3, 0.9), (4, 0, 0.9), (4, 3, 0.0)])
def test_a_plan_of_nothing_is_refused(dreamer, dreams, horizon, discount):
    with pytest.raises(InputError, match="PlanningPolicy: got"):
        PlanningPolicy(dreamer, dreams, horizon, discount)
