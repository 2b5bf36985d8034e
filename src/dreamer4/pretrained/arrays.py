"""Weights in files of other packages: found without importing the package, read without running anything."""

import importlib.util
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from dreamer4.errors import InputError


# All that a pickle of arrays names: how an array is made again, its class, and that of its type.
_KNOWN = {"_reconstruct": np.empty(0).__reduce__()[0], "ndarray": np.ndarray, "dtype": np.dtype}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] in ("numpy", "ndarray") and name in _KNOWN:
            return _KNOWN[name]
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def installed(package: str, file: str) -> Path:
    """Returns the place of a file that a package carries; the package is not imported.

    Raises:
        InputError: if the package is not installed, or lacks the file.
    """
    spec = importlib.util.find_spec(package)
    places = [] if spec is None else [Path(place) / file for place in spec.submodule_search_locations or ()]
    if not any(place.is_file() for place in places):
        raise InputError(
            f"{package.replace('_', '-')} with its {file} is not installed: pip install 'dreamer4-eqx[fvd]'."
        )
    return next(place for place in places if place.is_file())


def read_arrays(path: Path) -> dict[str, Any]:
    """Reads a pickle of nested dictionaries of arrays, and nothing else.

    Raises:
        InputError: if the file cannot be read, or holds anything but arrays.
    """
    try:
        with path.open("rb") as file:
            return _ArraysOnly(file).load()
    except (OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise InputError(f"{path}: expected a file of arrays alone, as the package made it, but {error}.") from None
