"""Runs to be stopped, killed and compared: commands in processes of their own, and what their folders hold.

`suite` puts what comes of them into a table.
"""

import hashlib
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from dreamer4 import checkpoint, data
from dreamer4.data import DeviceSource
from dreamer4.dreamer import PHASES
from dreamer4.run.folder import RunFolder
from dreamer4.run.metrics import read_metrics
from dreamer4.training import build_phase, stream
from dreamer4.training.loop import draws_from, step_keys


SAVE_EVERY = 2


# Signals that the tests' own shell ignores are ignored by its children too, unless told otherwise.
_START = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from dreamer4_cli.app import main; main()"
)


@dataclass(frozen=True)
class Result:
    """One row of the table.

    Attributes:
        figure: what was found.
        wanted: what was promised.
        ok: whether the promise was kept.
        details: whatever helps to find out why not, JSON values.
    """

    figure: str
    wanted: str
    ok: bool
    details: Any = None


class Lab:
    """A folder to work in, with a finished run to compare with.

    Args:
        place: the folder; it must not exist.
        quick: whether to spend minutes rather than hours; then runs train the first phase alone.
        compile_cache: a folder for compiled programs, so that each of many short runs does not compile them anew.
        steps: of each phase of a run; by default 6 if quick, else 40.
        first: whether runs train the first phase alone; by default if quick.
    """

    def __init__(
        self, place: Path, quick: bool, compile_cache: Path, steps: int | None = None, first: bool | None = None
    ):
        self.place, self.quick, self.compile_cache = place, quick, compile_cache
        self.steps = steps or (6 if quick else 40)
        alone = quick if first is None else first
        self.phases = PHASES[:1] if alone else PHASES
        self.train = ("train", PHASES[0] if alone else "all", "--run")
        self._made = 0

    def short(self, steps: int, *, first: bool) -> "Lab":
        """Returns a lab of short runs, for what is done to many of them."""
        return Lab(self.place / f"short{steps}", self.quick, self.compile_cache, steps, first)

    def settings(self) -> list[str]:
        """Returns the options of a run: the smallest preset, a line of metrics for each step."""
        steps = [f"train.{phase}.steps={self.steps}" for phase in PHASES]
        keys = [*steps, "train.log_every=1", f"train.save_every={SAVE_EVERY}", f"train.keep={self.steps}"]
        return ["--preset", "tiny", *(part for key in keys for part in ("--set", key))]

    def folder(self) -> Path:
        """Returns a path that is not taken."""
        self._made += 1
        return self.place / f"run{self._made}"

    def start(self, *arguments: str, cached: bool = True) -> subprocess.Popen:
        """Starts a command line; without `cached` it compiles everything itself."""
        cache = str(self.compile_cache) if cached else "off"
        command = [sys.executable, "-c", _START, "--compile-cache", cache, *arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # noqa: S603

    def finish(self, *arguments: str) -> None:
        """Runs a command line to its end.

        Raises:
            RuntimeError: if it fails.
        """
        process = self.start(*arguments)
        told, _ = process.communicate()
        if process.returncode:
            raise RuntimeError(f"dreamer4 {' '.join(arguments)} ended with {process.returncode}:\n{told}")

    def reference(self) -> Path:
        """Returns the run that nobody disturbed, trained at the first call."""
        path = self.place / "reference"
        if not path.exists():
            self.finish(*self.train, str(path), *self.settings())
        return path

    def copy(self, *, phase: str, step: int) -> Path:
        """Returns a copy of the reference as it was at a step of a phase."""
        run = RunFolder(Path(shutil.copytree(self.reference(), self.folder())))
        later = PHASES[PHASES.index(phase) + 1 :]
        for name in (phase, *later):
            for saved in run.checkpoints(name).steps():
                if name in later or saved > step:
                    shutil.rmtree(run.checkpoints(name).path(saved))
        return run.path

    def differences(self, path: Path) -> list[str]:
        """Returns in what a run differs from the reference: leaves of last checkpoints, lines of metrics."""
        found = []
        for phase in self.phases:
            one, two = (leaves(RunFolder(p).checkpoints(phase).path(self.steps)) for p in (self.reference(), path))
            found += [f"{phase}: {name}" for name in sorted({*one, *two}) if one.get(name) != two.get(name)]
        one, two = (lines(p) for p in (self.reference(), path))
        found += [f"metrics of {at}" for at in sorted({*one, *two}) if one.get(at) != two.get(at)]
        return found


def leaves(path: Path) -> dict[str, str]:
    """Returns the SHA-256 of every leaf of a checkpoint, all of whose files have been checked."""
    if problems := checkpoint.verify(path):
        return {"checkpoint": "; ".join(problems)}
    return {name: leaf.sha256 for name, leaf in checkpoint.read_manifest(path).leaves.items()}


def lines(path: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Returns the metrics of a run by phase and step."""
    told = read_metrics(path / "metrics.jsonl")
    return {(r["phase"], r["step"]): {name: repr(v) for name, v in r.items() if name != "time"} for r in told}


def batches(path: Path, phase: str, first: int, last: int) -> list[str]:
    """Returns the SHA-256 of the batch of each step of a phase, `first` to `last`, drawn as its training draws them."""
    run = RunFolder(path)
    config, info = run.read_config(), data.read_info(run.data)
    source = DeviceSource.from_episodes(data.read_episodes(run.data, "train"))
    settings, root = getattr(config.train, phase), stream(config.seed, phase)
    draws = draws_from(build_phase(phase, config, info.spec), settings, source, balanced=config.agent.balanced)

    @eqx.filter_jit
    def draw(draws, step):
        return draws.sample(settings.batch_size, settings.length, key=step_keys(root, step)[0])

    def digest(step):
        told = hashlib.sha256()
        for leaf in jax.tree.leaves(draw(draws, jnp.asarray(step, jnp.int32))):
            told.update(np.asarray(leaf).tobytes())
        return told.hexdigest()

    return [digest(step - 1) for step in range(first, last + 1)]
