"""What the keys do: from the factors of an action, and from what is known of an environment, to names and keys.

Keys are named by their place on the keyboard (`KeyW`, `ArrowLeft`, `Digit1`: the `code` of a browser's event), so that
WASD lies where fingers expect it on any layout.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dreamer4.config import EnvConfig
from dreamer4.envs import AbstractEnvironment
from dreamer4.envs.dm_control import PREFIX
from dreamer4.types import ActionSpec


_KEYS = {
    "left": ("ArrowLeft", "KeyA"),
    "right": ("ArrowRight", "KeyD"),
    "up": ("ArrowUp", "KeyW"),
    "down": ("ArrowDown", "KeyS"),
    "fire": ("KeyF", "Enter"),
    "do": ("KeyF", "Enter"),
    "sleep": ("KeyZ",),
    "place stone": ("KeyX",),
    "place table": ("KeyB",),
    "place furnace": ("KeyV",),
    "place plant": ("KeyY",),
    "make wood pickaxe": ("KeyU",),
    "make stone pickaxe": ("KeyI",),
    "make iron pickaxe": ("KeyO",),
    "make wood sword": ("KeyJ",),
    "make stone sword": ("KeyK",),
    "make iron sword": ("KeyL",),
}
# The names of the classes, in gymnax's order, and how many frames a second suit a person. Games know no clock.
_KNOWN: dict[str, tuple[tuple[str, ...], float]] = {
    "Catch-bsuite": (("left", "stay", "right"), 6.0),
    "CartPole-pixels": (("left", "right"), 50.0),
    "CartPoleSwingup-pixels": ((), 25.0),
    "PendulumSwingup-pixels": ((), 12.5),
    "PointGoal-pixels": ((), 10.0),
    "Reacher-pixels": ((), 12.5),
    "FourRooms-pixels": (("up", "right", "down", "left"), 8.0),
    "FourRooms-misc": (("up", "right", "down", "left"), 8.0),
    "MetaMaze-misc": (("up", "right", "down", "left"), 8.0),
    "Pong-misc": (("stay", "up", "down"), 20.0),
    "Breakout-MinAtar": (("stay", "left", "right"), 12.0),
    "Asterix-MinAtar": (("stay", "left", "up", "right", "down"), 12.0),
    "Freeway-MinAtar": (("stay", "up", "down"), 12.0),
    "SpaceInvaders-MinAtar": (("stay", "left", "right", "fire"), 12.0),
    "Craftax-Classic-pixels": (("stay", "left", "right", "up", "down", *list(_KEYS)[5:]), 8.0),
    "Seaquest-MinAtar": (("stay", "left", "up", "right", "down", "fire"), 12.0),
}
_DEFAULT_RATE, _SUITE_RATE = 10.0, 25.0
# For a second and later component, whose first class is what happens while no key is down. None of them is a command
# of the page.
_LETTERS = tuple(f"Key{letter}" for letter in "QZXVBYUIOJKL")
_LETTERS_OF_FIRST = ("ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown")


@dataclass(frozen=True)
class Choice:
    """One class of a discrete component.

    Attributes:
        name: what it does, as far as is known.
        keys: codes of the keys that choose it while they are down.
    """

    name: str
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Controls:
    """How a person acts in an environment.

    Attributes:
        components: the classes of each discrete component, in order; none of one that the task lacks.
        idle: the class of each component while no key is down.
        turns: whether there is no action that does nothing, so that the world had better wait for a key.
        continuous: of each dimension of the continuous vector, whether the task has it.
        rate: frames per second that suit the environment.
    """

    components: tuple[tuple[Choice, ...], ...]
    idle: tuple[int, ...]
    turns: bool
    continuous: tuple[bool, ...]
    rate: float


def find_controls(
    spec: ActionSpec, config: EnvConfig, env: AbstractEnvironment | None = None, *, task: int = 0
) -> Controls:
    """Returns the controls of an environment: known ones by name, any other by the numbers of its classes.

    Args:
        spec: the factors of an action.
        config: names the environment.
        env: the environment, if it can be built; one that simulates physics has a clock.
        task: whose components can be moved.
    """
    present = spec.present[task] if spec.present else (True,) * spec.size
    has, dims = present[: len(spec.num_classes)], present[len(spec.num_classes) :]
    names, rate = _KNOWN.get(config.id, ((), _SUITE_RATE if config.id.startswith(PREFIX) else _DEFAULT_RATE))
    own = [classes for classes, there in zip(spec.num_classes, has, strict=True) if there]
    single = len(own) == 1
    known = names if single and len(names) == own[0] else ()
    free = iter([_single(own[0], known)] if single else _several(own))
    components = tuple(next(free) if there else () for there in has)
    idle = tuple(known.index("stay") if there and "stay" in known else 0 for there in has)
    turns = bool(known) and "stay" not in known
    return Controls(components, idle, turns, dims, _clock(env) or rate)


def _single(classes: int, names: tuple[str, ...]) -> tuple[Choice, ...]:
    def keys(index: int) -> tuple[str, ...]:
        digit = (f"Digit{index}",) if index < 10 else ()
        if names:
            return (*_KEYS.get(names[index], ()), *digit)
        return ((*_LETTERS_OF_FIRST[index : index + 1], *digit)) if classes <= len(_LETTERS_OF_FIRST) else digit

    return tuple(Choice(names[i] if names else f"action {i}", keys(i)) for i in range(classes))


def _several(num_classes: Sequence[int]) -> list[tuple[Choice, ...]]:
    """Gives the classes behind the first of each component a key each, as long as there are keys."""
    free = [*_LETTERS_OF_FIRST, *(f"Digit{i}" for i in (*range(1, 10), 0)), *_LETTERS]
    components = []
    for classes in num_classes:
        keys = [()] + [(free.pop(0),) if free else () for _ in range(classes - 1)]
        components.append(tuple(Choice(str(i), key) for i, key in enumerate(keys)))
    return components


def _clock(env: AbstractEnvironment | None) -> float | None:
    """Returns the frames per second of an environment that knows the length of its time step."""
    params = getattr(getattr(env, "game", None), "params", None)
    step = getattr(params, "tau", None) or getattr(params, "dt", None)
    return None if not isinstance(step, float) or step <= 0 else 1.0 / step
