"""Heads: how they start, what offset 0 is, and their shapes for every kind of action."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from dreamer4.agent import build_heads
from dreamer4.config import AgentConfig, ContinuousConfig
from dreamer4.nn import Normal
from dreamer4.types import ActionSpec


WIDTH, OFFSETS, BINS = 6, 3, 11
CASES = {
    "one choice": (ActionSpec((3,)), "bins"),
    "joints": (ActionSpec((), 2), "bins"),
    "levers": (ActionSpec((), 1), "beta"),
    "mixed": (ActionSpec((4, 2), 3), "normal"),
}


@eqx.filter_jit
def build(spec, kind):
    continuous = ContinuousConfig(kind=kind, bins=5, least_scale=0.1)
    config = AgentConfig(hidden=8, layers=1, mtp_length=OFFSETS, num_bins=BINS, bin_limit=3.0, continuous=continuous)
    return build_heads(config, WIDTH, spec, key=jr.key(0))


def randomised(heads):
    """The same heads with read-outs that are no longer zero."""

    def where(heads):
        used = (heads.policy, heads.reward, heads.continuation)
        return [leaf for head in used for leaf in (head.mlp.readout.weight, head.mlp.readout.bias)]

    rng = np.random.default_rng(1)
    return eqx.tree_at(where, heads, [jnp.asarray(rng.normal(size=x.shape), jnp.float32) for x in where(heads)])


@eqx.filter_jit
def look(heads, h):
    """Everything that the tests ask of heads, in one compilation: plain calls, offsets, and what follows from them."""
    now = heads.policy(h)
    action = now.sample(key=jr.key(3))
    return {
        "policy": now,
        "policies": heads.policy.offsets(h),
        "action": action,
        "continuous": (now.continuous.mean(), heads.policy.offsets(h).continuous.mode()),
        "scores": (now.log_prob(action), now.kl(now), now.entropy()),
        "reward": heads.reward(h),
        "rewards": heads.reward.offsets(h),
        "reward means": heads.reward.offsets(h).mean(),
        "continuation": heads.continuation(h),
        "continuations": heads.continuation.offsets(h),
        "continuation means": heads.continuation.offsets(h).mean(),
        "values": heads.value.offsets(h),
        "value mean": heads.value(h).mean(),
        "bins": (heads.reward(h).bins, heads.reward.offsets(h).bins, heads.value(h).bins),
    }


@pytest.fixture(params=list(CASES), scope="module")
def case(request):
    """The action spec, what fresh heads say, and what trained ones say, of read-outs of shape [2 7]."""
    spec, kind = CASES[request.param]
    heads, h = build(spec, kind), jnp.asarray(np.random.default_rng(2).normal(size=(2, 7, WIDTH)), jnp.float32)
    return spec, *(jax.tree.map(np.asarray, look(x, 10.0 * h)) for x in (heads, randomised(heads)))


def test_policy_starts_uniform(case):
    spec, fresh, _ = case
    for part, classes in zip(fresh["policy"].discrete, spec.num_classes, strict=True):
        assert part.logits.shape == (2, 7, classes) and not np.any(part.logits)
    np.testing.assert_allclose(fresh["continuous"][0], 0.0, atol=1e-6)
    if not spec.continuous_dim:
        chance = -sum(np.log(n) for n in spec.num_classes)
        logp, _, entropy = fresh["scores"]
        np.testing.assert_allclose(logp, chance, rtol=1e-6)
        np.testing.assert_allclose(entropy, -chance, rtol=1e-6)


def test_policy_shapes_and_ranges(case):
    spec, _, trained = case
    assert trained["action"].discrete.shape == (2, 7, len(spec.num_classes))
    assert trained["action"].continuous.shape == (2, 7, spec.continuous_dim)
    assert all(score.shape == (2, 7) for score in trained["scores"])
    every = trained["policies"]
    assert [part.logits.shape for part in every.discrete] == [(2, 7, OFFSETS, n) for n in spec.num_classes]
    modes = trained["continuous"][1]
    assert modes.shape == (2, 7, OFFSETS, spec.continuous_dim) and np.all(np.abs(modes) <= 1)
    if isinstance(every.continuous, Normal):
        scale = np.exp(every.continuous.log_scale)
        assert np.all((scale >= 0.0999) & (scale <= 1.0001)) and scale.min() < 0.2 and scale.max() > 0.9


def test_offset_zero_is_the_plain_call(case):
    _, _, trained = case
    for one, several in (("policy", "policies"), ("reward", "rewards")):
        first = jax.tree.map(lambda leaf: leaf[:, :, 0], trained[several])
        assert jax.tree.all(jax.tree.map(np.array_equal, first, trained[one]))
        # The offsets are separate predictions.
        second = jax.tree.map(lambda leaf: leaf[:, :, 1], trained[several])
        assert not any(np.allclose(a, b) for a, b in zip(*map(jax.tree.leaves, (first, second)), strict=True) if a.size)
    logits = trained["continuations"].logit
    assert logits.shape == (2, 7, OFFSETS)
    np.testing.assert_array_equal(logits[..., 0], trained["continuation"].logit)
    assert not np.allclose(logits[..., 0], logits[..., 1])


def test_rewards_and_values_start_at_exactly_zero(case):
    _, fresh, _ = case
    assert not np.any(fresh["reward means"]) and not np.any(fresh["value mean"])
    assert np.all(fresh["continuation means"] == 0.5)
    assert fresh["rewards"].logits.shape == (2, 7, OFFSETS, BINS)
    assert fresh["values"].logits.shape == (2, 7, 1, BINS)


def test_the_bin_limit_reaches_the_distributions(case):
    _, fresh, _ = case
    for bins in fresh["bins"]:
        assert bins.shape == (BINS,)
        np.testing.assert_allclose(bins[[0, -1]], [-np.expm1(3.0), np.expm1(3.0)], rtol=1e-6)


def test_components_do_not_share_outputs():
    # One entry of the read-out's bias moves one number, of one component at one offset, and each entry another.
    head = build(*CASES["mixed"]).policy
    size = head.mlp.readout.bias.shape[0]
    assert size == OFFSETS * (4 + 2 + 2 * 3)

    @jax.jit
    @jax.vmap
    def offsets(bias):
        return eqx.tree_at(lambda h: h.mlp.readout.bias, head, bias).offsets(jnp.ones(WIDTH))

    start, moved = offsets(jnp.zeros((1, size))), offsets(jnp.eye(size))
    numbers = [
        jax.tree.map(lambda x: np.asarray(x).reshape(len(x), -1), jax.tree.leaves(tree)) for tree in (start, moved)
    ]
    start, moved = (np.concatenate(parts, axis=1) for parts in numbers)
    changed = moved != start
    assert np.all(changed.sum(0) == 1) and np.all(changed.sum(1) == 1)


def test_heads_start_from_different_weights():
    heads = build(*CASES["one choice"])
    hidden = [np.asarray(h.mlp.hidden[0].weight) for h in (heads.policy, heads.reward, heads.continuation, heads.value)]
    assert not any(np.any(a == b) for i, a in enumerate(hidden) for b in hidden[:i])
