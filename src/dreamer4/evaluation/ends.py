"""Whether the world model sees the ends that a policy runs into: the gate a dream must pass before it may teach.

From places in the data the game is played for some frames, under the policy's own and under random actions, and the
same actions are dreamt. Where the world has chance, no model foretells every end; so the yardstick is a twin, the game
once more from the same place under the same actions with other chance. A dream is as good as its world where
it recalls as many ends as the twin and ends as many games.

A dream that recalls ends may still know one future alone. So both are lived twice under the same actions, and how far
the two dreams lie apart is held against how far the two games do: that is the share of the world's chance which the
dream shows. With few denoise passes it can be near none, and a policy is taught that nothing is left to chance.

Few of those games end under a good policy. So it also plays whole games of its own, and each is dreamt on from shortly
before its end. What the policy still dies of and the dream does not show, no training in it can unlearn.
"""

from dataclasses import asdict, dataclass
from functools import partial

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
        apart: mean squared distance of the latents of game and twin, while neither has ended, in each range; None if
            one always has.
        chance: how far two dreams lie apart, as a share of that; None where the game has no chance.
    """

    frames: tuple[tuple[int, int], ...]
    ends: tuple[int, ...]
    dream: tuple[float | None, ...]
    twin: tuple[float | None, ...]
    over: float
    dream_over: float
    twin_over: float
    apart: tuple[float | None, ...]
    chance: tuple[float | None, ...]

    @classmethod
    def of(
        cls,
        game: Int[np.ndarray, " N"],
        dream: Int[np.ndarray, " N"],
        twin: Int[np.ndarray, " N"],
        horizon: int,
        apart: Float[np.ndarray, "N H"],
        dream_apart: Float[np.ndarray, "N H"],
    ) -> "Recall":
        """Counts frames at which games end, `horizon + 1` where one does not; a distance is NaN behind an end."""
        ranges = tuple((first, min(last, horizon)) for first, last in RANGES if first <= horizon)
        within = [(first <= game) & (game <= last) for first, last in ranges]

        def met(other):
            again = (other <= horizon) & (np.abs(other - game) <= SLACK)
            return tuple(round(float(again[chosen].mean()), 4) if chosen.any() else None for chosen in within)

        def mean(distance):
            parts = (distance[:, first - 1 : last] for first, last in ranges)
            return [None if np.isnan(part).all() else round(float(np.nanmean(part)), 6) for part in parts]

        games = mean(apart)
        pairs = zip(mean(dream_apart), games, strict=True)
        chance = tuple(round(dream / game, 4) if game and dream is not None else None for dream, game in pairs)
        over, dream_over, twin_over = (round(float((ended <= horizon).mean()), 4) for ended in (game, dream, twin))
        ends = tuple(int(chosen.sum()) for chosen in within)
        return cls(ranges, ends, met(dream), met(twin), over, dream_over, twin_over, apart=tuple(games), chance=chance)


@dataclass(frozen=True)
class Ends:
    """How ends are met again.

    Attributes:
        starts: places in the data that were played on from.
        policy: from there under the policy's actions.
        random: from there under random actions.
        own: of the policy's own whole games, up to each one's end; None if none of them ended.
    """

    starts: int
    policy: Recall
    random: Recall
    own: Recall | None = None

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
        key: randomness of everything.
    """
    recalls = {}
    chance = partial(_by_chance, world.env.spec.action, horizon)
    for i, (name, followed) in enumerate((("policy", None), ("random", chance))):
        how = {"context_length": context_length, "horizon": horizon, "key": jr.fold_in(key, i)}
        game, dream, twin, apart = _from_all(dreamer, world, source, starts, followed, **how)
        recalls[name] = Recall.of(game, dream, twin, horizon, *apart)
    return Ends(len(starts.episode), **recalls)


def measure_own_ends(
    dreamer: Dreamer,
    world: RealWorld,
    played: DeviceSource,
    *,
    context_length: int,
    horizon: int = HORIZON,
    key: PRNGKeyArray,
) -> Recall:
    """Dreams games of the policy's own on from up to `horizon` frames before their ends, and plays them once more.

    Args:
        dreamer: the agent.
        world: the real environment.
        played: the games, at least one, all of them ended and none cut, with latents, as the world prepared them.
        context_length: most frames that the agent remembers, at most the dynamics' context.
        horizon: frames, at least 1.
        key: randomness of everything.
    """
    length, key_before, key_play = np.asarray(played.length), *jr.split(key)
    spread = np.asarray(jr.permutation(key_before, len(length)))  # evenly over the horizon, in no order
    before = np.minimum(1 + spread * horizon // len(length), length - 1)
    starts = Starts(np.arange(len(length)), length - before)

    def followed(index, key):
        return played.stretches(jnp.asarray(index), jnp.asarray(starts.passed[index]), horizon).action

    how = {"context_length": context_length, "horizon": horizon, "key": key_play}
    _, dream, twin, apart = _from_all(dreamer, world, played, starts, followed, **how)
    return Recall.of(before, dream, twin, horizon, *apart)


def _by_chance(spec, horizon, index, key):
    draw = jax.vmap(jax.vmap(lambda key: random_action(spec, key=key)))
    return draw(jr.split(key, (len(index), horizon)))


def _from_all(dreamer, world, source, starts, followed, *, context_length, horizon, key):
    """Returns the frames at which game, dream and twin end, and how far two games and two dreams are apart.

    `followed` returns the actions for starts of some numbers under a key; None: the policy chooses.
    """
    number = len(starts.episode)
    given = np.minimum(starts.passed, context_length)
    size, ends, apart = min(AT_ONCE, number), [], []
    for first in range(0, number, size):
        index = np.minimum(np.arange(first, first + size), number - 1)  # one shape, one compilation
        episode, count = jnp.asarray(starts.episode[index]), jnp.asarray(given[index])
        row = source.stretches(episode, jnp.asarray(starts.passed[index]) - count, context_length)
        key_actions, key_play = jr.split(jr.fold_in(key, first))
        actions = None if followed is None else followed(index, key_actions)
        lived = _play_on(dreamer, world, row, count, actions, horizon, jr.split(key_play, len(index)))
        for parts, found in zip((ends, apart), lived, strict=True):
            parts.append(np.asarray(found)[: number - first])
    return *np.concatenate(ends).T, np.concatenate(apart).swapaxes(0, 1)


@eqx.filter_jit
def _play_on(dreamer, world, rows, counts, actions, horizon, keys):
    """Returns the frames at which game, dream and twin end, and distances of games and dreams, a row for each start."""
    dream = DreamWorld()

    def play(row, count, actions, key):
        key_enter, key_game, key_dream, key_twin = jr.split(key, 4)
        live = partial(dream.live, dreamer, dream.enter(dreamer, row, count, key=key_enter), horizon)
        start = world.enter(dreamer, row, count, key=key_enter)
        game = world.live(dreamer, start, horizon, actions=actions, key=key_game)
        dreamt = live(actions=game.action, key=key_dream)
        again = live(actions=game.action, key=jr.fold_in(key_dream, 1))
        twin = world.live(dreamer, start, horizon, actions=game.action, key=key_twin)
        ends = jnp.stack([end_frame(life.continuation) for life in (game, dreamt, twin)])
        return ends, jnp.stack([_apart(game, twin), _apart(dreamt, again)])

    return jax.vmap(play)(rows, counts, actions, keys)


def _apart(one, other):
    """Returns the mean squared distance of two lives' latents at each frame, NaN behind the end of either."""
    distance = jnp.mean(jnp.square(one.latent - other.latent), axis=(-2, -1))
    return jnp.where(one.alive & other.alive, distance, jnp.nan)


def end_frame(continuation: Float[Array, " H"]) -> Int[Array, ""]:
    """Returns the first frame, from 1 on, that ends an episode; `H + 1` if none does."""
    over: Bool[Array, " H"] = continuation <= 0.5
    return jnp.where(over.any(), 1 + jnp.argmax(over), over.shape[0] + 1)
