"""MPC in the simulators of the DeepMind Control Suite: its rewards are the suite's, and it plays better than chance."""

import jax.random as jr
import numpy as np
import pytest

from dreamer4 import envs
from dreamer4.baselines import PLAYERS
from dreamer4.baselines.mpc import SEARCHES, Moments, Planner, _lines
from dreamer4.config import EnvConfig
from dreamer4.data import collect, random_policy
from dreamer4.envs import CounterEnvironment, HostEnvironment
from dreamer4.envs.dm_control import DMControlSimulator
from dreamer4.errors import InputError


def scatter(task, physics, chance):
    """Puts a simulator anywhere, and often where its task pays."""
    q, near = physics.data.qpos, chance.normal(0, 0.05, 2)
    if task == "pendulum-swingup":
        q[:] = chance.normal(0, 0.2)
    elif task.startswith("reacher"):
        physics.model.geom_pos[physics.model.name2id("target", "geom"), :2] = (
            physics.named.data.geom_xpos["finger", :2] + near
        )
    elif task == "ball-in-cup-catch":
        q[2:] = q[:2] + [0, 0.35] + near
    else:
        q[:] += chance.normal(0, 0.3, len(q))


def test_lines_run_from_knot_to_knot_and_the_last_goes_on():
    np.testing.assert_allclose(_lines(np.array([0.0, 4.0]), np.array([0, 1, 4, 9])) @ [1.0, 3.0], [1, 1.5, 3, 3])


def test_other_worlds_are_refused():
    with pytest.raises(InputError, match="mpc plays tasks of dm_control"):
        PLAYERS["mpc"](CounterEnvironment(5, 3))


class TestSuite:
    @pytest.fixture(autouse=True)
    def suite(self):
        pytest.importorskip("dm_control")

    @pytest.mark.parametrize("task", SEARCHES)
    def test_rewards_are_those_of_the_suite(self, task):
        simulator = DMControlSimulator(task, 8, "fast", None)
        chance, ours, paid = np.random.default_rng(0), [], []
        simulator.reset(1)
        physics = simulator.physics
        for step in range(40):
            if step % 4 == 0:
                scatter(task, physics, chance)
            action = chance.uniform(-1, 1, simulator.action.continuous_dim).astype(np.float32)
            paid.append(simulator.step(np.zeros(0, np.int32), action)[0])
            seen = physics.data.qpos, physics.data.qvel, physics.control(), physics.data.sensordata[:1].sum()
            moment = Moments(*(np.array(x)[None, None] for x in seen), physics.model.ptr)
            ours.append(SEARCHES[task].reward(moment)[0].item())
        np.testing.assert_allclose(ours, paid, atol=1e-6)
        assert np.ptp(paid) > 0

    def test_a_look_leaves_the_simulator_as_it_is_and_sees_the_same_twice(self):
        simulator = DMControlSimulator("point-mass-easy", 8, "fast", None)
        simulator.reset(0)
        before = simulator.physics.get_state().copy()
        plans = [Planner("point-mass-easy", 2)(simulator, np.zeros((6, 2), np.float32)) for _ in range(2)]
        np.testing.assert_array_equal(simulator.physics.get_state(), before)
        np.testing.assert_array_equal(*plans)
        assert np.abs(plans[0]).max() > 0.01 and np.abs(plans[0]).max() <= 1

    def test_it_earns_what_chance_does_not(self):
        env = envs.make(EnvConfig(id="dm_control/point_mass-easy", kwargs={"size": 8, "max_steps": 100}))
        assert isinstance(env, HostEnvironment)
        good, bad = (
            np.mean([e.reward.sum() for e in collect(env, policy, episodes=2, key=jr.key(0))])
            for policy in (PLAYERS["mpc"](env), random_policy(env.spec))
        )
        assert good > bad + 50  # of at most 200
