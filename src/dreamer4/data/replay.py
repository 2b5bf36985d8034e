"""Episodes played again, to know where the environment stood at each frame.

A data set holds frames, not the states of the game behind them. An episode that `collect` made holds the key by which
the environment drew each frame, and with its actions that is enough to come to the same states. That they are the same,
up to rounding, is checked frame by frame, so an environment that has changed since is found and not believed.
"""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, PyTree, UInt8

from dreamer4.data.episode import Episode
from dreamer4.envs.base import AbstractEnvironment
from dreamer4.errors import InputError
from dreamer4.types import Action


EPISODES_AT_ONCE, FRAMES_AT_ONCE = 128, 64  # played side by side, and in one call
# Physics rounds otherwise in another program or on another processor: of CartPoleSwingup rewards came out within 3e-7,
# pixels within one level in forty episodes of 125 steps. Another world, or another state, is further off.
_LEVELS, _REWARD = 2, 1e-5


class Place(eqx.Module):
    """Where the real environment stood at a frame.

    Attributes:
        state: its state, to be handed to `step`.
        frame: the frame.
    """

    state: PyTree
    frame: UInt8[Array, "*batch H W C"]


def replay(env: AbstractEnvironment, episodes: Sequence[Episode]) -> Place:
    """Plays episodes again and returns the place at each of their frames, end to end, as a source holds them.

    Args:
        env: the environment that they were collected in.
        episodes: at least one, with their keys.

    Raises:
        InputError: if the environment cannot go back to a state, an episode has no keys, or other frames or rewards
            come out than were recorded.
    """
    if not env.pace.revisits:
        raise InputError(
            "The real environment lives outside JAX and cannot go back to where it stood at a frame, so nothing can be "
            "played from there. Play whole episodes in it."
        )
    for number, episode in enumerate(episodes):
        if episode.key is None:
            raise InputError(
                f"Episode {number} does not tell by which keys it was drawn, so it cannot be played again in the real "
                "environment. Imported data and data of earlier versions do not; collect the data set anew."
            )
        spec = (env.spec.frame_shape, env.spec.action.continuous_dim, len(env.spec.action.num_classes))
        if spec != (episode.frame.shape[1:], episode.continuous.shape[1], episode.discrete.shape[1]):
            raise InputError(
                f"Episode {number} was not made in an environment that looks like {env.spec}. Name its own."
            )
    lengths = np.array([episode.length for episode in episodes])
    starts = np.cumsum(lengths) - lengths
    order = np.argsort(lengths, kind="stable")
    found: list[np.ndarray] | None = None
    structure: Any = None
    size = min(EPISODES_AT_ONCE, len(episodes))
    for first in range(0, len(episodes), size):
        index = order[np.minimum(np.arange(first, first + size), len(episodes) - 1)]
        chosen = [episodes[i] for i in index]
        place = _open(env, _padded(chosen, "key", 0, 1)[:, 0])
        for begin in range(0, int(lengths[index].max()), FRAMES_AT_ONCE):
            columns = [_padded(chosen, name, begin, FRAMES_AT_ONCE) for name in ("discrete", "continuous", "key")]
            place, passed, rewards = _advance(env, place, columns, jnp.asarray(begin))
            leaves, structure = jax.tree.flatten(jax.device_get(passed))
            if found is None:
                found = [np.zeros((lengths.sum(), *leaf.shape[2:]), leaf.dtype) for leaf in leaves]
            for row, i in enumerate(index.tolist()):
                count = min(int(lengths[i]) - begin, FRAMES_AT_ONCE)
                if count > 0:
                    _compare(episodes[i], i, begin, structure.unflatten([x[row, :count] for x in leaves]), rewards[row])
                    for into, leaf in zip(found, leaves, strict=True):
                        into[starts[i] + begin : starts[i] + begin + count] = leaf[row, :count]
    return structure.unflatten([jnp.asarray(leaf) for leaf in found or ()])


def _padded(episodes: Sequence[Episode], name: str, begin: int, count: int) -> np.ndarray:
    rows = []
    for episode in episodes:
        row = getattr(episode, name)[begin : begin + count]
        rows.append(np.pad(row, [(0, count - len(row)), *[(0, 0)] * (row.ndim - 1)]))
    return np.stack(rows)


@eqx.filter_jit
def _open(env, keys):
    def reset(key):
        state, time_step = env.reset(key=jr.wrap_key_data(key))
        return Place(state, time_step.frame)

    return jax.vmap(reset)(keys)


@eqx.filter_jit
def _advance(env, place, columns, begin):
    """Returns the newest places, those passed through, and the rewards there. No step leads to frame 0."""

    def episode(place, discrete, continuous, keys):
        def body(place, step):
            time, action, key = step
            state, time_step = env.step(place.state, action, key=jr.wrap_key_data(key))
            following = Place(state, time_step.frame)
            place = jax.tree.map(lambda a, b: jnp.where(time == 0, a, b), place, following)
            return place, (place, time_step.reward)

        times = begin + jnp.arange(discrete.shape[0])
        return jax.lax.scan(body, place, (times, Action(discrete, continuous), keys))

    place, (passed, rewards) = jax.vmap(episode)(place, *columns)
    return place, passed, rewards


def _compare(episode: Episode, number: int, begin: int, passed: Place, rewards: Array) -> None:
    """Refuses a replay that is not what was recorded."""
    count = len(passed.frame)
    span = slice(begin, begin + count)
    levels = np.asarray(passed.frame, np.int16) - episode.frame[span]
    wrong = np.any(np.abs(levels) > _LEVELS, axis=(1, 2, 3))
    paid = np.isclose(np.asarray(rewards[:count], np.float32), episode.reward[span], rtol=_REWARD, atol=_REWARD)
    wrong |= ~paid & (begin + np.arange(count) > 0)
    if wrong.any():
        raise InputError(
            f"Episode {number} does not come out as it was recorded when it is played again: frame "
            f"{begin + int(wrong.argmax())} or its reward differs. The environment is another one, or has changed "
            "since; collect the data set anew."
        )
