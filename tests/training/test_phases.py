"""The loss of each phase: which rows and frames it counts, what it is measured against, and where gradients go."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from agent.fakes import TINY, TINY_SPEC, build_tiny, drawn_on_the_host, oracle, randomised
from jaxtyping import Array, Float, Int

from dreamer4.agent import AbstractPolicyObjective, LatentHead, PolicyBatch, agent_losses, lambda_returns
from dreamer4.config import ShortcutConfig
from dreamer4.dreamer import Dreamer
from dreamer4.dynamics.shortcut import AbstractNetwork, NoiseGrid, NoisyFrames, ShortcutDynamics, build_forcing
from dreamer4.errors import InputError
from dreamer4.imagination import imagine
from dreamer4.training import AgentPhase, ImaginationPhase, build_phase, measure_latents
from dreamer4.training.phases import context_count
from dreamer4.types import Action, ActionSpec, DataSpec, Trajectory


ROWS, LENGTH = 4, 5


def clips(rng, spec=TINY_SPEC, num_spatial=2, spatial_dim=4, **changes):
    """A batch of latents: row 2 is padded behind a terminal frame, the others are middles of episodes."""
    shape = (ROWS, LENGTH)
    end = (jnp.arange(ROWS) == 2)[:, None] & (jnp.arange(LENGTH) == 2)
    batch = Trajectory(
        frame=None,
        latent=jnp.asarray(rng.normal(size=(*shape, num_spatial, spatial_dim)), jnp.float32),
        action=Action(
            jnp.asarray(rng.integers(0, 3, (*shape, len(spec.action.num_classes))), jnp.int32),
            jnp.asarray(rng.uniform(-1, 1, (*shape, spec.action.continuous_dim)), jnp.float32),
        ),
        action_mask=jnp.ones(shape, bool),
        reward=jnp.asarray(rng.normal(size=shape), jnp.float32),
        is_first=jnp.zeros(shape, bool),
        is_last=end,
        is_terminal=end,
        valid=~((jnp.arange(ROWS) == 2)[:, None] & (jnp.arange(LENGTH) > 2)),
        task=jnp.zeros(ROWS, jnp.int32),
        relevant=jnp.ones(ROWS, bool),
        uniform=jnp.ones(ROWS, bool),
    )
    return dataclasses.replace(batch, **changes)


@pytest.fixture(scope="module")
def tiny():
    return randomised(build_tiny())


# Shortcut forcing. The stand-in predicts one number for each step size and row, so that targets are known: whatever
# the noise, two half steps of a constant prediction lead to that prediction.

K_MAX = 8
FINEST = 3
SPY_SPEC = DataSpec((2, 2, 1), ActionSpec((ROWS,)))


class Table(AbstractNetwork):
    """Predicts `table[step_index, row]`; the row is told by the action. Calls are counted, row by row."""

    table: Float[Array, "S B"]
    seen: list = eqx.field(static=True)
    grid: NoiseGrid
    num_spatial: int = eqx.field(static=True, default=1)
    spatial_dim: int = eqx.field(static=True, default=1)
    agent_dim: int = eqx.field(static=True, default=16)
    context_length: int = eqx.field(static=True, default=LENGTH)

    def __call__(
        self, frames: NoisyFrames, task: Int[Array, ""] | None, segment: Int[Array, " T"] | None = None
    ) -> tuple[Float[Array, "T Nz Dz"], Float[Array, "T E"] | None]:
        row, levels = frames.action.discrete[:, 0], frames.levels
        shown = row[0], levels.tau_index, levels.step_index, frames.action_mask
        jax.debug.callback(lambda *call: self.seen.append(call), *shown)
        value = self.table[levels.step_index, row]
        h = None if task is None else value[:, None] * jnp.ones(self.agent_dim)
        return value[:, None, None] + 0.0 * frames.z, h

    def prefill(self, *_):
        raise NotImplementedError

    drafts = init_cache = step = flops = prefill


SEEN: list = []
VALUES = np.arange(1.0, 1.0 + 4 * ROWS).reshape(4, ROWS) ** 1.5  # no two differences alike


@eqx.filter_jit
def _spy_loss(settings, batch, progress, key):
    forcing = build_forcing(settings, context_signal=0.9)

    def loss(table):
        dynamics = ShortcutDynamics(Table(table, SEEN, NoiseGrid(K_MAX)), forcing)
        world = dynamics.loss(batch, progress, with_readout=False, key=key)
        return world.loss, (world.metrics, world.image)

    return jax.value_and_grad(loss, has_aux=True)(jnp.asarray(VALUES, jnp.float32))


@pytest.fixture(scope="module")
def spy():
    def spy(batch, progress, seed=0, **settings):
        """Loss, metrics, image rows, gradient by [step index, row], and the calls of the model."""
        SEEN.clear()
        settings = ShortcutConfig(**{"k_max": K_MAX, "bootstrap_start": 0.5, "image_fraction": 0.0, **settings})
        (value, (metrics, image)), gradient = _spy_loss(settings, batch, jnp.float32(progress), jr.key(seed))
        jax.block_until_ready(gradient)
        jax.effects_barrier()
        return value, metrics, np.asarray(image), np.asarray(gradient), list(SEEN)

    return spy


@pytest.fixture(scope="module")
def spied():
    rows = jnp.broadcast_to(jnp.arange(ROWS, dtype=jnp.int32)[:, None, None], (ROWS, LENGTH, 1))
    batch = clips(np.random.default_rng(0), SPY_SPEC, 1, 1, action=Action(rows, jnp.zeros((ROWS, LENGTH, 0))))
    return dataclasses.replace(batch, latent=jnp.zeros((ROWS, LENGTH, 1, 1)), valid=jnp.ones((ROWS, LENGTH), bool))


@pytest.mark.parametrize("fraction", [0.5, 0.0])
def test_only_the_first_rows_call_teachers(spy, spied, fraction):
    count = round(fraction * ROWS)
    *_, calls = spy(spied, 0.9, mode="split", bootstrap_fraction=fraction)
    per_row = np.bincount([int(row) for row, *_ in calls], minlength=ROWS)
    # One pass of the student, and two half steps where there is a teacher.
    assert per_row.tolist() == [3] * count + [1] * (ROWS - count)
    *_, calls = spy(spied, 0.1, mode="split", bootstrap_fraction=fraction)
    assert np.bincount([int(row) for row, *_ in calls], minlength=ROWS).tolist() == [1] * ROWS


def test_in_paper_mode_every_row_calls_teachers(spy, spied):
    *_, calls = spy(spied, 0.9, mode="paper")
    assert np.bincount([int(row) for row, *_ in calls], minlength=ROWS).tolist() == [3] * ROWS


def test_rows_with_teachers_learn_coarse_steps_and_the_others_the_finest(spy, spied):
    hit = np.zeros((4, ROWS), bool)
    for seed in range(8):
        hit |= spy(spied, 0.9, seed, mode="split", bootstrap_fraction=0.5)[3] != 0
    np.testing.assert_array_equal(hit[:FINEST], np.array([[1, 1, 0, 0]] * FINEST, bool))
    np.testing.assert_array_equal(hit[FINEST], [False, False, True, True])


@pytest.mark.parametrize("mode", ["split", "paper"])
def test_targets_are_data_first_and_then_two_half_steps(spy, spied, mode):
    # The same key draws the same noise levels, so the gradients differ by the targets alone: the data are 0, and the
    # teacher of a step is the prediction for steps half as large. A gradient into the teacher would break this too.
    compared = 0
    for seed in range(4):
        before, after = (spy(spied, p, seed, mode=mode, bootstrap_fraction=0.5)[3] for p in (0.499, 0.5))
        for step in range(4):
            for row in range(ROWS):
                target = VALUES[step + 1, row] if step < FINEST else 0.0
                ratio = (VALUES[step, row] - target) / VALUES[step, row]
                np.testing.assert_allclose(after[step, row], ratio * before[step, row], rtol=1e-3, atol=1e-6)
                compared += before[step, row] != 0
    assert compared > 20


@pytest.mark.parametrize(("floor", "images"), [(0.1, 0.0), (0.7, 0.5)])
def test_the_loss_is_the_ramped_error_of_the_frames_that_count(spy, spied, floor, images):
    settings = {"bootstrap_fraction": 0.5} if images == 0 else {"ramp_floor": floor, "image_fraction": images}
    value, metrics, _, _, calls = spy(spied, 0.1, mode="split", **settings)
    terms, flow = [], []
    for row, tau_index, step_index, _ in calls:
        error = VALUES[np.asarray(step_index), int(row)] ** 2
        terms.append(((1 - floor) * np.asarray(tau_index) / K_MAX + floor) * error)
        flow.extend(error[np.asarray(step_index) == FINEST])
    np.testing.assert_allclose(value, np.mean(terms), rtol=1e-5)
    # The metrics are without the ramp.
    np.testing.assert_allclose(metrics["flow"], np.mean(flow), rtol=1e-5)


@pytest.mark.parametrize("field", ["uniform", "valid"])
def test_the_world_learns_only_from_uniform_rows_and_real_frames(spy, spied, field):
    rows = jnp.array([True, False, True, False])
    mask = rows if field == "uniform" else rows[:, None] & jnp.ones((ROWS, LENGTH), bool)
    batch = dataclasses.replace(spied, **{field: mask})
    value, _, _, gradient, _ = spy(batch, 0.9, mode="split", bootstrap_fraction=0.5)
    assert np.all(gradient[:, 1] == 0) and np.all(gradient[:, 3] == 0)
    assert np.any(gradient[:, 0] != 0) and np.any(gradient[:, 2] != 0)
    # The mean is over what counts: rows left out do not dilute it.
    full = spy(spied, 0.9, mode="split", bootstrap_fraction=0.5)[3]
    np.testing.assert_allclose(gradient[:, [0, 2]], 2 * full[:, [0, 2]], rtol=1e-5)
    nothing = dataclasses.replace(spied, **{field: jnp.zeros_like(mask)})
    value, _, _, gradient, _ = spy(nothing, 0.9, mode="split", bootstrap_fraction=0.5)
    assert value == 0 and not np.any(gradient)


def test_images_have_no_actions(spy, spied):
    share = 0
    for seed in range(6):
        _, _, image, _, calls = spy(spied, 0.1, seed, mode="split", ramp_floor=0.7, image_fraction=0.5)
        for row, _, _, mask in calls:
            assert np.all(np.asarray(mask) == (not image[int(row)]))
        share += image.sum()
    assert 0 < share < 6 * ROWS


def test_frames_are_refused_where_latents_are_needed(spy, spied):
    with pytest.raises(InputError, match="Encode the data set first"):
        spy(dataclasses.replace(spied, latent=None), 0.9)


# Agent finetuning, on a real model.


ON_READOUT = ("cloning", "reward", "continuation", "reconstruction")


@eqx.filter_jit
def _agent_gradient(dreamer, batch, key, weights, progress, image_fraction=0.0):
    # No teachers: they are tested above, and their passes would double the compilation.
    changes = {"image_fraction": image_fraction, "bootstrap_fraction": 0.0}
    forcing = build_forcing(TINY.dynamics.shortcut.model_copy(update=changes), context_signal=0.9)
    dreamer = dataclasses.replace(dreamer, dynamics=dataclasses.replace(dreamer.dynamics, forcing=forcing))
    phase = AgentPhase(warm_heads=0.5, reconstruction=1.0)

    def total(dreamer):
        terms, _ = phase.loss(dreamer, batch, progress, key=key)
        return sum(terms[name] * weight for name, weight in weights.items()), terms

    return eqx.filter_grad(total, has_aux=True)(dreamer)


def agent_gradient(dreamer, batch, *names, progress=0.5, **settings):
    weights = {name: jnp.float32(name in names) for name in ("dynamics", *ON_READOUT)}
    return _agent_gradient(dreamer, batch, jr.key(0), weights, jnp.float32(progress), **settings)


def moved(tree):
    return any(bool(np.any(leaf)) for leaf in jax.tree.leaves(eqx.filter(tree, eqx.is_array)))


@pytest.fixture(scope="module")
def batch():
    return clips(np.random.default_rng(1))


@pytest.mark.parametrize("name", ON_READOUT)
def test_untrained_heads_learn_without_shaping_the_world_model(tiny, batch, name):
    early, terms = agent_gradient(tiny, batch, name, progress=0.49)
    late, same = agent_gradient(tiny, batch, name)
    head = "policy" if name == "cloning" else name
    assert moved(getattr(early, head))
    assert eqx.tree_equal(getattr(early, head), getattr(late, head))
    assert not moved(early.dynamics)
    assert terms[name] == same[name]
    assert moved(agent_gradient(tiny, batch, "dynamics", progress=0.49)[0].dynamics)


@pytest.mark.parametrize("name", ON_READOUT)
def test_agent_losses_shape_the_world_model_but_not_the_tokenizer(tiny, batch, name):
    gradient, _ = agent_gradient(tiny, batch, name)
    dynamics = gradient.dynamics
    assert (
        moved(dynamics.network.transformer.groups)
        and moved(dynamics.network.action_in)
        and moved(dynamics.network.spatial_in)
    )
    assert moved(dynamics.network.task)
    # The flow head is not on the way to the agent's read-out.
    assert not moved(dynamics.network.flow_head)
    assert not moved(gradient.tokenizer) and not moved(gradient.prior) and not moved(gradient.value)
    heads = {name: getattr(gradient, "policy" if name == "cloning" else name) for name in ON_READOUT}
    assert {key for key, head in heads.items() if moved(head)} == {name}


def test_without_its_weight_there_is_nothing_to_reconstruct(tiny, batch):
    config = TINY.model_copy(update={"agent": TINY.agent.model_copy(update={"reconstruction": 0.0})})
    phase = build_phase("agent", config, TINY_SPEC)
    assert eqx.filter_eval_shape(Dreamer.build, config, TINY_SPEC, key=jr.key(0)).reconstruction is None
    plain = eqx.tree_at(lambda d: d.reconstruction, tiny, None)
    terms, _ = eqx.filter_eval_shape(phase.loss, plain, batch, jnp.float32(0), key=jr.key(0))
    assert set(terms) == set(phase.weights) == {"dynamics", *ON_READOUT} - {"reconstruction"}
    assert any(jax.tree.leaves(phase.trainable(tiny).reconstruction)) and any(jax.tree.leaves(phase.trainable(plain)))


def test_the_worlds_prediction_is_blind_to_the_agent(tiny, batch):
    gradient, _ = agent_gradient(tiny, batch, "dynamics")
    assert moved(gradient.dynamics.network.flow_head) and not moved(gradient.dynamics.network.task)
    assert not moved(gradient.policy) and not moved(gradient.reward) and not moved(gradient.continuation)


def test_cloning_learns_from_relevant_rows_and_rewards_from_all(tiny, batch):
    none = dataclasses.replace(batch, relevant=jnp.zeros(ROWS, bool), uniform=jnp.ones(ROWS, bool))
    gradient, terms = agent_gradient(tiny, none, "cloning")
    assert terms["cloning"] == 0 and not moved(gradient)
    assert terms["reward"] > 0 and terms["continuation"] > 0
    # One relevant row counts whole, not as a quarter. Together, each counts by its targets.
    only = [dataclasses.replace(batch, relevant=jnp.arange(ROWS) == i) for i in range(ROWS)]
    each = [agent_gradient(tiny, row)[1]["cloning"] for row in only]
    number = [cloning_targets(row) for row in batch.valid]
    assert len(set(number)) == 2
    mean = np.average(each, weights=number)
    np.testing.assert_allclose(agent_gradient(tiny, batch)[1]["cloning"], mean, rtol=1e-5)
    other = dataclasses.replace(batch, uniform=jnp.zeros(ROWS, bool))
    assert agent_gradient(tiny, other)[1]["dynamics"] == 0
    for name in ON_READOUT:
        assert agent_gradient(tiny, other)[1][name] == agent_gradient(tiny, batch)[1][name]


def cloning_targets(valid):
    offsets = range(1, TINY.agent.mtp_length + 1)
    return sum(bool(valid[t] and valid[t + n]) for t in range(LENGTH) for n in offsets if t + n < LENGTH)


def test_a_target_weighs_the_same_beside_padding(tiny, batch):
    """Heads that say the same of every frame, whose losses can be told without the world model."""

    def deafen(part):
        told = jnp.zeros_like(part.weight), jnp.linspace(-1, 1, part.bias.size, dtype=jnp.float32)
        return eqx.tree_at(lambda x: (x.weight, x.bias), part, told)

    def readouts(d):
        return [head.mlp.readout for head in (d.policy, d.reward, d.continuation)] + [d.reconstruction.readout]

    blind = eqx.tree_at(readouts, tiny, replace_fn=deafen)
    short = dataclasses.replace(batch, valid=jnp.arange(LENGTH) < jnp.array([LENGTH, 2, 3, LENGTH])[:, None])
    _, terms = agent_gradient(blind, short)

    def alone(row):
        h = jnp.zeros((LENGTH, tiny.dynamics.agent_dim))
        return agent_losses(blind.policy, blind.reward, blind.continuation, h, row)

    rows, counts = eqx.filter_jit(jax.vmap(alone))(short)
    for name, values in rows.items():
        assert len(set(np.asarray(counts[name]).tolist())) == 3
        np.testing.assert_allclose(terms[name], np.average(values, weights=counts[name]), rtol=1e-5, err_msg=name)
        assert not np.isclose(terms[name], np.mean(values), rtol=1e-4), "it could not tell the means apart"

    bias = np.asarray(blind.reconstruction.readout.bias, np.float64).reshape(batch.latent.shape[2:])
    error = np.mean((bias - np.asarray(batch.latent, np.float64)) ** 2, axis=(-2, -1))
    np.testing.assert_allclose(terms["reconstruction"], error[np.asarray(short.valid)].mean(), rtol=1e-5)


def test_rows_of_separate_images_do_not_teach_the_agent(tiny, spied):
    table = Table(jnp.asarray(VALUES, jnp.float32), [], NoiseGrid(K_MAX))
    one = LatentHead(table.agent_dim, 1, 1, key=jr.key(0))
    agent = eqx.tree_at(lambda d: (d.dynamics.network, d.reconstruction), tiny, (table, one))
    spec_action = Action(spied.action.discrete % 3, jnp.zeros((ROWS, LENGTH, 2)))
    batch = dataclasses.replace(spied, action=spec_action)
    gradient, terms = agent_gradient(agent, batch, *ON_READOUT, image_fraction=0.999)
    assert all(terms[name] == 0 for name in ON_READOUT) and terms["dynamics"] > 0
    assert not moved(gradient)


# Imagination, in a written world: the index counts up, the reward is the index plus ten times the action.

DISCOUNT, LAMBDA, HORIZON = 0.9, 0.8, 3


class Witness(AbstractPolicyObjective):
    """Keeps what it is shown."""

    shown: list = eqx.field(static=True)

    def __call__(self, batch: PolicyBatch) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        jax.debug.callback(lambda *x: self.shown.append(PolicyBatch(*x)), *jax.tree.leaves(batch))
        return jnp.sum(jnp.where(batch.mask, batch.prior_kl, 0.0)), {"shown": jnp.zeros(())}


SHOWN: list = []
WORLD = DataSpec((2, 2, 1), ActionSpec((3,)))
ENDS = 6.0


@pytest.fixture(scope="module")
def known():
    dreamer = oracle(
        WORLD,
        size=1,
        read=lambda frame: frame[0, 0],
        transition=lambda state, action: state + 1.0,
        reward=lambda h: h[0] + 10.0 * h[1],
        continuation=lambda h: jnp.where(h[0] < ENDS, 0.95, 0.05),
    )

    def where(d):
        return [d.policy.mlp.readout.weight, d.prior.mlp.readout.weight, d.value.mlp.readout.weight]

    rng = np.random.default_rng(0)
    return eqx.tree_at(where, dreamer, [jnp.asarray(rng.normal(size=x.shape), jnp.float32) for x in where(dreamer)])


@pytest.fixture(scope="module")
def pasts():
    """Rows that start at indices 0, 1, 2, 3; row 2 ends terminally at its third frame, row 3 is one terminal frame."""
    index = jnp.arange(ROWS, dtype=jnp.float32)[:, None] + jnp.arange(LENGTH)
    end = ((jnp.arange(ROWS) == 2)[:, None] & (jnp.arange(LENGTH) == 2)) | (jnp.arange(ROWS) == 3)[:, None]
    batch = clips(np.random.default_rng(2), WORLD, 1, 1)
    return dataclasses.replace(batch, latent=index[:, :, None, None], is_terminal=end, is_last=end)


@eqx.filter_jit
def _imagination(dreamer, batch, warm_value, progress, key):
    phase = ImaginationPhase(Witness(SHOWN), HORIZON, DISCOUNT, LAMBDA, warm_value)

    def total(dreamer):
        terms, metrics = phase.loss(dreamer, batch, progress, key=key)
        return terms["policy"] + terms["value"], (terms, metrics)

    return eqx.filter_grad(total, has_aux=True)(dreamer)


@pytest.fixture(scope="module")
def imagined(known, pasts):
    SHOWN.clear()
    gradient, (terms, metrics) = _imagination(known, pasts, 0.5, jnp.float32(0.5), jr.key(0))
    jax.block_until_ready(terms)
    jax.effects_barrier()
    (shown,) = SHOWN
    return gradient, terms, metrics, jax.tree.map(np.asarray, shown)


@eqx.filter_jit
def distributions(dreamer, h, event):
    policy, prior, value = dreamer.policy(h).discrete[0], dreamer.prior(h).discrete[0], dreamer.value(h)
    return policy.logits, prior.logits, value.mean(), value.log_prob(jnp.asarray(event, jnp.float32))


def log_softmax(x):
    x = np.asarray(x, np.float64)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_the_mask_follows_the_context_and_the_predicted_end(imagined):
    *_, shown = imagined
    assert shown.mask.shape == (ROWS, HORIZON)
    # Row 3 offers no start. Elsewhere the mask is a run of true entries, at least one, that an end cuts.
    assert not np.any(shown.mask[3]) and np.all(shown.mask[:3, 0])
    assert np.all(np.diff(shown.mask.astype(int), axis=1) <= 0)


@eqx.filter_jit
def redo(dreamer, batch, key):
    """The read-outs and actions of the dreams, drawn again from the same keys."""

    def dream(row, key):
        key_count, key_recall, key_dream = jr.split(key, 3)
        count, starts = context_count(row, key=key_count)
        return imagine(dreamer, dreamer.recall(row, count, key=key_recall), HORIZON, key=key_dream), count

    return jax.vmap(dream)(batch, jr.split(key, ROWS))


@pytest.fixture(scope="module")
def dreams(known, pasts):
    return jax.tree.map(np.asarray, redo(known, pasts, jr.key(0)))


def test_the_objective_sees_policy_returns_and_values_of_one_clock(known, imagined, dreams):
    *_, shown = imagined
    rollout, count = dreams
    policy, prior, value, _ = distributions(known, rollout.h, np.zeros(rollout.h.shape[:2]))
    policy, prior, value = log_softmax(policy), log_softmax(prior), np.asarray(value)
    for row in range(3):
        start = row + count[row] - 1
        # Dreams start from the last real frame, whose read-out was reached by the real action.
        np.testing.assert_array_equal(rollout.h[row, :, 0], start + np.arange(HORIZON + 1))
        arrived = rollout.h[row, 1:, 0] + 10.0 * rollout.action.discrete[row, :, 0]
        goes_on = np.where(rollout.h[row, 1:, 0] < ENDS, 0.95, 0.05)
        returns = lambda_returns(
            *(jnp.asarray(x, jnp.float32) for x in (arrived, goes_on, value[row])), discount=DISCOUNT, lambda_=LAMBDA
        )
        np.testing.assert_allclose(shown.advantage[row], returns - value[row, :-1], rtol=1e-4, atol=1e-4)
        for i in range(HORIZON):
            taken = rollout.action.discrete[row, i, 0]
            np.testing.assert_allclose(shown.logp[row, i], policy[row, i, taken], rtol=1e-4, atol=1e-5)
            p, q = policy[row, i], prior[row, i]
            np.testing.assert_allclose(shown.prior_kl[row, i], np.sum(np.exp(p) * (p - q)), rtol=1e-3, atol=1e-5)
        ended = rollout.h[row, :, 0] >= ENDS
        alive = ~np.logical_or.accumulate(ended)[:-1]
        alive[0] = True
        np.testing.assert_array_equal(shown.mask[row], alive)


def test_the_value_learns_returns_of_living_states(known, imagined, dreams):
    _, terms, metrics, shown = imagined
    rollout, _ = dreams
    _, _, value, _ = distributions(known, rollout.h, np.zeros(rollout.h.shape[:2]))
    baseline = np.asarray(value)[:, :-1]
    returns = np.pad(shown.advantage + baseline, [(0, 0), (0, 1)])
    nll = -np.asarray(distributions(known, rollout.h, returns)[-1])[:, :-1]
    np.testing.assert_allclose(terms["value"], nll[shown.mask].mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["imagined_length"], shown.mask.sum(1).mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["value_mean"], baseline[shown.mask].mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["imagined_return"], (rollout.reward * shown.mask).sum(1).mean(), rtol=1e-5)


def test_the_values_target_is_a_constant(known, imagined, dreams):
    # A gradient through the return would pull the later states' values towards the earlier ones'.
    gradient, _, _, shown = imagined
    rollout, _ = dreams
    h = jnp.asarray(rollout.h)

    @eqx.filter_jit
    @eqx.filter_grad
    def with_fixed_returns(value):
        fixed = jax.lax.stop_gradient(value(h).mean()[:, :-1] + shown.advantage)
        return -jnp.sum(jnp.where(shown.mask, value(h[:, :-1]).log_prob(fixed), 0.0)) / shown.mask.sum()

    for a, b in zip(*map(jax.tree.leaves, (gradient.value, with_fixed_returns(known.value))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_gradients_reach_policy_and_value_alone(imagined):
    gradient, *_ = imagined
    assert moved(gradient.policy) and moved(gradient.value)
    for part in (gradient.dynamics, gradient.reward, gradient.continuation, gradient.tokenizer):
        assert not moved(part)


def test_the_divergence_moves_the_policy_and_in_the_right_direction(known, imagined, dreams):
    gradient, _, _, shown = imagined
    rollout, _ = dreams
    h = jnp.asarray(rollout.h[:, :-1])

    @eqx.filter_jit
    @eqx.filter_grad
    def closed_form(policy):
        p = jax.nn.log_softmax(policy(h).discrete[0].logits)
        q = jax.nn.log_softmax(known.prior(h).discrete[0].logits)
        return jnp.sum(jnp.where(shown.mask, jnp.sum(jnp.exp(p) * (p - q), -1), 0.0))

    for a, b in zip(*map(jax.tree.leaves, (gradient.policy, closed_form(known.policy))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    assert moved(gradient.policy)


def test_the_policy_waits_while_the_value_warms_up(known, pasts, imagined):
    gradient, (terms, _) = _imagination(known, pasts, 0.5, jnp.float32(0.49), jr.key(0))
    assert terms["policy"] == 0 and not moved(gradient.policy)
    assert imagined[1]["policy"] > 0
    assert terms["value"] == imagined[1]["value"] and moved(gradient.value)


# Starts of dreams.


@eqx.filter_jit
def draw_counts(row, key):
    return jax.vmap(lambda key: context_count(row, key=key))(jr.split(key, 10_000))


def start_row(valid, terminal):
    shape = clips(np.random.default_rng(0))
    row = jax.tree.map(lambda x: x[0], shape)
    return dataclasses.replace(row, valid=jnp.asarray(valid, bool), is_terminal=jnp.asarray(terminal, bool))


@pytest.mark.parametrize(
    ("valid", "terminal", "usable"),
    [
        ([1, 1, 1, 1, 1], [0, 0, 0, 0, 0], 5),
        ([1, 1, 1, 1, 1], [0, 0, 0, 0, 1], 4),
        # Padding repeats the last frame, so it may look alive behind a time limit and terminal behind an end.
        ([1, 1, 1, 0, 0], [0, 0, 1, 0, 0], 2),
        ([1, 1, 1, 0, 0], [0, 0, 0, 0, 0], 3),
        ([1, 0, 0, 0, 0], [0, 0, 0, 0, 0], 1),
        ([1, 0, 0, 0, 0], [1, 0, 0, 0, 0], 0),
    ],
)
def test_dreams_start_at_every_living_frame_alike(valid, terminal, usable):
    count, starts = map(np.asarray, draw_counts(start_row(valid, terminal), jr.key(0)))
    assert np.all(starts == (usable > 0))
    shares = np.bincount(count, minlength=LENGTH + 1) / len(count)
    if usable:
        np.testing.assert_allclose(shares[1 : usable + 1], 1 / usable, atol=0.02)  # four standard errors
        assert shares[1 : usable + 1].sum() == 1
    else:
        assert np.all(count == 1), "a row without a start still needs a valid index"


# The rest.


def test_measured_latents_have_unit_scale(tiny):
    rng = np.random.default_rng(3)
    raw = jnp.asarray(rng.normal(3.0, 5.0, (400, 2, 4)) * np.array([1.0, 0.1, 1.0, 1e-6]), jnp.float32)
    # The encoding is asked for with identity statistics, whatever were measured before.
    stale = eqx.tree_at(lambda d: d.tokenizer.stats.mean, tiny, 7.0 * jnp.ones((2, 4)))
    dreamer, latents = measure_latents(stale, lambda d: d.tokenizer.stats.standardise(raw))
    assert dreamer.tokenizer.stats.measured and not tiny.tokenizer.stats.measured
    np.testing.assert_allclose(latents.mean(0), 0.0, atol=1e-3)
    np.testing.assert_allclose(latents[..., :3].std(0), 1.0, rtol=1e-3)
    # A dead channel is not blown up.
    assert np.all(latents[..., 3].std(0) < 1e-2)
    np.testing.assert_allclose(dreamer.tokenizer.stats.restore(latents), raw, rtol=1e-3, atol=1e-4)


def test_phases_are_built_by_name():
    for name in ("tokenizer", "dynamics", "agent", "imagination"):
        phase = build_phase(name, TINY, TINY_SPEC)
        assert phase.name == name and phase.weights
    assert build_phase("agent", TINY, TINY_SPEC).weights["reconstruction"] == TINY.agent.reconstruction
    with pytest.raises(InputError, match="imaginatoin"):
        build_phase("imaginatoin", TINY, TINY_SPEC)
    tokenizer = TINY.tokenizer.model_copy(update={"perceptual": "random_features", "perceptual_weight": 0.4})
    phase = drawn_on_the_host(build_phase, "tokenizer", TINY.model_copy(update={"tokenizer": tokenizer}), TINY_SPEC)
    assert phase.weights == {"mse": 1.0, "perceptual": 0.4}


def test_the_tokenizer_learns_from_every_frame_alike(tiny):
    frames = jnp.asarray(np.random.default_rng(5).integers(0, 256, (2, LENGTH, *TINY_SPEC.frame_shape)), jnp.uint8)
    batch = dataclasses.replace(jax.tree.map(lambda x: x[:2], clips(np.random.default_rng(1))), frame=frames)
    phase = build_phase("tokenizer", TINY, TINY_SPEC)
    loss = eqx.filter_jit(lambda batch: phase.loss(tiny, batch, jnp.float32(0), key=jr.key(0))[0]["mse"])
    long, brief = jnp.arange(LENGTH) < LENGTH, jnp.arange(LENGTH) < 2

    def of(*valid):
        return loss(dataclasses.replace(batch, valid=jnp.stack(valid)))

    first, second = of(long, jnp.zeros(LENGTH, bool)), of(jnp.zeros(LENGTH, bool), brief)
    np.testing.assert_allclose(of(long, brief), (LENGTH * first + 2 * second) / (LENGTH + 2), rtol=1e-5)
    assert not np.isclose(first, second, rtol=1e-3)
