"""A policy of the user's own: `FILE.py:NAME`."""

import importlib.util
import os
import sys
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import PRNGKeyArray

from dreamer4.data import AbstractPolicy
from dreamer4.envs import AbstractEnvironment
from dreamer4.errors import InputError, nearest, told
from dreamer4.types import Action, DataSpec, TimeStep


def policy_from_file(name: str, env: AbstractEnvironment) -> AbstractPolicy:
    """Imports the user's own file, as named on the command line, and asks its function for a policy.

    Raises:
        InputError: if there is no such file or function, or what it returns is no policy of the environment.
    """
    file, _, function = name.rpartition(":")
    if not os.path.isfile(file):
        raise InputError(f"data.policy: got {name!r}, but there is no file {file}.")
    name_of_module = f"behaviour_policy:{os.path.abspath(file)}".replace(".", "_")  # of no package
    described = importlib.util.spec_from_file_location(name_of_module, file)
    if described is None or described.loader is None:
        raise InputError(f"data.policy: {file} cannot be imported. Give a Python file.")
    module = importlib.util.module_from_spec(described)
    # As import does: a dataclass whose annotations are text looks its module up there.
    sys.modules[described.name] = module
    try:
        described.loader.exec_module(module)
    except BaseException as error:
        sys.modules.pop(described.name, None)
        if not isinstance(error, Exception):
            raise
        raise InputError(f"data.policy: {file} cannot be imported: {told(error)}.") from error
    build = getattr(module, function, None)
    if not callable(build):
        known = [n for n in vars(module) if callable(getattr(module, n)) and not n.startswith("_")]
        raise InputError(f"data.policy: {file} has no function {function!r}. {nearest(function, known)}")
    try:
        policy = build(env.spec)
        if not isinstance(policy, AbstractPolicy):
            raise InputError(
                f"data.policy: {name} returned {type(policy).__name__}, expected a dreamer4.data.AbstractPolicy."
            )
        asked = eqx.filter_eval_shape(_ask, policy, env.spec, jr.key(0))  # plays nothing
    except InputError:
        raise
    except Exception as error:  # of whatever kind: it is code of others
        raise InputError(
            f"data.policy: {name} cannot act: {told(error)}. Expected a function that takes the DataSpec of an "
            "environment and returns an AbstractPolicy, which JAX compiles: it computes with jax.numpy."
        ) from error
    wanted, found = (jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", tree) for tree in asked)
    if jax.tree.flatten(wanted) != jax.tree.flatten(found):
        raise InputError(f"data.policy: {name} returns {found}, expected an action and a memory like {wanted}.")
    return policy


def _ask(policy: AbstractPolicy, spec: DataSpec, key: PRNGKeyArray) -> tuple[Any, Any]:
    """Returns an action of the environment and the memory of a policy, as they are to be and as it returns them."""
    action, no, memory = Action.null(spec.action), jnp.zeros((), bool), policy.init()
    seen = TimeStep(jnp.zeros(spec.frame_shape, jnp.uint8), jnp.zeros(()), ~no, no, no)
    return jax.tree.map(jnp.asarray, ((action, memory), policy(memory, seen, action, no, key=key)))
