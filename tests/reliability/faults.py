"""Numbers that are not, and spikes, planted into training steps of real phases; and how often a sound step is refused.

All of it is one process's own work on the smallest preset; `suite` puts it into the table.
"""

import dataclasses
from functools import partial
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree
from rich.console import Console

from dreamer4 import data, envs
from dreamer4.config import Config, PhaseConfig, load
from dreamer4.data import DeviceSource
from dreamer4.dreamer import PHASES, Dreamer
from dreamer4.training import (
    AbstractPhase,
    TrainState,
    build_optimizer,
    build_phase,
    draw_and_step,
    encode_source,
    init_dreamer,
    init_state,
    measure_latents,
    stream,
    train,
)
from dreamer4.training.phases import Metrics
from dreamer4.types import DataSpec, Trajectory
from dreamer4_cli.console import ProgressBar


console = Console()

FAULTS = ("NaN loss", "infinite loss", "NaN gradient", "infinite gradient", "loss x 100", "gradient x 1000")
WINDOW = 16


def faulty(phase: AbstractPhase) -> AbstractPhase:
    """Returns a phase with a place for a fault: field `fault`, an index into `FAULTS` counted from 1, or 0."""

    class Faulty(AbstractPhase):
        inner: AbstractPhase
        fault: Int[Array, ""]
        name: ClassVar[str] = phase.name
        normalise: ClassVar[bool] = phase.normalise

        @property
        def weights(self) -> dict[str, float]:
            return self.inner.weights

        def trainable(self, dreamer: Dreamer) -> PyTree[bool]:
            return self.inner.trainable(dreamer)

        def loss(
            self, dreamer: Dreamer, batch: Trajectory, progress: Float[Array, ""], *, key: PRNGKeyArray
        ) -> tuple[Metrics, Metrics]:
            terms, metrics = self.inner.loss(dreamer, batch, progress, key=key)
            return {name: spoilt(term, self.fault) for name, term in terms.items()}, metrics

    return Faulty(phase, jnp.zeros((), jnp.int32))


def spoilt(term: Float[Array, ""], fault: Int[Array, ""]) -> Float[Array, ""]:
    """Returns a loss term with a fault of `FAULTS` in its value or in its gradient alone."""
    fixed = jax.lax.stop_gradient(term)
    moves = jnp.where(fault == 6, 1000.0, 1.0) * (term - fixed)
    # A root has an infinite slope at zero, which is not a number if nothing moves under it; the root itself is zero.
    sound = jnp.where((fault == 3) | (fault == 4), 0.0, 1.0)
    slope = jnp.sqrt(jnp.where(fault == 4, 1.0, 0.0) * (term - fixed) + sound) - sound
    value = (fixed + moves) * jnp.where(fault == 5, 100.0, 1.0) + slope
    return value + jnp.where(fault == 1, jnp.nan, 0.0) + jnp.where(fault == 2, jnp.inf, 0.0)


def _world(steps: int, window: int | None = None) -> tuple[Config, DataSpec, DeviceSource]:
    guard = [] if window is None else [f"train.{phase}.guard.window={window}" for phase in PHASES]
    config = load("tiny", overrides=[*(f"train.{phase}.steps={steps}" for phase in PHASES), *guard])
    env = envs.make(config.env)
    episodes = data.collect(env, data.random_policy(env.spec), episodes=config.data.episodes, key=stream(0, "collect"))
    return config, env.spec, DeviceSource.from_episodes(list(episodes))


def _kept(state: TrainState) -> list[bytes]:
    parts = (state.model, state.ema, state.opt_state, state.loss_scale)
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(eqx.filter(parts, eqx.is_array))]


def _filled(tree: PyTree, value: float) -> PyTree:
    return jax.tree.map(lambda x: jnp.full_like(x, value) if jnp.issubdtype(x.dtype, jnp.inexact) else x, tree)


def planted(quick: bool) -> dict[str, Any]:
    """Plants every fault into every phase, and looks for any bit of the state that it changed."""
    trials, names = (1, PHASES[:2]) if quick else (25, PHASES)
    config, spec, frames = _world(10_000, WINDOW)
    dreamer = init_dreamer(config, spec)
    latents = frames.with_latents(encode_source(dreamer, frames))
    escaped, count = [], 0
    for name in names:
        phase, settings = faulty(build_phase(name, config, spec)), getattr(config.train, name)
        optimizer = build_optimizer(settings.optimizer, settings.steps)
        source = frames if name == PHASES[0] else latents
        jitted = eqx.filter_jit(partial(_step, optimizer, settings, stream(0, name)))
        state = init_state(phase, dreamer, settings)
        for _ in range(WINDOW):
            state, _ = jitted(phase, state, source)
        steps = {fault: (_with_fault(phase, 1 + i), source) for i, fault in enumerate(FAULTS)}
        for part in ("reward", "latent") if source.latent is not None else ("reward",):
            for value in (np.nan, np.inf):
                spoilt_source = dataclasses.replace(source, **{part: _filled(getattr(source, part), value)})
                steps[f"{part} {value}"] = (phase, spoilt_source)
        for _ in range(trials):
            for fault, (spoilt_phase, spoilt_source) in steps.items():
                after, metrics = jitted(spoilt_phase, state, spoilt_source)
                count += 1
                if metrics["skipped"] != 1 or _kept(after) != _kept(state):
                    escaped.append(f"{name}: {fault} at step {int(after.step)}")
                state, _ = jitted(phase, state, source)
    return {
        "figure": f"{count - len(escaped)} of {count} left out, state bitwise unchanged",
        "wanted": "all",
        "ok": not escaped,
        "details": {"escaped": escaped, "kinds": [*FAULTS, "NaN or infinite reward or latent"]},
    }


def _step(
    optimizer: Any, settings: PhaseConfig, key: PRNGKeyArray, phase: AbstractPhase, state: Any, source: Any
) -> Any:
    return draw_and_step(phase, optimizer, settings, state, source, key)


def _with_fault(phase: AbstractPhase, fault: int) -> AbstractPhase:
    return dataclasses.replace(phase, fault=jnp.array(fault, jnp.int32))


def clean(steps: int) -> dict[str, Any]:
    """Trains every phase for so many steps on sound data, and counts the steps that were left out."""
    config, spec, source = _world(steps)
    dreamer, latents = init_dreamer(config, spec), None
    skipped, closest = {}, {}
    for name in PHASES:
        phase, settings = build_phase(name, config, spec), getattr(config.train, name)
        state, told = init_state(phase, dreamer, settings), []
        with ProgressBar(name, total=steps, console=console) as bar:
            for state, metrics in train(phase, settings, state, source, seed=0, latents=latents):  # noqa: B007
                told.append(metrics)
                bar.advance()
        host = jax.device_get(told)
        skipped[name] = int(sum(metrics["skipped"] for metrics in host))
        norms = np.array([metrics["gradient_norm"] for metrics in host])
        losses = np.array([sum(abs(w * metrics[term]) for term, w in phase.weights.items()) for metrics in host])
        closest[name] = [round(_excess(figures, settings.guard.window), 2) for figures in (losses, norms)]
        dreamer = phase.finish(state.ema)
        if name == PHASES[0]:
            dreamer, _ = measure_latents(dreamer, lambda d: encode_source(d, source))
            latents = encode_source(dreamer, source)
    total = sum(skipped.values())
    return {
        "figure": f"{total} of {steps * len(PHASES)} sound steps left out",
        "wanted": "under 0.1 %",
        "ok": total < 0.001 * steps * len(PHASES),
        "details": {"left out": skipped, "largest loss and gradient over the mean before them": closest},
    }


def _excess(values: np.ndarray, window: int) -> float:
    """Returns the largest value in units of the mean of the window before it."""
    return max(float(values[i] / values[max(0, i - window) : i].mean()) for i in range(window // 2, len(values)))
