"""The checkpoints of a training phase, by step: which to go on from, and which to remove."""

import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from jaxtyping import PyTree

from dreamer4.checkpoint.folder import save, verify
from dreamer4.errors import InputError, check_whole
from dreamer4.files import is_read


class Checkpoints:
    """A folder of checkpoints numbered by training step, `<root>/<step>/`.

    One process may write at a time. Folders left behind by a process that died are ignored, and removed at the next
    save.

    Args:
        root: the folder; it is created at the first save.
        keep: number of newest steps to keep; None keeps all.
    """

    root: Path
    keep: int | None

    def __init__(self, root: Path, *, keep: int | None = None):
        if keep is not None:
            check_whole("Checkpoints", keep=keep)
        self.root = root
        self.keep = keep

    def path(self, step: int) -> Path:
        """Returns the folder of a step, whether it exists or not."""
        return self.root / str(step)

    def steps(self) -> list[int]:
        """Returns the numbers of the steps on disk in ascending order, damaged ones included."""
        if not self.root.is_dir():
            return []
        try:
            return sorted(int(p.name) for p in self.root.iterdir() if _is_step(p.name) and p.is_dir())
        except OSError as error:
            raise InputError(f"Cannot read the checkpoints in {self.root}: {error.strerror}.") from None

    def save(
        self, step: int, tree: PyTree, meta: Mapping[str, Any], kind: Literal["orbax", "safetensors"] = "orbax"
    ) -> Path:
        """Saves a step, then removes steps beyond `keep`. Returns the folder of the step.

        A damaged checkpoint of the same step is replaced: a run that fell back to an older step comes past it again.

        Raises:
            InputError: if a whole checkpoint of this step exists, a leaf cannot be saved, or the disk is full or cannot
                be written; the message says what is left to go on from.
        """
        path = self.path(step)
        try:
            for leftover in self.root.glob(".*.tmp"):
                shutil.rmtree(leftover)
            if path.exists():
                if not verify(path):
                    raise InputError(
                        f"Cannot save step {step}: {path} holds a whole checkpoint. Choose another run folder."
                    )
                _discard(path)
            save(path, tree, meta=meta, kind=kind)
            self._retain()
        except OSError as error:
            raise InputError(
                f"Cannot tidy {self.root} up: {error.strerror}. Free or choose a disk that can be written. "
                f"{self._standing()}"
            ) from error
        except InputError as error:
            if isinstance(error.__cause__, OSError):
                raise InputError(f"{error} {self._standing()}") from error.__cause__
            raise
        return path

    def latest_valid(self, *, fallback: bool = True) -> Path | None:
        """Returns the newest whole checkpoint, or None if no step was ever saved.

        Args:
            fallback: whether damaged steps may be passed over; they are named in one warning.

        Raises:
            InputError: if there are steps, but all are damaged: to start afresh unasked would bury the loss. Without
                fallback, if the newest step is damaged.
        """
        refused, gone = [], False
        for step in reversed(self.steps()):
            problems = verify(self.path(step))
            if problems and not self.path(step).exists():  # removed just now by the run that trains here
                gone = True
                continue
            if not problems:
                if refused and fallback:
                    warnings.warn(f"Falling back to {self.path(step)}. {_list_refused(refused)}", stacklevel=2)
                elif refused:
                    raise InputError(
                        f"The newest checkpoint in {self.root} is damaged. {_list_refused(refused)} "
                        f"Step {step} is whole; leave out --no-fallback to go on from it."
                    )
                return self.path(step)
            refused.append((step, problems))
        if gone and not refused:
            return self.latest_valid(fallback=fallback)  # there are newer ones by now
        if refused:
            raise InputError(
                f"No whole checkpoint in {self.root}. {_list_refused(refused)} Restore a copy or start a new run."
            )
        return None

    def _retain(self) -> None:
        if self.keep is None:
            return
        steps = self.steps()
        kept, surplus = steps[-self.keep :], steps[: -self.keep]
        if surplus and any(not verify(self.path(step)) for step in reversed(kept)):
            for step in surplus:
                if not is_read(self.path(step)):  # else it goes with a later one
                    _discard(self.path(step))

    def _standing(self) -> str:
        whole = next((step for step in reversed(self.steps()) if not verify(self.path(step))), None)
        return "No step was saved before." if whole is None else f"Step {whole} was saved before and is whole."


def _is_step(name: str) -> bool:
    return name.isascii() and name.isdigit() and str(int(name)) == name


def _discard(path: Path) -> None:
    """Removes a checkpoint; renamed first, so that a half-removed one is never seen under its number."""
    hidden = path.parent / f".{path.name}.old.tmp"
    shutil.rmtree(hidden, ignore_errors=True)
    os.rename(path, hidden)
    shutil.rmtree(hidden)


def _list_refused(refused: list[tuple[int, list[str]]]) -> str:
    return " ".join(f"Step {step} is refused: {'; '.join(problems).rstrip('.')}." for step, problems in refused)
