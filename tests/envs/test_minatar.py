"""The MinAtar games through the adapter: channels of black and white, ends told apart, limits that hold."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from dreamer4.config import EnvConfig
from dreamer4.envs import make
from dreamer4.types import Action


# Channels, actions, declared limit.
GAMES = {
    "Asterix-MinAtar": (4, 5, 1000),
    "Breakout-MinAtar": (4, 3, 1000),
    "Freeway-MinAtar": (7, 3, 2500),
    "Seaquest-MinAtar": (10, 6, 1000),
    "SpaceInvaders-MinAtar": (6, 4, 1000),
}
LIMIT = 24


@pytest.mark.parametrize("env_id", GAMES)
def test_a_game_is_as_declared(env_id):
    channels, num_actions, limit = GAMES[env_id]
    env = make(EnvConfig(id=env_id))
    assert env.spec.frame_shape == (10, 10, channels)
    assert env.spec.action.num_classes == (num_actions,)
    assert env.max_steps == limit


@pytest.mark.parametrize("env_id", GAMES)
def test_a_game_plays(env_id):
    env = make(EnvConfig(id=env_id, kwargs={"params": {"max_steps_in_episode": LIMIT}}))
    (num_actions,) = env.spec.action.num_classes

    def stream(key):
        def body(state, key):
            action = jr.randint(jr.fold_in(key, 1), (1,), 0, num_actions)
            return env.step(state, Action(action, jnp.zeros(0)), key=key)

        return jax.lax.scan(body, env.reset(key=key)[0], jr.split(key, 4 * LIMIT))[1]

    ts = jax.tree.map(np.asarray, jax.jit(jax.vmap(stream, out_axes=1))(jr.split(jr.key(0), 4)))
    assert set(np.unique(ts.frame)) == {0, 255}
    # The player, one cell of channel 0, is in every frame; and there is always something else to see.
    assert (np.count_nonzero(ts.frame[..., 0], axis=(2, 3)) == 1).all()
    assert (np.diff(ts.frame.astype(int), axis=0) != 0).any(axis=(2, 3, 4)).mean() > 0.3
    np.testing.assert_array_equal(ts.is_first[1:], ts.is_last[:-1])
    assert ts.is_last.any()
    assert np.isfinite(ts.reward).all()
    for slot in range(4):
        ends = np.flatnonzero(np.append(True, ts.is_last[:, slot]))
        for start, end in zip(ends[:-1], ends[1:], strict=True):
            # The stream begins behind its first frame, so an episode of LIMIT actions spans LIMIT steps at first.
            full = LIMIT + (start > 0)
            assert end - start <= full
            assert ts.is_terminal[end - 1, slot] or end - start == full
    assert ts.is_terminal.any() or env_id != "Breakout-MinAtar"
    assert not (ts.is_terminal.any() and env_id == "Freeway-MinAtar")
