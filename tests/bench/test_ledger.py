"""The ledger: what is stored, what is computed from it, and what a reader sees."""

import json

import numpy as np
import pytest

from benchmarks.ledger import (
    METHODS,
    Entry,
    data_sets,
    improvement,
    markdown,
    page,
    read_entries,
    rows,
    write_entry,
)
from dreamer4.errors import InputError
from dreamer4.evaluation import interval, iqm


def entry(method, returns, **changes):
    facts = {
        "benchmark": "catch",
        "env": "Catch-bsuite",
        "method": method,
        "seeds": tuple(range(len(returns))),
        "returns": tuple(returns),
        "episodes": 500,
        "evaluation_seed": 0,
        "minutes": (2.0,) * len(returns),
        "device": "2 CPU cores",
        "commit": "abc1234",
        "command": "python -m benchmarks results catch",
    }
    return Entry(**facts | changes)


def test_what_is_written_is_read_and_replaced(tmp_path):
    first, second = entry("ppo", [0.5, 0.7]), entry("ppo", [0.5, 0.7, 0.9])
    for written in (first, second):
        file = write_entry(tmp_path, written)
    assert file == tmp_path / "catch" / "ppo.json"
    assert read_entries(tmp_path, "catch") == {"ppo": second}
    assert [f.name for f in file.parent.iterdir()] == ["ppo.json"]


def test_the_table_has_every_method_and_says_what_was_not_run(tmp_path):
    values = [0.1, 0.2, 0.6, 0.7, 0.9]
    ours = entry("imagination", values, by_mode=(0.5, 0.7, 0.9, 1.1, 0.8))
    table = rows({"imagination": ours, "random": entry("random", [-0.6], minutes=(0.0,))})
    others = {METHODS["pmpo"], METHODS["policy_gradient"]}
    assert [row[0] for row in table if "objective" not in row[0]] == [n for n in METHODS.values() if n not in others]
    by_name = {row[0]: row[1:] for row in table}
    low, high = interval(np.array(values))
    assert by_name[METHODS["imagination"]] == (
        "+0.500",
        f"{low:+.3f} to {high:+.3f}",
        f"{iqm(np.array(values)):+.3f}",
        "+0.800",
        "5",
        "2.0",
        "2 CPU cores",
        "abc1234",
    )
    assert by_name[METHODS["random"]] == ("-0.600", "-", "-", "-", "1", "-", "2 CPU cores", "abc1234")
    assert by_name[METHODS["ppo"]][0] == by_name["the same with the other policy objective"][0] == "not run"


def test_of_the_other_objectives_that_which_ran_has_a_row():
    names = [row[0] for row in rows({"policy_gradient": entry("policy_gradient", [0.1])})]
    assert METHODS["policy_gradient"] in names and METHODS["pmpo"] not in names
    assert "the same with the other policy objective" not in names


def test_improvement_pairs_equal_seeds():
    cloned = entry("world_model_cloning", [0.0, 10.0, 20.0])
    better = entry("imagination", [21.0, 1.0, 12.0], seeds=(2, 0, 1))
    mean, low, high = improvement({"world_model_cloning": cloned, "imagination": better})
    assert mean == pytest.approx(4 / 3)
    assert 1.0 <= low <= mean <= high <= 2.0
    assert improvement({"imagination": better}) is None
    alone = entry("imagination", [1.0], seeds=(2,))
    assert improvement({"world_model_cloning": cloned, "imagination": alone}) is None


def test_markdown_names_command_commit_and_device():
    text = markdown({"catch": {"ppo": entry("ppo", [0.5, 0.7])}, "freeway": {}})
    assert "`python -m benchmarks results catch`" in text
    assert all(
        word in text for word in ("abc1234", "2 CPU cores", "500 episodes", "| PPO, online, model-free | +0.600 |")
    )
    assert "Not run. Command: `python -m benchmarks results freeway`." in text


def test_commands_are_told_once_each():
    both = "python -m benchmarks results catch, python -m benchmarks results catch --together"
    text = markdown({"catch": {"ppo": entry("ppo", [0.5]), "cloning": entry("cloning", [0.5], command=both)}})
    assert text.count("`python -m benchmarks results catch`") == text.count("catch --together`") == 1


def test_rows_of_different_data_sets_are_told_apart():
    ours, other = entry("imagination", [0.5], data="a" * 64), entry("cloning", [0.5], data="b" * 64)
    alike = {"imagination": ours, "ppo": entry("ppo", [0.5])}
    assert data_sets(alike) == "" and "different data sets" not in markdown({"catch": alike})
    told = f"{METHODS['imagination']} (aaaaaaaa); {METHODS['cloning']} (bbbbbbbb)."
    assert told in page({"catch": alike | {"cloning": other}})


@pytest.mark.parametrize("change", [{"returns": "many"}, {"surprise": 1}, {"schema_version": 99}])
def test_a_file_that_is_no_entry_is_refused(tmp_path, change):
    file = write_entry(tmp_path, entry("ppo", [0.5]))
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputError, match=r"ppo\.json"):
        read_entries(tmp_path, "catch")
