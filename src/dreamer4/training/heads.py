"""The agent's heads trained to the end, on read-outs that are computed once.

The agent phase trains the whole dynamics with them, so a step is dear and the heads see few. Alone, on cached
read-outs, a step costs next to nothing, and the likelihood of held-out episodes tells when to stop.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from dreamer4.agent import ContinuationHead, PolicyHead, ScalarHead, agent_losses, weighted_mean
from dreamer4.config import Config, HeadsConfig
from dreamer4.data import AbstractDataSource, BalancedSource, DeviceSource
from dreamer4.dreamer import Dreamer
from dreamer4.dynamics import AbstractDynamics
from dreamer4.training.encoding import encode_source, put_rows
from dreamer4.types import Trajectory


# Policy, reward and continuation head, and a policy that starts anew: what it reaches is what `h` allows.
Heads = tuple[PolicyHead, ScalarHead, ContinuationHead, PolicyHead]
TERMS = ("cloning", "reward", "continuation", "probe")  # what each of them is trained on

_FRAMES_AT_ONCE = 4096
_SHORTEST = 64  # frames of a stretch, at least, so that few lengths are compiled
_PROBE = 256  # units of the probe
_AVERAGE = 0.005  # rate of the running average of weights, which is what is judged and kept


def read_out(dynamics: AbstractDynamics, source: DeviceSource, *, key: PRNGKeyArray) -> DeviceSource:
    """Returns a data set of latents with the read-out `h` of each frame in their place, as one token of their type.

    Each is read out behind its own past, as when acting. Where that has a bound, long episodes are taken in stretches
    of twice as much, of which the second half counts; else as a whole. So many frames at once bound the memory.
    """
    assert source.latent is not None
    past = dynamics.context_length or source.max_length
    stretches: dict[int, list[tuple[int, int]]] = {}
    for episode, frames in enumerate(source.length.tolist()):
        span = min(2 * past, max(_SHORTEST, 1 << (frames - 1).bit_length()), source.max_length)
        stretches.setdefault(span, []).extend((episode, begin) for begin in range(0, max(frames - past, 1), past))
    found = jnp.zeros((source.num_frames, dynamics.agent_dim), source.latent.dtype)
    for span, places in stretches.items():
        rows = min(max(_FRAMES_AT_ONCE // span, 1), len(places))
        for first in range(0, len(places), rows):
            # The last call repeats the last stretch, so that every call has one shape.
            index, begin = np.array(places)[np.minimum(np.arange(first, first + rows), len(places) - 1)].T
            begins = jnp.asarray(begin)
            clips = source.stretches(jnp.asarray(index), begins, span)
            h = _read_out(dynamics, clips, jr.fold_in(key, first)).astype(found.dtype)
            time = jnp.arange(span)
            own = clips.valid & ((begins[:, None] == 0) | (time >= past))
            row = source.start[index][:, None] + begins[:, None] + time
            found = put_rows(found, jnp.where(own, row, source.num_frames), h)
    return source.with_latents(found[:, None])


@eqx.filter_jit
def _read_out(dynamics: AbstractDynamics, clips: Trajectory, key: PRNGKeyArray) -> Float[Array, "B T E"]:
    keys = jr.split(key, len(clips.valid))
    return jax.vmap(lambda clip, key: dynamics.readouts(clip, key=key))(clips, keys)


def _losses(heads: Heads, row: Trajectory) -> tuple[dict[str, Float[Array, ""]], dict[str, Int[Array, ""]]]:
    """Returns the terms of eq 9 for a clip of read-outs, the probe's beside them, and how many targets each has."""
    assert row.latent is not None
    h = row.latent[:, 0]
    terms, counts = agent_losses(*heads[:3], h, row)
    probe, _ = agent_losses(heads[3], *heads[1:3], h, row)
    return terms | {"probe": probe["cloning"]}, counts | {"probe": counts["cloning"]}


@eqx.filter_jit
def _advance(config: HeadsConfig, source: AbstractDataSource, state: PyTree, key: PRNGKeyArray) -> PyTree:
    arrays, static = eqx.partition(state, eqx.is_array)

    def loss(heads, rows):
        terms, counts = jax.vmap(lambda row: _losses(heads, row))(rows)
        return sum((weighted_mean(terms[name], counts[name]) for name in TERMS), jnp.zeros(()))

    def step(arrays, key):
        heads, average, opt_state = eqx.combine(arrays, static)
        gradients = eqx.filter_grad(loss)(heads, source.sample(config.batch_size, config.length, key=key))
        updates, opt_state = optax.adam(config.learning_rate).update(gradients, opt_state)
        heads = eqx.apply_updates(heads, updates)
        average = jax.tree.map(lambda a, h: a + _AVERAGE * (h - a) if eqx.is_array(a) else a, average, heads)
        return eqx.filter((heads, average, opt_state), eqx.is_array), None

    return eqx.combine(jax.lax.scan(step, arrays, jr.split(key, config.every))[0], static)


@eqx.filter_jit
def _judge(heads: Heads, held_out: DeviceSource) -> dict[str, Float[Array, ""]]:
    """Returns the terms over whole episodes, a few at a time."""

    def one(index):
        return _losses(heads, jax.tree.map(lambda x: x[0], held_out.episodes(index[None], held_out.max_length)))

    rows = max(_FRAMES_AT_ONCE // held_out.max_length, 1)
    count = held_out.num_episodes
    terms, counts = jax.lax.map(one, jnp.arange(count), batch_size=min(rows, count))
    return {name: weighted_mean(terms[name], counts[name]) for name in TERMS}


def finish_heads(
    heads: Heads, source: AbstractDataSource, held_out: DeviceSource, config: HeadsConfig, *, key: PRNGKeyArray
) -> tuple[Heads, list[dict[str, float]]]:
    """Trains heads until the likelihood of held-out episodes stops improving.

    They share no weights, so each is returned as it was when its own likelihood was best, its start included; when none
    has improved for `config.patience` looks, it is over.

    Args:
        heads: the start.
        source: read-outs of the training episodes.
        held_out: read-outs of held-out episodes.
        config: when to look and when to stop.
        key: randomness of the batches.

    Returns:
        The heads, and nats on held-out episodes by term at each look, the first of them before the first step.
    """
    state = (heads, heads, optax.adam(config.learning_rate).init(eqx.filter(heads, eqx.is_inexact_array)))
    looks = [{name: float(nats) for name, nats in _judge(heads, held_out).items()}]
    best: list[Any] = list(heads)
    waited = 0
    while len(looks) <= config.looks and waited < config.patience:
        state = _advance(config, source, state, jr.fold_in(key, len(looks)))
        look = {name: float(nats) for name, nats in _judge(state[1], held_out).items()}
        better = [look[name] < min(before[name] for before in looks) for name in TERMS]
        best = [new if is_better else old for old, new, is_better in zip(best, state[1], better, strict=True)]
        waited = 0 if any(better) else waited + 1
        looks.append(look)
    return (best[0], best[1], best[2], best[3]), looks


def finish_agent(
    dreamer: Dreamer, train: DeviceSource, held_out: DeviceSource, config: Config, *, key: PRNGKeyArray
) -> tuple[Dreamer, list[dict[str, float]]]:
    """Trains the heads of an agent to the end, as `finish_heads` tells.

    Args:
        dreamer: the agent at the end of its phase.
        train: latents of the training episodes.
        held_out: frames of held-out episodes.
        config: of the run.
        key: randomness.
    """
    key_train, key_held_out, key_probe, key_fit = jr.split(key, 4)
    source = read_out(dreamer.dynamics, train, key=key_train)
    judged = read_out(dreamer.dynamics, held_out.with_latents(encode_source(dreamer, held_out)), key=key_held_out)
    balanced = config.agent.balanced and not bool(jnp.all(source.relevant))
    size = {"hidden": _PROBE, "layers": 1, "length": dreamer.policy.length}
    probe = PolicyHead(
        dreamer.dynamics.agent_dim, dreamer.policy.spec, continuous=dreamer.policy.continuous, **size, key=key_probe
    )
    heads = (dreamer.policy, dreamer.reward, dreamer.continuation, probe)
    drawn = BalancedSource(source) if balanced else source
    finished, looks = finish_heads(heads, drawn, judged, config.train.heads, key=key_fit)
    return eqx.tree_at(lambda d: (d.policy, d.reward, d.continuation), dreamer, finished[:3]), looks


def told(looks: Sequence[Sequence[Mapping[str, float]]]) -> list[dict[str, float | list[float]]]:
    """Returns the looks of several training seeds side by side; who has ended stays at its last one."""
    count = max(map(len, looks))
    padded = [[*own, *[own[-1]] * (count - len(own))] for own in looks]
    rows = zip(*padded, strict=True)
    if len(looks) == 1:
        return [dict(row[0]) for row in rows]
    return [{name: [look[name] for look in row] for name in row[0]} for row in rows]
