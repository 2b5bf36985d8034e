"""Continuous control from pixels, jittable: small physics, drawn so that a tenth of a pixel shows.

Each picture is of one instant, so speeds must be read from the frames before. Episodes start anywhere and end by their
time limit alone; a reward lies in [0, 1] a decision. The tasks and the shape of their rewards follow the DeepMind
control suite (arXiv 1801.00690); the physics are our own and simpler.
"""

import math
from abc import abstractmethod

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from dreamer4.envs.base import AbstractEnvironment
from dreamer4.errors import InputError
from dreamer4.types import Action, ActionSpec, DataSpec, TimeStep, to_uint8


# How far pictures are out of focus: a sharp edge changes one pixel abruptly, a soft one many gradually.
_BLUR = 1 / 14  # standard deviation, sides of the frame


def tolerance(x: Float[Array, "*dims"], bound: float, margin: float) -> Float[Array, "*dims"]:
    """Returns 1 where |x| is at most `bound`, falling off as a Gaussian to 0.1 at `margin` beyond it."""
    beyond = jnp.maximum(jnp.abs(x) - bound, 0.0) / margin
    return jnp.exp(math.log(0.1) * jnp.square(beyond))


def segment(size: int, start: Float[Array, "2"], end: Float[Array, "2"]) -> Float[Array, "{size} {size}"]:
    """Draws a line out of focus, as `exp(-d^2 / 2 sigma^2)` at distance d; of no length it is a dot.

    Args:
        size: pixels of a side.
        start: one end, right and up, the frame reaching from -1 to 1.
        end: the other end.
    """
    across = (2 * jnp.arange(size, dtype=jnp.float32) + 1) / size - 1
    place = jnp.stack(jnp.meshgrid(across, -across), axis=-1)
    along, offset = end - start, place - start[None, None]
    share = jnp.sum(offset * along[None, None], axis=-1) / jnp.maximum(jnp.sum(jnp.square(along)), 1e-9)
    nearest = jnp.clip(share, 0.0, 1.0)[..., None] * along[None, None]
    return jnp.exp(-jnp.sum(jnp.square(offset - nearest), axis=-1) / (2 * (2 * _BLUR) ** 2))


class ControlState(eqx.Module):
    """Positions and speeds, and how many decisions the episode has seen."""

    body: Float[Array, " N"]
    step: Int[Array, ""]


class AbstractControl(AbstractEnvironment):
    """What these tasks share: the timing. Physics, reward and picture are each task's own.

    Attributes:
        dims: dimensions of the action.
        channels: of the picture.
    """

    dims: eqx.AbstractClassVar[int]
    channels: eqx.AbstractClassVar[int]
    max_steps: int = eqx.field(static=True)
    size: int = eqx.field(static=True)

    def __check_init__(self):
        if not 8 <= self.size <= 256 or self.max_steps < 1:
            raise InputError(
                f"{type(self).__name__}: got size {self.size} and max_steps {self.max_steps}, expected 8 to 256 pixels "
                "and at least one step."
            )

    @property
    def spec(self) -> DataSpec:
        return DataSpec((self.size, self.size, self.channels), ActionSpec((), self.dims))

    @abstractmethod
    def start(self, key: PRNGKeyArray) -> Float[Array, " N"]:
        """Draws positions and speeds at the start of an episode."""

    @abstractmethod
    def advance(self, body: Float[Array, " N"], action: Float[Array, " D"]) -> Float[Array, " N"]:
        """Moves on by one decision; the action lies in [-1, 1]."""

    @abstractmethod
    def reward(self, body: Float[Array, " N"], action: Float[Array, " D"]) -> Float[Array, ""]:
        """Returns how good it is to have come here by an action, in [0, 1]."""

    @abstractmethod
    def draw(self, body: Float[Array, " N"]) -> Float[Array, "H W C"]:
        """Returns the picture, in [0, 1]."""

    def observe(self, state: ControlState) -> Float[Array, " S"]:
        """Returns positions and speeds, and their sines and cosines, since some are angles."""
        return jnp.concatenate([state.body, jnp.sin(state.body), jnp.cos(state.body)])

    def reset(self, *, key: PRNGKeyArray) -> tuple[ControlState, TimeStep]:
        state = ControlState(self.start(key), jnp.zeros((), jnp.int32))
        return state, self._show(state, jnp.zeros(()), jnp.ones((), bool))

    def step(self, state: ControlState, action: Action, *, key: PRNGKeyArray) -> tuple[ControlState, TimeStep]:
        push = jnp.clip(action.continuous, -1.0, 1.0)
        opens = state.step >= self.max_steps
        body = jnp.where(opens, self.start(key), self.advance(state.body, push))
        reward = jnp.where(opens, 0.0, self.reward(body, push))
        state = ControlState(body, jnp.where(opens, 0, state.step + 1))
        return state, self._show(state, reward, opens)

    def _show(self, state: ControlState, reward: Float[Array, ""], is_first: Bool[Array, ""]) -> TimeStep:
        frame, no = to_uint8(self.draw(state.body)), jnp.zeros((), bool)
        return TimeStep(frame, reward, is_first, state.step >= self.max_steps, no)


class PendulumSwingup(AbstractControl):
    """A pendulum whose motor is weaker than gravity: it must swing before it can stand. One dimension."""

    dims = 1
    channels = 1
    max_steps: int = eqx.field(static=True, default=60)
    size: int = eqx.field(static=True, default=16)

    def start(self, key: PRNGKeyArray) -> Float[Array, " N"]:
        key_angle, key_speed = jr.split(key)
        angle = jr.uniform(key_angle, minval=-jnp.pi, maxval=jnp.pi)
        return jnp.stack([angle, jr.uniform(key_speed, minval=-1.0, maxval=1.0)])

    def advance(self, body: Float[Array, " N"], action: Float[Array, " D"]) -> Float[Array, " N"]:
        angle, speed = body
        for _ in range(4):
            speed = jnp.clip(speed + 0.02 * (15.0 * jnp.sin(angle) + 6.0 * action[0]), -8.0, 8.0)
            angle = angle + 0.02 * speed
        return jnp.stack([jnp.mod(angle + jnp.pi, 2 * jnp.pi) - jnp.pi, speed])

    def reward(self, body: Float[Array, " N"], action: Float[Array, " D"]) -> Float[Array, ""]:
        return (1 + jnp.cos(body[0])) / 2 * (1 + tolerance(body[1], 1.0, 8.0)) / 2

    def draw(self, body: Float[Array, " N"]) -> Float[Array, "H W C"]:
        tip = 0.8 * jnp.stack([jnp.sin(body[0]), jnp.cos(body[0])])
        return segment(self.size, jnp.zeros(2), tip)[..., None]


class PointGoal(AbstractControl):
    """A point with inertia on a plane that must come to a goal and stay. Two dimensions; the goal is one channel."""

    dims = 2
    channels = 2
    max_steps: int = eqx.field(static=True, default=40)
    size: int = eqx.field(static=True, default=16)

    def start(self, key: PRNGKeyArray) -> Float[Array, " N"]:
        places = jr.uniform(key, (4,), minval=-0.8, maxval=0.8)
        return jnp.concatenate([places[:2], jnp.zeros(2), places[2:]])

    def advance(self, body: Float[Array, " N"], action: Float[Array, " D"]) -> Float[Array, " N"]:
        speed = 0.8 * body[2:4] + 0.05 * action
        place = jnp.clip(body[:2] + speed, -1.0, 1.0)
        return jnp.concatenate([place, place - body[:2], body[4:]])  # a wall stops it

    def reward(self, body: Float[Array, " N"], action: Float[Array, " D"]) -> Float[Array, ""]:
        return tolerance(jnp.sqrt(jnp.sum(jnp.square(body[:2] - body[4:])) + 1e-12), 0.15, 0.15)

    def draw(self, body: Float[Array, " N"]) -> Float[Array, "H W C"]:
        return jnp.stack([segment(self.size, place, place) for place in (body[:2], body[4:])], axis=-1)


class Reacher(AbstractControl):
    """An arm of two links that must hold its hand on a goal within reach. Two dimensions; the goal is one channel."""

    dims = 2
    channels = 2
    max_steps: int = eqx.field(static=True, default=50)
    size: int = eqx.field(static=True, default=16)

    def start(self, key: PRNGKeyArray) -> Float[Array, " N"]:
        angles, (turn, share) = jr.uniform(key, (2, 2))
        # Behind the shoulder the arm is folded, so goals lie where both links are of use.
        reach = 0.2 + 0.65 * share
        goal = reach * jnp.stack([jnp.cos(2 * jnp.pi * turn), jnp.sin(2 * jnp.pi * turn)])
        return jnp.concatenate([jnp.pi * (2 * angles - 1), jnp.zeros(2), goal])

    def advance(self, body: Float[Array, " N"], action: Float[Array, " D"]) -> Float[Array, " N"]:
        angles, speeds = body[:2], body[2:4]
        for _ in range(4):
            speeds = speeds + 0.02 * (40.0 * action - 6.0 * speeds)
            angles = angles + 0.02 * speeds
        angles = jnp.mod(angles + jnp.pi, 2 * jnp.pi) - jnp.pi
        return jnp.concatenate([angles, speeds, body[4:]])

    def _joints(self, body: Float[Array, " N"]) -> tuple[Float[Array, "2"], Float[Array, "2"]]:
        first, second = body[0], body[0] + body[1]
        elbow = 0.45 * jnp.stack([jnp.cos(first), jnp.sin(first)])
        return elbow, elbow + 0.45 * jnp.stack([jnp.cos(second), jnp.sin(second)])

    def reward(self, body: Float[Array, " N"], action: Float[Array, " D"]) -> Float[Array, ""]:
        away = self._joints(body)[1] - body[4:]
        return tolerance(jnp.sqrt(jnp.sum(jnp.square(away)) + 1e-12), 0.1, 0.3)

    def draw(self, body: Float[Array, " N"]) -> Float[Array, "H W C"]:
        elbow, hand = self._joints(body)
        arm = jnp.maximum(segment(self.size, jnp.zeros(2), elbow), segment(self.size, elbow, hand))
        return jnp.stack([arm, segment(self.size, body[4:], body[4:])], axis=-1)


class CartPoleSwingup(AbstractControl):
    """A pole on a cart that must be swung up and balanced in the middle of a track with walls. One dimension."""

    dims = 1
    channels = 1
    max_steps: int = eqx.field(static=True, default=125)
    size: int = eqx.field(static=True, default=24)

    def start(self, key: PRNGKeyArray) -> Float[Array, " N"]:
        place, angle, *speeds = jr.uniform(key, (4,), minval=-1.0, maxval=1.0)
        return jnp.stack([place, jnp.pi * angle, *(0.1 * speed for speed in speeds)])

    def advance(self, body: Float[Array, " N"], action: Float[Array, " D"]) -> Float[Array, " N"]:
        """Solves a cart of 1 kg and a uniform pole of 0.1 kg and 1 m, pushed by at most 10 N, angle from upright."""

        def substep(_, body):
            place, angle, speed, turning = body
            sin, cos = jnp.sin(angle), jnp.cos(angle)
            push = (10.0 * action[0] + 0.05 * turning**2 * sin) / 1.1
            turn = (9.8 * sin - cos * push) / (0.5 * (4.0 / 3.0 - 0.1 * cos**2 / 1.1))
            speed = speed + 0.01 * (push - 0.05 * turn * cos / 1.1)
            turning = turning + 0.01 * turn
            place, angle = place + 0.01 * speed, angle + 0.01 * turning
            speed = jnp.where(jnp.abs(place) > 1.8, 0.0, speed)
            return jnp.stack([jnp.clip(place, -1.8, 1.8), angle, speed, turning])

        # A loop is compiled by itself, so that its rounding does not depend on the program around it: what is played
        # again from the same keys and actions is the same, although a pole doubles any error twenty times over.
        place, angle, speed, turning = jax.lax.fori_loop(0, 4, substep, body)
        return jnp.stack([place, jnp.mod(angle + jnp.pi, 2 * jnp.pi) - jnp.pi, speed, turning])

    def reward(self, body: Float[Array, " N"], action: Float[Array, " D"]) -> Float[Array, ""]:
        upright = (jnp.cos(body[1]) + 1) / 2
        centred = (1 + tolerance(body[0], 0.0, 2.0)) / 2
        gentle = (4 + jnp.maximum(1 - jnp.square(action[0]), 0.0)) / 5
        slow = (1 + tolerance(body[3], 0.0, 5.0)) / 2
        return upright * centred * gentle * slow

    def draw(self, body: Float[Array, " N"]) -> Float[Array, "H W C"]:
        cart = jnp.stack([body[0] / 3.0, jnp.zeros(())])
        pole = 0.6 * jnp.stack([jnp.sin(body[1]), jnp.cos(body[1])])
        half = jnp.array([0.12, 0.0])
        return jnp.maximum(segment(self.size, cart - half, cart + half), segment(self.size, cart, cart + pole))[
            ..., None
        ]
