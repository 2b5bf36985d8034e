"""`python -m benchmarks speed`: what the library's programs take on this device, beside the least they could take.

`measure` runs one benchmark and returns everything about it as JSON; the command and the stand-alone scripts in
`benchmarks/` are thin around it.
"""

import json
import os
import platform
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.speed import data, floor, start
from benchmarks.speed.floor import Rates
from benchmarks.speed.programs import PROGRAMS, Settings
from benchmarks.speed.timing import Row, run
from dreamer4.checkpoint.manifest import library_versions
from dreamer4.errors import InputError, nearest
from dreamer4.files import check_place, read_bytes, write_atomically
from dreamer4.run import facts


console = Console()

BATCHES = (1, 16)  # of frames
CALLS = {"frame": 100}  # timed by default; 20 of all else


def _program(name: str, settings: Settings, rates: Rates) -> list[Row]:
    rows = []
    batches = BATCHES if name == "frame" and settings.batch is None else (settings.batch,)
    for batch in batches:
        program = PROGRAMS[name](replace(settings, batch=batch))
        sizes = [f"batch {program.facts['batch']}"]
        sizes += [f"{key} {program.facts[key]}" for key in ("length", "horizon") if key in program.facts]
        what = f"{name}{' step' if name in ('dynamics', 'tokenizer') else ''}, {', '.join(sizes)}"
        rows.append(run(what, program, rates, settings.repeats or CALLS.get(name, 20)))
    return rows


BENCHMARKS: dict[str, Callable[[Settings, Rates], list[Row]]] = {
    **{name: partial(_program, name) for name in PROGRAMS},
    "start": start.first_step,
    "depth": start.depth,
    "recompilations": start.recompilations,
    "collect": data.collect,
    "load": data.load,
}


@cache
def _rates(dtype: str) -> Rates:
    return floor.measure(dtype)


def processor() -> str:
    """Returns the name of the processor, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def check(names: Sequence[str]) -> None:
    """Raises `InputError` if a benchmark is unknown."""
    if unknown := [name for name in names if name not in BENCHMARKS]:
        raise InputError(f"speed: unknown benchmark {unknown[0]!r}. {nearest(unknown[0], BENCHMARKS)}")


def measure(name: str, settings: Settings) -> dict[str, Any]:
    """Runs one benchmark.

    Returns:
        JSON values: the rows, the rates behind their floors, and the command, commit, device, versions and flags that
        made them.

    Raises:
        InputError: if it is unknown, or does not fit into the device's memory.
    """
    check([name])
    commit = facts.source_commit() or "unknown"  # of the code that runs; by the end there may be another
    dtype = settings.config().dynamics.transformer.dtype
    rates = _rates(dtype)
    rows = BENCHMARKS[name](settings, rates)
    flags = {key: value for key, value in sorted(os.environ.items()) if key == "XLA_FLAGS" or key.startswith("XLA_PY")}
    return {
        "command": shlex.join(["python", "-m", "benchmarks", "speed", name, *settings.options()]),
        "commit": commit,
        "device": facts.device(),
        "processor": processor(),
        "versions": library_versions(),
        "flags": flags,
        "rates": {"dtype": dtype, "matmul_gflops": rates.matmul / 1e9, "memory_gb_per_s": rates.memory / 1e9},
        "rows": [row.to_json() for row in rows],
    }


def speed(names: Sequence[str], settings: Settings, *, out: Path) -> None:
    """Runs benchmarks, all by default, prints their figures, and keeps them in a JSON file by name.

    What the file holds of other benchmarks stays; so a long suite can be run in pieces.
    """
    check(names)
    settings.config()  # refused before the first one runs
    kept = _kept(out)
    check_place(out)
    table = Table("what", title=_title(settings))
    for heading in ("figure", "floor", "of it", "ms", "p99", "GB"):
        table.add_column(heading, no_wrap=True, justify="right")
    for name in names or BENCHMARKS:
        told = measure(name, settings)
        for row in told["rows"]:
            table.add_row(*_cells(row))
        kept[name] = told
        write_atomically(out, json.dumps(kept, indent=1) + "\n")
    console.print(table)
    rates = ", ".join(f"{r['matmul_gflops']:,.0f} GFLOP/s in {r['dtype']}" for r in [told["rates"]])
    memory = told["rates"]["memory_gb_per_s"]
    console.print(
        f"The floor is what matrix products at {rates} and memory at {memory:.3g} GB/s allow, measured here. {out}",
        soft_wrap=True,
    )


def _kept(out: Path) -> dict[str, Any]:
    """Returns what a file holds already."""
    if not out.exists():
        return {}
    try:
        kept = json.loads(read_bytes(out, limit=10**7))
    except ValueError:
        kept = None
    if not isinstance(kept, dict) or not set(kept) <= set(BENCHMARKS):
        raise InputError(f"{out} is no result of the speed benchmarks. Choose another file with --out.")
    return kept


def _title(settings: Settings) -> str:
    return f"{settings.config().preset} on {facts.device()} ({processor()})"


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    value, bound = row["value"], row["floor"]
    share = "" if bound is None else f"{value / bound:.1%}"
    times = [f"{row[key]:.3g}" if key in row else "" for key in ("ms_p50", "ms_p99")]
    # What this program needs. The peak, which the file tells, is of all that the process has run so far.
    memory = f"{sum(row['memory_gb'].values()):.3g}" if "memory_gb" in row else ""
    return (
        row["what"],
        f"{_figure(value)} {row['unit']}",
        "" if bound is None else _figure(bound),
        share,
        *times,
        memory,
    )


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
