"""Pieces of work for processes of their own, which import next to nothing."""

import hashlib
import os
import resource
import signal
import time
from pathlib import Path

from dreamer4.run import stopping


def note(folder: Path, name: str, text: str) -> None:
    """Leaves a file, all at once."""
    partial = folder / f"{name}.tmp"
    partial.write_text(text)
    os.replace(partial, folder / name)


def tell(folder: Path, name: str) -> None:
    """Tells its process."""
    note(folder, name, str(os.getpid()))


def fail(folder: Path, other: str) -> None:
    """Fails as soon as the other piece has begun."""
    while not (folder / other).exists():
        time.sleep(0.01)
    raise ValueError("this piece fails")


def work(folder: Path, name: str) -> None:
    """Works for longer than any test, and saves when it is asked to leave."""
    with stopping.installed():
        try:
            tell(folder, name)
            time.sleep(600)
        finally:
            with stopping.hold():
                time.sleep(0.5)
                note(folder, f"{name}.saved", "saved")


def die(folder: Path, name: str) -> None:
    """Is killed as by a system that has no memory left."""
    tell(folder, name)
    os.kill(os.getpid(), signal.SIGKILL)


def add(folder: Path, name: str, cores: int) -> None:
    """Tells the sums of the columns of a matrix as they come out on a number of cores."""
    os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:cores]))
    import jax.numpy as jnp
    import jax.random as jr

    sums = jnp.sum(jr.normal(jr.key(0), (2048, 384)), axis=0)
    note(folder, name, hashlib.sha256(sums.tobytes()).hexdigest())


def allocate(folder: Path, name: str) -> None:
    """Tells how many page faults a large block costs that was freed before."""
    for _ in range(2):  # the first time it is taken from the system
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        block = bytearray(64 << 20)
        del block
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    note(folder, name, str(faults))
