"""The leaves of a tree by dotted path: which can be saved, and whether what was saved is what is wanted."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from dreamer4.errors import InputError


# The types that a leaf may have, by their names in NumPy and in safetensors.
DTYPES = {
    "bool": "BOOL",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "uint8": "U8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
}


_WRAPPED = "network"


def named_arrays(tree: PyTree, at: str = "") -> dict[str, Any]:
    """Returns the array leaves of a tree by dotted path, each path beginning with `at`."""
    named = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(eqx.filter(tree, is_abstract_array)):
        # What a network serves is no part of its weights' names, so that they fit it wherever it is used.
        inside = [
            part for part in jax.tree_util.keystr(path, simple=True, separator="/").split("/") if part != _WRAPPED
        ]
        name = ".".join(part for part in (at, *inside) if part) or "leaf"
        if name in named:
            raise InputError(
                f"Two leaves of the tree have the path {name}. Rename the dictionary key that has a dot in it."
            )
        named[name] = leaf
    return named


def is_abstract_array(leaf: Any) -> bool:
    """Whether a leaf is an array, or the shape of one."""
    return eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)


def check_savable(name: str, leaf: Any) -> None:
    """Raises an InputError if a leaf would not come back as it is."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        raise InputError(f"Cannot save leaf {name}: it is a shape without values.")
    if str(leaf.dtype) not in DTYPES:
        hint = " Use jax.random.key_data." if jnp.issubdtype(leaf.dtype, jax.dtypes.extended) else ""
        raise InputError(f"Cannot save leaf {name}: got type {leaf.dtype}, expected one of {', '.join(DTYPES)}.{hint}")
    if jnp.asarray(leaf).dtype != leaf.dtype:
        raise InputError(
            f"Cannot save leaf {name}: JAX would cast its {leaf.dtype}. Convert it, or enable 64-bit types."
        )


def within(leaves: Mapping[str, Any], at: str) -> dict[str, Any]:
    """Returns the leaves of the part at the dotted path `at`; all if it is empty."""
    return {name: leaf for name, leaf in leaves.items() if not at or name == at or name.startswith(at + ".")}


def compare(path: Path, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises an InputError that names the first leaf in which the two sides differ, but for a type that widens."""

    def describe(leaves: Mapping[str, Any], name: str) -> str:
        return f"{tuple(leaves[name].shape)} {leaves[name].dtype}" if name in leaves else "nothing"

    names = [*wanted, *(name for name in saved if name not in wanted)]
    differing = [
        name
        for name in names
        if describe(saved, name) != describe(wanted, name)
        and not (name in saved and name in wanted and _widens(saved[name], wanted[name]))
    ]
    if differing:
        name, *others = differing
        more = f" ({len(others)} more leaves differ.)" if others else ""
        raise InputError(
            f"Checkpoint {path} does not fit: leaf {name} was saved as {describe(saved, name)}, wanted is "
            f"{describe(wanted, name)}.{more} "
            "Use the configuration that the checkpoint was saved with."
        )


def _widens(saved: Any, wanted: Any) -> bool:
    """Whether a leaf of the shape that is wanted was saved in fewer bits, and comes back in more without loss."""
    widens = str(saved.dtype) in ("float16", "bfloat16") and str(wanted.dtype) in ("float32", "float64")
    return widens and tuple(saved.shape) == tuple(wanted.shape)


def hash_leaf(leaf: Any) -> str:
    """Returns the SHA-256 of an array's values in C order."""
    return hashlib.sha256(np.ascontiguousarray(whole(leaf)).reshape(-1).view(np.uint8).data).hexdigest()


def whole(leaf: Any) -> Any:
    """Returns an array as this process can read it; what other processes hold of it is fetched, by all of them."""
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        return leaf
    if leaf.is_fully_replicated:
        return leaf.addressable_data(0)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(leaf, tiled=True)


def place(array: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    """Returns an array, which each process has whole, laid out over devices, which may be of several processes."""
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    host = np.asarray(array)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def sharding_of(like: Any) -> jax.sharding.Sharding:
    """Returns where a leaf lies; where it does not say, on the default device."""
    known = like.sharding if isinstance(like, jax.Array | jax.ShapeDtypeStruct) else None
    return known or jax.device_put(0).sharding
