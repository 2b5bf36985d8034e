"""Studies: what is refused, which stages cells share, what a row holds, and that work is done once."""

import pytest

from dreamer4.errors import InputError
from dreamer4.study import read_study
from dreamer4.study.rows import read_row, row_file, table
from dreamer4.study.work import run_study


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
        ("measure: [dreams]", "measure: [fvd]", "measure.0: got \"fvd\", expected 'dreams' or 'return'"),
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

    def different(stage, seed=0):
        return len({cell.fingerprint(stage, seed) for cell in cells})

    assert [different(stage) for stage in ("data", "tokenizer", "dynamics", "agent")] == [1, 1, 4, 4]
    first = cells[0]
    assert first.fingerprint("data", 0) == first.fingerprint("data", 1)
    assert first.fingerprint("tokenizer", 0) != first.fingerprint("tokenizer", 1)


def test_what_is_quick_is_said_last_and_has_a_name_of_its_own(tmp_path):
    quick = study(tmp_path, TEXT.replace("[data.episodes=8]", "[train.dynamics.steps=99]")).made_quick()
    assert (quick.study, quick.seeds) == ("example-quick", 1)
    assert {cell.config(0).train.dynamics.steps for cell in quick.cells()} == {2}


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
    assert rows[1].seeds == (0,) and rows[1].values["PSNR"] != rows[0].values["PSNR"]
    assert len(rows[1].curves["PSNR"][0]) > 1 and "K=2" in page.read_text()
    assert (page.parent / "PSNR.svg").read_text().count("<svg") == 1
    assert table(rows).count("\n") == 3
