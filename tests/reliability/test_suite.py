"""The table of promises: what is compared, and what is written. The rows themselves are run by the command alone."""

import hashlib
import json
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training import golden

from dreamer4 import data
from dreamer4.config import load
from dreamer4.data import DeviceSource
from dreamer4.dreamer import PHASES
from dreamer4.errors import InputError
from dreamer4.run.folder import RunFolder
from dreamer4.run.metrics import MetricLog
from dreamer4.training import stream
from dreamer4.training.loop import step_keys
from tests.reliability import endurance
from tests.reliability import suite as reliability
from tests.reliability.lab import Lab, Result, batches


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


def test_a_lab_of_short_runs_has_a_reference_of_its_own(lab):
    short = lab.short(12, first=True)
    assert (short.phases, short.train[1], short.compile_cache) == (PHASES[:1], PHASES[0], lab.compile_cache)
    assert lab.place in short.place.parents and "train.tokenizer.steps=12" in short.settings()
    assert lab.short(6, first=False).train[1] == "all"


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
    assert told["level"] == "quick" and "jax" in told["versions"] and told["device"]
    assert all(row["commit"] for row in told["rows"].values())
    assert "NO" in capsys.readouterr().out
    assert not paths["place"].exists()
    # What is there is not done again, and what was made by others is not touched.
    rows["good"] = rows["bad"] = None
    rows["new"] = lambda lab: Result("2 of 2", "all", True)
    reliability.reliability((), quick=True, **paths)
    again = json.loads(paths["out"].read_text())
    assert list(again["rows"]) == ["good", "bad", "new"] and again["rows"]["bad"] == told["rows"]["bad"]
    for content in (json.dumps(told | {"device": "another"}), "[1", "[]"):
        paths["out"].write_text(content)
        with pytest.raises(InputError, match="another level"):
            reliability.reliability((), quick=True, **paths)
        assert paths["out"].read_text() == content
    with pytest.raises(InputError, match="Did you mean good"):
        reliability.reliability(("god",), quick=True, **paths)


def test_the_batches_of_steps_are_those_of_the_training_loop(tmp_path):
    config = load("tiny", overrides=["train.agent.steps=3"])
    run = RunFolder(tmp_path / "run")
    run.open(config, resume=False)
    spec, made = golden.SPEC, golden.episodes()
    data.write_dataset(run.data, made, spec=spec, environment={"id": "x"}, policy="random", seed=0, held_out=0.3)
    drawn = batches(run.path, "agent", 1, 3)
    assert drawn[1:] == batches(run.path, "agent", 2, 3) and len(set(drawn)) == 3
    source = DeviceSource.from_episodes(data.read_episodes(run.data, "train"))
    seen = []

    for step in range(3):
        key, _ = step_keys(stream(0, "agent"), step)
        batch = source.sample(config.train.agent.batch_size, config.train.agent.length, key=key)
        seen.append(hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(batch))).hexdigest())
    assert seen == drawn


@pytest.mark.parametrize(("last", "growth"), [(100, 0.0), (103, 0.03), (97, -0.03)])
def test_memory_grows_from_the_first_quarter_to_the_last(last, growth):
    assert endurance.growth_of([100, 100, 7, 8, 9, 100, last, last]) == pytest.approx(growth)
    with pytest.raises(RuntimeError, match="too few"):
        endurance.growth_of([1] * 7)


def test_memory_of_a_process_is_read_while_it_trains(tmp_path):
    log = tmp_path / "metrics.jsonl"
    script = (
        "import sys, time, pathlib; log = pathlib.Path(sys.argv[1]); kept = []\n"
        "for step in range(1, 41):\n"
        "    kept.append(bytearray(b'x' * 2_000_000 * (len(sys.argv) > 2)))\n"
        '    log.open(\'a\').write(\'{"phase": "agent", "step": %d}\\n\' % step); time.sleep(0.15)'
    )
    for grows in ([], ["grows"]):
        process = subprocess.Popen([sys.executable, "-c", script, str(log), *grows])
        told = endurance.watched(process, tmp_path, ("agent",), 40)
        assert told["ok"] == (not grows), told
        log.unlink()
