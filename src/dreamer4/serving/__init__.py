"""Trained agents and their worlds for others to use: a dream as an environment of our own, of gymnax, of Gymnasium.

Importing this package registers `dreamer4/Dream-v0` with Gymnasium and loads nothing else: the classes are imported on
first use, because gymnax takes seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING

import gymnasium


if TYPE_CHECKING:
    from dreamer4.serving.dream import DreamState as DreamState
    from dreamer4.serving.dream import DreamWorld as DreamWorld
    from dreamer4.serving.environment import DreamEnvironment as DreamEnvironment
    from dreamer4.serving.environment import DreamParams as DreamParams
    from dreamer4.serving.gym import DreamEnv as DreamEnv
    from dreamer4.serving.gym import DreamVectorEnv as DreamVectorEnv

GYMNASIUM_ID = "dreamer4/Dream-v0"

_LAZY = {
    "DreamState": "dreamer4.serving.dream",
    "DreamWorld": "dreamer4.serving.dream",
    "DreamEnvironment": "dreamer4.serving.environment",
    "DreamParams": "dreamer4.serving.environment",
    "DreamEnv": "dreamer4.serving.gym",
    "DreamVectorEnv": "dreamer4.serving.gym",
}

gymnasium.register(
    GYMNASIUM_ID,
    entry_point="dreamer4.serving.gym:DreamEnv",
    vector_entry_point="dreamer4.serving.gym:DreamVectorEnv",
)


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
