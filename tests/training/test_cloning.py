"""Cloning from pixels: what it trains, what it sees, and that it clones."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from agent.fakes import TINY_SPEC, build_tiny

from dreamer4.config import OptimizerConfig, PhaseConfig
from dreamer4.data import DeviceSource, Episode
from dreamer4.errors import InputError
from dreamer4.training import CloningPhase, init_state, train
from dreamer4.types import Action


LENGTH = 5


def episodes(count=16):
    """Two kinds of constant video; the kind tells the class and the two continuous numbers of every action."""
    for i in range(count):
        kind = i % 2
        yield Episode(
            frame=np.full((LENGTH, *TINY_SPEC.frame_shape), 255 * kind, np.uint8),
            discrete=np.full((LENGTH, 1), 2 * kind, np.int32),
            continuous=np.full((LENGTH, 2), 0.5 * kind, np.float32),
            action_mask=np.arange(LENGTH) > 0,
            reward=np.zeros(LENGTH, np.float32),
            is_terminal=False,
        )


@pytest.fixture(scope="module")
def source():
    return DeviceSource.from_episodes(list(episodes()))


@pytest.fixture(scope="module")
def dreamer():
    return build_tiny()


@eqx.filter_jit
@eqx.filter_value_and_grad
def loss_and_gradient(policy, dreamer, batch):
    dreamer = eqx.tree_at(lambda d: d.policy, dreamer, policy)
    terms, _ = CloningPhase().loss(dreamer, batch, jnp.zeros(()), key=jr.key(0))
    return terms["cloning"]


def test_it_clones_from_pixels_through_the_encoder(source, dreamer):
    phase = CloningPhase()
    config = PhaseConfig(steps=60, batch_size=8, length=LENGTH, optimizer=OptimizerConfig(learning_rate=1e-2))
    state = init_state(phase, dreamer, config)
    before = jax.tree.map(np.array, eqx.filter(dreamer, eqx.is_array))
    losses = []
    for state, metrics in train(phase, config, state, source, seed=0):  # noqa: B007
        losses.append(float(metrics["cloning"]))
    assert losses[-1] < losses[0] - 1.0
    learned = state.model

    def moved(where):
        pairs = zip(jax.tree.leaves(where(learned)), jax.tree.leaves(where(before)), strict=True)
        return any(np.any(np.asarray(a) != b) for a, b in pairs if eqx.is_array(a))

    assert moved(lambda d: d.tokenizer.encoder)
    assert moved(lambda d: d.dynamics.network.transformer)
    assert moved(lambda d: d.policy)
    assert not moved(lambda d: (d.reward, d.continuation, d.value, d.prior, d.tokenizer.stats))
    finished = phase.finish(learned)
    assert eqx.tree_equal(finished.prior, finished.policy)

    # An acting agent sees what training showed it: the kind of video tells the action.
    @eqx.filter_jit
    @eqx.filter_vmap(in_axes=(None, 0))
    def act(learned, frame):
        none = Action.null(TINY_SPEC.action)
        memory = learned.observe(learned.init(), frame, none, jnp.array(False), key=jr.key(1))
        return learned.act(memory, mode="mode", key=jr.key(2)).discrete[0]

    frames = np.stack([np.zeros(TINY_SPEC.frame_shape, np.float32), np.ones(TINY_SPEC.frame_shape, np.float32)])
    assert act(learned, jnp.asarray(frames)).tolist() == [0, 2]


def test_rows_that_are_not_relevant_teach_nothing(source, dreamer):
    batch = source.episodes(jnp.arange(2), LENGTH)
    first = dataclasses.replace(batch, relevant=jnp.array([True, False]))
    other = dataclasses.replace(
        first, action=jax.tree.map(lambda x: x.at[1].set(jnp.zeros_like(x[1])), first.action), reward=batch.reward + 1
    )
    (loss, _), (same, _) = (loss_and_gradient(dreamer.policy, dreamer, rows) for rows in (first, other))
    assert loss != 0
    assert loss == same
    nobody = dataclasses.replace(batch, relevant=jnp.zeros(2, bool))
    loss, gradient = loss_and_gradient(dreamer.policy, dreamer, nobody)
    assert loss == 0
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_a_frame_weighs_the_same_beside_padding(source, dreamer):
    # A fresh policy finds all actions equally likely.
    policy = eqx.tree_at(lambda p: p.mlp.readout.bias, dreamer.policy, replace_fn=lambda b: jnp.linspace(-1, 1, b.size))
    batch = source.episodes(jnp.arange(2), LENGTH)
    short = dataclasses.replace(batch, valid=jnp.arange(LENGTH) < jnp.array([LENGTH, 2])[:, None])
    known = (
        dataclasses.replace(short, relevant=jnp.array([True, False])),
        dataclasses.replace(short, relevant=jnp.array([False, True])),
    )
    (whole, _), (long, _), (brief, _) = (loss_and_gradient(policy, dreamer, rows) for rows in (short, *known))
    # Two offsets: of five frames four have a next one and three one after it; of two frames one has a next one.
    np.testing.assert_allclose(whole, (7 * long + brief) / 8, rtol=1e-5)
    assert not np.isclose(long, brief, rtol=1e-3)


def test_latents_are_refused(source, dreamer):
    latents = jnp.zeros((source.num_frames, dreamer.tokenizer.num_spatial, dreamer.tokenizer.spatial_dim))
    batch = source.with_latents(latents).episodes(jnp.arange(2), LENGTH)
    with pytest.raises(InputError, match="not frames"):
        CloningPhase().loss(dreamer, batch, jnp.zeros(()), key=jr.key(0))
