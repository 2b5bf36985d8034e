"""`dreamer4 baseline offline`: one table of what a data set allows without a world model."""

import json

import pytest
from typer.testing import CliRunner

from dreamer4.config import load
from dreamer4_cli import run
from dreamer4_cli.app import app


QUICK = "offline={hidden: 8, batch_size: 16, every: 5, patience: 1, max_steps: 5, value_steps: 5}"


@pytest.fixture(scope="module")
def sticky(tmp_path_factory):
    """A small data set of sticky Catch."""
    folder = tmp_path_factory.mktemp("sticky")
    run.collect(load("tiny", overrides=["env.sticky_actions=0.25"]), folder / "data")
    return folder / "data"


def offline(*arguments):
    return CliRunner().invoke(app, ["baseline", "offline", *map(str, arguments)])


def test_the_table_holds_every_method_both_ways_and_what_it_took(sticky, tmp_path):
    out = tmp_path / "table.json"
    given = ("--data", sticky, "--episodes", 8, "--entropy", 0.5, "--set", QUICK, "--out", out, "--seeds", 2)
    result = offline("clone", "cql", *given)
    assert result.exit_code == 0, result.output
    told = json.loads(out.read_text())
    assert [row["name"] for row in told["baselines"]] == ["clone", "clone, tempered", "cql"]
    assert told["env"]["sticky_actions"] == 0.25, "it must be played in the world that the data is of"
    for row in told["baselines"]:
        assert [len(row[key]) for key in ("sampled", "greedy", "steps", "held_out")] == [2] * 4
        assert {r["episodes"] for r in row["sampled"] + row["greedy"]} == {8}
        assert row["steps"] == [[5, 5], [5, 5]]
    assert told["baselines"][0]["held_out"][0] > 0 and told["baselines"][2]["held_out"] == [None, None]
    assert told["settings"]["hidden"] == 8
    # Greedy play has no temperature, so the same clone plays the same games.
    assert told["baselines"][0]["greedy"] == told["baselines"][1]["greedy"]
    again = offline("clone", *given)
    assert again.exit_code == 2 and "never overwritten" in again.output


def test_what_makes_no_table_is_refused(sticky, tmp_path):
    for arguments, match in (
        (("--episodes", 8), "expected one of --data SET and --run RUN"),
        (("clones", "--data", sticky, "--out", tmp_path / "x.json"), "unknown 'clones'"),
        (("clone", "--data", sticky, "--out", tmp_path / "x.json", "--set", "env.id=Breakout-MinAtar"), "looks like"),
    ):
        result = offline(*arguments)
        assert result.exit_code == 2 and match in " ".join(result.output.split()), result.output
    assert not (tmp_path / "x.json").exists()
