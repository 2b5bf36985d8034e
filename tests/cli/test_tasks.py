"""ToyControl-3 from end to end, as small as it runs: three tasks of one, two and two dimensions."""

import json

import pytest
from typer.testing import CliRunner

from dreamer4.data import merge_datasets, read_episodes, read_info
from dreamer4.dreamer import read_description
from dreamer4.errors import InputError
from dreamer4.evaluation.dreams import NO_FRAMES
from dreamer4.evaluation.results import Results
from dreamer4.evaluation.statistics import Estimate
from dreamer4.run import pages
from dreamer4.run.folder import RunFolder
from dreamer4.run.sizes import data_spec
from dreamer4_cli.app import app


SMALL = [
    *("data.policy=random", "data.mixture=[]", "data.episodes=9", "data.held_out=0.3", "evaluation.batch_size=2"),
    *(f"tokenizer.{part}.{size}" for part in ("encoder", "decoder") for size in ("width=16", "heads=2", "kv_heads=2")),
    *("dynamics.transformer.width=16", "dynamics.transformer.depth=2", "agent.hidden=8", "imagination.horizon=2"),
    *(f"train.{phase}.steps=2" for phase in ("tokenizer", "dynamics", "agent", "imagination")),
    *(f"train.{phase}.batch_size=4" for phase in ("tokenizer", "dynamics", "agent", "imagination")),
    *("train.dynamics.length=8", "train.agent.length=8", "train.heads.patience=0"),
]
NAMES = ("pendulum", "point", "reacher")


def called(*arguments):
    result = CliRunner().invoke(app, list(map(str, arguments)), env={"NO_COLOR": "1", "COLUMNS": "120", "TERM": "dumb"})
    return result.exit_code, result.output


def settings(*more):
    return [text for assignment in (*SMALL, *more) for text in ("--set", assignment)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy3") / "run"
    code, told = called("train", "all", "--preset", "toy3", "--run", folder, *settings())
    assert code == 0, told
    return RunFolder(folder)


def test_each_task_has_its_share_of_the_data_and_its_own_dimensions(run):
    info, episodes = read_info(run.data), read_episodes(run.data)
    assert info.spec.names == NAMES and info.frame_shape == (16, 16, 2) and info.continuous_dim == 2
    assert [sum(episode.task == task for episode in episodes) for task in range(3)] == [3, 3, 3]
    assert [task.present for task in info.tasks] == [(True, False), (), ()]
    _, spec = read_description(run.checkpoints("imagination").latest_valid())
    assert spec == info.spec


def test_every_task_is_played_and_one_alone_if_it_is_named(run):
    code, told = called("evaluate", run.path, "--episodes", 2)
    assert code == 0 and all(told.count(name) == 4 for name in NAMES) and "all tasks" in told
    code, told = called("evaluate", run.path, "--episodes", 2, "--task", "point")
    assert code == 0 and not any(name in told for name in NAMES)


def test_one_task_is_reported_alone(run, monkeypatch):
    dreamt = []

    def measure(*args, task, **how):
        dreamt.append(task)
        return [(None, NO_FRAMES)]

    earned = {name: {"imagination": Estimate(mean=i, low=i, high=i, episodes=2)} for i, name in enumerate(NAMES)}
    monkeypatch.setattr(pages, "run_results", lambda run: Results(by_task=earned))
    monkeypatch.setattr(pages, "measure", measure)
    code, told = called("report", run.path)
    assert code == 0, told
    whole = run.report_file.read_text()
    assert all(f"<td>{name}</td>" in whole for name in NAMES)
    code, told = called("report", run.path, "--task", "point")
    assert code == 0, told
    page = (run.path / "report-task1.html").read_text()
    assert "Of the task point alone." in page and dreamt == [None, 1]
    assert "+1.00" in page and "+2.00" not in page and "+2.00" in whole


def test_tasks_of_recorded_data_are_told_by_the_vectors_of_a_configuration(run):
    config = run.read_config()
    told = [task.model_copy(update={"vector": (float(i), 1.0)}) for i, task in enumerate(config.tasks)]
    spec = data_spec(
        config.model_copy(update={"tasks": told, "data": config.data.model_copy(update={"path": str(run.data)})})
    )
    assert spec.vectors == ((0.0, 1.0), (1.0, 1.0), (2.0, 1.0)) and not read_info(run.data).spec.vectors


def test_the_held_out_episodes_of_a_task(run, tmp_path):
    every = read_episodes(run.data, "held_out")
    per_task = [sum(episode.task == task for episode in every) for task in range(3)]
    for task, count in enumerate(per_task):
        if count:
            assert len(pages.read_held_out(run.data, task)) == count
        else:
            with pytest.raises(InputError, match=f"--task {task}: .* holds out no episode"):
                pages.read_held_out(run.data, task)
    assert sum(per_task) == len(pages.read_held_out(run.data, None)) > 0


@pytest.mark.parametrize("command", ["evaluate", "evaluate --world-model", "dream", "play", "report"])
def test_a_task_that_was_never_learned_is_refused(run, command, tmp_path):
    more = ("--out", tmp_path / "film.gif") if command == "dream" else ()
    code, told = called(*command.split(), run.path, "--task", "walker", *more)
    assert code == 2 and "0 pendulum, 1 point, 2 reacher" in told and not (tmp_path / "film.gif").exists()


@pytest.fixture(scope="module")
def merged(tmp_path_factory):
    """Three episodes of each task, one of them held out, collected alone and made one data set."""
    folder = tmp_path_factory.mktemp("merged")
    for name in NAMES:
        where = ("--task", name, "--out", folder / name)
        code, told = called("collect", "--preset", "toy3", *where, *settings("data.episodes=3", "data.held_out=0.34"))
        assert code == 0, told
    assert read_info(folder / "pendulum").spec.action.continuous_dim == 1
    merge_datasets([folder / name for name in NAMES], folder / "all")
    return folder / "all"


def test_tasks_collected_one_by_one_and_merged_are_the_tasks_collected_at_once(run, merged):
    info = read_info(merged)
    assert info.spec == read_info(run.data).spec and info.num_episodes == 9
    assert json.loads((merged / "dataset.json").read_text())["tasks"][1]["env"]["id"] == "PointGoal-pixels"


def test_each_task_has_baselines_of_its_own(merged, tmp_path):
    out = tmp_path / "offline.json"
    quick = "offline={hidden: 8, batch_size: 16, every: 5, patience: 1, max_steps: 5}"
    given = ("--data", merged, "--episodes", 2, "--set", quick, "--out", out)
    code, told = called("baseline", "offline", "clone", "conditioned", *given)
    assert code == 0, told
    rows = json.loads(out.read_text())["baselines"]
    assert [(row["task"], row["name"]) for row in rows] == [
        (task, name) for task in NAMES for name in ("clone", "conditioned")
    ]
    assert {row["episodes"] for row in rows} == {2} and all(f"{task}:" in told for task in NAMES)
