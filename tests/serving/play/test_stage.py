"""What can be played: agents of all origins, their starts, and the ones that come with the package."""

from pathlib import Path

import jax.numpy as jnp
import jax.random as jr
import pytest
from agent.fakes import drawn_on_the_host, randomised
from helpers import equal

from dreamer4 import data, hub
from dreamer4.checkpoint import Checkpoints
from dreamer4.config import load
from dreamer4.data import read_info
from dreamer4.dreamer import Dreamer, spec_to_json
from dreamer4.envs import GymnaxEnvironment
from dreamer4.errors import InputError
from dreamer4.serving.play import stage
from dreamer4.sharing import STARTS


FIXTURES = Path(__file__).parents[2] / "fixtures" / "v1"


def test_an_agent_and_the_episodes_it_was_not_trained_on():
    # Its frames are no frames of Catch, which its configuration names, so there is no game.
    loaded = stage.load_stages(FIXTURES / "run", dataset=FIXTURES / "data").first
    assert loaded.env is None and "looks like" in loaded.absent
    assert loaded.controls.continuous == (True, True) and loaded.passes == (1, 2, 4) and loaded.own_passes == 2
    assert [e.length for e in loaded.episodes] == [e.length for e in data.read_episodes(FIXTURES / "data", "held_out")]
    assert loaded.find_game(loaded.episodes[0], 1) is None


def test_without_a_game_and_without_data_there_is_nothing_to_play():
    with pytest.raises(InputError, match="nothing to start from"):
        stage.load_stages(FIXTURES / "exported")


def test_a_tokenizer_cannot_dream(monkeypatch):
    monkeypatch.setattr(stage.checkpoint, "read_meta", lambda step: {"phase": "tokenizer"})
    monkeypatch.setattr(stage, "read_description", lambda step: (None, None))
    with pytest.raises(InputError, match="cannot dream yet"):
        stage.load_stages(FIXTURES / "exported")


def test_data_of_another_kind_is_refused():
    with pytest.raises(InputError, match="but the agent was trained on"):
        stage.load_stages(FIXTURES / "exported", dataset=hub.SHIPPED / "catch" / STARTS)


def test_the_clone_of_an_unfinished_agent_phase_is_what_was_trained(tmp_path):
    spec = GymnaxEnvironment("Catch-bsuite").spec
    config = load("tiny", env="Catch-bsuite")
    dreamer = randomised(drawn_on_the_host(Dreamer.build, config, spec, key=jr.key(0)))
    meta = {"config": config.model_dump(mode="json"), "spec": spec_to_json(spec), "phase": "agent"}
    step = Checkpoints(tmp_path / "checkpoints" / "agent").save(3, {"ema": dreamer, "step": jnp.array(3)}, meta)
    loaded = stage.load_stages(step).first
    assert loaded.policies == ("prior",)
    assert equal(loaded.dreamer.prior, dreamer.policy) and not equal(dreamer.prior, dreamer.policy)


@pytest.mark.parametrize("name", hub.shipped())
def test_what_ships_is_small_and_whole(name):
    loaded = stage.load_stages(hub.local(name)).first
    assert loaded.phase == "imagination" and loaded.env is not None
    assert loaded.episodes and read_info(hub.local(name) / STARTS).num_episodes >= 8  # of all its tasks


def test_a_world_that_asks_for_tasks_is_named_beside_them():
    stages = stage.load_stages(hub.local("craftax"))
    assert stages.first.name == "Craftax-Classic-pixels: collect_wood_5"
    assert stages.find(9).name == "Craftax-Classic-pixels: collect_diamond"


def test_three_games_and_two_worlds_of_sliders_ship_and_all_is_under_ten_megabytes():
    assert hub.shipped() == ["breakout", "catch", "craftax", "pendulum", "point"]
    assert sum(f.stat().st_size for f in hub.SHIPPED.rglob("*") if f.is_file()) < 10_000_000
