"""The laws of every registered dynamics: what may depend on what, frame by frame and at once."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import equal, generic, influence

from dreamer4.config import load
from dreamer4.dynamics import DYNAMICS, AbstractDynamics, build
from dreamer4.types import Action, ActionSpec, DataSpec, Trajectory


FRAMES, NZ, DZ = 5, 2, 3
SPEC = DataSpec((4, 4, 1), ActionSpec((3,), 1), num_tasks=3)


@pytest.fixture(scope="module", params=DYNAMICS)
def dynamics(request):
    config = load("tiny", overrides=[f"dynamics.kind={request.param}"])
    return generic(build, config.dynamics, config.sampler, NZ, DZ, SPEC, key=jr.key(0))


@pytest.fixture(scope="module")
def clip():
    random = np.random.default_rng(3)
    flags = jnp.zeros(FRAMES, bool)
    return Trajectory(
        frame=None,
        latent=jnp.asarray(random.normal(size=(FRAMES, NZ, DZ)), jnp.float32),
        action=Action(
            jnp.asarray(random.integers(0, 3, (FRAMES, 1)), jnp.int32),
            jnp.asarray(random.uniform(-1, 1, (FRAMES, 1)), jnp.float32),
        ),
        action_mask=~flags.at[0].set(True),
        reward=jnp.zeros(FRAMES),
        is_first=flags,
        is_last=flags,
        is_terminal=flags,
        valid=~flags,
        task=jnp.array(1),
        relevant=jnp.array(True),
        uniform=jnp.array(True),
    )


@pytest.fixture
def without_noise(monkeypatch):
    """Clips and frames draw their noise in different shapes; without noise they must agree."""
    monkeypatch.setattr(jr, "normal", lambda key, shape=(), dtype=jnp.float32: jnp.zeros(shape, dtype))
    monkeypatch.setattr(jr, "gumbel", lambda key, shape=(), dtype=jnp.float32, **_: jnp.zeros(shape, dtype))


@eqx.filter_jit
def readouts(dynamics, clip):
    return dynamics.readouts(clip, key=jr.key(0)), AbstractDynamics.readouts(dynamics, clip, key=jr.key(0))


@eqx.filter_jit
def recalled(dynamics, clip, count):
    own, scan = (
        dynamics.recall(clip, count, key=jr.key(0)),
        AbstractDynamics.recall(dynamics, clip, count, key=jr.key(0)),
    )
    return own, scan, dynamics.imagine(own, jax.tree.map(lambda x: x[1], clip.action), key=jr.key(1))[0].latent


@pytest.mark.usefixtures("without_noise")
def test_a_clip_at_once_equals_frame_by_frame(dynamics, clip):
    at_once, stepwise = readouts(dynamics, clip)
    np.testing.assert_allclose(at_once, stepwise, rtol=1e-4, atol=1e-5)
    assert at_once.shape == (FRAMES, dynamics.agent_dim)


@pytest.mark.usefixtures("without_noise")
def test_recall_is_a_scan_of_observe_and_forgets_what_has_not_happened(dynamics, clip):
    own, scan, dreamt = recalled(dynamics, clip, jnp.array(3))
    for a, b in zip(jax.tree.leaves(own), jax.tree.leaves(scan), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    later = dataclasses.replace(clip, latent=clip.latent.at[3:].add(9.0))
    assert equal(recalled(dynamics, later, jnp.array(3)), (own, scan, dreamt))


def test_read_outs_depend_on_observations_up_to_now_alone(dynamics, clip):
    acts = influence(lambda z: dynamics.readouts(dataclasses.replace(clip, latent=z), key=jr.key(0)), clip.latent)
    assert not np.triu(acts, 1).any()
    assert (np.diag(acts) > 0).all()


def test_the_dream_does_not_depend_on_the_task_and_the_read_out_does(dynamics, clip):
    other = dataclasses.replace(clip, task=jnp.array(2))
    count = jnp.array(3)
    (ours, _, dreamt), (theirs, _, same) = recalled(dynamics, clip, count), recalled(dynamics, other, count)
    assert equal(dreamt, same)
    assert not np.allclose(dynamics.readout(ours), dynamics.readout(theirs))


def test_a_dream_depends_on_its_action_where_that_is_known_alone(dynamics, clip):
    @eqx.filter_jit
    def dreamt(dynamics, action, known):
        state = dynamics.init(jnp.array(0))
        return dynamics.imagine(state, action, action_mask=known, key=jr.key(1))[0].latent

    left, right = (Action(jnp.array([i]), jnp.array([0.5 - i])) for i in (0, 1))
    for known in (False, True):
        same = equal(*(dreamt(dynamics, action, jnp.array(known)) for action in (left, right)))
        assert same != known


def test_no_gradient_comes_out_of_a_dream(dynamics, clip):
    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(dynamics):
        state = dynamics.init(jnp.array(0))
        imagined, following = dynamics.imagine(state, jax.tree.map(lambda x: x[1], clip.action), key=jr.key(1))
        return jnp.sum(imagined.latent) + jnp.sum(dynamics.readout(following))

    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient(dynamics)))
