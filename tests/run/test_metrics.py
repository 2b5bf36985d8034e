"""The metric log is valid JSON whatever happens; the progress display stays out of logs."""

import io
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from dreamer4.errors import InputError
from dreamer4.run import metrics
from dreamer4.run.metrics import MetricLog, read_metrics
from dreamer4_cli.console import ProgressBar


@pytest.fixture
def log(tmp_path):
    return MetricLog(tmp_path / "run" / "metrics.jsonl")


def refuse_constant(name):
    raise AssertionError(f"{name} is not JSON")


def test_what_is_written_is_read(log):
    log.append("tokenizer", 20, {"loss": 0.5, "note": "warm", "count": 3, "flag": True})
    (record,) = read_metrics(log.path)
    assert record.pop("time") > 1.6e9
    assert record == {"phase": "tokenizer", "step": 20, "loss": 0.5, "note": "warm", "count": 3, "flag": True}
    assert list(record)[:2] == ["phase", "step"]


def test_arrays_of_either_kind_become_numbers_and_lists(log):
    log.append("agent", 1, {"a": jnp.float32(0.5), "b": np.arange(3), "c": jnp.ones((2, 1), jnp.bfloat16)})
    (record,) = read_metrics(log.path)
    assert (record["a"], record["b"], record["c"]) == (0.5, [0, 1, 2], [[1.0], [1.0]])


def test_what_is_not_finite_survives_and_the_line_stays_json(log):
    log.append("agent", 1, {"a": float("nan"), "b": jnp.inf, "c": np.array([-np.inf, 1.0])})
    json.loads(log.path.read_text(), parse_constant=refuse_constant)
    (record,) = read_metrics(log.path)
    assert math.isnan(record["a"]) and record["b"] == math.inf and record["c"] == [-math.inf, 1.0]


@pytest.mark.parametrize("name", ["phase", "step", "time"])
def test_names_of_the_line_are_taken(log, name):
    with pytest.raises(ValueError, match=name):
        log.append("agent", 1, {name: 1})


def test_a_torn_last_line_is_passed_over_then_dropped_then_continued(log):
    log.append("agent", 1, {"loss": 1.0})
    log.append("agent", 2, {"loss": 2.0})
    raw = log.path.read_bytes()
    first = len(raw.splitlines(keepends=True)[0])
    for end in range(first, len(raw)):
        log.path.write_bytes(raw[:end])
        assert [r["step"] for r in read_metrics(log.path)] == [1]
    MetricLog(log.path).append("agent", 2, {"loss": 3.0})
    assert [r["loss"] for r in read_metrics(log.path)] == [1.0, 3.0]


@pytest.mark.parametrize("line", ["nonsense", "[1]", '{"step": 1}', "3"])
def test_a_foreign_line_is_named(log, line):
    log.append("agent", 1, {})
    log.path.write_text(log.path.read_text() + line + "\n")
    with pytest.raises(InputError, match="Line 2"):
        read_metrics(log.path)


def test_a_missing_log_is_one_clear_error(tmp_path):
    with pytest.raises(InputError, match=r"none\.jsonl"):
        read_metrics(tmp_path / "none.jsonl")


def test_truncation_drops_what_will_be_written_again_and_nothing_else(log):
    for phase in ("tokenizer", "dynamics"):
        for step in (10, 20, 30):
            log.append(phase, step, {"loss": step / 10})
    log.truncate("dynamics", 20)
    assert [(r["phase"], r["step"]) for r in read_metrics(log.path)] == [
        *(("tokenizer", s) for s in (10, 20, 30)),
        *(("dynamics", s) for s in (10, 20)),
    ]
    log.truncate("agent", 0)
    assert len(read_metrics(log.path)) == 5


def test_truncating_a_log_that_is_not_there_is_nothing(log):
    log.truncate("agent", 0)
    assert not log.path.exists()


def test_where_there_is_no_terminal_a_phase_is_two_lines():
    out = io.StringIO()
    with ProgressBar("tokenizer", total=100, completed=40, console=Console(file=out)) as progress:
        for _ in range(3):
            progress.advance(20, text="loss 0.031 [x]")
    first, last = out.getvalue().splitlines()
    assert first == "tokenizer: 40/100 steps"
    assert last.startswith("tokenizer: 100/100 steps in ") and last.endswith("steps/s), loss 0.031 [x]")


def test_where_there_is_no_terminal_a_long_phase_says_each_minute_how_far_it_is(monkeypatch):
    out, clock = io.StringIO(), iter([0.0, 0.0, 59.0, 60.0, 90.0, 150.0, 200.0])
    monkeypatch.setattr("dreamer4.run.metrics.time.monotonic", lambda: next(clock))
    with ProgressBar("agent", total=4100, completed=100, console=Console(file=out, width=60)) as progress:
        for _ in range(4):
            progress.advance(1000, text="loss 0.5")
    assert out.getvalue().splitlines() == [
        "agent: 100/4100 steps",
        "agent: 2100/4100 steps in 60.0 s (33.3 steps/s, 0:01:00 left), loss 0.5",
        "agent: 4100/4100 steps in 150.0 s (26.7 steps/s, 0:00:00 left), loss 0.5",
        "agent: 4100/4100 steps in 200.0 s (20.0 steps/s), loss 0.5",
    ]


def test_a_phase_that_fails_says_how_far_it_came():
    out = io.StringIO()
    with (
        pytest.raises(RuntimeError),
        ProgressBar("agent", total=9, unit="frames", console=Console(file=out)) as progress,
    ):
        progress.advance(4)
        raise RuntimeError
    assert "agent: stopped at 4/9 frames" in out.getvalue()


def test_on_a_terminal_there_are_a_bar_a_rate_and_times():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=140)
    with ProgressBar("dynamics", total=10, console=console) as progress:
        progress.advance(5, text="loss [bold]")
        progress.advance(5)
    shown = out.getvalue()
    assert "10/10" in shown and "steps/s" in shown and "0:00:0" in shown and "loss [bold]" in shown


def test_a_log_of_weeks_is_read_in_part_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "_SHOWN_BYTES", 2000)
    path = tmp_path / "metrics.jsonl"
    log = MetricLog(path)
    for step in range(200):
        log.append("agent", step, {"loss": 1.0})
    assert path.stat().st_size > 5 * 2000
    steps = [line["step"] for line in read_metrics(path)]
    assert steps[0] == 0 and 10 < len(steps) < 60 and len(set(np.diff(steps[1:]))) == 1
    MetricLog(path).truncate("agent", 99)
    assert len(path.read_bytes().splitlines()) == 100


def test_no_line_is_longer_than_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "_MAX_LINE", 100)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"x" * 1000)
    for read in (read_metrics, MetricLog):
        with pytest.raises(InputError, match="too long"):
            read(path)
