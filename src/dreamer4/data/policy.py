"""Behaviour policies: whatever chooses actions in a real environment, with a memory of its own.

One frame rarely tells enough: a ball in flight needs two, a learned agent carries all it has seen. So a policy is
two functions, as an environment is: `init` gives the memory at the start of an episode, a call takes in the newest time
step and returns the next action with the next memory. Who plays (`collect`, `evaluate`) starts the memory afresh with
every episode; a policy need not look for ends.
"""

from abc import abstractmethod

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from dreamer4.errors import InputError
from dreamer4.types import Action, ActionSpec, DataSpec, TimeStep


class AbstractPolicy(eqx.Module):
    """Chooses actions for one stream of episodes (no batch axis)."""

    @abstractmethod
    def init(self) -> PyTree:
        """Returns the memory at the start of an episode: arrays of fixed shapes, or None."""

    def peek(self, memory: PyTree, state: PyTree) -> PyTree:
        """Returns the memory after a look at the state of the environment, which only a script may take.

        Who plays asks for it before each call. A policy that goes by its frames returns its memory as it is.
        """
        del state
        return memory

    @abstractmethod
    def __call__(
        self, memory: PyTree, time_step: TimeStep, action: Action, action_mask: Bool[Array, ""], *, key: PRNGKeyArray
    ) -> tuple[Action, PyTree]:
        """Takes in a time step and chooses what to do next.

        Args:
            memory: what `init` or the last call of this episode returned.
            time_step: the newest time step. At a last frame the answer is ignored.
            action: the action that led to it.
            action_mask: False at the first frame of an episode, to which no action led.
            key: randomness of the choice.

        Returns:
            The action that leads to the next frame, and the memory, of the structure and types of `init`.
        """


def impossible(policy: AbstractPolicy, spec: ActionSpec) -> InputError:
    """Returns the error to raise where a policy chose what is no action of `spec`."""
    return InputError(
        f"{type(policy).__name__} chose an action that is none of {spec}: classes count from 0, and continuous entries "
        "lie in [-1, 1]. Mend the policy."
    )


def random_action(spec: ActionSpec, *, key: PRNGKeyArray) -> Action:
    """Draws every class, and every point of [-1, 1], with equal chance."""
    discrete_key, continuous_key = jr.split(key)
    classes = jnp.asarray(spec.num_classes, jnp.int32)
    return Action(
        jr.randint(discrete_key, classes.shape, 0, classes),
        jr.uniform(continuous_key, (spec.continuous_dim,), minval=-1.0, maxval=1.0),
    )


class RandomPolicy(AbstractPolicy):
    """Takes random actions, each as likely as any other."""

    spec: ActionSpec = eqx.field(static=True)

    def init(self) -> None:
        return None

    def __call__(
        self, memory: PyTree, time_step: TimeStep, action: Action, action_mask: Bool[Array, ""], *, key: PRNGKeyArray
    ) -> tuple[Action, PyTree]:
        return random_action(self.spec, key=key), memory


def random_policy(spec: DataSpec) -> RandomPolicy:
    """Returns the uniformly random policy for `spec`."""
    return RandomPolicy(spec.action)


class EpsilonPolicy(AbstractPolicy):
    """Follows another policy, save for a random action now and then."""

    policy: AbstractPolicy
    epsilon: Float[Array, ""]
    spec: ActionSpec = eqx.field(static=True)

    def __init__(self, policy: AbstractPolicy, epsilon: float, spec: ActionSpec):
        """Wraps a policy.

        Args:
            policy: the policy to follow.
            epsilon: probability of a random action instead, 0 to 1, at each step anew.
            spec: the factors of an action.

        Raises:
            InputError: if `epsilon` is no probability.
        """
        if not 0 <= epsilon <= 1:
            raise InputError(f"EpsilonPolicy: got epsilon {epsilon}, expected a probability, 0 to 1.")
        self.policy = policy
        self.epsilon = jnp.asarray(epsilon, jnp.float32)
        self.spec = spec

    def init(self) -> PyTree:
        return self.policy.init()

    def peek(self, memory: PyTree, state: PyTree) -> PyTree:
        return self.policy.peek(memory, state)

    def __call__(
        self, memory: PyTree, time_step: TimeStep, action: Action, action_mask: Bool[Array, ""], *, key: PRNGKeyArray
    ) -> tuple[Action, PyTree]:
        policy_key, choice_key, random_key = jr.split(key, 3)
        # The policy is asked in any case, or its memory would miss the frame.
        followed, memory = self.policy(memory, time_step, action, action_mask, key=policy_key)
        strays = jr.bernoulli(choice_key, self.epsilon)
        drawn = random_action(self.spec, key=random_key)
        return jax.tree.map(lambda a, b: jnp.where(strays, a, b), drawn, followed), memory
