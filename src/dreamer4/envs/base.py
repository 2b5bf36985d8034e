"""The contract of an environment."""

from abc import abstractmethod
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, UInt8

from dreamer4.errors import InputError
from dreamer4.types import Action, DataSpec, TimeStep


Symbols = dict[str, Int[np.ndarray, "*batch places"]]


class Pace(NamedTuple):
    """How an environment is best played; by custom one that is compiled with its player.

    Attributes:
        streams: most episodes played side by side.
        steps: steps between two looks at how far it is.
        revisits: whether a state may be stepped from again when others have followed it.
    """

    streams: int = 1_000_000
    steps: int = 1_000_000
    revisits: bool = True


class AbstractEnvironment(eqx.Module):
    """A real environment: pure, jittable functions of a state and a key, for one episode stream (no batch axis).

    The timing is dm_env's. `reset` returns the first frame of an episode. `step` returns the frame the action led to,
    with the reward that arrived with it. The last frame of an episode is returned like any other; only the step after
    it ignores its action and returns the first frame of the next episode, with reward 0. So a `lax.scan` over `step`
    is an endless stream of whole episodes, and no frame is ever lost.

    `spec` and `max_steps` may be fields or properties. An environment with `events` overrides these and `happened`, one
    with `prompts` these and `prompt`; one whose pictures can be read off exactly overrides `symbols`, and `effects`
    where they show what actions do.

    Attributes:
        spec: frame shape, action factors and number of tasks.
        max_steps: upper bound of the number of actions in an episode, which so has at most `max_steps + 1` frames. It
            is a bound for scans, not a promise that an episode lasts that long.
    """

    spec: eqx.AbstractVar[DataSpec]
    max_steps: eqx.AbstractVar[int]

    @property
    def pace(self) -> Pace:
        """How it is best played."""
        return Pace()

    def fault(self) -> str | None:
        """Returns what went wrong behind a time step that is not sound, if the environment knows."""
        return None

    @property
    def events(self) -> tuple[str, ...]:
        """Names of what can happen in an episode and is counted beside its return, such as achievements."""
        return ()

    def happened(self, state: PyTree) -> Bool[Array, " E"]:
        """Tells which of the `events` have happened in the episode so far, the newest frame included."""
        del state
        return jnp.zeros(len(self.events), bool)

    @property
    def prompts(self) -> tuple[str, ...]:
        """Names of the tasks that it asks for in turn, each paying 1 when it is done.

        Its argument `task` makes each of them the only one.
        """
        return ()

    def prompt(self, state: PyTree) -> Int[Array, ""]:
        """Tells which of the `prompts` it asks for from the newest frame on."""
        del state
        return jnp.zeros((), jnp.int32)

    def symbols(self, frames: UInt8[np.ndarray, "*batch H W C"] | Float[np.ndarray, "*batch H W C"]) -> Symbols:
        """Reads off what frames show, dreamt ones too, where pictures are made of known parts; else nothing.

        Args:
            frames: 0 to 255, or 0 to 1 as floats.

        Returns:
            By the kind of part, which one is in each place.
        """
        del frames
        return {}

    def effects(
        self, before: Symbols, after: Symbols, action: Int[np.ndarray, "*batch components"]
    ) -> dict[str, Bool[np.ndarray, " *batch"]]:
        """Tells which effects of its action a step shows.

        Args:
            before: what `symbols` read off a frame.
            after: the same of the frame that the action led to, or of a dream of it.
            action: classes of the action.

        Returns:
            By the name of the effect, where it is shown.
        """
        del before, after, action
        return {}

    @property
    def places(self) -> dict[str, tuple[str, ...]]:
        """Names of the places of those kinds of symbols that are numbers."""
        return {}

    def observe(self, state: PyTree) -> Float[Array, " S"]:
        """Returns what tells the state in numbers, for scripts and agents that need no frames; of none it is empty."""
        del state
        return jnp.zeros(0)

    @abstractmethod
    def reset(self, *, key: PRNGKeyArray) -> tuple[PyTree, TimeStep]:
        """Starts an episode.

        Args:
            key: draws whatever is random about the start.

        Returns:
            The state to hand to `step`, and the first time step: `is_first` True, reward 0.
        """

    @abstractmethod
    def step(self, state: PyTree, action: Action, *, key: PRNGKeyArray) -> tuple[PyTree, TimeStep]:
        """Advances by one frame.

        Args:
            state: what `reset` or `step` returned, same structure and dtypes.
            action: one action of `spec.action`; ignored when `state` stands at a last frame.
            key: draws whatever is random about the transition; behind a last frame it draws the next episode's start,
                the one that `reset` draws by it, so that an episode can be played again from its keys.

        Returns:
            The next state, and the time step the action led to. `is_last` marks the end of an episode for whatever
            reason, `is_terminal` only an end that cuts the return (a goal, a death), never a time limit.
        """


def check_environment(env: AbstractEnvironment) -> None:
    """Refuses an environment whose time steps or states are not of the kinds that the contract tells; plays nothing.

    Raises:
        InputError: the message names what differs. What an environment raises itself is passed on.
    """
    key, action = jr.key(0), Action.null(env.spec.action)
    state, first = eqx.filter_eval_shape(lambda: env.reset(key=key))
    after, later = eqx.filter_eval_shape(lambda state: env.step(state, action, key=key), _arrays(state))
    wanted = {"frame": (jnp.uint8, env.spec.frame_shape), "reward": (None, ())}
    wanted |= dict.fromkeys(("is_first", "is_last", "is_terminal"), (jnp.bool_, ()))
    for place, step in (("reset", first), ("step", later)):
        for name, (dtype, shape) in wanted.items():
            found = _arrays(getattr(step, name))
            if found.shape != shape or (found.dtype != dtype if dtype else jnp.issubdtype(found.dtype, jnp.bool_)):
                kind = "a number" if dtype is None else jnp.dtype(dtype).name
                raise InputError(
                    f"{type(env).__name__}.{place}: {name} is {found.dtype} of shape {found.shape}, expected {kind} of "
                    f"shape {shape}, as its spec and the contract of AbstractEnvironment say."
                )
    before, behind = (jax.tree.map(_kind, tree) for tree in (state, after))
    if jax.tree.flatten(before) != jax.tree.flatten(behind):
        raise InputError(
            f"{type(env).__name__}: the state of reset is {before}, but that of step {behind}. Both must have one "
            "structure, with the same shapes and dtypes."
        )


def is_sound(step: TimeStep, *, follows_last: Bool[Array, "*batch"] | bool) -> Bool[Array, "*batch"]:
    """Tells whether a time step keeps the order of an episode.

    Args:
        step: a time step, or a batch of them.
        follows_last: whether the one before it was the last of its episode, or there was none.
    """
    earned = jnp.isfinite(step.reward) | step.is_first
    return (step.is_first == follows_last) & (step.is_last | ~step.is_terminal) & earned


def broken(env: AbstractEnvironment) -> InputError:
    """Returns the error to raise where a time step is not sound."""
    return InputError(
        env.fault()
        or f"{type(env).__name__} does not keep the order of an episode: is_first must be True at the first time "
        "step and at the one behind a last one, nowhere else; is_last wherever is_terminal; and rewards finite. The "
        "frame that ends an episode comes before the next one's first: leave auto-reset to the step behind it."
    )


def _arrays(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x if hasattr(x, "dtype") else jax.eval_shape(lambda: jnp.asarray(x)), tree)


def _kind(leaf: object) -> str:
    kind = _arrays(leaf)
    return f"{kind.dtype}{list(kind.shape)}"
