"""What all sessions share: an agent, the real environment, recorded starts, and how a person acts in them."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from dreamer4 import checkpoint, data
from dreamer4.config import Config
from dreamer4.data import Episode
from dreamer4.dreamer import Dreamer, find_checkpoint, read_description
from dreamer4.envs import AbstractEnvironment
from dreamer4.errors import InputError
from dreamer4.nn import cast_weights
from dreamer4.run import sizes
from dreamer4.run.folder import cloned_head
from dreamer4.serving.dream import own_dataset
from dreamer4.serving.play import worlds
from dreamer4.serving.play.controls import Controls, find_controls
from dreamer4.training.phases import freeze_prior
from dreamer4.types import Action, DataSpec


_MOST_STARTS = 64
_TRIES = 256
_LONGEST_REPLAY = 512  # frames


@dataclass(frozen=True, eq=False)
class Stage:
    """An agent and its worlds, ready to be played; nothing of it ever changes.

    Attributes:
        name: what is played, for people.
        dreamer: the agent.
        spec: what its frames and actions look like.
        phase: the newest phase it was trained in.
        controls: how a person acts.
        env: the real environment, or None.
        absent: why there is no real environment.
        episodes: recorded episodes of the task to start from, each of at least two frames.
        env_config: the environment's id and arguments.
        task: id of the task that is played.
        tasks: name of each task that can be chosen instead.
    """

    name: str
    dreamer: Dreamer
    spec: DataSpec
    phase: str
    controls: Controls
    env: AbstractEnvironment | None
    absent: str
    episodes: tuple[Episode, ...]
    env_config: dict[str, Any]
    task: int = 0
    tasks: tuple[str, ...] = ("",)

    @property
    def policies(self) -> tuple[Literal["policy", "prior"], ...]:
        """The policies that can be watched: the trained one, and the cloned prior."""
        if self.phase == "imagination":
            return ("policy", "prior")
        return ("prior",) if self.phase == "agent" else ()

    @property
    def heads(self) -> tuple[str, ...]:
        """The heads that are trained."""
        cloned = ("reward", "continuation", "policy")
        return {"agent": cloned, "imagination": (*cloned, "value")}.get(self.phase, ())

    @property
    def passes(self) -> tuple[int, ...]:
        """The numbers K of denoise passes that can be chosen."""
        return self.dreamer.dynamics.passes

    @property
    def own_passes(self) -> int:
        """The number of denoise passes that the agent's own dreams take."""
        return self.dreamer.dynamics.own_passes

    def find_game(self, episode: Episode, passed: int) -> PyTree | None:
        """Returns a state of the real environment in which it shows what was recorded, or None if none was found.

        Args:
            episode: a recorded episode.
            passed: how many of its frames have passed.
        """
        longest = min(max(e.length for e in self.episodes), _LONGEST_REPLAY)
        if self.env is None or passed > longest or not self.env.pace.revisits:
            return None
        known = episode.action_mask[:passed]
        if not known[1:].all():
            return None
        # One shape for all starts, so that one program serves them.
        frame, discrete, continuous = (
            _padded(x[:passed], longest) for x in (episode.frame, episode.discrete, episode.continuous)
        )
        action = Action(jnp.asarray(discrete), jnp.asarray(continuous))
        found, state = worlds.replay_game(self.env, frame, action, np.asarray(passed, np.int32), _TRIES)
        return state if bool(jax.device_get(found)) else None


class Stages:
    """The stages of an agent, one for each of its tasks, each made when it is first asked for."""

    def __init__(self, open: Callable[[int], Stage], first: int = 0):
        """Args: open: makes the stage of a task. first: task that play begins with."""
        self._open, self._first = functools.cache(open), first

    @property
    def first(self) -> Stage:
        """The stage that play begins with."""
        return self._open(self._first)

    def find(self, task: int) -> Stage:
        """Returns the stage of a task.

        Raises:
            InputError: if there is no such task, or nothing of it to start from.
        """
        if not 0 <= task < len(self.first.tasks):
            raise InputError(f"task: got {task}, expected 0 to {len(self.first.tasks) - 1}.")
        return self._open(task)


def load_stages(path: Path, *, dataset: Path | None = None, member: int = 0, task: str | int | None = None) -> Stages:
    """Loads what is played.

    Args:
        path: a run, a checkpoint, or an exported folder.
        dataset: where recorded starts come from; None: the agent's own data set, if it is there.
        member: which of several training seeds.
        task: name or number of the task to begin with; None: the first.

    Raises:
        InputError: if the agent cannot dream yet or never learned the task, if the data set is not of its kind, or if
            there is neither a real environment nor a recorded episode to start from.
    """
    step = find_checkpoint(path)
    (config, spec), meta = read_description(step), checkpoint.read_meta(step)
    phase = str(meta.get("phase"))
    if phase == "tokenizer":
        raise InputError(f"play: {step} is of the tokenizer phase, which cannot dream yet. Train the dynamics first.")
    first = 0 if task is None else spec.find_task(task)
    dreamer = cast_weights(Dreamer.load(step, member=member))
    if phase == "agent" and cloned_head(step) == "policy":  # a page that watches the clone asks for the prior
        dreamer = freeze_prior(dreamer)
    found = dataset or own_dataset(step, config)

    def open_stage(task: int) -> Stage:
        env, absent = _environment(config, spec, task)
        episodes = () if found is None else _episodes(found, spec, str(meta.get("data")), task)
        if env is None and not episodes:
            raise InputError(
                f"play: there is nothing to start from. {absent} And there are no recorded episodes"
                f"{'' if found is None else f' of two frames in {found}'}. Name a data set with --data."
            )
        given = sizes.environment_config(config, spec, task)
        controls = find_controls(spec.action, given, env, task=task)
        about = {"id": given.id, "kwargs": dict(given.kwargs)}
        name = given.id if spec.num_tasks == 1 else spec.names[task]
        if spec.num_tasks > 1 and not config.tasks:  # one world that asks for them
            name = f"{given.id}: {name}"
        return Stage(name, dreamer, spec, phase, controls, env, absent, episodes, about, task, spec.names)

    stages = Stages(open_stage, first)
    stages.first  # noqa: B018  (what is wrong with it is told now)
    return stages


def _environment(config: Config, spec: DataSpec, task: int) -> tuple[AbstractEnvironment | None, str]:
    try:
        return sizes.environment(config, spec, task), ""
    except InputError as error:
        return None, f"The real game cannot be played: {error}"


def _episodes(path: Path, spec: DataSpec, trained_on: str, task: int) -> tuple[Episode, ...]:
    info = data.read_info(path)
    if info.spec.looks != spec.looks:
        raise InputError(f"play: {path} holds {info.spec}, but the agent was trained on {spec}. Choose its own data.")
    split = "held_out" if info.fingerprint == trained_on and info.held_out else "all"
    long_enough = (e for e in data.read_episodes(path, split) if e.length > 1 and e.task == task)
    return tuple(episode for episode, _ in zip(long_enough, range(_MOST_STARTS), strict=False))


def _padded(rows: np.ndarray, length: int) -> np.ndarray:
    """Repeats the last row until there are `length`."""
    return rows[np.minimum(np.arange(length), len(rows) - 1)]
