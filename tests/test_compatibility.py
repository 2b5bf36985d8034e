"""What an earlier version wrote is read by this one, and means the same.

A failure here is never mended by making the fixtures again: this version then reads, computes or names something in
another way, and people's files with it.
"""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from fixtures.make import PHASE, outputs, state_template

from dreamer4 import Dreamer, checkpoint, data
from dreamer4.dreamer import find_checkpoint, read_description
from dreamer4.training.state import ADDED, TrainState


VERSIONS = sorted(path for path in (Path(__file__).parent / "fixtures").iterdir() if path.name.startswith("v"))
# The order of float32 sums is the compiler's choice, so another JAX may differ in the last of its seven digits.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture(params=VERSIONS, ids=lambda path: path.name)
def version(request):
    return request.param


def test_there_is_a_fixture_of_this_schema():
    assert f"v{checkpoint.SCHEMA}" in {path.name for path in VERSIONS}


@pytest.mark.parametrize("kind", ["run", "exported"])
def test_an_agent_answers_as_it_did(version, kind):
    wanted = json.loads((version / "outputs.json").read_text())["agent"]
    answers = outputs(Dreamer.load(version / kind))
    assert set(answers) == set(wanted)
    for name, answer in answers.items():
        np.testing.assert_allclose(answer, np.array(wanted[name], np.float32), **TOLERANCE, err_msg=name)


def test_a_training_state_is_resumed(version):
    step = find_checkpoint(version / "run")
    assert checkpoint.verify(step) == []
    like = state_template(*read_description(step))
    state = checkpoint.load(step, like, added=ADDED)
    assert isinstance(state, TrainState)
    assert isinstance(state.step, jax.Array)
    assert isinstance(state.guard.recent, jax.Array) or state.guard == like.guard  # before there were guards: as given
    assert checkpoint.read_meta(step)["phase"] == PHASE


def test_episodes_are_what_they_were(version):
    wanted = json.loads((version / "outputs.json").read_text())
    assert data.check(version / "data") == []
    assert data.read_info(version / "data").fingerprint == wanted["fingerprint"]
    assert [episode.total for episode in data.read_episodes(version / "data")] == pytest.approx(wanted["returns"])
