"""Agent finetuning losses (eq 9): the clock of multi-token prediction, written out frame by frame."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from dreamer4.agent import LatentHead, agent_losses, build_heads, reconstruction_loss, weighted_mean
from dreamer4.agent.losses import offset_index
from dreamer4.config import AgentConfig
from dreamer4.types import Action, ActionSpec, Trajectory


LENGTH, WIDTH, OFFSETS = 6, 5, 3
SPEC = ActionSpec((3, 2), 2)


@pytest.fixture(scope="module")
def heads():
    """Heads whose read-outs are not zero, so that every offset says something else."""
    config = AgentConfig(hidden=8, mtp_length=OFFSETS, num_bins=11, bin_limit=2.0)
    heads = eqx.filter_jit(build_heads)(config, WIDTH, SPEC, key=jr.key(0))

    def where(heads):
        used = (heads.policy, heads.reward, heads.continuation)
        return [leaf for head in used for leaf in (head.mlp.readout.weight, head.mlp.readout.bias)]

    rng = np.random.default_rng(1)
    return eqx.tree_at(where, heads, [jnp.asarray(0.5 * rng.normal(size=x.shape), jnp.float32) for x in where(heads)])


@pytest.fixture(scope="module")
def h():
    return jnp.asarray(np.random.default_rng(2).normal(size=(LENGTH, WIDTH)), jnp.float32)


def clip(seed=0, **changes):
    """A clip full of awkward cases: a start, an unknown action in the middle, a terminal frame, padding behind it."""
    rng = np.random.default_rng(seed)
    row = Trajectory(
        frame=None,
        latent=None,
        action=Action(
            jnp.asarray(np.stack([rng.integers(0, n, LENGTH) for n in SPEC.num_classes], -1), jnp.int32),
            jnp.asarray(rng.uniform(-1, 1, (LENGTH, SPEC.continuous_dim)), jnp.float32),
        ),
        action_mask=jnp.array([False, True, False, True, True, False]),
        reward=jnp.asarray(rng.normal(size=LENGTH), jnp.float32),
        is_first=jnp.arange(LENGTH) == 0,
        is_last=jnp.arange(LENGTH) == LENGTH - 2,
        is_terminal=jnp.arange(LENGTH) == LENGTH - 2,
        valid=jnp.arange(LENGTH) < LENGTH - 1,
        task=jnp.array(0),
        relevant=jnp.array(True),
        uniform=jnp.array(True),
    )
    return dataclasses.replace(row, **changes)


@eqx.filter_jit
def counted(heads, h, row):
    return agent_losses(heads.policy, heads.reward, heads.continuation, h, row)


def losses(heads, h, row):
    return counted(heads, h, row)[0]


@eqx.filter_jit
def _offsets(heads, h):
    return heads.policy.offsets(h), heads.reward.offsets(h), heads.continuation.offsets(h)


def predict(heads, h):
    return jax.tree.map(np.asarray, _offsets(heads, h))


def log_softmax(x):
    x = np.asarray(x, np.float64)
    return x - np.log(np.sum(np.exp(x - x.max()))) - x.max()


def two_hot_nll(logits, bins, value):
    bins = np.asarray(bins, np.float64)
    value = np.clip(float(value), bins[0], bins[-1])
    above = np.clip(np.searchsorted(bins, value, side="right"), 1, len(bins) - 1)
    share = (value - bins[above - 1]) / (bins[above] - bins[above - 1])
    log_probs = log_softmax(logits)
    return -(share * log_probs[above] + (1 - share) * log_probs[above - 1])


def slow(heads, h, row):
    """Eq 9 with loops: `h[t]` has seen action t, so its policy speaks of action t + 1 + n, the rest of frame t + n."""
    policy, reward, goes_on = predict(heads, h)
    row = jax.tree.map(np.asarray, row)
    bins = np.asarray(reward.bins)
    cloning, rewards, ends = [], [], []
    for t in range(LENGTH):
        for n in range(OFFSETS):
            target = t + 1 + n
            if target < LENGTH and row.valid[target] and row.action_mask[target] and row.relevant:
                nll = 0.0
                for i, part in enumerate(policy.discrete):
                    nll -= log_softmax(part.logits[t, n])[int(row.action.discrete[target, i])]
                for d in range(SPEC.continuous_dim):
                    logits = policy.continuous.logits[t, n, d]
                    centres = np.linspace(-1, 1, len(logits))
                    bin_ = np.argmin(np.abs(centres - row.action.continuous[target, d]))
                    nll -= log_softmax(logits)[bin_] / SPEC.continuous_dim
                cloning.append(nll)
            target = t + n
            if target < LENGTH and row.valid[target]:
                if not row.is_first[target]:
                    rewards.append(two_hot_nll(reward.logits[t, n], bins, row.reward[target]))
                probability = 1 / (1 + np.exp(-float(goes_on.logit[t, n])))
                ends.append(-np.log(1 - probability if row.is_terminal[target] else probability))
    terms = {"cloning": cloning, "reward": rewards, "continuation": ends}
    means = {name: np.mean(values) if values else 0.0 for name, values in terms.items()}
    return means, {name: len(values) for name, values in terms.items()}


CASES = {
    "whole episode, padded": {},
    "middle of an episode": {
        "is_first": jnp.zeros(LENGTH, bool),
        "is_last": jnp.zeros(LENGTH, bool),
        "is_terminal": jnp.zeros(LENGTH, bool),
        "valid": jnp.ones(LENGTH, bool),
        "action_mask": jnp.ones(LENGTH, bool),
    },
    "irrelevant": {"relevant": jnp.array(False)},
    "unlabelled video": {"action_mask": jnp.zeros(LENGTH, bool)},
    "a single valid frame": {"valid": jnp.arange(LENGTH) < 1},
}


@pytest.mark.parametrize("case", list(CASES))
def test_equals_a_loop_over_frames_and_offsets(heads, h, case):
    row = clip(**CASES[case])
    (got, number), (expected, counts) = counted(heads, h, row), slow(heads, h, row)
    assert set(got) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=1e-7, err_msg=name)
        assert number[name] == counts[name], name


def test_clips_weigh_by_their_targets():
    means, counts = jnp.array([1.0, 4.0, 0.0]), jnp.array([6, 2, 0])
    assert weighted_mean(means, counts) == (6 * 1.0 + 2 * 4.0) / 8
    assert weighted_mean(means, jnp.zeros(3, jnp.int32)) == 0


@pytest.mark.parametrize("case", ["irrelevant", "unlabelled video", "a single valid frame"])
def test_without_a_target_cloning_is_exactly_zero(heads, h, case):
    row = clip(**CASES[case])
    assert losses(heads, h, row)["cloning"] == 0
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(by_policy(heads, h, row)))


@eqx.filter_jit
def by_policy(heads, h, row):
    def cloning(policy):
        return agent_losses(policy, heads.reward, heads.continuation, h, row)[0]["cloning"]

    return eqx.filter_grad(cloning)(heads.policy)


def test_a_first_frame_brings_no_reward(heads, h):
    row = clip()
    other = dataclasses.replace(row, reward=row.reward.at[0].set(50.0))
    assert losses(heads, h, row)["reward"] == losses(heads, h, other)["reward"]
    # The same change at any other valid frame is felt.
    other = dataclasses.replace(row, reward=row.reward.at[1].set(50.0))
    assert losses(heads, h, row)["reward"] != losses(heads, h, other)["reward"]


def test_padding_and_unknown_actions_are_not_targets(heads, h):
    row = clip()
    hidden = ~(row.valid & row.action_mask)
    action = Action(
        jnp.where(hidden[:, None], 1 - jnp.minimum(row.action.discrete, 1), row.action.discrete),
        jnp.where(hidden[:, None], 0.9, row.action.continuous),
    )
    padded = ~row.valid
    other = dataclasses.replace(
        row,
        action=action,
        reward=jnp.where(padded, 7.0, row.reward),
        is_terminal=row.is_terminal | padded,
    )
    for name, value in losses(heads, h, row).items():
        assert losses(heads, h, other)[name] == value, name


@pytest.fixture(scope="module")
def influence(heads, h):
    """For one frame's read-out at a time: which loss it moves."""
    return eqx.filter_jit(jax.jacrev(lambda h, row: losses(heads, h, row)))


def test_a_read_out_learns_only_from_its_own_offsets(heads, h, influence):
    known = jnp.array([False, False, False, False, True, False])
    gradient = influence(h, clip(action_mask=known, is_first=jnp.arange(LENGTH) < 4))
    # Action 4 is 1, 2 and 3 frames behind read-outs 3, 2 and 1. The reward of frame 4 is at offsets 0, 1, 2.
    moved = {name: np.flatnonzero(np.any(np.asarray(g) != 0, -1)).tolist() for name, g in gradient.items()}
    assert moved == {"cloning": [1, 2, 3], "reward": [2, 3, 4], "continuation": [0, 1, 2, 3, 4]}


def test_offset_index_counts_frames_ahead():
    index, inside = offset_index(4, 3, 1)
    assert index.tolist() == [[1, 2, 3], [2, 3, 3], [3, 3, 3], [3, 3, 3]]
    assert inside.tolist() == [[True] * 3, [True, True, False], [True, False, False], [False] * 3]


def test_reconstruction_is_the_mean_squared_error_of_real_frames(h):
    rng = np.random.default_rng(3)
    latent = rng.normal(size=(LENGTH, 2, 3))
    head = LatentHead(WIDTH, 2, 3, key=jr.key(0))
    head = eqx.tree_at(lambda x: x.readout.bias, head, jnp.asarray(rng.normal(size=6), jnp.float32))
    valid = jnp.arange(LENGTH) < LENGTH - 2

    read = np.asarray(h, np.float64) @ np.asarray(head.readout.weight, np.float64) + np.asarray(head.readout.bias)
    expected = np.mean((read.reshape(LENGTH, 2, 3) - latent)[valid] ** 2)
    loss, gradient = jax.value_and_grad(lambda h: reconstruction_loss(head, h, jnp.float32(latent), valid))(h)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert np.array_equal(np.any(gradient, axis=-1), valid)
    assert reconstruction_loss(head, h, jnp.float32(latent), jnp.zeros(LENGTH, bool)) == 0
