"""Worlds that live outside JAX, behind the contract of those that live within.

A simulator (`AbstractSimulator`) is an object with a past, so no function of a state. `HostEnvironment` makes it one as
far as players need: its states are tickets, and `reset` and `step` are calls from the compiled program to the host, one
for all episodes that are played side by side. So whatever plays an `AbstractEnvironment` plays a simulator too. What no
simulator can do is to go back: a ticket is good for one step (or the same step again), and the pace of the environment
says so to those who would ask for more.
"""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float32, Int, Int32, PRNGKeyArray, UInt8
from PIL import Image

from dreamer4.envs.base import AbstractEnvironment, Pace
from dreamer4.errors import InputError
from dreamer4.types import Action, ActionSpec, DataSpec, TimeStep


SEEDS = 2**31 - 1  # of a simulator: 0 to below this

# Episodes side by side, steps between two looks, and simulators kept for players who come one by one.
_STREAMS, _STEPS, _SPARE = 16, 16, 16


class AbstractSimulator(ABC):
    """A world with a past, which plays one episode at a time.

    Attributes:
        action: the factors of an action.
        limit: most steps in an episode, or None if it knows of no limit.
    """

    action: ActionSpec
    limit: int | None

    @abstractmethod
    def reset(self, seed: int) -> None:
        """Begins an episode; everything that is random about it follows from the seed, 0 to below `SEEDS`."""

    @abstractmethod
    def step(
        self, discrete: Int32[np.ndarray, " components"], continuous: Float32[np.ndarray, " dims"]
    ) -> tuple[float, bool, bool]:
        """Carries out an action; returns the reward, and whether the episode was terminated or reached its limit."""

    @abstractmethod
    def picture(self) -> UInt8[np.ndarray, "h w 3"]:
        """Returns what it looks like now, at any size."""


def seed_of(key: PRNGKeyArray) -> Int[Array, ""]:
    """Returns the seed of the episode that `HostEnvironment` begins under a key."""
    return jr.randint(key, (), 0, SEEDS, jnp.int32)


class Ticket(eqx.Module):
    """A moment of a simulator: which play it belongs to, and how many steps of it have passed."""

    play: Int[Array, ""]
    clock: Int[Array, ""]


class HostEnvironment(AbstractEnvironment):
    """A simulator as an environment; see the text of this module.

    Whatever is random about an episode follows from its seed, which is drawn by the key of its first frame. Keys of
    other steps draw nothing.
    """

    spec: DataSpec = eqx.field(static=True)
    max_steps: int = eqx.field(static=True)
    _cast: "_Cast" = eqx.field(static=True)

    def __init__(
        self,
        name: str,
        build: Callable[[], AbstractSimulator],
        *,
        size: int | list[int] = 64,
        action_repeat: int = 1,
        max_steps: int | None = None,
    ):
        """Builds one simulator, to ask it for its actions.

        Args:
            name: what messages call it.
            build: makes a simulator.
            size: of frames, pixels: one number, or height and width.
            action_repeat: steps of the simulator that carry out one action; their rewards add up.
            max_steps: most actions in an episode, which is then cut; None: what the simulator allows.

        Raises:
            InputError: if an argument is out of range, or nobody tells how long an episode may be.
        """
        shape = (size, size) if isinstance(size, int) else tuple(size)
        if len(shape) != 2 or not all(isinstance(n, int) and n > 0 for n in shape):
            raise InputError(f"env.kwargs.size: got {size!r}, expected one number of pixels, or height and width.")
        for argument, value in (("action_repeat", action_repeat), ("max_steps", max_steps)):
            if value is not None and (type(value) is not int or value < 1):
                raise InputError(f"env.kwargs.{argument}: got {value!r}, expected a whole number of at least 1.")
        first = build()
        if max_steps is None:
            if first.limit is None:
                raise InputError(
                    f"{name} sets no limit to its episodes, and a player needs one. Set it, in actions: "
                    "--set env.kwargs.max_steps=1000."
                )
            max_steps = math.ceil(first.limit / action_repeat)
        self.spec = DataSpec((*shape, 3), first.action)
        self.max_steps = max_steps
        self._cast = _Cast(name, build, first, self.spec, action_repeat, max_steps)

    @property
    def pace(self) -> Pace:
        """Few side by side, looked after often, and never back."""
        return Pace(_STREAMS, _STEPS, revisits=False)

    def fault(self) -> str | None:
        return self._cast.fault

    def reset(self, *, key: PRNGKeyArray) -> tuple[Ticket, TimeStep]:
        kinds = (jax.ShapeDtypeStruct((), jnp.int32), *_kinds(self.spec))
        play, *seen = jax.pure_callback(self._cast.begin, kinds, seed_of(key), vmap_method="broadcast_all")
        return Ticket(play, jnp.zeros((), jnp.int32)), TimeStep(*seen)

    def step(self, state: Ticket, action: Action, *, key: PRNGKeyArray) -> tuple[Ticket, TimeStep]:
        given = (state.play, state.clock, action.discrete, action.continuous, seed_of(key))
        seen = jax.pure_callback(self._cast.advance, _kinds(self.spec), *given, vmap_method="broadcast_all")
        return Ticket(state.play, state.clock + 1), TimeStep(*seen)


# A time step as a row: frame, reward, is_first, is_last, is_terminal.
_Row = tuple[np.ndarray, float, bool, bool, bool]


def _kinds(spec: DataSpec) -> tuple[jax.ShapeDtypeStruct, ...]:
    dtypes = (jnp.uint8, jnp.float32, jnp.bool_, jnp.bool_, jnp.bool_)
    return tuple(jax.ShapeDtypeStruct(spec.frame_shape if i == 0 else (), dtype) for i, dtype in enumerate(dtypes))


@dataclass
class _Play:
    """One stream of episodes, and the simulator that plays it."""

    simulator: AbstractSimulator
    clock: int = 0
    length: int = 0
    seed: int = 0
    row: _Row = field(default=(np.zeros(0), 0.0, False, True, False))  # so the first step opens an episode
    request: tuple[Any, ...] = ()


class _Cast:
    """The simulators of an environment, and who plays what. All of them live in one thread, as renderers wish."""

    def __init__(
        self,
        name: str,
        build: Callable[[], AbstractSimulator],
        first: AbstractSimulator,
        spec: DataSpec,
        action_repeat: int,
        max_steps: int,
    ):
        self.fault: str | None = None
        self._name, self._build, self._free = name, build, [first]
        self._spec, self._repeat, self._max_steps = spec, action_repeat, max_steps
        self._plays: dict[int, _Play] = {}
        self._numbers = itertools.count()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="simulators")

    def begin(self, seeds: Array) -> tuple[np.ndarray, ...]:
        """Begins a stream of episodes for each seed; returns their numbers and first time steps."""
        seed = np.asarray(seeds)
        rows = self._thread.submit(self._begin, seed.ravel().tolist()).result()
        plays, rows = zip(*rows, strict=True)
        return (np.asarray(plays, np.int32).reshape(seed.shape), *self._columns(rows, seed.shape))

    def advance(self, *given: Array) -> tuple[np.ndarray, ...]:
        """Advances streams by one step each."""
        play, clock, discrete, continuous, seed = map(np.asarray, given)
        flat = (x.reshape((play.size, *x.shape[play.ndim :])) for x in (discrete, continuous))
        requests = list(zip(*(x.ravel().tolist() for x in (play, clock, seed)), *flat, strict=True))
        return self._columns(self._thread.submit(self._advance, requests).result(), play.shape)

    def _columns(self, rows: Any, batch: tuple[int, ...]) -> tuple[np.ndarray, ...]:
        columns = zip(zip(*rows, strict=True), _kinds(self._spec), strict=True)
        return tuple(np.asarray(x, kind.dtype).reshape((*batch, *kind.shape)) for x, kind in columns)

    def _begin(self, seeds: list[int]) -> list[tuple[int, _Row]]:
        self.fault = None
        room = max(_SPARE, len(seeds)) - len(seeds)
        while len(self._plays) > room:  # those not played for longest make way
            self._free.append(self._plays.pop(next(iter(self._plays))).simulator)
        rows = []
        for seed in seeds:
            number = next(self._numbers)
            rows.append((number, self._guarded(number, seed, None, None)))
        return rows

    def _advance(self, requests: list[tuple[int, int, int, np.ndarray, np.ndarray]]) -> list[_Row]:
        rows = []
        for number, clock, seed, discrete, continuous in requests:
            play, request = self._plays.get(number), (clock, seed, discrete.tobytes(), continuous.tobytes())
            if play is not None and play.request == request:  # an episode that waits for others beside it
                rows.append(play.row)
                continue
            if self.fault is None and (play is None or play.clock != clock):
                self.fault = f"{self._name} was asked to go on from a moment that it has left, and it cannot go back."
            rows.append(self._guarded(number, seed, discrete, continuous))
            if play is not None:
                play.request, play.clock = request, clock + 1
        return rows

    def _guarded(self, number: int, seed: int, discrete: np.ndarray | None, continuous: np.ndarray | None) -> _Row:
        """Returns the next time step of a stream, or one that is not sound if anything went wrong."""
        if self.fault is None:
            play = self._plays.pop(number, None)
            try:
                if play is None:
                    play = _Play(self._free.pop() if self._free else self._build())
                play.row = self._play(play, seed, discrete, continuous)
            except Exception as error:  # of whatever kind: it is other people's code
                where = "at its first frame" if play is None or not play.length else f"at action {play.length}"
                self.fault = (
                    f"{self._name} failed {where} of the episode with seed {play.seed if play else seed}: "
                    f"{type(error).__name__}: {' '.join(str(error).split())[:300]} Mend it, or play it by hand with "
                    "this seed to see where it breaks."
                )
            else:
                self._plays[number] = play  # the newest last
                return play.row
        return np.zeros(self._spec.frame_shape, np.uint8), math.nan, False, True, True

    def _play(self, play: _Play, seed: int, discrete: np.ndarray | None, continuous: np.ndarray | None) -> _Row:
        simulator = play.simulator
        if play.row[3] or discrete is None or continuous is None:
            play.length, play.seed = 0, seed
            simulator.reset(seed)
            return self._frame(simulator), 0.0, True, False, False
        play.length += 1
        total, terminated, truncated = 0.0, False, False
        for _ in range(self._repeat):
            reward, terminated, truncated = simulator.step(discrete, continuous)
            total += float(reward)
            if terminated or truncated:
                break
        ends = terminated or truncated or play.length >= self._max_steps
        return self._frame(simulator), total, False, ends, bool(terminated)

    def _frame(self, simulator: AbstractSimulator) -> np.ndarray:
        picture = simulator.picture()
        if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8 or picture.shape[2:] != (3,):
            told = f"{picture.dtype}{list(picture.shape)}" if isinstance(picture, np.ndarray) else repr(picture)[:60]
            raise TypeError(f"its picture is {told}, expected uint8[height, width, 3].")
        height, width, _ = self._spec.frame_shape
        if picture.shape[:2] == (height, width):
            return picture
        return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BOX))


def from_box(
    unit: Float32[np.ndarray, " dims"], low: np.ndarray, high: np.ndarray, dtype: Any = np.float32
) -> np.ndarray:
    """Returns the action between bounds of any shape that a vector in [-1, 1] means."""
    share = (np.clip(unit, -1.0, 1.0).reshape(low.shape) + 1.0) / 2.0
    return (low + share * (high - low)).astype(dtype)
