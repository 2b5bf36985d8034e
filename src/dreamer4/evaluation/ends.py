"""Whether the world model sees the ends that a policy runs into: the gate a dream must pass before it may teach.

From places in the data the game is played for some frames, under the policy's own and under random actions, and the
same actions are dreamt. Where the world has chance, no model foretells every end; so the yardstick is a twin, the game
once more from the same place under the same actions with other chance. A dream is as good as its world where
it recalls as many ends as the twin and ends as many games.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from dreamer4.data import DeviceSource, random_action
from dreamer4.dreamer import Dreamer
from dreamer4.evaluation.clips import Starts
from dreamer4.worlds import DreamWorld, RealWorld


HORIZON = 16  # frames
RANGES = ((1, 4), (5, 8), (9, 16))
SLACK = 1  # frames by which an end may be early or late and still be the same
AT_ONCE = 50  # starts side by side


@dataclass(frozen=True)
class Recall:
    """How ends of the game are met again, by ranges of frames behind the start.

    Attributes:
        frames: first and last frame of each range.
        ends: games that ended in it.
        dream: share of them that the dream ends within a frame of the same one; None without any.
        twin: the same of the game played once more.
        over: share of all games that end within the frames measured.
        dream_over: the same of dreams.
        twin_over: the same of games played once more.
    """

    frames: tuple[tuple[int, int], ...]
    ends: tuple[int, ...]
    dream: tuple[float | None, ...]
    twin: tuple[float | None, ...]
    over: float
    dream_over: float
    twin_over: float

    @classmethod
    def of(
        cls, game: Int[np.ndarray, " N"], dream: Int[np.ndarray, " N"], twin: Int[np.ndarray, " N"], horizon: int
    ) -> "Recall":
        """Counts frames at which games end; `horizon + 1` where one does not."""
        ranges = tuple((first, min(last, horizon)) for first, last in RANGES if first <= horizon)
        within = [(first <= game) & (game <= last) for first, last in ranges]

        def met(other):
            again = (other <= horizon) & (np.abs(other - game) <= SLACK)
            return tuple(round(float(again[chosen].mean()), 4) if chosen.any() else None for chosen in within)

        over = (round(float((ended <= horizon).mean()), 4) for ended in (game, dream, twin))
        return cls(ranges, tuple(int(chosen.sum()) for chosen in within), met(dream), met(twin), *over)


@dataclass(frozen=True)
class Ends:
    """Ends under the policy's own and under random actions, from so many starts."""

    starts: int
    policy: Recall
    random: Recall

    def record(self) -> dict[str, object]:
        """Returns all of it as plain data."""
        return asdict(self)


def measure_ends(
    dreamer: Dreamer,
    world: RealWorld,
    source: DeviceSource,
    starts: Starts,
    *,
    context_length: int,
    horizon: int = HORIZON,
    progress: Callable[[int, int], None] | None = None,
    key: PRNGKeyArray,
) -> Ends:
    """Plays on from places in the data, once more with other chance, and in the dream.

    Args:
        dreamer: the agent.
        world: the real environment.
        source: episodes with latents, as the world prepared them.
        starts: where to play on.
        context_length: most frames that the agent remembers, at most the dynamics' context.
        horizon: frames played on, at least 1.
        progress: called with starts done and in total.
        key: randomness of everything.
    """
    number = len(starts.episode)
    given = np.minimum(starts.passed, context_length)
    found: dict[str, list[np.ndarray]] = {"policy": [], "random": []}
    size = min(AT_ONCE, number)
    for first in range(0, number, size):
        index = np.minimum(np.arange(first, first + size), number - 1)  # one shape, one compilation
        for i, (name, parts) in enumerate(found.items()):
            episode, count = jnp.asarray(starts.episode[index]), jnp.asarray(given[index])
            row = source.stretches(episode, jnp.asarray(starts.passed[index]) - count, context_length)
            keys = jr.split(jr.fold_in(jr.fold_in(key, i), first), len(index))
            ended = _play_on(dreamer, world, row, count, horizon, name == "random", keys)
            parts.append(np.asarray(ended)[: number - first])
        if progress is not None:
            progress(min(first + size, number), number)
    columns = {name: np.concatenate(parts).T for name, parts in found.items()}
    return Ends(
        number, **{name: Recall.of(game, dream, twin, horizon) for name, (game, dream, twin) in columns.items()}
    )


@eqx.filter_jit
def _play_on(dreamer, world, rows, counts, horizon, by_chance, keys):
    """Returns the frames at which game, dream and twin end, a row for each start."""
    spec, dream = world.env.spec.action, DreamWorld()

    def play(row, count, key):
        key_enter, key_actions, key_game, key_dream, key_twin = jr.split(key, 5)
        actions = None
        if by_chance:
            actions = jax.vmap(lambda key: random_action(spec, key=key))(jr.split(key_actions, horizon))
        start = world.enter(dreamer, row, count, key=key_enter)
        game = world.live(dreamer, start, horizon, actions=actions, key=key_game)
        memory = dream.enter(dreamer, row, count, key=key_enter)
        dreamt = dream.live(dreamer, memory, horizon, actions=game.action, key=key_dream)
        twin = world.live(dreamer, start, horizon, actions=game.action, key=key_twin)
        return jnp.stack([end_frame(life.continuation) for life in (game, dreamt, twin)])

    return jax.vmap(play)(rows, counts, keys)


def end_frame(continuation: Float[Array, " H"]) -> Int[Array, ""]:
    """Returns the first frame, from 1 on, that ends an episode; `H + 1` if none does."""
    over: Bool[Array, " H"] = continuation <= 0.5
    return jnp.where(over.any(), 1 + jnp.argmax(over), over.shape[0] + 1)
