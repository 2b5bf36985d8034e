"""Charts draw what they are given, and say so when there is nothing to draw."""

import math
import xml.etree.ElementTree as ElementTree

import pytest

from dreamer4.reporting.charts import Line, interval_chart, line_chart, log_ticks, number, signed, ticks


def polylines(svg):
    root = ElementTree.fromstring(svg)
    return [[tuple(map(float, p.split(","))) for p in e.get("points").split()] for e in root.iter("polyline")]


def test_lines_are_drawn_to_scale_and_upright():
    ((a, b, c),) = polylines(line_chart([Line([0, 1, 3], [0.0, 1.0, 2.0])], title="t", x_label="x"))
    assert (c[0] - b[0]) == pytest.approx(2 * (b[0] - a[0]), abs=0.2)
    assert (a[1] - b[1]) == pytest.approx(b[1] - c[1], abs=0.2) and a[1] > c[1]


def test_a_logarithmic_axis_makes_equal_ratios_equal_distances():
    ((a, b, c),) = polylines(line_chart([Line([0, 1, 2], [1, 10, 100])], title="t", x_label="x", logarithmic=True))
    assert a[1] - b[1] == pytest.approx(b[1] - c[1], abs=0.2)


def test_values_that_are_not_finite_leave_a_gap():
    svg = line_chart([Line(range(5), [1, 2, math.nan, 4, 5])], title="t", x_label="x")
    assert [len(p) for p in polylines(svg)] == [2, 2]


@pytest.mark.parametrize("values", [[], [math.nan], [math.inf, -math.inf]])
def test_nothing_finite_is_said(values):
    assert "No finite values" in line_chart([Line(range(len(values)), values)], title="t", x_label="x")


def test_a_constant_or_a_single_point_is_drawn():
    assert polylines(line_chart([Line([0, 1], [0.0, 0.0])], title="t", x_label="x"))
    assert "<circle" in line_chart([Line([5], [2.0])], title="t", x_label="x")


def test_a_long_line_is_thinned_but_keeps_its_spike():
    values = [0.0] * 10_000
    values[4_321] = 1.0
    ((points),) = polylines(line_chart([Line(range(10_000), values)], title="t", x_label="x"))
    assert len(points) <= 300
    assert min(y for _, y in points) < max(y for _, y in points) - 100


def test_intervals_lie_where_their_numbers_say():
    html = interval_chart({"a": {"mean": 0, "low": -1, "high": 1}}, emphasis="a", title="t")
    assert "left:50.00%" in html  # the mean, in the middle of its symmetric interval


def test_intervals_that_are_not_finite_are_said():
    assert "No finite" in interval_chart({"a": {"mean": 0, "low": math.nan, "high": 1}}, emphasis="a", title="t")


@pytest.mark.parametrize("low, high, count", [(0, 1, 4), (-3, 17, 5), (0.001, 0.0013, 4), (0, 1e6, 4)])
def test_ticks_are_few_round_and_inside(low, high, count):
    marks = ticks(low, high, count)
    assert 2 <= len(marks) <= count + 2
    assert all(low - 1e-9 <= m <= high + 1e-9 for m in marks)
    assert f"{marks[1] - marks[0]:.3e}"[:5] in ("1.000", "2.000", "5.000")


def test_log_ticks_are_few_and_inside():
    assert log_ticks(0.5, 2000) == [1, 10, 100, 1000]
    assert log_ticks(1.5, 60) == pytest.approx([2, 5, 10, 20, 50])
    assert len(log_ticks(1e-12, 1e12)) <= 6


@pytest.mark.parametrize(
    "value, text",
    [
        (0, "0"),
        (-0.5, "−0.5"),
        (1234, "1234"),
        (20_000, "20k"),
        (3.2e6, "3.2M"),
        (0.00012, "1.2e−4"),
        (math.nan, "n/a"),
    ],
)
def test_numbers_are_short(value, text):
    assert number(value) == text


def test_returns_show_their_sign():
    assert (signed(0.934), signed(-0.6), signed(-1234.5)) == ("+0.93", "−0.60", "−1234")
