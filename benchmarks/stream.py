"""Training on data that stays on disk: memory, speed beside data on the device, and encoding that is killed.

    python benchmarks/stream.py make DATA --gigabytes 6     # a data set of moving blocks, 64x64
    python benchmarks/stream.py film FOLDER --minutes 60    # a video of them, 640x360
    python benchmarks/stream.py memory DATA --steps 2000    # tokenizer, latents and dynamics of a tiny model
    python benchmarks/stream.py memory FOLDER --steps 200
    python benchmarks/stream.py windows FOLDER --count 200  # stretches of 16 frames from anywhere in it
    python benchmarks/stream.py speed                       # `small`: a step from disk against one from the device
    python benchmarks/stream.py kill --times 20             # kill -9 at random moments of `encode_store`

Each prints one line of JSON. Resident memory is what Linux tells of the process, peaks included.
"""

import argparse
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path


def rss(name: str = "VmRSS") -> float:
    """Returns the resident memory of this process in GB, or with `VmHWM` the most it was."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return round(next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1e6, 3)


def moving(frames: int, height: int, width: int, seed: int):
    """Returns frames of four blocks that move evenly over a pattern of their own."""
    import numpy as np

    rng = np.random.default_rng(seed)
    ground = rng.integers(0, 256, (height // 8, width // 8, 3)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
    video = np.broadcast_to(ground, (frames, *ground.shape)).copy()
    side = height // 8
    for _ in range(4):
        (y, x), (dy, dx), colour = rng.integers(0, height, 2), rng.integers(-3, 4, 2), rng.integers(0, 256, 3)
        for t in range(frames):
            top, left = (y + t * dy) % (height - side), (x + t * dx) % (width - side)
            video[t, top : top + side, left : left + side] = colour
    return video


def episodes(count: int, length: int = 200) -> Iterator:
    """Yields episodes of such frames at 64x64, with actions and rewards by chance."""
    import numpy as np

    from dreamer4.data import Episode

    for i in range(count):
        rng = np.random.default_rng(i)
        yield Episode(
            frame=moving(length, 64, 64, i),
            discrete=rng.integers(0, 4, (length, 1)).astype(np.int32),
            continuous=np.zeros((length, 0), np.float32),
            action_mask=np.arange(length) > 0,
            reward=rng.normal(size=length).astype(np.float32),
            is_terminal=bool(i % 2),
        )


def make(folder: Path, gigabytes: float) -> dict:
    """Writes a data set of so many gigabytes of raw frames."""
    from dreamer4.data import write_dataset
    from dreamer4.types import ActionSpec, DataSpec

    count = max(2, round(gigabytes * 1e9 / (200 * 64 * 64 * 3)))
    spec, began = DataSpec((64, 64, 3), ActionSpec((4,))), time.perf_counter()
    about = {"spec": spec, "environment": {}, "policy": "random", "seed": 0}
    info = write_dataset(folder, episodes(count), **about)
    return {"frames": info.num_frames, "seconds": round(time.perf_counter() - began), "peak_gb": rss("VmHWM")}


def film(folder: Path, minutes: float) -> dict:
    """Writes a video of so many minutes at 20 frames a second."""
    import av

    folder.mkdir(parents=True)
    block = moving(600, 360, 640, 0)
    with av.open(str(folder / "film.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=20, options={"preset": "ultrafast", "g": "60"})
        stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
        for t in range(round(minutes * 1200)):
            picture = block[t % 600] if t // 600 % 2 == 0 else block[599 - t % 600]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return {"frames": round(minutes * 1200), "mb": round((folder / "film.mp4").stat().st_size / 1e6, 1)}


def configuration(spec, steps: int):
    """Returns a model of the tiniest sizes for frames of any size, in patches of about a fourth of their height."""
    from dreamer4.config import load

    patch = max(8, spec.frame_shape[0] // 8)
    layers = "{width: 16, depth: 2, heads: 2, kv_heads: 2, time_every: 2, context_length: 8}"
    clip = f"{{steps: {steps}, batch_size: 8, length: 8}}"
    return load(
        "tiny",
        overrides=[
            f"tokenizer.patch=[{patch}, {patch}]",
            f"tokenizer.encoder={layers}",
            f"tokenizer.decoder={layers}",
            f"dynamics.transformer={layers}",
            *(f"train.{phase}={clip}" for phase in ("tokenizer", "dynamics", "agent", "imagination")),
        ],
    )


def opened(path: Path):
    """Returns a reader of a data set or of a folder of videos."""
    from dreamer4.data import OwnReader, VideoReader

    return OwnReader(path) if (path / "dataset.json").exists() else VideoReader(path)


def memory(path: Path, steps: int) -> dict:
    """Trains the tokenizer, encodes, and trains the dynamics, all from disk."""
    import equinox as eqx

    from dreamer4 import training
    from dreamer4.data import LatentStore, StreamSource

    began, told = time.perf_counter(), {}

    def trained(phase, agent, source):
        settings = getattr(config.train, phase)
        built, grown = training.build_phase(phase, config, reader.spec), []
        state = training.init_state(built, agent, settings)
        for n, (taken, _) in enumerate(training.train(built, settings, state, source, seed=0), 1):
            state = taken
            if n % max(1, steps // 10) == 0:
                grown.append(rss())
        told[phase] = {"rss_gb": grown, "seconds": round(time.perf_counter() - began)}
        return built.finish(state.ema)

    reader = opened(path)
    told["opened"] = {"rss_gb": rss(), "seconds": round(time.perf_counter() - began)}
    config = configuration(reader.spec, steps)
    agent = trained("tokenizer", training.init_dreamer(config, reader.spec), StreamSource(reader))
    with tempfile.TemporaryDirectory() as folder:
        known = {"tokenizer": training.fingerprint(agent.tokenizer), "data": reader.fingerprint}
        training.encode_store(agent.tokenizer, reader, Path(folder))
        stats = training.measure_store(LatentStore(Path(folder), **known))
        told["encode"] = {"rss_gb": rss(), "seconds": round(time.perf_counter() - began)}
        agent = eqx.tree_at(lambda d: d.tokenizer.stats, agent, stats)
        trained("dynamics", agent, StreamSource(LatentStore(Path(folder), **known).standardised(stats.mean, stats.std)))
    raw = int(reader.lengths.sum()) * math.prod(reader.spec.frame_shape) / 1e9
    return {"raw_gb": round(raw, 2), "peak_gb": rss("VmHWM"), **told}


def windows(path: Path, count: int) -> dict:
    """Reads stretches of 16 frames from anywhere in the first episode, and one of them twice."""
    import numpy as np

    began, reader, chance = time.perf_counter(), opened(path), np.random.default_rng(0)
    opening, grown, frames = round(time.perf_counter() - began, 1), [], int(reader.lengths[0])
    began = time.perf_counter()
    for n in range(count):
        reader.window(0, int(chance.integers(frames - 16)), 16)
        if n % max(1, count // 10) == 0:
            grown.append(rss())
    seconds = (time.perf_counter() - began) / count
    first, again = (np.asarray(reader.window(0, frames // 2, 16).frame) for _ in range(2))
    assert np.array_equal(first, again)
    told = {"frames": frames, "opening_seconds": opening, "seconds_a_window": round(seconds, 3)}
    return told | {"rss_gb": grown, "peak_gb": rss("VmHWM")}


def speed(repeats: int, steps: int) -> dict:
    """Takes turns of so many steps of the tokenizer and of the dynamics from the device and from disk."""
    import jax
    import numpy as np

    from dreamer4 import training
    from dreamer4.config import load
    from dreamer4.data import DeviceSource, LatentStore, OwnReader, StreamSource, read_episodes, write_dataset
    from dreamer4.types import ActionSpec, DataSpec

    spec = DataSpec((64, 64, 3), ActionSpec((4,)))
    total = steps * (repeats + 1)
    config = load("small", overrides=[f"train.{phase}.steps={total}" for phase in ("tokenizer", "dynamics")])
    told = {}
    with tempfile.TemporaryDirectory() as place:
        data, folder = Path(place) / "data", Path(place) / "latents"
        write_dataset(data, episodes(40), spec=spec, environment={}, policy="random", seed=0)
        device, stream = DeviceSource.from_episodes(read_episodes(data, "train")), StreamSource(OwnReader(data))
        agent = training.init_dreamer(config, spec)
        training.encode_store(agent.tokenizer, stream.reader, folder)
        known = {"tokenizer": training.fingerprint(agent.tokenizer), "data": stream.reader.fingerprint}
        store = LatentStore(folder, **known)
        latents = np.concatenate(list(store.blocks()))
        sources = {
            "tokenizer": {"device": (device, None), "stream": (stream, None)},
            "dynamics": {"device": (device, jax.numpy.asarray(latents)), "stream": (StreamSource(store), None)},
        }
        for name, pair in sources.items():
            settings, times = getattr(config.train, name), {kind: [] for kind in pair}
            phase = training.build_phase(name, config, spec)
            runs = {
                kind: training.train(
                    phase, settings, training.init_state(phase, agent, settings), source, seed=0, latents=given
                )
                for kind, (source, given) in pair.items()
            }
            for turn in range(repeats + 1):
                for kind, run in runs.items():
                    began = time.perf_counter()
                    for _, metrics in islice(run, steps):
                        jax.block_until_ready(metrics)
                    if turn:  # the first compiles
                        times[kind].append(time.perf_counter() - began)
            frames = steps * settings.batch_size * settings.length
            told[name] = {kind: round(frames / statistics.median(seconds), 1) for kind, seconds in times.items()}
            told[name]["share"] = round(told[name]["stream"] / told[name]["device"], 3)
    return {"repeats": repeats, "steps": steps, "frames_per_second": told}


def encode(data: Path, folder: Path) -> dict:
    """Encodes a data set with untrained weights; what `kill` kills."""
    from dreamer4 import training

    reader = opened(data)
    agent = training.init_dreamer(configuration(reader.spec, 1), reader.spec)
    training.encode_store(agent.tokenizer, reader, folder, shard_bytes=2**21)
    return {"shards": len(list(folder.glob("*.npy")))}


def kill(times: int, gigabytes: float) -> dict:
    """Kills encoding at random moments, goes on each time, and compares the store with one that was never killed."""
    import numpy as np

    def content(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    def started(folder: Path) -> subprocess.Popen:
        return subprocess.Popen([sys.executable, __file__, "encode", str(data), str(folder)])  # noqa: S603

    with tempfile.TemporaryDirectory() as place:
        chance, data = np.random.default_rng(), Path(place) / "data"
        make(data, gigabytes)
        whole, torn = Path(place) / "whole", Path(place) / "torn"
        began = time.perf_counter()
        started(whole).wait()
        seconds, found = time.perf_counter() - began, []
        while len(found) < times:
            process = started(torn)
            time.sleep(chance.uniform(0.3, 1.0) * seconds)
            process.send_signal(signal.SIGKILL)
            process.wait()
            found.append(len(list(torn.glob("shard-*.json"))))
            if (torn / "latents.json").exists() and found[-1] == len(list(whole.glob("shard-*.json"))):
                assert content(torn) == content(whole)
                for path in torn.iterdir():
                    path.unlink()
        started(torn).wait()
        return {"kills": times, "shards_at_each": found, "equal": content(torn) == content(whole)}


def main() -> None:
    """Runs what the command line names."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for function, paths, numbers in (
        (make, ["folder"], {"gigabytes": 6.0}),
        (film, ["folder"], {"minutes": 60.0}),
        (memory, ["path"], {"steps": 2000}),
        (windows, ["path"], {"count": 200}),
        (speed, [], {"repeats": 10, "steps": 2}),
        (kill, [], {"times": 20, "gigabytes": 0.03}),
        (encode, ["data", "folder"], {}),
    ):
        command = commands.add_parser(function.__name__)
        for name in paths:
            command.add_argument(name, type=Path)
        for name, value in numbers.items():
            command.add_argument(f"--{name}", type=type(value), default=value)
        command.set_defaults(function=function)
    given = vars(parser.parse_args())
    print(json.dumps(given.pop("function")(**given)))


if __name__ == "__main__":
    main()
