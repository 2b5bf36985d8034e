"""Gymnasium environments, seen through what they render."""

import math
from functools import partial
from typing import Any

import gymnasium
import numpy as np

from dreamer4.envs.host import AbstractSimulator, HostEnvironment, from_box
from dreamer4.errors import InputError
from dreamer4.types import ActionSpec


class GymnasiumSimulator(AbstractSimulator):
    """One environment of Gymnasium's, at `render_mode="rgb_array"`.

    Its classes are counted from 0, wherever its own begin, and its bounded vectors become vectors in [-1, 1].
    """

    def __init__(self, env_id: str, **kwargs: Any):
        """Makes the environment.

        Args:
            env_id: its id, `MODULE:ID` where importing a module registers it.
            **kwargs: arguments of `gymnasium.make`.

        Raises:
            InputError: if it cannot be made, renders no pictures or takes other actions than ours.
        """
        try:
            self._env = gymnasium.make(env_id, **{"disable_env_checker": True} | kwargs, render_mode="rgb_array")
        except (gymnasium.error.Error, ImportError, TypeError, AttributeError, ValueError) as error:
            raise InputError(f"env.id: Gymnasium does not make {env_id} with {kwargs}: {error}") from error
        self._space = self._env.action_space
        self.action = _action_spec(env_id, self._space)
        self.limit = self._env.spec.max_episode_steps if self._env.spec else None

        sees = self._env.observation_space
        numbers = isinstance(sees, gymnasium.spaces.Box) and sees.dtype.kind == "f"  # of pictures they are whole
        self._seen, self.senses = np.zeros(0), math.prod(sees.shape or ()) if numbers else 0

    def reset(self, seed: int) -> None:
        self._seen, _ = self._env.reset(seed=seed)

    def observation(self) -> np.ndarray:
        return np.ravel(self._seen).astype(np.float32) if self.senses else np.zeros(0, np.float32)

    def step(self, discrete: np.ndarray, continuous: np.ndarray) -> tuple[float, bool, bool]:
        space = self._space
        if isinstance(space, gymnasium.spaces.Box):
            action = from_box(continuous, space.low, space.high, space.dtype)
        elif isinstance(space, gymnasium.spaces.Discrete):
            action = space.start + discrete[0]
        else:
            action = discrete.astype(space.dtype).reshape(space.shape)
            action = action + getattr(space, "start", 0)
        self._seen, reward, terminated, truncated, _ = self._env.step(action)
        return float(reward), terminated, truncated

    def picture(self) -> Any:  # what it is, is not known before it was looked at
        return self._env.render()

    def close(self) -> None:
        self._env.close()


def gymnasium_environment(
    env_id: str,
    size: int | list[int] = 64,
    action_repeat: int = 1,
    max_steps: int | None = None,
    workers: int = 0,
    **kwargs: Any,
) -> HostEnvironment:
    """Returns an environment of Gymnasium's; arguments are those of `HostEnvironment` and of `gymnasium.make`."""
    build = partial(GymnasiumSimulator, env_id, **kwargs)
    return HostEnvironment(env_id, build, size=size, action_repeat=action_repeat, max_steps=max_steps, workers=workers)


def _action_spec(env_id: str, space: Any) -> ActionSpec:
    spaces = gymnasium.spaces
    if isinstance(space, spaces.Discrete):
        return ActionSpec((int(space.n),))
    if isinstance(space, spaces.MultiDiscrete):
        return ActionSpec(tuple(map(int, space.nvec.ravel())))
    if isinstance(space, spaces.MultiBinary):
        return ActionSpec((2,) * math.prod(space.shape))
    if isinstance(space, spaces.Box) and space.is_bounded():
        return ActionSpec((), math.prod(space.shape))
    raise InputError(
        f"env.id: {env_id} has the action space {space}, expected Discrete, MultiDiscrete, MultiBinary or a bounded "
        "Box. Wrap it with an action space of these, and register the wrapped one."
    )
