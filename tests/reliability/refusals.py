"""Configurations and command lines that must be refused, by what their one message has to say.

Run as a program it tries each of them, the first list in a process for which there is no device at all: who touches a
device before the line is refused ends in another way. What came of it is printed as JSON.
"""

import contextlib
import json
import os
import sys
import tempfile
from pathlib import Path


TRAIN, COLLECT = "train all --preset tiny --run new", "collect --preset tiny --out new"
LONG = 5000 * "["

# The command, what is added to it, and what the message names: the key or option, the value, the rule or the nearest.
REFUSED = [
    # Misspelt keys and names.
    (TRAIN, ["--set", "train.dynamics.step=3"], ["train.dynamics.step", "unknown key", "Did you mean steps?"]),
    (TRAIN, ["--set", "trian.agent.steps=3"], ["trian", "unknown key", "train"]),
    (TRAIN, ["--set", "agent.hiden=8"], ["agent.hiden", "unknown key", "hidden"]),
    (TRAIN, ["--set", "seeed=8"], ["seeed", "unknown key", "seed"]),
    ("train all --preset tniy", [], ["preset", "tniy", "Did you mean tiny?"]),
    (TRAIN, ["--set", "train.tracker=wndb"], ["train.tracker", "wndb", "wandb"]),
    (TRAIN, ["--env", "CartPole-pixels", "--set", "env.kwargs={heigth: 3}"], ["env.kwargs", "heigth", "height"]),
    # Types.
    (TRAIN, ["--set", "train.agent.steps=many"], ["train.agent.steps", "many", "number"]),
    (TRAIN, ["--set", "train.agent.steps=1.5"], ["train.agent.steps", "1.5", "whole number"]),
    (TRAIN, ["--set", "train.agent.steps=true"], ["train.agent.steps", "true", "number"]),
    (TRAIN, ["--set", "train.agent=fast"], ["train.agent", "fast", "mapping"]),
    (TRAIN, ["--set", "tokenizer.patch=5x5"], ["tokenizer.patch", "5x5", "list"]),
    (TRAIN, ["--set", "tokenizer.decoder=null"], ["tokenizer.decoder", "null", "mapping"]),
    (TRAIN, ["--set", "data.path=5"], ["data.path", "5", "text"]),
    (TRAIN, ["--set", "dynamics.transformer.remat=perhaps"], ["remat", "perhaps", "True", "products"]),
    (TRAIN, ["--set", "dynamics.transformer.dtype=float16"], ["dtype", "float16", "bfloat16"]),
    (TRAIN, ["--env", "CartPole-pixels", "--set", "env.kwargs={height: tall}"], ["env.kwargs.height", "tall", "int"]),
    # Ranges.
    (TRAIN, ["--seed", "-1"], ["seed", "-1", "greater than or equal to 0"]),
    (TRAIN, ["--seeds", "0"], ["seeds", "0", "greater than 0"]),
    (TRAIN, ["--set", "train.agent.steps=0"], ["train.agent.steps", "0", "greater than 0"]),
    (TRAIN, ["--set", "train.agent.batch_size=-8"], ["train.agent.batch_size", "-8", "greater than 0"]),
    (TRAIN, ["--set", "train.agent.ema=1"], ["train.agent.ema", "1", "less than 1"]),
    (TRAIN, ["--set", "train.agent.optimizer.learning_rate=.nan"], ["learning_rate", "NaN", "finite"]),
    (TRAIN, ["--set", "train.agent.optimizer.kind=adam"], ["train.agent.optimizer.kind", "adam", "adamw"]),
    (TRAIN, ["--set", "train.agent.guard.sigma=0"], ["train.agent.guard.sigma", "0", "greater than"]),
    (TRAIN, ["--set", "train.log_every=0"], ["train.log_every", "0", "greater than 0"]),
    (TRAIN, ["--set", "train.keep=0"], ["train.keep", "0", "greater than 0"]),
    (TRAIN, ["--set", "train.on_save_error=ignore"], ["train.on_save_error", "ignore", "stop"]),
    (TRAIN, ["--set", "tokenizer.mask_max=1"], ["tokenizer.mask_max", "1", "less than 1"]),
    (TRAIN, ["--set", "imagination.discount=1.01"], ["imagination.discount", "1.01", "less than or equal to 1"]),
    (TRAIN, ["--set", "imagination.horizon=0"], ["imagination.horizon", "0", "greater than 0"]),
    (COLLECT, ["--set", "data.held_out=0"], ["data.held_out", "0", "greater than 0"]),
    (COLLECT, ["--set", "data.episodes=0"], ["data.episodes", "0", "greater than 0"]),
    # Sizes and settings that do not go together.
    (TRAIN, ["--set", "tokenizer.encoder.width=33"], ["tokenizer.encoder", "width 33", "divisible by heads"]),
    (TRAIN, ["--set", "dynamics.transformer.width=34"], ["dynamics.transformer", "17", "even head size"]),
    (TRAIN, ["--set", "dynamics.transformer.depth=3"], ["dynamics.transformer", "depth 3", "divisible by time_every"]),
    (TRAIN, ["--set", "tokenizer.num_spatial=3"], ["tokenizer", "num_spatial 3", "divisible"]),
    (TRAIN, ["--set", "dynamics.shortcut.k_max=48"], ["dynamics.shortcut", "k_max 48", "power of two"]),
    (TRAIN, ["--set", "sampler.num_steps=3"], ["sampler.num_steps", "3", "power of two"]),
    (TRAIN, ["--set", "dynamics.shortcut.chunk_length=7"], ["chunk_length", "7", "divisible"]),
    (TRAIN, ["--set", "agent.num_bins=4"], ["agent", "num_bins 4", "odd"]),
    (TRAIN, ["--set", "agent.mtp_length=99"], ["agent.mtp_length", "99", "train.agent.length"]),
    (TRAIN, ["--set", "train.dynamics.warm_value=0.2"], ["dynamics.warm_value", "0.2", "imagination"]),
    (TRAIN, ["--set", "train.agent.optimizer={warmup: 0.6, decay: 0.6}"], ["optimizer", "0.6", "decay"]),
    (COLLECT, ["--set", "data.policy=mixture"], ["data", "mixture", "names no policies"]),
    (COLLECT, ["--set", "data.episodes=2"], ["data", "episodes 2", "held_out"]),
    (COLLECT, ["--policy", "mixture:random=many"], ["--policy", "random=many", "SHARE"]),
    # What is no assignment, and what is no YAML.
    (TRAIN, ["--set", "train.dynamics.steps"], ["train.dynamics.steps", "key=value"]),
    (TRAIN, ["--set", "=1"], ["=1", "key=value"]),
    (TRAIN, ["--set", "seed=[1"], ["seed=[1", "column 3", "YAML"]),
    (TRAIN, ["--set", f"seed={LONG}"], ["seed", "nested too deeply"]),
    (TRAIN, ["--set", "seed={a: 1, a: 2}"], ["a", "given twice"]),
    (TRAIN, ["--set", "seed=!!python/object/apply:os.system ['true']"], ["seed", "YAML"]),
    # Files and folders that are not there, or not what they are taken for.
    (TRAIN, ["--config", "missing.yaml"], ["missing.yaml", "cannot read"]),
    (TRAIN, ["--set", "data.path=nowhere"], ["nowhere", "data set"]),
    ("train imagination --from nowhere --run new", [], ["nowhere", "no such file or folder"]),
    ("evaluate nowhere", [], ["nowhere", "no such file or folder"]),
    ("evaluate . --episodes 0", [], ["--episodes", "greater than or equal to 1"]),
    ("evaluate .", [], [".", "checkpoint"]),
    ("evaluate . --horizon 3", [], ["--horizon", "--world-model"]),
    ("export . new", [], [".", "checkpoint"]),
    ("export nowhere new", [], ["nowhere", "no such file or folder"]),
    ("import nowhere --run new", [], ["nowhere", "no such file or folder"]),
    ("info .", [], [".", "no data set", "no run"]),
    ("data check .", [], [".", "data set"]),
    ("dream . --out x.txt", [], ["x.txt", ".gif or .mp4"]),
    ("data import . --out new --size 4by5", [], ["--size", "4by5", "HEIGHTxWIDTH"]),
    ("data import nowhere --out new", [], ["nowhere", "no such file or folder"]),
    # Options and commands that are not there.
    ("train everything", [], ["everything", "imagination"]),
    ("traim all", [], ["traim", "train"]),
    ("demo --sed 1", [], ["--sed", "--seed"]),
    ("play catch --port 70000", [], ["--port", "less than or equal to 65535"]),
    ("play catch --host 0.0.0.0", [], ["--host", "0.0.0.0", "--token"]),
]

# What can only be told by the environment, whose library makes arrays when it is imported.
REFUSED_WITH_ENVIRONMENT = [
    (TRAIN, ["--set", "env.id=Cach-bsuite"], ["env.id", "Cach-bsuite", "Did you mean Catch-bsuite"]),
    (COLLECT, ["--env", "Brakout-MinAtar"], ["env.id", "Brakout-MinAtar", "Breakout-MinAtar"]),
    (TRAIN, ["--set", "tokenizer.kind=casual"], ["tokenizer.kind", "casual", "causal"]),
    (TRAIN, ["--set", "dynamics.kind=transformr"], ["dynamics.kind", "transformr", "transformer"]),
    (TRAIN, ["--set", "sampler.kind=shortcutt"], ["sampler.kind", "shortcutt", "shortcut"]),
    (TRAIN, ["--set", "imagination.objective.kind=pmp"], ["imagination.objective.kind", "pmp", "pmpo"]),
    (TRAIN, ["--set", "dynamics.transformer.attention=groupd_query"], ["attention", "groupd_query", "grouped_query"]),
    (TRAIN, ["--set", "env.kwargs={rows: 3, colums: 2}"], ["env.kwargs", "colums"]),
    (TRAIN, ["--set", "tokenizer.patch=[4, 6]"], ["tokenizer.patch", "4 x 6", "10 x 5", "within the frame"]),
    (TRAIN, ["--set", "train.imagination.length=9"], ["train.imagination.length", "9", "context_length"]),
    (COLLECT, ["--policy", "nowhere.py:Agent"], ["nowhere.py"]),
    ("train agent --preset tiny --run new", [], ["new", "agent", "Train tokenizer first"]),
]


EVERY = [*REFUSED, *REFUSED_WITH_ENVIRONMENT]


def arguments(command, rest):
    """Returns a command line as a list."""
    return [*command.split(), *rest]


def refuse(line):
    """Tries a command line in an empty folder of its own; returns exit code, messages and what is left there."""
    from typer.testing import CliRunner

    from dreamer4_cli.app import app

    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        result = CliRunner().invoke(app, line, env={"NO_COLOR": "1", "COLUMNS": "200", "TERM": "dumb"})
        left = sorted(str(path) for path in Path().rglob("*"))
    odd = None if isinstance(result.exception, SystemExit | None) else repr(result.exception)
    return {"exit": result.exit_code, "out": result.stdout, "said": result.stderr, "left": left, "odd": odd}


def main():
    """Tries every line and prints what came of it."""
    os.environ["JAX_PLATFORMS"] = "none"
    told = [refuse(arguments(command, rest)) for command, rest, _ in REFUSED]

    import jax
    from jax._src import xla_bridge

    untouched = not xla_bridge.backends_are_initialized()
    jax.config.update("jax_platforms", "cpu")
    told += [refuse(arguments(command, rest)) for command, rest, _ in REFUSED_WITH_ENVIRONMENT]
    json.dump({"lines": told, "untouched": untouched}, sys.stdout)


if __name__ == "__main__":
    main()
