"""The suite as it is driven here against the suite driven by hand."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from dreamer4.config import EnvConfig
from dreamer4.data import collect, random_policy
from dreamer4.envs import HostEnvironment, blind, make, seed_of
from dreamer4.errors import InputError
from dreamer4.types import Action, ActionSpec


pytest.importorskip("dm_control")
try:
    from dreamer4.envs import dm_control

    dm_control.DMControlSimulator("pendulum-swingup", 8, "fast", None).picture()
except Exception as error:
    pytest.skip(f"nothing draws here: {error}", allow_module_level=True)


def test_the_same_seeds_play_what_the_suite_plays_by_hand():
    from dm_control import suite

    env = make(EnvConfig(id="cup-catch", kwargs={"size": 16, "max_steps": 6}))
    assert env.spec.action == ActionSpec((), 2) and env.spec.frame_shape == (16, 16, 3)
    episodes = collect(env, random_policy(env.spec), episodes=4, num_envs=2, key=jr.key(0))
    again = collect(env, random_policy(env.spec), episodes=4, num_envs=2, key=jr.key(0))
    for episode, other in zip(episodes, again, strict=True):
        np.testing.assert_array_equal(episode.frame, other.frame)
        assert episode.key is not None
        seed = int(seed_of(jr.wrap_key_data(jnp.asarray(episode.key[0]))))
        hand = suite.load("ball_in_cup", "catch", task_kwargs={"random": seed})
        hand.reset()
        frames, rewards = [hand.physics.render(16, 16, camera_id=0)], [0.0]
        for action in episode.continuous[1:]:
            rewards.append(sum(hand.step(np.clip(action, -1, 1)).reward for _ in range(2)))  # action repeat 2
            frames.append(hand.physics.render(16, 16, camera_id=0))
        np.testing.assert_allclose(episode.reward, rewards, atol=1e-6)
        # `fast` leaves shadows, reflections and smooth edges out, and the same things where they were.
        assert np.abs(episode.frame - np.asarray(frames, float)).mean() < 20
        assert episode.length == 7 and not episode.is_terminal
    assert len({e.frame.tobytes() for e in episodes}) == 4


def test_the_state_is_told_whether_pictures_are_drawn_or_not():
    config = EnvConfig(id="cup-catch", kwargs={"size": 8, "max_steps": 6})
    drawn, undrawn = make(config), blind(config)
    assert isinstance(undrawn, HostEnvironment) and undrawn.senses == 8
    simulator = dm_control.DMControlSimulator("ball-in-cup-catch", 8, "none", None)
    simulator.reset(int(seed_of(jr.key(3))))
    told = [[], []]
    for states, env in zip(told, (drawn, undrawn), strict=True):
        state, step = env.reset(key=jr.key(3))
        for _ in range(3):
            states.append(np.asarray(env.observe(state)))
            state, step = env.step(state, Action(jnp.zeros(0, jnp.int32), jnp.array([0.5, -1.0])), key=jr.key(4))
        assert (step.frame.max() == 0) == (env is undrawn)
    for seen, other in zip(*told, strict=True):
        np.testing.assert_array_equal(seen, other)
        np.testing.assert_array_equal(seen, simulator.observation())
        for _ in range(2):
            simulator.step(np.zeros(0, np.int32), np.array([0.5, -1.0], np.float32))
    assert np.ptp(np.stack(told[0]), axis=0).max() > 0.01


def test_tasks_have_the_names_that_people_use_and_their_own_length():
    names = ("dm_control/point_mass-easy", "pointmass-easy", "reacher-easy", "dm_control/cartpole-swingup_sparse")
    found = [dm_control.find_task(name.removeprefix(dm_control.PREFIX)) for name in names]
    assert found == ["point-mass-easy", "point-mass-easy", "reacher-easy", "cartpole-swingup-sparse"]
    assert make(EnvConfig(id="pendulum-swingup", kwargs={"size": 8})).max_steps == 500
    with pytest.raises(InputError, match="pendulum-swingup"):
        make(EnvConfig(id="dm_control/pendulum-swinup"))
    with pytest.raises(InputError, match="quality"):
        make(EnvConfig(id="pendulum-swingup", kwargs={"quality": "best"}))
