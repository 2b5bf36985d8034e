"""Charts draw what they are given, and say so when there is nothing to draw."""

import math
import re
import xml.etree.ElementTree as ElementTree

import pytest

from dreamer4.evaluation.statistics import Estimate
from dreamer4.reporting.figures import Line, line_chart, number, signed
from dreamer4.reporting.page import intervals


def strokes(svg, style):
    """Returns the points of every line of a style, with a break wherever one begins."""
    root = ElementTree.fromstring(svg)
    paths = [e.get("d") for e in root.iter("path") if f"stroke: var(--{style})" in e.get("style", "")]
    return [[tuple(map(float, p)) for p in re.findall(r"([\d.]+) ([\d.]+)", d)] for d in paths]


def test_a_chart_belongs_to_the_page_and_fetches_nothing():
    svg = line_chart([Line([0, 1, 2], [1.0, 2.0, 3.0], style="s2")], title="<t>", x_label="x", markers=True)
    assert not re.search(r"https?:|url\(|#0d4e0|<style|<metadata", svg) and 'aria-label="&lt;t&gt;"' in svg
    ((a, b, c),) = strokes(svg, "s2")
    assert c[0] - b[0] == pytest.approx(b[0] - a[0], abs=0.2) and a[1] > b[1] > c[1]


def test_a_logarithmic_axis_makes_equal_ratios_equal_distances():
    ((a, b, c),) = strokes(line_chart([Line([0, 1, 2], [1, 10, 100])], title="t", x_label="x", logarithmic=True), "s1")
    assert a[1] - b[1] == pytest.approx(b[1] - c[1], abs=0.2)


def test_values_that_are_not_finite_leave_a_gap():
    svg = line_chart([Line(range(5), [1, 2, math.nan, 4, 5])], title="t", x_label="x")
    (drawn,) = [e.get("d") for e in ElementTree.fromstring(svg).iter("path") if "--s1" in e.get("style", "")]
    assert drawn.count("M") == 2


@pytest.mark.parametrize("values", [[], [math.nan], [math.inf, -math.inf]])
def test_nothing_finite_draws_nothing(values):
    assert line_chart([Line(range(len(values)), values)], title="t", x_label="x") == ""


def test_a_constant_or_a_single_point_is_drawn():
    assert strokes(line_chart([Line([0, 1], [0.0, 0.0])], title="t", x_label="x"), "s1")
    assert "<use" in line_chart([Line([5], [2.0])], title="t", x_label="x")


def test_a_long_line_is_thinned_but_keeps_its_spike():
    values = [0.0] * 10_000
    values[4_321] = 1.0
    ((points),) = strokes(line_chart([Line(range(10_000), values)], title="t", x_label="x"), "s1")
    assert len(points) <= 400
    assert min(y for _, y in points) < max(y for _, y in points) - 100


def test_intervals_lie_where_their_numbers_say():
    html = intervals({"a": Estimate(mean=0, low=-1, high=1, episodes=1)})
    assert 'class="point" style="left:50.00%"' in html
    ticks = [float(at) for at in re.findall(r'<i style="left:(-?[\d.]+)%"', html)]
    assert len(ticks) >= 3 and all(0 <= at <= 100 for at in ticks)
    assert "No finite" in intervals({"a": Estimate(mean=0, low=math.nan, high=1, episodes=1)})


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


def test_an_area_around_a_line_is_within_the_axes():
    def ticks(area):
        svg = line_chart([Line([0, 1], [1.0, 1.0], around=area)], title="t", x_label="step")
        assert ("fill-opacity" in svg) == (area is not None)
        return re.findall(r">([^<>]+)</text>", svg)

    assert "5" in ticks(([0.0, 0.0], [9.0, 9.0])) and "5" not in ticks(None)


def test_small_numbers_at_an_axis_are_told_apart():
    svg = line_chart([Line([0, 1], [0.01, 0.04])], title="t", x_label="step")
    ticks = re.findall(r">(0\.[^<>]+)</text>", svg)
    assert "0.02" in ticks and len(ticks) == len(set(ticks))
