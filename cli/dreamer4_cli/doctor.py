"""`dreamer4 doctor`: what there is to work with, and what stands in the way; what a report of a problem begins with."""

import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import jax
from packaging.requirements import Requirement

from dreamer4.run.memory import limits
from dreamer4_cli import compile_cache
from dreamer4_cli.console import say


NAME = "dreamer4-eqx"
_VERSIONS = ("jax", "jaxlib", "equinox", "optax", "orbax-checkpoint", "gymnax", "numpy")
_TESTING = ("dev", "docs", "notebooks", "browser")  # extras of contributors
_SLOW = ("JAX_DISABLE_JIT", "JAX_DEBUG_NANS", "JAX_DEBUG_INFS", "JAX_ENABLE_CHECKS", "JAX_CHECK_TRACER_LEAKS")
_LEAST = 4.0  # GB that the demo wants

Finding = tuple[str, str, str]  # what was looked at, what was found, and what to do about it, if it is not well


def doctor() -> bool:
    """Prints all findings; returns whether none asks for anything."""
    findings = [*_software(), *_devices(), *_extras(), *_machine(), *_settings()]
    width = max(len(about) for about, _, _ in findings)
    for about, found, remedy in findings:
        say(f"{'!' if remedy else ' '} {about:<{width}}  {found}", style="yellow" if remedy else None)
        if remedy:
            say(f"{'':{width + 4}}-> {remedy}")
    return not any(remedy for _, _, remedy in findings)


def _software() -> Iterator[Finding]:
    yield "dreamer4", f"{metadata.version(NAME)} in {Path(__file__).parents[1]}", ""
    yield "Python", f"{platform.python_version()}, {platform.platform()}", ""
    yield "libraries", ", ".join(f"{name} {metadata.version(name)}" for name in _VERSIONS), ""
    if others := sorted(rivals()):
        remedy = (
            f"Its files and ours overwrite each other. Run: pip uninstall {' '.join(others)}; then install {NAME} anew."
        )
        yield "name", f"{', '.join(others)} is here too, and owns dreamer4 as a module or a command", remedy


def rivals() -> set[str]:
    """Returns other distributions that own the import name or the command `dreamer4`."""
    owners = set(metadata.packages_distributions().get("dreamer4", ()))
    scripts = metadata.entry_points(group="console_scripts", name="dreamer4")
    return (owners | {script.dist.name for script in scripts if script.dist is not None}) - {NAME}


def _devices() -> Iterator[Finding]:
    devices = jax.devices()
    seen = sorted({f"{device.platform}: {device.device_kind}" for device in devices})
    remedy = ""
    if jax.default_backend() == "cpu" and shutil.which("nvidia-smi"):
        remedy = "An NVIDIA driver is here that JAX does not use. Run: pip install 'jax[cuda13]'."
    yield "devices", f"{len(devices)} of JAX ({', '.join(seen)})", remedy


def _extras() -> Iterator[Finding]:
    wanted: dict[str, list[Requirement]] = {}
    for requirement in map(Requirement, metadata.requires(NAME) or ()):
        for extra in metadata.metadata(NAME).get_all("Provides-Extra") or ():
            marker = requirement.marker
            if marker and not marker.evaluate({"extra": ""}) and marker.evaluate({"extra": extra}):
                wanted.setdefault(extra, []).append(requirement)
    for extra, requirements in sorted(wanted.items()):
        if extra not in _TESTING:
            missing = [requirement.name for requirement in requirements if not _installed(requirement)]
            how = f"lacks {', '.join(missing)}; pip install '{NAME}[{extra}]'" if missing else "installed"
            yield f"extra {extra}", how, ""


def _installed(requirement: Requirement) -> bool:
    try:
        return requirement.specifier.contains(metadata.version(requirement.name), prereleases=True)
    except metadata.PackageNotFoundError:
        return False


def _machine() -> Iterator[Finding]:
    cores, whole = cpu_share(), os.cpu_count() or 1
    remedy = "Affinity or a container allows fewer than there are; ask for more." if cores < whole else ""
    yield "cores", f"{cores:g} of {whole}", remedy
    if (memory := min(limits(), default=0) / 1e9) > 0:
        remedy = f"The demo wants about {_LEAST:g} GB." if memory < _LEAST else ""
        yield "memory", f"{memory:.1f} GB, container's limit considered", remedy
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    kept = cache is not None and os.environ.get("JAX_ENABLE_COMPILATION_CACHE") != "false"
    anew = "Each start compiles anew. Name a folder: dreamer4 --compile-cache DIR COMMAND."
    yield "compiled programs", str(cache) if kept else "are not kept", "" if kept else anew
    for about, folder in (("runs go to", Path("runs").absolute()), ("temporary files", Path(tempfile.gettempdir()))):
        place = next(path for path in (folder, *folder.parents) if path.exists())
        free = f"{folder}, {shutil.disk_usage(place).free / 1e9:.0f} GB free"
        usable = compile_cache.writable(folder)
        yield about, free, "" if usable else "It cannot be written to: work in another folder."


def cpu_share(cgroup: Path = Path("/sys/fs/cgroup")) -> float:
    """Returns how many cores the process may use, by its affinity and by the limit of a container (cgroup 2)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, _, period = (cgroup / "cpu.max").read_text().strip().partition(" ")
    except OSError:
        return cores
    return min(cores, int(quota) / int(period)) if quota.isdigit() and period.isdigit() else cores


def _settings() -> Iterator[Finding]:
    for name in _SLOW:
        if os.environ.get(name, "0").lower() not in ("", "0", "false"):
            yield name, os.environ[name], "It slows every step down: unset it, unless you look for a fault."
    flags = os.environ.get("XLA_FLAGS", "")
    slow = [flag for flag in flags.split() if "dump" in flag or "multi_thread_eigen=false" in flag]
    if flags:
        yield "XLA_FLAGS", flags, f"Slow: {' '.join(slow)}. Unset it." if slow else ""
