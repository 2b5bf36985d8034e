"""Expected curves: mean and range over runs of a preset, and of nothing else."""

import json

import pytest

from benchmarks.curves import curves
from dreamer4.config import load, to_yaml
from dreamer4.errors import InputError


def run(place, values, *overrides, seed=0):
    place.mkdir()
    (place / "config.yaml").write_text(to_yaml(load("tiny", overrides=list(overrides), seed=seed)))
    lines = [
        {"phase": "tokenizer", "step": step, "time": 60.0 * step, "mse": mse}
        for step, mse in zip((2, 4), values, strict=False)
    ]
    (place / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return place


def test_mean_and_range_over_finished_runs_of_a_preset(tmp_path):
    runs = [run(tmp_path / "a", (3.0, 1.0)), run(tmp_path / "b", (5.0, 2.0), seed=1), run(tmp_path / "c", (9.0,))]
    (file,) = curves(runs, tmp_path / "out")
    told = json.loads(file.read_text())["phases"]
    assert file.name == "tiny.json" and set(told) == {"tokenizer"}
    band = {name: told["tokenizer"][name] for name in ("steps", "low", "mean", "high", "runs", "minutes")}
    assert band == {"steps": [2, 4], "low": [3, 1], "mean": [4, 1.5], "high": [5, 2], "runs": 2, "minutes": [4, 4]}


def test_a_run_of_other_settings_is_refused(tmp_path):
    other = run(tmp_path / "a", (3.0, 1.0), "train.tokenizer.batch_size=7")
    with pytest.raises(InputError, match="no run of the preset tiny: train.tokenizer.batch_size: 7 -> 4"):
        curves([other], tmp_path / "out")
