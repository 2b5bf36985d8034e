"""Environments by name: our own, and those of gymnax, Gymnasium and dm_control."""

import contextlib
import importlib.util
import inspect
import json
from collections.abc import Callable, Sequence
from functools import cache, partial, wraps
from pathlib import Path
from typing import Any

import numpy as np

from dreamer4.config import EnvConfig, TaskConfig
from dreamer4.envs import dm_control
from dreamer4.envs.base import AbstractEnvironment
from dreamer4.envs.cartpole import CartPolePixels
from dreamer4.envs.control import CartPoleSwingup, PendulumSwingup, PointGoal, Reacher
from dreamer4.envs.craftax import CraftaxPixels
from dreamer4.envs.fourrooms import FourRoomsPixels
from dreamer4.envs.gymnax import REFUSED, GymnaxEnvironment, usable_ids
from dreamer4.envs.sticky import StickyActions
from dreamer4.errors import InputError, nearest
from dreamer4.types import DataSpec, TaskSpec


ENVIRONMENTS: dict[str, Callable[..., AbstractEnvironment]] = {
    "CartPole-pixels": CartPolePixels,
    "CartPoleSwingup-pixels": CartPoleSwingup,
    "Craftax-Classic-pixels": CraftaxPixels,
    "FourRooms-pixels": FourRoomsPixels,
    "PendulumSwingup-pixels": PendulumSwingup,
    "PointGoal-pixels": PointGoal,
    "Reacher-pixels": Reacher,
}

# What to do where there is no environment of the data.
RECORDINGS = (
    "An agent of recordings has no game to play in here: dreamer4 evaluate RUN --world-model measures it, and in "
    "Python dreamer4.evaluation.evaluate plays any environment."
)
# What Python and `make` give to a class themselves, before any argument of a user.
_GIVEN = ("self", "cls", "env_id", "workers")


def make(config: EnvConfig) -> AbstractEnvironment:
    """Builds the environment that a configuration names.

    Args:
        config: an id, and arguments of its class or of the `make` of its library; an argument `params` holds changes
            to gymnax parameters. Its actions stick as often as it says. An id that gymnax and Gymnasium share is
            Gymnasium's, which draws what gymnax only counts.

    Raises:
        InputError: if the id or an argument is unknown, and as the environment does.
    """
    kwargs: dict[str, Any] = dict(config.kwargs)
    params = kwargs.pop("params", None)
    if not (params is None or isinstance(params, dict)):
        raise InputError(f"env.kwargs.params: got {params!r}, expected a mapping of parameter names to numbers.")
    build = ENVIRONMENTS.get(config.id) or _find(config.id)
    _check(build, config.id, kwargs, has_params=params is not None)
    if config.workers:
        if "workers" not in inspect.signature(build).parameters:
            raise InputError(
                f"env.workers: got {config.workers}, but {config.id} is played in the program itself, where workers "
                "have nothing to do. Leave it at 0."
            )
        kwargs["workers"] = config.workers
    env = build(**kwargs) if params is None else build(params=params, **kwargs)
    return StickyActions(env, config.sticky_actions) if config.sticky_actions else env


def blind(config: EnvConfig) -> AbstractEnvironment:
    """Returns an environment without its pictures where drawing them can be left out; raises as `make`."""
    build = ENVIRONMENTS.get(config.id) or _find(config.id)
    undrawn = {"quality": "none"} if "quality" in inspect.signature(build).parameters else {}
    return make(config.model_copy(update={"kwargs": config.kwargs | undrawn}))


def _find(env_id: str) -> Callable[..., AbstractEnvironment]:
    """Returns what builds an environment of a library.

    Raises:
        InputError: if no library that is installed knows it.
    """
    import gymnasium

    if env_id.startswith(dm_control.PREFIX):
        return _shared(dm_control.dm_control_environment, env_id)
    if ":" in env_id or env_id in gymnasium.registry:
        from dreamer4.envs.gymnasium import gymnasium_environment

        return _shared(gymnasium_environment, env_id)
    if env_id in {*usable_ids(), *REFUSED}:
        return partial(GymnaxEnvironment, env_id)
    tasks: tuple[str, ...] = ()
    if importlib.util.find_spec("dm_control") is not None:
        with contextlib.suppress(InputError):  # it cannot draw here, which only matters to who asks for it
            tasks = tuple(dm_control.task_names())
    if tasks and dm_control.find_task(env_id) is not None:
        return _shared(dm_control.dm_control_environment, env_id)
    known = {*ENVIRONMENTS, *usable_ids(), *gymnasium.registry, *tasks}
    raise InputError(
        f"env.id: got {env_id!r}, expected a known environment. {nearest(env_id, known, listed=False)}".rstrip()
        + " docs/environments.md lists them; your own is registered in a module, --import MODULE; what another package "
        f"registers with Gymnasium is named with its module, as ale_py:ALE/Pong-v5 is. {RECORDINGS}"
    )


def _shared(build: Callable[..., AbstractEnvironment], env_id: str) -> Callable[..., AbstractEnvironment]:
    """Returns the same with equal environments shared, as simulators cost time and memory, and programs a compiler."""

    @wraps(build)
    def make_once(env_id: str, **kwargs: Any) -> AbstractEnvironment:
        return _built(build, env_id, json.dumps(kwargs, sort_keys=True))

    return partial(make_once, env_id)


@cache
def _built(build: Callable[..., AbstractEnvironment], env_id: str, arguments: str) -> AbstractEnvironment:
    return build(env_id, **json.loads(arguments))


def spec_of(tasks: Sequence[TaskConfig]) -> DataSpec:
    """Returns what data of the environments of some tasks looks like; raises as `make` and `DataSpec.around`."""
    parts = []
    for task in tasks:
        env = make(task.env)
        told = TaskSpec(name=task.name, env=task.env.described, max_steps=env.max_steps, text=task.text)
        told = told.model_copy(update={"vector": task_vector(task)})
        parts.append(DataSpec(env.spec.frame_shape, env.spec.action, 1, (told,)))
    return DataSpec.around(parts)


def task_vector(task: TaskConfig) -> tuple[float, ...]:
    """Returns the numbers that tell a task, from the file that a configuration names or as it gives them."""
    if not isinstance(task.vector, str):
        return task.vector
    path = Path(task.vector).expanduser()
    try:
        numbers = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"tasks: vector of {task.name}: {path} is no .npy file of numbers: {error}") from None
    if numbers.ndim != 1 or numbers.dtype.kind not in "fiu" or not np.isfinite(numbers).all():
        raise InputError(
            f"tasks: vector of {task.name}: {path} holds {numbers.dtype} of shape {numbers.shape}, expected a row of "
            "finite numbers."
        )
    return tuple(map(float, numbers))


def prompted(config: EnvConfig) -> tuple[TaskSpec, ...]:
    """Returns the tasks that an environment asks for in turn, each with a world of its own.

    Raises:
        InputError: as `make`, or if it asks for none.
    """
    env, described = make(config), config.described
    if not env.prompts:
        raise InputError(
            f"data.prompts: {config.id} asks for no tasks in turn. Choose an environment that does, such as "
            "Craftax-Classic-pixels with env.kwargs.task=ladder."
        )
    return tuple(
        TaskSpec(name=name, env=described | {"kwargs": config.kwargs | {"task": name}}, max_steps=env.max_steps)
        for name in env.prompts
    )


def _check(build: Callable[..., AbstractEnvironment], env_id: str, kwargs: dict[str, Any], *, has_params: bool) -> None:
    arguments = {name: a for name, a in inspect.signature(build).parameters.items() if name not in _GIVEN}
    if has_params and "params" not in arguments:
        raise InputError(f"env.kwargs: {env_id} has no argument 'params'. {nearest('params', arguments)}")
    # What it hands on, it lets another judge.
    hands_on = any(argument.kind is argument.VAR_KEYWORD for argument in arguments.values())
    for name, value in kwargs.items():
        if name not in arguments and hands_on and name not in _GIVEN:
            continue
        if name not in arguments:
            raise InputError(f"env.kwargs: {env_id} has no argument {name!r}. {nearest(name, arguments)}")
        expected = arguments[name].annotation
        if not isinstance(expected, type) or expected is inspect.Parameter.empty:
            continue  # what one's own class says in other words, it judges itself
        if type(value) is not expected and not (expected is float and type(value) is int):
            raise InputError(f"env.kwargs.{name}: got {value!r}, expected one value of type {expected.__name__}.")
