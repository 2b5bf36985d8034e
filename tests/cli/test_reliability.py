"""The table of promises: what is compared, and what is written. The rows themselves are run by the command alone."""

import json
import shutil

import jax.numpy as jnp
import pytest

from dreamer4.dreamer import PHASES
from dreamer4.errors import InputError
from dreamer4.training.folder import RunFolder
from dreamer4.training.metrics import MetricLog
from dreamer4_cli import reliability
from dreamer4_cli.reliability import Lab, Result


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A lab whose reference was trained by nobody."""
    place = tmp_path_factory.mktemp("lab")
    lab = Lab(place, quick=True, compile_cache=place / "compiled")
    lab.phases = PHASES
    write(lab, lab.place / "reference", saved=(2, 4, 6))
    return lab


def write(lab, path, weight=1.0, saved=(6,)):
    run, log = RunFolder(path), MetricLog(path / "metrics.jsonl")
    for phase in PHASES:
        for step in range(1, lab.steps + 1):
            log.append(phase, step, {"loss": weight / step})
            if step in saved:
                run.checkpoints(phase).save(step, {"weight": jnp.full(2, weight)}, {"phase": phase})


def test_equal_runs_have_no_differences(lab, tmp_path):
    assert lab.differences(shutil.copytree(lab.reference(), tmp_path / "same")) == []


def test_a_bit_of_a_weight_or_of_a_metric_is_a_difference(lab, tmp_path):
    write(lab, tmp_path / "other", weight=1.0 + 2**-23)
    found = lab.differences(tmp_path / "other")
    assert [f"{phase}: weight" in found for phase in PHASES] == [True] * 4
    assert "metrics of ('agent', 1)" in found


def test_an_end_that_is_missing_is_a_difference(lab):
    path = lab.copy(phase="agent", step=2)
    assert RunFolder(path).checkpoints("agent").steps() == [2]
    assert RunFolder(path).checkpoints("imagination").steps() == []
    assert RunFolder(path).checkpoints("dynamics").steps() == [2, 4, 6]
    assert "agent: weight" in lab.differences(path)


def test_what_a_kill_costs_is_counted_from_the_last_whole_checkpoint(lab):
    path = lab.copy(phase="imagination", step=4)
    assert reliability._lost(path) == [2]
    manifest = RunFolder(path).checkpoints("imagination").path(4) / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:-1])
    assert reliability._lost(path) == [4]


def test_the_table_is_one_file_that_is_never_overwritten(tmp_path, monkeypatch, capsys):
    rows = {"good": lambda lab: Result("1 of 1", "all", True), "bad": lambda lab: Result("0 of 1", "all", False, ["x"])}
    monkeypatch.setattr(reliability, "ROWS", rows)
    paths = {"out": tmp_path / "new" / "table.json", "place": tmp_path / "work"}
    reliability.reliability((), quick=True, **paths)
    told = json.loads(paths["out"].read_text())
    assert {name: row["ok"] for name, row in told["rows"].items()} == {"good": True, "bad": False}
    assert told["level"] == "quick" and "jax" in told["versions"] and told["commit"] and told["device"]
    assert "NO" in capsys.readouterr().out
    assert not paths["place"].exists()
    with pytest.raises(InputError, match="never overwritten"):
        reliability.reliability((), quick=True, **paths)
    with pytest.raises(InputError, match="Did you mean good"):
        reliability.reliability(("god",), quick=True, **paths)
