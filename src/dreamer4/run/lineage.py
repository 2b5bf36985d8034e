"""Another run that a run starts from: what its phases have trained is taken over, the rest is the new run's own."""

from pathlib import Path

import jax.numpy as jnp

from dreamer4 import checkpoint
from dreamer4.config import Config
from dreamer4.dreamer import PHASES, spec_to_json
from dreamer4.errors import InputError
from dreamer4.run import processes
from dreamer4.run.folder import RunFolder
from dreamer4.run.reporter import Reporter
from dreamer4.training.trained import TRAINED, check_trained, load_trained
from dreamer4.types import DataSpec


_TAKEN_TO = "taken_to"  # in the meta of a checkpoint from another run: the fingerprint of the data set it now serves


def end_of(run: RunFolder, phases: tuple[str, ...]) -> Path:
    """Returns the checkpoint at the end of the last of some phases of a run."""
    if not phases:
        raise InputError("train --from: the tokenizer is the first phase and starts from nothing. Leave --from out.")
    newest = run.checkpoints(phases[-1]).latest_valid()
    wanted = getattr(run.read_config().train, phases[-1]).steps
    if newest is None or int(newest.name) != wanted:
        raise InputError(f"{run.path} has not finished its {phases[-1]} phase, so nothing can start from it.")
    return newest


def check(end: Path, config: Config, spec: DataSpec) -> None:
    """Refuses the end of a phase whose trained parts do not fit a configuration; no array is read."""
    check_trained(end, end.parent.name, config, spec)


def write(
    config: Config, run: RunFolder, end: Path, data: Path, fingerprint: str, spec: DataSpec, *, into: str | None = None
) -> None:
    """Writes what a phase of another run has trained as the end of that phase of this run. May be repeated.

    Args:
        config: settings of the run.
        run: its folder.
        end: the checkpoint at the end of the phase in the other run.
        data: the data set of the run.
        fingerprint: of that data set.
        spec: of that data set.
        into: the phase of this run that it shall be the end of; None: the same.

    Raises:
        InputError: if a checkpoint is damaged or cannot be written, or if the run has another one at that place.
    """
    phase, place = end.parent.name, into or end.parent.name
    steps, number = run.checkpoints(place), getattr(config.train, place).steps
    target = steps.path(number)
    if target.exists() and not checkpoint.verify(target):
        if _hashes(target, phase) == _hashes(end, phase):
            return
        raise InputError(f"train --from: {target} holds other weights than {end}. Choose another run folder.")
    dreamer = load_trained(end, phase, config, spec)
    saved, origin = checkpoint.read_meta(end).get("data"), RunFolder(end.parents[2])
    meta = {"config": config.model_dump(mode="json"), "spec": spec_to_json(spec), "data": saved, "phase": place}
    # Another place is another data set on purpose; the same place with other episodes has changed under the weights.
    own = Path(origin.read_config().data.path or origin.data)
    if data.resolve() != own.resolve() and saved != fingerprint:
        meta[_TAKEN_TO] = fingerprint
    imported = not checkpoint.read_leaves(end, at="step")  # weights of others come without their data
    state = {"ema": dreamer} | ({} if imported else {"step": jnp.asarray(number, jnp.int32)})
    # Orbax would wait for other processes, which take no part in this.
    steps.save(number, state, meta, kind="safetensors" if processes.several() else "orbax")


def data_of(step: Path) -> str | None:
    """Returns the fingerprint of the data set that a checkpoint belongs to; None: it came without its data.

    Raises:
        InputError: if the checkpoint cannot be read.
    """
    meta = checkpoint.read_meta(step)
    return meta.get(_TAKEN_TO, meta.get("data")) if checkpoint.read_leaves(step, at="step") else None


def check_data(run: RunFolder, fingerprint: str, report: Reporter, *, accept: bool) -> None:
    """Refuses a data set that is not the one of the run's newest checkpoint.

    That one speaks for all: it was saved after its run had passed here with the older ones.
    """
    steps = [run.checkpoints(phase).path(n) for phase in PHASES for n in run.checkpoints(phase).steps()]
    for path in reversed(steps):
        try:
            saved = data_of(path)
        except InputError:  # it is passed over or refused where it is loaded
            continue
        if saved in (None, fingerprint):
            return
        what = f"The data set changed since {path} was saved (fingerprint {str(saved)[:12]}, now {fingerprint[:12]})."
        if not accept:
            raise InputError(
                f"{what} Restore the data set, start a new run, or go on all the same with --changed-data."
            )
        report.say(f"{what} Going on with the changed one.")
        return


def _hashes(end: Path, phase: str) -> dict[str, str]:
    """Returns the SHA-256 of every array that has been trained by the end of a phase."""
    places = tuple(f"ema.{part}." for part in TRAINED[phase])
    return {name: leaf.sha256 for name, leaf in checkpoint.read_manifest(end).leaves.items() if name.startswith(places)}
