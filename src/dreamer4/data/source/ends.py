"""Ends of episodes drawn more often than they occur."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from dreamer4.data.source.base import AbstractDataSource, AbstractEpisodeSource, Rows
from dreamer4.errors import InputError
from dreamer4.types import Trajectory


class EndsSource(AbstractDataSource):
    """A share of the rows holds the last frame of an episode that terminated, the others are drawn as the source does.

    What ends an episode is seldom in the data and decides what a policy learns in a dream, so a world model should know
    it first (not in the paper). Of those rows each such episode has as many, whatever its length and task; its last
    frame stands anywhere in the window, all places alike, but not alone in it. They lie evenly among the rows, so that
    any stretch of a batch, such as the rows that learn from teachers, has its share.
    """

    source: AbstractEpisodeSource
    share: float = eqx.field(static=True)
    _ends: Int[Array, " ends"]

    def __init__(self, source: AbstractEpisodeSource, share: float):
        """Wraps a source.

        Args:
            source: has at least one episode that terminated.
            share: of the rows, above 0 and at most 1.

        Raises:
            InputError: if no episode terminated.
        """
        ends = np.flatnonzero(np.asarray(source.is_terminal))
        if not len(ends):
            raise InputError(
                f"EndsSource: none of the {source.num_episodes} episodes ended by termination, expected at least one. "
                "Set train.dynamics.ends=0."
            )
        self.source, self.share, self._ends = source, share, jnp.asarray(ends, jnp.int32)

    @property
    def on_device(self) -> bool:
        return self.source.on_device

    def with_latents(self, latent: Float[Array | np.ndarray, "N Nz Dz"]) -> "EndsSource":
        return eqx.tree_at(lambda ends: ends.source, self, self.source.with_latents(latent))

    def draw(self, batch_size: int, length: int, *, key: PRNGKeyArray) -> Rows:
        key_rows, key_ends, key_place = jr.split(key, 3)
        rows = self.source.draw(batch_size, length, key=key_rows)
        chosen = np.diff(np.floor(np.arange(batch_size + 1) * self.share + 1e-9)) > 0
        episode = self._ends[jr.randint(key_ends, (batch_size,), 0, len(self._ends))]
        frames = self.source.length[episode]
        # From 2 to `length` frames before the one behind the end; a shorter episode is shown as a whole.
        back = jr.randint(key_place, (batch_size,), min(2, length), length + 1)
        offset = jnp.maximum(frames - back, 0)
        episode, offset = jnp.where(chosen, episode, rows.episode), jnp.where(chosen, offset, rows.offset)
        return Rows(episode, offset, self.source.relevant[episode], rows.uniform)

    def read(self, rows: Rows, length: int) -> Trajectory:
        return self.source.read(rows, length)
