"""The same training on other devices, in parts and in two processes: how far its numbers move, and what is lost.

Devices are virtual ones of the CPU. `suite` puts what comes of it into the table.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from dreamer4 import checkpoint, data, envs
from dreamer4.config import MeshConfig, load
from dreamer4.data import DeviceSource
from dreamer4.dreamer import PHASES
from dreamer4.run.folder import RunFolder
from dreamer4.run.metrics import MetricLog, read_metrics
from dreamer4.training import (
    build_phase,
    encode_source,
    init_dreamer,
    init_state,
    measure_latents,
    placement,
    stream,
)
from tests.reliability.lab import Lab, Result, leaves


LOSS, GRADIENT = 1e-6, 1e-5  # relative
LEAVING = 120.0  # seconds in which those end that have lost another
REMAT = [f"{part}.remat=true" for part in ("tokenizer.encoder", "tokenizer.decoder", "dynamics.transformer")]
PARTS = [f"train.{phase}.accumulate=4" for phase in PHASES]
SPLIT = ["train.mesh={data: 2, fsdp: 2}"]
VARIANTS: dict[str, tuple[int, list[str]]] = {
    "2 devices": (2, ["train.mesh.data=2"]),
    "4 devices": (4, ["train.mesh.data=4"]),
    "4 devices, weights in halves": (4, SPLIT),
    "4 parts": (1, PARTS),
    "remat": (1, REMAT),
}
# What is sent to which of two processes.
ENDS = (
    ("SIGTERM", signal.SIGTERM, 1),
    ("kill -9", signal.SIGKILL, 1),
    ("kill -9 of the first", signal.SIGKILL, 0),
)
# From where to where: devices and settings.
MOVES = (VARIANTS["4 devices, weights in halves"], VARIANTS["2 devices"], (1, []), VARIANTS["4 devices"])


class Place:
    """Runs of fifty steps in each phase, beside a reference on one device.

    Args:
        lab: where to work, and on which phases.
    """

    def __init__(self, lab: Lab):
        self.lab, self.phases = lab, lab.phases
        self.steps = 50

    def reference(self) -> Path:
        """Returns the run on one device, trained at the first call."""
        path = self.lab.place / "devices"
        if not path.exists():
            keys = [f"train.{phase}.steps={self.steps}" for phase in PHASES]
            keys += ["train.log_every=1", f"train.save_every={self.steps // 4}", "train.keep=9"]
            # A mean over bins up to symexp(20) = 5e8 is the rounding of its last bins after so few steps, and the sign
            # of an advantage is then chance. symexp(4) = 54 holds these rewards.
            keys += ["agent.bin_limit=4"]
            settings = ["--preset", "tiny", *(part for key in keys for part in ("--set", key))]
            self.lab.finish(*self.lab.train, str(path), *settings)
        return path

    def begun(self, phase: str, source: Path | None = None, step: int = 0) -> RunFolder:
        """Returns a copy of a run, by default the reference, as it was at a step of a phase."""
        run = RunFolder(Path(shutil.copytree(source or self.reference(), self.lab.folder())))
        for name in PHASES[PHASES.index(phase) :]:
            MetricLog(run.metrics_file).truncate(name, step if name == phase else 0)
            steps = run.checkpoints(name)
            for saved in steps.steps():
                if name != phase or saved > step:
                    shutil.rmtree(steps.path(saved))
        return run

    def train(self, phase: str, run: RunFolder, devices: int, settings: list[str]) -> None:
        """Goes on with a phase on some devices, to its end."""
        with virtual(devices):
            self.lab.finish(*command(phase, run, settings))

    def moved(self, phase: str, run: RunFolder) -> dict[str, Any]:
        """Returns how far losses and weights of a phase are from those of the reference."""
        config = run.read_config()
        weights = build_phase(phase, config, data.read_info(run.data).spec).weights
        one, two = (_losses(path, phase, weights) for path in (self.reference(), run.path))
        done = len(two)
        one, two = one[:done], two[: len(one)]
        difference = np.abs(two - one) / np.maximum(np.abs(one), 1e-30)
        ends = [checkpoint_of(path, phase, self.steps) for path in (self.reference(), run.path)]
        loss, *terms, gradient = (float(worst) for worst in difference.max(axis=0))
        return {
            "loss": loss,
            "terms": dict(zip(weights, terms, strict=True)),
            "gradient": gradient,
            "weights": max(float(np.abs(a - b).max(initial=0)) for a, b in zip(*ends, strict=True)),
            "ok": done == self.steps and loss <= LOSS,
        }


@contextlib.contextmanager
def virtual(devices: int) -> Iterator[None]:
    """Gives the processes that are started within as many devices of the CPU."""
    before = os.environ.get("XLA_FLAGS")
    os.environ["XLA_FLAGS"] = f"{before or ''} --xla_force_host_platform_device_count={devices}".strip()
    try:
        yield
    finally:
        if before is None:
            del os.environ["XLA_FLAGS"]
        else:
            os.environ["XLA_FLAGS"] = before


def command(phase: str, run: RunFolder, settings: list[str]) -> list[str]:
    """Returns the command line that goes on with a phase."""
    return ["train", phase, "--run", str(run.path), "--resume", *(p for key in settings for p in ("--set", key))]


def checkpoint_of(path: Path, phase: str, step: int) -> list[np.ndarray]:
    """Returns the weights at a step of a phase."""
    saved = RunFolder(path).checkpoints(phase).path(step)
    like = {name.removeprefix("model."): leaf for name, leaf in checkpoint.read_leaves(saved, at="model").items()}
    return [np.asarray(leaf, np.float64) for leaf in checkpoint.load(saved, like, at="model").values()]


def _losses(path: Path, phase: str, weights: dict[str, float]) -> np.ndarray:
    """Returns the loss, its terms and the gradient's norm of every step of a phase."""
    told = [line for line in read_metrics(path / "metrics.jsonl") if line["phase"] == phase]
    rows = [[line[name] for name in weights] for line in told]
    totals = [[sum(w * term for w, term in zip(weights.values(), row, strict=True))] for row in rows]
    return np.array([[*t, *row, line["gradient_norm"]] for t, row, line in zip(totals, rows, told, strict=True)])


def devices(lab: Lab) -> Result:
    """Trains each phase on more devices, in parts and with activations computed twice."""
    place, details = Place(lab), {}
    for phase in place.phases:
        for name, (count, settings) in VARIANTS.items():
            run = place.begun(phase)
            place.train(phase, run, count, settings)
            details[f"{phase}, {name}"] = place.moved(phase, run)
    return _table(details, f"over {place.steps} steps")


def moves(lab: Lab) -> Result:
    """Moves a run from 4 devices to 2, to 1 and to 4 again, a quarter of each phase on each; and its arrays alone."""
    place, details = Place(lab), {}
    for phase in place.phases:
        run = place.begun(phase)
        for quarter, (count, settings) in enumerate(MOVES):
            run = place.begun(phase, run.path, quarter * (place.steps // 4)) if quarter else run
            place.train(phase, run, count, settings)
        details[phase] = place.moved(phase, run)
        with virtual(4):
            script = f"from tests.reliability.devices import restored; restored({str(run.path)!r}, {phase!r})"
            told = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603
        details[phase] |= {"arrays bitwise": (equal := json.loads(told.stdout.splitlines()[-1]))}
        details[phase]["ok"] &= equal
    bitwise = sum(told["arrays bitwise"] for told in details.values())
    return _table(details, f"on 4, 2, 1, 4 devices; arrays of {bitwise} of {len(details)} phases bitwise equal")


def restored(path: str, phase: str) -> None:
    """Prints whether the last checkpoint of a phase is the same bit by bit after 4, 2, 1 and 4 devices have held it."""
    run = RunFolder(Path(path))
    config, spec = run.read_config(), data.read_info(run.data).spec
    saved = run.checkpoints(phase).latest_valid()
    assert saved is not None
    state = init_state(build_phase(phase, config, spec), init_dreamer(config, spec), getattr(config.train, phase))
    found = [leaves(saved)]
    for number, (rows, split) in enumerate(((2, 2), (2, 1), (1, 1), (1, 4))):
        mesh = placement.build_mesh(MeshConfig(data=rows, fsdp=split))
        held = checkpoint.load(saved, placement.spread(state, mesh))
        saved = run.path / "moved" / str(number)
        checkpoint.save(saved, held, meta={})
        found.append(leaves(saved))
    print(json.dumps(all(hashes == found[0] for hashes in found)))


def gradients(lab: Lab) -> Result:
    """Differentiates the loss of a batch in four parts, and with activations computed twice."""
    details, begun = {}, load("tiny")
    env = envs.make(begun.env)
    episodes = data.collect(env, data.random_policy(env.spec), episodes=32, key=stream(0, "collect"))
    source = DeviceSource.from_episodes(list(episodes))
    start, latents = measure_latents(init_dreamer(begun, env.spec), lambda d: encode_source(d, source))
    encoded = source.with_latents(latents)
    for phase in lab.phases:
        batch = (source if phase == "tokenizer" else encoded).sample(8, 8, key=jr.key(0))
        whole = [f"train.{phase}.batch_size=8"]
        (loss, gradient), *others = (
            _gradient(phase, [*whole, *settings], start, batch)
            for settings in ([], [f"train.{phase}.accumulate=4"], REMAT)
        )
        for name, (other, moved) in zip(("4 parts", "remat"), others, strict=True):
            told = {"loss": abs(other - loss) / abs(loss), "gradient": _distance(moved, gradient)}
            details[f"{phase}, {name}"] = told | {"ok": told["loss"] <= LOSS and told["gradient"] <= GRADIENT}
    worst = max(told["gradient"] for told in details.values())
    result = _table(details, f"and gradients by {worst:.1e} of their norm")
    return Result(result.figure, f"{LOSS:.0e} and {GRADIENT:.0e}", result.ok, details)


def _gradient(phase: str, settings: list[str], start: Any, batch: Any) -> tuple[float, list[np.ndarray]]:
    config = load("tiny", overrides=settings)
    # The same weights in a model of other settings.
    spec = envs.make(config.env).spec
    shapes = eqx.filter_eval_shape(init_dreamer, config, spec)
    dreamer = jax.tree.unflatten(jax.tree.structure(shapes), jax.tree.leaves(start))
    made = build_phase(phase, config, spec)
    trained, frozen = eqx.partition(dreamer, made.trainable(dreamer))

    @eqx.filter_jit
    def differentiate(trained):
        def loss(trained):
            terms, _ = made.loss(eqx.combine(trained, frozen), batch, jnp.asarray(0.6), key=jr.key(1))
            return sum(weight * terms[name] for name, weight in made.weights.items())

        return jax.value_and_grad(loss)(trained)

    value, gradient = differentiate(trained)
    return float(value), [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(gradient)]


def _distance(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    """Returns the norm of the difference of two gradients over that of the second."""
    apart = sum(float(np.sum((x - y) ** 2)) for x, y in zip(a, b, strict=True))
    return (apart / sum(float(np.sum(y**2)) for y in b)) ** 0.5


def processes(lab: Lab) -> Result:
    """Trains in two processes of two devices; stops one, kills each, and goes on."""
    place, details = Place(lab), {}
    for phase in place.phases:
        run = place.begun(phase)
        codes = [told["exit"] for told in _finish(_start_two(lab, phase, run))]
        details[phase] = place.moved(phase, run) | {"exits": codes}
        details[phase]["ok"] &= codes == [0, 0]
    phase = place.phases[0]
    for name, number, victim in ENDS:
        run = place.begun(phase)
        started = _start_two(lab, phase, run)
        while not _begun(run, phase, started[0]):
            time.sleep(0.001)
        started[victim].send_signal(number)
        ends = _finish(started)
        steps = run.checkpoints(phase)
        told = {"exits": [end["exit"] for end in ends], "seconds": max(end["seconds"] for end in ends)}
        told["saved"] = [step for step in steps.steps() if not checkpoint.verify(steps.path(step))]
        codes = _finish(_start_two(lab, phase, run))
        told |= place.moved(phase, run)
        fair = told["exits"] == [143, 143] if number == signal.SIGTERM else 0 not in told["exits"]
        told["ok"] &= fair and told["seconds"] <= LEAVING and [end["exit"] for end in codes] == [0, 0]
        details[name] = told
    slowest = max(told.get("seconds", 0.0) for told in details.values())
    return _table(details, f"in 2 processes; who lost the other ended within {slowest:.0f} s and went on")


def _start_two(lab: Lab, phase: str, run: RunFolder) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = ["--coordinator", f"127.0.0.1:{port}", "--processes", "2", "--process"]
    with virtual(2):
        return [lab.start(*command(phase, run, SPLIT), *where, str(number)) for number in range(2)]


def _begun(run: RunFolder, phase: str, process: subprocess.Popen) -> bool:
    """Whether three steps of a phase are told, by a process that runs."""
    if process.poll() is not None:
        raise RuntimeError(f"A process ended with {process.returncode} before it trained.")
    return sum(line["phase"] == phase for line in read_metrics(run.metrics_file)) >= 3


def _finish(started: list[subprocess.Popen]) -> list[dict[str, Any]]:
    """Waits for the end of processes; returns exit codes, and seconds from now."""
    began, ends = time.monotonic(), []
    for process in started:
        process.communicate(timeout=1800)
        ends.append({"exit": process.returncode, "seconds": round(time.monotonic() - began, 1)})
    return ends


def _table(details: dict[str, Any], what: str) -> Result:
    good, worst = sum(told["ok"] for told in details.values()), max(told["loss"] for told in details.values())
    figure = f"loss moved by {worst:.1e} at most {what}; {good} of {len(details)} kept"
    return Result(figure, f"{LOSS:.0e}", good == len(details), details)
