"""`dreamer4 bench reliability`: what the promises about lost and faulty runs come to, as figures in one JSON file.

A row is a function of a `Lab` that returns a `Result`, registered in `ROWS`. Commands are run as a person runs them, in
processes of their own, and are stopped and killed from outside.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dreamer4 import checkpoint
from dreamer4.checkpoint.manifest import library_versions
from dreamer4.dreamer import PHASES
from dreamer4.errors import InputError, nearest
from dreamer4.training.folder import RunFolder
from dreamer4.training.metrics import Progress, read_metrics
from dreamer4_cli import reliability_faults
from dreamer4_cli import run as work


console = Console()

SAVE_TIME = 10.0  # seconds from a signal to the end of the process
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
    """

    def __init__(self, place: Path, quick: bool, compile_cache: Path):
        self.place, self.quick, self.compile_cache = place, quick, compile_cache
        self.steps = 6 if quick else 40
        self.phases = PHASES[:1] if quick else PHASES
        self.train = ("train", PHASES[0] if quick else "all", "--run")
        self._made = 0

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


def resume(lab: Lab) -> Result:
    """Trains one half in one process and the other half in another, in each phase."""
    half, details = lab.steps // 2 // SAVE_EVERY * SAVE_EVERY, {}
    for phase in lab.phases:
        path = lab.copy(phase=phase, step=half)
        lab.finish("train", phase, "--run", str(path), "--resume")
        run = RunFolder(path)
        one, two = (leaves(r.checkpoints(phase).path(lab.steps)) for r in (RunFolder(lab.reference()), run))
        old, new = (lines(p) for p in (lab.reference(), path))
        steps = [(phase, step) for step in range(half + 1, lab.steps + 1)]
        details[phase] = {
            "leaves equal": f"{sum(one[name] == two.get(name) for name in one)} of {len(one)}",
            "steps equal": f"{sum(old[at] == new.get(at) for at in steps)} of {len(steps)}",
            "ok": one == two and all(old[at] == new.get(at) for at in steps),
        }
    good = sum(told["ok"] for told in details.values())
    return Result(f"{good} of {len(details)} phases bitwise equal", "all", good == len(details), details)


def kills(lab: Lab) -> Result:
    """Kills runs at random moments and goes on with each, until enough kills have been survived."""
    wanted, rng = 3 if lab.quick else 50, random.Random(0)  # noqa: S311
    lost, endings, failures, life = [], [], [], 20.0
    path: Path | None = None
    with Progress("kill", total=wanted, unit="kills", console=console) as bar:
        while bar.completed < wanted or path is not None:
            fresh = path is None
            path = path or lab.folder()
            options = lab.settings() if fresh else ["--resume"] * (path / "config.yaml").exists() or lab.settings()
            began, patience = time.monotonic(), rng.uniform(0, life) if bar.completed < wanted else None
            process = lab.start(*lab.train, str(path), *options)
            try:
                told, _ = process.communicate(timeout=patience)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                lost += _lost(path)
                bar.advance()
                continue
            life = max(life / 2, 1.2 * (time.monotonic() - began))
            if process.returncode:
                failures.append(told[-2000:])
                path = None
                continue
            endings.append(lab.differences(path))
            path = None
    good = not failures and max(lost, default=0) <= SAVE_EVERY and not any(endings)
    figure = (
        f"{wanted - len(failures)} of {wanted} went on, at most {max(lost, default=0)} steps lost, "
        f"{sum(not d for d in endings)} of {len(endings)} ends bitwise equal"
    )
    return Result(figure, f"all, {SAVE_EVERY} steps, all", good, {"failures": failures, "differences": endings})


def _lost(path: Path) -> list[int]:
    """Returns how many steps of the phase being trained were done and are not in a whole checkpoint."""
    if not (path / "metrics.jsonl").exists():
        return []
    done = read_metrics(path / "metrics.jsonl")
    if not done:
        return []
    phase, steps = done[-1]["phase"], RunFolder(path).checkpoints(done[-1]["phase"])
    return [max(r["step"] for r in done if r["phase"] == phase) - max(_whole(steps), default=0)]


def _whole(steps: checkpoint.Checkpoints) -> list[int]:
    return [step for step in steps.steps() if not checkpoint.verify(steps.path(step))]


@dataclass(frozen=True)
class Moment:
    """When to send a signal, and what must come of it.

    Attributes:
        name: what the process is busy with.
        command: what is run: `train`, which saves, or one that has nothing to save.
        line: a pattern; the signal is sent after the first line of output that has it.
        ready: what else must be so, of the folder of the run.
        delay: seconds to wait then.
        cached: whether programs come compiled.
    """

    name: str
    command: str
    line: str
    ready: Callable[[Path], bool] = lambda path: True
    delay: float = 0.0
    cached: bool = True


def _in_step(path: Path) -> bool:
    log = path / "metrics.jsonl"
    return log.exists() and log.read_bytes().count(b"\n") >= 3


def _in_save(path: Path) -> bool:
    return any((path / "checkpoints" / "tokenizer").glob(".*.tmp"))


MOMENTS = (
    Moment("compile", "train", "tokenizer: 0/", delay=1.0, cached=False),
    Moment("step", "train", "tokenizer: 0/", _in_step),
    Moment("save", "train", "tokenizer: 0/", _in_save),
    Moment("encoding the data set", "train", "tokenizer: .* in "),
    Moment("collecting the data set", "train", "collect: 0/"),
    Moment("evaluation", "evaluate", "play prior: 0/"),
)


def signals(lab: Lab) -> Result:
    """Sends SIGTERM and SIGINT at various moments, and goes on."""
    details, good, slowest = {}, 0, 0.0
    cases = [(moment, number) for moment in MOMENTS for number in (signal.SIGTERM, signal.SIGINT)]
    if lab.quick:
        cases = [(MOMENTS[0], signal.SIGTERM), (MOMENTS[1], signal.SIGINT), (MOMENTS[2], signal.SIGTERM)]
    for moment, number in cases:
        told = _signalled(lab, moment, number)
        slowest, good = max(slowest, told["seconds"]), good + told["ok"]
        details[f"{signal.Signals(number).name} in {moment.name}"] = told
    figure = f"{good} of {len(cases)} saved, left with 143 or 130 and went on bitwise; at most {slowest:.1f} s"
    return Result(figure, f"all, {SAVE_TIME:.0f} s", good == len(cases), details)


def _signalled(lab: Lab, moment: Moment, number: int) -> dict[str, Any]:
    training = moment.command == "train"
    path = lab.folder() if training else lab.reference()
    command = (*lab.train, str(path), *lab.settings()) if training else (moment.command, str(path))
    process = lab.start(*command, cached=moment.cached)
    assert process.stdout is not None
    output = []
    for line in process.stdout:
        output.append(line)
        if re.search(moment.line, line):
            break
    while process.poll() is None and not moment.ready(path):
        time.sleep(0.001)
    time.sleep(moment.delay)
    sent = time.monotonic()
    process.send_signal(number)
    rest, _ = process.communicate(timeout=120)
    told: dict[str, Any] = {"seconds": round(time.monotonic() - sent, 2), "exit": process.returncode}
    told |= {"message": (rest.strip().splitlines() or [""])[-1].replace(str(lab.place), "")}
    ok = process.returncode == 128 + number and told["seconds"] <= SAVE_TIME and "Traceback" not in rest
    if training:
        told |= {"lost": _lost(path)}
        lab.finish(*lab.train, str(path), "--resume")
        told |= {"differences": lab.differences(path)}
        ok = ok and not any(told["lost"]) and not told["differences"]
    return told | {"ok": ok}


ROWS: dict[str, Callable[[Lab], Result]] = {
    "resume": resume,
    "kill": kills,
    "signals": signals,
    "faults": lambda lab: Result(**reliability_faults.planted(lab.quick)),
    "false skips": lambda lab: Result(**reliability_faults.clean(200 if lab.quick else 2000)),
}


def reliability(names: Sequence[str], *, quick: bool, out: Path, place: Path) -> None:
    """Fills the rows, writes them to one JSON file, and prints them.

    Raises:
        InputError: if a row is unknown, or a path is taken.
    """
    if unknown := [name for name in names if name not in ROWS]:
        raise InputError(f"bench reliability: unknown row {unknown[0]!r}. {nearest(unknown[0], ROWS)}")
    for path in (out, place):
        if path.exists():
            raise InputError(f"{path} exists, and results are never overwritten. Choose another with --out and --runs.")
    place.mkdir(parents=True)
    lab = Lab(place.absolute(), quick, place.absolute() / "compiled")
    facts = {
        "level": "quick" if quick else "full",
        "device": work.device(),
        "commit": work.source_commit() or "unknown",
        "versions": library_versions(),
    }
    rows = {}
    table = Table("row", "found", "promised", "kept", "minutes")
    for name in names or ROWS:
        began = time.monotonic()
        result = ROWS[name](lab)
        minutes = round((time.monotonic() - began) / 60, 2)
        rows[name] = {**vars(result), "minutes": minutes}
        table.add_row(name, result.figure, result.wanted, "yes" if result.ok else "NO", f"{minutes:.1f}")
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = out.with_suffix(".tmp")
        partial.write_text(json.dumps(facts | {"rows": rows}, indent=1) + "\n")
        os.replace(partial, out)
    console.print(table)
    shutil.rmtree(place)
