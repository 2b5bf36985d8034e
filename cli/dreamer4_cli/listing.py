"""`dreamer4 runs`, the run folders below a folder, one line each; and what there is to play."""

import os
import shlex
import time
from pathlib import Path

from dreamer4.config import load
from dreamer4.dreamer import read_description
from dreamer4.errors import InputError
from dreamer4.evaluation.results import Results
from dreamer4.hub import SHIPPED, shipped
from dreamer4.reporting.figures import percent, signed
from dreamer4.run.facts import run_results
from dreamer4.run.folder import DEEPEST, RunFolder, find_runs
from dreamer4_cli.console import say, show


_MISSING = "-"
# What is not shipped is made by one command; how long that took on two CPU cores (docs/environments.md).
_MADE = {
    "fourrooms": "4 to 9 minutes",
    "cartpole": "11 to 14 minutes",
    "space_invaders": "30 to 36 minutes",
}


def runs(folder: Path) -> None:
    """Prints the runs below a folder, the newest last."""
    found = sorted(find_runs(folder), key=RunFolder.touched)
    if not found:
        raise InputError(f"{folder} holds no run: no config.yaml down to {DEEPEST} levels below it.")
    head = ("run", "environment", "preset", "seed", "status", "return", "95 % interval", "frames exact", "age")
    show(head, [(os.path.relpath(run.path, folder), *_row(run)) for run in found])


def playable(folder: Path) -> None:
    """Prints what `dreamer4 play` can play: the agents that come along, the runs below a folder, what one makes."""
    ready = {f"dreamer4 play {name}": read_description(SHIPPED / name)[0].env.id for name in shipped()}
    for run in sorted(find_runs(folder), key=lambda run: run.path):
        env, _, _, status, *_ = _row(run)
        ready[f"dreamer4 play {shlex.quote(str(run.path))}"] = f"{env}, {status}"
    made = {f"dreamer4 demo --preset {n} --run runs/{n}": f"{load(n).env.id}, {told}" for n, told in _MADE.items()}
    width = max(map(len, (*ready, *made)))
    for title, commands in (("At once:", ready), ("Made by one command, then dreamer4 play runs/NAME:", made)):
        say("\n".join([title, *(f"  {command:<{width}}  {about}" for command, about in commands.items()), ""]))


def _row(run: RunFolder) -> tuple[str, ...]:
    age = _ago(time.time() - run.touched())
    try:
        config = run.read_config()
        results = run_results(run)
    except InputError as error:
        said = str(error).removeprefix(f"{run.path}{os.sep}").splitlines()[0][:60]
        return (_MISSING, _MISSING, _MISSING, f"unreadable: {said}", *[_MISSING] * 3, age)
    seeds = str(config.seed) if config.seeds == 1 else f"{config.seed}-{config.seed + config.seeds - 1}"
    about = (config.env.id, config.preset, seeds, "done" if results else run.progress(config))
    return (*about, *_figures(results, config.sampler.num_steps), age)


def _figures(results: Results | None, passes: int) -> tuple[str, str, str]:
    if results is None:
        return _MISSING, _MISSING, _MISSING
    world = results.world_model
    if "num_steps" not in world.model_fields_set:  # of an earlier version
        world = world.model_copy(update={"num_steps": passes})
    row, exact = results.returns.get("imagination"), world.exact
    mean, bounds = (signed(row.mean), f"{signed(row.low)} to {signed(row.high)}") if row else (_MISSING,) * 2
    return mean, bounds, percent(exact) if exact is not None else _MISSING


def _ago(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return "now"
