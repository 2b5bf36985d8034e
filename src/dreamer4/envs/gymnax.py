"""gymnax environments behind the contract of `AbstractEnvironment`.

gymnax resets by itself inside `step`, and hands the true last frame aside. This adapter stands on the two functions
beneath, `reset_env` and `step_env`, where nothing is replaced. It also mends what would surprise a model: declared and
real dtypes disagree, states mix Python numbers with arrays, rewards may be integers, and bounds may be loose.

gymnax takes seconds to import (it draws matplotlib in), so it is imported when the first environment is built.
"""

import contextlib
import dataclasses
import functools
import json
import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree, Shaped, UInt8

from dreamer4.envs.base import AbstractEnvironment
from dreamer4.errors import InputError, nearest
from dreamer4.precision import in_32_bits
from dreamer4.types import Action, ActionSpec, DataSpec, TimeStep, to_uint8


# It fetches its images from the network into a shared temporary folder.
REFUSED = frozenset({"MNISTBandit-bsuite"})

# Declared limits that a scan could not afford: in Catch the ball falls one row a step and then the episode is over.
_TIGHTER_LIMIT = {"Catch-bsuite": lambda inner: inner.rows - 1}


class Game(eqx.Module):
    """A gymnax environment and its parameters: bare transitions without resets, in dtypes that never change."""

    inner: Any = eqx.field(static=True)
    params: PyTree
    action_spec: ActionSpec = eqx.field(static=True)
    _dtypes: tuple[str, ...] = eqx.field(static=True)

    @in_32_bits
    def __init__(self, env_id: str, *, params: dict[str, Any] | None = None, **kwargs: Any):
        """Looks the game up. Equal arguments share one gymnax object, so nothing compiles twice.

        Args:
            env_id: gymnax id.
            params: changes to the gymnax parameters.
            **kwargs: arguments of `gymnax.make`, JSON values.

        Raises:
            InputError: if the id, an argument or a parameter is unknown or makes no game, if the game would download
                something, or if its actions have no factors.
        """
        try:
            arguments = json.dumps(kwargs, sort_keys=True)
        except TypeError as error:
            raise InputError(
                f"{env_id}: got arguments {kwargs}, expected JSON values. Use numbers, strings and lists."
            ) from error
        self.inner, default_params = _make(env_id, arguments)
        self.params = _replace(env_id, default_params, params or {})
        if self.max_steps < 1:
            raise InputError(
                f"env.kwargs.params.max_steps_in_episode: got {self.params.max_steps_in_episode}, expected at least 1 "
                f"for {env_id}."
            )
        try:
            self.action_spec = _action_spec(env_id, self.inner.action_space(self.params))
            self._dtypes = _dtypes(self.inner, self.params)
        except (TypeError, ValueError, IndexError, OverflowError) as error:
            if not kwargs and not params:
                raise  # it is not what was asked for that is wrong
            raise InputError(
                f"env.kwargs: {env_id} does not run with arguments {arguments} and params {params or {}}: "
                f"{str(error).splitlines()[0]}"
            ) from error

    @property
    def max_steps(self) -> int:
        """The declared limit of actions in an episode."""
        return math.ceil(self.params.max_steps_in_episode)  # gymnax truncates at the first whole time beyond it

    @in_32_bits
    def start(self, key: PRNGKeyArray) -> tuple[PyTree, PyTree]:
        """Returns observation and state at the start of an episode."""
        with lenient():
            return self._cast(self.inner.reset_env(key, self.params))

    @in_32_bits
    def advance(
        self, state: PyTree, action: Action, key: PRNGKeyArray
    ) -> tuple[PyTree, PyTree, Float[Array, ""], Bool[Array, ""], Bool[Array, ""]]:
        """Returns the next observation and state, the reward, and whether the game terminated or reached its limit."""
        with lenient():
            native = self._native(action)
            obs, state, reward, terminated, _ = self.inner.step_env(key, state, native, self.params)
            truncated = self.inner.is_truncated(state, self.params)
            reward, terminated, truncated = (
                jnp.asarray(x, dtype) for x, dtype in ((reward, jnp.float32), (terminated, bool), (truncated, bool))
            )
            return *self._cast((obs, state)), reward, terminated, truncated

    def _native(self, action: Action) -> Array:
        space = self.inner.action_space(self.params)
        if self.action_spec.num_classes:
            return action.discrete[0].astype(space.dtype)
        unit = (jnp.clip(action.continuous, -1.0, 1.0) + 1.0) / 2.0
        low = jnp.broadcast_to(jnp.asarray(space.low, jnp.float32), space.shape)
        high = jnp.broadcast_to(jnp.asarray(space.high, jnp.float32), space.shape)
        return (low + unit.reshape(space.shape) * (high - low)).astype(space.dtype)

    def _cast(self, tree: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
        leaves, structure = jax.tree.flatten(tree)
        return structure.unflatten([jnp.asarray(x, d) for x, d in zip(leaves, self._dtypes, strict=True)])


class GymnaxState(eqx.Module):
    """State of a gymnax environment, and whether it stands at the last frame of an episode."""

    inner: PyTree
    ended: Bool[Array, ""]


class _Moment(eqx.Module):
    """A time step before it is drawn."""

    observation: PyTree
    inner: PyTree
    reward: Float[Array, ""]
    is_first: Bool[Array, ""]
    is_last: Bool[Array, ""]
    is_terminal: Bool[Array, ""]


class AbstractGymnaxEnvironment(AbstractEnvironment):
    """What all environments on top of gymnax share: the timing. How a moment looks is left to the subclass."""

    game: eqx.AbstractVar[Game]

    @abstractmethod
    def frame(self, observation: PyTree, inner: PyTree) -> UInt8[Array, "H W C"]:
        """Draws a moment.

        Args:
            observation: what gymnax observes.
            inner: the state of the game.
        """

    @in_32_bits
    def reset(self, *, key: PRNGKeyArray) -> tuple[GymnaxState, TimeStep]:
        return self._show(self._open(key))

    @in_32_bits
    def step(self, state: GymnaxState, action: Action, *, key: PRNGKeyArray) -> tuple[GymnaxState, TimeStep]:
        moment = jax.lax.cond(
            state.ended,
            lambda: self._open(key),
            lambda: self._advance(state.inner, action, key),
        )
        # Under vmap both sides are computed, so the frame is drawn once, behind them.
        return self._show(moment)

    def _open(self, key: PRNGKeyArray) -> _Moment:
        no = jnp.zeros((), bool)
        return _Moment(*self.game.start(key), jnp.zeros(()), is_first=~no, is_last=no, is_terminal=no)

    def _advance(self, inner: PyTree, action: Action, key: PRNGKeyArray) -> _Moment:
        observation, inner, reward, terminated, truncated = self.game.advance(inner, action, key)
        return _Moment(observation, inner, reward, jnp.zeros((), bool), terminated | truncated, terminated)

    def _show(self, moment: _Moment) -> tuple[GymnaxState, TimeStep]:
        frame = self.frame(moment.observation, moment.inner)
        time_step = TimeStep(frame, moment.reward, moment.is_first, moment.is_last, moment.is_terminal)
        return GymnaxState(moment.inner, moment.is_last), time_step


class GymnaxEnvironment(AbstractGymnaxEnvironment):
    """An environment of gymnax whose observation is an image or a grid, `[H W]` or `[H W C]`.

    Observations in [0, 1] become frames of 0 to 255; integer grids are spread over 0 to 255 by their declared bounds. A
    discrete action space is one discrete component; a box is a continuous vector, scaled from [-1, 1] to its bounds.
    """

    spec: DataSpec = eqx.field(static=True)
    max_steps: int = eqx.field(static=True)
    blur: float = eqx.field(static=True)
    game: Game
    _range: tuple[float, float] = eqx.field(static=True)

    def __init__(self, env_id: str, *, blur: float = 0.0, params: dict[str, Any] | None = None, **kwargs: Any):
        """Builds the environment.

        Args:
            env_id: gymnax id, `Catch-bsuite` for example.
            blur: how far each channel is out of focus, as the standard deviation of a Gaussian, cells, 0 to 4; 0 is
                sharp. A lit cell keeps its full brightness and spreads over its neighbours, and where several meet the
                brightest counts, so up to 0.84 exactly the lit cells are above half brightness.
            params: changes to the gymnax parameters, `{"max_steps_in_episode": 100}` for example.
            **kwargs: arguments of `gymnax.make`, JSON values.

        Raises:
            InputError: if the id, an argument or a parameter is unknown, if the blur lies outside its range, if the
                environment would download something, or if its observations are not images.
        """
        if not 0 <= blur <= 4:
            raise InputError(f"env.kwargs.blur: got {blur}, expected a number of cells, 0 <= blur <= 4.")
        self.blur = float(blur)
        self.game = Game(env_id, params=params, **kwargs)
        self.max_steps = self.game.max_steps
        if env_id in _TIGHTER_LIMIT:
            self.max_steps = min(self.max_steps, _TIGHTER_LIMIT[env_id](self.game.inner))
        action = self.game.action_spec
        obs, _ = jax.eval_shape(self.game.start, jr.key(0))
        self._range = _pixel_range(env_id, obs, self.game.inner.observation_space(self.game.params))
        frame_shape = (*obs.shape, 1) if len(obs.shape) == 2 else obs.shape
        self.spec = DataSpec(frame_shape, action)

    def frame(self, observation: Shaped[Array, "H W *C"], inner: PyTree) -> UInt8[Array, "H W C"]:
        del inner
        low, high = self._range
        frame = observation.reshape(self.spec.frame_shape)
        if observation.dtype == jnp.uint8 and high == 255.0 and not self.blur:
            return frame
        return to_uint8(out_of_focus((frame.astype(jnp.float32) - low) / (high - low), self.blur))


def out_of_focus(frame: Float[Array, "H W C"], blur: float) -> Float[Array, "H W C"]:
    """Returns at each place the brightest of what all pixels show there, each a Gaussian of its own height.

    Args:
        frame: values of at least 0.
        blur: standard deviation, pixels; 0 changes nothing.
    """
    if not blur:
        return frame
    for axis in (0, 1):
        place = jnp.arange(frame.shape[axis])
        gaussian = jnp.exp(-((place[:, None] - place) ** 2) / (2 * blur**2))
        lines = jnp.moveaxis(frame, axis, 0)
        frame = jnp.moveaxis(jnp.max(gaussian[:, :, None, None] * lines, axis=1), 0, axis)
    return frame


def usable_ids() -> list[str]:
    """Returns the ids of gymnax that download nothing; whether one shows an image is seen when it is built."""
    import gymnax

    return sorted(set(gymnax.registered_envs) - REFUSED)


@contextlib.contextmanager
def lenient() -> Iterator[None]:
    """Lets outside code mix dtypes and ranks freely, which a caller's strict rules must not forbid."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@functools.cache
def _make(env_id: str, arguments: str) -> tuple[Any, Any]:
    # Cached because gymnax objects are compared by identity: a second one would compile everything again.
    import gymnax

    if env_id in REFUSED:
        raise InputError(f"Environment {env_id} downloads its data, so it is not offered. Use another gymnax id.")
    if env_id not in usable_ids():
        raise InputError(f"Unknown environment: got {env_id!r}, expected a gymnax id. {nearest(env_id, usable_ids())}")
    try:
        return gymnax.make(env_id, **json.loads(arguments))
    except TypeError as error:
        raise InputError(f"env.kwargs: {env_id} refused its arguments {arguments}: {error}.") from error


def _replace(env_id: str, params: Any, changes: dict[str, Any]) -> Any:
    known = [f.name for f in dataclasses.fields(params)]
    for name, value in changes.items():
        if name not in known:
            raise InputError(f"Environment {env_id} has no parameter {name!r}. {nearest(name, known)}")
        if not isinstance(value, bool | int | float):
            raise InputError(f"Parameter {name} of {env_id}: got {value!r}, expected a number.")
    return dataclasses.replace(params, **changes)


def _dtypes(inner: Any, params: Any) -> tuple[str, ...]:
    """Returns for each leaf of observation and state one dtype that fits every step."""
    key = jr.key(0)
    with lenient():
        obs, first = jax.eval_shape(lambda: inner.reset_env(key, params))
        action = inner.action_space(params).sample(key)
        next_obs, second, *_ = jax.eval_shape(lambda s: inner.step_env(key, s, action, params), first)
    pairs = zip(jax.tree.leaves((obs, first)), jax.tree.leaves((next_obs, second)), strict=True)
    return tuple(jnp.promote_types(a.dtype, b.dtype).name for a, b in pairs)


def _pixel_range(env_id: str, obs: Any, space: Any) -> tuple[float, float]:
    """Returns the observation values that become pixel 0 and pixel 255."""
    if not isinstance(obs, jax.ShapeDtypeStruct):
        raise InputError(
            f"Environment {env_id} observes {obs}, expected one image [H W] or [H W C]. "
            "Write an adapter that draws it, as examples/03_own_environment.py shows."
        )
    if len(obs.shape) not in (2, 3) or min(obs.shape[:2]) < 2:
        raise InputError(
            f"Environment {env_id} observes an array of shape {tuple(obs.shape)}, expected an image [H W] or [H W C]. "
            "Two have a drawing of ours: CartPole-pixels and FourRooms-pixels. Otherwise write an adapter that draws "
            "it: subclass dreamer4.envs.AbstractEnvironment, as examples/03_own_environment.py does."
        )
    low, high = float(np.min(space.low)), float(np.max(space.high))
    if obs.dtype == jnp.bool_:
        return 0.0, 1.0
    if obs.dtype == jnp.uint8 and high > 1:
        return 0.0, 255.0
    # gymnax declares loosely: Pong says 2 and never exceeds 1.
    if 0 <= low and high <= (2 if jnp.issubdtype(obs.dtype, jnp.floating) else 1):
        return 0.0, 1.0
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InputError(
            f"Environment {env_id} declares observations between {low} and {high}, expected finite bounds, because "
            "they become pixels. Write an adapter that scales them, as examples/03_own_environment.py shows."
        )
    return low, high


def _action_spec(env_id: str, space: Any) -> ActionSpec:
    from gymnax.environments import spaces

    if isinstance(space, spaces.Discrete):
        return ActionSpec((int(space.n),))
    if isinstance(space, spaces.Box) and np.all(np.isfinite(space.low)) and np.all(np.isfinite(space.high)):
        return ActionSpec((), math.prod(space.shape))
    raise InputError(
        f"Environment {env_id} has the action space {space}, expected Discrete or a bounded Box. "
        "Write an adapter that translates it, as examples/03_own_environment.py shows."
    )
