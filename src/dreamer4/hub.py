"""Agents by name: those that come with the package, and with data sets those on the Hugging Face Hub.

The Hub is asked by `huggingface_hub` (the extra `hub`). Of a repository only files of ours are fetched, by their names:
arrays and plain text, none of which can run when it is read, whatever else lies beside them.
"""

import os
import re
from pathlib import Path
from typing import Any, Literal

from dreamer4.errors import InputError, nearest


Kind = Literal["model", "dataset"]
SHIPPED = Path(__file__).parent / "serving" / "pretrained"
EPISODES = "episodes"  # the folder of a data set's repository that holds the set itself

_PLACE = re.compile(r"hf:/{1,2}(datasets/)?([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?/?")  # a Path joins two slashes
_SET = ("dataset.json", "shard-*.array_record")
_FILES = {
    "model": ["dreamer4.json", "config.json", "model.safetensors", "README.md", *(f"starts/{name}" for name in _SET)],
    "dataset": ["README.md", *(f"{EPISODES}/{name}" for name in _SET)],
}


def local(path: str | Path) -> Path:
    """Returns a path as it is; of `hf://[datasets/]USER/NAME[@REVISION]` the folder into which it was fetched.

    Where nothing lies at a path that is the name of a shipped agent, it is that agent's folder.

    Files that are there already are not fetched again, and without a network those there are taken.

    Raises:
        InputError: if it cannot be fetched.
    """
    if not str(path).startswith("hf:"):
        path = Path(path).expanduser()
        return SHIPPED / path if str(path) in shipped() and not os.path.lexists(path) else path
    if (named := _PLACE.fullmatch(str(path))) is None:
        raise InputError(f"{path}: expected hf://USER/NAME, hf://USER/NAME@REVISION or hf://datasets/USER/NAME.")
    kind: Kind = "dataset" if named[1] else "model"
    hub = _hub()
    # Not the cache, which consists of links: where hashes are checked, a file is a file.
    folder = Path(hub.constants.HF_HOME) / "dreamer4" / kind / named[2] / (named[3] or "main")
    api = hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    _asked(
        f"{path}: cannot be fetched",
        api.snapshot_download,
        named[2],
        repo_type=kind,
        revision=named[3],
        local_dir=folder,
        allow_patterns=_FILES[kind],
    )
    return folder / EPISODES if kind == "dataset" else folder


def shipped() -> list[str]:
    """Returns the names of the agents that come with the package."""
    return sorted(folder.name for folder in SHIPPED.iterdir() if folder.is_dir()) if SHIPPED.is_dir() else []


def existing(path: str | Path) -> Path:
    """Returns what `local` does, refusing what is not there.

    Raises:
        InputError: if nothing is, or it cannot be fetched.
    """
    found = local(path)
    # Not Path.exists, which raises where a name is too long or a folder is closed to us.
    if not os.path.exists(found):
        told = f"{path}: no such file or folder. {nearest(str(path), shipped(), listed=False)}"
        raise InputError(told.rstrip())
    return found


def push(folder: Path, name: str, *, kind: Kind = "model", private: bool = False) -> str:
    """Uploads a folder as one commit of a repository, which is made if there is none; returns the commit's address.

    Args:
        folder: what `export` wrote.
        name: `USER/NAME`.
        kind: of the repository.
        private: whether one that is made shows itself to its owner alone.

    Raises:
        InputError: if nobody is logged in, or the Hub refuses.
    """
    api = _hub().HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    said = f"push: {name}: the Hub refuses"
    _asked(said, api.create_repo, name, repo_type=kind, private=private, exist_ok=True)
    # Hidden files are of whoever keeps the folder, such as what a fetch left there.
    told = _asked(
        said,
        api.upload_folder,
        repo_id=name,
        folder_path=folder,
        repo_type=kind,
        commit_message="Upload by dreamer4",
        ignore_patterns=[".*"],
    )
    return told.commit_url


def _hub() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.constants  # noqa: F401  (a part that does not come by itself)
    except ImportError:
        raise InputError("hf:// needs huggingface_hub. Run: pip install 'dreamer4-eqx[hub]'.") from None
    return huggingface_hub


def _asked(said: str, call: Any, *args: Any, **kwargs: Any) -> Any:
    """Calls the Hub; what goes wrong there is told in a line."""
    try:
        return call(*args, **kwargs)
    except (OSError, ValueError, RuntimeError) as error:  # what HTTP errors, bad names and lost networks are
        why = " ".join(str(error).split())[:300]
        raise InputError(f"{said}: {why} Log in with `hf auth login`, or check the name and the network.") from None
