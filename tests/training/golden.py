"""Losses that every later version must repeat: `python tests/training/golden.py` writes golden.json anew.

Each phase of the tiny preset takes 100 steps, on its own: from weights, episodes and latents that NumPy draws, so that
neither the phase before it nor another version's random initialisation has a part in its losses. The actions are
discrete and continuous and there are two tasks, and read-outs reconstruct, so that every loss term has its part.

On other processors and versions of JAX the losses agree to 1e-5; docs/reliability.md has the largest differences.

When it may be made again: when a change is meant to alter what is computed, and the commit says so. Never to make a
test pass whose failure was not expected.
"""

import argparse
import json
import os
import platform
import sys
from pathlib import Path


if __name__ == "__main__":  # as conftest.py does for the tests, for other settings may round otherwise
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = f"--xla_backend_optimization_level=0 {os.environ.get('XLA_FLAGS', '')}".strip()
    sys.path.insert(0, str(Path(__file__).parents[1]))

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from helpers import generic

from dreamer4.checkpoint.manifest import library_versions
from dreamer4.config import load
from dreamer4.data import DeviceSource, Episode
from dreamer4.dreamer import PHASES, Dreamer
from dreamer4.training import build_optimizer, build_phase, draw_and_step, init_state, stream
from dreamer4.training.phases import freeze_prior
from dreamer4.types import ActionSpec, DataSpec


FILE = Path(__file__).with_suffix(".json")
STEPS = 100
LENGTHS = (10, 3, 8, 10, 6, 9)  # one shorter than a clip
SPEC = DataSpec((10, 5, 1), ActionSpec((3,), 2), num_tasks=2)
# Bins of the preset reach 5e8. Heads that are drawn, not trained, expect millions, and sums of such returns cancel.
HEADS = ["agent.reconstruction=1.0", "agent.bin_limit=2.0"]
CONFIG = load("tiny", overrides=[*HEADS, *(f"train.{phase}.steps={STEPS}" for phase in PHASES)])


def episodes():
    """Returns episodes of a dot that moves with the actions, and of numbers."""
    rng = np.random.default_rng(0)
    made = []
    for i, length in enumerate(LENGTHS):
        discrete = rng.integers(0, 3, (length, 1)).astype(np.int32)
        frame = np.zeros((length, *SPEC.frame_shape), np.uint8)
        frame[np.arange(length), np.arange(length), np.cumsum(discrete) % 5] = 255
        made.append(
            Episode(
                frame=frame,
                discrete=discrete,
                continuous=rng.uniform(-1, 1, (length, 2)).astype(np.float32),
                action_mask=np.arange(length) > 0,
                reward=rng.normal(size=length).astype(np.float32),
                is_terminal=bool(i % 2),
                task=i % 2,
            )
        )
    return made


def dreamer():
    """Returns an agent whose every weight NumPy drew, so that no read-out is zero; the prior is its policy, as cloned.

    Matrices have half the usual size, or dreams, which feed on themselves, would amplify rounding a hundredfold.
    """
    drawn = generic(lambda: Dreamer.build(CONFIG, SPEC, key=jr.key(0)))
    smaller = jax.tree.map(lambda x: 0.5 * x if eqx.is_inexact_array(x) and x.ndim > 1 else x, drawn)
    return freeze_prior(smaller)


def source(name):
    """Returns what a phase trains on."""
    made = DeviceSource.from_episodes(episodes())
    if name == PHASES[0]:
        return made
    shape = (made.num_frames, CONFIG.tokenizer.num_spatial, CONFIG.tokenizer.spatial_dim)
    return made.with_latents(jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32))


class Run:
    """A phase, compiled once: its first steps with every state kept, the others on demand.

    Args:
        name: the phase.
        steps: how many states to keep.
        each: called with every step, a function without arguments that takes it.
    """

    def __init__(self, name, steps, each=lambda step: step()):
        self.settings = getattr(CONFIG.train, name)
        self.phase = phase = build_phase(name, CONFIG, SPEC)
        optimizer = build_optimizer(self.settings.optimizer, self.settings.steps)
        self.key, self.source, self.dreamer = stream(0, name), source(name), dreamer()
        self._step = eqx.filter_jit(lambda *given: draw_and_step(phase, optimizer, self.settings, *given))
        self.states, self.metrics = [init_state(phase, self.dreamer, self.settings)], []
        for _ in range(steps):
            state, metrics = each(lambda: self.step(self.states[-1]))
            self.states.append(state)
            self.metrics.append(metrics)

    def step(self, state, key=None):
        """Takes one step."""
        return self._step(state, self.source, self.key if key is None else key)

    def losses(self):
        """Returns each loss term over all steps."""
        state, told = self.states[-1], list(self.metrics)
        while len(told) < STEPS:
            state, metrics = self.step(state)
            told.append(metrics)
        host = jax.device_get(told)
        return {term: [float(metrics[term]) for metrics in host] for term in self.phase.weights}


def machine():
    """Returns all that bits depend on: versions, compiler settings, and what decides how sums are ordered.

    The compiler chooses instructions by the processor's features and model; products are cut into blocks by the sizes
    of its caches, and shared out among its cores.
    """
    versions = {name: library_versions()[name] for name in ("jax", "jaxlib", "equinox", "optax", "numpy")}
    return {"versions": versions, "flags": os.environ.get("XLA_FLAGS", ""), "processor": processor()}


def processor():
    """Returns the kind of this processor, as far as the system tells."""
    told = {"machine": platform.machine(), "cores": os.cpu_count()}
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        told["cores"] = len(os.sched_getaffinity(0))
    except OSError:  # another system than Linux
        return told | {"name": platform.processor()}
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    names = ("vendor_id", "cpu family", "model", "stepping", "cache size")
    kinds = ("sse", "avx", "fma", "amx", "f16c")
    features = [flag for flag in facts.get("flags", "").split() if flag.startswith(kinds)]
    return told | {name: facts[name] for name in names if name in facts} | {"features": " ".join(features)}


def main():
    """Writes the file."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    told = {"made with": machine(), "losses": {name: Run(name, 0).losses() for name in PHASES}}
    FILE.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
