"""`dreamer4 runs`: the run folders below a folder, one line each."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dreamer4.dreamer import PHASES
from dreamer4.errors import InputError
from dreamer4.evaluation.results import Results
from dreamer4.reporting.figures import percent, signed
from dreamer4.run.facts import run_results
from dreamer4.run.folder import RunFolder


console = Console(markup=False)  # names may hold brackets

_DEEPEST = 4  # levels below the folder that are searched
_MISSING = "-"


def runs(folder: Path) -> None:
    """Prints the runs below a folder, the newest last."""
    found = sorted(find(folder), key=lambda run: _touched(run))
    if not found:
        raise InputError(f"{folder} holds no run: no config.yaml down to {_DEEPEST} levels below it.")
    table = Table("run", "environment", "preset", "seed", "status", "return", "95 % interval", "frames exact", "age")
    for run in found:
        table.add_row(os.path.relpath(run.path, folder), *_row(run))
    console.print(table)


def find(folder: Path) -> Iterator[RunFolder]:
    """Yields the runs at or below a folder; what lies inside a run is its own."""
    depth = len(folder.parts)
    for place, inside, _ in os.walk(folder):
        run = RunFolder(Path(place))
        if run.is_run:
            yield run
        if run.is_run or len(Path(place).parts) - depth >= _DEEPEST:
            inside.clear()


def _row(run: RunFolder) -> tuple[str, ...]:
    age = _ago(time.time() - _touched(run))
    try:
        config = run.read_config()
        results = run_results(run)
    except InputError as error:
        said = str(error).removeprefix(f"{run.path}{os.sep}").splitlines()[0][:60]
        return (_MISSING, _MISSING, _MISSING, f"unreadable: {said}", *[_MISSING] * 3, age)
    seeds = str(config.seed) if config.seeds == 1 else f"{config.seed}-{config.seed + config.seeds - 1}"
    about = (config.env.id, config.preset, seeds, _status(run, config, results))
    return (*about, *_figures(results, config.sampler.num_steps), age)


def _status(run: RunFolder, config: Any, results: Results | None) -> str:
    if results:
        return "done"
    for phase in reversed(PHASES):
        wanted = getattr(config.train, phase).steps
        if steps := run.checkpoints(phase).steps():
            return f"{phase} {steps[-1]}/{wanted}" if steps[-1] < wanted else f"{phase} done"
    return "begun"


def _figures(results: Results | None, passes: int) -> tuple[str, str, str]:
    if results is None:
        return _MISSING, _MISSING, _MISSING
    world = results.world_model
    if "num_steps" not in world.model_fields_set:  # of an earlier version
        world = world.model_copy(update={"num_steps": passes})
    row, exact = results.returns.get("imagination"), world.exact
    mean, bounds = (signed(row.mean), f"{signed(row.low)} to {signed(row.high)}") if row else (_MISSING,) * 2
    return mean, bounds, percent(exact) if exact is not None else _MISSING


def _touched(run: RunFolder) -> float:
    files = [file for file in (run.results_file, run.metrics_file, run.config_file) if file.exists()]
    return max(file.stat().st_mtime for file in files)


def _ago(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return "now"
