"""The folder of one run: where everything it writes lies, and the rule that no work in it is overwritten.

    config.yaml                    the resolved configuration; its presence is what makes a folder a run folder
    data/                          the data set, if the run collected its own
    latents/<tokenizer>-<data>/    its training episodes as latents, see `data.latents`
    metrics.jsonl                  one line of metrics each
    checkpoints/<phase>/<step>/    numbered checkpoints of each phase
    results.json, report.html      what came out
    seconds.txt                    how long all of it took
    lock                           what a process that writes to the run locks
    diverged-<phase>-<step>.json   the batches that ended a run, if they did

A folder belongs to one configuration. Continuing a run is asked for, never assumed, and continuing it with other
settings is refused key by key: half a run of each of two configurations is a result of neither. Only how the work is
cut up may change (`train.mesh`, `train.<phase>.accumulate`, `remat`, `data.source`, `env.workers`), for a run may go on
elsewhere; `config.yaml` keeps what it was begun with. And the phase that came last may be given more steps, which
`config.yaml` then tells.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dreamer4 import checkpoint
from dreamer4.checkpoint import Checkpoints
from dreamer4.config import Config, diff, from_yaml, override, text, to_yaml, without_hardware
from dreamer4.dreamer import PHASES, read_description
from dreamer4.errors import InputError
from dreamer4.files import write_atomically


DEEPEST = 4  # levels below a folder in which runs are looked for


def _place(name: str) -> Any:
    """Returns what lies under a name in the folder of a run, as the text of this module lists it."""
    return property(lambda run: run.path / name)


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run, and its opening.

    Attributes:
        path: the folder; it need not exist before `open`.
    """

    path: Path

    config_file = _place("config.yaml")
    metrics_file = _place("metrics.jsonl")
    results_file = _place("results.json")
    seconds_file = _place("seconds.txt")
    lock_file = _place("lock")
    report_file = _place("report.html")
    data = _place("data")
    latents = _place("latents")

    @property
    def is_run(self) -> bool:
        """Whether a run was started here."""
        return self.config_file.is_file()

    def checkpoints(self, phase: str, *, keep: int | None = None) -> Checkpoints:
        """Returns the checkpoints of a phase, of which the newest `keep` stay (None: all)."""
        return Checkpoints(self.path / "checkpoints" / phase, keep=keep)

    def open(self, config: Config, *, resume: bool = False, kept: Iterable[str] = ()) -> None:
        """Starts a run here, or continues the one that is here; arguments and errors are those of `check`."""
        self.check(config, resume=resume, kept=kept)
        told = self._lengthened(config) if self.is_run else config
        if not self.is_run or told != self.read_config():
            write_atomically(self.config_file, to_yaml(told))

    def check(self, config: Config, *, resume: bool = False, kept: Iterable[str] = ()) -> None:
        """Tells whether a run can be started here, or continued, and changes nothing.

        Args:
            config: the resolved configuration of the run.
            resume: whether to continue. Then the run must exist and have this configuration, but for the hardware, and
                for more steps of the phase that it has come to.
            kept: names of what may lie in the folder of a run that is yet to start.

        Raises:
            InputError: if the folder holds something else, another configuration, or a run that `resume` does not ask
                for; or if there is nothing to resume.
        """
        if self.is_run:
            self._refuse_other(config)
            if not resume:
                raise InputError(
                    f"{self.path} holds a run. Continue it with --resume, or choose another folder with --run."
                )
            return
        if self.path.is_symlink() and not self.path.exists():
            raise InputError(f"{self.path} is a link to {os.readlink(self.path)}, where nothing is. Make that folder.")
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is a file, expected a folder. Choose another one with --run.")
        # May be left over from a start that was killed, or from a collection.
        leftovers = {*self.path.glob(".*.tmp"), *(self.path / name for name in kept)}
        if self.path.is_dir() and set(self.path.iterdir()) - leftovers:
            raise InputError(
                f"{self.path} is not empty and not a run folder (it has no {self.config_file.name}). "
                "Choose another one with --run; nothing was changed."
            )
        if resume:
            raise InputError(
                f"There is no run to resume in {self.path}. Check --run, or leave out --resume to start one."
            )

    def read_config(self) -> Config:
        """Returns the configuration of the run.

        Raises:
            InputError: if no run is here, or this version cannot read its configuration.
        """
        if not self.is_run:
            raise InputError(f"{self.path} is not a run folder: it has no {self.config_file.name}.")
        return from_yaml(text.read(self.config_file), str(self.config_file))

    def progress(self, config: Config) -> str:
        """Returns how far the training of a configuration has come, in words."""
        for phase in reversed(PHASES):
            wanted = getattr(config.train, phase).steps
            if steps := self.checkpoints(phase).steps():
                return f"{phase} {steps[-1]}/{wanted}" if steps[-1] < wanted else f"{phase} done"
        return "begun"

    def touched(self) -> float:
        """Returns when the run last wrote down how far it is, in seconds since the epoch."""
        files = [file for file in (self.results_file, self.metrics_file, self.config_file) if file.exists()]
        return max(file.stat().st_mtime for file in files)

    def _lengthened(self, config: Config) -> Config:
        """Returns the configuration of the run, with as many steps of its last phase as another one asks for."""
        own = self.read_config()
        begun = [phase for phase in PHASES if self.checkpoints(phase).steps()]
        steps = max(getattr(each.train, begun[-1]).steps for each in (own, config)) if begun else 0
        return override(own, [f"train.{begun[-1]}.steps={steps}"]) if begun else own

    def _refuse_other(self, config: Config) -> None:
        if changes := diff(without_hardware(self._lengthened(config)), without_hardware(config)):
            raise InputError(
                f"{self.path} holds a run of another configuration (the run's -> yours):\n"
                + "".join(f"  {change}\n" for change in changes)
                + "Choose another folder with --run, or continue this one with --resume and its own settings. Of these "
                "only the steps of the newest phase may be raised."
            )


def find_runs(folder: Path) -> Iterator[RunFolder]:
    """Yields the runs at or below a folder, down to `DEEPEST` levels; what lies inside a run is its own."""
    depth = len(folder.parts)
    for place, inside, _ in os.walk(folder):
        run = RunFolder(Path(place))
        if run.is_run:
            yield run
        if run.is_run or len(Path(place).parts) - depth >= DEEPEST:
            inside.clear()


def run_of(step: Path) -> RunFolder | None:
    """Returns the run that a checkpoint lies in, as `<run>/checkpoints/<phase>/<step>`; None for one that was moved.

    It may lie there by its path, or by where links in its path lead. Whether the folder is a run is not looked at.
    """
    for place in (Path(os.path.abspath(step)), step.resolve()):
        folders = place.parents
        if len(folders) > 2 and folders[1].name == "checkpoints":
            return RunFolder(folders[2])
    return None


def steps_done(step: Path) -> int | None:
    """Returns how far the phase of a checkpoint had come, whatever its folder is called; None for weights alone.

    Raises:
        InputError: the checkpoint is missing or damaged.
    """
    like = checkpoint.read_leaves(step, at="step").get("step")
    return None if like is None else int(np.max(checkpoint.load(step, like, at="step")))


def cloned_head(step: Path) -> Literal["policy", "prior"]:
    """Returns which head of a checkpoint's agent is its cloned policy.

    The agent phase trains the policy, and its end makes a copy of it the prior, which until then is untrained.

    Raises:
        InputError: the checkpoint is of an earlier phase, or missing or damaged.
    """
    phase = checkpoint.read_meta(step).get("phase")
    if phase in PHASES[: PHASES.index("agent")]:
        raise InputError(
            f"{step} is of the {phase} phase, and there is no policy before the agent phase. Train that phase first."
        )
    if phase != "agent":
        return "prior"
    (config, _), done = read_description(step), steps_done(step)
    return "prior" if done is None or done >= config.train.agent.steps else "policy"
