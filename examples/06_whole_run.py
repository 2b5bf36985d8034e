"""All phases in one call, on your own environment and with your own attention.

`execute` works through the stages of a run in one folder, as the commands do. What is done is not done again, so the
same call goes on after a crash (`resume=True`), and a longer list of stages goes on where a shorter one ended: `LOOP`
also plays the agent, measures its dreams and writes a report. Sizes here are such that nothing is learned; write
`load("catch", ...)` and wait some minutes for that.

Run: python examples/06_whole_run.py
"""

import tempfile
from importlib import import_module
from pathlib import Path

from dreamer4.config import load
from dreamer4.dreamer import Dreamer
from dreamer4.envs import ENVIRONMENTS
from dreamer4.run.metrics import read_metrics
from dreamer4.run.stages import TRAINING, execute


ENVIRONMENTS["Corridor"] = import_module("03_own_environment").Corridor  # a class of yours
import_module("01_swap_attention")  # registers an attention of yours as `sink`


def main():
    own = ["tokenizer.patch=[2, 2]", "dynamics.transformer.attention=sink"]
    config = load("tiny", env="Corridor", overrides=own)
    with tempfile.TemporaryDirectory() as folder:
        run = execute(config, Path(folder) / "run", TRAINING)
        agent, lines = Dreamer.load(run.path), read_metrics(run.metrics_file)
    for line in lines:
        name, value = next((name, value) for name, value in line.items() if name not in ("phase", "step", "time"))
        print(f"{line['phase']:<12} step {line['step']:>2}, {name} {value:.3f}")
    print(f"The agent remembers {agent.dynamics.context_length} frames.")


if __name__ == "__main__":
    main()
