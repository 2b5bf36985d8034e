"""Handing on weights and data, and taking weights over: `dreamer4 export`, `push` and `import`."""

import importlib.util
import shlex
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dreamer4 import checkpoint, data, hub
from dreamer4.dreamer import PHASES
from dreamer4.errors import InputError
from dreamer4.files import check_place
from dreamer4.run.facts import source_commit
from dreamer4.run.folder import RunFolder
from dreamer4.serving.film import write_film
from dreamer4.sharing import Precision, export_agent, export_dataset, import_agent
from dreamer4_cli.console import invoked, say


def export(path: Path, out: Path, *, member: int, starts: int, license: str, dtype: Precision | None = None) -> None:
    """Writes an agent, with `starts` episodes it was not trained on, or data for others into the new folder `out`."""
    check_place(out)
    if _is_data(path):
        if dtype is not None:
            raise InputError(f"--dtype {dtype}: it is for an agent's weights, and {path} is data. Leave it out.")
        export_dataset(path, out, license=license)
    else:
        with tempfile.TemporaryDirectory() as folder:
            told, film = {"exported_at_commit": source_commit()}, partial(_replay, path, Path(folder))
            kept: dict[str, Any] = {"license": license, "dtype": dtype}
            export_agent(path, out, member=member, starts=starts, **kept, replay=film, provenance=told)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    loads = f"the data set is {out / hub.EPISODES}" if _is_data(path) else "loads with Dreamer.load"
    say(f"{out}: {size / 1e6:.2f} MB, {loads}")


def push(path: Path, name: str, *, private: bool, **options: Any) -> None:
    """Uploads what `export` would write, or has written and people may have edited."""
    with tempfile.TemporaryDirectory() as folder:
        place, is_set = path, (path / hub.EPISODES).is_dir()
        if not ((path / "README.md").is_file() and (is_set or checkpoint.is_checkpoint(path))):
            place, is_set = Path(folder) / name.replace("/", "-"), _is_data(path)
            export(path, place, **options)
        address = hub.push(place, name, kind="dataset" if is_set else "model", private=private)
    there = f"hf://{'datasets/' if is_set else ''}{name}"
    say(f"{address}\nIt loads by the name {there}")


def _is_data(path: Path) -> bool:
    trained = checkpoint.is_checkpoint(path) or RunFolder(path).is_run or (path / "checkpoints").is_dir()
    return data.is_dataset(path) or (not trained and data.format_of(path) is not None)


def _replay(path: Path, folder: Path) -> Path | None:
    """Films a held-out episode beside its dream, if one is at hand whose actions are known."""
    film = folder / f"replay.{'gif' if importlib.util.find_spec('av') is None else 'mp4'}"
    try:
        write_film(path, film, actions="data")
    except InputError as error:
        say(f"No film: {error}")
        return None
    return film


def import_run(path: Path, folder: Path, *, phase: str | None, overrides: Sequence[str] | None) -> None:
    """Makes the new run `folder` out of exported weights, and says what comes next."""
    run = import_agent(path, folder, phase=phase, overrides=overrides or ())
    done = max(PHASES.index(name) for name in PHASES if run.checkpoints(name).steps())
    following = PHASES[done + 1 :]
    quoted = shlex.quote(str(folder))
    then = f"train {following[0]} --run {quoted}" if following else f"evaluate {quoted}"
    say(f"{folder}: a run with the {PHASES[done]} phase done. Next: {invoked()} {then}")
