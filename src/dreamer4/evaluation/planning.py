"""Planning at decision time: the agent looks ahead in its dream before each action, with the policy as the proposal.

A read-out of the same agent: nothing is trained. It costs `dreams * horizon` imagined frames an action, and can only
choose among actions that the policy proposes.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from dreamer4.agent import lambda_returns
from dreamer4.data import AbstractPolicy
from dreamer4.dreamer import Dreamer, Memory
from dreamer4.errors import InputError, check_whole
from dreamer4.imagination import imagine
from dreamer4.types import Action, TimeStep, to_float, within_bounds


class PlanningPolicy(AbstractPolicy):
    """Dreams many futures under the policy and takes the first action whose futures are worth most.

    A future is worth its discounted imagined rewards up to the predicted end, and behind the horizon the value of its
    last state. Futures that begin with the same action are averaged, or the luckiest dream would decide; a continuous
    action is its own only one.

    Attributes:
        dreamer: the agent, with a trained value head.
        dreams: futures before each action.
        horizon: frames of a future.
        discount: in (0, 1].
        task: id of the task that it acts for.
    """

    dreamer: Dreamer
    dreams: int = eqx.field(static=True)
    horizon: int = eqx.field(static=True)
    discount: float = eqx.field(static=True)
    task: int = eqx.field(static=True, default=0)

    def __check_init__(self):
        check_whole("PlanningPolicy", dreams=self.dreams, horizon=self.horizon)
        if not 0 < self.discount <= 1:
            raise InputError(f"PlanningPolicy: got a discount of {self.discount}, expected one in (0, 1].")

    def init(self) -> Memory:
        return self.dreamer.init(self.task)

    def __call__(
        self, memory: PyTree, time_step: TimeStep, action: Action, action_mask: Bool[Array, ""], *, key: PRNGKeyArray
    ) -> tuple[Action, PyTree]:
        key_observe, key_dream = jr.split(key)
        memory = self.dreamer.observe(memory, to_float(time_step.frame), action, action_mask, key=key_observe)

        def future(key):
            rollout = imagine(self.dreamer, memory, self.horizon, key=key)
            value = self.dreamer.value(rollout.h).mean()
            worth = lambda_returns(rollout.reward, rollout.continuation, value, discount=self.discount, lambda_=1.0)
            return jax.tree.map(lambda x: x[0], rollout.action), worth[0]

        first, worth = jax.vmap(future)(jr.split(key_dream, self.dreams))
        best = jnp.argmax(mean_of_equals(first, worth))
        return within_bounds(jax.tree.map(lambda x: x[best], first)), memory


def mean_of_equals(action: Action, worth: Float[Array, " N"]) -> Float[Array, " N"]:
    """Returns for each future the mean worth of those that begin with its action."""
    parts = jnp.concatenate([action.discrete.astype(jnp.float32), action.continuous], axis=1)
    same = jnp.all(parts[:, None] == parts[None], axis=-1)
    return jnp.sum(jnp.where(same, worth, 0.0), axis=1) / same.sum(axis=1)
