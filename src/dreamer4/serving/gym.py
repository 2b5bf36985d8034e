"""A dream behind the interface of Gymnasium.

    import gymnasium
    import dreamer4.serving  # registers the environment

    env = gymnasium.make("dreamer4/Dream-v0", path="runs/catch-Catch-bsuite-seed0", render_mode="rgb_array")

Gymnasium 1.0 gave up finding the environments of installed packages by itself; `gymnasium.make` can import on its own
what stands before a colon, "dreamer4.serving:dreamer4/Dream-v0".
"""

from typing import Any

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from gymnasium import spaces

from dreamer4.envs.render import render
from dreamer4.errors import InputError
from dreamer4.serving.dream import DreamWorld
from dreamer4.types import Action, ActionSpec


_SIDE = 256  # pixels of the longer side of a picture, about


class DreamEnv(gymnasium.Env[Any, Any]):
    """The learned world as a Gymnasium environment.

    Observations are frames `[H W C]` as uint8. The action is an index where there is one discrete component, a vector
    of indices where there are several, a vector in [-1, 1] where all is continuous, and a pair of both otherwise.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 8}  # noqa: RUF012

    def __init__(self, path: str, *, render_mode: str | None = None, **kwargs: Any):
        """Loads the world of a run.

        Args:
            path: run, checkpoint or exported folder.
            render_mode: `rgb_array`, or None to draw nothing.
            **kwargs: arguments of `DreamWorld.load`.

        Raises:
            InputError: as `DreamWorld.load`, and if the render mode is unknown.
        """
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise InputError(f"Dream-v0: got render_mode {render_mode!r}, expected rgb_array or None.")
        self.render_mode = render_mode
        self._world = DreamWorld.load(path, **kwargs)
        spec = self._world.spec
        self.action_space = _action_space(spec.action)
        self.observation_space = spaces.Box(0, 255, spec.frame_shape, np.uint8)
        self._state = self._frame = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Starts an episode; `options` has no meaning here."""
        super().reset(seed=seed)
        self._state, first = _reset(self._world, self._key())
        self._frame = np.asarray(first.frame)
        return self._frame, {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Dreams one frame. Behind the end of an episode the dream goes on, as Gymnasium leaves it undefined."""
        if self._state is None:
            raise InputError("Dream-v0: step before reset. Call reset first.")
        taken = _to_action(self._world.spec.action, action)
        self._state, frame, reward, terminal = _advance(self._world, self._state, taken, self._key())
        self._frame = np.asarray(frame)
        truncated = int(self._state.time) >= self._world.max_steps
        return self._frame, float(reward), bool(terminal), truncated, {}

    def render(self) -> np.ndarray | None:
        """Returns the newest frame as a picture, a pixel as a square."""
        if self.render_mode is None or self._frame is None:
            return None
        scale = max(1, round(_SIDE / max(self._frame.shape[:2])))
        return np.asarray(render(jnp.asarray(self._frame), scale))

    def _key(self):
        return jr.key(int(self.np_random.integers(2**31)))


@eqx.filter_jit
def _reset(world, key):
    return world.reset(key=key)


@eqx.filter_jit
def _advance(world, state, action, key):
    return world.advance(state, action, key=key)


def _action_space(spec: ActionSpec) -> spaces.Space:
    parts: list[spaces.Space] = []
    if len(spec.num_classes) == 1:
        parts.append(spaces.Discrete(spec.num_classes[0]))
    elif spec.num_classes:
        parts.append(spaces.MultiDiscrete(np.asarray(spec.num_classes)))
    if spec.continuous_dim:
        parts.append(spaces.Box(-1.0, 1.0, (spec.continuous_dim,), np.float32))
    return parts[0] if len(parts) == 1 else spaces.Tuple(parts)


def _to_action(spec: ActionSpec, native: Any) -> Action:
    both = spec.num_classes and spec.continuous_dim
    discrete, continuous = native if both else (native, None) if spec.num_classes else ((), native)
    classes = np.atleast_1d(np.asarray(discrete, np.int32))
    dims = np.zeros(0, np.float32) if continuous is None else np.clip(np.asarray(continuous, np.float32), -1.0, 1.0)
    return Action(jax.numpy.asarray(classes), jax.numpy.asarray(dims))
