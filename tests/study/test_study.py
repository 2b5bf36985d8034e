"""Studies: what is refused, which stages cells share, what a row holds, and that work is done once."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from dreamer4.config import TokenizerConfig
from dreamer4.data import random_policy, read_episodes
from dreamer4.envs import CounterEnvironment
from dreamer4.errors import InputError
from dreamer4.evaluation.play import Played
from dreamer4.evaluation.statistics import rate
from dreamer4.run import sizes
from dreamer4.run.folder import RunFolder
from dreamer4.study import read_study, work
from dreamer4.study.plan import still_holds
from dreamer4.study.rows import Row, publish, rates_table, read_row, row_file, table
from dreamer4.study.work import check_comparisons, run_study


TEXT = """
study: example
preset: tiny
settings: [data.episodes=8]
axes:
  data.labelled: [0.5, 1]
  prediction: {x: [dynamics.prediction=x], v: [dynamics.prediction=v]}
seeds: 2
measure: [dreams]
quick: {seeds: 1, settings: [train.dynamics.steps=2, train.tokenizer.steps=2]}
"""


def study(tmp_path, text=TEXT):
    file = tmp_path / "study.yaml"
    file.write_text(text)
    return read_study(file)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("study: example", "study: An Example", "lower-case"),
        ("measure: [dreams]", "measure: [fvd]", "measure.0: got \"fvd\", expected 'dreams', 'return'"),
        ("axes:", "axs:", "axs: unknown key. Did you mean axes?"),
    ],
)
def test_a_study_that_makes_no_sense_is_refused(tmp_path, old, new, told):
    with pytest.raises(InputError, match=told):
        study(tmp_path, TEXT.replace(old, new))


def test_a_cell_that_is_unknown_or_impossible_is_refused_before_any_work(tmp_path):
    with pytest.raises(InputError, match="Did you mean labelled=0.5,prediction="):
        study(tmp_path).cells(["labelled=0.5,prediction=y"])
    with pytest.raises(InputError, match="data.labelled"):
        study(tmp_path, TEXT.replace("0.5", "1.5")).cells()


def test_cells_share_exactly_the_stages_that_are_the_same(tmp_path):
    cells = study(tmp_path).cells()
    assert [cell.name for cell in cells] == [f"labelled={a},prediction={b}" for a in (0.5, 1) for b in "xv"]

    def different(stage):
        return len({cell.fingerprint(stage, (0, 0)) for cell in cells})

    assert [different(stage) for stage in ("data", "tokenizer", "dynamics", "agent")] == [1, 1, 4, 4]
    first = cells[0]
    assert first.fingerprint("data", (0, 0)) == first.fingerprint("data", (0, 1))
    assert first.fingerprint("tokenizer", (0, 0)) != first.fingerprint("tokenizer", (0, 1))
    assert first.fingerprint("data", (0, 0)) != first.fingerprint("data", (1, 0))
    # What needs no world model is measured once for all of them.
    assert len({cell.measured("references", (0, 0)) for cell in cells}) == 1
    assert len({cell.measured("dreams", (0, 0)) for cell in cells}) == 4


def test_what_is_quick_is_said_last_and_has_a_name_of_its_own(tmp_path):
    quick = study(tmp_path, TEXT.replace("[data.episodes=8]", "[train.dynamics.steps=99]")).made_quick()
    assert (quick.study, quick.seeds) == ("example-quick", 1)
    assert {cell.config((0, 0)).train.dynamics.steps for cell in quick.cells()} == {2}


def test_the_first_seeds_alone_share_what_is_trained_and_there_are_no_more_than_the_study_has(tmp_path):
    asked = study(tmp_path, TEXT + "data_seeds: 2\n")
    few = asked.first(1, None)
    assert few.every_seed == asked.every_seed[: asked.seeds] and few.study == asked.study
    assert [cell.fingerprint("dynamics", (0, 0)) for cell in few.cells()] == [
        cell.fingerprint("dynamics", (0, 0)) for cell in asked.cells()
    ]
    with pytest.raises(InputError, match="--data-seeds: got 3, and example has 2"):
        asked.first(3, None)


def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path):
    (tmp_path / "file").touch()
    for wrong in ("runs", "out"):
        where = {"runs": tmp_path / "runs", "out": tmp_path / "out", wrong: tmp_path / "file"}
        with pytest.raises(InputError, match="cannot be written"):
            run_study(study(tmp_path), **where)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "study.yaml"]


def test_a_cell_is_asked_for_by_some_of_its_values(tmp_path):
    asked = study(tmp_path)
    names = [cell.name for cell in asked.cells(["prediction=x"])]
    assert names == [cell.name for cell in asked.cells() if "prediction=x" in cell.name] and len(names) > 1
    assert [cell.name for cell in asked.cells(["prediction=x,labelled=0.5"])] == ["labelled=0.5,prediction=x"]
    with pytest.raises(InputError, match="no cell 'prediction=x,labelled=0.7'"):
        asked.cells(["prediction=x,labelled=0.7"])


def test_a_study_trains_what_is_shared_once_and_goes_on_where_it_was(tmp_path):
    quick = study(tmp_path).made_quick()
    one, both = ["labelled=0.5,prediction=x"], ["labelled=0.5,prediction=x", "labelled=0.5,prediction=v"]
    where = {"runs": tmp_path / "runs", "out": tmp_path / "out"}
    run_study(quick, **where, only=one)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    page = run_study(quick, **where, only=both, command="dreamer4 study example")
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    folders = sorted(path.name.partition("-")[0] for path in (tmp_path / "runs").iterdir())
    assert folders == ["data", "dynamics", "dynamics", "measured", "tokenizer"]
    rows = [read_row(row_file(tmp_path / "out", quick, cell)) for cell in quick.cells(both)]
    assert rows[1].seeds == ((0, 0),) and rows[1].values["PSNR"] != rows[0].values["PSNR"]
    (dataset,) = (tmp_path / "runs").glob("data-*/data")
    episodes = read_episodes(dataset, "train")
    told = np.concatenate([e.discrete[e.action_mask] for e in episodes[: round(len(episodes) / 2)]])
    assert rows[1].values["labelled frames"] == (len(told),)
    assert rows[1].values["labelled frames of the rarest action"] == (np.unique(told, return_counts=True)[1].min(),)
    assert len(rows[1].curves["PSNR"][0]) > 1 and "K=2" in page.read_text()
    assert (page.parent / "PSNR.svg").read_text().count("<svg") == 1
    assert table(rows, quick).splitlines()[0].count("prediction=") == 2


def test_seeds_are_added_to_a_row_as_long_as_its_settings_hold(tmp_path):
    quick, only = study(tmp_path).made_quick(), ["labelled=0.5,prediction=x"]
    out = tmp_path / "out"
    file = row_file(out, quick, quick.cells(only)[0])
    run_study(quick, runs=tmp_path / "a", out=out, only=only)
    first = read_row(file)
    more = quick.model_copy(update={"seeds": 2})
    run_study(more, runs=tmp_path / "b", out=out, only=only)
    both = read_row(file)
    assert both.seeds == ((0, 0), (0, 1)) and len(both.values["PSNR"]) == len(both.curves["PSNR"]) == 2
    assert both.values["PSNR"][0] == first.values["PSNR"][0] != both.values["PSNR"][1]
    assert not [path for path in (tmp_path / "b").glob("tokenizer-*") if RunFolder(path).read_config().seed == 0]
    run_study(more, runs=tmp_path / "c", out=out, only=only)
    assert read_row(file) == both and not [*(tmp_path / "c").glob("tokenizer-*")]
    longer = more.model_copy(update={"seeds": 1, "at_last": (*more.at_last, "train.dynamics.steps=3")})
    run_study(longer, runs=tmp_path / "d", out=out, only=only)
    assert read_row(file).seeds == ((0, 0),)


def test_what_a_row_was_made_by_holds_as_long_as_keys_that_came_since_are_at_their_default(tmp_path):
    asked = study(tmp_path)
    now = asked.cells()[0].made_by(asked)
    assert still_holds(now, now)
    older = json.loads(json.dumps(now))
    del older["tokenizer"]["mask_max"], older["sampler"]["kind"]  # as if they had come since
    default = TokenizerConfig().mask_max
    assert still_holds(older, now | {"tokenizer": now["tokenizer"] | {"mask_max": default}})
    assert not still_holds(older, now | {"tokenizer": now["tokenizer"] | {"mask_max": default / 2}})
    assert not still_holds(now, older)
    assert not still_holds(now | {"measure": ["ppo"]}, now)


def row(values, seeds):
    facts = {"curves": {}, "minutes": (1.0,), "data": (), "device": "", "commit": "", "command": ""}
    return Row(study="example", cell="a", preset="tiny", settings=(), seeds=seeds, values=values, **facts)


def test_the_best_of_one_side_is_set_against_the_best_of_the_other(tmp_path):
    asked = study(tmp_path, TEXT + 'compare: {gain: [[a, "a, greedy"], [b, c]]}')
    values = {"a": (1.0, 2.0), "a, greedy": (3.0, 5.0), "b": (2.0, 2.0), "c": (0.0, 3.0)}
    (line,) = [x for x in table([row(values, ((0, 0), (0, 1)))], asked).splitlines() if "gain" in x]
    assert line == "| gain | +2 (+1 to +3) |"


def test_comparisons_can_be_shares_of_a_range(tmp_path):
    """From the mean of one measure, as 0, to that of another, as 1: here from 1 to 5."""
    asked = study(tmp_path, TEXT + "compare: {gain: [[a], [b]]}\nscale: [low, high]\n")
    values = {"a": (4.0, 6.0), "b": (2.0, 2.0), "low": (0.0, 2.0), "high": (4.0, 6.0)}
    (line,) = [x for x in table([row(values, ((0, 0), (0, 1)))], asked).splitlines() if "gain" in x]
    assert line == "| gain | +0.75 (+0.5 to +1) |"
    other = {"low": (9.0, 9.0), "high": (9.5, 9.5)}  # of another task
    asked = study(tmp_path, TEXT + 'compare: {gain: [["one: a"], ["one: b"]]}\nscale: [low, high]\n')
    told = {f"one: {name}": value for name, value in values.items()} | other
    (line,) = [x for x in table([row(told, ((0, 0), (0, 1)))], asked).splitlines() if "gain" in x]
    assert line == "| gain | +0.75 (+0.5 to +1) |"


def test_a_comparison_of_what_is_not_measured_is_refused_before_any_work(tmp_path):
    asked = study(tmp_path, TEXT.replace("[dreams]", "[return]") + "compare: {gain: [[imagination], [cloned, clon]]}")
    with pytest.raises(InputError, match="measures no 'clon'. Did you mean cloned"):
        run_study(asked, runs=tmp_path / "runs", out=tmp_path / "out")
    assert not (tmp_path / "runs").exists()


def test_a_preset_can_be_an_axis(tmp_path):
    text = (
        TEXT.replace("data.labelled: [0.5, 1]", "preset: [tiny, catch]")
        .replace("episodes=8", "episodes=40")
        .replace(", v: [dynamics.prediction=v]", "")
    )
    cells = study(tmp_path, text).cells()
    assert [(cell.name, cell.config((0, 0)).preset) for cell in cells] == [
        ("preset=tiny,prediction=x", "tiny"),
        ("preset=catch,prediction=x", "catch"),
    ]


def test_baselines_play_the_same_episodes_as_random_play(tmp_path, monkeypatch):
    """So random play in the place of a baseline has the return of `random`; nothing but data is made for it."""
    monkeypatch.setattr(work, "suited", lambda action: ("clone",))
    trained = lambda _, name, data, *__: SimpleNamespace(policy=random_policy(data.spec))  # noqa: E731
    monkeypatch.setattr(work.offline, "train", trained)
    monkeypatch.setattr(work.offline, "acting", lambda trained, *_: trained.policy)
    text = TEXT.replace("measure: [dreams]", "measure: [references]").replace("seeds: 2", "seeds: 1")
    asked = study(tmp_path, text.replace("data.episodes=8", "data.episodes=8, evaluation.episodes=4"))
    (cell,) = asked.cells(["labelled=1,prediction=x"])
    run_study(asked, runs=tmp_path / "runs", out=tmp_path / "out", only=[cell.name])
    values = read_row(row_file(tmp_path / "out", asked, cell)).values
    assert values["random"] == values["clone from frames"] == values["clone from frames, greedy"]
    assert values.keys() == {"random", "data", "clone from frames", "clone from frames, greedy"}
    assert [path.name.partition("-")[0] for path in sorted((tmp_path / "runs").iterdir())] == ["data", "measured"]


def test_how_often_events_happen_is_told_of_each_policy():
    seeds = [
        {"wood": rate(8, 10, frame=3.0), "iron": rate(0, 10)},
        {"wood": rate(6, 10, frame=5.0), "iron": rate(0, 10)},
    ]
    one, two = (
        row({}, ((0, 0), (1, 0))[:n]).model_copy(update={"rates": {"cloned": tuple(seeds[:n])}}) for n in (1, 2)
    )
    assert rates_table(one).splitlines()[2] == "| cloned | 80 (49-94.3) @ 3 | 0 (0-27.8) |"
    assert rates_table(two).splitlines()[2] == "| cloned | 70 (60-80) @ 4 | 0 (0-0) |"


def test_policies_are_measured_in_the_world_of_each_task(tmp_path):
    worlds = [sizes.World(name, task, CounterEnvironment(4, 2)) for task, name in enumerate(("pendulum", "point"))]

    def play(world):
        returns = jnp.array([world.task, 2.0 * world.task])
        return {"cloned": Played(returns, jnp.ones(2, int), jnp.ones(2, bool), jnp.zeros((2, 0), int))}

    assert work._in_each(worlds, play).values == {"pendulum: cloned": 0.0, "point: cloned": 1.5}
    assert work._in_each(worlds[1:], play).values == {"cloned": 1.5}
    compared = 'compare: {gain: [["point: imagination"], ["point: cloned%s"]]}\n'
    asked = TEXT.replace("[dreams]", "[return]")
    check_comparisons(study(tmp_path, asked + compared % ", greedy"))
    with pytest.raises(InputError, match="measures no 'point: cloned, grey'"):
        check_comparisons(study(tmp_path, asked + compared % ", grey"))


RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


@pytest.mark.parametrize("file", sorted((RESULTS.parent / "studies").glob("*.yaml")), ids=lambda file: file.stem)
def test_published_tables_are_those_of_their_rows(tmp_path, file):
    """Each study is sound, and its page, where rows were published, is what `--table` draws."""
    for asked in (read_study(file), read_study(file).made_quick()):
        check_comparisons(asked)
        if (RESULTS / asked.study).exists():
            shutil.copytree(RESULTS / asked.study, tmp_path / asked.study)
            before = (tmp_path / asked.study / "README.md").read_text()
            assert publish(tmp_path, asked).read_text() == before
        else:
            asked.cells()
