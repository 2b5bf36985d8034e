"""A report is one safe file: nothing fetched, nothing executed, nothing unescaped, small."""

import re
from dataclasses import fields, replace

import numpy as np
import pytest
from reporting.pages import EVIL, Page

from dreamer4.evaluation.dreams import CEILING, DreamFrames, DreamQuality, Grid
from dreamer4.evaluation.statistics import Estimate
from dreamer4.reporting import Report, write_report
from dreamer4.reporting.page import Page as Document
from dreamer4.reporting.page import Section, render
from dreamer4.reporting.report import frame_grid, horizons, report_page
from dreamer4.reporting.world import world_blocks


NAN, INF = float("nan"), float("inf")


def frames(length, shape=(10, 5, 1), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (length, *shape), dtype=np.uint8)


def render_report(report):
    return render(report_page(report))


def show(*blocks):
    return render(Document("t", [Section(blocks=blocks)]))


def curves(level):
    return {
        "exact": [level, 0.5],
        "psnr": [30.0, 20.0],
        "ssim": None,
        "mean": {"exact": level, "psnr": 24.5, "ssim": None},
    }


def share(mean, low):
    return {"mean": mean, "low": low, "high": min(mean + 0.15, 1.0), "episodes": 64, "frame": None}


def world(text):
    scores = {"base_rate": 0.25, "accuracy": 0.975, "recall": None, "precision": 0.125}
    return {
        "clips": 1000,
        "context_length": 4,
        "num_steps": 4,
        "comparisons": {"psnr_over_shuffled_actions": 7.25, "psnr_over_last_frame": 12.5, "psnr_below_tokenizer": 3.5},
        "passes": {"1": curves(0.9), "16": curves(0.8), "4": curves(0.7)},
        "controls": {text: curves(0.1)},
        "signals": {
            text: {
                "by_depth": [0.1, 0.2],
                "rank_correlation": 0.71,
                "rank_correlation_at_equal_depth": None,
                "histogram": {"edges": [0.0, 0.5, 1.0], "right": [3, 1], "wrong": [0, 0]},
            },
        },
        "traces": [
            {
                "given": 1,
                "reward": {"happened": [0.0, 1.0], "true": [0.0, 0.9], "dreamt": [0.1, 0.8]},
                "continuation": {"happened": [1.0, 0.0], "true": [0.9, 0.1], "dreamt": [0.8, 0.2]},
                "value": {"happened": [], "true": [0.0, 0.0], "dreamt": [0.0, 0.0]},
            }
        ],
        "frames": [3, 3],
        "heads": {text: {"reward": {**scores, "mae": 0.125}, "end": scores}},
        "interactions": {
            text: {"dreamt": share(0.75, 0.6), "no_op": share(0.1, 0.05), "decoded": share(1.0, 0.9)},
            "place_table": {"dreamt": share(0.75, 0.2), "no_op": share(0.1, 0.05), "decoded": share(1.0, 0.9)},
        },
        "returns": {"episodes": 50, "difference": 0.5, "low": 0.25, "high": 0.75, "alarm": True, "verdict": text},
    }


def full(text="plain", shape=(10, 5, 1), count=3):
    row = Estimate(mean=0.5, low=0.4, high=0.6, episodes=1000)
    return Report(
        title=text,
        run={"env": text, "seed": 0, "minutes": 6.25, text: text},
        provenance={text: text},
        packages={text: text},
        returns={"random": row, "data": row.model_copy(update={"mean": -0.6}), "imagination": row, text: row},
        by_task={text: {"cloned": row}, "other": {"cloned": row, text: row}},
        metrics=[
            {
                "phase": text,
                "step": s,
                "time": 0.0,
                f"{text}/loss": 10.0**-s,
                "b": [1.0, NAN],
                "c": text,
                "d": None,
            }
            for s in range(5)
        ],
        frames=DreamFrames(
            reconstructions=[tuple(frames(3, shape, i)) for i in range(count)],
            shown=[(frames(8, shape, i), frames(8, shape, i + 1), 3) for i in range(count)],
            grids=[
                Grid(frames(1, shape, i)[0], frames(5, shape, i), {text: frames(5, shape, i + 1)}) for i in range(2)
            ],
        ),
        world=DreamQuality.model_validate(world(text)),
        notes=[text],
        config=text,
    )


def test_everything_is_inside_the_file():
    html = render_report(full())
    page = Page(html)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r"data:image[^\"]*", "", html))
    assert page.links
    inside = re.compile(r"data:image/(png|gif);base64,[A-Za-z0-9+/=]+$|#m[0-9a-f]+$")  # or a mark of a chart
    assert all(inside.match(link) for link in page.links)
    assert "script" not in page.tags and "link" not in page.tags and "iframe" not in page.tags
    assert "default-src 'none'" in html


def test_tags_close_in_order():
    assert Page(render_report(full())).open == []


def test_text_of_others_is_shown_and_never_obeyed():
    html = render_report(full(EVIL))
    page = Page(html)
    assert "<script" not in html and "script" not in page.tags
    shown = "".join(page.text)
    # title (twice), a fact and its name, package, policy, phase, control, note, configuration
    assert shown.count(EVIL) >= 10
    assert page.open == []


def test_the_numbers_are_there():
    shown = "".join(Page(render_report(full())).text)
    for text in ("+0.50", "−0.60", "+0.40 to +0.60", "1,000", "+1.10", "97.5%", "6.2"):
        assert text in shown, text


def test_intervals_are_over_what_they_were_taken_over():
    report = full()
    shown = "".join(Page(render_report(report)).text)
    assert "bootstrap interval over episodes;" in shown and "training seeds" not in shown
    of_three = report.returns["imagination"].model_copy(update={"seeds": (0.4, 0.5, 0.6)})
    shown = "".join(Page(render_report(replace(report, returns={**report.returns, "imagination": of_three}))).text)
    assert "interval over 3 training seeds where a policy was trained, over episodes elsewhere;" in shown


def test_what_is_known_of_the_world_model_is_told():
    shown = "".join(Page(render_report(full())).text)
    for text in ("K = 16", "+7.2 dB", "+12.5 dB", "−3.5 dB".replace("−", "-"), "0.71", "12.5%", "n/a", "50 real"):
        assert text in shown, text
    # The second one's interval meets that of no-op actions.
    for text in ("place table", "75 (60-90)", "10 (5-25)", "1 of 2 interactions are dreamt"):
        assert text in shown, text
    assert shown.index("K = 4") < shown.index("K = 16")


@pytest.mark.parametrize(("tokenizer", "shown"), [(0.0, False), (0.5, True)])
def test_shares_of_exact_frames_are_shown_where_the_tokenizer_is_exact_at_times(tokenizer, shown):
    record = world("plain")
    record["controls"] = {"plain": curves(0.1), CEILING: curves(tokenizer)}
    quality = DreamQuality.model_validate(record)
    html = show(*world_blocks(quality))
    assert (">exact<" in html) == ("frames dreamt exactly right" in html) == ("Share of exact frames" in html) == shown


@pytest.mark.parametrize("passes", [1, 16])
def test_the_headline_is_of_the_passes_that_the_agent_takes_and_of_all_frames(passes):
    record = {**world("plain"), "num_steps": passes}
    record["passes"][str(passes)]["mean"]["exact"] = 0.123
    shown = "".join(Page(render_report(replace(full(), world=DreamQuality.model_validate(record)))).text)
    assert f"12.3%of dreamt frames exactly right, K\xa0=\xa0{passes}" in shown


def test_a_film_calls_no_frame_right_that_is_only_near():
    truth = np.full((6, 4, 4, 1), 100, np.uint8)
    dream = truth + np.uint8(90)  # no pixel is exact, and none is off by half the range
    dream[5, 0, 0] = 255
    shown = "".join(Page(render_report(Report(title="t", frames=DreamFrames(shown=[(truth, dream, 2)])))).text)
    assert "3 of 4 dreamt frames without red" in shown and "off by more than half the range" in shown
    assert "frames right" not in shown and "and right" not in shown


def test_what_was_not_measured_of_the_world_model_is_said():
    record = {**world("plain"), "heads": "not trained", "returns": "no environment"}
    shown = "".join(Page(render_report(Report(title="t", world=DreamQuality.model_validate(record)))).text)
    assert "not trained" in shown and "no environment" in shown


def test_an_untrained_head_has_no_chart():
    html = render_report(full())
    assert "reward along episode 1" in html and "value along episode 1" not in html


def test_a_grid_says_of_every_shown_frame_whether_it_is_right():
    truth = np.zeros((20, 4, 4, 1), np.uint8)
    dream = truth.copy()
    dream[3:, 0, 0] = 255
    html = show(frame_grid(Grid(truth[0], truth, {"K = 1": dream, "K = 2": truth})))
    assert horizons(20) == [1, 2, 4, 8, 16, 20] and horizons(9) == list(range(1, 10))
    first, second = html.split('<th scope="row">')[2:]
    assert re.findall(r'alt="(\w+)"', first) == ["right", "right", "wrong", "wrong", "wrong", "wrong"]
    assert re.findall(r'alt="(\w+)"', second) == ["right"] * 6


def test_a_report_of_nothing_but_a_title_has_no_empty_sections():
    page = Page(render_report(Report(title="Empty")))
    assert page.open == []
    assert not {"section", "h2", "table", "img", "svg"} & set(page.tags)


@pytest.mark.parametrize("name", [f.name for f in fields(Report) if f.name != "title"])
def test_each_part_stands_alone(name):
    page = Page(render_report(Report(title="One", **{name: getattr(full(), name)})))
    assert page.open == [] and "section" in page.tags


def test_a_metric_that_explodes_does_not_break_the_page():
    values = [1.0, INF, NAN, -INF, 1e300, -1e300, 0.0]
    metrics = [{"phase": "p", "step": s, "time": 0.0, "loss": v} for s, v in enumerate(values)]
    metrics += [{"phase": "p", "step": s, "time": 0.0, "never": NAN, "odd": [0.0] * s} for s in range(3)]
    page = Page(render_report(Report(title="t", metrics=metrics)))
    assert page.open == [] and "3 not finite" in "".join(page.text)


def test_large_pictures_are_left_out_and_counted_rather_than_sent():
    report = full(shape=(96, 96, 3), count=40)
    html = render_report(report)
    assert len(html.encode()) < 10e6
    assert re.search(r"Shown: \d+ of 40", html)


def test_long_runs_stay_small():
    rng = np.random.default_rng(0)
    metrics = [
        {"phase": phase, "step": s, "time": 0.0, **{f"m{i}": float(v) for i, v in enumerate(rng.random(12))}}
        for phase in "abcd"
        for s in range(1500)
    ]
    assert len(render_report(Report(title="t", metrics=metrics))) < 1e6


def test_the_file_is_whole_and_replaces_the_last(tmp_path):
    path = tmp_path / "run" / "report.html"
    write_report(path, Report(title="the earlier"))
    write_report(path, Report(title="the later"))
    text = path.read_text(encoding="utf-8")
    assert "the later" in text and "the earlier" not in text
    assert [f.name for f in path.parent.iterdir()] == ["report.html"]
