"""All of the library computes in 32 bits, whatever a program around it has set for its own numbers."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax


Given = ParamSpec("Given")
Result = TypeVar("Result")


def in_32_bits(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """Makes a function compute in 32 bits where `jax_enable_x64` is on; elsewhere it stays as it is.

    A tree of arrays that is built with 64 bits fits no checkpoint, and branches of which one holds a new zero differ.
    """

    @functools.wraps(function)
    def narrow(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        if not jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
            return function(*args, **kwargs)
        with jax.enable_x64(False):
            return function(*args, **kwargs)

    return narrow
