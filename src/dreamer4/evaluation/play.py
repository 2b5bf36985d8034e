"""Playing in the real environment: a loop over steps, vmapped over episodes, all on the device.

Anything that is an `AbstractPolicy` can be played and so compared, a Dreamer among them: `DreamerPolicy` is one as the
real world sees it, and can collect data too.
"""

from collections.abc import Callable
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray, PyTree

from dreamer4.data import AbstractPolicy
from dreamer4.dreamer import Dreamer, Memory, check_acting
from dreamer4.envs import AbstractEnvironment, broken, check_environment, is_sound
from dreamer4.errors import InputError
from dreamer4.nn import cast_weights
from dreamer4.precision import in_32_bits
from dreamer4.types import Action, ActionSpec, TimeStep, to_float, within_bounds


class DreamerPolicy(AbstractPolicy):
    """A Dreamer as a policy of the real world: it observes a frame, then acts.

    Attributes:
        dreamer: the agent.
        mode: draw from its policy, or take the most likely action.
        temperature: divides the logits of discrete components, scales the spread of continuous ones.
        task: id of the task that it acts for.
    """

    dreamer: Dreamer
    mode: Literal["sample", "mode"] = eqx.field(default="sample", static=True)
    temperature: Float[Array, "*members"] = eqx.field(default=1.0, converter=lambda t: jnp.asarray(t, jnp.float32))
    task: int = eqx.field(default=0, static=True)

    def __check_init__(self):
        check_acting(mode=self.mode, temperature=self.temperature)

    def init(self) -> Memory:
        return self.dreamer.init(self.task)

    def __call__(
        self, memory: PyTree, time_step: TimeStep, action: Action, action_mask: Bool[Array, ""], *, key: PRNGKeyArray
    ) -> tuple[Action, PyTree]:
        key_observe, key_act = jr.split(key)
        memory = self.dreamer.take_in(memory, to_float(time_step.frame), action, action_mask, key=key_observe)
        action = self.dreamer.act(memory, mode=self.mode, temperature=self.temperature, key=key_act)
        return within_bounds(action), memory


class Played(eqx.Module):
    """Outcomes of whole episodes; those of several members have a leading axis of members.

    Attributes:
        returns: undiscounted sum of rewards of each episode.
        length: frames of each episode, the first included.
        finished: whether the episode ended within the environment's step limit.
    """

    returns: Float[Array, "*members_N"]
    length: Int[Array, "*members_N"]
    finished: Bool[Array, "*members_N"]


def episode_keys(key: PRNGKeyArray, episodes: int) -> Key[Array, " N"]:
    """Returns the key of each of the episodes that `play` plays under `key`."""
    return jax.vmap(lambda i: jr.fold_in(key, i))(jnp.arange(episodes))


def begin_episode(env: AbstractEnvironment, *, key: PRNGKeyArray) -> tuple[PyTree, TimeStep, PRNGKeyArray]:
    """Returns the start that `play_episode` makes under `key`: state, first time step, and what draws the rest."""
    key_env, key_steps = jr.split(key)
    return *env.reset(key=key_env), key_steps


def play_episode(
    policy: AbstractPolicy, env: AbstractEnvironment, *, key: PRNGKeyArray
) -> tuple[Played, Bool[Array, ""]]:
    """Plays one episode to its end or the environment's step limit; returns also whether all time steps are sound."""
    state, first, key_steps = begin_episode(env, key=key)

    def going(carry):
        *_, length, _, finished = carry
        return ~finished & (length <= env.max_steps)

    def body(carry):
        state, memory, step, action, action_mask, total, length, sound, _ = carry
        key_policy, key_env = jr.split(jr.fold_in(key_steps, length))
        action, memory = policy(memory, step, action, action_mask, key=key_policy)
        state, step = env.step(state, action, key=key_env)
        sound &= is_sound(step, follows_last=False)
        return state, memory, step, action, jnp.array(True), total + step.reward, length + 1, sound, step.is_last

    # A loop with a condition, not a scan: a batch then stops at the end of its longest episode.
    nothing, no = Action.null(env.spec.action), jnp.array(False)
    sound = is_sound(first, follows_last=True)
    start = (state, policy.init(), first, nothing, no, jnp.zeros(()), jnp.ones((), jnp.int32), sound, no)
    *_, total, length, sound, finished = jax.lax.while_loop(going, body, start)
    return Played(total, length, finished), sound


@eqx.filter_jit
def _play_batch(policy, env, keys, members):
    def batch(policy):
        return jax.vmap(lambda key: play_episode(policy, env, key=key))(keys)

    return batch(policy) if members == 1 else eqx.filter_vmap(batch)(policy)


@in_32_bits
def play(
    policy: AbstractPolicy,
    env: AbstractEnvironment,
    *,
    episodes: int,
    batch_size: int = 250,
    members: int = 1,
    progress: Callable[[int, int], None] | None = None,
    key: PRNGKeyArray,
) -> Played:
    """Plays many episodes, side by side in batches.

    Episode i depends on `key` and i alone, so two policies played with one key meet the same starts.

    Args:
        policy: chooses the actions.
        env: the real environment.
        episodes: number of episodes.
        batch_size: episodes played side by side; bounds the memory.
        members: how many policies `policy` holds, stacked along a leading axis of its arrays where it is more than one,
            such as an agent of several training seeds. They play side by side, each all of the episodes.
        progress: called with episodes done and in total.
        key: randomness of everything.

    Raises:
        InputError: a number is below 1, or the environment breaks the contract of `AbstractEnvironment`.
    """
    for name, value in (("episodes", episodes), ("batch_size", batch_size), ("members", members)):
        if value < 1:
            raise InputError(f"play: got {name}={value}, expected at least 1.")
    check_environment(env)
    batch_size = min(batch_size, episodes)
    keys = episode_keys(key, episodes)
    batches = []
    for start in range(0, episodes, batch_size):
        index = np.minimum(np.arange(start, start + batch_size), episodes - 1)  # one shape, one compilation
        batch, sound = _play_batch(policy, env, keys[index], members)
        if not bool(sound.all()):
            raise broken(env)
        batches.append(jax.tree.map(lambda leaf: leaf[..., : min(batch_size, episodes - start)], batch))  # noqa: B023
        if progress is not None:
            progress(min(start + batch_size, episodes), episodes)
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=-1), *batches)


@in_32_bits
def evaluate(
    dreamer: Dreamer,
    env: AbstractEnvironment,
    *,
    episodes: int,
    batch_size: int = 250,
    mode: Literal["sample", "mode"] = "sample",
    policy: Literal["policy", "prior"] = "policy",
    temperature: float = 1.0,
    progress: Callable[[int, int], None] | None = None,
    key: PRNGKeyArray,
) -> Played:
    """Plays many episodes of a Dreamer, as `play` does.

    Args:
        dreamer: the agent.
        env: the real environment.
        episodes: number of episodes.
        batch_size: episodes played side by side; bounds the memory.
        mode: sample the policy or take its most likely action.
        policy: the trained policy or the cloned prior.
        temperature: of the sampled policy.
        progress: called with episodes done and in total.
        key: randomness of everything.

    Raises:
        InputError: the agent was made for other frames or actions than the environment's, there is no such mode or
            policy, the temperature is negative, or a number is below 1.
    """
    check_acting(mode=mode, policy=policy, temperature=temperature)
    if (made_for := _seen_and_done(dreamer)) != (given := (env.spec.frame_shape, env.spec.action)):
        raise InputError(
            f"evaluate: the agent was made for frames of {made_for[0]} and {made_for[1]}, but the environment has "
            f"frames of {given[0]} and {given[1]}. Play it in the environment that it was trained for."
        )
    if policy == "prior":  # in the policy's place, so that both are played by one compiled program
        dreamer = eqx.tree_at(lambda d: d.policy, dreamer, dreamer.prior)
    actor = DreamerPolicy(cast_weights(dreamer), mode, temperature)
    return play(actor, env, episodes=episodes, batch_size=batch_size, progress=progress, key=key)


def _seen_and_done(dreamer: Dreamer) -> tuple[tuple[int, int, int], ActionSpec]:
    """Returns the shape of the frames that an agent sees, and the factors of the actions that it takes."""
    policy = eqx.filter_eval_shape(lambda d: d.policy(d.readout(d.init())), dreamer)
    chosen = eqx.filter_eval_shape(lambda p: p.mode(), policy)
    classes = tuple(part.logits.shape[-1] for part in policy.discrete)
    return dreamer.tokenizer.frame_shape, ActionSpec(classes, chosen.continuous.shape[-1])
