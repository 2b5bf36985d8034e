"""Rollouts inside the world model: a scan over the horizon, in latent space."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from dreamer4.dreamer import Dreamer, Memory
from dreamer4.errors import check_whole
from dreamer4.types import Action


class ImaginedRollout(eqx.Module):
    """One dream, by the clock of `types.py`: state 0 is the last frame of the context, states 1 to H are imagined.

    Attributes:
        latent: the imagined frames, 1 to H.
        h: read-outs of states 0 to H.
        action: actions 1 to H; `action[i]` of the array was chosen at state i and led to state i + 1.
        reward: expected rewards that arrived at states 1 to H.
        continuation: probabilities that the episode goes on at states 1 to H.
        alive: whether states 0 to H-1 are before the predicted end. The state at the end and the action taken in it
            are not alive.
    """

    latent: Float[Array, "*B H Nz Dz"]
    h: Float[Array, "*B H+1 E"]
    action: Action
    reward: Float[Array, "*B H"]
    continuation: Float[Array, "*B H"]
    alive: Bool[Array, "*B H"]


def imagine(
    dreamer: Dreamer,
    memory: Memory,
    horizon: int,
    *,
    actions: Action | None = None,
    num_steps: int | None = None,
    key: PRNGKeyArray,
) -> ImaginedRollout:
    """Dreams on from a memory.

    No gradient flows through a dream: the paper trains policy and value on its read-outs only.

    Args:
        dreamer: the agent.
        memory: the past, with at least one frame that does not end its episode.
        horizon: number of imagined frames, H.
        actions: actions to follow; by default the policy is sampled.
        num_steps: K, passes that draw a frame; as many as the dynamics takes by default.
        key: randomness of the dream.
    """
    check_whole("imagine", horizon=horizon)

    def body(memory, step):
        key, forced = step
        key_act, key_world = jr.split(key)
        action = dreamer.act(memory, key=key_act) if forced is None else forced
        imagined, following = dreamer.imagine_step(memory, action, num_steps=num_steps, key=key_world)
        return following, (imagined.latent, dreamer.readout(following), action)

    _, (latent, h, action) = jax.lax.scan(body, memory, (jr.split(key, horizon), actions))
    h = jnp.concatenate([dreamer.readout(memory)[None], h])
    reward = dreamer.reward(h[1:]).mean()
    continuation = dreamer.continuation(h[1:]).mean()
    alive = jnp.concatenate([jnp.ones(1, bool), jnp.cumprod(continuation[:-1] > 0.5).astype(bool)])
    rollout = ImaginedRollout(latent, h, action, reward, continuation, alive)
    return jax.lax.stop_gradient(rollout)
