"""The contract of a source, the laws by which windows are drawn, and the balance of two halves."""

from abc import abstractmethod

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from dreamer4.errors import InputError
from dreamer4.types import Trajectory, check_key


class Rows(eqx.Module):
    """Which windows a batch is made of: a few numbers a row, drawn by one key before a frame is read.

    Attributes:
        episode: number of the episode in its source.
        offset: first frame of the window within the episode.
        relevant: whether cloning may learn from the row.
        uniform: whether the world model may learn from the row.
    """

    episode: Int[Array, " B"]
    offset: Int[Array, " B"]
    relevant: Bool[Array, " B"]
    uniform: Bool[Array, " B"]


class AbstractDataSource(eqx.Module):
    """Where training batches come from."""

    @property
    @abstractmethod
    def on_device(self) -> bool:
        """Whether `read` may be called within a jitted function, all of the data being its argument."""

    @abstractmethod
    def with_latents(self, latent: Float[Array | np.ndarray, "N Nz Dz"]) -> "AbstractDataSource":
        """Returns the same data with its frames replaced by their latents.

        Args:
            latent: tokens of frame n at row n, the episodes in their order.

        Raises:
            InputError: if there is not one row per frame.
        """

    @abstractmethod
    def draw(self, batch_size: int, length: int, *, key: PRNGKeyArray) -> Rows:
        """Draws the windows of a batch; the same key draws the same ones, wherever the data lies.

        Args:
            batch_size: number of rows, B.
            length: number of frames of a row.
            key: the only source of chance.
        """

    @abstractmethod
    def read(self, rows: Rows, length: int) -> Trajectory:
        """Returns windows, each a stretch of a single episode.

        One behind the end of its episode repeats the last frame, without action or reward, and `valid` is False there.
        Any part of a batch's rows gives that part of the batch.

        Args:
            rows: the windows.
            length: number of frames of a row.
        """

    def sample(self, batch_size: int, length: int, *, key: PRNGKeyArray) -> Trajectory:
        """Returns the batch of the windows that a key draws; arguments are those of `draw`."""
        check_key(f"{type(self).__name__}.sample", key)
        return self.read(self.draw(batch_size, length, key=key), length)


class AbstractEpisodeSource(AbstractDataSource):
    """A source that knows of each episode how long it is, and draws windows from all of them alike.

    Windows are drawn so that the ends of an episode are learned as often as its middle: a window may begin anywhere
    from `length - 1` frames before the episode to its last frame, each place being equally likely. One that would begin
    before the episode is moved to its first frame, one that would hold the last frame alone is moved to hold two. So
    each frame lies in once to twice as many windows as a frame far from both ends does, and the last one, which alone
    may hold the reward, not in a single one.

    What lies behind the end of an episode is padding. Windows that all fitted would have the last frame of an episode
    in last place, and a model that can tell how many frames lie before one, as a transformer can until its layers'
    contexts are full, would learn that no episode ever ends sooner: not in the first frames of a dream. An episode no
    longer than a window is in it as a whole, as it is when acting.

    `uniform` is True on every row and `relevant` is the episode's flag. `share` is that of each task in the rows; where
    it is None a task has as much as its frames.
    """

    length: eqx.AbstractVar[Int[Array, " E"]]
    is_terminal: eqx.AbstractVar[Bool[Array, " E"]]
    task: eqx.AbstractVar[Int[Array, " E"]]
    relevant: eqx.AbstractVar[Bool[Array, " E"]]
    share: eqx.AbstractVar[Float[Array, " tasks"] | None]

    @property
    def num_episodes(self) -> int:
        """Number of episodes."""
        return self.length.shape[0]

    def draw(self, batch_size: int, length: int, *, key: PRNGKeyArray) -> Rows:
        places, order = self.places(length), jnp.arange(self.num_episodes)
        lower, upper = jnp.array(0), jnp.sum(places)
        if self.share is not None:
            order = jnp.argsort(self.task, stable=True)
            own = jnp.zeros(self.share.shape, places.dtype).at[self.task].add(places)
            # Another key than that of the places, which of a single task are drawn as without shares.
            key_task, weight = jr.fold_in(key, 1), jnp.where(own > 0, self.share, 0.0)
            task = jr.categorical(key_task, jnp.log(weight), shape=(batch_size,))
            upper = jnp.cumsum(own)[task]
            lower, places = upper - own[task], places[order]
        drawn = jr.randint(key, (batch_size,), lower, upper)
        episode, offset = self.windows_at(drawn, order, places, length)
        return Rows(episode, offset, self.relevant[episode], jnp.ones_like(episode, bool))

    def places(self, length: int) -> Int[Array, " E"]:
        """Returns at how many places a window may begin that overlaps each episode."""
        return self.length + length - 1

    def windows_at(
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


class BalancedSource(AbstractDataSource):
    """Half the rows from all episodes, half from the relevant ones (paper, section 3.3).

    Every second row, from the first on, is drawn from the whole set for the world model: `uniform` True and `relevant`
    False. The others are drawn from the episodes flagged relevant for cloning: `relevant` True and `uniform` False.
    They alternate, so that any stretch of a batch, such as the rows that learn from teachers, holds as many of either.
    A set in which every episode is relevant needs no balance; sample its own source.

    Of the relevant rows each task has its `share` of the source, or the same one where that is None, however many of
    the relevant frames are its own.
    """

    source: AbstractEpisodeSource
    _order: Int[Array, " E"]
    _task: Int[Array, " tasks"]
    _last: Int[Array, " tasks"]

    def __init__(self, source: AbstractEpisodeSource):
        """Wraps a source.

        Args:
            source: has at least one relevant episode.

        Raises:
            InputError: if no episode is flagged relevant.
        """
        if not np.any(np.asarray(source.relevant)):
            raise InputError(
                f"BalancedSource: none of the {source.num_episodes} episodes is flagged relevant, expected at least "
                "one. Flag the episodes worth cloning, or sample the source itself."
            )
        self.source = source
        # Relevant episodes by task, and where each task's last one stands among them; those that are not come behind.
        task, relevant = np.asarray(source.task), np.asarray(source.relevant)
        order = np.lexsort((task, ~relevant))
        tasks = np.unique(task[relevant])
        self._order, self._task = jnp.asarray(order), jnp.asarray(tasks)
        self._last = jnp.asarray(np.searchsorted(task[order][: relevant.sum()], tasks, side="right") - 1)

    def with_latents(self, latent: Float[Array | np.ndarray, "N Nz Dz"]) -> "BalancedSource":
        return eqx.tree_at(lambda balanced: balanced.source, self, self.source.with_latents(latent))

    @property
    def on_device(self) -> bool:
        return self.source.on_device

    def draw(self, batch_size: int, length: int, *, key: PRNGKeyArray) -> Rows:
        uniform_key, relevant_key = jr.split(key)
        number = batch_size // 2
        halves = self.source.draw(batch_size - number, length, key=uniform_key)
        uniform_rows = halves.episode, halves.offset
        relevant_rows = self._relevant_windows(number, length, key=relevant_key)
        row = jnp.arange(batch_size)
        place = row // 2 + row % 2 * (batch_size - number)  # of a row, in the halves laid end to end
        episode, offset = (jnp.concatenate(pair)[place] for pair in zip(uniform_rows, relevant_rows, strict=True))
        return Rows(episode, offset, row % 2 == 1, row % 2 == 0)

    def read(self, rows: Rows, length: int) -> Trajectory:
        return self.source.read(rows, length)

    def _relevant_windows(
        self, rows: int, length: int, *, key: PRNGKeyArray
    ) -> tuple[Int[Array, " B"], Int[Array, " B"]]:
        """Draws a task, then a window of its relevant episodes."""
        source, (key_task, key_place) = self.source, jr.split(key)
        places = jnp.where(source.relevant, source.places(length), 0)[self._order]
        upper = jnp.cumsum(places)[self._last]
        lower = jnp.concatenate([jnp.zeros_like(upper[:1]), upper[:-1]])
        weight = jnp.ones(len(upper)) if source.share is None else source.share[self._task]
        task = jr.categorical(key_task, jnp.log(weight), shape=(rows,))
        drawn = jr.randint(key_place, (rows,), lower[task], upper[task])
        return source.windows_at(drawn, self._order, places, length)
