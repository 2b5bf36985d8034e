"""Several runs on one page: every run is there, and only what differs is told of their settings."""

import re

import numpy as np
import pytest
from reporting.pages import EVIL, Page

from dreamer4.errors import InputError
from dreamer4.evaluation.results import Results
from dreamer4.reporting.comparison import ComparedRun, comparison_page
from dreamer4.reporting.page import render


STEPS = {"exact_frames": {"1": [0.5], "4": [0.75, 0.25]}}  # as earlier versions told it
SHARE = {**STEPS, "num_steps": 1, "mean_exact": {"1": 0.625, "4": 0.7}}


def run(name, mean, exact=STEPS, **settings):
    row = {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "episodes": 100}
    return ComparedRun(
        name,
        {"same": "1", "seed": "0", **settings},
        Results.model_validate(
            {
                "minutes": 7.5,
                "commit": "abc",
                "returns": {"imagination": row, "cloned": row},
                "world_model": {"tokenizer_psnr": 40.0, **exact},
            }
        ),
        [{"phase": "agent", "step": s, "time": 0.0, "loss": [1.0 / s, np.nan], "word": name} for s in range(1, 5)],
    )


def render_comparison(runs):
    return render(comparison_page(runs))


def test_runs_stand_side_by_side_and_only_differences_are_told():
    html = render_comparison([run("first", 0.5), run(EVIL, 0.75, SHARE, seed="3")])
    page = Page(html)
    shown = "".join(page.text)
    assert page.open == [] and "<script" not in html
    for text in ("first", EVIL, "+0.50", "+0.75", "50.0% (K = 4)", "62.5% (K = 1)", "seed", "3"):
        assert text in shown, text
    assert "same" not in shown.split("Settings that differ")[1]
    (chart,) = re.findall(r'aria-label="agent loss">.*?</svg>', html)
    assert chart.count("stroke: var(--s1)") == chart.count("stroke: var(--s2)") == 1
    assert html.split('class="row strong"')[1].startswith('><span class="name">&lt;script')


def test_a_run_without_results_is_named_all_the_same():
    html = render_comparison([run("done", 0.5), ComparedRun("begun")])
    assert "not finished" in html and Page(html).open == []
    assert "They have the same settings" in render_comparison([ComparedRun("a"), ComparedRun("b")])


def test_two_runs_of_one_name_are_refused():
    with pytest.raises(InputError, match="different names"):
        render_comparison([ComparedRun("a"), ComparedRun("a")])
