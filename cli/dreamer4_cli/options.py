"""The options that the commands share, and how they become a configuration and a run folder."""

import functools
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from dreamer4 import hub
from dreamer4.errors import InputError
from dreamer4.run.settings import import_parts as import_parts
from dreamer4.run.settings import one_task as one_task
from dreamer4.run.settings import resolve as resolve


def existing(path: Any) -> Any:
    """Returns a path, or several, as a command line gave them: those that `hub.existing` finds.

    Raises:
        InputError: if nothing is there.
    """
    if isinstance(path, list | tuple):
        return [existing(one) for one in path]
    return path if path is None else hub.existing(path)


def opt(help: str, *names: str, **more: Any) -> Any:
    """Returns an option; its name is that of the parameter if none is given."""
    return typer.Option(*names, help=help, **more)


def there(help: str) -> Any:
    """Returns an argument that names what must be there."""
    return typer.Argument(help=help, callback=existing, show_default=False)


def calls(module: str, name: str = "") -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a command out of its options alone: it calls the function of its name in a module whose imports are heavy.

    Args:
        module: of this package; imported when the command runs.
        name: of the function, if it has another.
    """

    def command(declared: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(declared)
        def call(**given: Any) -> None:
            declared(**given)  # what can be refused at once
            getattr(importlib.import_module(f"dreamer4_cli.{module}"), name or declared.__name__)(**given)

        return call

    return command


Preset = Annotated[
    str | None,
    opt(
        "Named starting point: catch (default), tiny, cartpole, pendulum, point, reacher, swingup, toy3, dmc, "
        "control4, control10, control30, fourrooms, breakout, asterix, space_invaders, freeway, seaquest, craftax, "
        "own, small, base, paper.",
        "--preset",
    ),
]
File = Annotated[
    Path | None, opt("YAML file laid over the preset, such as a run's config.yaml.", "--config", metavar="FILE")
]
Overrides = Annotated[
    list[str] | None, opt("Set one key, after everything else; repeat for more.", "--set", metavar="A.B=C")
]
Env = Annotated[str | None, opt("Environment; short for --set env.id=ID.", "--env", metavar="ID")]
Seed = Annotated[int | None, opt("Seed of the run.", "--seed")]
Seeds = Annotated[int | None, opt("Train this many seeds side by side, from --seed on.", "--seeds")]
Run = Annotated[Path | None, opt("Run folder. Default: runs/<preset>-<env>-seed<seed>.", "--run", metavar="DIR")]
Task = Annotated[str | None, opt("One of the tasks, which dreamer4 info lists.", "--task", metavar="NAME|INDEX")]
DrawnFrom = Annotated[int, opt("Seed of what is drawn.", "--seed", min=0, max=2**31 - 1)]
Member = Annotated[int, opt("Which training seed, if the run has several.", "--member", min=0)]
Episodes = Annotated[
    Path | None,
    opt("Data set of recorded starts. Default: the agent's own.", "--data", metavar="DIR", callback=existing),
]
Starts = Annotated[int, opt("Held-out episodes to add, for dreamer4 play to start from.", "--starts", min=0)]
License = Annotated[str, opt("Of what is shared, as the Hub names it.", "--license", metavar="ID")]
Kept = Annotated[
    Literal["float32", "bfloat16", "float16"] | None,
    opt("How to keep an agent's weights: half precision halves the folder. Default: as they are.", "--dtype"),
]
Agent = Annotated[Path, there("Run folder or checkpoint.")]
Resume = Annotated[bool, opt("Go on from the newest checkpoints of the run folder.", "--resume")]
ChangedData = Annotated[
    bool, opt("With --resume: go on although the data set is not the one of the checkpoint.", "--changed-data")
]
NoFallback = Annotated[
    bool, opt("With --resume: stop if the newest checkpoint is damaged, take no older one.", "--no-fallback")
]
Coordinator = Annotated[
    str | None,
    opt(
        "One of several processes: where the first is. auto: as Slurm, Open MPI or Kubernetes says.",
        "--coordinator",
        metavar="HOST:PORT|auto",
        envvar="JAX_COORDINATOR_ADDRESS",
    ),
]
Processes = Annotated[
    int | None, opt("How many processes there are.", "--processes", min=1, envvar="JAX_NUM_PROCESSES")
]
Process = Annotated[int | None, opt("Which of them this is, from 0.", "--process", min=0, envvar="JAX_PROCESS_ID")]
Done = Annotated[
    str | None,
    opt(
        "Phase that counts as done. Default: the last one trained. What later phases trained is drawn "
        "anew, but the dynamics stay as the agent phase finetuned them.",
        "--phase",
    ),
]
DryRun = Annotated[
    bool, opt("Check the configuration, print parameters, FLOPs and memory, and train nothing.", "--dry-run")
]


def behaviour(policy: str | None) -> list[str]:
    """Returns the assignments that `--policy` stands for; `mixture:` is followed by `POLICY[~EPSILON][=SHARE],...`."""
    if policy is None:
        return []
    if not policy.startswith("mixture:"):
        return [f"data.policy={json.dumps(policy)}"]
    parts = []
    for text in policy.removeprefix("mixture:").split(","):
        rest, _, share = text.partition("=")
        name, _, epsilon = rest.partition("~")
        try:
            parts.append({"policy": name, "share": float(share or 1), "epsilon": float(epsilon or 0)})
        except ValueError:
            raise InputError(f"--policy: got {text!r} in the mixture, expected POLICY[~EPSILON][=SHARE].") from None
    return ["data.policy=mixture", f"data.mixture={json.dumps(parts)}"]
