"""The network of shortcut dynamics: what sees what, cached and at once, and its tokens."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import distance, equal, generic, influence

from dreamer4.config import DynamicsConfig
from dreamer4.dynamics import ActionEncoder
from dreamer4.dynamics.shortcut import Levels, NoisyFrames, dynamics_layout
from dreamer4.dynamics.shortcut.network import build_network
from dreamer4.nn import Stream
from dreamer4.types import Action, ActionSpec, DataSpec


FRAMES, WINDOW, K_MAX, NZ, DZ = 11, 4, 8, 2, 3  # the ring of 4 wraps twice over 11 frames
SPEC = DataSpec((4, 4, 1), ActionSpec((3, 2), 2), num_tasks=3)
TASK = jnp.array(1)


SETTINGS = {
    "transformer": {"width": 16, "depth": 4, "heads": 2, "kv_heads": 1, "time_every": 2, "context_length": WINDOW},
    "num_registers": 1,
    "num_agent_tokens": 2,
    "shortcut": {"k_max": K_MAX},
}


def built(**settings):
    config = DynamicsConfig.model_validate(SETTINGS | settings)
    return generic(build_network, config, NZ, DZ, SPEC, key=jr.key(0))


@pytest.fixture(scope="module")
def dynamics():
    return built()


@pytest.fixture(scope="module")
def clip():
    random = np.random.default_rng(3)
    action = Action(
        jnp.asarray(np.stack([random.integers(0, 3, FRAMES), random.integers(0, 2, FRAMES)], -1), jnp.int32),
        jnp.asarray(random.uniform(-0.9, 0.9, (FRAMES, 2)), jnp.float32),
    )
    z = jnp.asarray(random.normal(size=(FRAMES, NZ, DZ)), jnp.float32)
    tau_index, step_index = (jnp.asarray(random.integers(0, n, FRAMES), jnp.int32) for n in (K_MAX, 4))
    return NoisyFrames(
        z,
        Levels(tau_index, step_index),
        action,
        jnp.asarray([False, True, True, False, True, True, True, True, True, False, True]),
    )


@eqx.filter_jit
def run(dynamics, clip, task, segment=None):
    return dynamics(clip, task, segment)


@pytest.fixture(scope="module")
def whole(dynamics, clip):
    return run(dynamics, clip, TASK)


def change(clip, path, index, value):
    return eqx.tree_at(path, clip, path(clip).at[index].set(value))


# ---- time


@pytest.fixture(scope="module")
def acts(dynamics, clip):
    """How the latents of a frame (last axis) act on the prediction and on the read-out of a frame."""

    def both(z):
        z_hat, h = dynamics(clip.at(z, clip.levels), TASK)
        z_hat = z_hat.reshape(FRAMES, -1)
        return jnp.stack([jnp.pad(z_hat, ((0, 0), (0, h.shape[1] - z_hat.shape[1]))), h])

    return influence(both, clip.z, outputs=2)


def test_nothing_depends_on_later_latents(acts):
    age = np.subtract.outer(np.arange(FRAMES), np.arange(FRAMES))
    # Two time layers reach two windows back.
    reach = (age >= 0) & (age <= 2 * (WINDOW - 1))
    assert np.array_equal(acts > 0, np.stack([reach, reach]))


CHANGES = {
    "latent": (lambda c: c.z, 7.0),
    "tau_index": (lambda c: c.levels.tau_index, K_MAX),
    "step_index": (lambda c: c.levels.step_index, 3),
    "discrete": (lambda c: c.action.discrete, 0),
    "continuous": (lambda c: c.action.continuous, 1.0),
    "action_mask": (lambda c: c.action_mask, False),
}


@pytest.mark.parametrize("name", CHANGES)
def test_an_input_of_a_frame_acts_on_this_frame_and_later_ones_alone(dynamics, clip, whole, name):
    path, value = CHANGES[name]
    clip = change(clip, lambda c: c.action.discrete, 6, 1)
    clip = change(clip, lambda c: c.levels.step_index, 6, 1)
    before, after = run(dynamics, clip, TASK), run(dynamics, change(clip, path, 6, value), TASK)
    for a, b in zip(before, after, strict=True):
        moved = np.abs(a - b).reshape(FRAMES, -1).max(-1)
        assert not moved[:6].any()
        assert (moved[6:] > 1e-6).all()


def test_segments_do_not_see_each_other(dynamics, clip):
    whole = run(dynamics, clip, TASK, jnp.arange(FRAMES))
    moved = run(dynamics, change(clip, lambda c: c.z, 4, 7.0), TASK, jnp.arange(FRAMES))
    for a, b in zip(whole, moved, strict=True):
        assert equal(np.delete(a, 4, axis=0), np.delete(b, 4, axis=0))
        assert distance(a[4], b[4]) > 1e-3


@eqx.filter_jit
def stepwise(dynamics, clip, task):
    def body(stream, frame):
        z_hat, h, entry = dynamics.step(frame, task, stream)
        return Stream(stream.cache.write(entry, stream.position), stream.position + 1), (z_hat, h)

    return jax.lax.scan(body, dynamics.init_cache(), clip)


def test_step_equals_call_at_every_position_through_two_wraps(dynamics, clip, whole):
    stream, out = stepwise(dynamics, clip, TASK)
    assert distance(out, whole) < 1e-5
    assert int(stream.position) == FRAMES


def test_step_without_agent_predicts_the_same_world_from_the_same_cache(dynamics, clip, whole):
    stream, _ = stepwise(dynamics, jax.tree.map(lambda leaf: leaf[:-1], clip), TASK)
    last = jax.tree.map(lambda leaf: leaf[-1], clip)
    z_hat, h, _ = eqx.filter_jit(dynamics.step)(last, None, stream)
    assert h is None
    assert distance(z_hat, whole[0][-1]) < 1e-5


def test_prefill_equals_call_and_leaves_the_cache_of_steps(dynamics, clip, whole):
    z_hat, h, entries = eqx.filter_jit(dynamics.prefill)(clip, TASK)
    assert distance((z_hat, h), whole) < 1e-5
    filled = dynamics.init_cache().cache.fill(entries, jnp.array(FRAMES))
    assert distance(filled, stepwise(dynamics, clip, TASK)[0].cache) < 1e-5


def test_drafts_equal_steps_after_the_frames_before_them(dynamics, clip):
    drafts = clip.at(clip.z[::-1] + 1.0, Levels(jnp.zeros(FRAMES, jnp.int32), jnp.full(FRAMES, 2, jnp.int32)))

    @eqx.filter_jit
    def by_steps(dynamics):
        def body(stream, frames):
            draft, frame = frames
            z_hat, _, _ = dynamics.step(draft, None, stream)
            entry = dynamics.step(frame, TASK, stream)[2]
            return Stream(stream.cache.write(entry, stream.position), stream.position + 1), z_hat

        return jax.lax.scan(body, dynamics.init_cache(), (drafts, clip))[1]

    @eqx.filter_jit
    def at_once(dynamics):
        return dynamics.drafts(drafts, dynamics.prefill(clip, TASK)[2])

    assert distance(at_once(dynamics), by_steps(dynamics)) < 1e-5


def test_a_head_of_velocities_means_the_latents_they_lead_to(clip, whole):
    velocity = built(prediction="v")
    left = 1 - np.asarray(clip.levels.tau_index, np.float64)[:, None, None] / K_MAX
    expected = np.asarray(clip.z, np.float64) + left * np.asarray(whole[0], np.float64)
    np.testing.assert_allclose(run(velocity, clip, TASK)[0], expected, atol=1e-5)


def test_a_mixture_with_more_noise_is_brought_to_unit_scale(clip, whole):
    tau = np.asarray(clip.levels.tau_index)[:, None, None] / K_MAX
    louder = built(shortcut=SETTINGS["shortcut"] | {"noise_scale": 4.0})
    assert louder.grid.noise_scale == 4.0
    np.testing.assert_allclose(
        run(louder, clip.at(clip.z * ((1 - tau) * 4 + tau), clip.levels), TASK)[0], whole[0], atol=1e-5
    )


# ---- the one-way agent


def test_the_world_does_not_depend_on_task_or_agent_tokens(dynamics, clip, whole):
    z_hat, h = run(dynamics, clip, jnp.array(2))
    assert equal(z_hat, whole[0])
    assert (np.abs(h - whole[1]).max(-1) > 1e-3).all()
    alone, nothing = run(dynamics, clip, None)
    assert nothing is None
    assert distance(alone, whole[0]) < 1e-5


def test_agent_parameters_get_no_gradient_from_the_world(dynamics, clip):
    agent = dynamics.transformer.layout.slots("agent")

    def tables(dynamics):
        return dynamics.task.table, dynamics.transformer.slot

    @jax.jit
    def gradients(task, slot):
        (z_hat, h), pull = jax.vjp(lambda *t: eqx.tree_at(tables, dynamics, t)(clip, TASK), task, slot)
        nothing = jnp.zeros_like(z_hat), jnp.zeros_like(h)
        return pull((z_hat**2, nothing[1])), pull((nothing[0], h**2))

    (task_from_world, slot_from_world), (task_from_agent, slot_from_agent) = gradients(*tables(dynamics))
    assert not task_from_world.any()
    assert not slot_from_world[agent].any()
    assert slot_from_world[: agent.start].any(axis=-1).all()
    assert task_from_agent[1].any() and not task_from_agent[0].any()
    assert slot_from_agent.any(axis=-1).all()


def test_the_agent_sees_the_frame_the_past_and_the_action(dynamics, clip, whole, acts):
    assert (np.diag(acts[1]) > 0).all() and (np.diag(acts[1], -1) > 0).all()
    moved = run(dynamics, change(clip, lambda c: c.action.continuous, 10, -clip.action.continuous[10]), TASK)
    assert distance(moved[1][10], whole[1][10]) > 1e-3


def test_the_layout_is_one_way():
    layout = dynamics_layout(3, 2, 2)
    mask, agent = layout.space_mask(), layout.slots("agent")
    assert layout.size == agent.stop == 9
    assert mask[:, : agent.start].all()
    assert not mask[: agent.start, agent].any()
    assert mask[agent].all()
    assert all(layout.through_time())


# ---- tokens


def test_actions_count_only_where_they_are_known(dynamics, clip, whole):
    hidden = np.flatnonzero(~clip.action_mask)
    moved = change(clip, lambda c: c.action.discrete, hidden, 1)
    moved = change(moved, lambda c: c.action.continuous, hidden, 0.77)
    assert equal(run(dynamics, moved, TASK), whole)
    masked = run(dynamics, change(clip, lambda c: c.action_mask, 10, False), TASK)
    assert distance(masked[0][10], whole[0][10]) > 1e-3


@pytest.mark.parametrize(
    "spec", [ActionSpec((3,)), ActionSpec((2, 5, 2)), ActionSpec((), 4), ActionSpec((3, 2), 1)], ids=str
)
def test_an_action_is_a_base_plus_the_sum_of_its_components(spec):
    encoder = generic(ActionEncoder, spec, 8, key=jr.key(0))
    random = np.random.default_rng(0)
    discrete = (
        np.stack([random.integers(0, n, 6) for n in spec.num_classes], -1) if spec.num_classes else np.zeros((6, 0))
    )
    continuous = random.uniform(-2, 2, (6, spec.continuous_dim))
    action = Action(jnp.asarray(discrete, jnp.int32), jnp.asarray(continuous, jnp.float32))
    mask = jnp.array([True, False, True, True, False, True])
    expected = np.tile(np.asarray(encoder.base, np.float64), (6, 1))
    for t in np.flatnonzero(mask):
        for i, table in enumerate(encoder.discrete):
            expected[t] += np.asarray(table.table)[int(discrete[t, i])]
        if spec.continuous_dim:
            expected[t] += np.clip(continuous[t], -1, 1) @ np.asarray(encoder.continuous.weight, np.float64)
    tokens = encoder(action, mask)
    assert distance(tokens, expected) < 1e-6
    assert equal(tokens[1], encoder.base)


def test_signal_and_step_size_share_one_token(dynamics):
    layout, width = dynamics.transformer.layout, dynamics.transformer.slot.shape[-1]
    shortcut = layout.slots("shortcut")
    assert shortcut.stop - shortcut.start == 1
    assert dynamics.signal.table.shape == (K_MAX + 1, width // 2)
    assert dynamics.step_size.table.shape == (4, width // 2)
    null = Action.null(SPEC.action)

    def token(tau_index, step_index):
        levels = Levels(jnp.array(tau_index), jnp.array(step_index))
        return dynamics._tokens(NoisyFrames(jnp.zeros((NZ, DZ)), levels, null, jnp.array(False)), TASK)[shortcut][0]

    expected = np.concatenate([dynamics.signal.table[5], dynamics.step_size.table[2]])
    assert equal(token(5, 2), expected)
