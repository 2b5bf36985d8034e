"""One phase of training at work: steps, metrics, checkpoints, what is left when it is stopped or comes to nothing."""

import json
import shlex
import warnings
from collections import deque
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax.sharding import Mesh

from dreamer4 import checkpoint
from dreamer4.checkpoint import Checkpoints, whole
from dreamer4.config import Config, PhaseConfig
from dreamer4.data import AbstractEpisodeSource, DatasetInfo, DeviceSource
from dreamer4.dreamer import PHASES, Dreamer
from dreamer4.errors import DivergenceError, InputError
from dreamer4.run import processes, stopping
from dreamer4.run.folder import RunFolder
from dreamer4.run.metrics import MetricLog
from dreamer4.run.reporter import SILENT, Reporter
from dreamer4.training import AbstractPhase, TrainState, init_dreamer, stream, train
from dreamer4.training.loop import draws_from, step_keys
from dreamer4.types import DataSpec


def save(steps: Checkpoints, done: int, state: TrainState, meta: dict[str, Any]) -> None:
    """Saves a step; of several processes the first does, when all have handed it what they hold.

    Raises:
        InputError: as `Checkpoints.save`.
    """
    if not processes.several():
        steps.save(done, state, meta)
        return
    state = jax.tree.map(lambda x: whole(x) if eqx.is_array(x) else x, state)
    try:
        if processes.first():
            # Orbax would wait for the others, who would wait for it if a disk is full.
            steps.save(done, state, meta, kind="safetensors")
    finally:
        processes.wait("saved")


def start_of(config: Config, run: RunFolder, name: str, spec: DataSpec) -> Dreamer:
    """Returns the agent that a phase starts from: untrained, or the averaged weights of the phase before."""
    if name == PHASES[0]:
        return init_dreamer(config, spec)
    before = PHASES[PHASES.index(name) - 1]
    path = run.checkpoints(before).latest_valid()
    wanted = getattr(config.train, before).steps
    if path is None or int(path.name) < wanted:
        reached = "no checkpoint" if path is None else f"step {path.name}"
        raise InputError(
            f"{name} starts from the end of {before}, step {wanted}, but {run.path} has {reached}. "
            f"Run: dreamer4 train {before} --run {shlex.quote(str(run.path))} --resume"
        )
    return checkpoint.load(path, eqx.filter_eval_shape(init_dreamer, config, spec), at="ema")


@dataclass(frozen=True)
class Work:
    """What the phases of a run share.

    Attributes:
        config: settings of the run.
        run: its folder.
        source: the training episodes.
        info: description of the data set.
        log: the metrics; None: another process writes them.
        meta: what every checkpoint tells about itself.
        command: what a person types to go on with the run.
        mesh: the devices; None: one.
        report: is told how far it has come.
        held_out: held-out episodes, if there are any.
        held_out_latents: theirs, where they decide when a phase that trains on latents is over.
    """

    config: Config
    run: RunFolder
    source: AbstractEpisodeSource
    info: DatasetInfo
    log: MetricLog | None
    meta: dict[str, Any]
    command: str
    mesh: Mesh | None = None
    report: Reporter = SILENT
    held_out: DeviceSource | None = None
    held_out_latents: Any = None

    def train(
        self, phase: AbstractPhase, settings: PhaseConfig, state: TrainState, latents: Any, steps: Checkpoints
    ) -> TrainState:
        """Returns the state after the last step of a phase, saving on the way.

        When a signal asks to leave, the state is saved after the step that is being taken. To be called within
        `stopping.hold`.

        Raises:
            Stopped: after that.
            DivergenceError: if the run came to nothing; the batches at fault are written to the run's folder.
        """
        config, done = self.config, int(np.max(state.step))
        if self.log is not None:
            self.log.truncate(phase.name, done)
        self._note(phase.name, done if done else None, settings.steps, steps)
        waiting: list[dict[str, Any]] = []
        due: tuple[int, list[dict[str, Any]]] | None = None
        vote = processes.Vote()
        recent: deque[tuple[int, dict[str, Any]]] = deque(maxlen=settings.guard.abort_after + 1)
        with self.report.progress(phase.name, total=settings.steps, completed=done) as bar:
            stopping.losing(False)
            training = train(
                phase,
                settings,
                state,
                self.source,
                seed=config.seed,
                seeds=config.seeds,
                latents=latents,
                balanced=config.agent.balanced,
                mesh=self.mesh,
                held_out=None if self.held_out is None else (self.held_out, self.held_out_latents),
            )
            try:
                for state, metrics in training:
                    # Metrics are read while the device takes the step after theirs, so that it never waits for us.
                    text = self._report(phase, due)
                    due = None
                    stopping.losing(True)
                    before, done = done, done + 1
                    if settings.patience and done % settings.look_every == 0:
                        done = int(np.max(state.step))  # a look may have moved it on
                    waiting.append(metrics)
                    recent.append((done, metrics))
                    last, asked = done == settings.steps, vote.any(stopping.requested())
                    saving = not last and (asked or done % config.train.save_every == 0)
                    # At every save, so that a run that goes on from here writes the lines that this one would.
                    if last or saving or done % config.train.log_every == 0:
                        due, waiting = (done, waiting), []
                    if last or saving:
                        text, due = self._report(phase, due), None
                    bar.advance(done - before, text)
                    if saving and self._save(steps, done, state, phase.name):
                        stopping.losing(False)
                        self._note(phase.name, done, settings.steps, steps)
                    if asked and not last:  # saved above; who asked since then waits for the next step
                        raise stopping.Stopped(stopping.signum())
            except DivergenceError as error:
                self._report(phase, due)
                if waiting:
                    self._report(phase, (done, waiting))
                raise self._explained(error, phase, settings, steps, list(recent)) from None
        stopping.losing(True)  # until the last checkpoint is saved
        return state

    def _report(self, phase: AbstractPhase, due: tuple[int, list[dict[str, Any]]] | None) -> str | None:
        """Writes the metrics of the steps up to one, if any are due, and returns what the progress bar says of them."""
        if due is None:
            return None
        done, metrics = due
        means = mean_over(metrics, self.config.seeds)
        if self.log is not None:
            self.log.append(phase.name, done, means)
        text = "  ".join(f"{name} {np.mean(means[name]):.3g}" for name in list(phase.weights)[:3])
        if skipped := int(np.sum(means["skipped"])):
            text += f"  {skipped} steps left out"
        return text

    def _save(self, steps: Checkpoints, done: int, state: TrainState, phase: str) -> bool:
        try:
            save(steps, done, state, self.meta | {"phase": phase})
        except InputError as error:
            if self.config.train.on_save_error == "stop" or not isinstance(error.__cause__, OSError):
                raise
            warnings.warn(f"{error} Training goes on (train.on_save_error is continue).", stacklevel=2)
            return False
        return True

    def _note(self, phase: str, saved: int | None, total: int, steps: Checkpoints) -> None:
        what = f"{phase}: nothing saved yet" if saved is None else f"{phase}: saved step {saved} of {total}"
        where = "" if saved is None else f" in {steps.path(saved)}"
        stopping.note(f"{what}{where}. Go on with: {self.command}")

    def _explained(
        self,
        error: DivergenceError,
        phase: AbstractPhase,
        settings: PhaseConfig,
        steps: Checkpoints,
        recent: list[tuple[int, dict[str, Any]]],
    ) -> DivergenceError:
        """Writes what the steps at fault were made of, and returns the error with what to do."""
        newest = steps.latest_valid()
        file = self.run.path / f"diverged-{phase.name}-{error.step}.json"
        told = {
            "phase": phase.name,
            "step": error.step,
            "skipped_in_a_row": error.skipped,
            "guard": settings.guard.model_dump(mode="json"),
            "last_checkpoint": None if newest is None else str(newest.relative_to(self.run.path)),
            "data": self.info.fingerprint,
            "steps": [
                {"step": step, "metrics": _told(metrics), "batch": self._batch(phase, settings, step)}
                for step, metrics in recent
                if step <= error.step
            ],
        }
        if processes.first():
            file.write_text(json.dumps(told, indent=1) + "\n")
        start = "it begins anew" if newest is None else f"the last checkpoint is {newest}"
        return DivergenceError(
            error.step,
            error.skipped,
            f"{phase.name}: batches, losses and gradients of these steps are in {file}; {start}. Steps are functions "
            f"of the seed, so this run would come to the same. If the data is sound, start a new one with a smaller "
            f"train.{phase.name}.optimizer.learning_rate or other train.{phase.name}.guard settings.",
        )

    def _batch(self, phase: AbstractPhase, settings: PhaseConfig, step: int) -> list[list[dict[str, int]]]:
        """Returns the episode of the data set and the first frame in it of each row of a batch, per training seed."""
        source, numbers = (
            draws_from(phase, settings, self.source, balanced=self.config.agent.balanced),
            self.info.indices("train"),
        )
        batches = []
        for i in range(self.config.seeds):
            key, _ = step_keys(stream(self.config.seed + i, phase.name), step - 1)
            drawn = source.draw(settings.batch_size, settings.length, key=key)
            rows = zip(*map(np.asarray, (drawn.episode, drawn.offset)), strict=True)
            batches.append([{"episode": numbers[int(episode)], "frame": int(frame)} for episode, frame in rows])
        return batches


def mean_over(waiting: list[dict[str, Any]], seeds: int) -> dict[str, Any]:
    """Averages metrics over steps; those of steps left out do not count, unless there are no others.

    `skipped` is how many were left out.
    """
    steps = jax.device_get(waiting)
    host = {name: np.stack([step[name] for step in steps]) for name in waiting[0] if name != "skipped_in_a_row"}
    taken = host["skipped"] == 0
    counted = taken | ~taken.any(axis=0)
    means = {name: np.mean(values, axis=0, where=counted) for name, values in host.items()}
    means["skipped"] = host["skipped"].sum(axis=0)
    return {name: float(value) if seeds == 1 else [float(x) for x in value] for name, value in means.items()}


def _told(metrics: dict[str, Any]) -> dict[str, Any]:
    """Returns metrics as JSON takes them: what is not finite as its name."""
    return {
        name: json.loads(json.dumps(np.asarray(value).tolist()), parse_constant=str) for name, value in metrics.items()
    }
