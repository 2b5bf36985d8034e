"""What a user waits for before the first step: starting, tracing and compiling; and what is compiled again later.

    python -m benchmarks.speed.start SECONDS_SINCE_EPOCH SETTINGS_AS_JSON

takes one training step of the dynamics and prints how long ago that moment was: the child of `first_step`.
"""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice

import jax
import jax.random as jr
from jax.experimental.compilation_cache import compilation_cache

from benchmarks.speed.floor import Rates
from benchmarks.speed.programs import PROGRAMS, Settings, some_data
from benchmarks.speed.timing import Row, compilations, compile_program
from dreamer4 import allocator
from dreamer4.dreamer import PHASES
from dreamer4.errors import InputError
from dreamer4.run.sizes import data_spec
from dreamer4.training import build_phase, init_dreamer, init_state, train


DEPTHS = (12, 48)
WARM, COUNTED = 2, 4  # steps of a phase before compilations count, and while they do


def steps(name: str, settings: Settings) -> Iterator:
    """Yields state and metrics of the training steps of a phase, as the library's own loop takes them."""
    config = settings.config(name)
    spec, phase_settings = data_spec(config), getattr(config.train, name)
    dreamer, phase = init_dreamer(config, spec), build_phase(name, config, spec)
    frames = name == "tokenizer"
    source = some_data(dreamer, spec, phase_settings.batch_size, phase_settings.length, frames=frames, key=jr.key(2))
    state = init_state(phase, dreamer, phase_settings)
    return train(phase, phase_settings, state, source, seed=0, latents=source.latent)


def first_step(settings: Settings, rates: Rates) -> list[Row]:
    """Times a process from its start to the end of its first training step: with nothing compiled, and once more."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for what in ("nothing compiled before", "compiled programs kept"):
            environment = os.environ | {
                "JAX_ENABLE_COMPILATION_CACHE": "true",
                "JAX_COMPILATION_CACHE_DIR": folder,
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            }
            told = json.dumps(dataclasses.asdict(settings))
            command = [sys.executable, "-m", "benchmarks.speed.start", str(time.time()), told]
            child = subprocess.run(command, env=environment, capture_output=True, text=True)  # noqa: S603
            if child.returncode:
                raise InputError(f"speed start: the process that was to take a step failed.\n{child.stderr}")
            rows.append(Row(f"first dynamics step, {what}", float(child.stdout.split()[-1]), "s"))
    return rows


@contextlib.contextmanager
def no_compile_cache() -> Iterator[None]:
    """Compiles everything anew."""
    before = jax.config.values["jax_enable_compilation_cache"]
    try:
        jax.config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()  # whether there is one is asked once
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def depth(settings: Settings, rates: Rates) -> list[Row]:
    """Compiles a training step of the dynamics and a frame at several depths; nothing is computed."""
    rows = []
    for name, what in (("dynamics", "dynamics step"), ("frame", "frame")):
        seconds = {}
        for layers in DEPTHS:
            deeper = dataclasses.replace(
                settings, overrides=(*settings.overrides, f"dynamics.transformer.depth={layers}")
            )
            program = PROGRAMS[name](deeper)
            with no_compile_cache():
                _, parts = compile_program(program)
            seconds[layers] = sum(parts.values())
            rows.append(Row(f"compile {what}, {layers} layers", seconds[layers], "s", None, parts))
        rows.append(Row(f"compile {what}, {DEPTHS[1]} over {DEPTHS[0]}", seconds[DEPTHS[1]] / seconds[DEPTHS[0]], ""))
    return rows


def recompilations(settings: Settings, rates: Rates) -> list[Row]:
    """Counts what each phase compiles after its first steps."""
    rows = []
    for name in PHASES:
        taken = steps(name, settings)
        for state, _ in islice(taken, WARM):
            jax.block_until_ready(state.step)
        before = compilations()
        for state, _ in islice(taken, COUNTED):
            jax.block_until_ready(state.step)
        rows.append(Row(f"recompilations, {name}", compilations() - before, f"in {COUNTED} steps"))
    return rows


def main() -> None:
    """Takes one step and prints the seconds since the moment given."""
    allocator.keep_freed()
    began, told = float(sys.argv[1]), json.loads(sys.argv[2])
    settings = Settings(**told | {"overrides": tuple(told["overrides"])})
    state, _ = next(steps("dynamics", settings))
    jax.block_until_ready(state.step)
    print(round(time.time() - began, 2))


if __name__ == "__main__":
    main()
