"""The gymnax adapter: true last frames, ends told apart, pixels, actions, refusals."""

import equinox as eqx
import gymnax
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from gymnax.environments import environment, spaces

from dreamer4.config import EnvConfig
from dreamer4.data import collect, random_policy
from dreamer4.envs import GymnaxEnvironment, make
from dreamer4.errors import InputError
from dreamer4.types import Action


IMAGES = {
    "Catch-bsuite": ((10, 5, 1), 3),
    "DeepSea-bsuite": ((8, 8, 1), 2),
    "Breakout-MinAtar": ((10, 10, 4), 3),
    "Asterix-MinAtar": ((10, 10, 4), 5),
    "Freeway-MinAtar": ((10, 10, 7), 3),
    "SpaceInvaders-MinAtar": ((10, 10, 6), 4),
    "Pong-misc": ((30, 40, 3), 3),
    "FourRooms-misc": ((13, 13, 2), 4),
}

OBSERVATIONS = {
    "bool": (jnp.array([[True, False], [False, True]]), spaces.Box(0, 1, (2, 2)), [255, 0, 0, 255]),
    "binary": (jnp.array([[1, 0], [0, 1]]), spaces.Box(0, 1, (2, 2)), [255, 0, 0, 255]),
    "classes": (jnp.array([[0, 1], [2, 5]]), spaces.Box(0, 5, (2, 2)), [0, 51, 102, 255]),
    "uint8": (jnp.array([[0, 1], [2, 255]], jnp.uint8), spaces.Box(0, 255, (2, 2)), [0, 1, 2, 255]),
    "float": (jnp.array([[0.0, 0.5], [1.0, 0.2]]), spaces.Box(0, 1, (2, 2)), [0, 128, 255, 51]),
    "scaled": (jnp.array([[-10.0, 0.0], [10.0, 20.0]]), spaces.Box(-10, 10, (2, 2)), [0, 128, 255, 255]),
    "unbounded": (jnp.zeros((2, 2)), spaces.Box(-jnp.inf, jnp.inf, (2, 2)), None),
    "pair": ((jnp.zeros((2, 2)), jnp.zeros(3)), spaces.Box(0, 1, (2, 2)), None),
}
ACTIONS = {
    "discrete": spaces.Discrete(4),
    "box": spaces.Box(jnp.array([-2.0, 0.0]), jnp.array([2.0, 1.0]), (2,)),
    "unbounded": spaces.Box(-jnp.inf, jnp.inf, (2,)),
    "tuple": spaces.Tuple([spaces.Discrete(2), spaces.Discrete(2)]),
}


class Echo(environment.Environment):
    """Shows a fixed observation; its reward is an integer, or the sum of the continuous action it was given."""

    def __init__(self, observation="float", action="discrete"):
        super().__init__()
        self.observation, self.space, _ = OBSERVATIONS[observation]
        self.action = ACTIONS[action]

    def reset_env(self, key, params):
        return self.observation, environment.EnvState(time=0)

    def step_env(self, key, state, action, params):
        state = environment.EnvState(time=state.time + 1)
        return self.observation, state, jnp.sum(action), jnp.array(False), {}

    def observation_space(self, params):
        return self.space

    def action_space(self, params):
        return self.action


@pytest.fixture(scope="module", autouse=True)
def echo():
    if "Echo-test" not in gymnax.registered_envs:
        gymnax.register("Echo-test", Echo)


@pytest.mark.parametrize("env_id", IMAGES)
def test_image_environments_build(env_id):
    kwargs = {"use_visual_obs": True} if env_id == "FourRooms-misc" else {}
    env = make(EnvConfig(id=env_id, kwargs=kwargs))
    frame_shape, num_actions = IMAGES[env_id]
    assert env.spec.frame_shape == frame_shape
    assert env.spec.action.num_classes == (num_actions,)
    state, time_step = jax.eval_shape(lambda k: env.reset(key=k), jr.key(0))
    assert time_step.frame.shape == frame_shape
    jax.eval_shape(lambda s: env.step(s, Action.null(env.spec.action), key=jr.key(0)), state)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "FourRooms-misc", "FrozenLake-misc", "SimpleBandit-bsuite"])
def test_other_observations_are_refused_with_a_way_out(env_id):
    with pytest.raises(InputError, match="shape .*AbstractEnvironment, as examples/03_own_environment.py"):
        GymnaxEnvironment(env_id)


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(InputError, match="Did you mean Catch-bsuite"):
        GymnaxEnvironment("Catsch-bsuite")
    with pytest.raises(InputError, match="max_steps_in_episode"):
        GymnaxEnvironment("Catch-bsuite", params={"max_steps_in_episodes": 3})
    with pytest.raises(InputError, match="refused its arguments"):
        GymnaxEnvironment("Catch-bsuite", colums=3)
    with pytest.raises(InputError, match="expected a number"):
        GymnaxEnvironment("Catch-bsuite", params={"max_steps_in_episode": "3"})
    with pytest.raises(InputError, match="expected JSON"):
        GymnaxEnvironment("Catch-bsuite", rows=object())
    with pytest.raises(InputError, match="expected a mapping"):
        make(EnvConfig(id="Catch-bsuite", kwargs={"params": 3}))


@pytest.mark.parametrize("name", ["self", "cls", "env_id"])
def test_what_python_calls_its_own_is_no_argument(name):
    with pytest.raises(InputError, match=f"env.kwargs: Catch-bsuite has no argument '{name}'"):
        make(EnvConfig(id="Catch-bsuite", kwargs={name: 1}))


@pytest.mark.parametrize("rows", ["abc", -3, 0, 10**30])
def test_arguments_that_make_no_game_are_refused(rows):
    with pytest.raises(InputError, match=f"env.kwargs: Catch-bsuite does not run with arguments .*{rows}"):
        GymnaxEnvironment("Catch-bsuite", rows=rows)


@pytest.mark.parametrize("limit", [0, -4])
def test_an_episode_has_at_least_one_action(limit):
    with pytest.raises(InputError, match=f"max_steps_in_episode: got {limit}, expected at least 1"):
        GymnaxEnvironment("Catch-bsuite", params={"max_steps_in_episode": limit})


def test_an_environment_that_downloads_is_refused():
    with pytest.raises(InputError, match="downloads"):
        GymnaxEnvironment("MNISTBandit-bsuite")


def test_arguments_reach_gymnax():
    env = make(EnvConfig(id="Catch-bsuite", kwargs={"rows": 7, "columns": 4, "params": {"max_steps_in_episode": 3}}))
    assert env.spec.frame_shape == (7, 4, 1)
    assert env.max_steps == 3


def test_the_stream_is_gymnax_with_its_final_observations_put_in_place():
    env = GymnaxEnvironment("Catch-bsuite")
    inner, params = gymnax.make("Catch-bsuite")
    step = eqx.filter_jit(lambda s, a, k: env.step(s, a, key=k))
    state, ours = env.reset(key=jr.key(3))
    obs, theirs = inner.reset_env(jr.key(3), params)
    for t in range(9):
        np.testing.assert_array_equal(ours.frame[..., 0], 255 * obs)
        action = Action(jnp.array([t % 3]), jnp.zeros(0))
        state, ours = step(state, action, jr.key(t))
        _, theirs, reward, terminated, truncated, info = inner.step(jr.key(t), theirs, jnp.array(t % 3), params)
        obs = info["final_observation"]
        assert ours.reward == reward
        assert (ours.is_terminal, ours.is_last) == (terminated, terminated | truncated)
    np.testing.assert_array_equal(ours.frame[..., 0], 255 * obs)
    assert ours.is_terminal
    assert not ours.frame[:-1].any(), "in the last frame the ball lies in the bottom row"
    state, ours = step(state, action, jr.key(9))
    assert ours.is_first
    assert ours.frame[0].any(), "in the first frame the ball is at the top"


@pytest.mark.parametrize(("limit", "steps"), [(2, 2), (1.5, 2), (2.5, 3), (0.5, 1)])
def test_a_limit_ends_an_episode_without_terminating_it(limit, steps):
    env = GymnaxEnvironment("Catch-bsuite", params={"max_steps_in_episode": limit})
    assert env.max_steps == steps
    action = Action(jnp.array([1]), jnp.zeros(0))
    state, _ = env.reset(key=jr.key(0))
    step = eqx.filter_jit(lambda s: env.step(s, action, key=jr.key(0)))
    for _ in range(steps - 1):
        state, middle = step(state)
        assert not middle.is_last
    state, end = step(state)
    assert end.is_last
    assert not end.is_terminal
    assert step(state)[1].is_first


def test_the_limit_of_catch_is_the_time_the_ball_falls():
    assert GymnaxEnvironment("Catch-bsuite").max_steps == 9
    assert GymnaxEnvironment("Catch-bsuite", rows=6).max_steps == 5


def test_equal_environments_compile_once():
    traces = []

    @eqx.filter_jit
    def reset(env):
        traces.append(None)
        return env.reset(key=jr.key(0))

    for _ in range(3):
        reset(GymnaxEnvironment("Catch-bsuite"))
    reset(GymnaxEnvironment("Catch-bsuite", rows=9))
    assert len(traces) == 2


@pytest.mark.parametrize("kind", [kind for kind, (_, _, pixels) in OBSERVATIONS.items() if pixels])
def test_observations_become_pixels(kind):
    env = GymnaxEnvironment("Echo-test", observation=kind)
    frame = env.reset(key=jr.key(0))[1].frame
    np.testing.assert_array_equal(frame.reshape(-1), OBSERVATIONS[kind][2])


@pytest.mark.parametrize("kind", ["unbounded", "pair"])
def test_observations_without_a_scale_are_refused(kind):
    with pytest.raises(InputError, match="Echo-test.*03_own_environment"):
        GymnaxEnvironment("Echo-test", observation=kind)


@pytest.mark.parametrize("kind", ["unbounded", "tuple"])
def test_actions_without_a_factoring_are_refused(kind):
    with pytest.raises(InputError, match="action space"):
        GymnaxEnvironment("Echo-test", action=kind)


@pytest.mark.parametrize(
    ("unit", "total"), [([-1, -1], -2.0), ([1, 1], 3.0), ([0, 0], 0.5), ([5, -5], 2.0), ([0.5, 0], 1.5)]
)
def test_continuous_actions_are_scaled_to_the_box_and_clipped(unit, total):
    env = GymnaxEnvironment("Echo-test", action="box")
    assert env.spec.action.continuous_dim == 2
    state, _ = env.reset(key=jr.key(0))
    action = Action(jnp.zeros(0, jnp.int32), jnp.array(unit, jnp.float32))
    assert env.step(state, action, key=jr.key(0))[1].reward == total


def test_integer_rewards_become_floats():
    env = GymnaxEnvironment("Echo-test")
    state, _ = env.reset(key=jr.key(0))
    reward = env.step(state, Action(jnp.array([3]), jnp.zeros(0)), key=jr.key(0))[1].reward
    assert (reward.dtype, float(reward)) == (jnp.float32, 3.0)


@pytest.mark.parametrize("blur", [0.8, 1.5])
def test_a_grid_out_of_focus_shows_at_each_place_the_brightest_of_its_spread_cells(blur):
    sharp, soft = (GymnaxEnvironment("Breakout-MinAtar", blur=b) for b in (0.0, blur))
    (_, one), (_, two) = (env.reset(key=jr.key(4)) for env in (sharp, soft))
    lit = np.asarray(one.frame) == 255
    assert lit.any()
    for row, column, channel in np.ndindex(10, 10, 4):
        cells = np.argwhere(lit[..., channel])
        distance = min(((cells - (row, column)) ** 2).sum(axis=1), default=np.inf)
        assert abs(int(two.frame[row, column, channel]) - 255 * np.exp(-distance / (2 * blur**2))) <= 0.51


def test_a_slight_blur_keeps_exactly_the_lit_cells_above_half_brightness():
    sharp, soft = (GymnaxEnvironment("Breakout-MinAtar", blur=b) for b in (0.0, 0.84))
    (_, one), (_, two) = (env.reset(key=jr.key(5)) for env in (sharp, soft))
    np.testing.assert_array_equal(np.asarray(two.frame) > 127, np.asarray(one.frame) > 127)


@pytest.mark.parametrize("blur", [-0.5, 5.0, "1", True])
def test_a_blur_outside_its_range_is_told(blur):
    with pytest.raises(InputError, match=r"env.kwargs.blur: got .*, expected (a number|one value of type)"):
        make(EnvConfig(id="Catch-bsuite", kwargs={"blur": blur}))


def test_a_whole_number_will_do_for_a_blur():
    assert make(EnvConfig(id="Catch-bsuite", kwargs={"blur": 1})).blur == 1.0
    assert make(EnvConfig(id="CartPole-pixels", kwargs={"blur": 1})).blur == 1.0


def test_64_bits_of_the_program_around_change_nothing():
    with jax.enable_x64(True):
        env = GymnaxEnvironment("Catch-bsuite")
        (episode,) = collect(env, random_policy(env.spec), episodes=1, key=jr.key(0))
    assert episode.reward.dtype == np.float32 and episode.length == 10
