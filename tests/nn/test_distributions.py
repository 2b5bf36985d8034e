"""Distributions against samples, closed forms and SciPy."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import distance
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from dreamer4.nn import ActionDistribution, Bernoulli, Beta, Bins, Categorical, Normal, SymexpTwoHot, symexp, symlog
from dreamer4.types import Action


DRAWS = 20_000


def categorical(seed=0):
    return Categorical(2 * jr.normal(jr.key(seed), (4,)))


def bernoulli(seed=0):
    return Bernoulli(jr.normal(jr.key(seed), ()))


def normal(seed=0, shape=()):
    loc, log_scale = jr.normal(jr.key(seed), (2, *shape))
    return Normal(loc, 0.5 * log_scale)


def bins(seed=0, shape=()):
    return Bins(2 * jr.normal(jr.key(seed), (*shape, 5)))


def beta(seed=0, shape=()):
    return Beta(*(1.0 + jnp.exp(jr.normal(jr.key(seed), (2, *shape)))))


def two_hot(seed=0):
    return SymexpTwoHot(jr.normal(jr.key(seed), (11,)), 2.0)


def mixed(seed=0):
    return ActionDistribution(
        (categorical(seed), Categorical(jr.normal(jr.key(seed + 1), (2,)))), normal(seed + 2, (3,))
    )


def discrete(seed=0):
    return ActionDistribution((categorical(seed), categorical(seed + 1)), Normal(jnp.zeros(0), jnp.zeros(0)))


def continuous(seed=0):
    return ActionDistribution((), normal(seed, (3,)))


def averaged(seed=0):
    return ActionDistribution((categorical(seed),), bins(seed + 1, (3,)), averaged=True)


EVERY = [categorical, bernoulli, normal, bins, beta, two_hot, mixed, discrete, continuous, averaged]
every = pytest.mark.parametrize("make", EVERY, ids=lambda m: m.__name__)


def draws(distribution, count=DRAWS, seed=0):
    return jax.jit(jax.vmap(lambda k: distribution.sample(key=k)))(jr.split(jr.key(seed), count))


def close(sample, expected, sigmas=5.0):
    """Whether a sample's mean is within so many standard errors of what is expected."""
    sample = np.asarray(sample, np.float64)
    return (np.abs(sample.mean(0) - expected) <= sigmas * sample.std(0) / len(sample) ** 0.5 + 1e-6).all()


# ---- every distribution


@every
def test_entropy_is_the_mean_of_minus_log_prob(make):
    distribution = make()
    log_probs = jax.vmap(distribution.log_prob)(draws(distribution))
    assert close(-log_probs, float(distribution.entropy()))


@every
def test_divergence_is_the_mean_log_ratio_and_never_negative(make):
    one, other = make(0), make(5)
    log_ratio = jax.vmap(lambda event: one.log_prob(event) - other.log_prob(event))(draws(one))
    assert close(log_ratio, float(one.kl(other)))
    assert one.kl(other) > 1e-2 and other.kl(one) > 1e-2
    assert abs(float(one.kl(one))) < 1e-6


@every
def test_divergence_has_gradients_in_both_arguments(make):
    one, other = make(0), make(5)
    gradients = jax.grad(lambda pair: pair[0].kl(pair[1]))((one, other))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert all(np.abs(leaf).max(initial=1.0 if leaf.size == 0 else 0.0) > 1e-4 for leaf in jax.tree.leaves(gradients))
    at_equal = jax.grad(lambda p: p.kl(one))(one)
    assert max(np.abs(leaf).max(initial=0) for leaf in jax.tree.leaves(at_equal)) < 1e-5


@every
def test_no_draw_is_more_likely_than_the_mode(make):
    distribution = make()
    log_probs = jax.vmap(distribution.log_prob)(draws(distribution, 500))
    assert (log_probs <= distribution.log_prob(distribution.mode()) + 1e-5).all()


@every
def test_batch_axes_come_first(make):
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), make(0), make(5))
    event = stacked.sample(key=jr.key(0))
    for i, seed in enumerate((0, 5)):
        one = make(seed)
        chosen = jax.tree.map(lambda leaf, i=i: leaf[i], event)
        assert distance(stacked.log_prob(event)[i], one.log_prob(chosen)) < 1e-5
        assert distance(stacked.entropy()[i], one.entropy()) < 1e-5
        assert distance(stacked.kl(stacked)[i], 0.0) < 1e-5
        assert distance(jax.tree.map(lambda leaf, i=i: leaf[i], stacked.mode()), one.mode()) < 1e-6


# ---- closed forms


def test_categorical():
    p = np.exp(np.asarray(categorical().logits, np.float64))
    p /= p.sum()
    assert stats.chisquare(np.bincount(draws(categorical()), minlength=4), DRAWS * p).pvalue > 1e-4
    assert distance(categorical().mean(), p) < 1e-6
    assert distance(jax.vmap(categorical().log_prob)(jnp.arange(4)), np.log(p)) < 1e-5
    q = np.asarray(categorical(5).mean(), np.float64)
    assert abs(float(categorical().kl(categorical(5))) - stats.entropy(p, q)) < 1e-5
    assert abs(float(categorical().entropy()) - stats.entropy(p)) < 1e-5


def test_beta():
    ours, other = beta(), beta(5)
    theirs = stats.beta(float(ours.alpha), float(ours.beta), loc=-1, scale=2)
    assert stats.kstest(np.asarray(draws(ours)), theirs.cdf).pvalue > 1e-4
    at = np.linspace(-0.99, 0.99, 9)
    assert distance(jax.vmap(ours.log_prob)(jnp.asarray(at)), theirs.logpdf(at)) < 1e-4
    assert distance(ours.mean(), theirs.mean()) < 1e-6 and distance(ours.entropy(), theirs.entropy()) < 1e-5
    across = stats.beta(float(other.alpha), float(other.beta), loc=-1, scale=2)
    integral = integrate.quad(lambda x: theirs.pdf(x) * (theirs.logpdf(x) - across.logpdf(x)), -1, 1)[0]
    assert abs(float(ours.kl(other)) - integral) < 1e-4
    # Divided by a temperature the density keeps its mode, and the log-density its shape.
    cold = ours.tempered(0.5)
    assert distance(cold.mode(), ours.mode()) < 1e-6
    rise = jax.vmap(cold.log_prob)(jnp.asarray(at)) - 2 * jax.vmap(ours.log_prob)(jnp.asarray(at))
    assert distance(rise, rise[0]) < 1e-4
    assert np.isfinite(
        jax.vmap(jax.grad(lambda x, d: d.log_prob(x), argnums=1), (0, None))(jnp.array([-1.0, 1.0]), ours).alpha
    ).all()


@pytest.mark.parametrize("logit", [-3.0, 0.2, 40.0])
def test_bernoulli(logit):
    distribution, p = Bernoulli(jnp.array(logit)), 1 / (1 + np.exp(-logit))
    assert close(draws(distribution), p)
    assert float(distribution.mode()) == (p > 0.5)
    assert abs(float(distribution.mean()) - p) < 1e-6
    assert abs(float(distribution.log_prob(jnp.array(1.0))) - stats.bernoulli.logpmf(1, p)) < 1e-5
    # Written with the logit, for 1 - p is 0.0 in float64 long before this is infinite.
    assert abs(float(distribution.log_prob(jnp.array(0.0))) - (-logit - np.log1p(np.exp(-logit)))) < 1e-5
    assert abs(float(distribution.entropy()) - stats.bernoulli.entropy(p)) < 1e-5


def test_normal():
    one, other = normal(), normal(5)
    loc, scale = (np.asarray(v, np.float64) for v in (one.loc, np.exp(one.log_scale)))
    sample = np.asarray(draws(one))
    assert close(sample, loc) and close((sample - loc) ** 2, scale**2)
    assert abs(float(one.log_prob(jnp.array(0.3))) - stats.norm.logpdf(0.3, loc, scale)) < 1e-4
    assert abs(float(one.entropy()) - stats.norm.entropy(loc, scale)) < 1e-5
    theirs = np.asarray(other.loc, np.float64), np.exp(np.asarray(other.log_scale, np.float64))

    def integrand(x):
        own = stats.norm.logpdf(x, loc, scale)
        return np.exp(own) * (own - stats.norm.logpdf(x, *theirs))

    expected = integrate.quad(integrand, loc - 10 * scale, loc + 10 * scale)[0]
    assert abs(float(one.kl(other)) - expected) < 1e-4


def test_bins_reach_everywhere_and_know_their_own_draws():
    distribution = bins()
    p = np.exp(np.asarray(distribution.logits, np.float64))
    p /= p.sum()
    sample = np.asarray(draws(distribution), np.float64)
    assert np.abs(sample).max() <= 1.0
    # Centres -1, -0.5, 0, 0.5, 1: the outer bins reach only inwards.
    counts = np.histogram(sample, [-1.0, -0.75, -0.25, 0.25, 0.75, 1.0])[0]
    assert stats.chisquare(counts, DRAWS * p).pvalue > 1e-4
    inner = sample[(sample > 0.25) & (sample < 0.75)]
    assert stats.kstest(inner, stats.uniform(0.25, 0.5).cdf).pvalue > 1e-4
    events = jnp.array([-1.7, -0.8, -0.7, 0.2, 0.3, 0.74, 0.76, 1.0])
    assert distance(jax.vmap(distribution.log_prob)(events), np.log(p)[[0, 0, 1, 2, 3, 3, 4, 4]]) < 1e-5
    assert abs(float(distribution.mean()) - p @ np.linspace(-1, 1, 5)) < 1e-6
    assert float(distribution.mode()) == np.linspace(-1, 1, 5)[p.argmax()]


@pytest.mark.parametrize("make", [mixed, discrete, continuous, averaged])
def test_an_action_sums_over_its_components(make):
    one, other = make(0), make(5)
    event = one.sample(key=jr.key(1))
    assert event.discrete.dtype == jnp.int32
    assert event.discrete.shape == (len(one.discrete),) and event.continuous.shape == one.continuous.mode().shape
    dims = event.continuous.size
    weight = 1 / dims if one.averaged else 1.0

    def total(of, continuous):
        parts = [of(p, o, event.discrete[i]) for i, (p, o) in enumerate(zip(one.discrete, other.discrete, strict=True))]
        return sum(map(float, parts)) + weight * sum(map(float, continuous)) if dims else sum(map(float, parts))

    rest = one.continuous
    assert abs(one.log_prob(event) - total(lambda p, o, e: p.log_prob(e), rest.log_prob(event.continuous))) < 1e-5
    assert abs(one.entropy() - total(lambda p, o, e: p.entropy(), rest.entropy())) < 1e-5
    assert abs(one.kl(other) - total(lambda p, o, e: p.kl(o), rest.kl(other.continuous))) < 1e-5


def test_components_are_drawn_independently():
    both = ActionDistribution((Categorical(jnp.zeros(2)),) * 2, Normal(jnp.zeros(2), jnp.zeros(2)))
    event: Action = draws(both)
    columns = np.concatenate([event.discrete, event.continuous], axis=-1)
    assert np.abs(np.corrcoef(columns.T) - np.eye(4)).max() < 0.05


# ---- symexp two-hot


@given(st.floats(-1e6, 1e6, width=32, allow_subnormal=False))
@settings(max_examples=100, deadline=None)
def test_symexp_inverts_symlog(x):
    value = jnp.float32(x)
    assert abs(float(symexp(symlog(value))) - x) <= 2e-5 * abs(x)
    assert float(symlog(-value)) == -float(symlog(value))
    assert abs(float(symlog(value)) - np.sign(x) * np.log1p(abs(x))) <= 1e-5 * max(1.0, abs(np.log1p(abs(x))))


def full(values):
    return SymexpTwoHot(jnp.zeros((*np.shape(values), 255)))


def test_bins_are_symexp_of_an_even_grid():
    bins = np.asarray(SymexpTwoHot(jnp.zeros(255)).bins, np.float64)
    grid = np.linspace(-20, 20, 255)
    assert (np.abs(bins - np.sign(grid) * np.expm1(np.abs(grid))) <= 1e-6 * np.abs(bins) + 1e-12).all()
    assert bins[127] == 0.0 and np.array_equal(bins, -bins[::-1])


def test_the_expected_bin_of_a_target_is_the_target():
    bins = np.asarray(full(0).bins)
    values = np.concatenate([[0.0, 1e-4, 0.5, 1.0, -3.7, 123.4, -1e5, 4e8], bins[[0, 1, 126, 127, 128, 254]]])
    split = np.asarray(full(values).two_hot(jnp.asarray(values, jnp.float32)), np.float64)
    assert distance(split.sum(-1), np.ones(len(values))) < 1e-6
    assert (split >= 0).all() and ((split > 0).sum(-1) <= 2).all()
    expected = split @ bins.astype(np.float64)
    assert (np.abs(expected - values) <= 1e-5 * np.abs(values)).all()
    for row in split:
        hot = np.flatnonzero(row)
        assert hot.max() - hot.min() <= 1


def test_targets_beyond_the_ends_go_to_the_end_bins():
    split = np.asarray(full([0, 0]).two_hot(jnp.array([1e9, -1e9])))
    assert split[0, -1] == 1.0 and split[1, 0] == 1.0


def test_the_mean_is_exactly_zero_for_even_logits():
    assert SymexpTwoHot(jnp.zeros(255)).mean() == 0.0
    half = jr.normal(jr.key(0), (127,))
    assert SymexpTwoHot(jnp.concatenate([half, jnp.array([0.3]), half[::-1]])).mean() == 0.0


def test_the_mean_is_that_of_the_raw_bins():
    logits = jnp.asarray(stats.norm.logpdf(np.arange(255), 160, 12), jnp.float32)
    distribution = SymexpTwoHot(logits)
    p = np.exp(np.asarray(logits, np.float64))
    p /= p.sum()
    grid = np.linspace(-20, 20, 255)
    expected = p @ (np.sign(grid) * np.expm1(np.abs(grid)))
    of_mean = np.sign(p @ grid) * np.expm1(np.abs(p @ grid))
    assert abs(float(distribution.mean()) / expected - 1) < 1e-4
    assert abs(of_mean / expected - 1) > 0.5


def test_the_log_probability_is_the_cross_entropy_of_the_split_target():
    logits, values = 2 * jr.normal(jr.key(0), (5, 255)), np.array([0.0, 0.03, -2.5, 700.0, 1e12])
    log_p = np.asarray(logits, np.float64)
    log_p -= np.log(np.exp(log_p).sum(-1, keepdims=True))
    grid = np.linspace(-20, 20, 255)
    bins = np.sign(grid) * np.expm1(np.abs(grid))
    for row, value in enumerate(values):
        value = np.clip(value, bins[0], bins[-1])
        above = min(max(int(np.searchsorted(bins, value, side="right")), 1), 254)
        share = (value - bins[above - 1]) / (bins[above] - bins[above - 1])
        expected = share * log_p[row, above] + (1 - share) * log_p[row, above - 1]
        got = SymexpTwoHot(logits[row]).log_prob(jnp.float32(values[row]))
        assert abs(float(got) - expected) < 1e-4


def test_the_target_itself_is_the_best_prediction_of_a_target():
    target = jnp.array([-30.0, 0.25, 4000.0])
    split = full(target).two_hot(target)
    best = SymexpTwoHot(jnp.log(split + 1e-30))
    assert (np.abs(best.mean() / target - 1) < 1e-4).all()
    gradient = jax.grad(lambda logits: SymexpTwoHot(logits).log_prob(target).sum())(best.logits)
    assert np.abs(gradient).max() < 1e-6


def test_the_mode_is_the_likeliest_bin():
    distribution = SymexpTwoHot(jnp.zeros(255).at[130].set(1.0))
    assert distribution.mode() == distribution.bins[130]


@pytest.mark.parametrize("bins", [2, 254])
def test_an_even_number_of_bins_is_refused(bins):
    with pytest.raises(ValueError, match=f"got {bins} bins, expected an odd number"):
        SymexpTwoHot(jnp.zeros(bins))
