"""Soft actor-critic (arXiv 1812.05905): continuous actions learned from the state of a world, with few of its steps.

It sees what `AbstractEnvironment.observe` tells and no frames, so it is an expert to make data with, not an agent to be
compared with those that learn from pictures. Two critics, targets by a running average of their weights, a Gaussian
squashed into [-1, 1], and a temperature that holds the policy's entropy.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from dreamer4.baselines.actor_critic import orthogonal
from dreamer4.baselines.learned import LOOKS, TrainingRun, runs_of
from dreamer4.config import SACConfig
from dreamer4.data import AbstractPolicy
from dreamer4.envs import AbstractEnvironment, broken, check_environment
from dreamer4.errors import InputError
from dreamer4.nn import Linear, Normal, RMSNorm
from dreamer4.types import Action, TimeStep


_LOG_SCALES = (-5.0, 2.0)  # of the Gaussian, before it is squashed


def squashed_log_prob(normal: Normal, raw: Float[Array, "*dims D"]) -> Float[Array, "*dims"]:
    """Returns the log-density of `tanh(raw)` where `raw` is drawn from a Gaussian (appendix C).

    That is `log N(raw) - log(1 - tanh(raw)^2)`, summed over dimensions, with the second logarithm written as
    `2 (log 2 - raw - softplus(-2 raw))`, which stays finite.
    """
    narrowing = 2 * (math.log(2) - raw - jax.nn.softplus(-2 * raw))
    return jnp.sum(normal.log_prob(raw) - narrowing, axis=-1)


def soft_target(
    reward: Float[Array, " B"],
    goes_on: Bool[Array, " B"],
    values: Float[Array, "2 B"],
    log_prob: Float[Array, " B"],
    temperature: Float[Array, ""],
    discount: float,
) -> Float[Array, " B"]:
    """Returns `r + discount * goes_on * (min_i Q_i - temperature * log pi)`, what critics aim at in eq 5, with eq 3.

    Values and log-probability are those of an action that the policy draws for the state that was led to.
    """
    return reward + discount * jnp.where(goes_on, values.min(axis=0) - temperature * log_prob, 0.0)


def policy_loss(
    log_prob: Float[Array, " B"], values: Float[Array, "2 B"], temperature: Float[Array, ""]
) -> Float[Array, " B"]:
    """Returns `temperature * log pi - min_i Q_i` of actions that the policy has just drawn, eq 7."""
    return temperature * log_prob - values.min(axis=0)


def temperature_loss(
    log_temperature: Float[Array, ""], log_prob: Float[Array, " B"], entropy: float
) -> Float[Array, " B"]:
    """Returns `-temperature * (log pi + entropy)`, eq 18: it rises while the policy has less entropy than that."""
    return -jnp.exp(log_temperature) * (log_prob + entropy)


class Actor(eqx.Module):
    """From what is observed to a Gaussian, not yet squashed."""

    layers: tuple[Linear, ...]

    def __init__(self, senses: int, dims: int, hidden: int, *, key: PRNGKeyArray):
        """Builds the network, for so many numbers observed and dimensions of an action."""
        keys = jr.split(key, 3)
        sizes, gains = (senses, hidden, hidden, 2 * dims), (math.sqrt(2), math.sqrt(2), 0.01)
        self.layers = tuple(orthogonal(sizes[i], sizes[i + 1], gains[i], key=keys[i]) for i in range(3))

    def __call__(self, seen: Float[Array, "*dims S"]) -> Normal:
        for layer in self.layers[:-1]:
            seen = jax.nn.relu(layer(seen))
        loc, log_scale = jnp.split(self.layers[-1](seen), 2, axis=-1)
        low, high = _LOG_SCALES
        return Normal(loc, low + (high - low) * jax.nn.sigmoid(log_scale + 1.0))


class Critic(eqx.Module):
    """From what is observed and an action to its value."""

    layers: tuple[Linear, ...]
    norm: RMSNorm

    def __init__(self, senses: int, dims: int, hidden: int, *, key: PRNGKeyArray):
        """Builds the network; see `Actor`."""
        keys, sizes = jr.split(key, 3), (senses + dims, hidden, hidden, 1)
        self.layers = tuple(orthogonal(sizes[i], sizes[i + 1], (1.0, 1.4, 1.4)[-1 - i], key=keys[i]) for i in range(3))
        self.norm = RMSNorm(hidden)

    def __call__(self, seen: Float[Array, "*dims S"], action: Float[Array, "*dims D"]) -> Float[Array, "*dims"]:
        x = jax.nn.relu(self.norm(self.layers[0](jnp.concatenate([seen, action], axis=-1))))
        return self.layers[2](jax.nn.relu(self.layers[1](x)))[..., 0]


class Agent(eqx.Module):
    """What is learned; the leaves of `critics` have a leading axis of two."""

    actor: Actor
    critics: Critic
    log_temperature: Float[Array, ""]


def _values(critics: Critic, seen: Float[Array, "B S"], action: Float[Array, "B D"]) -> Float[Array, "2 B"]:
    return eqx.filter_vmap(lambda critic: critic(seen, action))(critics)


class Transitions(NamedTuple):
    """Steps of the world. `valid` is False where there was nothing to decide, at the end of an episode."""

    seen: Float[Array, "*batch S"]
    action: Float[Array, "*batch D"]
    reward: Float[Array, "*batch"]
    following: Float[Array, "*batch S"]
    goes_on: Bool[Array, "*batch"]
    valid: Bool[Array, "*batch"]


def loss(agent: Agent, target: Critic, batch: Transitions, config: SACConfig, key: PRNGKeyArray) -> Float[Array, ""]:
    """Returns the three losses added up; each moves its own part of the agent alone."""
    now_key, next_key = jr.split(key)
    frozen = jax.lax.stop_gradient
    drawn, distribution = _draw(agent.actor, batch.seen, now_key)
    log_prob = squashed_log_prob(distribution, drawn)
    later, ahead = _draw(frozen(agent.actor), batch.following, next_key)
    temperature = frozen(jnp.exp(agent.log_temperature))
    values = _values(target, batch.following, jnp.tanh(later))
    aim = soft_target(
        batch.reward, batch.goes_on, values, squashed_log_prob(ahead, later), temperature, config.discount
    )
    critic = jnp.square(_values(agent.critics, batch.seen, batch.action) - frozen(aim)[None]).sum(axis=0) / 2
    actor = policy_loss(log_prob, _values(frozen(agent.critics), batch.seen, jnp.tanh(drawn)), temperature)
    held = config.entropy * batch.action.shape[-1]
    each = critic + actor + temperature_loss(agent.log_temperature, frozen(log_prob), held)
    return jnp.sum(jnp.where(batch.valid, each, 0.0)) / jnp.maximum(jnp.sum(batch.valid), 1)


def _draw(actor: Actor, seen: Float[Array, "*B S"], key: PRNGKeyArray) -> tuple[Float[Array, "*B D"], Normal]:
    distribution = actor(seen)
    return distribution.sample(key=key), distribution


class _State(eqx.Module):
    """Everything that evolves in training."""

    agent: Agent
    target: Critic
    opt_state: PyTree
    world: PyTree
    seen: Float[Array, "N S"]
    is_last: Bool[Array, " N"]
    total: Float[Array, " N"]
    memory: Transitions
    clock: Int[Array, ""]


def senses(env: AbstractEnvironment) -> int:
    """Returns how many numbers an environment tells of its state."""
    return eqx.filter_eval_shape(lambda: env.observe(env.reset(key=jr.key(0))[0])).shape[0]


@eqx.filter_jit
def _start(config: SACConfig, env: AbstractEnvironment, key: PRNGKeyArray) -> _State:
    actor_key, critic_key, env_key = jr.split(jr.fold_in(key, 0), 3)
    sizes, count = (senses(env), env.spec.action.continuous_dim, config.hidden), config.num_envs
    critics = eqx.filter_vmap(lambda key: Critic(*sizes, key=key))(jr.split(critic_key))
    agent = Agent(Actor(*sizes, key=actor_key), critics, jnp.zeros(()))
    world, _ = jax.vmap(lambda key: env.reset(key=key))(jr.split(env_key, count))
    seen, no = jax.vmap(env.observe)(world), jnp.zeros(count, bool)
    one = Transitions(seen[0], jnp.zeros(sizes[1]), jnp.zeros(()), seen[0], no[0], no[0])
    memory = jax.tree.map(lambda x: jnp.zeros((config.capacity, *x.shape), x.dtype), one)
    opt_state = _optimizer(config).init(eqx.filter(agent, eqx.is_array))
    return _State(agent, critics, opt_state, world, seen, no, jnp.zeros(count), memory, jnp.zeros((), jnp.int32))


def _optimizer(config: SACConfig) -> optax.GradientTransformation:
    return optax.adam(config.learning_rate)


def _play(config: SACConfig, env: AbstractEnvironment, state: _State, key: PRNGKeyArray) -> tuple[_State, Array]:
    """Makes one step in every environment; returns also sum and number of the returns of episodes that ended."""
    draw_key, random_key, env_key = jr.split(key, 3)
    action = jnp.tanh(_draw(state.agent.actor, state.seen, draw_key)[0])
    aimless = jr.uniform(random_key, action.shape, minval=-1.0, maxval=1.0)
    action = jnp.where(state.clock * config.num_envs < config.start, aimless, action)
    keys, none = jr.split(env_key, config.num_envs), jnp.zeros(0, jnp.int32)
    world, step = jax.vmap(lambda s, a, k: env.step(s, Action(none, a), key=k))(state.world, action, keys)
    following = jax.vmap(env.observe)(world)
    reward, valid = jnp.where(step.is_first, 0.0, step.reward), ~state.is_last
    new = Transitions(state.seen, action, reward, following, ~step.is_terminal, valid)
    at = state.clock * config.num_envs % config.capacity
    memory = jax.tree.map(lambda m, x: jax.lax.dynamic_update_slice_in_dim(m, x, at, 0), state.memory, new)
    total = jnp.where(step.is_first, 0.0, state.total) + reward
    ended = jnp.stack([jnp.sum(jnp.where(step.is_last, total, 0.0)), jnp.sum(step.is_last.astype(jnp.float32))])
    rest = (state.agent, state.target, state.opt_state)
    return _State(*rest, world, following, step.is_last, total, memory, state.clock + 1), ended


def _learn(config: SACConfig, state: _State, key: PRNGKeyArray) -> tuple[Agent, Critic, PyTree]:
    """Makes one gradient step on steps drawn from all that are remembered."""
    index_key, loss_key = jr.split(key)
    filled = jnp.minimum(state.clock * config.num_envs, config.capacity)
    index = jr.randint(index_key, (config.batch_size,), 0, filled)
    batch = jax.tree.map(lambda x: x[index], state.memory)
    grads = eqx.filter_grad(loss)(state.agent, state.target, batch, config, loss_key)
    with jax.numpy_dtype_promotion("standard"):  # optax takes numbers to the power of counted steps
        updates, opt_state = _optimizer(config).update(grads, state.opt_state)
    agent = eqx.apply_updates(state.agent, updates)
    target = jax.tree.map(lambda old, new: old + config.average * (new - old), state.target, agent.critics)
    return agent, target, opt_state


@eqx.filter_jit
def _advance(
    config: SACConfig, env: AbstractEnvironment, state: _State, key: PRNGKeyArray, chunk: int
) -> tuple[_State, Float[Array, "2"]]:
    """Makes `chunk` steps in every environment, each with its gradient steps behind it."""

    def learn(state, key):
        parts = _learn(config, state, key)
        return eqx.tree_at(lambda s: (s.agent, s.target, s.opt_state), state, parts), None

    def body(state, _):
        play_key, learn_key = jr.split(jr.fold_in(key, 1 + state.clock))
        state, ended = _play(config, env, state, play_key)
        count = jnp.where(state.clock * config.num_envs > config.start, config.updates, 0)
        state = jax.lax.fori_loop(0, count, lambda i, s: learn(s, jr.fold_in(learn_key, i))[0], state)
        return state, ended

    state, ended = jax.lax.scan(body, state, length=chunk)
    return state, ended.sum(axis=0)


def check(env: AbstractEnvironment) -> None:
    """Refuses an environment that does not tell its state or takes other than continuous actions."""
    check_environment(env)
    if env.spec.action.num_classes or not senses(env):
        raise InputError(
            f"sac: got {type(env).__name__} with {env.spec.action}, expected a world with continuous actions alone "
            "that tells its state, such as the tasks of dm_control and our own control tasks. Use ppo."
        )


def train_sac(
    config: SACConfig,
    env: AbstractEnvironment,
    *,
    keys: Sequence[PRNGKeyArray],
    progress: Callable[[int, list[float]], None] | None = None,
) -> list[TrainingRun]:
    """Trains agents in a real environment, one for each key; see `train_ppo`.

    Raises:
        InputError: as `check`, and if the environment fails.
    """
    check(env)
    states, chunk = [_start(config, env, key) for key in keys], _chunk(config)
    records = []
    for i in range(steps_taken(config) // (chunk * config.num_envs)):
        advanced = [_advance(config, env, *given, chunk) for given in zip(states, keys, strict=True)]
        states, ended = zip(*advanced, strict=True)
        if env.fault() is not None:
            raise broken(env)
        ended = np.asarray(ended)
        returns = np.where(ended[:, 1] > 0, ended[:, 0] / np.maximum(ended[:, 1], 1), np.nan)
        records.append(([jax.device_get(state.agent.actor) for state in states], returns))
        if progress is not None:
            progress((i + 1) * chunk * config.num_envs, [float(r) for r in returns])
    return runs_of(records, chunk * config.num_envs, lambda actor: SACPolicy(actor, env))


def _chunk(config: SACConfig) -> int:
    """Returns the steps of each environment between two looks from the host."""
    return max(1, config.steps // config.num_envs // LOOKS)


def steps_taken(config: SACConfig) -> int:
    """Returns how many environment steps of a seed the training takes, in whole stretches between two looks."""
    stretch = _chunk(config) * config.num_envs
    return max(1, config.steps // stretch) * stretch


class SACPolicy(AbstractPolicy):
    """Plays by a trained actor, who looks at the state; its memory is what it has seen.

    Attributes:
        network: the actor.
        env: tells its state.
        mode: the middle of the distribution, or a draw from it.
    """

    network: Actor
    env: AbstractEnvironment
    mode: Literal["sample", "mode"] = eqx.field(default="mode", static=True)

    def init(self) -> Float[Array, " S"]:
        return jnp.zeros(self.network.layers[0].weight.shape[0])

    def peek(self, memory: PyTree, state: PyTree) -> Float[Array, " S"]:
        return self.env.observe(state)

    def __call__(
        self, memory: PyTree, time_step: TimeStep, action: Action, action_mask: Bool[Array, ""], *, key: PRNGKeyArray
    ) -> tuple[Action, PyTree]:
        raw, distribution = _draw(self.network, memory, key)
        return Action(action.discrete, jnp.tanh(distribution.loc if self.mode == "mode" else raw)), memory
