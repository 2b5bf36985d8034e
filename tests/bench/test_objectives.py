"""The script that trains imagination again with other settings in the world models of the ledger."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import objectives
from benchmarks.ledger import Entry, write_entry


SETTING = "imagination.objective.beta=0.1"


@pytest.fixture
def script(tmp_path, monkeypatch):
    """The script, with results and runs in a temporary folder."""
    monkeypatch.setattr(objectives, "RESULTS", tmp_path)
    monkeypatch.setattr(objectives, "FILE", tmp_path / "objectives.json")
    (tmp_path / "objectives.json").write_text("[]\n")
    monkeypatch.setattr(sys, "argv", ["objectives.py", "tiny", "--set", SETTING, "--seeds", "2"])
    monkeypatch.chdir(tmp_path)
    return objectives


def trained(seeds):
    for seed in seeds:
        folder = Path("runs/bench/tiny/dreamer") / f"seed{seed}"
        folder.mkdir(parents=True)
        (folder / "unit.json").write_text("{}")


def imagine_again(plan, seeds, folder, *, method, settings):
    assert (method, settings) == ("imagination", [SETTING])
    unit = {key: {method: value + seeds[0]} for key, value in (("returns", 1.0), ("by_mode", 2.0), ("minutes", 3.0))}
    return [unit | {"data": "abc"}]


def test_a_seed_that_is_done_is_not_run_again_and_a_variant_is_told_once(script, monkeypatch, capsys):
    trained([0, 1])
    asked = []

    def once(plan, seeds, folder, **more):
        asked.append(seeds)
        if asked == [(0,), (1,)]:
            raise KeyboardInterrupt
        return imagine_again(plan, seeds, folder, **more)

    monkeypatch.setattr(script.units, "imagine_again", once)
    with pytest.raises(KeyboardInterrupt):
        script.main()
    assert script.FILE.read_text() == "[]\n"
    script.main()
    script.main()
    assert asked == [(0,), (1,), (1,)]
    (result,) = json.loads(script.FILE.read_text())
    assert (result["returns"], result["by_mode"], result["minutes"]) == ([1.0, 2.0], [2.0, 3.0], [3.0, 4.0])
    assert result["command"] == f"python -m benchmarks.objectives tiny --set {SETTING}"
    assert "| tiny | beta=0.1 | 1.5 (1.0 to 2.0) | - | 2.5 (2.0 to 3.0) | - |" in capsys.readouterr().out


def test_agents_that_do_not_exist_are_asked_for_before_others_train(script, monkeypatch, capsys):
    trained([0])
    monkeypatch.setattr(script.units, "record", lambda *_: pytest.fail("trained beside a missing agent"))
    with pytest.raises(SystemExit) as stopped:
        script.main()
    assert stopped.value.code == 2
    assert "benchmarks results tiny --only dreamer" in capsys.readouterr().err


@pytest.mark.parametrize(("commit", "shown"), [("abc", "-1.0 (-1.0 to -1.0)"), ("def", "-")])
def test_only_policies_of_the_same_world_models_are_compared(script, tmp_path, commit, shown):
    held = Entry(
        benchmark="tiny", env="Catch-bsuite", method="imagination", seeds=(0, 1), returns=(2.0, 3.0),
        by_mode=(3.0, 4.0), episodes=16, evaluation_seed=0, minutes=(1.0, 1.0), device="d", commit="abc",
        command="c", data="f",
    )  # fmt: skip
    write_entry(tmp_path, held)
    result = {
        "benchmark": "tiny", "settings": [SETTING], "seeds": [0, 1], "returns": [1.0, 2.0], "by_mode": [2.0, 3.0],
        "data": "f", "commit": commit, "device": "d",
    }  # fmt: skip
    assert f"| beta=0.1 | 1.5 (1.0 to 2.0) | {shown} | 2.5 (2.0 to 3.0) | {shown} |" in script.table([result])
