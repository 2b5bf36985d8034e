"""Doom behind the contract: stepped by hand and through the house it shows the same."""

import gymnasium
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from PIL import Image

from dreamer4.config import EnvConfig
from dreamer4.data import collect, random_policy
from dreamer4.envs import make, seed_of


pytest.importorskip("vizdoom")
NAME = "vizdoom.gymnasium_wrapper:VizdoomHealthGathering-v1"


def test_episodes_are_those_of_vizdoom_with_the_same_seed():
    env = make(EnvConfig(id=NAME, kwargs={"size": [30, 40], "max_steps": 6, "frame_skip": 4}))
    episodes = collect(env, random_policy(env.spec), episodes=2, num_envs=2, key=jr.key(0))
    hand = gymnasium.make(NAME, render_mode="rgb_array", frame_skip=4)
    for episode in episodes:
        assert episode.key is not None and episode.length == 7 and not episode.is_terminal
        hand.reset(seed=int(seed_of(jr.wrap_key_data(jnp.asarray(episode.key[0])))))
        for t, frame in enumerate(episode.frame):
            reward = float(hand.step(episode.discrete[t, 0])[1]) if t else 0.0
            picture = Image.fromarray(np.asarray(hand.render())).resize((40, 30), Image.Resampling.BOX)
            np.testing.assert_array_equal(frame, np.asarray(picture))
            assert episode.reward[t] == reward
    assert (episodes[0].frame != episodes[1].frame).any()
