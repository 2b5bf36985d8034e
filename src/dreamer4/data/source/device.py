"""A data set on the device as a whole.

Every episode lies there end to end. A batch is then two integers a row, an episode and an offset, and one gather; it
can be drawn inside a jitted training step.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped, UInt8

from dreamer4.data.episode import Episode
from dreamer4.data.readers.base import AbstractReader, Window
from dreamer4.data.source.base import AbstractEpisodeSource, Rows
from dreamer4.errors import InputError
from dreamer4.types import Action, Trajectory


_OF_EPISODES = ("is_terminal", "task", "relevant")


class DeviceSource(AbstractEpisodeSource):
    """A data set that lies on the device as a whole, drawn window by window by the laws of `AbstractEpisodeSource`."""

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
    share: Float[Array, " tasks"] | None = None

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
        told = {name: np.array([getattr(e, name) for e in episodes]) for name in _OF_EPISODES}
        return cls._end_to_end(episodes, lengths, told)

    @classmethod
    def from_reader(cls, reader: AbstractReader, episodes: Int[np.ndarray, " E"]) -> "DeviceSource":
        """Puts some episodes of a reader on the default device, in frames or in latents as the reader gives them.

        Args:
            reader: of the data.
            episodes: the numbers of at least one episode.
        """
        lengths = np.asarray(reader.lengths)[episodes].astype(np.int32)
        windows = [reader.window(int(e), 0, int(n)) for e, n in zip(episodes, lengths, strict=True)]
        return cls._end_to_end(windows, lengths, {name: getattr(reader, name)[episodes] for name in _OF_EPISODES})

    @classmethod
    def _end_to_end(
        cls,
        parts: Sequence[Episode] | Sequence[Window],
        lengths: Int[np.ndarray, " E"],
        told: Mapping[str, Shaped[np.ndarray, " E"]],
    ) -> "DeviceSource":
        def joined(name: str) -> Any:
            arrays: list[Any] = [getattr(part, name, None) for part in parts]
            return None if arrays[0] is None else jnp.asarray(np.concatenate(arrays))

        return cls(
            frame=joined("frame"),
            latent=joined("latent"),
            action=Action(joined("discrete"), joined("continuous")),
            action_mask=joined("action_mask"),
            reward=joined("reward"),
            start=jnp.asarray(np.cumsum(lengths) - lengths, jnp.int32),
            length=jnp.asarray(lengths),
            is_terminal=jnp.asarray(told["is_terminal"], bool),
            task=jnp.asarray(told["task"], jnp.int32),
            relevant=jnp.asarray(told["relevant"], bool),
            max_length=int(lengths.max()),
        )

    @property
    def on_device(self) -> bool:
        return True

    @property
    def num_frames(self) -> int:
        """Number of frames of all episodes together, N."""
        return self.reward.shape[0]

    def with_latents(self, latent: Float[Array | np.ndarray, "N Nz Dz"]) -> "DeviceSource":
        if latent.shape[0] != self.num_frames:
            raise InputError(
                f"DeviceSource.with_latents: got {latent.shape[0]} rows, expected one per frame, {self.num_frames}. "
                "Encode every frame of this source, in order."
            )
        return dataclasses.replace(self, frame=None, latent=jnp.asarray(latent))

    def with_shares(self, share: Float[np.ndarray, " tasks"]) -> "DeviceSource":
        """Returns the same data set, of which each task has its share in the rows of a batch."""
        return dataclasses.replace(self, share=jnp.asarray(share, jnp.float32))

    def with_places(self, place: PyTree) -> "DeviceSource":
        """Returns the same data set with where the real environment stood at each frame, as `replay` finds it."""
        return dataclasses.replace(self, place=place)

    def with_labels(self, share: float) -> "DeviceSource":
        """Returns the same data set in which a share of the episodes, the first ones, keep their actions."""
        ends = np.append(np.asarray(self.start), self.num_frames)
        known = np.arange(self.num_frames) < ends[round(share * (len(ends) - 1))]
        return dataclasses.replace(self, action_mask=self.action_mask & known)

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
        return self.read(Rows(index, offset, self.relevant[index], jnp.ones_like(index, bool)), length)

    def read(self, rows: Rows, length: int) -> Trajectory:
        episode, offset = rows.episode, rows.offset
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
            relevant=rows.relevant,
            uniform=rows.uniform,
            place=jax.tree.map(lambda leaf: leaf[row], self.place),
        )
