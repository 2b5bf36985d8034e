"""Proximal policy optimisation (arXiv 1707.06347), online in the real environment.

An update plays a stretch in many environments side by side, estimates advantages, and passes over the stretch a few
times in minibatches. Index t of a stretch is a decision: the frames seen, the action chosen, and the reward that came
with the frame it led to. At the last frame of an episode the environment ignores the action; such an index is no
decision and is left out of every mean, but its value is what a time limit is bootstrapped from.
"""

from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray, PyTree, UInt8

from dreamer4.baselines.actor_critic import ActorCritic, NetworkPolicy
from dreamer4.baselines.learned import LOOKS, TrainingRun, runs_of
from dreamer4.config import PPOConfig
from dreamer4.envs import AbstractEnvironment, check_environment
from dreamer4.types import Action, TimeStep, within_bounds


def advantages(
    reward: Float[Array, " T"],
    value: Float[Array, "T+1"],
    is_last: Bool[Array, " T"],
    is_terminal: Bool[Array, " T"],
    *,
    discount: float,
    lambda_: float,
) -> Float[Array, " T"]:
    """Returns generalised advantage estimates (arXiv 1506.02438).

    With `c[t] = 1 - is_terminal[t]` and `l[t] = 1 - is_last[t]`, both of the frame that decision t led to,

        delta[t] = reward[t] + discount * c[t] * value[t+1] - value[t]
        A[t] = delta[t] + discount * lambda * l[t] * A[t+1].

    Args:
        reward: rewards that the decisions led to.
        value: values of the frames decided at, and of the one behind the last decision.
        is_last: whether a decision led to the last frame of its episode.
        is_terminal: whether it led to termination; a last frame without it still has a future worth its value.
        discount: in (0, 1].
        lambda_: 0 looks one step ahead, 1 to the end of the episode.
    """
    delta = reward + discount * jnp.where(is_terminal, 0.0, value[1:]) - value[:-1]

    def body(following, step):
        delta, is_last = step
        current = delta + discount * lambda_ * jnp.where(is_last, 0.0, following)
        return current, current

    return jax.lax.scan(body, jnp.zeros(()), (delta, is_last), reverse=True)[1]


def clipped_policy_loss(
    log_ratio: Float[Array, "*dims"], advantage: Float[Array, "*dims"], clip: float
) -> Float[Array, "*dims"]:
    """Returns `-min(ratio * A, clip(ratio, 1 - clip, 1 + clip) * A)`, eq 7 of the paper with its sign turned."""
    ratio = jnp.exp(log_ratio)
    return -jnp.minimum(ratio * advantage, jnp.clip(ratio, 1.0 - clip, 1.0 + clip) * advantage)


def clipped_value_loss(
    value: Float[Array, "*dims"], before: Float[Array, "*dims"], target: Float[Array, "*dims"], clip: float
) -> Float[Array, "*dims"]:
    """Returns half the squared error of the value, or of the value held within `clip` of `before` if that is larger."""
    held = before + jnp.clip(value - before, -clip, clip)
    return 0.5 * jnp.maximum(jnp.square(value - target), jnp.square(held - target))


class _Decisions(eqx.Module):
    """What an update learns from. `valid` is False where there was nothing to decide."""

    frames: UInt8[Array, "*batch N H W C"]
    action: Action
    log_prob: Float[Array, "*batch"]
    value: Float[Array, "*batch"]
    advantage: Float[Array, "*batch"]
    valid: Bool[Array, "*batch"]


class _Player(eqx.Module):
    """One environment on its way: what the policy sees of it, and the return of the episode so far."""

    state: PyTree
    time_step: TimeStep
    frames: UInt8[Array, "*batch N H W C"]
    total: Float[Array, "*batch"]


class _State(eqx.Module):
    """Everything that evolves in training."""

    network: ActorCritic
    opt_state: PyTree
    players: _Player
    update: Int[Array, ""]


def _optimizer(config: PPOConfig) -> optax.GradientTransformation:
    steps = config.updates * config.epochs * config.minibatches
    rate = optax.linear_schedule(config.learning_rate, 0.0, steps)
    return optax.chain(optax.clip_by_global_norm(config.max_grad_norm), optax.adam(rate, eps=1e-5))


def _init(config: PPOConfig, env: AbstractEnvironment, key: PRNGKeyArray) -> _State:
    network_key, env_key = jr.split(jr.fold_in(key, 0))
    network = ActorCritic(env.spec, config.num_frames, config.hidden, key=network_key)

    def start(key):
        state, time_step = env.reset(key=key)
        frames = jnp.zeros(network.frames_shape, jnp.uint8)
        frames = network.remember(frames, time_step.frame, time_step.is_first)
        return _Player(state, time_step, frames, jnp.zeros(()))

    players = jax.vmap(start)(jr.split(env_key, config.num_envs))
    opt_state = _optimizer(config).init(eqx.filter(network, eqx.is_array))
    return _State(network, opt_state, players, jnp.zeros((), jnp.int32))


def _play(network: ActorCritic, env: AbstractEnvironment, player: _Player, key: PRNGKeyArray) -> tuple[_Player, tuple]:
    """Makes one decision."""
    act_key, env_key = jr.split(key)
    distribution, value = network(player.frames)
    action = distribution.sample(key=act_key)
    state, step = env.step(player.state, within_bounds(action), key=env_key)
    total = jnp.where(step.is_first, 0.0, player.total) + step.reward
    frames = network.remember(player.frames, step.frame, step.is_first)
    log_prob, valid = distribution.log_prob(action), ~player.time_step.is_last
    seen = (player.frames, action, log_prob, value, valid, step.reward, step.is_last, step.is_terminal, total)
    return _Player(state, step, frames, total), seen


def _rollout(
    config: PPOConfig, env: AbstractEnvironment, network: ActorCritic, player: _Player, key: PRNGKeyArray
) -> tuple[_Player, _Decisions, Float[Array, "2"]]:
    """Plays a stretch in one environment; returns also sum and number of the returns of episodes that ended."""
    player, seen = jax.lax.scan(
        lambda player, key: _play(network, env, player, key), player, jr.split(key, config.rollout_length)
    )
    frames, action, log_prob, value, valid, reward, is_last, is_terminal, total = seen
    values = jnp.append(value, network(player.frames)[1])
    advantage = advantages(reward, values, is_last, is_terminal, discount=config.discount, lambda_=config.lambda_)
    ended = jnp.stack([jnp.sum(jnp.where(is_last, total, 0.0)), jnp.sum(is_last.astype(jnp.float32))])
    return player, _Decisions(frames, action, log_prob, value, advantage, valid), ended


def _mean(x: Float[Array, " B"], valid: Bool[Array, " B"]) -> Float[Array, ""]:
    return jnp.sum(jnp.where(valid, x, 0.0)) / jnp.maximum(jnp.sum(valid), 1)


def _loss(network: ActorCritic, batch: _Decisions, config: PPOConfig) -> Float[Array, ""]:
    distribution, value = jax.vmap(network)(batch.frames)
    centre = _mean(batch.advantage, batch.valid)
    spread = jnp.sqrt(_mean(jnp.square(batch.advantage - centre), batch.valid))
    advantage = (batch.advantage - centre) / (spread + 1e-8)
    policy = clipped_policy_loss(distribution.log_prob(batch.action) - batch.log_prob, advantage, config.clip)
    critic = clipped_value_loss(value, batch.value, batch.value + batch.advantage, config.clip_value)
    return _mean(policy + config.value_weight * critic - config.entropy * distribution.entropy(), batch.valid)


def _update(
    config: PPOConfig, env: AbstractEnvironment, state: _State, key: PRNGKeyArray
) -> tuple[_State, Float[Array, "2"]]:
    """Plays a stretch and learns from it; returns also sum and number of the returns of episodes that ended."""
    play_key, shuffle_key = jr.split(jr.fold_in(key, 1 + state.update))
    keys = jr.split(play_key, config.num_envs)
    players, decisions, ended = jax.vmap(lambda p, k: _rollout(config, env, state.network, p, k))(state.players, keys)
    count = config.steps_per_update
    decisions = jax.tree.map(lambda x: x.reshape(count, *x.shape[2:]), decisions)
    optimizer = _optimizer(config)
    dynamic, static = eqx.partition(state.network, eqx.is_array)

    def learn(carry, rows):
        dynamic, opt_state = carry
        batch = jax.tree.map(lambda x: x[rows], decisions)
        grads = jax.grad(lambda d: _loss(eqx.combine(d, static), batch, config))(dynamic)
        with jax.numpy_dtype_promotion("standard"):  # optax takes numbers to the power of counted steps
            updates, opt_state = optimizer.update(grads, opt_state, dynamic)
        return (eqx.apply_updates(dynamic, updates), opt_state), None

    order = jax.vmap(lambda k: jr.permutation(k, count))(jr.split(shuffle_key, config.epochs))
    rows = order.reshape(config.epochs * config.minibatches, -1)
    (dynamic, opt_state), _ = jax.lax.scan(learn, (dynamic, state.opt_state), rows)
    network = eqx.combine(dynamic, static)
    return _State(network, opt_state, players, state.update + 1), ended.sum(axis=0)


@eqx.filter_jit
def _start(config: PPOConfig, env: AbstractEnvironment, keys: Key[Array, " S"]) -> _State:
    return eqx.filter_vmap(lambda key: _init(config, env, key))(keys)


@eqx.filter_jit
def _advance(
    config: PPOConfig, env: AbstractEnvironment, states: _State, keys: Key[Array, " S"], chunk: int
) -> tuple[_State, Float[Array, "S 2"]]:
    """Runs `chunk` updates of every seed."""

    def run(state, key):
        arrays, static = eqx.partition(state, eqx.is_array)

        def body(arrays, _):
            state, ended = _update(config, env, eqx.combine(arrays, static), key)
            return eqx.filter(state, eqx.is_array), ended

        arrays, ended = jax.lax.scan(body, arrays, length=chunk)
        return eqx.combine(arrays, static), ended.sum(axis=0)

    return eqx.filter_vmap(run)(states, keys)


def train_ppo(
    config: PPOConfig,
    env: AbstractEnvironment,
    *,
    keys: Sequence[PRNGKeyArray],
    progress: Callable[[int, list[float]], None] | None = None,
) -> list[TrainingRun]:
    """Trains agents in a real environment, one for each key, side by side.

    Args:
        config: sizes and settings.
        env: the environment.
        keys: one for each training seed; an agent depends on its own key alone.
        progress: called now and then with the environment steps of a seed so far, and the newest mean return of each.

    Returns:
        One run for each key, in their order.
    """
    check_environment(env)
    stacked = jnp.stack(list(keys))
    states = _start(config, env, stacked)
    chunk = _chunk(config)
    records = []
    for _ in range(config.updates // chunk):
        states, ended = _advance(config, env, states, stacked, chunk)
        ended = np.asarray(ended)
        returns = np.where(ended[:, 1] > 0, ended[:, 0] / np.maximum(ended[:, 1], 1), np.nan)
        networks = jax.device_get(states.network)
        records.append(([jax.tree.map(lambda x, i=i: x[i], networks) for i in range(len(keys))], returns))
        if progress is not None:
            progress(len(records) * chunk * config.steps_per_update, [float(r) for r in returns])
    return runs_of(records, chunk * config.steps_per_update, NetworkPolicy)


def steps_taken(config: PPOConfig) -> int:
    """Returns how many environment steps of a seed the training takes.

    They are those asked for in whole stretches between two looks from the host, so some 2 % fewer at worst.
    """
    return config.updates // _chunk(config) * _chunk(config) * config.steps_per_update


def _chunk(config: PPOConfig) -> int:
    """Returns the updates of a stretch."""
    return max(1, config.updates // LOOKS)
