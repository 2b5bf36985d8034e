"""dreamer4: train agents inside a learned world model (Dreamer 4, arXiv 2509.24527) in JAX and Equinox.

    from dreamer4 import Dreamer
    dreamer = Dreamer.load("runs/catch")

The reading order is the order of the data: `envs` and `data`, then `tokenizer`, `dynamics`, `agent`, which meet in
`dreamer`; then `imagination` and `evaluation`, which use it; then `training`, which makes it good. `types` states the
clock they all share.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from dreamer4.dreamer import Dreamer as Dreamer
    from dreamer4.dreamer import Memory as Memory

try:
    __version__ = version("dreamer4-eqx")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"

_LAZY = {"Dreamer": "dreamer4.dreamer", "Memory": "dreamer4.dreamer"}


def __getattr__(name: str):
    # Importing the package must not import jax: the command line answers `--help` at once.
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
