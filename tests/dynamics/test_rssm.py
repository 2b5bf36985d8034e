"""The equations of the recurrent state-space model against NumPy in float64, and what its loss may depend on."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import equal, generic

from dreamer4.config import load
from dreamer4.dynamics.rssm import BlockGRU, build_rssm, draw, free_bits, unimix
from dreamer4.types import Action, ActionSpec, DataSpec, Trajectory


ROWS, FRAMES, NZ, DZ = 3, 4, 2, 3
SPEC = DataSpec((4, 4, 1), ActionSpec((3,), 1))
CONFIG = load(
    "tiny",
    overrides=["dynamics.kind=rssm", "dynamics.rssm={recurrent: 12, blocks: 3, hidden: 8, draws: 3, classes: 4}"],
)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def rms_norm(norm, x):
    return x / np.sqrt(np.mean(x**2) + 1e-6) * np.asarray(norm.scale, np.float64)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def divergence(p, q):
    return np.sum(np.exp(p) * (p - q), axis=(-2, -1))


@pytest.fixture(scope="module")
def random():
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def model():
    return generic(build_rssm, CONFIG.dynamics, CONFIG.sampler, NZ, DZ, SPEC, key=jr.key(0))


@pytest.fixture(scope="module")
def clips(random):
    flags = jnp.zeros((ROWS, FRAMES), bool)
    rows = jnp.ones(ROWS, bool)
    return Trajectory(
        frame=None,
        latent=jnp.asarray(random.normal(size=(ROWS, FRAMES, NZ, DZ)), jnp.float32),
        action=Action(
            jnp.asarray(random.integers(0, 3, (ROWS, FRAMES, 1)), jnp.int32),
            jnp.asarray(random.uniform(-1, 1, (ROWS, FRAMES, 1)), jnp.float32),
        ),
        action_mask=~flags,
        reward=jnp.zeros((ROWS, FRAMES)),
        is_first=flags,
        is_last=flags,
        is_terminal=flags,
        valid=~flags.at[1, 2:].set(True),
        task=jnp.zeros(ROWS, jnp.int32),
        relevant=rows,
        uniform=rows.at[2].set(False),
    )


@eqx.filter_jit
def loss(model, clips, key=None):
    return model.loss(clips, jnp.array(0.0), with_readout=True, key=jr.key(0) if key is None else key)


def test_another_task_is_told_as_from_the_start(model):
    model = eqx.tree_at(lambda m: m.task.table, model, jnp.arange(16.0).reshape(2, 8))
    found, expected = model.with_task(model.init(jnp.array(0)), jnp.array(1)), model.init(jnp.array(1))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    np.testing.assert_array_equal(found.told, jnp.arange(8.0, 16.0))


def test_the_recurrence_in_blocks(random):
    unit = generic(BlockGRU, 12, 5, blocks=3, key=jr.key(0))
    h, x = random.normal(size=12), random.normal(size=5)
    layer, gates = (
        (np.asarray(m.weight, np.float64), np.asarray(m.bias, np.float64)) for m in (unit.layer, unit.gates)
    )
    blocks = h.reshape(3, 4)
    y = np.concatenate([np.concatenate([blocks[g], x]) @ layer[0][g] + layer[1][g] for g in range(3)])
    y = silu(rms_norm(unit.norm, y)).reshape(3, 4)
    expected = []
    for g in range(3):
        reset, candidate, update = np.split(y[g] @ gates[0][g] + gates[1][g], 3)
        keep = 1 - sigmoid(update - 1)
        expected.append((1 - keep) * np.tanh(sigmoid(reset) * candidate) + keep * blocks[g])
    np.testing.assert_allclose(
        unit(jnp.asarray(h, jnp.float32), jnp.asarray(x, jnp.float32)), np.concatenate(expected), atol=1e-5
    )


def test_no_class_is_less_likely_than_its_uniform_share(random):
    logits = 50 * random.normal(size=(3, 4))
    log_probs = unimix(jnp.asarray(logits, jnp.float32), 0.04)
    np.testing.assert_allclose(np.exp(log_probs), 0.96 * softmax(logits) + 0.01, rtol=1e-5)


def test_draws_follow_their_probabilities_and_gradients_pass_straight_through(random):
    probs = np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])
    log_probs, weight = jnp.log(jnp.asarray(probs, jnp.float32)), jnp.asarray(random.normal(size=(2, 3)), jnp.float32)
    drawn = jax.vmap(lambda key: draw(log_probs, key=key))(jr.split(jr.key(1), 4000))
    np.testing.assert_allclose(np.sort(drawn, -1), np.broadcast_to([0, 0, 1], drawn.shape), atol=1e-6)
    np.testing.assert_allclose(drawn.mean(0), probs, atol=0.03)
    gradient = jax.grad(lambda x: jnp.sum(weight * draw(x, key=jr.key(0))))(log_probs)
    np.testing.assert_allclose(gradient, weight * probs, rtol=1e-5)  # of the probabilities in their logarithms


def test_divergences_train_one_side_each_above_the_free_bits(random):
    logits = random.normal(size=(2, 2, 5, 3, 4)) * np.array([0.05, 1.0, 2.0, 2.0, 2.0])[:, None, None]
    p, q = (np.log(softmax(side[0])) for side in np.split(logits, 2))
    given = [jnp.asarray(side, jnp.float32) for side in (p, q)]
    expected = np.maximum(1.0, divergence(p, q))
    assert (expected == 1.0).any() and (expected > 1.0).any()
    for told in free_bits(*given, 1.0):
        np.testing.assert_allclose(told, expected, rtol=1e-4)
    for index, trained in ((0, 1), (1, 0)):
        gradients = jax.grad(lambda sides, index=index: free_bits(*sides, 1.0)[index].sum())(given)
        assert not np.any(gradients[1 - trained])
        np.testing.assert_array_equal(np.abs(gradients[trained]).sum((-2, -1)) > 0, expected > 1.0)


def test_the_loss_is_of_the_frames_that_count(model, clips):
    """With the model's own states as given, the terms are recomputed frame by frame in float64."""
    told, total, count = loss(model, clips), 0.0, 0
    keys = [jr.split(key, FRAMES) for key in jr.split(jr.key(0), ROWS)]
    for row in range(2):  # the last row is not of the world model's
        clip = jax.tree.map(lambda x, row=row: x[row], clips)
        state = model.init(clip.task)
        for t in range(FRAMES):
            frame = jax.tree.map(lambda x, t=t: x[t], (clip.latent, clip.action, clip.action_mask))
            state, posterior = eqx.filter_jit(type(model)._observe)(model, state, *frame, key=keys[row][t])
            prior = model._mixed(model.prior(state.recurrent))
            np.testing.assert_allclose(told.h[row, t], model.readout(state), atol=1e-5)
            if not clip.valid[t]:
                continue
            latent = np.asarray(frame[0], np.float64).reshape(-1)
            error = np.asarray(model.decoder(state.recurrent, state.draws), np.float64)
            error = np.sum((error - np.sign(latent) * np.log1p(np.abs(latent))) ** 2)
            nats = divergence(*(np.asarray(side, np.float64) for side in (posterior, prior)))
            total, count = total + error + 1.1 * max(1.0, nats), count + 1
    assert count == 6
    np.testing.assert_allclose(told.loss, total / count, rtol=1e-4)


def test_what_does_not_count_moves_no_loss(model, clips):
    other = dataclasses.replace(clips, latent=clips.latent.at[1, 2:].add(9.0).at[2].add(9.0))
    assert equal(loss(model, other).loss, loss(model, clips).loss)
    assert not equal(loss(model, dataclasses.replace(clips, latent=clips.latent + 9.0)).loss, loss(model, clips).loss)


def test_a_dream_decodes_what_the_prior_draws(model):
    state = model.init(jnp.array(0))
    action = Action(jnp.array([1]), jnp.array([0.5]))
    imagined, following = eqx.filter_jit(model.imagine)(state, action, key=jr.key(3))
    told = np.asarray(model.decoder(following.recurrent, following.draws), np.float64)
    np.testing.assert_allclose(imagined.latent.reshape(-1), np.sign(told) * np.expm1(np.abs(told)), rtol=1e-5)
    observed = model.observe(state, imagined.latent, action, jnp.array(True), key=jr.key(4))
    np.testing.assert_allclose(observed.recurrent, following.recurrent, rtol=1e-5)  # the same action led there
