"""Batches as pure functions of a key.

A source holds a whole data set on the device, every episode laid end to end. A batch is then two integers a row, an
episode and an offset, and one gather; it can be drawn inside a jitted training step, and a run that resumes needs no
loader state, only the key of the step.
"""

import dataclasses
from abc import abstractmethod
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, UInt8

from dreamer4.data.episode import Episode
from dreamer4.errors import InputError
from dreamer4.types import Action, Trajectory


class AbstractDataSource(eqx.Module):
    """Where training batches come from."""

    @abstractmethod
    def sample(self, batch_size: int, length: int, *, key: PRNGKeyArray) -> Trajectory:
        """Draws a batch; the same key draws the same batch.

        Args:
            batch_size: number of rows, the leading axis B of every array returned.
            length: number of frames of a row.
            key: the only source of chance.

        Returns:
            Stretches of single episodes. One behind the end of its episode repeats the last frame, without action or
            reward, and `valid` is False there.
        """

    @abstractmethod
    def windows(self, batch_size: int, length: int, *, key: PRNGKeyArray) -> tuple[Int[Array, " B"], Int[Array, " B"]]:
        """Returns the episode of each row that `sample` draws by the same key, and the row's first frame in it."""


class DeviceSource(AbstractDataSource):
    """A data set that lies on the device as a whole, drawn window by window.

    Windows are drawn so that the ends of an episode are learned as often as its middle: a window may begin anywhere
    from `length - 1` frames before the episode to its last frame, each place being equally likely. One that would begin
    before the episode is moved to its first frame, one that would hold the last frame alone is moved to hold two. So
    each frame lies in once to twice as many windows as a frame far from both ends does, and the last one, which alone
    may hold the reward, not in a single one.

    What lies behind the end of an episode is padding. Windows that all fitted would have the last frame of an episode
    in last place, and a model that can tell how many frames lie before one, as a transformer can until its layers'
    contexts are full, would learn that no episode ever ends sooner: not in the first frames of a dream. An episode no
    longer than a window is in it as a whole, as it is when acting.

    `uniform` is True on every row and `relevant` is the episode's flag.
    """

    frame: UInt8[Array, "N H W C"] | None
    latent: Float[Array, "N Nz Dz"] | None
    action: Action
    action_mask: Bool[Array, " N"]
    reward: Float[Array, " N"]
    start: Int[Array, " E"]
    length: Int[Array, " E"]
    is_terminal: Bool[Array, " E"]
    task: Int[Array, " E"]
    relevant: Bool[Array, " E"]
    max_length: int = eqx.field(static=True)
    place: PyTree = None

    @classmethod
    def from_episodes(cls, episodes: Sequence[Episode]) -> "DeviceSource":
        """Puts episodes on the default device.

        Args:
            episodes: at least one, all with the same frame shape and action factors.

        Raises:
            InputError: if there is none, if they differ in shape, or if one is empty.
        """
        if not episodes:
            raise InputError("DeviceSource.from_episodes: got no episodes, expected at least one. Collect more data.")
        shapes = {(e.frame.shape[1:], e.discrete.shape[1], e.continuous.shape[1]) for e in episodes}
        if len(shapes) > 1:
            raise InputError(
                f"DeviceSource.from_episodes: got unlike (frame, discrete, continuous) sizes {sorted(shapes)}, "
                "expected one kind. Load one data set per source."
            )
        lengths = np.array([e.length for e in episodes], np.int32)
        if lengths.min() == 0:
            raise InputError(f"DeviceSource.from_episodes: episode {lengths.argmin()} has no frames. Leave it out.")
        return cls(
            frame=jnp.asarray(np.concatenate([e.frame for e in episodes])),
            latent=None,
            action=Action(
                jnp.asarray(np.concatenate([e.discrete for e in episodes])),
                jnp.asarray(np.concatenate([e.continuous for e in episodes])),
            ),
            action_mask=jnp.asarray(np.concatenate([e.action_mask for e in episodes])),
            reward=jnp.asarray(np.concatenate([e.reward for e in episodes])),
            start=jnp.asarray(np.cumsum(lengths) - lengths, jnp.int32),
            length=jnp.asarray(lengths),
            is_terminal=jnp.asarray([e.is_terminal for e in episodes]),
            task=jnp.asarray([e.task for e in episodes], jnp.int32),
            relevant=jnp.asarray([e.relevant for e in episodes]),
            max_length=int(lengths.max()),
        )

    @property
    def num_episodes(self) -> int:
        """Number of episodes."""
        return self.start.shape[0]

    @property
    def num_frames(self) -> int:
        """Number of frames of all episodes together, N."""
        return self.reward.shape[0]

    def with_latents(self, latent: Float[Array, "N Nz Dz"]) -> "DeviceSource":
        """Returns the same data set with its frames replaced by their latents.

        Args:
            latent: tokens of frame n at row n, in the order of `frame`.

        Raises:
            InputError: if there is not one row per frame.
        """
        if latent.shape[0] != self.num_frames:
            raise InputError(
                f"DeviceSource.with_latents: got {latent.shape[0]} rows, expected one per frame, {self.num_frames}. "
                "Encode every frame of this source, in order."
            )
        return dataclasses.replace(self, frame=None, latent=latent)

    def with_places(self, place: PyTree) -> "DeviceSource":
        """Returns the same data set with where the real environment stood at each frame, as `replay` finds it."""
        return dataclasses.replace(self, place=place)

    def sample(self, batch_size: int, length: int, *, key: PRNGKeyArray) -> Trajectory:
        episode, offset = self.windows(batch_size, length, key=key)
        return self._window(episode, offset, length, self.relevant[episode], jnp.ones_like(episode, bool))

    def windows(self, batch_size: int, length: int, *, key: PRNGKeyArray) -> tuple[Int[Array, " B"], Int[Array, " B"]]:
        places = self._places(length)
        drawn = jr.randint(key, (batch_size,), 0, jnp.sum(places))
        return self._windows_at(drawn, jnp.arange(self.num_episodes), places, length)

    def episodes(self, index: Int[Array, " B"], length: int) -> Trajectory:
        """Returns whole episodes from their first frame, padded to `length`.

        Args:
            index: which episodes, 0 to `num_episodes - 1`.
            length: frames of a row; an episode longer than that is cut, so `max_length` loses none.
        """
        return self.stretches(index, jnp.zeros_like(index), length)

    def stretches(self, index: Int[Array, " B"], offset: Int[Array, " B"], length: int) -> Trajectory:
        """Returns a stretch of each of the given episodes, padded to `length`.

        Args:
            index: which episodes, 0 to `num_episodes - 1`.
            offset: first frame of the stretch within its episode.
            length: frames of a row.
        """
        return self._window(index, offset, length, self.relevant[index], jnp.ones_like(index, bool))

    def _places(self, length: int) -> Int[Array, " E"]:
        """Returns at how many places a window may begin that overlaps each episode."""
        return self.length + length - 1

    def _windows_at(
        self, drawn: Int[Array, " B"], order: Int[Array, " E"], places: Int[Array, " E"], length: int
    ) -> tuple[Int[Array, " B"], Int[Array, " B"]]:
        """Returns episode and offset of windows by their numbers, each moved to where it may begin.

        Args:
            drawn: numbers of places, from 0 on, counted through all episodes.
            order: the episodes in the order in which they are counted.
            places: of each episode, in that order; 0 leaves it out.
            length: frames of a window.
        """
        ends = jnp.cumsum(places)
        at = jnp.searchsorted(ends, drawn, side="right")
        episode, offset = order[at], drawn - (ends - places)[at] - (length - 1)
        frames = self.length[episode]
        last = jnp.where(frames > length, frames - min(2, length), 0)
        return episode, jnp.clip(offset, 0, last)

    def _window(
        self,
        episode: Int[Array, " B"],
        offset: Int[Array, " B"],
        length: int,
        relevant: Bool[Array, " B"],
        uniform: Bool[Array, " B"],
    ) -> Trajectory:
        position = offset[:, None] + jnp.arange(length)[None]
        last = self.length[episode][:, None] - 1
        valid = position <= last
        row = self.start[episode][:, None] + jnp.minimum(position, last)
        is_last = position == last
        return Trajectory(
            frame=None if self.frame is None else self.frame[row],
            latent=None if self.latent is None else self.latent[row],
            action=Action(self.action.discrete[row], self.action.continuous[row]),
            action_mask=self.action_mask[row] & valid,
            reward=jnp.where(valid, self.reward[row], 0.0),
            is_first=position == 0,
            is_last=is_last,
            is_terminal=is_last & self.is_terminal[episode][:, None],
            valid=valid,
            task=self.task[episode],
            relevant=relevant,
            uniform=uniform,
            place=jax.tree.map(lambda leaf: leaf[row], self.place),
        )


class BalancedSource(AbstractDataSource):
    """Half the rows from all episodes, half from the relevant ones (paper, section 3.3).

    Every second row, from the first on, is drawn from the whole set for the world model: `uniform` True and `relevant`
    False. The others are drawn from the episodes flagged relevant for cloning: `relevant` True and `uniform` False.
    They alternate, so that any stretch of a batch, such as the rows that learn from teachers, holds as many of either.
    A set in which every episode is relevant needs no balance; sample its `DeviceSource`.

    Each task has the same share of the relevant rows, however many of the relevant frames are its own.
    """

    source: DeviceSource
    _order: Int[Array, " E"]
    _last: Int[Array, " tasks"]

    def __init__(self, source: DeviceSource):
        """Wraps a source.

        Args:
            source: has at least one relevant episode.

        Raises:
            InputError: if no episode is flagged relevant.
        """
        if not np.any(np.asarray(source.relevant)):
            raise InputError(
                f"BalancedSource: none of the {source.num_episodes} episodes is flagged relevant, expected at least "
                "one. Flag the episodes worth cloning, or sample the DeviceSource itself."
            )
        self.source = source
        # Relevant episodes by task, and where each task's last one stands among them; those that are not come behind.
        task, relevant = np.asarray(source.task), np.asarray(source.relevant)
        order = np.lexsort((task, ~relevant))
        tasks = np.unique(task[relevant])
        self._order = jnp.asarray(order)
        self._last = jnp.asarray(np.searchsorted(task[order][: relevant.sum()], tasks, side="right") - 1)

    def with_latents(self, latent: Float[Array, "N Nz Dz"]) -> "BalancedSource":
        """Returns the same rows with their frames replaced by latents, as `DeviceSource.with_latents` does."""
        return eqx.tree_at(lambda balanced: balanced.source, self, self.source.with_latents(latent))

    def sample(self, batch_size: int, length: int, *, key: PRNGKeyArray) -> Trajectory:
        episode, offset = self.windows(batch_size, length, key=key)
        relevant = jnp.arange(batch_size) % 2 == 1
        return self.source._window(episode, offset, length, relevant, ~relevant)

    def windows(self, batch_size: int, length: int, *, key: PRNGKeyArray) -> tuple[Int[Array, " B"], Int[Array, " B"]]:
        uniform_key, relevant_key = jr.split(key)
        source, rows = self.source, batch_size // 2
        uniform_rows = source.windows(batch_size - rows, length, key=uniform_key)
        relevant_rows = self._relevant_windows(rows, length, key=relevant_key)
        row = jnp.arange(batch_size)
        place = row // 2 + row % 2 * (batch_size - rows)  # of a row, in the halves laid end to end
        episode, offset = (jnp.concatenate(pair)[place] for pair in zip(uniform_rows, relevant_rows, strict=True))
        return episode, offset

    def _relevant_windows(
        self, rows: int, length: int, *, key: PRNGKeyArray
    ) -> tuple[Int[Array, " B"], Int[Array, " B"]]:
        """Draws a task, then a window of its relevant episodes."""
        source, (key_task, key_place) = self.source, jr.split(key)
        places = jnp.where(source.relevant, source._places(length), 0)[self._order]
        upper = jnp.cumsum(places)[self._last]
        lower = jnp.concatenate([jnp.zeros_like(upper[:1]), upper[:-1]])
        task = jr.randint(key_task, (rows,), 0, len(upper))
        drawn = jr.randint(key_place, (rows,), lower[task], upper[task])
        return source._windows_at(drawn, self._order, places, length)
