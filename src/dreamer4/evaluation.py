"""Playing in the real environment: a scan over steps, vmapped over episodes, all on the device."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from dreamer4.dreamer import Dreamer
from dreamer4.envs import AbstractEnvironment
from dreamer4.types import Action, to_float


class Played(eqx.Module):
    """Outcomes of whole episodes.

    Attributes:
        returns: undiscounted sum of rewards of each episode.
        length: frames of each episode, the first included.
        finished: whether the episode ended within the environment's step limit.
    """

    returns: Float[Array, "*N"]
    length: Int[Array, "*N"]
    finished: Bool[Array, "*N"]


def play_episode(
    dreamer: Dreamer,
    env: AbstractEnvironment,
    *,
    mode: Literal["sample", "mode"] = "sample",
    policy: Literal["policy", "prior"] = "policy",
    temperature: float = 1.0,
    key: PRNGKeyArray,
) -> Played:
    """Plays one episode through `Dreamer.observe` and `Dreamer.act`, to its end or the environment's step limit."""
    key_env, key_first, key_steps = jr.split(key, 3)
    state, first = env.reset(key=key_env)
    null = Action.null(env.spec.action)
    memory = dreamer.observe(dreamer.init(), to_float(first.frame), null, jnp.array(False), key=key_first)

    def going(carry):
        _, _, _, length, finished = carry
        return ~finished & (length <= env.max_steps)

    def body(carry):
        state, memory, total, length, _ = carry
        key_act, key_env, key_observe = jr.split(jr.fold_in(key_steps, length), 3)
        action = dreamer.act(memory, mode=mode, policy=policy, temperature=temperature, key=key_act)
        state, step = env.step(state, action, key=key_env)
        memory = dreamer.observe(memory, to_float(step.frame), action, jnp.array(True), key=key_observe)
        return state, memory, total + step.reward, length + 1, step.is_last

    # A loop with a condition, not a scan: a batch then stops at the end of its longest episode.
    start = (state, memory, jnp.zeros(()), jnp.ones((), jnp.int32), jnp.array(False))
    _, _, total, length, finished = jax.lax.while_loop(going, body, start)
    return Played(total, length, finished)


@eqx.filter_jit
def _play_batch(dreamer, env, keys, mode, temperature):
    play = partial(play_episode, mode=mode, temperature=temperature)
    return jax.vmap(lambda key: play(dreamer, env, key=key))(keys)


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
    """Plays many episodes, side by side in batches.

    Episode i depends on `key` and i alone, so two agents evaluated with one key meet the same starts.

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
    """
    if policy == "prior":  # in the policy's place, so that both are played by one compiled program
        dreamer = eqx.tree_at(lambda d: d.policy, dreamer, dreamer.prior)
    keys = jax.vmap(lambda i: jr.fold_in(key, i))(jnp.arange(episodes))
    batches = []
    for start in range(0, episodes, batch_size):
        index = np.minimum(np.arange(start, start + batch_size), episodes - 1)  # one shape, one compilation
        batch = _play_batch(dreamer, env, keys[index], mode, temperature)
        batches.append(jax.tree.map(lambda leaf: leaf[: min(batch_size, episodes - start)], batch))  # noqa: B023
        if progress is not None:
            progress(min(start + batch_size, episodes), episodes)
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *batches)
