"""The slots of a frame: which see which within it and through time, and how some of them are taken out of a clip."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


@dataclass(frozen=True)
class TokenGroup:
    """A run of equal slots within a frame.

    Attributes:
        name: name of the group.
        count: number of slots.
        sees: names of the groups whose tokens its tokens attend to within a frame.
        through_time: whether its tokens attend to their own slot in earlier frames.
    """

    name: str
    count: int
    sees: tuple[str, ...]
    through_time: bool = True


@dataclass(frozen=True)
class TokenLayout:
    """The slots of a frame, as a table of groups in order."""

    groups: tuple[TokenGroup, ...]

    @property
    def size(self) -> int:
        """Number of slots, S."""
        return sum(group.count for group in self.groups)

    def slots(self, name: str) -> slice:
        """Returns the slots of a group."""
        start = 0
        for group in self.groups:
            if group.name == name:
                return slice(start, start + group.count)
            start += group.count
        raise KeyError(name)

    def space_mask(self) -> Bool[np.ndarray, "S S"]:
        """Returns which slot (row) sees which (column) within a frame."""
        mask = np.zeros((self.size, self.size), bool)
        for group in self.groups:
            for seen in group.sees:
                mask[self.slots(group.name), self.slots(seen)] = True
        return mask

    def through_time(self) -> tuple[bool, ...]:
        """Returns which slots attend through time."""
        return tuple(group.through_time for group in self.groups for _ in range(group.count))


def time_mask(segment: Int[Array, " T"], context_length: int) -> Bool[Array, "T T"]:
    """Returns which frame (row) sees which (column): itself and the past, within window and segment.

    Args:
        segment: number of the segment of each frame.
        context_length: size of the sliding window in frames, the frame itself included.
    """
    frame = jnp.arange(segment.shape[0])
    age = frame[:, None] - frame[None, :]
    return (age >= 0) & (age < context_length) & (segment[:, None] == segment[None, :])


def runs(slots: tuple[bool, ...]) -> list[tuple[slice, bool]]:
    """Returns the runs of slots that are alike."""
    bounds = [0, *(i for i in range(1, len(slots)) if slots[i] != slots[i - 1]), len(slots)]
    return [(slice(a, b), slots[a]) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]


def take(x: Float[Array, "*T S D"], slots: tuple[bool, ...]) -> Float[Array, "*T Sc D"]:
    """Returns the tokens of the chosen slots. Slices, since a CPU gathers and scatters row by row."""
    return jnp.concatenate([x[..., run, :] for run, chosen in runs(slots) if chosen], axis=-2)


def add(x: Float[Array, "*T S D"], update: Float[Array, "*T Sc D"], slots: tuple[bool, ...]) -> Float[Array, "*T S D"]:
    """Adds an update to the chosen slots."""
    parts, done = [], 0
    for run, chosen in runs(slots):
        part = x[..., run, :]
        if chosen:
            size = run.stop - run.start
            part, done = part + update[..., done : done + size, :], done + size
        parts.append(part)
    return jnp.concatenate(parts, axis=-2)
