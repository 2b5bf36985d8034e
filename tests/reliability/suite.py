"""`benchmarks reliability`: what the promises about lost and faulty runs come to, as figures in one JSON file.

A row is a function of a `Lab` that returns a `Result`, registered in `ROWS`. Commands are run as a person runs them, in
processes of their own, and are stopped and killed from outside.
"""

import json
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from dreamer4 import checkpoint
from dreamer4.checkpoint.manifest import library_versions
from dreamer4.errors import InputError, nearest
from dreamer4.files import check_place, read_bytes, write_atomically
from dreamer4.run.facts import device, source_commit
from dreamer4.run.folder import RunFolder
from dreamer4.run.metrics import read_metrics
from dreamer4_cli.console import ProgressBar
from tests.reliability import devices as other_devices
from tests.reliability import endurance, faults
from tests.reliability.lab import SAVE_EVERY, Lab, Result, batches, leaves, lines


console = Console()

SAVE_TIME = 10.0  # seconds from a signal to the end of the process


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
        # Where the second process began is what its checkpoint says, and its data what lies in its folder.
        saved = checkpoint.load(run.checkpoints(phase).path(half), jax.ShapeDtypeStruct((), jnp.int32), at="step")
        drawn = batches(path, phase, int(saved) + 1, lab.steps)
        same = sum(a == b for a, b in zip(batches(lab.reference(), phase, 1, lab.steps)[half:], drawn, strict=True))
        details[phase] = {
            "leaves equal": f"{sum(one[name] == two.get(name) for name in one)} of {len(one)}",
            "steps with equal metrics": f"{sum(old[at] == new.get(at) for at in steps)} of {len(steps)}",
            "batches equal": f"{same} of {len(steps)}",
            "ok": one == two and all(old[at] == new.get(at) for at in steps) and same == len(steps),
        }
    good, count = sum(told["ok"] for told in details.values()), lab.steps - half
    figure = f"{good} of {len(details)} phases bitwise equal, batches of {count} steps included"
    return Result(figure, "all", good == len(details), details)


def kills(lab: Lab, seed: int) -> Result:
    """Kills runs at random moments and goes on with each, until enough kills have been survived."""
    lab = lab.short(12, first=True)
    wanted, rng = 3 if lab.quick else 25, random.Random(seed)  # noqa: S311
    lost, endings, failures, began = [], [], [], time.monotonic()
    lab.reference()
    life = time.monotonic() - began  # of a run that compiles too; the first that ends tells better
    saved: list[int] = []
    path: Path | None = None
    with ProgressBar("kill", total=wanted, unit="kills", console=console) as bar:
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
                saved.append(max(RunFolder(path).checkpoints(lab.phases[0]).steps(), default=0))
                bar.advance()
                continue
            life = max(0.8 * life, 1.2 * (time.monotonic() - began))
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
    details = {"failures": failures, "differences": endings, "steps of 12 saved when killed": saved}
    return Result(figure, f"all, {SAVE_EVERY} steps, all", good, details)


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


def signals(lab: Lab, number: signal.Signals) -> Result:
    """Sends a signal at various moments, and goes on."""
    lab, details, good, slowest = lab.short(6, first=True), {}, 0, 0.0
    moments = MOMENTS[:3] if lab.quick else MOMENTS
    for moment in moments:
        told = _signalled(lab, moment, number)
        slowest, good = max(slowest, told["seconds"]), good + told["ok"]
        details[f"in {moment.name}"] = told
    figure = f"{good} of {len(moments)} saved, left with {128 + number} and went on bitwise; at most {slowest:.1f} s"
    return Result(figure, f"all, {SAVE_TIME:.0f} s", good == len(moments), details)


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


def memory(lab: Lab) -> Result:
    """Trains for long in one process and watches its memory."""
    steps, path = (200 if lab.quick else 2000), lab.folder()
    every = [f"train.log_every={steps // 100}", f"train.save_every={steps // 10}"]
    keys = [*(f"train.{phase}.steps={steps}" for phase in lab.phases), *every]
    process = lab.start(*lab.train, str(path), "--preset", "tiny", *(part for key in keys for part in ("--set", key)))
    return Result(**endurance.watched(process, path, lab.phases, steps))


ROWS: dict[str, Callable[[Lab], Result]] = {
    "resume": resume,
    "kill": lambda lab: kills(lab, 0),
    "kill again": lambda lab: kills(lab, 1),
    "SIGTERM": lambda lab: signals(lab, signal.SIGTERM),
    "SIGINT": lambda lab: signals(lab, signal.SIGINT),
    "faults": lambda lab: Result(**faults.planted(lab.quick)),
    "false skips": lambda lab: Result(**faults.clean(200 if lab.quick else 2000)),
    "dream": lambda lab: Result(**endurance.dream(4000 if lab.quick else 10_000)),
    "memory": memory,
    "devices": other_devices.devices,
    "moves": other_devices.moves,
    "gradients": other_devices.gradients,
    "processes": other_devices.processes,
}


def reliability(names: Sequence[str], *, quick: bool, out: Path, place: Path) -> None:
    """Fills the rows, writes them to one JSON file, and prints them.

    A file of the same level, device and versions is filled up: rows that it has, of whichever commit, stay as they are.

    Raises:
        InputError: if a row is unknown, or a path is taken.
    """
    if unknown := [name for name in names if name not in ROWS]:
        raise InputError(f"reliability: unknown row {unknown[0]!r}. {nearest(unknown[0], ROWS)}")
    facts = {
        "command": "python -m benchmarks reliability" + " --quick" * quick,
        "level": "quick" if quick else "full",
        "device": device(),
        "versions": library_versions(),
    }
    commit = source_commit() or "unknown"
    rows = _done(out, facts)
    check_place(out)
    if place.exists():
        raise InputError(f"{place} exists, and nothing is overwritten. Choose another with --runs.")
    place.mkdir(parents=True)
    lab = Lab(place.absolute(), quick, place.absolute() / "compiled")
    for name in names or ROWS:
        if name in rows:
            continue
        began = time.monotonic()
        result = ROWS[name](lab)
        # Read again: other rows may have been filled by another process meanwhile.
        minutes = round((time.monotonic() - began) / 60, 2)
        rows = _done(out, facts) | {name: {**vars(result), "minutes": minutes, "commit": commit}}
        rows = {name: rows[name] for name in ROWS if name in rows}
        write_atomically(out, json.dumps(facts | {"rows": rows}, indent=1) + "\n")
    table = Table("row", "found", "promised", "kept", "minutes")
    for name, row in rows.items():
        table.add_row(name, row["figure"], row["wanted"], "yes" if row["ok"] else "NO", f"{row['minutes']:.1f}")
    console.print(table)
    shutil.rmtree(place)


def _done(out: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Returns the rows that a file has already."""
    if not out.exists():
        return {}
    try:
        told = json.loads(read_bytes(out, limit=10**7))
    except ValueError:
        told = None
    if not isinstance(told, dict) or {name: told.get(name) for name in facts} != facts:
        raise InputError(
            f"{out} is of another level, machine or version, and results are never overwritten. Use --out."
        )
    return told["rows"]
