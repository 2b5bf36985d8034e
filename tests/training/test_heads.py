"""Heads trained to the end: read-outs as an agent has them, and what held-out episodes decide."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from dreamer4.agent import ContinuationHead, PolicyHead, ScalarHead
from dreamer4.agent.heads import build_continuous
from dreamer4.config import ContinuousConfig, HeadsConfig
from dreamer4.data import BalancedSource, DeviceSource, Episode
from dreamer4.dynamics import AbstractDynamics
from dreamer4.training.heads import TERMS, finish_heads, read_out, told
from dreamer4.types import ActionSpec


def episode(length, rng, relevant=True):
    return Episode(
        np.zeros((length, 1, 1, 1), np.uint8),
        rng.integers(0, 2, (length, 1)).astype(np.int32),
        np.zeros((length, 0), np.float32),
        np.arange(length) > 0,
        np.full(length, np.e - 1, np.float32),  # a bin of the head
        True,
        relevant=relevant,
    )


def source(count, *, seed, right=True, relevant=True):
    """Read-outs that tell the next action, or the other one, and whether the frame is the last."""
    rng = np.random.default_rng(seed)
    made = DeviceSource.from_episodes([episode(6, rng, relevant) for _ in range(count)])
    following = np.roll(np.asarray(made.action.discrete[:, 0]), -1)
    last = np.arange(made.num_frames) % 6 == 5
    h = np.stack([2.0 * (following if right else 1 - following) - 1, last], axis=-1)
    return made.with_latents(jnp.asarray(h[:, None], jnp.float32))


@pytest.fixture(scope="module")
def heads():
    keys, size = jr.split(jr.key(0), 4), {"hidden": 8, "layers": 1, "length": 1}
    continuous = build_continuous(ContinuousConfig())
    policy, probe = (PolicyHead(2, ActionSpec((2,)), continuous=continuous, **size, key=key) for key in keys[2:])
    reward = ScalarHead(2, **size, num_bins=5, limit=1.0, key=keys[0])
    return policy, reward, ContinuationHead(2, **size, key=keys[1]), probe


CONFIG = HeadsConfig(patience=2, every=100, batch_size=16, length=4, learning_rate=2e-2, looks=6)


def test_heads_come_to_use_what_the_read_out_tells(heads):
    finished, looks = finish_heads(heads, source(16, seed=0), source(8, seed=1), CONFIG, key=jr.key(1))
    assert all(looks[-1][name] < 0.2 < looks[0][name] for name in TERMS)
    assert float(finished[1](jnp.array([1.0, 0.0])).mean()) == pytest.approx(np.e - 1, abs=0.2)
    assert finished[0](jnp.array([[-1.0, 0.0], [1.0, 0.0]])).mode().discrete[:, 0].tolist() == [0, 1]


def test_a_head_that_held_out_episodes_speak_against_stays_as_it_was(heads):
    finished, looks = finish_heads(heads, source(16, seed=0), source(8, seed=1, right=False), CONFIG, key=jr.key(1))
    np.testing.assert_array_equal(finished[0].mlp.hidden[0].weight, heads[0].mlp.hidden[0].weight)
    assert looks[-1]["cloning"] > looks[0]["cloning"] == pytest.approx(np.log(2), abs=1e-3)
    assert looks[-1]["continuation"] < 0.2, "the others share nothing with it and go on"


def test_it_is_over_when_no_head_has_become_better_for_so_many_looks(heads):
    still = CONFIG.model_copy(update={"learning_rate": 1e-30})
    _, looks = finish_heads(heads, source(16, seed=0), source(8, seed=1), still, key=jr.key(1))
    assert len(looks) == 1 + still.patience


def test_relevant_episodes_alone_are_cloned(heads):
    parts = source(4, seed=0), source(12, seed=2, right=False, relevant=False)
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *parts)
    both = eqx.tree_at(lambda s: s.start, both, jnp.arange(16) * 6)
    _, looks = finish_heads(heads, BalancedSource(both), source(8, seed=1), CONFIG, key=jr.key(1))
    assert looks[-1]["cloning"] < 0.2


class Sum(AbstractDynamics):
    """Its read-out is the sum of the latents of the newest frames, and the task."""

    agent_dim: int = 2
    context_length: int | None = 3

    def init(self, task):
        return jnp.zeros(self.context_length or 100), task

    def observe(self, state, latent, action, action_mask, *, key):
        return jnp.append(state[0][1:], latent[0, 0]), state[1]

    def readout(self, state):
        return jnp.stack([state[0].sum(), state[1].astype(float)])

    def imagine(self, state, action, *, num_steps=None, key):
        raise NotImplementedError

    def loss(self, clips, progress, *, with_readout, accumulate=1, key):
        raise NotImplementedError

    def flops(self, *, rows, length, with_readout):
        raise NotImplementedError


@pytest.mark.parametrize("context", [3, None])
def test_every_frame_is_read_out_behind_its_own_past(context, monkeypatch):
    """Of any length: less than a context, several stretches of it, of more than one batch."""
    monkeypatch.setattr("dreamer4.training.heads._SHORTEST", 4)
    monkeypatch.setattr("dreamer4.training.heads._FRAMES_AT_ONCE", 16)
    rng, lengths = np.random.default_rng(0), (1, 3, 4, 7, 20, 6)
    made = DeviceSource.from_episodes([episode(n, rng) for n in lengths])
    latent = rng.integers(1, 9, made.num_frames).astype(np.float32)
    got = read_out(Sum(context_length=context), made.with_latents(latent[:, None, None]), key=jr.key(0)).latent
    assert got is not None
    expected, start = [], 0
    for n in lengths:
        own = latent[start : start + n]
        expected += [own[max(t - (context or n) + 1, 0) : t + 1].sum() for t in range(n)]
        start += n
    np.testing.assert_array_equal(got[:, 0, 0], expected)


def test_a_training_seed_that_has_ended_stays_at_its_last_look():
    looks = [[{"cloning": 2.0}, {"cloning": 1.0}], [{"cloning": 3.0}]]
    assert told(looks) == [{"cloning": [2.0, 3.0]}, {"cloning": [1.0, 3.0]}]
    assert told(looks[:1]) == looks[0]
