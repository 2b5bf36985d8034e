"""Keys: every class can be chosen, no key does two things, and none is a command of the page."""

import re

import numpy as np
import pytest
from play_stage import act, stage

from dreamer4.config import PRESETS, EnvConfig, load
from dreamer4.envs import GymnaxEnvironment, make
from dreamer4.serving.play.controls import _KNOWN, PREFIX, find_controls
from dreamer4.serving.play.server import PAGE
from dreamer4.serving.play.session import Session
from dreamer4.types import ActionSpec


COMMANDS = set(re.findall(r"(\w+): \w+", re.search(r"const COMMANDS = \{(.*?)\}", PAGE.read_text()).group(1)))


def keys_of(controls):
    return [key for component in controls.components for choice in component for key in choice.keys]


@pytest.mark.parametrize(
    ("spec", "env_id"),
    [
        # A world without names has sliders alone.
        *[(ActionSpec((len(names),)) if names else ActionSpec((), 2), id) for id, (names, _) in _KNOWN.items()],
        (ActionSpec((2,)), "mine"),
        (ActionSpec((4,)), "mine"),
        (ActionSpec((7,)), "mine"),
        (ActionSpec((18,)), "mine"),
        (ActionSpec((3, 2, 2)), "mine"),
        (ActionSpec((2,) * 23 + (121,)), "mine"),
        (ActionSpec((), 3), "mine"),
        (ActionSpec((2,), 2), "mine"),
    ],
)
def test_keys_do_one_thing_each(spec, env_id):
    controls = find_controls(spec, EnvConfig(id=env_id))
    assert [len(component) for component in controls.components] == list(spec.num_classes)
    assert controls.continuous == (True,) * spec.continuous_dim
    keys = keys_of(controls)
    assert len(COMMANDS) == 7
    assert len(keys) == len(set(keys)) and not set(keys) & COMMANDS
    assert all(0 <= i < n for i, n in zip(controls.idle, spec.num_classes, strict=True))
    if len(spec.num_classes) == 1 and spec.num_classes[0] <= 10:
        assert all(f"Digit{i}" in choice.keys for i, choice in enumerate(controls.components[0]))


def test_names_fit_the_games():
    # In this order gymnax has them; a wrong table would show in the class counts of most.
    for env_id in ("Catch-bsuite", "Breakout-MinAtar", "Asterix-MinAtar", "Freeway-MinAtar", "SpaceInvaders-MinAtar"):
        spec = GymnaxEnvironment(env_id).spec.action
        assert len(_KNOWN[env_id][0]) == spec.num_classes[0], env_id


def test_left_is_left():
    # Not by name but by what happens: the paddle of Catch.
    names = [choice.name for choice in stage().controls.components[0]]
    columns = {}
    for name in ("left", "stay", "right"):
        session = Session(stage())
        session.start("game", episode=None)
        columns[name] = int(np.argmax(act(session, [names.index(name)]).images["game"][-1, :, 0]))
    assert columns["left"] == columns["stay"] - 1 and columns["right"] == columns["stay"] + 1


def test_a_world_without_rest_waits_for_keys():
    assert find_controls(ActionSpec((4,)), EnvConfig(id="FourRooms-pixels")).turns
    assert not find_controls(ActionSpec((3,)), EnvConfig(id="Catch-bsuite")).turns


def test_physics_has_a_clock():
    config = load("cartpole").env
    assert find_controls(ActionSpec((2,)), config, make(config)).rate == pytest.approx(50.0)
    assert find_controls(ActionSpec((3,)), EnvConfig(id="mine")).rate == 10.0


def test_every_preset_that_runs_here_has_names():
    for name in PRESETS:
        config = load(name)
        if name not in ("own", "small", "base", "paper"):  # whose environments are the user's
            ids = {task.env.id for task in config.played}
            assert all(id in _KNOWN or id.startswith(PREFIX) for id in ids), name


def test_a_component_that_the_task_lacks_has_no_control():
    spec = ActionSpec((3, 2), 2, present=((False, True, True, False), (True,) * 4))
    lacking, whole = (find_controls(spec, EnvConfig(id="mine"), task=task) for task in range(2))
    assert [len(component) for component in lacking.components] == [0, 2] and lacking.continuous == (True, False)
    assert len(lacking.idle) == len(whole.idle) == 2  # a person's action is still one of the whole space
    assert [len(component) for component in whole.components] == [3, 2] and whole.continuous == (True, True)
