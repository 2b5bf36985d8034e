"""How fast data comes: random play collected into episodes, episodes read from disk, batches drawn on the device."""

import tempfile
import time
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.random as jr

from benchmarks.speed.floor import Rates, median_seconds, size
from benchmarks.speed.programs import Settings
from benchmarks.speed.timing import Row
from dreamer4 import data, envs
from dreamer4.config import EnvConfig
from dreamer4.data import DeviceSource


ENVIRONMENT = "Breakout-MinAtar"
ENVIRONMENTS, EPISODES_EACH, REPEATS = 64, 8, 5


def collect(settings: Settings, rates: Rates) -> list[Row]:
    """Collects episodes of random play, many environments side by side."""
    env = envs.make(EnvConfig(id=ENVIRONMENT))
    count = settings.batch or ENVIRONMENTS
    seconds, found = _collected(env, count, settings.repeats or REPEATS)
    frames = sum(len(episode.frame) for episode in found)
    stored = _bytes(found) / frames
    details = {"environments": count, "episodes": len(found), "steps": frames, "bytes_per_step": stored}
    # What is kept of a step is written by the device and read by the host.
    floor = rates.memory / (2 * stored)
    return [Row(f"collect {ENVIRONMENT}, {count} at once", frames / seconds, "steps/s", floor, details)]


def _collected(env: Any, count: int, repeats: int) -> tuple[float, list[data.Episode]]:
    policy, found = data.random_policy(env.spec), []

    def play() -> list:
        found[:] = data.collect(env, policy, episodes=EPISODES_EACH * count, num_envs=count, key=jr.key(0))
        return []

    return median_seconds(play, repeats), found


def load(settings: Settings, rates: Rates) -> list[Row]:
    """Reads a data set from disk on to the device, and draws batches from it."""
    env = envs.make(EnvConfig(id=ENVIRONMENT))
    _, episodes = _collected(env, ENVIRONMENTS, 1)
    frames, stored = sum(len(episode.frame) for episode in episodes), _bytes(episodes)
    about = {"id": ENVIRONMENT, "kwargs": {}}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data"
        data.write_dataset(path, episodes, spec=env.spec, environment=about, policy="random", seed=0)
        began = time.perf_counter()
        source = jax.block_until_ready(DeviceSource.from_episodes(data.read_episodes(path)))
        seconds = time.perf_counter() - began
    config = settings.config("dynamics").train.dynamics
    rows, length = config.batch_size, config.length
    draw = eqx.filter_jit(lambda source, key: source.sample(rows, length, key=key))
    drawn = median_seconds(lambda: draw(source, jr.key(0)), settings.repeats or 20)
    batch = size(eqx.filter_eval_shape(lambda: source.sample(rows, length, key=jr.key(0))))
    read = {"frames": frames, "mb_per_s": stored / seconds / 1e6}
    sizes = {"batch": rows, "length": length, "mb_per_batch": batch / 1e6}
    return [
        Row("read a data set", frames / seconds, "frames/s", rates.memory * frames / (2 * stored), read),
        Row("draw batches", rows * length / drawn, "frames/s", rates.memory * rows * length / (2 * batch), sizes),
    ]


def _bytes(episodes: list[data.Episode]) -> int:
    parts = ("frame", "discrete", "continuous", "action_mask", "reward")
    return sum(getattr(episode, name).nbytes for episode in episodes for name in parts)
