"""Devices change where things lie and nothing else; four virtual ones are tried in a process of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from dreamer4.config import MeshConfig
from dreamer4.errors import InputError
from dreamer4.training.placement import _layout, build_mesh


TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """What `devices.py` found out."""
    script = [sys.executable, str(TESTS / "training" / "devices.py"), str(tmp_path_factory.mktemp("restored"))]
    path = os.pathsep.join([str(TESTS), *sys.path])
    done = subprocess.run(
        script, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_batches_are_those_of_one_device(four):
    assert len(four["batches"]) == 4 and all(all(batch) for batch in four["batches"])


def test_a_state_is_restored_bitwise_on_other_devices(four):
    assert four["restores"]["equal"] == [True] * 4
    # Devices that a weight's moment lies on, and parts that it lies in.
    assert four["restores"]["layouts"] == [[2, 1], [1, 1], [4, 4]]
    assert four["restores"]["home"]


def test_training_on_four_devices_is_training_on_one(four):
    one, split = (np.array(losses) for losses in four["losses"])
    assert np.all(np.abs(split - one) <= 1e-6 * np.abs(one)) and np.all(np.diff(one[:, 0]) != 0)
    assert four["weights"] < 1e-5
    assert four["optimiser"][1] < 0.6 * four["optimiser"][0]  # of two devices, each has half, but for what is small


def test_a_step_on_devices_is_compiled_once(four):
    assert four["compiled"] == 0


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((), P()),
        ((64,), P()),  # small
        ((4096,), P("fsdp")),
        ((2, 64, 128), P(None, None, "fsdp")),
        ((2, 128, 64), P(None, "fsdp")),
        ((2, 64, 64), P(None, None, "fsdp")),  # of equally long axes the last
        ((64, 65), P("fsdp")),  # the longest does not divide
        ((63, 65), P()),
    ],
)
def test_the_longest_axis_that_divides_is_split(shape, expected):
    mesh = AbstractMesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    assert _layout(shape, mesh).spec == expected
    alone = AbstractMesh((8, 1), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    assert _layout(shape, alone).spec == P()


def test_one_device_needs_no_mesh():
    assert build_mesh(MeshConfig()) is None


def test_more_devices_than_there_are_are_refused():
    count = jax.device_count()
    with pytest.raises(InputError, match=rf"train\.mesh.*asks for {count * 2} devices.*there are {count}\."):
        build_mesh(MeshConfig(data=count, fsdp=2))
