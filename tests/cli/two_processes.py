"""One of two processes that train together: run twice by `test_processes.py`, with a folder, a port and its number."""

import json
import os
import signal
import sys
from pathlib import Path


os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"

from dreamer4.run import processes, stopping  # noqa: E402


FOLDER, PORT, NUMBER = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])


def work(folder, asked=None, gone=None):
    """A run of the phase of one number; at a step, this process may be asked to leave, or be gone."""
    from cli.test_stopping import configuration, described
    from training.faults import source

    from dreamer4.run.folder import RunFolder
    from dreamer4.run.metrics import MetricLog
    from dreamer4.run.phase import Work
    from dreamer4.training.placement import build_mesh

    class Log(MetricLog):
        def append(self, phase, step, metrics):
            super().append(phase, step, metrics)
            if step == asked:
                signal.raise_signal(signal.SIGTERM)
            if step == gone:
                os._exit(9)

    config = configuration("train.mesh={data: 2, fsdp: 2}", "train.dynamics.batch_size=4")
    mesh, run = build_mesh(config.train.mesh), RunFolder(FOLDER / folder)
    return Work(config, run, source(), described(), Log(FOLDER / f"{folder}-{NUMBER}.jsonl"), {}, "again", mesh)


def train(work, saved=None):
    from training.faults import planted, world

    from dreamer4 import checkpoint
    from dreamer4.training import init_state
    from dreamer4.training.placement import spread

    settings, steps = work.config.train.dynamics, work.run.checkpoints("dynamics")
    phase = planted({12: 1})
    state = spread(init_state(phase, world(), settings), work.mesh)
    if saved is not None:
        state = checkpoint.load(steps.path(saved), state)
    return work.train(phase, settings, state, None, steps)


def split_and_back():
    """Whether an array that lies split over both processes is read whole by each."""
    import numpy as np

    from dreamer4.checkpoint import whole
    from dreamer4.config import MeshConfig
    from dreamer4.training.placement import bring_home, build_mesh, spread

    array = np.arange(64.0 * 64, dtype=np.float32).reshape(64, 64)
    split = spread(array, build_mesh(MeshConfig(data=1, fsdp=4)))
    assert not split.is_fully_addressable and split.addressable_shards[0].data.shape == (64, 16)
    return bool(np.array_equal(whole(split), array) and np.array_equal(bring_home(split), array))


with processes.joined(f"127.0.0.1:{PORT}", 2, NUMBER):
    told: dict[str, int] = {"whole": split_and_back()}
    try:
        with stopping.installed(), stopping.hold():
            train(work("run", asked=24 if NUMBER else None))
    except stopping.Stopped as stopped:
        told["stopped"] = stopped.signum
    steps = work("run").run.checkpoints("dynamics").steps()
    train(work("run"), saved=steps[-1])
    print(json.dumps(told | {"steps": steps}), file=sys.stderr, flush=True)
    # Without the first one no heartbeat needs to be waited for.
    train(work("lost", gone=None if NUMBER else 24))
