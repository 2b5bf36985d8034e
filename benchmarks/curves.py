"""Expected curves of a preset, out of runs of it: `python -m benchmarks curves RUN ...`.

Of each phase one metric, its mean and its range over runs, as a small JSON file from which the preset's page on the
site is drawn. Runs whose settings are others than the preset's, but for seeds and where the data lie, are refused.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dreamer4.config import diff, load
from dreamer4.errors import InputError
from dreamer4.files import write_atomically
from dreamer4.run.facts import device, source_commit
from dreamer4.run.folder import RunFolder
from dreamer4.run.metrics import read_metrics


CHIEF = {"tokenizer": "mse", "dynamics": "flow", "agent": "cloning", "imagination": "imagined_return"}
# Which data: a set that is named may be one that was cut by prompts before.
_MAY_DIFFER = ("seed:", "seeds:", "data.path:", "data.prompts:", "imports:")


def curves(paths: Sequence[Path], out: Path) -> list[Path]:
    """Writes `PRESET.json` for each preset that runs are of, and returns the files.

    Raises:
        InputError: if a run has other settings than its preset, or phases of one preset were logged at other steps.
    """
    found: dict[str, dict[str, list[tuple[np.ndarray, np.ndarray, float]]]] = {}
    for path in paths:
        run = RunFolder(path)
        config = run.read_config()
        other = [line for line in diff(config, load(config.preset)) if not line.startswith(_MAY_DIFFER)]
        if other:
            raise InputError(f"{path} is no run of the preset {config.preset}: {'; '.join(other)}. Leave it out.")
        lines = read_metrics(run.metrics_file)
        for phase, name in CHIEF.items():
            known = [line for line in lines if line["phase"] == phase and name in line]
            if not known or known[-1]["step"] < getattr(config.train, phase).steps:
                continue
            steps = np.array([line["step"] for line in known])
            values = np.array([np.atleast_1d(line[name]) for line in known], np.float64)
            # The first of the lines comes when the first steps are done, compilation included.
            minutes = (known[-1]["time"] - known[0]["time"]) / 60 * steps[-1] / max(steps[-1] - steps[0], 1)
            for one in values.T:
                found.setdefault(config.preset, {}).setdefault(phase, []).append((steps, one, minutes))
    files = []
    for preset, phases in found.items():
        told = {"preset": preset, "written_at": source_commit(), "device": device()}
        told["phases"] = {phase: _band(phase, runs) for phase, runs in phases.items()}
        files.append(out / f"{preset}.json")
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(files[-1], (json.dumps(told) + "\n").encode())
    return files


def _band(phase: str, runs: Sequence[tuple[np.ndarray, np.ndarray, float]]) -> dict[str, Any]:
    steps = runs[0][0]
    if any(not np.array_equal(steps, other) for other, _, _ in runs):
        raise InputError(f"curves: runs were logged at other steps in the phase {phase}. Leave some out.")
    values, minutes = np.stack([one for _, one, _ in runs]), [one for _, _, one in runs]
    each = {"low": values.min(0), "mean": values.mean(0), "high": values.max(0)}
    digits = {name: [float(f"{x:.4g}") for x in row] for name, row in each.items()}
    ends = [round(min(minutes), 2), round(max(minutes), 2)]
    return {"metric": CHIEF[phase], "runs": len(runs), "minutes": ends, "steps": steps.tolist(), **digits}
