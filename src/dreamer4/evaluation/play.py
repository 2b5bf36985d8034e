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

from dreamer4.data.policy import AbstractPolicy, impossible
from dreamer4.dreamer import Dreamer, Memory, check_acting
from dreamer4.envs import AbstractEnvironment, broken, check_environment, is_sound
from dreamer4.errors import InputError, check_whole
from dreamer4.nn import cast_weights
from dreamer4.precision import in_32_bits
from dreamer4.types import Action, TimeStep, check_key, is_possible, to_float, within_bounds


class DreamerPolicy(AbstractPolicy):
    """A Dreamer as a policy of the real world: it observes a frame, then acts.

    Attributes:
        dreamer: the agent.
        mode: draw from its policy, or take the most likely action.
        temperature: divides the logits of discrete components, scales the spread of continuous ones.
        task: id of the task that it acts for.
        prompt: tells the task by the state of the environment instead, `AbstractEnvironment.prompt`.
    """

    dreamer: Dreamer
    mode: Literal["sample", "mode"] = eqx.field(default="sample", static=True)
    temperature: Float[Array, "*members"] = eqx.field(default=1.0, converter=lambda t: jnp.asarray(t, jnp.float32))
    task: int = eqx.field(default=0, static=True)
    prompt: Callable[[PyTree], Int[Array, ""]] | None = None

    def __check_init__(self):
        check_acting(mode=self.mode, temperature=self.temperature)

    def init(self) -> Memory:
        return self.dreamer.init(self.task)

    def peek(self, memory: Memory, state: PyTree) -> Memory:
        if self.prompt is None:
            return memory
        return Memory(memory.encoder, self.dreamer.dynamics.with_task(memory.world, self.prompt(state)))

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
        happened: index of the first frame at which each event of the environment had happened; -1 if it never did.
    """

    returns: Float[Array, "*members_N"]
    length: Int[Array, "*members_N"]
    finished: Bool[Array, "*members_N"]
    happened: Int[Array, "*members_N E"]


def episode_keys(key: PRNGKeyArray, episodes: int) -> Key[Array, " N"]:
    """Returns the key of each of the episodes that `play` plays under `key`."""
    return jax.vmap(lambda i: jr.fold_in(key, i))(jnp.arange(episodes))


def begin_episode(env: AbstractEnvironment, *, key: PRNGKeyArray) -> tuple[PyTree, TimeStep, PRNGKeyArray]:
    """Returns the start that `play_episode` makes under `key`: state, first time step, and what draws the rest."""
    key_env, key_steps = jr.split(key)
    return *env.reset(key=key_env), key_steps


class _Playing(eqx.Module):
    """An episode that is being played: what the next step needs, and its outcome so far."""

    state: PyTree
    memory: PyTree
    step: TimeStep
    action: Action
    action_mask: Bool[Array, "*batch"]
    key: PRNGKeyArray
    sound: Bool[Array, "*batch"]
    possible: Bool[Array, "*batch"]
    played: Played


def play_episode(
    policy: AbstractPolicy, env: AbstractEnvironment, *, key: PRNGKeyArray
) -> tuple[Played, Bool[Array, ""]]:
    """Plays one episode to its end or the environment's step limit; returns also whether all time steps are sound."""
    playing = _go_on(policy, env, _begin(policy, env, key), env.max_steps)
    return playing.played, playing.sound


def _begin(policy: AbstractPolicy, env: AbstractEnvironment, key: PRNGKeyArray) -> _Playing:
    state, first, key_steps = begin_episode(env, key=key)
    nothing, no = Action.null(env.spec.action), jnp.array(False)
    played = Played(jnp.zeros(()), jnp.ones((), jnp.int32), no, jnp.full(len(env.events), -1, jnp.int32))
    sound = is_sound(first, follows_last=True)
    return _Playing(state, policy.init(), first, nothing, no, key_steps, sound, jnp.array(True), played)


def _go_on(policy: AbstractPolicy, env: AbstractEnvironment, playing: _Playing, most: int | Int[Array, ""]) -> _Playing:
    """Plays on, to the end of the episode or until it has `most` actions."""

    def going(now):
        return ~now.played.finished & (now.played.length <= most)

    def body(now):
        total, length = now.played.returns, now.played.length
        key_policy, key_env = jr.split(jr.fold_in(now.key, length))
        memory = policy.peek(now.memory, now.state)
        action, memory = policy(memory, now.step, now.action, now.action_mask, key=key_policy)
        state, step = env.step(now.state, action, key=key_env)
        sound = now.sound & is_sound(step, follows_last=False)
        possible = now.possible & is_possible(action, env.spec.action)
        happened = jnp.where((now.played.happened < 0) & env.happened(state), length, now.played.happened)
        played = Played(total + step.reward, length + 1, step.is_last, happened)
        if env.pace.revisits:
            # An episode that is over goes on beside longer ones, for nothing: not with a next one, which may be costly.
            state = jax.tree.map(lambda old, new: jnp.where(step.is_last, old, new), now.state, state)
        return _Playing(state, memory, step, action, jnp.array(True), now.key, sound, possible, played)

    # A loop with a condition, not a scan: a batch then stops at the end of its longest episode.
    return jax.lax.while_loop(going, body, playing)


@eqx.filter_jit
def _play_batch(policy, env, keys, members, playing, most):
    """Begins a batch of episodes, or goes on with one, until each has ended or has `most` actions."""

    def batch(policy, playing):
        if playing is None:
            playing = jax.vmap(lambda key: _begin(policy, env, key))(keys)
        return jax.vmap(lambda now: _go_on(policy, env, now, most))(playing)

    return batch(policy, playing) if members == 1 else eqx.filter_vmap(batch)(policy, playing)


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
        InputError: a number is not whole or below 1, the environment breaks the contract of `AbstractEnvironment`, or
            the policy chooses an action that is none.
    """
    check_whole("play", episodes=episodes, batch_size=batch_size, members=members)
    check_key("play", key)
    check_environment(env)
    batch_size = min(batch_size, episodes, env.pace.streams)
    keys, axis = episode_keys(key, episodes), int(members > 1)
    batches = []
    for start in range(0, episodes, batch_size):
        index = np.minimum(np.arange(start, start + batch_size), episodes - 1)  # one shape, one compilation
        real = min(batch_size, episodes - start)
        playing, most = None, 0
        while True:
            most = min(most + env.pace.steps, env.max_steps)
            playing = _play_batch(policy, env, keys[index], members, playing, jnp.asarray(most))
            if not bool(playing.possible.all()):  # before what the environment made of it
                raise impossible(policy, env.spec.action)
            if not bool(playing.sound.all()):
                raise broken(env)
            over = playing.played.finished[..., :real].reshape(-1, real).all(axis=0)
            last = most == env.max_steps or bool(over.all())
            if progress is not None:
                progress(start + (real if last else int(over.sum())), episodes)
            if last:
                break
        batches.append(jax.tree.map(lambda x: jax.lax.slice_in_dim(x, 0, real, axis=axis), playing.played))  # noqa: B023
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=axis), *batches)


@in_32_bits
def acting(
    dreamer: Dreamer,
    env: AbstractEnvironment,
    *,
    mode: Literal["sample", "mode"] = "sample",
    policy: Literal["policy", "prior"] = "policy",
    temperature: float = 1.0,
    task: int | None = 0,
) -> DreamerPolicy:
    """Returns a Dreamer as a policy of an environment.

    Args:
        dreamer: the agent.
        env: the real environment.
        mode: sample the policy or take its most likely action.
        policy: the trained policy or the cloned prior.
        temperature: of the sampled policy.
        task: id of the task that it plays, which is what the environment should be of; None: those that the
            environment asks for in turn, its `prompts` being the agent's tasks.

    Raises:
        InputError: the agent was made for other frames or actions than the environment's, there is no such mode or
            policy, or the temperature is negative.
    """
    check_acting(mode=mode, policy=policy, temperature=temperature)
    if (made_for := dreamer.spec).looks != env.spec.looks:
        raise InputError(
            f"evaluate: the agent was made for frames of {made_for.frame_shape} and {made_for.action}, but the "
            f"environment has frames of {env.spec.frame_shape} and {env.spec.action}. Play it in the environment that "
            "it was trained for."
        )
    if policy == "prior":  # in the policy's place, so that both are played by one compiled program
        dreamer = eqx.tree_at(lambda d: d.policy, dreamer, dreamer.prior)
    prompt = env.prompt if task is None else None
    return DreamerPolicy(cast_weights(dreamer), mode, temperature, task or 0, prompt)


def evaluate(
    dreamer: Dreamer,
    env: AbstractEnvironment,
    *,
    episodes: int,
    batch_size: int = 250,
    mode: Literal["sample", "mode"] = "sample",
    policy: Literal["policy", "prior"] = "policy",
    temperature: float = 1.0,
    task: int | None = 0,
    progress: Callable[[int, int], None] | None = None,
    key: PRNGKeyArray,
) -> Played:
    """Plays many episodes of a Dreamer: `play` of the policy that `acting` makes of it, whose arguments these are."""
    check_key("evaluate", key)
    actor = acting(dreamer, env, mode=mode, policy=policy, temperature=temperature, task=task)
    return play(actor, env, episodes=episodes, batch_size=batch_size, progress=progress, key=key)
