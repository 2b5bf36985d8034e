"""A dream behind the interface of Gymnasium.

    import gymnasium
    import dreamer4.serving  # registers the environment

    env = gymnasium.make("dreamer4/Dream-v0", path="runs/catch-Catch-bsuite-seed0", render_mode="rgb_array")

Gymnasium 1.0 gave up finding the environments of installed packages by itself; `gymnasium.make` can import on its own
what stands before a colon, "dreamer4.serving:dreamer4/Dream-v0".

Many dreams side by side are one program: `gymnasium.make_vec("dreamer4/Dream-v0", num_envs=64, path=...)` makes a
`DreamVectorEnv`. `AsyncVectorEnv` plays each dream in a process of its own, far slower, and needs `context="spawn"`:
neither JAX nor what reads checkpoints outlives a fork.
"""

import functools
import os
import warnings
from typing import Any

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, iterate

from dreamer4.envs.render import render
from dreamer4.errors import InputError, check_whole
from dreamer4.serving.dream import DreamWorld
from dreamer4.types import Action, ActionSpec


_SIDE = 256  # pixels of the longer side of a picture, about


class DreamEnv(gymnasium.Env[Any, Any]):
    """The learned world as a Gymnasium environment.

    Observations are frames `[H W C]` as uint8. The action is an index where there is one discrete component, a vector
    of indices where there are several, a vector in [-1, 1] where all is continuous, and a pair of both otherwise.
    Continuous entries beyond their bounds are held within them; any other action outside of the space is refused.
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
        _warn_of_forks()
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
        return self._frame.copy(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Dreams one frame. Behind the end of an episode the dream goes on, as Gymnasium leaves it undefined."""
        if self._state is None:
            raise InputError("Dream-v0: step before reset. Call reset first.")
        taken = _to_action(self._world.spec.action, action)
        self._state, frame, reward, terminal = _advance(self._world, self._state, taken, self._key())
        self._frame = np.asarray(frame)
        truncated = int(self._state.time) >= self._world.max_steps
        return self._frame.copy(), float(reward), bool(terminal), truncated, {}

    def render(self) -> np.ndarray | None:
        """Returns the newest frame as a picture, a pixel as a square."""
        if self.render_mode is None or self._frame is None:
            return None
        scale = max(1, round(_SIDE / max(self._frame.shape[:2])))
        return np.asarray(render(jnp.asarray(self._frame), scale))

    def _key(self):
        return jr.key(int(self.np_random.integers(2**31)))


class DreamVectorEnv(VectorEnv):
    """Many dreams of one world, side by side in one compiled program.

    Spaces are batches of those of `DreamEnv`. The step behind the end of an episode starts the next one, and ignores
    its action (`AutoresetMode.NEXT_STEP`).
    """

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(self, path: str, *, num_envs: int = 1, render_mode: str | None = None, **kwargs: Any):
        """Loads the world of a run.

        Args:
            path: run, checkpoint or exported folder.
            num_envs: how many dreams.
            render_mode: None; these are not drawn.
            **kwargs: arguments of `DreamWorld.load`.

        Raises:
            InputError: as `DreamWorld.load`, and if there is no dream or they are to be drawn.
        """
        if render_mode is not None:
            raise InputError(f"Dream-v0: got render_mode {render_mode!r}, but several dreams are not drawn. Leave it.")
        check_whole("Dream-v0", num_envs=num_envs)
        _warn_of_forks()
        self.num_envs, self.render_mode = num_envs, render_mode
        self._world = DreamWorld.load(path, **kwargs)
        spec = self._world.spec
        self.single_action_space = _action_space(spec.action)
        self.single_observation_space = spaces.Box(0, 255, spec.frame_shape, np.uint8)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self._state = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Starts an episode in each; `options` has no meaning here."""
        if seed is not None and not isinstance(seed, int | np.integer):
            raise InputError(f"Dream-v0: got seed {seed!r}, expected one number, of which each dream draws its own.")
        super().reset(seed=seed)
        self._state, first = _reset_all(self._world, self._keys())
        return np.array(first.frame), {}

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict]:
        """Dreams one frame in each."""
        if self._state is None:
            raise InputError("Dream-v0: step before reset. Call reset first.")
        spec = self._world.spec.action
        try:
            single = list(iterate(self.action_space, actions))
        except TypeError:
            single = []
        if len(single) != self.num_envs:
            raise InputError(f"Dream-v0: got actions {actions!r}, expected {self.num_envs}, one for each dream.")
        taken = [_to_action(spec, action) for action in single]
        batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *taken)
        self._state, step = _step_all(self._world, self._state, batch, self._keys())
        terminated = np.array(step.is_terminal)
        return np.array(step.frame), np.array(step.reward), terminated, np.array(step.is_last) & ~terminated, {}

    def _keys(self):
        return jr.split(jr.key(int(self.np_random.integers(2**31))), self.num_envs)


@eqx.filter_jit
def _reset_all(world, keys):
    return jax.vmap(lambda key: world.reset(key=key))(keys)


@eqx.filter_jit
def _step_all(world, state, action, keys):
    return jax.vmap(lambda state, action, key: world.step(state, action, key=key))(state, action, keys)


@functools.cache
def _warn_of_forks() -> None:
    """Tells, before this process forks, why the child will abort: by then it can tell nothing."""

    def warn():
        warnings.warn(
            "A process that plays dreams is forked, and its children cannot play any. Start them by spawn, as in "
            'gymnasium.vector.AsyncVectorEnv(..., context="spawn"), or play many dreams in one process with '
            'gymnasium.make_vec("dreamer4/Dream-v0", num_envs=N, path=...).',
            stacklevel=2,
        )

    if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
        os.register_at_fork(before=warn)


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
    """Returns an action of Gymnasium's as ours; raises an InputError for what is none."""

    def part(value: Any, size: int, kinds: str) -> np.ndarray:
        array = np.asarray(value)
        if array.dtype.kind not in kinds or array.size != size or array.ndim > 1:
            raise ValueError
        return array.reshape(size)

    count, dims = len(spec.num_classes), spec.continuous_dim
    try:
        discrete, continuous = native if count and dims else (native, ()) if count else ((), native)
        classes = part(discrete, count, "iu") if count else np.zeros(0, np.int32)
        vector = part(continuous, dims, "iuf") if dims else np.zeros(0, np.float32)
        if not np.all((classes >= 0) & (classes < np.asarray(spec.num_classes, int))) or not np.isfinite(vector).all():
            raise ValueError
    except (TypeError, ValueError):
        raise InputError(f"Dream-v0: got action {native!r}, expected one of {_action_space(spec)}.") from None
    return Action(jnp.asarray(classes, jnp.int32), jnp.clip(jnp.asarray(vector, jnp.float32), -1.0, 1.0))
