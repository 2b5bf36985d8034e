"""What a page and its session say to each other: any text is a request or refused, and answers arrive whole."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from play_stage import act, stage

from dreamer4.errors import InputError
from dreamer4.serving.play import protocol
from dreamer4.serving.play.session import Session


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
NEARLY = st.fixed_dictionaries(
    {"type": st.sampled_from(["start", "step", "look", "record", "fetch", "stop"])},
    optional={name: JSON for name in ("mode", "episode", "seed", "by", "discrete", "num_steps", "on", "what", "fps")},
)


def parse(message):
    return protocol.parse(message if isinstance(message, str) else json.dumps(message))


@settings(max_examples=60)
@given(st.text() | JSON.map(json.dumps) | NEARLY.map(json.dumps))
def test_any_text_is_a_request_or_refused(text):
    try:
        assert isinstance(protocol.parse(text), protocol.Request)
    except InputError as error:
        assert len(str(error)) < 1000


@pytest.mark.parametrize(
    "message",
    [
        "",
        "[" * 60_000,
        '{"type": "step", "num_steps": 1' + "0" * 60_000 + "}",
        {"type": "step", "num_steps": 4, "discrete": ["1"]},
        {"type": "step", "num_steps": 4, "discrete": [1.0]},
        {"type": "step", "num_steps": 4, "discrete": [True]},
        {"type": "step", "num_steps": 4, "discrete": [0] * 1025},
        {"type": "step", "num_steps": 0},
        {"type": "step", "num_steps": 4, "by": "me"},
        {"type": "step", "num_steps": 4, "extra": 1},
        '{"type": "step", "num_steps": 4, "continuous": [NaN]}',
        '{"type": "step", "num_steps": 4, "continuous": [1e999]}',
        {"type": "start", "mode": "game", "seed": -1},
        {"type": "start", "mode": "game", "seed": 2**31},
        {"type": "fetch", "what": "../../secret"},
        {"type": "fetch", "what": "gif", "fps": 0},
        {"type": "__class__"},
        {},
    ],
)
def test_what_is_nearly_a_request_is_none(message):
    with pytest.raises(InputError):
        parse(message)


def test_requests_are_what_they_say():
    step = parse({"type": "step", "by": "policy", "discrete": [2, 0], "continuous": [0.5, 1], "num_steps": 8})
    assert step == protocol.Step(type="step", by="policy", discrete=[2, 0], continuous=[0.5, 1.0], num_steps=8)
    assert parse({"type": "start", "mode": "both"}) == protocol.Start(type="start", mode="both")


def test_answers_arrive_whole():
    arrays = {"a": np.arange(12, dtype=np.uint8).reshape(2, 2, 3), "empty": np.zeros((0, 3), np.uint8)}
    header, back, body = protocol.unpack(protocol.pack({"x": "\N{SNOWMAN}"}, arrays, b"rest"))
    assert (header, body) == ({"x": "\N{SNOWMAN}"}, b"rest")
    assert all(np.array_equal(back[name], arrays[name]) for name in arrays)


def test_a_moment_and_a_greeting_are_plain_json():
    session = Session(stage())
    moment = session.start("both", episode=None)
    moment = act(session)
    header, arrays, body = protocol.unpack(protocol.pack_moment(moment))
    assert header["type"] == "moment" and header["time"] == 1 and body == b""
    assert arrays.keys() == moment.images.keys()
    assert all(np.array_equal(arrays[name], image) for name, image in moment.images.items())
    hello, _, _ = protocol.unpack(protocol.pack_hello(stage(), formats=("gif",), idle=1, total=2))
    assert hello["passes"] == [1, 2, 4, 8] and hello["own_passes"] == 2
    assert [start["frames"] for start in hello["starts"]] == [10, 10]
    assert [choice["name"] for choice in hello["controls"]["components"][0]] == ["left", "stay", "right"]


def test_a_broken_model_still_makes_json():
    moment = Session(stage()).start("dream", episode=None)
    broken = {**(moment.reading or {}), "value": None}
    assert protocol.unpack(protocol.pack_moment(type(moment)(**{**vars(moment), "reading": broken})))
