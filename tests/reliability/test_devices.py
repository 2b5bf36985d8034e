"""How far a run has moved from another is told in the right measure; the rows themselves the command runs alone."""

import os

import jax.numpy as jnp
import numpy as np
import pytest

from dreamer4.config import load
from dreamer4.dreamer import PHASES
from dreamer4.run.folder import RunFolder
from dreamer4.run.metrics import MetricLog, read_metrics
from tests.reliability import devices
from tests.reliability.devices import Place, checkpoint_of, virtual
from tests.reliability.lab import Lab


WEIGHTS = {"dynamics": 1.0, "cloning": 0.5}


@pytest.fixture
def place(tmp_path):
    """A place whose reference was trained by nobody."""
    place = Place(Lab(tmp_path, quick=True, compile_cache=tmp_path / "compiled"))
    write(tmp_path / "devices", place.steps)
    return place


def write(path, steps, factor=1.0, weight=1.0):
    run, log = RunFolder(path), MetricLog(path / "metrics.jsonl")
    run.open(load("tiny"))
    for phase in PHASES:
        for step in range(1, steps + 1):
            terms = {"dynamics": 1.0 / step, "cloning": 2.0 * factor}
            log.append(phase, step, terms | {"gradient_norm": 3.0})
        for step in (steps // 2, steps):
            run.checkpoints(phase).save(step, {"model": {"a": jnp.full(2, weight), "b": jnp.zeros(())}}, {})


def test_a_run_begins_anew_where_it_is_asked_to(place):
    run = place.begun("agent", step=25)
    assert [run.checkpoints(phase).steps() for phase in PHASES] == [[25, 50], [25, 50], [25], []]
    told = [(line["phase"], line["step"]) for line in read_metrics(run.metrics_file)]
    assert [step for phase, step in told if phase == "agent"] == list(range(1, 26))
    assert {phase for phase, _ in told} == set(PHASES) - {"imagination"}


def test_losses_are_weighted_sums_and_their_terms(place, tmp_path):
    write(tmp_path / "other", place.steps, factor=1.5)
    one, two = (devices._losses(tmp_path / name, "agent", WEIGHTS) for name in ("devices", "other"))
    np.testing.assert_allclose(one[3], [0.25 + 1.0, 0.25, 2.0, 3.0])
    np.testing.assert_allclose(two[3], [0.25 + 1.5, 0.25, 3.0, 3.0])


def test_weights_are_read_by_name(place, tmp_path):
    write(tmp_path / "other", place.steps, weight=1.25)
    ends = [checkpoint_of(tmp_path / name, "dynamics", place.steps) for name in ("devices", "other")]
    assert [float(np.abs(a - b).max()) for a, b in zip(*ends, strict=True)] == [0.25, 0.0]


def test_the_distance_of_gradients_is_of_their_whole_norm():
    one, two = [np.array([3.0, 0.0]), np.array([4.0])], [np.array([3.0, 0.5]), np.array([4.0])]
    assert devices._distance(two, one) == pytest.approx(0.1)


def test_virtual_devices_are_of_the_processes_started_within(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--one")
    with virtual(4):
        assert os.environ["XLA_FLAGS"] == "--one --xla_force_host_platform_device_count=4"
    assert os.environ["XLA_FLAGS"] == "--one"
    monkeypatch.delenv("XLA_FLAGS")
    with virtual(2):
        assert os.environ["XLA_FLAGS"] == "--xla_force_host_platform_device_count=2"
    assert "XLA_FLAGS" not in os.environ
