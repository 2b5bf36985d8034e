"""Policy objectives: eq 11 term by term, and the laws that every registered objective obeys."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer4.agent import OBJECTIVES, PMPO, AdvantageWeighted, PolicyBatch, PolicyGradient, build_objective
from dreamer4.config import ObjectiveConfig
from dreamer4.errors import InputError
from dreamer4.nn import ActionDistribution, Categorical, Normal


SHAPE = (3, 4)
MASK = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]], bool)
ADVANTAGE = np.array([[2.0, -1.0, 0.5, -3.0], [0.0, 1.5, -9.0, 9.0], [4.0, -7.0, 7.0, 0.0]], np.float32)
RNG = np.random.default_rng(0)
LOGP = RNG.normal(size=SHAPE).astype(np.float32) - 1.0
PRIOR_KL = RNG.uniform(size=SHAPE).astype(np.float32)


def batch(logp=LOGP, prior_kl=PRIOR_KL, advantage=ADVANTAGE, mask=MASK):
    return PolicyBatch(*map(jnp.asarray, (logp, prior_kl, advantage, mask)))


def gradient(objective, data):
    """Derivatives of the loss with respect to log-probabilities, divergences and advantages."""

    def loss(logp, prior_kl, advantage):
        return objective(PolicyBatch(logp, prior_kl, advantage, data.mask))[0]

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(data.logp, data.prior_kl, data.advantage)
    return [np.asarray(g) for g in gradients]


def eq_11(alpha, beta, logp, prior_kl, advantage, mask):
    """Eq 11 with plain loops, in float64."""
    positive, negative, divergence = [], [], []
    for b in range(logp.shape[0]):
        for t in range(logp.shape[1]):
            if mask[b, t]:
                (positive if advantage[b, t] >= 0 else negative).append(float(logp[b, t]))
                divergence.append(float(prior_kl[b, t]))
    loss = beta * np.mean(divergence)
    if negative:
        loss += (1 - alpha) * np.mean(negative)
    if positive:
        loss -= alpha * np.mean(positive)
    return loss


@pytest.fixture(params=sorted(OBJECTIVES))
def objective(request):
    return build_objective(ObjectiveConfig(kind=request.param, beta=0.3))


# Laws of every registered objective.


def test_returns_a_scalar_loss_and_scalar_metrics(objective):
    loss, metrics = objective(batch())
    assert loss.shape == () and np.isfinite(loss)
    assert metrics and all(np.shape(value) == () and np.isfinite(value) for value in metrics.values())


def test_the_better_an_action_the_likelier_it_becomes(objective):
    by_logp, _, _ = gradient(objective, batch())
    order = np.argsort(ADVANTAGE[MASK])
    assert np.all(np.diff(by_logp[MASK][order]) <= 1e-7) and by_logp[MASK][order[-1]] < min(by_logp[MASK][order[0]], 0)


@pytest.mark.parametrize("objective", [PMPO(), PolicyGradient()])
def test_good_actions_become_likelier_and_bad_ones_less_likely(objective):
    by_logp, _, _ = gradient(objective, batch())
    # A loss that falls with logp raises it. An advantage of zero says neither in general.
    assert np.all(by_logp[MASK & (ADVANTAGE > 0)] < 0)
    assert np.all(by_logp[MASK & (ADVANTAGE < 0)] > 0)


def test_masked_steps_have_exactly_no_influence(objective):
    by_logp, by_kl, _ = gradient(objective, batch())
    assert np.all(by_logp[~MASK] == 0) and np.all(by_kl[~MASK] == 0)
    # Not even when what stands there is not a number.
    poisoned = [np.where(MASK, x, np.nan).astype(np.float32) for x in (LOGP, PRIOR_KL, ADVANTAGE)]
    assert objective(batch(*poisoned))[0] == objective(batch())[0]
    for clean, dirty in zip(gradient(objective, batch()), gradient(objective, batch(*poisoned)), strict=True):
        np.testing.assert_array_equal(clean, dirty)


def test_the_size_of_all_advantages_together_plays_no_part(objective):
    loss, _ = objective(batch())
    for factor in (1e-3, 1e4):
        scaled, _ = objective(batch(advantage=factor * ADVANTAGE))
        np.testing.assert_allclose(scaled, loss, rtol=1e-4)


def test_the_divergence_is_pulled_down_equally_everywhere(objective):
    _, by_kl, _ = gradient(objective, batch())
    np.testing.assert_allclose(by_kl[MASK], 0.3 / MASK.sum(), rtol=1e-5)


def test_no_gradient_reaches_the_advantage(objective):
    _, _, by_advantage = gradient(objective, batch())
    assert not np.any(by_advantage)


def test_the_order_of_rollouts_is_irrelevant(objective):
    order = np.array([2, 0, 1])
    turned = batch(LOGP[order], PRIOR_KL[order], ADVANTAGE[order], MASK[order])
    np.testing.assert_allclose(objective(turned)[0], objective(batch())[0], rtol=1e-5)


@pytest.mark.parametrize("kept", ["nothing", "positive", "negative", "zero"])
def test_empty_sets_are_finite(objective, kept):
    chosen = {
        "nothing": np.zeros(SHAPE, bool),
        "positive": MASK & (ADVANTAGE > 0),
        "negative": MASK & (ADVANTAGE < 0),
        "zero": MASK & (ADVANTAGE == 0),
    }[kept]
    loss, metrics = objective(batch(mask=chosen))
    assert np.isfinite(loss) and all(np.isfinite(value) for value in metrics.values())
    assert all(np.all(np.isfinite(g)) for g in gradient(objective, batch(mask=chosen)))
    if kept == "nothing":
        assert loss == 0


def test_an_unknown_kind_names_the_known_ones():
    with pytest.raises(InputError, match="pmpo"):
        build_objective(ObjectiveConfig(kind="pmppo"))


# PMPO, eq 11.


@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 0.3), (0.0, 0.0), (1.0, 0.1), (0.8, 2.0)])
def test_pmpo_is_eq_11(alpha, beta):
    loss, _ = PMPO(alpha, beta)(batch())
    np.testing.assert_allclose(loss, eq_11(alpha, beta, LOGP, PRIOR_KL, ADVANTAGE, MASK), rtol=1e-5)


def test_pmpo_has_the_defaults_of_the_paper():
    assert (PMPO().alpha, PMPO().beta) == (0.5, 0.3)


def test_pmpo_averages_each_set_over_its_own_size():
    positive, negative = MASK & (ADVANTAGE >= 0), MASK & (ADVANTAGE < 0)
    assert positive.sum() != negative.sum()
    by_logp, _, _ = gradient(PMPO(0.7, 0.0), batch())
    np.testing.assert_allclose(by_logp[positive], -0.7 / positive.sum(), rtol=1e-5)
    np.testing.assert_allclose(by_logp[negative], 0.3 / negative.sum(), rtol=1e-5)


def test_pmpo_counts_an_advantage_of_zero_as_positive():
    by_logp, _, _ = gradient(PMPO(), batch())
    assert ADVANTAGE[1, 0] == 0 and by_logp[1, 0] < 0
    alone, metrics = PMPO(0.5, 0.0)(batch(advantage=np.zeros(SHAPE, np.float32)))
    np.testing.assert_allclose(alone, -0.5 * LOGP[MASK].mean(), rtol=1e-5)
    assert metrics["positive_share"] == 1


def test_pmpo_depends_on_signs_alone():
    signs = np.where(ADVANTAGE >= 0, 1.0, -1.0).astype(np.float32)
    assert PMPO()(batch(advantage=signs))[0] == PMPO()(batch())[0]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_pmpo_leaves_an_empty_set_out(sign):
    loss, _ = PMPO(0.5, 0.0)(batch(advantage=np.full(SHAPE, sign, np.float32)))
    np.testing.assert_allclose(loss, -sign * 0.5 * LOGP[MASK].mean(), rtol=1e-5)


def test_pmpo_metrics():
    _, metrics = PMPO()(batch())
    np.testing.assert_allclose(metrics["prior_kl"], PRIOR_KL[MASK].mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["positive_share"], (ADVANTAGE[MASK] >= 0).mean(), rtol=1e-5)


@pytest.mark.parametrize(("alpha", "beta"), [(-0.1, 0.3), (1.1, 0.3), (0.5, -0.1)])
def test_pmpo_refuses_weights_out_of_range(alpha, beta):
    with pytest.raises(InputError, match="PMPO: got alpha"):
        PMPO(alpha, beta)


# The policy gradient.


def test_policy_gradient_is_the_scaled_score():
    loss, metrics = PolicyGradient(0.2)(batch())
    advantage = ADVANTAGE[MASK].astype(np.float64)
    size = np.sqrt(np.mean(advantage**2))
    expected = -np.mean(LOGP[MASK] * advantage / size) + 0.2 * PRIOR_KL[MASK].mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["advantage_size"], size, rtol=1e-5)
    by_logp, _, _ = gradient(PolicyGradient(0.2), batch())
    np.testing.assert_allclose(by_logp[MASK], -advantage / size / MASK.sum(), rtol=1e-5)


def test_policy_gradient_refuses_a_negative_weight():
    with pytest.raises(InputError, match="beta"):
        PolicyGradient(-1.0)


# Advantage-weighted regression.


@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_advantage_weighted_regression_weighs_by_the_exponential(temperature):
    loss, _ = AdvantageWeighted(0.2, temperature)(batch())
    advantage = ADVANTAGE[MASK].astype(np.float64)
    weight = np.minimum(np.exp(advantage / np.sqrt(np.mean(advantage**2)) / temperature), 20.0)
    assert (weight.max() == 20.0) == (temperature < 1)  # the bound matters in one of the cases
    np.testing.assert_allclose(loss, -np.mean(weight * LOGP[MASK]) + 0.2 * PRIOR_KL[MASK].mean(), rtol=1e-5)


@pytest.mark.parametrize(("beta", "temperature"), [(-1.0, 1.0), (0.3, 0.0)])
def test_advantage_weighted_regression_refuses_settings_out_of_range(beta, temperature):
    with pytest.raises(InputError, match="AdvantageWeighted: got beta"):
        AdvantageWeighted(beta, temperature)


# The divergence that the objectives pull on, as imagination training forms it.

LOGITS, PRIOR_LOGITS = np.array([1.0, -0.5, 0.2], np.float32), np.array([-1.0, 0.7, 0.1], np.float32)


def distribution(logits):
    return ActionDistribution((Categorical(logits),), Normal(jnp.zeros(0), jnp.zeros(0)))


def kl_loss(logits):
    kl = distribution(logits).kl(distribution(jnp.asarray(PRIOR_LOGITS)))
    ones = jnp.ones((1, 1))
    return PMPO(0.5, 1.0)(PolicyBatch(0.0 * ones, kl * ones, ones, ones > 0))[0]


def test_the_divergence_is_of_the_policy_from_the_prior():
    p, q = (np.exp(x) / np.exp(x).sum() for x in (LOGITS.astype(np.float64), PRIOR_LOGITS.astype(np.float64)))
    forward, reverse = np.sum(p * np.log(p / q)), np.sum(q * np.log(q / p))
    assert abs(forward - reverse) > 1e-2
    np.testing.assert_allclose(kl_loss(jnp.asarray(LOGITS)), forward, rtol=1e-5)
    by_logits = jax.grad(kl_loss)(jnp.asarray(LOGITS))
    np.testing.assert_allclose(by_logits, p * (np.log(p / q) - forward), rtol=1e-5, atol=1e-6)


def test_following_the_divergence_reaches_the_prior():
    logits = jnp.asarray(LOGITS)
    start = kl_loss(logits)
    step = eqx.filter_jit(lambda x: x - 0.5 * jax.grad(kl_loss)(x))
    for _ in range(100):
        logits = step(logits)
    assert kl_loss(logits) < 1e-3 * start
    np.testing.assert_allclose(jax.nn.softmax(logits), jax.nn.softmax(jnp.asarray(PRIOR_LOGITS)), atol=1e-2)
