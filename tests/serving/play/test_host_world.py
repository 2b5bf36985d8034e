"""A world outside JAX through the house: collected from, evaluated in, played on the page; and what failure leaves."""

import dataclasses

import jax.random as jr
import numpy as np
import play_stage
import pytest
import toy_gym  # noqa: F401

from dreamer4 import data
from dreamer4.config import load
from dreamer4.dreamer import Dreamer
from dreamer4.envs import make
from dreamer4.errors import InputError
from dreamer4.evaluation import DreamerPolicy, evaluate
from dreamer4.run import behaviour
from dreamer4.serving.play.controls import find_controls
from dreamer4.serving.play.session import Session


WALK = ("env.id=toy/Walk-v0", "env.kwargs={size: [5, 10]}", "data.episodes=5")


def test_a_failing_world_leaves_the_whole_episodes_beside_the_data_set(tmp_path):
    config = load("tiny", overrides=[*WALK, "data.episodes=12", "env.kwargs.fails=9"])
    for name in ("data-kept", "data-kept2"):
        with pytest.raises(InputError, match=rf"motor is stuck.* whole episodes collected before lie in .*{name}\."):
            behaviour.collect(config, tmp_path / "data", tmp_path / "agents")
        kept = data.read_episodes(tmp_path / name, "all")
        assert kept and all(episode.is_terminal and episode.length <= 9 for episode in kept)
        assert data.read_info(tmp_path / name).behaviour[0].episodes == len(kept)
    assert not (tmp_path / "data").exists()


def test_an_agent_is_collected_with_evaluated_and_played_beside(tmp_path):
    config = load("tiny", overrides=[*WALK])
    env = make(config.env)
    assert env is make(config.env)  # its programs are compiled once
    info = behaviour.collect(config, tmp_path / "data", tmp_path / "agents")
    assert info.num_episodes == 5 and info.frame_shape == (5, 10, 3)
    dreamer = Dreamer.build(config, env.spec, key=jr.key(0))
    played = evaluate(dreamer, env, episodes=3, key=jr.key(0))
    episodes = data.collect(env, DreamerPolicy(dreamer), episodes=3, key=jr.key(0))
    assert np.asarray(played.finished).all() and all(e.length <= 13 for e in episodes)
    controls = find_controls(env.spec.action, config.env, env)
    stage = dataclasses.replace(
        play_stage.stage(), dreamer=dreamer, spec=env.spec, env=env, controls=controls, episodes=tuple(episodes)
    )
    session, beside = Session(stage), Session(stage)
    moments = [s.start("game", episode=None, seed=1) for s in (session, beside)]
    while not moments[0].over:
        moments = [s.step("player", discrete=[1], continuous=[], num_steps=1) for s in (session, beside)]
    assert moments[1].over  # two people play two games of one seed
    game = session.episodes()["game"]
    assert game.length == 13 and game.total == pytest.approx(game.reward[1:].sum())
    assert session.start("both", episode=0, passed=1).mode == "dream"  # it cannot be brought to a recorded frame
