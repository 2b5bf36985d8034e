"""What the data of a run looks like, and whether everything fits it; nothing is computed and nothing is written."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict

import equinox as eqx
import jax.random as jr
import numpy as np

from dreamer4 import data, envs
from dreamer4.config import Config, EnvConfig, load
from dreamer4.dreamer import PHASES, Dreamer
from dreamer4.envs import AbstractEnvironment, Symbols
from dreamer4.envs.registry import RECORDINGS
from dreamer4.errors import InputError
from dreamer4.run import behaviour, memory, trackers
from dreamer4.run.latents import told_info
from dreamer4.training import AbstractPhase, build_phase
from dreamer4.training.placement import build_mesh
from dreamer4.types import ActionSpec, DataSpec


def data_spec(config: Config) -> DataSpec:
    """Returns what the data of a run looks like: as its data set says, as declared, or as its environment says.

    Declarations are of presets for data to come, whose place in `data.path` is still empty.
    """
    if config.data.path is not None and not is_to_come(config):
        return told_info(config, Path(config.data.path)).spec
    if config.data.spec is not None:
        declared = config.data.spec
        action = ActionSpec(declared.num_classes, declared.continuous_dim)
        return DataSpec(declared.frame_shape, action, declared.num_tasks)
    return behaviour.check(config)


def is_to_come(config: Config) -> bool:
    """Tells whether the data set is one that a preset names and declares, and is not there yet."""
    path = config.data.path
    if path is None or config.data.spec is None or path != load(config.preset).data.path:
        return False
    return not Path(path).exists()


def check_sizes(config: Config, spec: DataSpec) -> tuple[Dreamer, list[AbstractPhase]]:
    """Refuses sizes that do not fit each other or the data; returns the agent, in shapes, and its phases."""
    phases = [build_phase(name, config, spec) for name in PHASES]
    longest = config.dynamics.context_length
    if longest is not None and config.train.imagination.length > longest:
        raise InputError(
            f"train.imagination.length: got {config.train.imagination.length}, more than the {longest} frames of "
            "dynamics.transformer.context_length. A dream starts from a context that the dynamics can hold."
        )
    return eqx.filter_eval_shape(Dreamer.build, config, spec, key=jr.key(0)), phases


def check_paths(config: Config, wanted: Sequence[str] = PHASES) -> DataSpec:
    """Refuses what can be refused before anything is written: the environment, the data set, sizes, memory, tracker.

    Args:
        config: the configuration.
        wanted: the phases that are to be trained.

    Returns:
        What the data is, or will be.
    """
    trackers.check(config.train.tracker)
    build_mesh(config.train.mesh)
    info = None if config.data.path is None else data.read_info(Path(config.data.path))
    spec = behaviour.check(config) if info is None else info.spec
    dreamer, phases = check_sizes(config, spec)
    memory.check(config, spec, dreamer, [phase for phase in phases if phase.name in wanted], info)
    return spec


def environment_config(config: Config, spec: DataSpec, task: int = 0) -> EnvConfig:
    """Returns what names the real environment of a task.

    It is what the configuration gives to the name of the task, or to a single task at all; else what the data tells of.
    """
    told = spec.tasks[task].env if spec.num_tasks > 1 and spec.tasks else {}
    given = {one.name: one.env for one in config.tasks}.get(spec.names[task])
    if given is not None:
        return given
    known = {key: told[key] for key in EnvConfig.model_fields if key in told}
    return config.env.model_copy(update=known) if known else config.env


def environment(config: Config, spec: DataSpec, task: int = 0) -> AbstractEnvironment:
    """Returns the real environment of a task, in which an agent of such data can play."""
    given = environment_config(config, spec, task)
    env = envs.make(given)
    played = envs.fitted(env, spec, task)
    if played is None:
        raise InputError(
            f"env.id: {given.id} looks like {env.spec}, but the data like {spec}, so what learns from it cannot "
            f"play there. Train with the environment of the data, --env ID and env.kwargs. {RECORDINGS}"
        )
    return played


class World(NamedTuple):
    """Where an agent is judged.

    Attributes:
        name: of the task, or of the environment that asks for all of them in turn.
        task: its id; None where the environment tells it.
        env: the environment.
    """

    name: str
    task: int | None
    env: AbstractEnvironment


def worlds(config: Config, spec: DataSpec) -> list[World]:
    """Returns the environment of each task; or the one of the run, where it asks for all of them in turn."""
    elsewhere = {task.env.get("id") for task in spec.tasks} - {config.env.id, None}  # the id may be a mere name
    several = spec.num_tasks > 1 and not config.tasks and not elsewhere
    if several and (env := envs.make(config.env)).prompts == spec.names:
        return [World(config.env.id, None, env)]
    return [World(name, task, environment(config, spec, task)) for task, name in enumerate(spec.names)]


class Reading(TypedDict):
    """How symbols are read off frames, and what their places are called, as `AbstractEnvironment` tells both."""

    read: Callable[[np.ndarray], Symbols]
    places: Mapping[str, tuple[str, ...]]


def reading(config: Config, spec: DataSpec) -> Reading:
    """Returns how symbols are read off frames of data; nothing is read of several or unknown environments."""
    env = only_environment(config, spec)
    if env is None:
        return {"read": lambda frames: {}, "places": {}}
    return {"read": env.symbols, "places": env.places}


def only_environment(config: Config, spec: DataSpec) -> AbstractEnvironment | None:
    """Returns the environment of all tasks; None where there are several, or it is not known."""
    try:
        known = worlds(config, spec)
    except InputError:
        return None
    return known[0].env if len(known) == 1 else None
