"""Where dreams begin: which held-out episodes, after how many of their frames, under which actions."""

from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from dreamer4.data import DeviceSource
from dreamer4.errors import InputError
from dreamer4.types import Action


@dataclass(frozen=True)
class Starts:
    """Starting points of dreams.

    Attributes:
        episode: which episode of the source.
        passed: frames of the episode that have passed before the dream, at least 1.
    """

    episode: Int[np.ndarray, " N"]
    passed: Int[np.ndarray, " N"]


def first_frames(source: DeviceSource, count: int, *, passed: int = 1) -> Starts:
    """Starts near the first frames of the first episodes, where the longest dreams fit in.

    Args:
        source: the episodes.
        count: at most this many starts, one for each episode.
        passed: frames before the dream; more where the action that follows is unknown, up to the first known one.

    Raises:
        InputError: if no episode has a known action behind `passed` frames.
    """
    places = [at[at >= passed] for at in _dreamable(source)]
    chosen = [i for i, at in enumerate(places) if len(at)][:count]
    if not chosen:
        raise InputError(
            f"dreams: got {passed} context frames, but the longest episode has {source.max_length} frames. "
            "Give fewer context frames."
            if source.max_length <= passed
            else f"dreams: no known action follows the first {passed} frames of an episode. Give fewer context frames."
        )
    return Starts(np.array(chosen), np.array([places[i][0] for i in chosen]))


def anywhere(source: DeviceSource, count: int, *, key: PRNGKeyArray) -> Starts:
    """Starts anywhere in the episodes that a known action follows, uniformly, evenly spread over their length.

    Args:
        source: the episodes.
        count: number of starts; if there are fewer episodes, these are used in turn.
        key: draws the starts.

    Raises:
        InputError: if no episode has a known action.
    """
    places = _dreamable(source)
    dreamable = np.flatnonzero([len(at) > 0 for at in places])
    episode = dreamable[np.arange(count) % len(dreamable)]
    key_order, key_place = jr.split(key)
    # One start in each of `count` equal shares of an episode's length: as random, and without clumps.
    share = np.asarray((jr.permutation(key_order, count) + jr.uniform(key_place, (count,))) / count, np.float64)
    passed = [places[i][min(int(s * len(places[i])), len(places[i]) - 1)] for i, s in zip(episode, share, strict=True)]
    return Starts(episode, np.array(passed))


def _dreamable(source: DeviceSource) -> list[Int[np.ndarray, " N"]]:
    """Returns for each episode the frames but the first that a known action led to: what a dream can be held against.

    Raises:
        InputError: if there are none at all.
    """
    known, start = np.asarray(source.action_mask), np.asarray(source.start)
    places = [1 + np.flatnonzero(known[s + 1 : s + n]) for s, n in zip(start, np.asarray(source.length), strict=True)]
    if not any(map(len, places)):
        raise InputError(
            "dreams: no action is known in the held-out episodes, as in unlabelled video, so nothing tells which of "
            "many futures a dream should show. Look at dreams with dreamer4 dream or play; to measure them, hold out "
            "episodes with actions."
        )
    return places


@dataclass(frozen=True)
class Clips:
    """Starts laid over a source: what is given, what follows, and what of that counts.

    Attributes:
        source: held-out episodes, with frames.
        encoded: the same with latents.
        starts: where the dreams begin.
        context_length: most frames given; a start near the beginning of its episode has fewer.
        horizon: most frames dreamt.
    """

    source: DeviceSource
    encoded: DeviceSource
    starts: Starts
    context_length: int
    horizon: int

    @property
    def given(self) -> Int[np.ndarray, " N"]:
        """Number of frames given to each dream."""
        return np.minimum(self.starts.passed, self.context_length)

    @cached_property
    def _rows(self) -> tuple[Int[np.ndarray, "N H"], Bool[np.ndarray, "N H"]]:
        length = np.asarray(self.source.length)[self.starts.episode][:, None]
        position = self.starts.passed[:, None] + np.arange(self.horizon)
        row = np.asarray(self.source.start)[self.starts.episode][:, None] + np.minimum(position, length - 1)
        # Behind a frame whose action is unknown the truth is one of many futures.
        known = (position < length) & np.asarray(self.source.action_mask)[row]
        return row, np.cumprod(known, axis=1).astype(bool)

    @property
    def valid(self) -> Bool[np.ndarray, "N H"]:
        """Which dreamt frames have a true frame to be compared with."""
        return self._rows[1]

    @property
    def actions(self) -> Action:
        """The actions that were taken, `[N, H, ...]`."""
        row = self._rows[0]
        return Action(self.source.action.discrete[row], self.source.action.continuous[row])

    def shuffled_actions(self, *, key: PRNGKeyArray) -> Action:
        """The same actions in a random order over all clips and steps; a model that uses them must then err."""
        row, valid = self._rows
        flat, places = row.reshape(-1).copy(), np.flatnonzero(valid)
        flat[places] = flat[places][np.asarray(jr.permutation(key, len(places)))]
        row = flat.reshape(row.shape)
        return Action(self.source.action.discrete[row], self.source.action.continuous[row])

    def no_actions(self) -> Action:
        """Class 0 of every component and zeros, at every step; in many environments this does nothing."""
        return jax.tree.map(jnp.zeros_like, self.actions)

    def batches(self) -> list[Int[np.ndarray, " B"]]:
        """Returns the clips in batches of one size, which bounds the memory; the last one repeats the last clip."""
        number = len(self.starts.episode)
        size = max(1, min(number, FRAMES_AT_ONCE // (self.context_length + self.horizon)))
        return [np.minimum(np.arange(i, i + size), number - 1) for i in range(0, number, size)]

    def episode_and_start(self, batch: Int[np.ndarray, " B"]) -> tuple[Int[Array, " B"], Int[Array, " B"]]:
        """Returns episode and first dreamt frame of the clips of a batch."""
        return jnp.asarray(self.starts.episode[batch]), jnp.asarray(self.starts.passed[batch])


FRAMES_AT_ONCE = 2048  # dreamt side by side, contexts included
