"""A policy in an environment gives episodes."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Int, PRNGKeyArray, PyTree, UInt32

from dreamer4.data.episode import Episode
from dreamer4.data.policy import AbstractPolicy, impossible
from dreamer4.envs.base import AbstractEnvironment, broken, check_environment, is_sound
from dreamer4.errors import InputError, check_whole
from dreamer4.precision import in_32_bits
from dreamer4.types import Action, TimeStep, check_key, is_possible


# Environment steps between two looks from the host; a balance of calls against steps run past the end.
_CHUNK = 128


# Steps of one slot: the columns of a record, time and slot leading, and the times. Joined when its episode has ended.
_Piece = tuple[dict[str, np.ndarray], slice]


class _Stream(eqx.Module):
    """The newest time step of an environment, what led to it, by which key, and what leads on."""

    state: PyTree
    memory: PyTree
    time_step: TimeStep
    action: Action
    action_mask: Bool[Array, "*batch"]
    key: UInt32[Array, "*batch words"]


class UnfinishedError(InputError):
    """An environment failed while it was played.

    Attributes:
        episodes: those that had ended before.
    """

    def __init__(self, error: InputError, episodes: list[Episode]):
        super().__init__(str(error))
        self.episodes = episodes


@in_32_bits
def collect(
    env: AbstractEnvironment,
    policy: AbstractPolicy,
    *,
    episodes: int,
    key: PRNGKeyArray,
    num_envs: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> list[Episode]:
    """Plays episodes, many side by side, and returns them whole.

    Each of the parallel environments plays a number of episodes that is fixed beforehand. Taking whichever end first
    would favour short episodes.

    Args:
        env: the environment.
        policy: chooses the actions; its memory starts afresh with every episode.
        episodes: how many to return, at least 1.
        key: the same key, number of episodes and number of environments give the same episodes.
        num_envs: environments played side by side, at least 1.
        progress: called now and then with the number of finished episodes and of all.

    Returns:
        The episodes; the first of every environment, then the second of every environment, and so on.

    Raises:
        InputError: if a number is not whole or below 1, an episode outlasts the `max_steps` of the environment, or it
            breaks the contract of `AbstractEnvironment` in another way; or the policy chooses an action that is none.
        UnfinishedError: with what was played so far, if the environment failed by itself.
    """
    check_whole("collect", episodes=episodes, num_envs=num_envs)
    check_key("collect", key)
    check_environment(env)
    num_envs = min(num_envs, episodes, env.pace.streams)
    quota = [episodes // num_envs + (slot < episodes % num_envs) for slot in range(num_envs)]
    longest = quota[0] * (env.max_steps + 1) + 1  # with what follows the last end, which tells what kind of end it was
    chunk = min(_CHUNK, longest, env.pace.steps)
    finished: list[list[Episode]] = [[] for _ in quota]
    pieces: list[list[_Piece]] = [[] for _ in quota]

    reset_key, step_key = jr.split(key)
    stream, behind = _start(env, policy, num_envs, key=reset_key), jnp.ones(num_envs, bool)
    for done in range(0, longest, chunk):
        stream, record = _advance(env, policy, stream, jnp.asarray(done), chunk, num_envs, key=step_key)
        follows_last = jnp.concatenate([behind[None], record.time_step.is_last[:-1]])
        sound = np.asarray(is_sound(record.time_step, follows_last=follows_last).all(axis=1))
        if not sound.all():
            if not env.fault():
                raise broken(env)
            good = int(sound.argmin())
            _cut(jax.device_get(jax.tree.map(lambda x: x[:good], record)), pieces, finished, quota)  # noqa: B023
            raise UnfinishedError(broken(env), [episode for slot in finished for episode in slot])
        behind = record.time_step.is_last[-1]
        record = jax.device_get(record)
        if not is_possible(record.action, env.spec.action)[record.action_mask].all():
            raise impossible(policy, env.spec.action)
        _cut(record, pieces, finished, quota)
        total = sum(map(len, finished))
        if progress is not None:
            progress(total, episodes)
        if total == episodes:
            return [f[turn] for turn in range(quota[0]) for f in finished if turn < len(f)]
    raise InputError(
        f"collect: an episode of {type(env).__name__} outlasts its max_steps of {env.max_steps}. "
        "Raise max_steps, or let the environment set is_last in time."
    )


@eqx.filter_jit
def _start(env: AbstractEnvironment, policy: AbstractPolicy, num_envs: int, *, key: PRNGKeyArray) -> _Stream:
    def start(key):
        state, time_step = env.reset(key=key)
        nothing, no = Action.null(env.spec.action), jnp.zeros((), bool)
        return _Stream(state, policy.init(), time_step, nothing, no, jr.key_data(key))

    return jax.vmap(start)(jr.split(key, num_envs))


@eqx.filter_jit
def _advance(
    env: AbstractEnvironment,
    policy: AbstractPolicy,
    stream: _Stream,
    done: Int[Array, ""],
    chunk: int,
    num_envs: int,
    *,
    key: PRNGKeyArray,
) -> tuple[_Stream, _Stream]:
    """Runs `chunk` steps; returns the newest stream, and what `_Stream` shows of those passed through, time leading."""

    def advance(stream, key):
        policy_key, env_key = jr.split(key)
        is_first = stream.time_step.is_first
        memory = jax.tree.map(lambda fresh, old: jnp.where(is_first, fresh, old), policy.init(), stream.memory)
        memory = policy.peek(memory, stream.state)
        action, memory = policy(memory, stream.time_step, stream.action, stream.action_mask, key=policy_key)
        state, time_step = env.step(stream.state, action, key=env_key)
        # What came before a first frame, action and reward, belongs to another episode or to none.
        known = ~time_step.is_first
        action = jax.tree.map(lambda x: jnp.where(known, x, 0), action)
        return _Stream(state, memory, time_step, action, known, jr.key_data(env_key))

    def body(stream, time):
        # By the number of the step, so that the episodes do not depend on the length of a chunk.
        keys = jr.split(jr.fold_in(key, time), num_envs)
        shown = _Stream(None, None, stream.time_step, stream.action, stream.action_mask, stream.key)
        return jax.vmap(advance)(stream, keys), shown

    return jax.lax.scan(body, stream, done + jnp.arange(chunk))


def _cut(record: _Stream, pieces: list[list[_Piece]], finished: list[list[Episode]], quota: list[int]) -> None:
    """Appends episodes that end within `record` to their slot's `finished`, and what is left over to its `pieces`."""
    rows = {
        "frame": np.asarray(record.time_step.frame),
        "discrete": np.asarray(record.action.discrete, np.int32),
        "continuous": np.asarray(record.action.continuous, np.float32),
        "action_mask": np.asarray(record.action_mask),
        "reward": np.where(record.time_step.is_first, 0, record.time_step.reward).astype(np.float32),
        "key": np.asarray(record.key),
    }
    is_last, is_terminal = np.asarray(record.time_step.is_last), np.asarray(record.time_step.is_terminal)
    begins = [0] * len(quota)
    for slot, time in np.argwhere(is_last.T).tolist():
        if len(finished[slot]) < quota[slot]:
            pieces[slot].append((rows, slice(begins[slot], time + 1)))
            finished[slot].append(_episode(pieces[slot], slot, bool(is_terminal[time, slot])))
            pieces[slot].clear()
            begins[slot] = time + 1
    for slot, begin in enumerate(begins):
        if len(finished[slot]) < quota[slot]:
            pieces[slot].append((rows, slice(begin, None)))


def _episode(pieces: list[_Piece], slot: int, is_terminal: bool) -> Episode:
    def join(name: str) -> np.ndarray:
        return np.concatenate([rows[name][span, slot] for rows, span in pieces])

    return Episode(
        frame=join("frame"),
        discrete=join("discrete"),
        continuous=join("continuous"),
        action_mask=join("action_mask"),
        reward=join("reward"),
        is_terminal=is_terminal,
        key=join("key"),
    )
