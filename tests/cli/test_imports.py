"""`dreamer4 data import`: what its options hand to the library, and what it refuses."""

import numpy as np
import pytest
from typer.testing import CliRunner

from dreamer4.config import load
from dreamer4.data import read_episodes, read_info
from dreamer4.errors import InputError
from dreamer4.run import sizes
from dreamer4.types import ActionSpec, DataSpec
from dreamer4_cli.app import app
from dreamer4_cli.imports import parse_actions, parse_bounds, parse_size


def invoke(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args], env={"NO_COLOR": "1", "TERM": "dumb"})


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "mine"
    path.mkdir()
    for number in range(4):
        frame, rows = np.full((5, 4, 4), number, np.uint8), np.linspace([0.0], [5.0], 5)
        np.savez(path / f"{number}.npz", frame=frame, action=[1, 2, 0, 0, 0], continuous=rows)
    return path


def test_the_options_reach_the_data_set(source, tmp_path):
    out = tmp_path / "out"
    line = "--action-timing taken-at --actions 4,continuous:1 --bounds 0:5 --size 2x8 --held-out 0.5 --seed 3"
    done = invoke("data", "import", source, "--out", out, *line.split())
    assert done.exit_code == 0, done.output
    assert "import: 4/4 episodes" in done.stdout
    assert "4 episodes (2 held out), 20 frames of (2, 8, 1)" in done.stdout
    info = read_info(out)
    assert (info.spec.action, info.seed) == (ActionSpec((4,), 1), 3)
    episode = read_episodes(out)[0]
    np.testing.assert_array_equal(episode.discrete[:, 0], [0, 1, 2, 0, 0])
    np.testing.assert_allclose(episode.continuous[1:, 0], [-1, -0.5, 0, 0.5], atol=1e-6)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "--out"),
        ("--out out --action-timing sometimes", "--action-timing"),
        ("--out out --actions three", "--actions: got 'three'"),
        ("--out out --actions 1", "num_classes=1, expected a whole number of at least 2"),
        ("--out out --bounds 3:1", "--bounds: got '3:1'"),
        ("--out out --size 64", "--size: got '64'"),
        ("--out out --size 0x4", "expected a height and a width"),
        ("--out out --bounds 0:5 --held-out 1", "expected a share"),
        ("--out out", "0.npz: continuous is 1.25 at frame 1"),
        ("--out mine --bounds 0:5", "never overwritten"),
    ],
)
def test_a_bad_command_line_ends_in_one_message_and_writes_nothing(source, tmp_path, monkeypatch, line, words):
    monkeypatch.chdir(tmp_path)
    done = invoke("data", "import", "mine", *line.split())
    assert done.exit_code == 2, done.output
    assert words in done.stderr
    assert "Traceback" not in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_actions_bounds_and_sizes_are_read():
    assert parse_actions("3") == ActionSpec((3,))
    assert parse_actions("2, 5,continuous:2") == ActionSpec((2, 5), 2)
    assert parse_actions("continuous:6") == ActionSpec((), 6)
    assert parse_bounds("-2:2") == [(-2.0, 2.0)]
    assert parse_bounds("-1:1,0:1e3") == [(-1.0, 1.0), (0.0, 1000.0)]
    assert parse_size("64x96") == (64, 96)


@pytest.mark.parametrize("text", ["", ",", "3,", "-3", "3.5", "discrete:3", "continuous", "9999999"])
def test_actions_of_another_form_are_refused(text):
    with pytest.raises(InputError, match="--actions: got"):
        parse_actions(text)


@pytest.mark.parametrize("text", ["", "1", "1:1", "0:nan", "-inf:0", "0:1:2", "0:1,"])
def test_bounds_of_another_form_are_refused(text):
    with pytest.raises(InputError, match="--bounds: got"):
        parse_bounds(text)


@pytest.mark.parametrize("env", ["Mine", "Catch-bsuite"])  # as whoever imports may call it, and what it is called else
def test_who_evaluates_an_agent_of_recordings_is_told_what_can_be_done(env):
    with pytest.raises(InputError, match="dreamer4 evaluate RUN --world-model measures it") as caught:
        sizes.worlds(load("tiny", env=env), DataSpec((8, 8, 3), ActionSpec((3,))))
    assert "Acrobot" not in str(caught.value)
