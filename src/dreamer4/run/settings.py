"""Which settings a command means: a preset or a file, what is laid over it, and what a run folder says already.

Nothing heavy is imported before a configuration is asked for.
"""

import importlib
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dreamer4.errors import InputError, told


_imported: list[str] = []  # what `import_parts` imported


def resolve(
    preset: str | None,
    file: Path | None,
    overrides: list[str] | None,
    *,
    env: str | None = None,
    seed: int | None = None,
    seeds: int | None = None,
    folder: Path | None = None,
    origin: Path | None = None,
) -> tuple[Any, Path]:
    """Returns the `dreamer4.config.Config` that the options of a command describe, and its run folder.

    A run folder that exists already knows its configuration: unless a preset or a file says otherwise, the options are
    laid over the folder's own `config.yaml`, so `train dynamics --run DIR` goes on from `train tokenizer --run DIR`.
    In the same way a new run that starts `origin`'s way takes over its configuration, and in any case its data set.
    """
    from dreamer4 import config as configuration

    if preset is None and file is None and folder is not None and os.path.exists(folder / "config.yaml"):
        file = folder / "config.yaml"
    elif origin is not None:
        if preset is None and file is None:
            file = origin / "config.yaml"
        data = origin / "data"
        # One that was not collected lies elsewhere, and only the settings of the run say where.
        path = str(data) if data.is_dir() else configuration.load(file=origin / "config.yaml").data.path
        if path is not None:
            overrides = [f"data.path={json.dumps(path)}", *(overrides or ())]
    config = configuration.load(preset, file, overrides or (), env=env, seed=seed, seeds=seeds)
    imports = tuple(dict.fromkeys((*config.imports, *_imported)))
    config = configuration.require_imports(config.model_copy(update={"imports": imports}))
    own = folder is not None and file == folder / "config.yaml"
    # As it stands in the run, where it was found from another working folder; else so that it is found from any.
    kept = [configuration.load(config.preset).data.path, configuration.load(file=file).data.path if own else None]
    if (given := config.data.path) is not None and given not in kept:
        config = configuration.override(config, [f"data.path={json.dumps(os.path.abspath(os.path.expanduser(given)))}"])
    return config, folder or default_folder(config)


def one_task(config: Any, task: str) -> Any:
    """Returns the configuration with one of its tasks alone, by name or number.

    Raises:
        InputError: if it has no such task.
    """
    named = {str(i): one for i, one in enumerate(config.played)} | {one.name: one for one in config.played}
    if task not in named:
        known = ", ".join(f"{i} {one.name}" for i, one in enumerate(config.played))
        raise InputError(f"--task: got {task!r}, but the tasks of this configuration are: {known}.")
    return config.model_copy(update={"tasks": (named[task],)})


def import_parts(names: Sequence[str]) -> None:
    """Imports modules that register environments and parts, installed ones or files of the working directory.

    Raises:
        InputError: if one cannot be imported.
    """
    _imported[:] = names
    if names:
        sys.path.insert(0, os.getcwd())
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:  # of whatever kind: it is code of others
            raise InputError(
                f"--import {name}: {told(error)}. Expected the name of a module, as in `import {name}`, that can be "
                f"imported from {os.getcwd()}."
            ) from None


def default_folder(config: Any) -> Path:
    """Returns `runs/<preset>-<env>-seed<seed>`, whatever characters the environment's id has."""
    name = f"{config.preset}-{config.env.id}-seed{config.seed}"
    return Path("runs") / re.sub(r"[^A-Za-z0-9._-]+", "_", name)
