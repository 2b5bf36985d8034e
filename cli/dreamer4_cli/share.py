"""Handing weights on and taking them over: `dreamer4 export` and `dreamer4 import`."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from dreamer4.dreamer import PHASES
from dreamer4.files import check_place
from dreamer4.sharing import export_agent, import_agent
from dreamer4_cli.describe import console
from dreamer4_cli.invocation import invoked
from dreamer4_cli.run import source_commit


def export(path: Path, out: Path, *, member: int, starts: int = 0) -> None:
    """Writes an agent for others into the new folder `out`, with `starts` episodes it was not trained on."""
    check_place(out)
    export_agent(path, out, member=member, starts=starts, provenance={"exported_at_commit": source_commit()})
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    console.print(f"{out}: {size / 1e6:.2f} MB, loads with Dreamer.load", markup=False, soft_wrap=True)


def import_run(path: Path, folder: Path, *, phase: str | None, overrides: Sequence[str]) -> None:
    """Makes the new run `folder` out of exported weights, and says what comes next."""
    run = import_agent(path, folder, phase=phase, overrides=overrides)
    done = max(PHASES.index(name) for name in PHASES if run.checkpoints(name).steps())
    following = PHASES[done + 1 :]
    quoted = shlex.quote(str(folder))
    then = f"train {following[0]} --run {quoted}" if following else f"evaluate {quoted}"
    said = f"{folder}: a run with the {PHASES[done]} phase done. Next: {invoked()} {then}"
    console.print(said, markup=False, soft_wrap=True)
