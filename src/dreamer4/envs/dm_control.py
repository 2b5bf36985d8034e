"""The DeepMind Control Suite (arXiv 1801.00690): continuous control on MuJoCo, behind dm_env."""

import os
import sys
from functools import cache, partial
from typing import Any, Literal

import numpy as np

from dreamer4.envs.host import AbstractSimulator, HostEnvironment, from_box
from dreamer4.errors import InputError, nearest
from dreamer4.types import ActionSpec


PREFIX = "dm_control/"

# What others call these domains.
_ALSO = {"cup": "ball-in-cup", "pointmass": "point-mass"}
# From where a domain is seen best; all others from camera 0.
_CAMERA = {"quadruped": 2}
# Without shadows, reflections and multisampling a frame costs a fifth; colours and shapes stay.
_FAST = {"shadow": False, "reflection": False}


class DMControlSimulator(AbstractSimulator):
    """One task of the suite. All its ends are limits, save those that dm_env tells by a discount of 0.

    Attributes:
        task: its name, as `task_names` has it.
        low, high: bounds of the controls that actions in [-1, 1] stand for.
    """

    def __init__(self, task: str, size: int | list[int], quality: Literal["fast", "suite", "none"], camera: int | None):
        """Loads the task.

        Args:
            task: its name, as `task_names` has it.
            size: of pictures, pixels: one number, or height and width.
            quality: `suite` draws as the suite does, `fast` without shadows, reflections and multisampling, `none`
                nothing: all is black.
            camera: number of the camera; None: the one that people use.
        """
        self.task, (domain, name) = task, task_names()[task]
        self._env = _suite().load(domain, name)
        self._size = (size, size) if isinstance(size, int) else size
        self._camera = _CAMERA.get(domain, 0) if camera is None else camera
        self._flags, self._draws = _FAST if quality == "fast" else {}, quality != "none"
        if quality == "fast":
            self._env.physics.model.vis.quality.offsamples = 0
        bounds = self._env.action_spec()
        self.low, self.high = (np.broadcast_to(x, bounds.shape) for x in (bounds.minimum, bounds.maximum))
        self.action = ActionSpec((), int(np.prod(bounds.shape)))
        limit = self._env._step_limit  # dm_env has no word for it
        self.limit = round(limit) if np.isfinite(limit) else None
        self._seen: dict[str, Any] = self._env.reset().observation
        self.senses = self.observation().size

    @property
    def physics(self) -> Any:
        """The physics as it stands, a `dm_control.mujoco.Physics`."""
        return self._env.physics

    @property
    def steps(self) -> int:
        """Steps of the physics in one of control."""
        return round(self._env.control_timestep() / self._env.physics.timestep())

    def reset(self, seed: int) -> None:
        self._env.task.random.seed(seed)
        self._seen = self._env.reset().observation

    def step(self, discrete: np.ndarray, continuous: np.ndarray) -> tuple[float, bool, bool]:
        moment = self._env.step(from_box(continuous, self.low, self.high, np.float64))
        self._seen = moment.observation
        terminated = moment.last() and moment.discount == 0
        return float(moment.reward or 0.0), terminated, moment.last() and not terminated

    def picture(self) -> np.ndarray:
        height, width = self._size
        if not self._draws:
            return np.zeros((height, width, 3), np.uint8)
        return self._env.physics.render(
            height, width, camera_id=self._camera, render_flag_overrides=self._flags or None
        )

    def observation(self) -> np.ndarray:
        return np.concatenate([np.ravel(part) for part in self._seen.values()]).astype(np.float32)

    def close(self) -> None:
        self._env.physics.free()  # its own `close` does nothing


def dm_control_environment(
    env_id: str,
    size: int | list[int] = 64,
    action_repeat: int = 2,
    max_steps: int | None = None,
    quality: str = "fast",
    camera: int | None = None,
    workers: int = 0,
) -> HostEnvironment:
    """Returns a task of the suite; arguments are those of `HostEnvironment` and `DMControlSimulator`.

    Args:
        env_id: `dm_control/DOMAIN-TASK`, or DOMAIN-TASK alone.
        size: of frames, pixels.
        action_repeat: control steps that carry out one action.
        max_steps: most actions in an episode.
        quality: `fast`, `suite` or `none`.
        camera: number of the camera.
        workers: processes that it is played in.

    Raises:
        InputError: if there is no such task, an argument is out of range, or dm_control is not installed.
    """
    task = find_task(env_id.removeprefix(PREFIX))
    if task is None:
        raise InputError(f"env.id: got {env_id!r}, expected a task of the suite. {nearest(env_id, task_names())}")
    if quality not in ("fast", "suite", "none"):
        raise InputError(f"env.kwargs.quality: got {quality!r}, expected fast, suite or none.")
    build = partial(DMControlSimulator, task, size, quality, camera)
    name = PREFIX + task
    return HostEnvironment(name, build, size=size, action_repeat=action_repeat, max_steps=max_steps, workers=workers)


@cache
def task_names() -> dict[str, tuple[str, str]]:
    """Returns domain and task by name, `ball-in-cup-catch` for example."""
    return {f"{domain}-{task}".replace("_", "-"): (domain, task) for domain, task in _suite().ALL_TASKS}


def find_task(name: str) -> str | None:
    """Returns the name of a task, however its words are joined; None if there is none."""
    domain, _, task = name.replace("_", "-").partition("-")
    name = f"{_ALSO.get(domain, domain)}-{task}"
    return name if name in task_names() else None


@cache
def _suite() -> Any:
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")  # read when it is imported
    try:
        from dm_control import suite  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(
            f"env.id: the tasks of dm_control need packages that are missing ({error}). Install them with "
            "pip install 'dreamer4-eqx[control]'."
        ) from error
    except (AttributeError, RuntimeError) as error:
        raise InputError(
            f"env.id: dm_control cannot draw: {' '.join(str(error).split())} Install the libraries of EGL (libegl1 and "
            "libegl-mesa0), or of OSMesa and set MUJOCO_GL=osmesa."
        ) from error
    return suite
