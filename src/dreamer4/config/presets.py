"""The named starting points of a configuration: YAML files of the folder `presets`, one each.

A file says only what differs from the defaults of `dreamer4.config`, or from the file that it includes, and why; a
user's own file is written in the same keys. `dreamer4 config show --preset NAME` prints one with every key.
"""

import functools
from pathlib import Path
from typing import Any

from dreamer4.config.text import merge, parse, read


PRESETS = (
    "catch",
    "tiny",
    "cartpole",
    "pendulum",
    "point",
    "reacher",
    "swingup",
    "toy3",
    "dmc",
    "control4",
    "control10",
    "control30",
    "fourrooms",
    "breakout",
    "asterix",
    "space_invaders",
    "freeway",
    "seaquest",
    "craftax",
    "own",
    "small",
    "base",
    "paper",
)


def preset(name: str) -> dict[str, Any]:
    """Returns what a preset sets."""
    return {key: value for key, value in _read(name).items() if key != "description"}


def description(name: str) -> str:
    """Returns what a preset is for, and the reasons for its values."""
    return _read(name)["description"]


@functools.cache
def _read(name: str) -> dict[str, Any]:
    file = Path(__file__).with_name("presets") / f"{name}.yaml"
    tree = parse(read(file), str(file))
    return merge(_read(tree.pop("include")), tree) if "include" in tree else tree
