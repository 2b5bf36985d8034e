"""Whether training fits into memory: what it holds at least, against what this machine has."""

import math
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import equinox as eqx
import jax
import jax.random as jr

from dreamer4.config import Config
from dreamer4.data import DatasetInfo
from dreamer4.dreamer import PHASES, Dreamer
from dreamer4.errors import InputError
from dreamer4.nn.flops import attention_bytes, parameters
from dreamer4.run.latents import streams
from dreamer4.training import AbstractPhase
from dreamer4.types import DataSpec


try:
    import resource
except ImportError:  # Windows
    resource = None

ADVICE = (
    "Cut frames into larger patches (tokenizer.patch), take batches in parts (train.<phase>.accumulate) or smaller "
    "(train.<phase>.batch_size), recompute in the backward pass (remat of a transformer), or leave frames on disk "
    "(data.source=stream); dreamer4 train all --dry-run tells what a run holds."
)
_COPIES = 7  # of those weights; a compiled step was seen to hold 6.8 of them


def device_memory() -> float:
    """Returns the bytes that the default device can hold; of a CPU, that this process may; without end if unknown."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit") or min(limits(), default=math.inf)


def limits() -> Iterator[int]:
    """Yields what bounds the memory of this process, in bytes: the machine, an address space, a container."""
    if hasattr(os, "sysconf"):
        yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if resource is not None and (most := resource.getrlimit(resource.RLIMIT_AS)[0]) != resource.RLIM_INFINITY:
        yield most
    own = Path("/proc/self/cgroup")
    for line in own.read_text().splitlines() if own.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            root = Path("/sys/fs/cgroup", controllers)
            name = "memory.limit_in_bytes" if controllers else "memory.max"
            group = root / path.lstrip("/")
            for folder in (group, *group.parents):
                if folder.is_relative_to(root) and (folder / name).is_file():
                    told = (folder / name).read_text().strip()
                    yield from [int(told)] if told.isdigit() else []


def state_bytes(config: Config, dreamer: Dreamer, phase: AbstractPhase) -> int:
    """Returns the bytes of the weights and their average, and of two moments and the gradient of what is trained."""
    trained = parameters(eqx.filter(dreamer, phase.trainable(dreamer)))
    return 4 * config.seeds * (2 * parameters(dreamer) + 3 * trained)


def tokenizer_bytes(config: Config, dreamer: Dreamer) -> int:
    """Returns the bytes of attention between patches that a step of the tokenizer holds at least."""
    settings = config.train.tokenizer
    rows = settings.batch_size // math.gcd(settings.accumulate, settings.batch_size)
    return config.seeds * rows * attention_bytes(dreamer.tokenizer, frames=settings.length)


def check(
    config: Config, spec: DataSpec, dreamer: Dreamer, phases: Sequence[AbstractPhase], info: DatasetInfo | None
) -> None:
    """Refuses a training that holds more than there is, and warns of one that may.

    Args:
        config: the configuration.
        spec: of the data.
        dreamer: the agent, in shapes.
        phases: those that are to be trained.
        info: description of the data set, if there is one.

    Raises:
        InputError: if what it holds at least is more than this machine has.
    """
    if not phases:
        return
    limit = device_memory()
    devices, mesh = config.train.mesh.size, config.train.mesh
    state = max(state_bytes(config, dreamer, phase) for phase in phases) // mesh.fsdp
    frames = 0
    if info is not None and not streams(config, info):
        frames = info.num_frames * math.prod(info.frame_shape)
    attention = 0
    if any(phase.name == PHASES[0] for phase in phases):
        attention = tokenizer_bytes(config, dreamer) // devices
    if state + frames + _COPIES * attention <= limit:
        return
    has = f"{limit / 1e9:,.1f} GB of memory"
    if attention == max(state, frames, attention):
        (high, wide), (height, width, _) = config.tokenizer.patch, spec.frame_shape
        batch = config.train.tokenizer
        what = (
            f"tokenizer.patch: got {high} x {wide}, {-(-height // high) * -(-width // wide):,} patches of a frame of "
            f"{height} x {width}. To attend to each other in {batch.batch_size} x {batch.length} frames "
            f"(train.tokenizer.batch_size, length) they take {attention / 1e9:,.1f} GB at least"
        )
        remedy = _larger_patch(config, spec, limit * devices)
    elif frames >= state:
        what = f"data.source: the {info.num_frames if info else 0:,} frames take {frames / 1e9:,.1f} GB"
        remedy = "Leave them on disk: data.source=stream."
    else:
        what = f"The training state (weights, their average, moments, gradient) takes {state / 1e9:,.1f} GB"
        remedy = "Choose a smaller preset, fewer --seeds, or split it over devices by train.mesh.fsdp."
    if state + frames + attention > limit:
        raise InputError(f"{what}, and there are {has}. {remedy}")
    warnings.warn(f"{what}, of {has}: training may not fit. {remedy}", stacklevel=2)


def _larger_patch(config: Config, spec: DataSpec, limit: float) -> str:
    """Returns what to set, of which the copies fit too."""
    (high, wide), (height, width, _) = config.tokenizer.patch, spec.frame_shape
    while high < height or wide < width:
        high, wide = min(2 * high, height), min(2 * wide, width)
        tokenizer = config.tokenizer.model_copy(update={"patch": (high, wide)})
        changed = config.model_copy(update={"tokenizer": tokenizer})
        shapes = eqx.filter_eval_shape(Dreamer.build, changed, spec, key=jr.key(0))
        if _COPIES * tokenizer_bytes(changed, shapes) <= limit:
            return f"Set tokenizer.patch=[{high},{wide}], or make the frames smaller (dreamer4 data import --size)."
    return "Make the frames smaller (dreamer4 data import --size), or the batches (train.tokenizer.batch_size)."
