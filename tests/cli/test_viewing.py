"""Films of dreams, lists of runs, pages of runs, on the agent that every version must still read."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from dreamer4 import data
from dreamer4.config import Config, to_yaml
from dreamer4.dreamer import read_description
from dreamer4.errors import InputError
from dreamer4.run import offline, pages, world_model
from dreamer4.serving import film
from dreamer4.sharing import export_agent
from dreamer4.types import ActionSpec
from dreamer4_cli import console, describe, imports, listing, share
from dreamer4_cli.app import app


FIXTURE = Path(__file__).parents[1] / "fixtures" / "v1"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder around the checkpoint, with its data set, a metric log and results."""
    path = tmp_path_factory.mktemp("runs") / "first"
    shutil.copytree(FIXTURE / "run", path)
    shutil.copytree(FIXTURE / "data", path / "data")
    config, _ = read_description(path / "checkpoints" / "imagination" / "2")
    (path / "config.yaml").write_text(to_yaml(config))
    (path / "metrics.jsonl").write_text('{"phase": "agent", "step": 2, "time": 0.0, "loss": 0.5}\n')
    row = {"mean": 0.25, "low": 0.125, "high": 0.5, "episodes": 10}
    results = {"returns": {"imagination": row}, "world_model": {"exact_frames": {"2": [1.0, 0.5]}}, "minutes": 1.0}
    (path / "results.json").write_text(json.dumps(results))
    return path


SPEC = ActionSpec((3, 2), 1)


def test_a_list_of_actions_is_read_with_its_repeats_and_components():
    actions = film.parse_actions("2:0:-0.5, 1:1:1x2", SPEC)
    np.testing.assert_array_equal(actions.discrete, [[2, 0], [1, 1], [1, 1]])
    np.testing.assert_array_equal(actions.continuous, [[-0.5], [1.0], [1.0]])
    assert film.parse_actions("0,2x3", ActionSpec((3,))).discrete.tolist() == [[0], [2], [2], [2]]


@pytest.mark.parametrize(
    "text",
    ["", "1", "3:0:0", "0:0:1.5", "0:0:nan", "0:0:0x0", "0:0:0x99999", "a:0:0", "0:0:0,", "-1:0:0", "0:0:0:0", "polcy"],
)
def test_what_is_no_action_is_refused(text):
    with pytest.raises(InputError, match="0 to 2 : 0 to 1 : -1 to 1"):
        film.parse_actions(text, SPEC)


FILM = {"episode": 0, "context": 1, "length": None, "num_steps": None, "seed": 0, "fps": 5.0}


@pytest.mark.parametrize("actions", ["policy", "data", "none"])
def test_a_film_has_the_context_and_the_dream(run, tmp_path, actions):
    out = tmp_path / "film.gif"
    told = film.write_film(run, out, actions=actions, **FILM)
    with Image.open(out) as made:
        assert 2 <= made.n_frames <= 5
        assert (made.width > 2 * made.height) == (actions == "data"), "the truth stands beside it"
        count = made.n_frames
    assert f"within {count - 1}" in told or f"after {count - 1}" in told
    assert [file.name for file in tmp_path.iterdir()] == ["film.gif"]


def test_a_world_model_without_heads_dreams_under_any_actions_but_its_policys(run, tmp_path, monkeypatch):
    meta = film.checkpoint.read_meta
    monkeypatch.setattr(film.checkpoint, "read_meta", lambda step: {**meta(step), "phase": "dynamics"})
    with pytest.raises(InputError, match="no policy yet. Give --actions data, none"):
        film.write_film(run, tmp_path / "film.gif", **FILM)
    told = film.write_film(run, tmp_path / "film.gif", actions="none", **{**FILM, "length": 6})
    assert "then 6 dreamt" in told
    with Image.open(tmp_path / "film.gif") as made:
        assert made.n_frames == 7


def test_an_exported_agent_dreams_on_from_the_episodes_that_came_with_it_or_are_given(run, tmp_path):
    alone, full = tmp_path / "alone", tmp_path / "full"
    for out, starts in ((alone, 0), (full, 1)):
        export_agent(run, out, starts=starts)
    film.write_film(full, tmp_path / "a.gif", actions="random", **FILM)
    with pytest.raises(InputError, match=r"Give the data set"):
        film.write_film(alone, tmp_path / "b.gif", actions="random", **FILM)
    film.write_film(alone, tmp_path / "b.gif", actions="random", **FILM, dataset=run / "data")
    assert (tmp_path / "a.gif").read_bytes() == (tmp_path / "b.gif").read_bytes()


def test_an_export_shows_a_dream_beside_the_truth(run, tmp_path, monkeypatch):
    monkeypatch.setattr(share.importlib.util, "find_spec", lambda name: None)  # without PyAV
    share.export(run, tmp_path / "out", member=0, starts=0, license="mit")
    with Image.open(tmp_path / "out" / "replay.gif") as film:
        assert film.n_frames >= 2
    assert "](replay.gif)" in (tmp_path / "out" / "README.md").read_text()


def test_data_have_no_precision_to_be_exported_in(run, tmp_path):
    with pytest.raises(InputError, match=r"--dtype float16: it is for an agent's weights"):
        share.export(run / "data", tmp_path / "out", member=0, starts=0, license="mit", dtype="float16")
    assert not (tmp_path / "out").exists()


def test_a_run_whose_data_set_was_exchanged_dreams_no_more(run, tmp_path):
    other = tmp_path / "run"
    shutil.copytree(run, other)
    shutil.rmtree(other / "data")
    info, episodes = data.read_info(run / "data"), data.read_episodes(run / "data")
    about = {"environment": info.environment, "policy": info.policy, "seed": 0}
    data.write_dataset(other / "data", episodes[::-1], spec=info.spec, **about)
    with pytest.raises(InputError, match="is not the data set that .* was trained on"):
        film.write_film(other, tmp_path / "film.gif", actions="random", **FILM)


def test_the_same_seed_makes_the_same_film_and_another_name_an_mp4(run, tmp_path):
    pytest.importorskip("av")
    for name in ("a.gif", "b.gif", "c.mp4"):
        film.write_film(run, tmp_path / name, actions="2:0.5:-1x2", **FILM)
    assert (tmp_path / "a.gif").read_bytes() == (tmp_path / "b.gif").read_bytes()
    assert (tmp_path / "c.mp4").read_bytes()[4:8] == b"ftyp"


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"episode": 9}, "held-out episodes"), ({"context": 5}, "Give fewer"), ({"num_steps": 3}, "divides k_max")],
)
def test_a_film_that_cannot_be_is_refused(run, tmp_path, changed, message):
    with pytest.raises(InputError, match=message):
        film.write_film(run, tmp_path / "film.gif", actions="policy", **{**FILM, **changed})
    assert not list(tmp_path.iterdir())


def test_runs_are_listed_with_how_far_they_came(run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(console, "console", type(console.console)(width=200))
    other, broken, odd = run.parent / "deep" / "second", run.parent / "third", run.parent / "fourth"
    for folder in (other, broken, odd):
        folder.mkdir(parents=True)
    for folder in (other, odd):
        (folder / "config.yaml").write_text(to_yaml(Config()))
    (odd / "results.json").write_text('{"returns": {"imagination": {"low": 0.1}}}')
    (broken / "config.yaml").write_text("seed: -1\n")
    listing.runs(run.parent)
    lines = {line.split("│")[1].strip(): line for line in capsys.readouterr().out.splitlines() if line.startswith("│")}
    assert set(lines) == {"first", "deep/second", "third", "fourth"}, "no run is found inside another"
    for text in ("done", "+0.25", "+0.12 to +0.50", "75.0%"):
        assert text in lines["first"]
    assert "begun" in lines["deep/second"] and "unreadable: seed" in lines["third"]
    assert "unreadable: results.json cannot be read" in lines["fourth"]
    with pytest.raises(InputError, match="holds no run"):
        listing.runs(run / "data")


def test_what_can_be_played_is_listed(run, tmp_path, monkeypatch):
    (tmp_path / "runs").symlink_to(run.parent)
    monkeypatch.chdir(tmp_path)
    told = CliRunner().invoke(app, ["play"]).output
    for text in (
        "dreamer4 play catch ",
        f"dreamer4 play runs/{run.name}",
        "demo --preset fourrooms",
        "4 to 9 minutes",
    ):
        assert text in told


def test_runs_are_compared_on_a_new_page(run, tmp_path):
    second = tmp_path / "second"
    second.mkdir()
    (second / "config.yaml").write_text(to_yaml(Config(seed=5)))
    pages.report([run, second], tmp_path / "out.html")
    html = (tmp_path / "out.html").read_text()
    assert "2 runs compared" in html and "not finished" in html and "train.agent.steps" in html
    with pytest.raises(InputError, match="only a run's own report"):
        pages.report([run, second], tmp_path / "out.html")
    with pytest.raises(InputError, match="not a run folder"):
        pages.report([tmp_path], None)


def test_the_report_of_a_run_that_has_only_begun_shows_its_curves(tmp_path):
    (tmp_path / "config.yaml").write_text(to_yaml(Config()))
    (tmp_path / "metrics.jsonl").write_text('{"phase": "tokenizer", "step": 20, "time": 0.0, "mse": 0.5}\n' * 2)
    pages.report([tmp_path], None)
    html = (tmp_path / "report.html").read_text()
    assert "tokenizer" in html and "<svg" in html and "Dreams beside" not in html


def test_what_cannot_be_written_is_refused_before_the_work(run, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "out.gif"
    worked = []
    for module, name in (
        (film, "find_checkpoint"),
        (pages, "_page_of"),
        (imports, "import_folder"),
        (imports, "merge_datasets"),
        (share, "export_agent"),
        (world_model, "_dataset"),
        (offline, "OfflineData"),
    ):
        monkeypatch.setattr(module, name, lambda *_, name=name, **__: worked.append(name))
    for command in (
        f"dream {run} --out {out}",
        f"report {run} --out {out}",
        f"data import {tmp_path} --out {out}",
        f"data merge {run / 'data'} {run / 'data'} --out {out}",
        f"export {run} {out}",
        f"evaluate {run} --world-model --out {out}",
        f"baseline offline --data {run / 'data'} --out {out}",
    ):
        done = CliRunner().invoke(app, command.split())
        assert (done.exit_code, worked) == (2, []), (command, done.output, done.exception)


def test_what_an_export_refuses_it_refuses_before_it_films(run, tmp_path, monkeypatch):
    monkeypatch.setattr(share, "write_film", lambda *_, **__: pytest.fail("a film was made"))
    for words in (f"{tmp_path}", f"{tmp_path / 'out'} --member 7", f"{tmp_path / 'out'} --starts 99"):
        done = CliRunner().invoke(app, f"export {run} {words}".split())
        assert done.exit_code == 2 and "Error: export: " in done.output, (words, done.output)
    assert not list(tmp_path.iterdir())


def test_names_with_brackets_are_told_as_they_are(run, tmp_path, capsys):
    odd = tmp_path / "[b]"
    shutil.copytree(run, odd)
    describe.info(odd / "data")
    describe.check_data(odd / "data", {})
    listing.runs(tmp_path)
    told = capsys.readouterr().out.replace("\n", "")
    assert told.count("[b]") == 3


def test_a_dream_of_actions_that_nobody_recorded_is_refused(run, tmp_path):
    episodes = [replace(e, action_mask=np.zeros_like(e.action_mask)) for e in data.read_episodes(run / "data")]
    info = data.read_info(run / "data")
    data.write_dataset(tmp_path / "video", episodes, spec=info.spec, environment={"id": "x"}, policy="none", seed=0)
    done = CliRunner().invoke(
        app, f"dream {run} --data {tmp_path / 'video'} --actions data --out {tmp_path / 'a.gif'}".split()
    )
    assert done.exit_code == 2 and not (tmp_path / "a.gif").exists()
    assert "no action is known behind frame 0 of episode 0" in str(done.exception) + done.output


def test_a_narrow_table_breaks_no_name_and_drops_no_figure(monkeypatch, capsys):
    monkeypatch.setattr(console.console, "width", 34)
    console.show(("baseline", "return", ""), [("pendulum: conditioned", "33.75", "wishes for 1.01037e-05")] * 2)
    told = capsys.readouterr().out
    assert told.count("pendulum:") == told.count("conditioned") == told.count("33.75") == 2
    assert max(map(len, told.splitlines())) <= 40
