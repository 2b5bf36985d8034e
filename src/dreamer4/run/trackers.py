"""Metrics for other people's viewers: the stream of `metrics.jsonl`, written once more as it comes.

The log stays the contract; a tracker only shows it. `train.tracker` names one: `tensorboard` writes files beside the
log (`tensorboard --logdir RUN/tensorboard`), `wandb` sends to the service that its own settings name, or nowhere where
`WANDB_MODE=offline` says so.
"""

import importlib
import importlib.util
import inspect
import math
import os
import secrets
import socket
import struct
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dreamer4.errors import InputError
from dreamer4.files import read_bytes


class AbstractTracker(ABC):
    """Shows metrics as a run goes on."""

    @abstractmethod
    def write(self, phase: str, step: int, metrics: Mapping[str, Any]) -> None:
        """Takes in one line of the log.

        Args:
            phase: phase of the training.
            step: training step, within the phase.
            metrics: what was measured, by name; only numbers are shown, of several training seeds each one.
        """

    @abstractmethod
    def truncate(self, phase: str, step: int) -> None:
        """Is told that the phase goes on from `step`: what was written behind it is written again."""

    @abstractmethod
    def close(self) -> None:
        """Writes what is left; nothing is written afterwards."""


class TensorBoard(AbstractTracker):
    """Event files in `<run>/tensorboard/<phase>`: each phase is a run of TensorBoard's, with its own steps.

    An event is in its file when `write` returns, and no file is open between two events. The package's own writer puts
    events into a queue that a thread empties; on a full disk the thread dies and the queue takes no more.

    Args:
        folder: the run.
    """

    def __init__(self, folder: Path):
        from tensorboardX.proto import event_pb2, summary_pb2
        from tensorboardX.record_writer import masked_crc32c

        self._events: Any = event_pb2  # its classes are made at run time, unseen by type checkers
        self._summaries: Any = summary_pb2
        self._crc = masked_crc32c
        self._folder = folder / "tensorboard"
        self._files: dict[str, Path] = {}

    def write(self, phase: str, step: int, metrics: Mapping[str, Any]) -> None:
        if phase not in self._files:
            self.truncate(phase, 0)
        summary = self._summaries.Summary()
        for name, value in scalars(metrics).items():
            summary.value.add(tag=name, simple_value=value)
        self._append(phase, step=step, summary=summary)

    def truncate(self, phase: str, step: int) -> None:
        (self._folder / phase).mkdir(parents=True, exist_ok=True)
        # A name that viewers look for; two attempts within a second are two files.
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{step}"
        self._files[phase] = self._folder / phase / name
        self._append(phase, file_version="brain.Event:2")
        if step:  # a viewer forgets what an earlier attempt wrote from here on
            log = self._events.SessionLog
            self._append(phase, step=step + 1, session_log=log(status=log.START))

    def close(self) -> None:
        self._files.clear()

    def _append(self, phase: str, **event: Any) -> None:
        content = self._events.Event(wall_time=time.time(), **event).SerializeToString()
        size = struct.pack("<Q", len(content))
        with self._files[phase].open("ab") as stream:
            stream.write(size + self._checksum(size) + content + self._checksum(content))

    def _checksum(self, content: bytes) -> bytes:
        return struct.pack("<I", self._crc(content))


class Wandb(AbstractTracker):
    """A run of Weights & Biases, named as the run folder; its metrics are `<phase>/<name>` over `<phase>/step`.

    Its id is kept in `<run>/wandb/id`, so that a run which goes on stays one run there.

    Args:
        folder: the run.
        config: its configuration, as JSON values.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]):
        self._wandb = importlib.import_module("wandb")
        try:
            self._run = self._wandb.init(
                project="dreamer4",
                name=folder.name,
                dir=str(folder),
                config=dict(config),
                id=_kept_id(folder / "wandb" / "id"),
                resume="allow",  # begin a run, or go on with the one of this id
                allow_val_change=True,  # a run may go on on other hardware
            )
        except Exception as error:  # a service of others may raise anything
            raise InputError(
                f"train.tracker: wandb does not start: {' '.join(str(error).split())[:200]} Mend this, set "
                "WANDB_MODE=offline, or choose another tracker."
            ) from error
        self._phases: set[str] = set()

    def write(self, phase: str, step: int, metrics: Mapping[str, Any]) -> None:
        self.truncate(phase, step)
        named = {f"{phase}/{name}": value for name, value in scalars(metrics).items()}
        self._run.log({f"{phase}/step": step} | named)

    def truncate(self, phase: str, step: int) -> None:
        """Names the axis of a phase. The service takes nothing back: lines written again are shown twice there."""
        if phase not in self._phases:
            self._phases.add(phase)
            self._run.define_metric(f"{phase}/step")
            self._run.define_metric(f"{phase}/*", step_metric=f"{phase}/step")

    def close(self) -> None:
        self._run.finish()


def _kept_id(file: Path) -> str:
    """Returns the id in a file, and makes one up if there is none."""
    if file.exists() and (kept := read_bytes(file, limit=1024).decode("ascii", "replace").strip()):
        return kept
    made = secrets.token_hex(8)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(made + "\n", encoding="ascii")
    return made


def check(name: str) -> None:
    """Refuses a tracker whose package is not installed.

    Raises:
        InputError: if it is not.
    """
    if name == "wandb" and importlib.util.find_spec("wandb") is None:
        raise InputError(
            "train.tracker: got wandb, which is not installed. Install dreamer4-eqx[wandb], or set "
            "train.tracker=tensorboard, which needs nothing more."
        )
    if name == "wandb" and os.environ.get("WANDB_MODE", "online") == "online" and not sys.stdin.isatty():
        wandb = importlib.import_module("wandb")
        newer = "prompt" in inspect.signature(wandb.login).parameters  # from 0.31 on, which is to lose `api`
        if not (wandb.login(prompt=False, verify=False) if newer else wandb.api.api_key):
            raise InputError(
                "train.tracker: got wandb, but there is no key to send with. Run wandb login, or set WANDB_API_KEY "
                "or WANDB_MODE=offline."
            )


def start(name: str, folder: Path, config: Mapping[str, Any]) -> AbstractTracker | None:
    """Returns the tracker of that name for a run; None for `none`.

    Args:
        name: as `train.tracker` has it.
        folder: the run.
        config: its configuration, as JSON values.
    """
    if name == "tensorboard":
        return TensorBoard(folder)
    return Wandb(folder, config) if name == "wandb" else None


def scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Returns the numbers among metrics; one of several training seeds gets the seed's place in its name."""
    found = {}
    for name, value in metrics.items():
        if value is None or isinstance(value, bool | str):
            continue
        values = np.asarray(value, np.float64)
        if values.ndim == 0:
            found[name] = float(values)
        elif values.ndim == 1:
            found |= {f"{name}/seed{i}": float(x) for i, x in enumerate(values)}
    return {name: value for name, value in found.items() if not math.isnan(value)}
