"""The agent as a whole: one memory for both worlds, how it acts, and how it is kept."""

import dataclasses
import json
from inspect import unwrap

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from agent.fakes import TINY, TINY_SPEC, build_tiny, randomised

from dreamer4 import Dreamer
from dreamer4.checkpoint import Checkpoints
from dreamer4.dreamer import _as_pixels, find_checkpoint, spec_from_json, spec_to_json
from dreamer4.errors import InputError
from dreamer4.nn import ActionDistribution, Categorical, Normal
from dreamer4.tokenizer import LatentStats
from dreamer4.training import build_phase
from dreamer4.types import Action, ActionSpec, DataSpec, Trajectory


LENGTH = TINY.dynamics.transformer.context_length


@pytest.fixture(scope="module")
def untrained():
    return build_tiny()


@pytest.fixture(scope="module")
def dreamer(untrained):
    return randomised(untrained)


@pytest.fixture(scope="module")
def row():
    """A clip of frames with their latents left out."""
    rng = np.random.default_rng(1)
    mask = jnp.array([False, True, False, True, True])
    return Trajectory(
        frame=jnp.asarray(rng.integers(0, 256, (LENGTH, *TINY_SPEC.frame_shape)), jnp.uint8),
        latent=None,
        action=Action(
            jnp.asarray(rng.integers(0, 3, (LENGTH, 1)), jnp.int32),
            jnp.asarray(rng.uniform(-1, 1, (LENGTH, 2)), jnp.float32),
        ),
        action_mask=mask,
        reward=jnp.zeros(LENGTH),
        is_first=jnp.arange(LENGTH) == 0,
        is_last=jnp.zeros(LENGTH, bool),
        is_terminal=jnp.zeros(LENGTH, bool),
        valid=jnp.ones(LENGTH, bool),
        task=jnp.array(1, jnp.int32),
        relevant=jnp.array(True),
        uniform=jnp.array(True),
    )


@eqx.filter_jit
def compare(dreamer, row, count):
    """Memories after `count` frames: observed one by one, and recalled at once from encoded latents."""
    video = row.frame / 255.0
    keys = jr.split(jr.key(2), LENGTH)

    def observe(memory, given):
        frame, action, mask, key = given
        memory = dreamer.observe(memory, frame, action, mask, key=key)
        return memory, memory

    inputs = (video, row.action, row.action_mask, keys)
    _, passed = jax.lax.scan(observe, dreamer.init(row.task), inputs)
    one_by_one = jax.tree.map(lambda x: x[count - 1], passed)
    clip = dataclasses.replace(row, frame=None, latent=dreamer.tokenizer.encode(video))
    return one_by_one, dreamer.recall(clip, count, key=jr.key(3))


@pytest.mark.parametrize("count", [1, 3, LENGTH])
def test_recall_equals_observing_frame_by_frame(dreamer, row, count, monkeypatch):
    # The two draw their context noise in different shapes; without noise they must agree.
    monkeypatch.setattr(jr, "normal", lambda key, shape=(), dtype=jnp.float32: jnp.zeros(shape, dtype))
    observed, recalled = compare(dreamer, row, jnp.array(count))
    # Two layers of attention in another order of summation.
    np.testing.assert_allclose(recalled.world.h, observed.world.h, rtol=1e-4, atol=1e-5)
    assert recalled.world.task == observed.world.task == 1
    assert recalled.world.stream.position == observed.world.stream.position == count
    np.testing.assert_array_equal(recalled.world.stream.cache.position, observed.world.stream.cache.position)
    for part in ("key", "value"):
        a, b = (getattr(memory.world.stream.cache, part) for memory in (recalled, observed))
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert jax.tree.structure(recalled) == jax.tree.structure(observed)


@eqx.filter_jit
def recall(dreamer, row, latent, count):
    return dreamer.recall(dataclasses.replace(row, frame=None, latent=latent), count, key=jr.key(3))


def test_recall_forgets_what_has_not_happened_yet(dreamer, row):
    rng = np.random.default_rng(2)
    latent = jnp.asarray(rng.normal(size=(LENGTH, 2, 4)), jnp.float32)
    short = recall(dreamer, row, latent, jnp.array(3))
    same = recall(dreamer, row, latent.at[3:].add(9.0), jnp.array(3))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), short, same))
    other = recall(dreamer, row, latent.at[2].add(9.0), jnp.array(3))
    assert not np.allclose(short.world.h, other.world.h)


def test_recall_needs_latents(dreamer, row):
    with pytest.raises(InputError, match="without latents"):
        dreamer.recall(row, jnp.array(1), key=jr.key(0))


@eqx.filter_jit
def advance(dreamer, row):
    memory = dreamer.init(1)
    frame = row.frame[0] / 255.0
    first = dreamer.observe(memory, frame, Action.null(TINY_SPEC.action), jnp.array(False), key=jr.key(0))
    action = jax.tree.map(lambda x: x[1], row.action)
    _, dreamed = dreamer.imagine_step(first, action, key=jr.key(1))
    seen = dreamer.observe(first, frame, action, jnp.array(True), key=jr.key(1))
    return memory, first, dreamed, seen


def test_real_and_imagined_frames_advance_one_memory(dreamer, row):
    start, first, dreamed, seen = advance(dreamer, row)
    shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), memory) for memory in (start, first, dreamed, seen)]
    assert all(jax.tree.structure(m) == jax.tree.structure(start) for m in (first, dreamed, seen))
    assert shapes[0] == shapes[1] == shapes[2] == shapes[3]
    assert [int(m.world.stream.position) for m in (start, first, dreamed, seen)] == [0, 1, 2, 2]
    # The tokenizer's past stands still in a dream.
    assert [int(m.encoder.position) for m in (start, first, dreamed, seen)] == [0, 1, 1, 2]
    assert all(int(m.world.task) == 1 for m in (start, first, dreamed, seen))
    # The dream's past is the real past.
    np.testing.assert_array_equal(dreamed.world.stream.cache.key[..., 0, :], first.world.stream.cache.key[..., 0, :])
    assert not np.allclose(dreamed.world.h, first.world.h) and not np.any(start.world.h)


# The policy and its prior.


def test_policy_and_prior_start_as_one_and_share_no_buffer(untrained):
    policy, prior = jax.tree.leaves(untrained.policy), jax.tree.leaves(untrained.prior)
    for a, b in zip(policy, prior, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.unsafe_buffer_pointer() != b.unsafe_buffer_pointer()


def test_after_finetuning_the_prior_is_the_cloned_policy(dreamer):
    assert not np.array_equal(dreamer.policy.mlp.readout.weight, dreamer.prior.mlp.readout.weight)
    finished = build_phase("agent", TINY, TINY_SPEC).finish(dreamer)
    # The policy goes on from cloning; it is the prior that is replaced.
    for part in (finished.policy, finished.prior):
        assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), part, dreamer.policy))


# Acting.


@eqx.filter_jit
def act(dreamer, memory, mode, policy, temperature, key):
    return dreamer.act(memory, mode=mode, policy=policy, temperature=temperature, key=key)


@eqx.filter_jit
def act_often(dreamer, memory, temperature):
    keys = jr.split(jr.key(5), 2000)
    return jax.vmap(lambda key: dreamer.act(memory, temperature=temperature, key=key))(keys)


@pytest.fixture(scope="module")
def memory(dreamer):
    h = jnp.asarray(np.random.default_rng(3).normal(size=dreamer.dynamics.agent_dim), jnp.float32)
    return eqx.tree_at(lambda m: m.world.h, dreamer.init(), h)


def test_mode_is_the_likeliest_action_of_the_chosen_head(dreamer, memory):
    for name in ("policy", "prior"):
        distribution = getattr(dreamer, name)(dreamer.readout(memory))
        chosen = act(dreamer, memory, "mode", name, 1.0, jr.key(0))
        assert chosen.discrete.tolist() == [int(np.argmax(distribution.discrete[0].logits))]
        # One rounding apart: the one is compiled, the other not.
        np.testing.assert_allclose(chosen.continuous, distribution.continuous.mode(), rtol=1e-6)
        again = act(dreamer, memory, "mode", name, 1.0, jr.key(1))
        assert again.discrete.tolist() == chosen.discrete.tolist()


def test_samples_follow_the_policy(dreamer, memory):
    distribution = dreamer.policy(dreamer.readout(memory))
    drawn = act_often(dreamer, memory, 1.0)
    shares = np.bincount(drawn.discrete[:, 0], minlength=3) / 2000
    # Three standard errors of a share.
    np.testing.assert_allclose(shares, distribution.discrete[0].mean(), atol=3 * 0.5 / 2000**0.5)
    np.testing.assert_allclose(drawn.continuous.mean(0), distribution.continuous.mean(), atol=0.05)


def test_temperature_goes_from_the_mode_to_chance(dreamer, memory):
    distribution = dreamer.policy(dreamer.readout(memory))
    cold, hot = act_often(dreamer, memory, 1e-6), act_often(dreamer, memory, 1e3)
    assert np.all(cold.discrete == np.argmax(distribution.discrete[0].logits))
    # Anywhere in the likeliest of 21 bins.
    assert np.abs(cold.continuous - distribution.continuous.mode()).max() <= 0.05 + 1e-6
    np.testing.assert_allclose(np.bincount(hot.discrete[:, 0], minlength=3) / 2000, 1 / 3, atol=0.04)
    # Even over [-1, 1], the outer bins half as wide.
    np.testing.assert_allclose(hot.continuous.std(0), 0.606, atol=0.03)


def test_temperature_divides_logits_and_scales_spread():
    logits, loc = jnp.array([1.0, -2.0]), jnp.array([0.3])
    plain = ActionDistribution((Categorical(logits),), Normal(loc, jnp.array([-1.0])))
    tempered = plain.tempered(2.0)
    np.testing.assert_allclose(tempered.discrete[0].logits, logits / 2)
    np.testing.assert_allclose(jnp.exp(tempered.continuous.log_scale), 2 * np.exp(-1.0), rtol=1e-6)
    np.testing.assert_allclose(tempered.continuous.loc, loc)


def test_acting_otherwise_than_it_can_is_refused(dreamer, memory):
    for wrong in ({"mode": "greedy"}, {"policy": "clone"}, {"temperature": -1.0}, {"key": 0}):
        with pytest.raises(InputError, match="expected"):
            unwrap(Dreamer.act)(dreamer, memory, **{"key": jr.key(0), **wrong})


# Frames as they must not be.


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (np.full((4, 4, 1), 200, np.uint8), "uint8, expected floats in"),
        (np.full((4, 4, 1), 200.0, np.float32), "outside"),
        (np.full((4, 4, 1), -1.0, np.float32), "outside"),
        (np.full((4, 4, 1), np.nan, np.float32), "outside"),
        (np.zeros((1, 4, 4), np.float32), "shape"),
        (np.zeros((4, 4), np.float32), "shape"),
    ],
)
def test_observe_refuses_frames_of_another_kind(dreamer, frame, message):
    given = Action.null(TINY_SPEC.action), jnp.array(False)
    with pytest.raises(InputError, match=message):
        unwrap(Dreamer.observe)(dreamer, dreamer.init(), jnp.asarray(frame), *given, key=jr.key(0))


def test_actions_that_are_none_are_refused(dreamer):
    null, memory = Action.null(TINY_SPEC.action), dreamer.init()
    count = len(TINY_SPEC.action.num_classes)
    for wrong, message in (
        (Action(null.discrete + 99, null.continuous), "classes .*99"),
        (Action(null.discrete - 1, null.continuous), "classes .*-1"),
        (Action(jnp.zeros(count + 1, jnp.int32), null.continuous), "shapes"),
        (Action(null.discrete, jnp.zeros(7)), "shapes"),
    ):
        with pytest.raises(InputError, match=message):
            unwrap(Dreamer.imagine_step)(dreamer, memory, wrong, key=jr.key(0))
        with pytest.raises(InputError, match=message):
            unwrap(Dreamer.observe)(dreamer, memory, jnp.zeros((4, 4, 1)), wrong, jnp.array(True), key=jr.key(0))


def test_observe_refuses_bytes_as_floats_in_a_jitted_loop(dreamer):
    tokenizer = dreamer.tokenizer  # the agent itself is compiled elsewhere
    look = eqx.filter_jit(lambda frame: _as_pixels(frame, tokenizer.frame_shape))
    np.testing.assert_array_equal(look(jnp.ones((4, 4, 1))), 1.0)
    with pytest.raises(RuntimeError, match="outside"):
        look(jnp.full((4, 4, 1), 255.0))


# Keeping.


def meta(config):
    return {"config": config.model_dump(mode="json"), "spec": spec_to_json(TINY_SPEC), "phase": "agent"}


def equal(a, b):
    a, b = (jax.tree.leaves(eqx.filter(x, eqx.is_array)) for x in (a, b))
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture(scope="module")
def saved(dreamer, tmp_path_factory):
    """A run with two phases; the averaged weights differ from the trained ones."""
    run = tmp_path_factory.mktemp("run")
    stats = LatentStats(0.5 * jnp.ones((2, 4)), 2.0 * jnp.ones((2, 4)), jnp.array(True))
    dreamer = eqx.tree_at(lambda d: d.tokenizer.stats, dreamer, stats)
    raw = jax.tree.map(lambda x: x + 1 if eqx.is_inexact_array(x) else x, dreamer)
    tree = {"model": raw, "ema": dreamer}
    for phase, step in (("tokenizer", 30), ("agent", 10), ("agent", 20)):
        Checkpoints(run / "checkpoints" / phase).save(step, tree, meta=meta(TINY))
    return run, dreamer


def test_a_checkpoint_is_all_it_takes(saved):
    run, dreamer = saved
    loaded = Dreamer.load(run / "checkpoints" / "agent" / "20")
    assert jax.tree.structure(loaded) == jax.tree.structure(dreamer)
    # The averaged weights, and the latent statistics with them.
    assert equal(loaded, dreamer) and loaded.tokenizer.stats.measured
    assert equal(Dreamer.load(str(run / "checkpoints" / "agent" / "20"), like=dreamer), dreamer)


def test_a_run_means_the_newest_step_of_its_latest_phase(saved):
    run, _ = saved
    agent = run / "checkpoints" / "agent"
    for path in (run, agent, agent / "20"):
        assert find_checkpoint(path) == agent / "20"
    assert find_checkpoint(run / "checkpoints" / "tokenizer") == run / "checkpoints" / "tokenizer" / "30"


def test_one_of_several_seeds_is_loaded(dreamer, tmp_path):
    config = TINY.model_copy(update={"seeds": 3})
    stacked = jax.tree.map(lambda x: jnp.stack([x, x + 1, x + 2]) if eqx.is_inexact_array(x) else x, dreamer)
    measured = jnp.array([True, False, True])
    stacked = eqx.tree_at(lambda d: d.tokenizer.stats.measured, stacked, measured)
    path = Checkpoints(tmp_path).save(1, {"model": stacked, "ema": stacked}, meta=meta(config))
    for member in (0, 2):
        expected = jax.tree.map(lambda x, i=member: x + i if eqx.is_inexact_array(x) else x, dreamer)
        expected = eqx.tree_at(lambda d: d.tokenizer.stats.measured, expected, measured[member])
        assert equal(Dreamer.load(path, member=member), expected)
    for member in (-1, 3):
        with pytest.raises(InputError, match="member"):
            Dreamer.load(path, member=member)


def test_a_task_or_a_number_of_passes_that_it_does_not_know_is_refused(dreamer, memory):
    assert dreamer.dynamics.num_tasks == TINY_SPEC.num_tasks
    for task in (TINY_SPEC.num_tasks, -1, 0.5, jnp.array(99)):
        with pytest.raises(InputError, match="Dreamer.init: .*task"):
            unwrap(Dreamer.init)(dreamer, task)
    for passes in (3, 2.5, np.int64(3), jnp.array(0)):
        with pytest.raises(InputError, match="num_steps: got"):
            null = Action.null(TINY_SPEC.action)
            unwrap(Dreamer.imagine_step)(dreamer, memory, null, num_steps=passes, key=jr.key(0))


def test_a_missing_checkpoint_is_bad_input(saved, tmp_path):
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(InputError, match="No checkpoint"):
            Dreamer.load(path)
    with pytest.raises(InputError, match="member 1"):
        Dreamer.load(saved[0], member=1)


@pytest.mark.parametrize("harm", ["arrays", "manifest", "cut"])
def test_a_damaged_checkpoint_is_bad_input(dreamer, tmp_path, harm):
    path = Checkpoints(tmp_path).save(1, {"model": dreamer, "ema": dreamer}, meta=meta(TINY))
    if harm == "manifest":
        file = path / "manifest.json"
        file.write_text(file.read_text().replace("agent", "agend", 1))
    else:
        file = max((f for f in (path / "arrays").rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data[: len(data) // 2] if harm == "cut" else data)
    with pytest.raises(InputError, match="damaged"):
        Dreamer.load(path)


def test_a_checkpoint_of_other_sizes_is_bad_input(saved, dreamer):
    wider = eqx.tree_at(lambda d: d.policy.mlp.readout.bias, dreamer, jnp.zeros(99))
    with pytest.raises(InputError, match="policy.mlp.readout.bias"):
        Dreamer.load(saved[0], like=wider)


def test_a_specification_survives_json():
    for spec in (TINY_SPEC, DataSpec((10, 5, 1), ActionSpec((3,))), DataSpec((1, 2, 3), ActionSpec((), 6), 4)):
        assert spec_from_json(json.loads(json.dumps(spec_to_json(spec)))) == spec


def test_an_agent_is_found_in_the_home_folder(saved, monkeypatch):
    monkeypatch.setenv("HOME", str(saved[0].parent))
    assert equal(Dreamer.load(f"~/{saved[0].name}"), saved[1])


def test_loading_goes_on_to_the_next_checkpoint(saved, monkeypatch):
    run, _ = saved
    found = iter([run / "checkpoints" / "agent" / "5", run / "checkpoints" / "agent" / "20"])  # 5 is gone
    monkeypatch.setattr("dreamer4.dreamer.find_checkpoint", lambda path: next(found))
    assert equal(Dreamer.load(run), saved[1])


def test_64_bits_of_the_program_around_change_nothing(saved):
    with jax.enable_x64(True):
        loaded = Dreamer.load(saved[0])
        memory = loaded.init()
    assert equal(loaded, saved[1]) and memory.world.h.dtype == jnp.float32
