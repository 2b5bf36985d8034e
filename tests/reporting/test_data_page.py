"""The page of a data set tells who made it, what was earned and what was done."""

from reporting.pages import EVIL, Page

from dreamer4.data import Behaviour, DatasetInfo
from dreamer4.reporting.data_page import data_page
from dreamer4.reporting.page import render


def info(**changes):
    about = {
        "schema_version": 2,
        "environment": {"id": EVIL, "kwargs": {}},
        "policy": "mixture",
        "behaviour": (Behaviour(policy="random", episodes=3), Behaviour(policy=EVIL, epsilon=0.1, episodes=1)),
        "seed": 0,
        "frame_shape": (10, 5, 1),
        "num_classes": (3, 50),
        "continuous_dim": 2,
        "num_tasks": 1,
        "num_episodes": 4,
        "num_frames": 20,
        "return_mean": 0.25,
        "return_min": -1.0,
        "return_max": 1.0,
        "action_counts": ((6, 9, 1), (16, *[0] * 49)),
        "frame_levels": None,
        "returns": (-1.0, 0.0, 1.0, 1.0),
        "lengths": (5, 5, 5, 5),
        "held_out": (0,),
        "shards": (),
        "fingerprint": "f" * 64,
    }
    return DatasetInfo(**{**about, **changes})


def test_policies_returns_and_actions_are_told():
    html = render(data_page(info()))
    page = Page(html)
    shown = "".join(page.text)
    assert page.open == [] and "<script" not in html
    for text in (
        "4 episodes, 1 of them held out",
        "mean return +0.00",
        f"{EVIL}, epsilon 0.1",
        "56.2%",
        "10 rarer ones",
    ):
        assert text in shown, text
    assert html.count("fill: var(--s1)") == 2, "returns and lengths of the first policy"


def test_actions_that_are_all_continuous_are_not_counted():
    page = Page(render(data_page(info(num_classes=(), action_counts=(), behaviour=()))))
    assert "How often" not in "".join(page.text) and page.open == []
