"""An expert of the DeepMind Control Suite that needs no training: sampling MPC on the true simulator.

At each step plans are drawn around the last one, MuJoCo plays them from the state as it is, and the next plan is their
mean, weighted by what they earn (model predictive path integral control, arXiv 1509.01149, with weights over the range
of returns). A plan is a few knots with lines between. Rewards are those of the suite, over whole batches of states;
where the suite pays at the goal alone, a little is added that shows plans the way.
"""

import importlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, PRNGKeyArray, PyTree

from dreamer4.data import AbstractPolicy
from dreamer4.envs import AbstractEnvironment, HostEnvironment
from dreamer4.envs.dm_control import PREFIX, DMControlSimulator
from dreamer4.errors import InputError, nearest
from dreamer4.types import Action, TimeStep


_SPREADS = (0.3, 0.8)  # of knots around the last plan, in turn
_TEMPERATURE = 0.05  # of the weights, in shares of the range of returns
_STEPS_A_KNOT = 4


class Moments(NamedTuple):
    """What plans come to, at the end of every step of control.

    Attributes:
        q: positions of the joints, as all others with the plans and their steps leading.
        v: speeds of the joints.
        u: controls that led there.
        speed: of the body forwards, where a sensor tells it.
        model: the `mujoco.MjModel`.
    """

    q: Float[np.ndarray, "plans steps _"]
    v: Float[np.ndarray, "plans steps _"]
    u: Float[np.ndarray, "plans steps _"]
    speed: Float[np.ndarray, "plans steps"]
    model: Any


def _tolerance(x: np.ndarray, low: float, high: float, **margin: Any) -> np.ndarray:
    from dm_control.utils import rewards  # pyright: ignore[reportMissingImports]

    return np.asarray(rewards.tolerance(x, (low, high), **margin))


def _calm(m: Moments) -> np.ndarray:
    small = _tolerance(m.u, 0, 0, margin=1, value_at_margin=0, sigmoid="quadratic").mean(axis=-1)
    return (4 + small) / 5


Rewards = tuple[np.ndarray, np.ndarray | float]


def _pendulum(m: Moments) -> Rewards:
    upright = np.cos(m.q[..., 0])
    return _tolerance(upright, np.cos(np.deg2rad(8)), 1), 0.1 * upright


def _point_mass(m: Moments) -> Rewards:
    target = m.model.geom("target")
    distance, radius = np.linalg.norm(m.q[..., :2] - target.pos[:2], axis=-1), target.size[0]
    return _tolerance(distance, 0, radius, margin=radius) * _calm(m), -0.1 * distance


def _reacher(m: Moments) -> Rewards:
    target, angle = m.model.geom("target"), np.cumsum(m.q[..., :2], axis=-1)
    length = np.array([m.model.body(name).pos[0] for name in ("hand", "finger")])
    finger = np.stack([np.cos(angle) @ length, np.sin(angle) @ length], axis=-1)
    distance = np.linalg.norm(finger - target.pos[:2], axis=-1)
    return _tolerance(distance, 0, target.size[0] + m.model.geom("finger").size[0]), -0.1 * distance


def _cup(m: Moments) -> Rewards:
    cup, ball = (m.model.body(name).pos[[0, 2]] + m.q[..., i : i + 2] for i, name in ((0, "cup"), (2, "ball")))
    site = m.model.site("target")
    away = np.abs(ball - cup - site.pos[[0, 2]])
    inside = np.all(away < site.size[[0, 2]] - m.model.geom("ball").size[0], axis=-1)
    return inside.astype(float), 0.05 * (ball[..., 1] > cup[..., 1]) - 0.1 * np.linalg.norm(away, axis=-1)


def _cartpole(m: Moments) -> Rewards:
    upright = (np.cos(m.q[..., 1]) + 1) / 2
    centred = (1 + _tolerance(m.q[..., 0], 0, 0, margin=2)) / 2
    slow = (1 + _tolerance(m.v[..., 1], 0, 0, margin=5)) / 2
    return upright * _calm(m) * slow * centred, 0.0


def _acrobot(m: Moments) -> Rewards:
    angle, target = np.cumsum(m.q[..., :2], axis=-1), m.model.site("target")
    length = np.array([m.model.body("lower_arm").pos[2], m.model.site("tip").pos[2]])
    up = m.model.body("upper_arm").pos[2] + np.cos(angle) @ length
    distance = np.hypot(np.sin(angle) @ length - target.pos[0], up - target.pos[2])
    return _tolerance(distance, 0, target.size[0], margin=1), -0.1 * distance


def _walker(m: Moments, speed: float) -> Rewards:
    height = m.model.body("torso").pos[2] + m.q[..., 0]
    stand = (3 * _tolerance(height, 1.2, np.inf, margin=0.6) + (1 + np.cos(m.q[..., 2])) / 2) / 4
    if not speed:
        return stand, 0.0
    move = _tolerance(m.speed, speed, np.inf, margin=speed / 2, value_at_margin=0.5, sigmoid="linear")
    return stand * (5 * move + 1) / 6, 0.0


def _cheetah(m: Moments) -> Rewards:
    return _tolerance(m.speed, 10, np.inf, margin=10, value_at_margin=0, sigmoid="linear"), 0.0


class Search(NamedTuple):
    """How a task is played.

    Attributes:
        reward: that of the suite at every moment, and what shows plans the way besides.
        plans: drawn at each step.
        horizon: actions that a plan looks ahead, at least 2.
    """

    reward: Callable[[Moments], Rewards]
    plans: int
    horizon: int


# By name of the task; the costs of an episode of 500 actions are in docs/environments.md.
SEARCHES = {
    "pendulum-swingup": Search(_pendulum, 32, 30),
    "point-mass-easy": Search(_point_mass, 32, 20),
    "reacher-easy": Search(_reacher, 32, 20),
    "reacher-hard": Search(_reacher, 32, 20),
    "ball-in-cup-catch": Search(_cup, 16, 16),
    "cartpole-swingup": Search(_cartpole, 64, 60),
    "acrobot-swingup": Search(_acrobot, 64, 60),
    "walker-stand": Search(lambda m: _walker(m, 0), 32, 15),
    "walker-walk": Search(lambda m: _walker(m, 1), 32, 15),
    "walker-run": Search(lambda m: _walker(m, 8), 32, 15),
    "cheetah-run": Search(_cheetah, 64, 20),
}


@dataclass(frozen=True)
class Planner:
    """Improves a plan by a look at a simulator, which it leaves as it is.

    Attributes:
        task: of `SEARCHES`.
        repeat: steps of control that carry out an action.
    """

    task: str
    repeat: int

    def __call__(
        self, simulator: DMControlSimulator, last: Float32[np.ndarray, "knots dims"]
    ) -> Float32[np.ndarray, "knots dims"]:
        """Returns the plan for now, given that of one action before. Chance follows from the state alone."""
        search, (knots, _) = SEARCHES[self.task], last.shape
        chance = np.random.default_rng(zlib.crc32(simulator.physics.get_state().tobytes()))
        at = np.linspace(0, search.horizon - 1, knots)
        spread = np.resize(_SPREADS, search.plans)[:, None, None]
        plans = _lines(at, at + 1) @ last + spread * chance.standard_normal((search.plans, *last.shape))
        plans[0] = _lines(at, at + 1) @ last
        plans = np.clip(plans, -1, 1)
        actions = np.repeat(_lines(at, np.arange(search.horizon)) @ plans, self.repeat, axis=1)
        controls = simulator.low + (actions + 1) / 2 * (simulator.high - simulator.low)
        reward, aim = search.reward(_played(simulator, controls))
        earned = (reward + aim).sum(axis=1)
        weights = np.exp((earned - earned.max()) / (_TEMPERATURE * np.ptp(earned) + 1e-9))
        return np.tensordot(weights / weights.sum(), plans, 1).astype(np.float32)


def _played(simulator: DMControlSimulator, controls: Float[np.ndarray, "plans steps _"]) -> Moments:
    """Returns what controls lead to from the state as it is, by a copy of its data."""
    mujoco: Any = importlib.import_module("mujoco")
    rollout: Any = importlib.import_module("mujoco.rollout")
    model, steps = simulator.physics.model.ptr, simulator.steps
    whole = mujoco.mjtState.mjSTATE_FULLPHYSICS  # time, positions, speeds, and more where a model has more
    state = np.zeros(mujoco.mj_stateSize(model, whole))
    mujoco.mj_getState(model, simulator.physics.data.ptr, state, whole)
    states, sensors = rollout.rollout(model, mujoco.MjData(model), state[None], np.repeat(controls, steps, axis=1))
    q, v, _ = np.split(states[:, steps - 1 :: steps, 1:], [model.nq, model.nq + model.nv], axis=-1)
    return Moments(q, v, controls, sensors[:, steps - 1 :: steps, :1].sum(-1), model)


def _lines(at: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Returns the weights of knots at `at` in the values at `where`, `[where, knots]`; the last knot goes on."""
    return np.stack([np.interp(where, at, one) for one in np.eye(len(at))], axis=1)


class MPCPlayer(AbstractPolicy):
    """Plays a task by plans; its memory is the newest plan."""

    env: HostEnvironment
    task: str = eqx.field(static=True)

    def init(self) -> Float[Array, "knots dims"]:
        return jnp.zeros((SEARCHES[self.task].horizon // _STEPS_A_KNOT + 1, self.env.spec.action.continuous_dim))

    def peek(self, memory: PyTree, state: PyTree) -> Float[Array, "knots dims"]:
        return self.env.consult(state, Planner(self.task, self.env.action_repeat), memory)

    def __call__(
        self, memory: PyTree, time_step: TimeStep, action: Action, action_mask: Bool[Array, ""], *, key: PRNGKeyArray
    ) -> tuple[Action, PyTree]:
        return Action(action.discrete, memory[0]), memory


def mpc_player(env: AbstractEnvironment) -> MPCPlayer:
    """Returns the player of a task of the suite.

    Raises:
        InputError: if the environment is none of `SEARCHES`.
    """
    name = env.name.removeprefix(PREFIX) if isinstance(env, HostEnvironment) else type(env).__name__
    if not isinstance(env, HostEnvironment) or name not in SEARCHES:
        raise InputError(
            f"data.policy: mpc plays tasks of dm_control whose rewards it knows, got {name}. {nearest(name, SEARCHES)}"
        )
    return MPCPlayer(env, name)
