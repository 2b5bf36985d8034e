"""Running one program and timing its calls."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import equinox as eqx
import jax
import numpy as np
from rich.console import Console

from benchmarks.speed.floor import Rates, data_sheet, floor, total_operations
from benchmarks.speed.programs import Program
from dreamer4.errors import InputError
from dreamer4.run.memory import device_memory


console = Console(stderr=True)

WARM_UP = 3  # calls before the first that counts

_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, kilobytes elsewhere


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        what: what was measured.
        value: the figure.
        unit: its unit.
        floor: the figure that the device's matrix products and memory would allow, in the same unit, if there is one.
        details: whatever else was found, JSON values.
    """

    what: str
    value: float
    unit: str
    floor: float | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Returns the row as JSON, figures to six digits."""
        told = {"what": self.what, "value": self.value, "unit": self.unit, "floor": self.floor, **self.details}
        return jax.tree.map(lambda x: float(f"{x:.6g}") if isinstance(x, float) else x, told)


def peak_memory() -> int:
    """Returns the most bytes that this process has held, on the default device; on a CPU, in all."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use") or _host_peak()


def check_memory(what: str, needs: dict[str, int], limit: float) -> str:
    """Returns what a program needs, as a line for people.

    Raises:
        InputError: if it is more than the device can hold.
    """
    told = ", ".join(f"{name} {bytes_ / 1e9:.3g} GB" for name, bytes_ in needs.items() if bytes_ >= 1e5)
    total = sum(needs.values())
    line = f"{what}: {total / 1e9:.3g} of {limit / 1e9:.3g} GB ({told or 'next to nothing'})"
    if total > limit:
        raise InputError(
            f"speed {line}, which does not fit. Choose a smaller --batch, --length, --context or --preset, or "
            "--dtype bfloat16."
        )
    return line


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


_events = {"/jax/compilation_cache/cache_hits": 0, "/jax/core/compile/backend_compile_duration": 0}


def _count(event: str, **kwargs: str | int) -> None:
    if event in _events:
        _events[event] += 1


def _count_timed(event: str, duration_secs: float, **kwargs: str | int) -> None:
    _count(event)


@cache
def _listen() -> None:
    jax.monitoring.register_event_listener(_count)
    jax.monitoring.register_event_duration_secs_listener(_count_timed)


def fetched() -> int:
    """Returns how many programs this process has fetched from the compilation cache since it first asked."""
    _listen()
    return _events["/jax/compilation_cache/cache_hits"]


def compilations() -> int:
    """Returns how many programs this process has compiled, or fetched, since it first asked."""
    _listen()
    return _events["/jax/core/compile/backend_compile_duration"]


def compile_program(program: Program) -> tuple[Any, dict[str, float]]:
    """Compiles a program from its shapes alone; the second argument's buffers are reused.

    Returns:
        The compiled program, to be called on arrays alone, and the seconds of tracing and of compiling, or of fetching
        what was compiled by an earlier process.
    """
    given, state = (eqx.partition(part, _is_array) for part in program.shapes())

    def call(given_arrays, state_arrays):
        after, result = program.call(eqx.combine(given_arrays, given[1]), eqx.combine(state_arrays, state[1]))
        return eqx.filter(after, _is_array), result

    begin = time.perf_counter()
    lowered = jax.jit(call, donate_argnums=1).lower(given[0], state[0])
    traced = time.perf_counter()
    hits = fetched()
    compiled = lowered.compile()
    spent = "fetch_s" if fetched() > hits else "compile_s"
    return compiled, {"trace_s": traced - begin, spent: time.perf_counter() - traced}


def temporary(compiled: Any) -> int:
    """Returns the bytes that a compiled program needs besides its arguments, where the device tells."""
    about = compiled.memory_analysis()
    if about is None:
        return 0
    return about.temp_size_in_bytes + max(0, about.output_size_in_bytes - about.alias_size_in_bytes)


def compiled_operations(compiled: Any) -> float:
    """Returns the operations that XLA counts in a compiled program. It counts the body of a loop once."""
    analysis = compiled.cost_analysis()
    return (analysis[0] if isinstance(analysis, list) else analysis)["flops"]


def run(what: str, program: Program, rates: Rates, repeats: int) -> Row:
    """Compiles a program, checks that it fits, and times its calls.

    Args:
        what: its name, for messages.
        program: the program.
        rates: of the device, for the floor.
        repeats: timed calls.

    Returns:
        Frames per second of the median call.

    Raises:
        InputError: if it does not fit into the device's memory.
    """
    limit, needs = device_memory(), program.memory()
    console.print(check_memory(what, needs, limit), highlight=False, soft_wrap=True)
    compiled, seconds = compile_program(program)
    kept = {name: value for name, value in needs.items() if name not in program.other}  # temporary, so counted below
    check_memory(f"{what}, compiled", kept | {"temporary": temporary(compiled)}, limit)
    wall = timed(compiled, program, repeats)
    median = float(np.median(wall))
    operations = total_operations(program.parts)
    bound = floor(program.parts, rates)
    details = {
        **program.facts,
        **{f"ms_p{q}": 1e3 * float(np.percentile(wall, q)) for q in (50, 95, 99)},
        "floor_ms": 1e3 * bound,
        "calls": repeats,
        "gflop": operations / 1e9,
        "gflop_cost_analysis": compiled_operations(compiled) / 1e9,
        "gflops": operations / median / 1e9,
        "mfu": operations / median / rates.matmul,
        **seconds,
        "memory_gb": {name: value / 1e9 for name, value in (kept | {"temporary": temporary(compiled)}).items()},
        "peak_memory_gb": peak_memory() / 1e9,
    }
    if (promised := data_sheet(jax.devices()[0].device_kind)) is not None:
        details["mfu_data_sheet"] = operations / median / promised
    return Row(what, program.frames / median, "frames/s", program.frames / bound, details)


def timed(call: Callable, program: Program, repeats: int) -> list[float]:
    """Returns the seconds of each of `repeats` calls, each waited for, after some that are not counted."""
    given, state = (eqx.filter(part, eqx.is_array) for part in program.make())
    wall = []
    for i in range(WARM_UP + repeats):
        begin = time.perf_counter()
        state, result = call(given, state)
        jax.block_until_ready((state, result))
        if i >= WARM_UP:
            wall.append(time.perf_counter() - begin)
    return wall


def _host_peak() -> int:
    try:
        import resource
    except ImportError:  # Windows, which does not tell
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_UNIT
