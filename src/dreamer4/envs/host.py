"""Worlds that live outside JAX, behind the contract of those that live within.

A simulator (`AbstractSimulator`) is an object with a past, so no function of a state. `HostEnvironment` makes it one as
far as players need: its states are tickets, and `reset` and `step` are calls from the compiled program to the host, one
for all episodes that are played side by side. So whatever plays an `AbstractEnvironment` plays a simulator too. What no
simulator can do is to go back: a ticket is good for one step (or the same step again), and the pace of the environment
says so to those who would ask for more.
"""

import itertools
import math
import multiprocessing
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float32, Int, Int32, PRNGKeyArray, UInt8
from PIL import Image

from dreamer4.envs.base import AbstractEnvironment, Pace
from dreamer4.errors import InputError, check_whole
from dreamer4.types import Action, ActionSpec, DataSpec, TimeStep


SEEDS = 2**31 - 1  # of a simulator: 0 to below this

# Episodes side by side, steps between two looks, and simulators kept for players who come one by one.
_STREAMS, _STEPS, _SPARE = 16, 16, 8


class AbstractSimulator(ABC):
    """A world with a past, which plays one episode at a time.

    Attributes:
        action: the factors of an action.
        limit: most steps in an episode, or None if it knows of no limit.
        senses: how many numbers `observation` has.
    """

    action: ActionSpec
    limit: int | None
    senses: int = 0

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

    def observation(self) -> Float32[np.ndarray, " senses"]:
        """Returns what tells its state in numbers."""
        return np.zeros(self.senses, np.float32)

    def close(self) -> None:  # noqa: B027
        """Frees what it holds, in the thread that it lived in; nothing to do for most."""


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
    action_repeat: int = eqx.field(static=True)
    name: str = eqx.field(static=True)
    senses: int = eqx.field(static=True)
    _cast: "_Cast" = eqx.field(static=True)

    def __init__(
        self,
        name: str,
        build: Callable[[], AbstractSimulator],
        *,
        size: int | list[int] = 64,
        action_repeat: int = 1,
        max_steps: int | None = None,
        workers: int = 0,
    ):
        """Builds one simulator, to ask it for its actions.

        Args:
            name: what messages call it.
            build: makes a simulator; with workers it is pickled.
            size: of frames, pixels: one number, or height and width.
            action_repeat: steps of the simulator that carry out one action; their rewards add up.
            max_steps: most actions in an episode, which is then cut; None: what the simulator allows.
            workers: processes that the simulators live in, which share them; 0: a thread of this one.

        Raises:
            InputError: if an argument is out of range, or nobody tells how long an episode may be.
        """
        shape = (size, size) if isinstance(size, int) else tuple(size)
        if len(shape) != 2 or not all(isinstance(n, int) and n > 0 for n in shape):
            raise InputError(f"env.kwargs.size: got {size!r}, expected one number of pixels, or height and width.")
        for argument, value in (("action_repeat", action_repeat), ("max_steps", max_steps)):
            if value is not None:
                check_whole(f"env.kwargs.{argument}", **{argument: value})
        self._cast = _Cast(workers, name, build, shape, action_repeat)
        action, limit, self.senses = self._cast.hire()
        if max_steps is None:
            if limit is None:
                raise InputError(
                    f"{name} sets no limit to its episodes, and a player needs one. Set it, in actions: "
                    "--set env.kwargs.max_steps=1000."
                )
            max_steps = math.ceil(limit / action_repeat)
        self.spec, self.action_repeat, self.name = DataSpec((*shape, 3), action), action_repeat, name
        self.max_steps = self._cast.most = max_steps

    @property
    def pace(self) -> Pace:
        """Few side by side, looked after often, and never back."""
        return Pace(max(_STREAMS, self._cast.workers), _STEPS, revisits=False)

    def fault(self) -> str | None:
        return self._cast.fault

    def reset(self, *, key: PRNGKeyArray) -> tuple[Ticket, TimeStep]:
        kinds = (jax.ShapeDtypeStruct((), jnp.int32), *_kinds(self.spec.frame_shape))
        play, *seen = jax.pure_callback(self._cast.begin, kinds, seed_of(key), vmap_method="broadcast_all")
        return Ticket(play, jnp.zeros((), jnp.int32)), TimeStep(*seen)

    def step(self, state: Ticket, action: Action, *, key: PRNGKeyArray) -> tuple[Ticket, TimeStep]:
        given = (state.play, state.clock, action.discrete, action.continuous, seed_of(key))
        kinds = (jax.ShapeDtypeStruct((), jnp.int32), *_kinds(self.spec.frame_shape))
        clock, *seen = jax.pure_callback(self._cast.advance, kinds, *given, vmap_method="broadcast_all")
        return Ticket(state.play, clock), TimeStep(*seen)

    def observe(self, state: Ticket) -> Float32[Array, " S"]:
        return self.consult(state, _observation, jnp.zeros(self.senses))

    def consult(self, state: Ticket, look: Callable[..., np.ndarray], *given: Array) -> Array:
        """Returns what a look at the simulator comes to, which a script may take (`AbstractPolicy.peek`).

        Args:
            state: the moment to look at, the newest of its play.
            look: called with the simulator, where it lives, and with `given`; returns an array like the first of
                `given` and leaves the simulator as it is. With workers it is pickled.
            given: what else it is told.
        """
        like = jax.ShapeDtypeStruct(given[0].shape, given[0].dtype)
        ask = partial(self._cast.consult, look)
        return jax.pure_callback(ask, like, state.play, state.clock, *given, vmap_method="broadcast_all")


# A time step as a row: frame, reward, is_first, is_last, is_terminal.
_Row = tuple[np.ndarray, float, bool, bool, bool]


def _kinds(frame_shape: tuple[int, int, int]) -> tuple[jax.ShapeDtypeStruct, ...]:
    rest = (jnp.float32, jnp.bool_, jnp.bool_, jnp.bool_)
    return (jax.ShapeDtypeStruct(frame_shape, jnp.uint8), *(jax.ShapeDtypeStruct((), dtype) for dtype in rest))


@dataclass
class _Play:
    """One stream of episodes, and the simulator that plays it."""

    simulator: AbstractSimulator
    clock: int = 0
    length: int = 0
    seed: int = 0
    row: _Row = field(default=(np.zeros(0), 0.0, False, True, False))  # so the first step opens an episode
    request: tuple[Any, ...] = ()


class _Company:
    """Simulators that live in one thread, as renderers wish, and who plays what."""

    def __init__(self, name: str, build: Callable[[], AbstractSimulator], size: tuple[int, int], action_repeat: int):
        self._name, self._build, self._size, self._repeat = name, build, size, action_repeat
        self._free: list[AbstractSimulator] = []
        self._plays: dict[int, _Play] = {}
        self._fault: str | None = None

    def hire(self) -> tuple[ActionSpec, int | None, int]:
        """Builds a simulator; returns its actions, its limit and its senses."""
        self._free.append(self._build())
        return self._free[-1].action, self._free[-1].limit, self._free[-1].senses

    def close(self) -> None:
        """Frees all simulators."""
        for simulator in (*self._free, *(play.simulator for play in self._plays.values())):
            simulator.close()

    def begin(self, streams: list[tuple[int, int]]) -> tuple[list[_Row], str | None]:
        """Begins streams of episodes by number and seed; returns first time steps, and what went wrong."""
        self._fault = None
        while len(self._plays) > max(_SPARE - len(streams), 0):  # those not played for longest make way
            self._free.append(self._plays.pop(next(iter(self._plays))).simulator)
        return [self._guarded(number, seed, 0, None) for number, seed in streams], self._fault

    def advance(
        self, requests: list[tuple[int, int, int, np.ndarray, np.ndarray]], most: int
    ) -> tuple[list[_Row], str | None]:
        """Advances streams by one step each, in episodes of at most `most` actions."""
        rows = []
        for number, clock, seed, *action in requests:
            play, request = self._plays.get(number), (clock, seed, *(x.tobytes() for x in action))
            if play is not None and play.request == request:  # an episode that waits for others beside it
                rows.append(play.row)
                continue
            if self._fault is None and (play is None or play.clock != clock):
                self._fault = f"{self._name} was asked to go on from a moment that it has left, and it cannot go back."
            rows.append(self._guarded(number, seed, most, action))
            if play is not None:
                play.request, play.clock = request, clock + 1
        return rows, self._fault

    def consult(
        self, requests: list[tuple[int, int, Any]], look: Callable[..., np.ndarray]
    ) -> tuple[list[np.ndarray], str | None]:
        """Has a script look at the simulators of streams, at the moments that it names."""
        found = []
        for number, clock, *given in requests:
            play = self._plays.get(number)
            if play is None or play.clock != clock:
                return [], f"{self._name} was looked at in a moment that it has left, and it cannot go back."
            try:
                found.append(look(play.simulator, *given))
            except Exception as error:  # a script's own
                told = " ".join(str(error).split())[:300]
                return [], f"{self._name} was looked at and failed: {type(error).__name__}: {told}"
        return found, None

    def _guarded(self, number: int, seed: int, most: int, action: list[np.ndarray] | None) -> _Row:
        """Returns the next time step of a stream, or one that is not sound if anything went wrong."""
        if self._fault is None:
            play = self._plays.pop(number, None)
            try:
                if play is None:
                    play = _Play(self._free.pop() if self._free else self._build())
                play.row = self._play(play, seed, most, action)
            except Exception as error:  # of whatever kind: it is other people's code
                where = "at its first frame" if play is None or not play.length else f"at action {play.length}"
                self._fault = (
                    f"{self._name} failed {where} of the episode with seed {play.seed if play else seed}: "
                    f"{type(error).__name__}: {' '.join(str(error).split())[:300]} Mend it, or play it by hand with "
                    "this seed to see where it breaks."
                )
            else:
                self._plays[number] = play  # the newest last
                return play.row
        return _unsound(self._size)

    def _play(self, play: _Play, seed: int, most: int, action: list[np.ndarray] | None) -> _Row:
        simulator = play.simulator
        if play.row[3] or action is None:
            play.length, play.seed = 0, seed
            simulator.reset(seed)
            return self._frame(simulator), 0.0, True, False, False
        play.length += 1
        total, terminated, truncated = 0.0, False, False
        for _ in range(self._repeat):
            reward, terminated, truncated = simulator.step(*action)
            total += float(reward)
            if terminated or truncated:
                break
        ends = bool(terminated or truncated or play.length >= most)
        return self._frame(simulator), total, False, ends, bool(terminated)

    def _frame(self, simulator: AbstractSimulator) -> np.ndarray:
        picture = simulator.picture()
        if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8 or picture.shape[2:] != (3,):
            told = f"{picture.dtype}{list(picture.shape)}" if isinstance(picture, np.ndarray) else repr(picture)[:60]
            raise TypeError(f"its picture is {told}, expected uint8[height, width, 3].")
        if picture.shape[:2] == self._size:
            return picture
        height, width = self._size
        return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BOX))


def _observation(simulator: AbstractSimulator, _: np.ndarray) -> np.ndarray:
    return simulator.observation()


def _unsound(size: tuple[int, int]) -> _Row:
    return np.zeros((*size, 3), np.uint8), math.nan, False, True, True


_HERE = threading.local()  # with the company of this thread


def _found(*company: Any) -> None:
    if multiprocessing.parent_process() is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the player, who ends this process
    _HERE.company = _Company(*company)


def _ask(method: str, *args: Any) -> Any:
    return getattr(_HERE.company, method)(*args)


class _Cast:
    """The simulators of an environment: one company in a thread of this process, or one in each of some processes."""

    def __init__(
        self, workers: int, name: str, build: Callable[[], AbstractSimulator], size: tuple[int, int], repeat: int
    ):
        self.fault: str | None = None
        self.most = 0
        self._company, self.workers, self._size = (name, build, size, repeat), workers, size
        self._pools = [self._pool() for _ in range(max(1, workers))]
        self._numbers = itertools.count()

    def _pool(self) -> Executor:
        if not self.workers:
            pool = ThreadPoolExecutor(1, initializer=_found, initargs=self._company)
            # Renderers must be freed by their thread, while threads of their own may still be given work.
            threading._register_atexit(  # pyright: ignore[reportAttributeAccessIssue]
                lambda: pool.submit(_ask, "close").result()
            )
            return pool
        # Spawned, since a process that is forked from one with JAX in it may hang.
        spawn = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(1, spawn, initializer=_found, initargs=self._company)

    def hire(self) -> tuple[ActionSpec, int | None, int]:
        """Builds a first simulator; returns its actions, its limit and its senses."""
        try:
            return self._pools[0].submit(_ask, "hire").result()
        except BrokenExecutor as error:
            raise InputError(f"A process for {self._company[0]} ended as it began. Try env.workers=0.") from error

    def begin(self, seeds: Array) -> tuple[np.ndarray, ...]:
        """Begins a stream of episodes for each seed; returns their numbers and first time steps."""
        seed = np.asarray(seeds)
        numbers = [next(self._numbers) for _ in range(seed.size)]
        self.fault = None
        requests = list(zip(numbers, seed.ravel().tolist(), strict=True))
        rows = self._gather("begin", requests, blank=_unsound(self._size))
        return (np.asarray(numbers, np.int32).reshape(seed.shape), *self._columns(rows, seed.shape))

    def advance(self, *given: Array) -> tuple[np.ndarray, ...]:
        """Advances streams by one step each."""
        play, clock, discrete, continuous, seed = map(np.asarray, given)
        flat = (x.reshape((play.size, *x.shape[play.ndim :])) for x in (discrete, continuous))
        requests = list(zip(*(x.ravel().tolist() for x in (play, clock, seed)), *flat, strict=True))
        rows = self._gather("advance", requests, self.most, blank=_unsound(self._size))
        return (np.asarray(clock + 1, np.int32), *self._columns(rows, play.shape))

    def consult(self, look: Callable[..., np.ndarray], *moments: Array) -> np.ndarray:
        """Has a script look at simulators; what failed is told by the fault, and comes back as it was given."""
        play, clock, *given = map(np.asarray, moments)
        flat = [x.reshape((play.size, *x.shape[play.ndim :])) for x in given]
        requests = list(zip(play.ravel().tolist(), clock.ravel().tolist(), *flat, strict=True))
        found = self._gather("consult", requests, look, blank=None)
        kept = [old if new is None else new for new, old in zip(found, flat[0], strict=True)]
        return np.asarray(kept, given[0].dtype).reshape(given[0].shape)

    def _gather(self, method: str, requests: list[tuple[Any, ...]], *rest: Any, blank: _Row | None) -> list[Any]:
        """Has each company do its part, all at once; a stream stays where it began. What fails is `blank`."""
        if self.fault is not None:
            return [blank] * len(requests)
        count = len(self._pools)
        parts = [[i for i, request in enumerate(requests) if request[0] % count == k] for k in range(count)]
        asked = [
            (k, part, self._pools[k].submit(_ask, method, [requests[i] for i in part], *rest))
            for k, part in enumerate(parts)
            if part
        ]
        rows = [blank] * len(requests)
        for k, part, answer in asked:
            try:
                found, fault = answer.result()
            except BrokenExecutor:
                self._pools[k] = self._pool()
                fault = f"A process that played {self._company[0]} ended without a word: killed, or out of memory."
            else:
                for i, row in zip(part, found, strict=False):
                    rows[i] = row
            self.fault = self.fault or fault
        return rows

    def _columns(self, rows: list[_Row], batch: tuple[int, ...]) -> tuple[np.ndarray, ...]:
        kinds = _kinds((*self._size, 3))
        return tuple(
            np.asarray(x, kind.dtype).reshape((*batch, *kind.shape))
            for x, kind in zip(zip(*rows, strict=True), kinds, strict=True)
        )


def from_box(
    unit: Float32[np.ndarray, " dims"], low: np.ndarray, high: np.ndarray, dtype: Any = np.float32
) -> np.ndarray:
    """Returns the action between bounds of any shape that a vector in [-1, 1] means."""
    share = (np.clip(unit, -1.0, 1.0).reshape(low.shape) + 1.0) / 2.0
    return (low + share * (high - low)).astype(dtype)
