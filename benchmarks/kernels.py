"""Where the time of a program goes on the device, as one line of JSON: its operations by their own time, from a trace.

    python -m benchmarks.kernels frame --preset paper --batch 1 --weights bfloat16 --repeats 5

Takes the options of `benchmarks speed`, for its programs of one size. Times are of the device, for one call: a
loop's own time is without what runs in it, and operations whose names differ by a number alone are added up. `idle_ms`
is the time of a call, timed without a trace, that is left beside `busy_ms`, in which some operation ran: on a GPU, what
launching kernels costs. On a CPU, where tracing slows the operations themselves, it can be below zero.
"""

import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.speed import options as speed_options
from dreamer4 import allocator
from dreamer4_cli import options


SHOWN = 40


def own_times(events: Iterable[tuple[str, float, float]]) -> dict[str, tuple[int, float]]:
    """Returns how often each operation of one stream ran, and its own time: a moment is the latest one's to begin.

    So a loop has the time in which nothing in it ran, and a kernel that a GPU begins before the end of the one before
    takes over from it.

    Args:
        events: name, start and duration of each.
    """
    told: dict[str, tuple[int, float]] = defaultdict(lambda: (0, 0.0))
    running: list[tuple[str, float]] = []  # with their ends, the latest to begin last
    now = float("-inf")
    ordered = sorted(events, key=lambda event: (event[1], -event[2]))
    for name, start, duration in [*ordered, ("", float("inf"), 0.0)]:
        while running and now < start:
            latest, end = running[-1]
            if end <= start:
                running.pop()
            until = min(end, start)
            if until > now:
                count, time = told[latest]
                told[latest] = (count, time + until - now)
                now = until
        now = start
        count, time = told[name]
        told[name] = (count + 1, time)
        running.append((name, start + duration))
    del told[""]
    return dict(told)


def streams(folder: Path, module: str) -> list[list[tuple[str, float, float]]]:
    """Returns a module's operations in each stream of a device, or thread of the CPU, from the trace in `folder`."""
    from jax.profiler import ProfileData

    (file,) = folder.rglob("*.xplane.pb")
    planes = list(ProfileData.from_file(str(file)).planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:")]
    found = []
    for plane in devices or [plane for plane in planes if plane.name == "/host:CPU"]:
        for line in plane.lines:
            # A GPU's plane also shows the same operations by module and by source; streams are what ran.
            if devices and not line.name.startswith("Stream"):
                continue
            events = [
                (e.name, e.start_ns, e.duration_ns) for e in line.events if ("hlo_module", module) in set(e.stats)
            ]
            if events:
                found.append(events)
    return found


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """Returns the length of what intervals, each a start and a duration, cover together."""
    total, reached = 0.0, float("-inf")
    for start, duration in sorted(intervals):
        end = start + duration
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def summary(found: list[list[tuple[str, float, float]]], calls: int) -> tuple[float, list[dict]]:
    """Returns the milliseconds of a call in which an operation ran, and the operations, the longest first."""
    total: dict[str, tuple[int, float]] = defaultdict(lambda: (0, 0.0))
    for events in found:
        for name, (count, time) in own_times(events).items():
            kind = re.sub(r"[._]?\d+", "", name)
            total[kind] = (total[kind][0] + count, total[kind][1] + time)
    ordered = sorted(total.items(), key=lambda item: -item[1][1])
    together = sum(time for _, time in total.values())
    rows = [
        {"name": name, "times": count / calls, "ms": time / calls / 1e6, "share": time / together}
        for name, (count, time) in ordered[:SHOWN]
    ]
    busy = covered((start, duration) for events in found for _, start, duration in events)
    return busy / calls / 1e6, rows


def main(
    name: Annotated[str, typer.Argument(help="The program.", show_default=False)],
    preset: options.Preset = None,
    overrides: options.Overrides = None,
    batch: speed_options.Batch = None,
    length: speed_options.Length = None,
    context: speed_options.Context = None,
    dtype: speed_options.Type = None,
    weights: speed_options.Weights = None,
    repeats: speed_options.Repeats = None,
) -> None:
    """Traces some calls, and prints one line."""
    allocator.keep_freed()
    import jax
    import numpy as np

    from benchmarks.speed.programs import PROGRAMS
    from benchmarks.speed.timing import WARM_UP, compile_program, timed

    settings = speed_options.settings(preset, overrides, batch, length, context, dtype, weights, repeats)
    calls = settings.repeats or 5
    program = PROGRAMS[name](settings)
    compiled, _ = compile_program(program)
    wall = 1e3 * float(np.median(timed(compiled, program, calls)))
    module = compiled.as_text().split(maxsplit=2)[1].rstrip(",")  # "HloModule NAME, ..."
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            timed(compiled, program, calls)
        found = streams(Path(folder), module)
    busy, rows = summary(found, WARM_UP + calls)
    told = {"what": name, "settings": settings.options(), "device": jax.devices()[0].device_kind, "ms": wall}
    print(json.dumps({**told, "busy_ms": busy, "idle_ms": wall - busy, "streams": len(found), "operations": rows}))


if __name__ == "__main__":
    typer.run(main)
