"""Facts about a run: the machine, the code, the memory, and what an earlier end of it wrote down."""

import os
import subprocess
import sys
from pathlib import Path

import jax

from dreamer4.evaluation.results import Results, read_results
from dreamer4.files import read_bytes
from dreamer4.run.folder import RunFolder


try:
    import resource
except ImportError:  # Windows
    resource = None

_MAX_RESULTS = 10**7  # bytes
_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, kilobytes elsewhere


def run_results(run: RunFolder) -> Results | None:
    """Returns a run's `results.json`; None if it has none.

    Raises:
        InputError: if it cannot be read.
    """
    if not run.results_file.exists():
        return None
    return read_results(read_bytes(run.results_file, limit=_MAX_RESULTS), name=str(run.results_file))


def device() -> str:
    """Returns what computes, as people call it."""
    device = jax.devices()[0]
    return device.device_kind if device.platform != "cpu" else f"{os.cpu_count()} CPU cores"


def source_commit(root: Path = Path(__file__).parents[3]) -> str | None:
    """Returns the commit of a source checkout, marked if its code has changes; None for an installed package."""
    if not (root / ".git").exists():
        return None
    try:
        git = ["git", "-C", str(root)]
        commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)  # noqa: S603
        # Results are what code made, not code: the first entry of a ledger must not mark the second.
        status = [*git, "status", "--porcelain", "--", ".", ":(exclude)benchmarks/results"]
        changes = subprocess.run(status, capture_output=True, text=True, check=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if changes.stdout.strip() else "")


def memory_gb() -> float | None:
    """Returns the most memory that this process has held, in GB; None where the system does not tell."""
    if resource is None:
        return None
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_UNIT / 1e9, 2)
