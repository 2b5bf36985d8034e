"""What it takes to train on a lot of data, from what a sample of it takes here."""

import time
from dataclasses import dataclass
from pathlib import Path

import equinox as eqx
import jax.random as jr
import numpy as np

from dreamer4.config import Config
from dreamer4.data import AbstractReader, open_reader
from dreamer4.dreamer import PHASES, Dreamer
from dreamer4.training.flops import step_flops
from dreamer4.types import DataSpec


_SECONDS, _WINDOW = 10.0, 64  # of decoding that tells a rate, and frames at a time


@dataclass(frozen=True)
class Rates:
    """What a sample takes on one core of this machine.

    Attributes:
        opened: frames for which labels are read and places in films found, a CPU-second.
        in_order: frames decoded one after another, a CPU-second.
        at_random: frames decoded in windows of 64, a CPU-second.
        size: bytes on disk of a frame: of all files beside it.
    """

    opened: float
    in_order: float
    at_random: float
    size: float


@dataclass(frozen=True)
class Stage:
    """A part of the work.

    Attributes:
        name: what is done.
        rate: how fast, in words.
        hours: on one core or device.
        device: `core` or `device`.
        size: bytes that it leaves behind.
    """

    name: str
    rate: str
    hours: float
    device: str
    size: float = 0.0


def measure(path: Path) -> tuple[AbstractReader, Rates]:
    """Opens a sample and reads of it for some seconds."""
    begin = time.process_time()
    reader = open_reader(path, "all")
    opened = float(reader.lengths.sum()) / max(time.process_time() - begin, 1e-9)
    random = np.random.default_rng(0)
    whole = [(e, s) for e, n in enumerate(reader.lengths) for s in range(0, int(n), _WINDOW)]
    drawn = [whole[i] for i in random.permutation(len(whole))]
    folder = path if path.is_dir() else path.parent
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / float(reader.lengths.sum())
    return reader, Rates(opened, _decoded(reader, whole), _decoded(reader, drawn), size)


def stages(config: Config, spec: DataSpec, rates: Rates, frames: float, tflops: float) -> list[Stage]:
    """Returns the stages from files on disk to a trained agent.

    Args:
        config: of the models.
        spec: of the data.
        rates: of a sample.
        frames: of all of the data.
        tflops: operations that a device does, in 10^12 a second.
    """
    dreamer = eqx.filter_eval_shape(Dreamer.build, config, spec, key=jr.key(0))
    tokenizer = dreamer.tokenizer
    flops = tokenizer.encoder_flops(frames=config.train.dynamics.length)
    latent = 2 * tokenizer.num_spatial * tokenizer.spatial_dim * frames  # float16
    training = [
        Stage(f"train {name}", f"{step_flops(name, dreamer, config) / 1e12:,.3g} TFLOP a step", hours, "device")
        for name in PHASES
        for hours in [getattr(config.train, name).steps * step_flops(name, dreamer, config) / tflops / 1e12 / 3600]
    ]
    return [
        Stage("as recorded", "", 0.0, "core", rates.size * frames),
        Stage("open: labels, places", f"{rates.opened:,.0f} frames/s", frames / rates.opened / 3600, "core"),
        Stage("decode, in order", f"{rates.in_order:,.0f} frames/s", frames / rates.in_order / 3600, "core"),
        Stage("decode, windows of 64", f"{rates.at_random:,.0f} frames/s", frames / rates.at_random / 3600, "core"),
        Stage(
            "encode", f"{tflops * 1e12 / flops:,.0f} frames/s", frames * flops / tflops / 1e12 / 3600, "device", latent
        ),
        *training,
    ]


def _decoded(reader: AbstractReader, windows: list[tuple[int, int]]) -> float:
    """Returns frames a CPU-second; of all threads of this process together."""
    begin, frames = time.process_time(), 0
    for episode, start in windows:
        length = min(_WINDOW, int(reader.lengths[episode]) - start)
        reader.window(episode, start, length)
        frames += length
        if time.process_time() - begin > _SECONDS:
            break
    return frames / max(time.process_time() - begin, 1e-9)
