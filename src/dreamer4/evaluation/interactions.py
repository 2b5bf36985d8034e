"""What actions do in truth, do they do it in the dream: a table of interactions, told from dreamt pictures."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from dreamer4.data import DeviceSource
from dreamer4.dreamer import Dreamer
from dreamer4.envs import AbstractEnvironment
from dreamer4.evaluation.clips import Clips, Starts
from dreamer4.evaluation.dreaming import Batch
from dreamer4.evaluation.record import Record
from dreamer4.evaluation.statistics import Rate, rate


STARTS = 64  # most dreams of one interaction
_AT_ONCE = 256  # frames read at a time


class Interaction(Record):
    """Of the places where an action did something in truth, the share where a picture shows the same.

    Attributes:
        dreamt: the dream of the frame behind the action, from the true frames before it.
        no_op: the same dream of no action; what comes of itself, or from a dream that always shows it.
        decoded: the true frame encoded and decoded, which no dream surpasses by much.
    """

    dreamt: Rate
    no_op: Rate
    decoded: Rate

    @property
    def holds(self) -> bool:
        """Whether at least half of the dreams show it, and more than without the action: the intervals are apart."""
        return self.dreamt.mean >= 0.5 and self.dreamt.low > self.no_op.high


def measure_interactions(
    dreamer: Dreamer,
    source: DeviceSource,
    latents: Float[Array, "N Nz Dz"],
    env: AbstractEnvironment,
    *,
    context_length: int,
    most: int = STARTS,
    key: PRNGKeyArray,
) -> dict[str, Interaction]:
    """Finds in episodes where actions had effects, and dreams these frames again.

    Args:
        dreamer: the agent.
        source: held-out episodes, with frames.
        latents: their latents.
        env: reads frames off and tells effects, by its `symbols` and `effects`.
        context_length: most true frames given.
        most: dreams of each interaction; where there are more places, so many are drawn.
        key: randomness of starts and dreams.

    Returns:
        By the name of the effect; those that never happened are left out.
    """
    key_starts, key_dreams = jr.split(key)
    found = _find(source, env, most, key_starts)
    if not found:
        return {}
    kind, row = np.repeat(np.arange(len(found)), [*map(len, found.values())]), np.concatenate([*found.values()])
    begin = np.asarray(source.start)
    episode = np.searchsorted(begin, row, side="right") - 1
    starts = Starts(episode, row - begin[episode])
    clips = Clips(source, source.with_latents(latents), starts, context_length, 1)
    own, actions, none = dreamer.dynamics.own_passes, clips.actions, clips.no_actions()
    shown: dict[str, list[np.ndarray]] = {name: [] for name in Interaction.model_fields}
    for index in clips.batches():
        batch = Batch.load(dreamer, clips, index, key=key_dreams)
        before, taken = env.symbols(batch.before[:, 0]), np.asarray(actions.discrete[jnp.asarray(index), 0])
        for name, latent in (
            ("dreamt", batch.dream(own, actions).latent),
            ("no_op", batch.dream(own, none).latent),
            ("decoded", batch.truth),
        ):
            told = env.effects(before, env.symbols(batch.look(latent)[0][:, 0]), taken)
            each = np.stack([told[effect] for effect in found])
            shown[name].append(each[kind[index], np.arange(len(index))])
    every = {name: np.concatenate(parts)[: len(row)] for name, parts in shown.items()}
    return {
        effect: Interaction(**{name: rate(int(x[kind == i].sum()), len(x[kind == i])) for name, x in every.items()})
        for i, effect in enumerate(found)
    }


def _find(
    source: DeviceSource, env: AbstractEnvironment, most: int, key: PRNGKeyArray
) -> dict[str, Int[np.ndarray, " n"]]:
    """Returns by effect at most so many frames, drawn among those behind an action that had it."""
    frame, known = np.asarray(source.frame), np.asarray(source.action_mask)[1:]
    parts = [env.symbols(frame[i : i + _AT_ONCE]) for i in range(0, len(frame), _AT_ONCE)]
    read = {kind: np.concatenate([part[kind] for part in parts]) for kind in parts[0]}
    before, after = ({kind: rows[cut] for kind, rows in read.items()} for cut in (np.s_[:-1], np.s_[1:]))
    told = env.effects(before, after, np.asarray(source.action.discrete)[1:])
    found = {}
    for i, (effect, happened) in enumerate(told.items()):
        # No action leads to the first frame of an episode, so none is known there.
        rows = 1 + np.flatnonzero(happened & known)
        if len(rows):
            found[effect] = np.sort(np.asarray(jr.permutation(jr.fold_in(key, i), rows))[:most])
    return found
