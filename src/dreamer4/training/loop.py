"""The one training loop of all phases.

A step is a pure function of the state, the data and the step's key, and the key is a pure function of seed, phase and
step number. So a run that resumes needs nothing but its `TrainState`, and several seeds train side by side under one
`vmap`.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from dreamer4.config import Config, PhaseConfig
from dreamer4.data import AbstractDataSource, AbstractEpisodeSource, BalancedSource, DeviceSource, EndsSource, feed
from dreamer4.dreamer import PHASES, Dreamer
from dreamer4.errors import DivergenceError, InputError
from dreamer4.precision import in_32_bits
from dreamer4.training.guard import Guard, all_finite, choose, loss_size
from dreamer4.training.phases import AbstractPhase, Metrics
from dreamer4.training.placement import bound, replicate, replicate_here, rows_layout, split_rows, spread, spread_here
from dreamer4.training.state import RunningRMS, TrainState, Watch, build_optimizer, ema_decay
from dreamer4.training.watch import look
from dreamer4.types import DataSpec, Trajectory


# Streams of randomness below a seed's root key. Appending is safe; reordering changes every run.
STREAMS = ("init", *PHASES, "collect", "evaluate", "cloning", "behaviour", "offline", "heads")


def stream(seed: int | Int[Array, ""], name: str) -> PRNGKeyArray:
    """Returns the root key of a named stream of a seed."""
    # Named, or a run that goes on under JAX's switch for another generator would go on as another run.
    return jr.fold_in(jr.key(seed, impl="threefry2x32"), STREAMS.index(name))


def over_seeds(function: Callable, seeds: int, in_axes: tuple) -> Callable:
    """Returns a function that runs once, or side by side over a leading seed axis of the arguments at axis 0."""
    return function if seeds == 1 else eqx.filter_vmap(function, in_axes=in_axes)


def member(tree: PyTree, index: int, seeds: int) -> PyTree:
    """Returns one training seed's part of a tree; with a single seed, the tree itself."""
    return tree if seeds == 1 else jax.tree.map(lambda x: x[index] if eqx.is_array(x) else x, tree)


def stack_members(trees: Sequence[PyTree]) -> PyTree:
    """Inverts `member`: stacks one tree per training seed; a single one stays as it is."""
    if len(trees) == 1:
        return trees[0]
    return jax.tree.map(lambda *xs: jnp.stack(xs) if eqx.is_array(xs[0]) else xs[0], *trees)


@in_32_bits
def init_dreamer(config: Config, spec: DataSpec) -> Dreamer:
    """Builds the untrained agent of a run; with several seeds every array has a leading seed axis.

    It is not jitted: compiling hundreds of random draws into one program takes far longer than running them one by one.
    """
    keys = [stream(config.seed + i, "init") for i in range(config.seeds)]
    build = over_seeds(lambda key: Dreamer.build(config, spec, key=key), config.seeds, (0,))
    return build(keys[0] if config.seeds == 1 else jnp.stack(keys))


@in_32_bits
def init_state(phase: AbstractPhase, dreamer: Dreamer, config: PhaseConfig, seeds: int = 1) -> TrainState:
    """Returns the state at the start of a phase."""
    optimizer = build_optimizer(config.optimizer, config.steps)

    def init(dreamer):
        trained = eqx.filter(dreamer, phase.trainable(dreamer))
        scales = {name: RunningRMS.init() for name in phase.weights}
        # Training donates the state's buffers, so it shares none: not between its parts, nor with the caller.
        model, ema = (jax.tree.map(lambda x: x.copy() if eqx.is_array(x) else x, dreamer) for _ in range(2))
        guard = Guard.init(config.guard)
        return TrainState(model, ema, optimizer.init(trained), scales, jnp.zeros((), jnp.int32), guard, Watch.init())

    return over_seeds(init, seeds, (eqx.if_array(0),))(dreamer)


def train_step(
    phase: AbstractPhase,
    optimizer: optax.GradientTransformation,
    config: PhaseConfig,
    state: TrainState,
    batch: Trajectory,
    key: PRNGKeyArray,
) -> tuple[TrainState, Metrics]:
    """Takes one optimiser step, unless it would do harm.

    If a number of the batch, a loss term or the gradient is not finite, or loss or gradient is a spike (`Guard`), all
    of the state stays as it is, bit by bit, but the step number and the guard.

    Args:
        phase: what to train on which loss.
        optimizer: made by `build_optimizer`.
        config: settings of the phase.
        state: where training stands.
        batch: the rows that the step learns from.
        key: root key of the phase; the step's own key is derived from it by step number.

    Returns:
        The state after the step, and metrics of the step: the loss terms, what the phase tells, `gradient_norm`,
        `skipped` (1 if the step was left out) and `skipped_in_a_row`.
    """
    _, key_loss = step_keys(key, state.step)
    progress = state.step.astype(jnp.float32) / config.steps
    trained, frozen = eqx.partition(state.model, phase.trainable(state.model))

    @partial(jax.value_and_grad, has_aux=True)
    def gradient(trained):
        terms, metrics = phase.loss(eqx.combine(trained, frozen), batch, progress, key=key_loss)
        scales = {name: state.loss_scale[name].update(term) for name, term in terms.items()}
        parts = [
            weight * (terms[name] / scales[name].value() if phase.normalise else terms[name])
            for name, weight in phase.weights.items()
        ]
        return jnp.asarray(sum(parts)), (scales, terms | metrics)

    (_, (scales, metrics)), gradients = gradient(trained)
    norm = optax.tree.norm(gradients)
    figures = jnp.stack([loss_size(metrics, phase.weights), norm])
    before = (state.step - 1).astype(jnp.float32) / config.steps
    switched = [(progress >= share) & (before < share) for share in phase.switches]
    guard = state.guard.forget(jnp.any(jnp.array(switched, bool)))
    good, guard = guard.judge(figures, all_finite(batch), config.guard.sigma)
    metrics |= {"gradient_norm": norm, "skipped": (~good).astype(jnp.float32)}
    metrics["skipped_in_a_row"] = guard.in_a_row.astype(jnp.float32)

    with jax.numpy_dtype_promotion("standard"):  # optax takes numbers to the power of counted steps
        updates, opt_state = optimizer.update(gradients, state.opt_state, trained)
    updated = eqx.apply_updates(trained, updates)
    decay = ema_decay(config.ema, config.steps, state.step)
    averaged, rest = eqx.partition(state.ema, phase.trainable(state.ema))
    followed = jax.tree.map(lambda old, new: decay * old + (1.0 - decay) * new, averaged, updated)
    old = (trained, averaged, state.opt_state, state.loss_scale)
    trained, averaged, opt_state, scales = choose(good, (updated, followed, opt_state, scales), old)
    model, ema = eqx.combine(trained, frozen), eqx.combine(averaged, rest)
    return TrainState(model, ema, opt_state, scales, state.step + 1, guard, state.watch), metrics


def draw_and_step(
    phase: AbstractPhase,
    optimizer: optax.GradientTransformation,
    config: PhaseConfig,
    state: TrainState,
    source: AbstractDataSource,
    key: PRNGKeyArray,
) -> tuple[TrainState, Metrics]:
    """Takes the step of `train_step` on the batch that the same key draws from a source that lies on the device."""
    key_batch, _ = step_keys(key, state.step)
    batch = split_rows(source.sample(config.batch_size, config.length, key=key_batch))
    return train_step(phase, optimizer, config, state, batch, key)


def step_keys(key: PRNGKeyArray, step: Int[Array, ""] | int) -> tuple[PRNGKeyArray, PRNGKeyArray]:
    """Returns the keys of a step's batch and of its loss, from the root key of the phase."""
    key_batch, key_loss = jr.split(jr.fold_in(key, step))
    return key_batch, key_loss


def train(
    phase: AbstractPhase,
    config: PhaseConfig,
    state: TrainState,
    source: AbstractEpisodeSource,
    *,
    seed: int,
    seeds: int = 1,
    latents: Float[Array, "*seeds N Nz Dz"] | None = None,
    balanced: bool = True,
    mesh: Mesh | None = None,
    held_out: tuple[DeviceSource, Float[Array, "*seeds M Nz Dz"] | None] | None = None,
) -> Iterator[tuple[TrainState, Metrics]]:
    """Yields the state and the metrics after each step, until the phase is done.

    Each step is given the buffers of the state before it: the state given is consumed, and so is every state yielded as
    soon as the next one is asked for. To keep one, such as the best, copy it:
    `jax.tree.map(lambda x: x.copy() if eqx.is_array(x) else x, state)`.

    Args:
        phase: the phase.
        config: its settings.
        state: where it stands.
        source: the data set; one that stays on disk trains a single seed, and holds latents if the phase takes those.
        seed: first training seed.
        seeds: number of seeds side by side.
        latents: the data set's latents, where the phase trains on latents; one set per seed.
        balanced: whether half the rows are drawn from relevant episodes, if only some are relevant.
        mesh: the devices to train on; None: the one that the arrays lie on.
        held_out: held-out episodes and their latents, if those are to end the phase (`config.patience`); a look leaves
            `held_out`, the loss there, in the metrics of its step and of all that follow.

    Raises:
        DivergenceError: if as many steps in a row were left out as `guard.abort_after` says.
    """
    data = draws_from(phase, config, source, balanced=balanced)
    keys = [stream(seed + i, phase.name) for i in range(seeds)]
    key = keys[0] if seeds == 1 else jnp.stack(keys)
    late: Float[Array, "*seeds"] | None = None
    if mesh is None:
        state = bound(state)  # as every later state is where weights or latents were loaded
    else:
        state = spread(state, mesh)
        phase, key = replicate((phase, key), mesh)
    if mesh is not None:
        held_out = replicate(held_out, mesh)
        data, latents = replicate((data, latents), mesh) if data.on_device else (data, latents)
    step, batches, seen = int(jnp.max(state.step)), None, {}
    while step < config.steps:
        if batches is None and not data.on_device:
            batches = _batches(phase, config, data, seed, seeds, range(step, config.steps), mesh)
        batch = None if batches is None else next(batches)
        with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
            if batch is None:
                state, metrics = _compiled_step((phase, config, seeds, data, latents, key), state)
            else:
                state, metrics = _compiled_step_on((phase, config, batch, key), state)
            # Of the step before, so that the device never waits for us.
            _check_progress(late, step, config)
            late, step = metrics["skipped_in_a_row"], step + 1
            if held_out is not None and config.patience and step % config.look_every == 0:
                state, loss = look((phase, config, seeds, *held_out, key), state)
                seen, at = {"held_out": loss}, int(jnp.max(state.step))
                step, batches = at, batches if at == step else None
        yield state, metrics | seen
    _check_progress(late, config.steps, config)


def _batches(
    phase: AbstractPhase,
    config: PhaseConfig,
    data: AbstractDataSource,
    seed: int,
    seeds: int,
    steps: range,
    mesh: Mesh | None,
) -> Iterator[Trajectory]:
    """Returns the batches of some steps of data that stays on disk."""
    if seeds > 1:
        raise InputError(
            f"data.source: stream trains one seed at a time, but seeds is {seeds}. Train as many runs, each "
            "with its own seed, or set data.source=device."
        )

    def key_of(step: int) -> PRNGKeyArray:
        return step_keys(stream(seed, phase.name), step)[0]

    sharding = None if mesh is None else rows_layout(config.batch_size, mesh)
    return feed(data, key_of, steps, config.batch_size, config.length, sharding=sharding)


def draws_from(
    phase: AbstractPhase, config: PhaseConfig, source: AbstractEpisodeSource, *, balanced: bool
) -> AbstractDataSource:
    """Returns what a phase draws its batches from: the data set, or a balance of it where there is a choice.

    Tokenizer and dynamics learn from all of the data alike, ends oftener if so set; rows chosen for cloning would be of
    no use to them.

    Raises:
        InputError: if ends are wanted of data in which no episode terminated.
    """
    if config.ends:
        return EndsSource(source, config.ends)
    choice = phase.name not in ("tokenizer", "dynamics") and balanced and not bool(np.all(np.asarray(source.relevant)))
    return BalancedSource(source) if choice else source


def _check_progress(in_a_row: Float[Array, "*seeds"] | None, step: int, config: PhaseConfig) -> None:
    if in_a_row is not None and (skipped := int(np.max(np.asarray(in_a_row)))) >= config.guard.abort_after:
        raise DivergenceError(step, skipped)


# One function for all runs, so that a phase that is trained again in one process is not compiled again. The buffers of
# the state are reused for the next state.
@eqx.filter_jit(donate="all-except-first")
def _compiled_step(given, state):
    phase, config, seeds, data, latents, key = given
    optimizer = build_optimizer(config.optimizer, config.steps)

    def step(latents, key, state):
        encoded = data if latents is None else data.with_latents(latents)
        return draw_and_step(phase, optimizer, config, state, encoded, key)

    state, metrics = over_seeds(step, seeds, (eqx.if_array(0), 0, eqx.if_array(0)))(latents, key, state)
    return spread_here(state), replicate_here(metrics)


@eqx.filter_jit(donate="all-except-first")
def _compiled_step_on(given, state):
    phase, config, batch, key = given
    optimizer = build_optimizer(config.optimizer, config.steps)
    state, metrics = train_step(phase, optimizer, config, state, split_rows(batch), key)
    return spread_here(state), replicate_here(metrics)
