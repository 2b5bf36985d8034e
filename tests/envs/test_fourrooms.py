"""FourRooms as an image: the frame tells where the walls, the agent and the goal are."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from dreamer4.config import EnvConfig
from dreamer4.envs import FourRoomsPixels, make
from dreamer4.errors import InputError
from dreamer4.types import Action


DIRECTIONS = {0: (-1, 0), 1: (0, 1), 2: (1, 0), 3: (0, -1)}


def play(env, actions, num_envs=1):
    """Returns the time steps of streams that all take the same actions, the first frames included, time first."""

    def stream(key):
        state, first = env.reset(key=key)

        def body(state, inputs):
            action, key = inputs
            return env.step(state, Action(action[None], jnp.zeros(0)), key=key)

        _, rest = jax.lax.scan(body, state, (actions, jr.split(jr.fold_in(key, 1), len(actions))))
        return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, rest)

    return jax.tree.map(np.asarray, jax.jit(jax.vmap(stream, out_axes=1))(jr.split(jr.key(0), num_envs)))


def where(channel):
    """Returns row and column of the one lit cell of each frame."""
    flat = channel.reshape(*channel.shape[:-2], -1)
    assert (np.count_nonzero(flat, axis=-1) == 1).all()
    return np.stack(np.unravel_index(flat.argmax(-1), channel.shape[-2:]), axis=-1)


@pytest.fixture(scope="module")
def walk():
    """Many random steps with short episodes, anywhere in the house."""
    rules = {"resample_init_pos": True, "resample_goal_pos": True, "max_steps_in_episode": 50}
    env = make(EnvConfig(id="FourRooms-pixels", kwargs={"params": rules}))
    assert env.spec.frame_shape == (14, 14, 3)
    assert env.max_steps == 50
    return play(env, jr.randint(jr.key(7), (400,), 0, 4), 8)


def test_the_house_has_four_rooms_and_four_doors(walk):
    walls = walk.frame[..., 0]
    assert (walls == walls[0, 0]).all()
    free = walls[0, 0] == 0
    assert free.sum() == 104
    assert not free[0].any()
    assert not free[12:].any()
    assert not free[:, 0].any()
    assert not free[:, 12:].any()
    for door in ((3, 6), (10, 6), (6, 2), (7, 9)):
        assert free[door]


def test_nobody_stands_in_a_wall_or_jumps(walk):
    agent, goal = where(walk.frame[..., 1]), where(walk.frame[..., 2])
    walls = walk.frame[0, 0, ..., 0]
    assert not walls[tuple(agent.reshape(-1, 2).T)].any()
    assert not walls[tuple(goal.reshape(-1, 2).T)].any()
    going_on = ~walk.is_first[1:]
    assert np.abs(np.diff(agent, axis=0)).sum(-1)[going_on].max() == 1
    assert not np.diff(goal, axis=0)[going_on].any()
    assert len(np.unique(agent.reshape(-1, 2), axis=0)) > 50


def test_the_reward_comes_where_agent_and_goal_meet(walk):
    met = (where(walk.frame[..., 1]) == where(walk.frame[..., 2])).all(-1)
    assert met.any()
    np.testing.assert_array_equal(walk.reward, met)
    np.testing.assert_array_equal(walk.is_terminal, met)
    limit = walk.is_last & ~walk.is_terminal
    assert limit.any()


@pytest.mark.parametrize("action", DIRECTIONS)
def test_an_action_moves_the_agent_as_the_frame_shows(action):
    env = FourRoomsPixels(params={"fail_prob": 0.0})
    agent = where(play(env, jnp.full(4, action)).frame[:, 0, :, :, 1])
    position = np.array([4, 1])
    np.testing.assert_array_equal(agent[0], position)
    walls = np.asarray(env.draw(jnp.array([4, 1]), jnp.array([8, 9])))[..., 0]
    for reached in agent[1:]:
        wanted = position + DIRECTIONS[action]
        position = position if walls[tuple(wanted)] else wanted
        np.testing.assert_array_equal(reached, position)


def test_the_start_and_the_goal_are_fixed_unless_drawn_anew(walk):
    env = FourRoomsPixels()
    assert env.max_steps == 500
    first = play(env, jnp.zeros(1, jnp.int32), 5).frame[0]
    assert (where(first[..., 1]) == [4, 1]).all()
    assert (where(first[..., 2]) == [8, 9]).all()
    for channel in (1, 2):
        assert len(np.unique(where(walk.frame[walk.is_first][..., channel]), axis=0)) > 10


def test_an_unknown_rule_is_told():
    with pytest.raises(InputError, match="Did you mean fail_prob"):
        FourRoomsPixels(params={"fail_pro": 0.1})


def test_out_of_focus_both_are_spots_around_the_same_cells():
    agent, goal, blur = np.array([4, 1]), np.array([8, 9]), 1.5
    sharp, soft = (np.asarray(FourRoomsPixels(blur=b).draw(jnp.array(agent), jnp.array(goal))) for b in (0.0, blur))
    np.testing.assert_array_equal(soft[..., 0], sharp[..., 0])
    for channel, cell in ((1, agent), (2, goal)):
        assert soft[..., channel].argmax() == sharp[..., channel].argmax()
        for row, column in np.ndindex(14, 14):
            distance = np.hypot(row - cell[0], column - cell[1])
            assert abs(soft[row, column, channel] - 255 * np.exp(-0.5 * (distance / blur) ** 2)) <= 0.51


def test_a_blur_outside_its_range_is_told():
    with pytest.raises(InputError, match="got blur -1"):
        FourRoomsPixels(blur=-1.0)
