"""What a long time does: a dream of many frames in one go, and the memory of a run over many steps.

`suite` puts both into the table.
"""

import gc
import subprocess
import time
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from dreamer4 import data, envs, hub
from dreamer4.data import DeviceSource
from dreamer4.dreamer import Dreamer, Memory, find_checkpoint, read_description
from dreamer4.run.metrics import read_metrics
from dreamer4.training import encode_source, stream
from dreamer4.types import Action, to_float


CHUNK = 250  # dreamt steps of one compiled program
LARGEST = 3.0  # of a dreamt latent's norm over the largest of the data
EPISODES = 64
GROWTH = 0.02


def dream(steps: int) -> dict[str, Any]:
    """Dreams on without an end, far beyond an episode's, and looks at the size of what is dreamt and of the process."""
    path = find_checkpoint(hub.local("catch"))
    dreamer, (config, _) = Dreamer.load(path), read_description(path)
    env = envs.make(config.env)
    episodes = data.collect(env, data.random_policy(env.spec), episodes=EPISODES, key=stream(0, "evaluate"))
    source = DeviceSource.from_episodes(list(episodes))
    real = np.asarray(_norms(encode_source(dreamer, source)))
    assert source.frame is not None  # encoded beside its frames, not in their place
    first = source.frame[0]
    memory = dreamer.observe(
        dreamer.init(), to_float(first), Action.null(env.spec.action), jnp.array(False), key=jr.key(0)
    )
    norms, sizes = [], []
    for number in range(steps // CHUNK):
        memory, dreamt = _dream(dreamer, memory, jr.fold_in(jr.key(0), number))
        norms.append(np.asarray(dreamt))
        sizes.append(_own_bytes())
    dreamt = np.concatenate(norms)
    largest, growth = float(dreamt.max() / real.max()), growth_of(sizes[len(sizes) // 4 :])  # at first it compiles
    finite = bool(np.isfinite(dreamt).all() and np.isfinite(dreamer.readout(memory)).all())
    return {
        "figure": f"{len(dreamt)} frames, {'finite' if finite else 'NOT finite'}, largest norm {largest:.2f} of the "
        f"data's, memory {growth:+.2%}",
        "wanted": f"finite, {LARGEST:.0f}, under {GROWTH:.0%}",
        "ok": finite and largest <= LARGEST and growth < GROWTH,
        "details": {
            "agent": "the Catch agent that is shipped",
            "norms of the data: mean, largest": [round(float(real.mean()), 3), round(float(real.max()), 3)],
            "norms dreamt: mean, largest": [round(float(dreamt.mean()), 3), round(float(dreamt.max()), 3)],
            "means over each tenth": [round(float(part.mean()), 3) for part in np.array_split(dreamt, 10)],
            "megabytes": [round(size / 1e6, 1) for size in sizes],
        },
    }


def _norms(latents: Float[Array, "*N Nz Dz"]) -> Float[Array, "*N"]:
    return jnp.sqrt(jnp.sum(jnp.square(latents), axis=(-2, -1)))


@eqx.filter_jit
def _dream(dreamer: Dreamer, memory: Memory, key: PRNGKeyArray) -> tuple[Memory, Float[Array, " steps"]]:
    def body(memory, key):
        key_act, key_world = jr.split(key)
        imagined, memory = dreamer.imagine_step(memory, dreamer.act(memory, key=key_act), key=key_world)
        return memory, _norms(imagined.latent)

    return jax.lax.scan(body, memory, jr.split(key, CHUNK))


def watched(process: subprocess.Popen, folder: Path, phases: tuple[str, ...], steps: int) -> dict[str, Any]:
    """Follows the memory of a run in a process of its own, which writes lines of metrics.

    Args:
        process: the run.
        folder: where it writes.
        phases: what it trains.
        steps: steps of each phase.
    """
    sizes: dict[str, list[int]] = {phase: [] for phase in phases}
    log, length = folder / "metrics.jsonl", 0
    while process.poll() is None:
        time.sleep(0.05)
        if not log.exists() or log.stat().st_size == length:
            continue
        length = log.stat().st_size
        last = read_metrics(log)[-1]
        # The first quarter compiles, saves for the first times, and fills what is kept for later.
        if last["phase"] in sizes and last["step"] > steps // 4:
            sizes[last["phase"]].append(_bytes_of(process.pid))
    if process.returncode:
        told = "" if process.stdout is None else process.stdout.read()
        raise RuntimeError(f"The run in {folder} ended with {process.returncode}:\n{told[-2000:]}")
    growth = {phase: growth_of([size for size in seen if size]) for phase, seen in sizes.items()}
    worst = max(growth.values())
    return {
        "figure": f"at most {worst:+.2%} over {steps} steps of {len(phases)} phases",
        "wanted": f"under {GROWTH:.0%}",
        "ok": worst < GROWTH,
        "details": {
            "growth": {phase: f"{value:+.2%}" for phase, value in growth.items()},
            "megabytes over each tenth of what was watched": {
                phase: [
                    round(float(np.median(part)) / 1e6) for part in np.array_split([size for size in seen if size], 10)
                ]
                for phase, seen in sizes.items()
            },
        },
    }


def growth_of(sizes: list[int]) -> float:
    """Returns how much larger the last quarter of some sizes is than the first, by their medians."""
    if len(sizes) < 8:
        raise RuntimeError(f"Memory was read {len(sizes)} times, too few to compare. Take more steps.")
    quarter = len(sizes) // 4
    return float(np.median(sizes[-quarter:]) / np.median(sizes[:quarter]) - 1.0)


def _bytes_of(pid: int | str) -> int:
    """Returns the resident memory of a process in bytes, 0 if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    sizes = [line.split()[1] for line in fields.splitlines() if line.startswith("VmRSS:")]
    return int(sizes[0]) * 1024 if sizes else 0


def _own_bytes() -> int:
    gc.collect()
    return _bytes_of("self")
