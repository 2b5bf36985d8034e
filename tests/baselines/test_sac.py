"""SAC: its equations against NumPy, that each loss moves its own part, and that it learns what the state tells."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from dreamer4.baselines import ONLINE, load_policy, save_policy, train_sac
from dreamer4.baselines.sac import (
    Actor,
    Agent,
    Critic,
    Transitions,
    loss,
    policy_loss,
    soft_target,
    squashed_log_prob,
    temperature_loss,
)
from dreamer4.config import SACConfig, load
from dreamer4.data import EpsilonPolicy, collect, read_info
from dreamer4.envs import CounterEnvironment
from dreamer4.envs.control import AbstractControl
from dreamer4.errors import InputError
from dreamer4.evaluation import play
from dreamer4.nn import Normal
from dreamer4.run import behaviour


SMALL = SACConfig(steps=3_200, num_envs=8, start=400, updates=4, batch_size=64, hidden=32, discount=0.9)


def test_a_squashed_gaussian_is_a_density_on_the_interval():
    loc, log_scale = 0.4, -0.7
    action = np.linspace(-1, 1, 200_001)[1:-1]
    raw = np.arctanh(action)
    expected = -0.5 * ((raw - loc) / np.exp(log_scale)) ** 2 - log_scale - 0.5 * np.log(2 * np.pi)
    expected -= np.log(1 - action**2)
    assert np.exp(expected).sum() * (action[1] - action[0]) == pytest.approx(1, abs=1e-4)
    rows = slice(None, None, 999)
    normal = Normal(jnp.full(1, loc), jnp.full(1, log_scale))
    got = squashed_log_prob(normal, jnp.asarray(raw[rows, None], jnp.float32))
    np.testing.assert_allclose(got, expected[rows], atol=2e-3, rtol=1e-4)
    far = squashed_log_prob(Normal(jnp.zeros(2), jnp.zeros(2)), jnp.array([30.0, -30.0]))
    np.testing.assert_allclose(far, 2 * (-450 - 0.5 * np.log(2 * np.pi) - 2 * (np.log(2) - 30)), rtol=1e-5)


def test_losses_are_those_of_the_paper():
    chance = np.random.default_rng(0)
    reward, log_prob, values = chance.normal(size=9), chance.normal(size=9), chance.normal(size=(2, 9))
    goes_on, temperature = chance.random(9) < 0.5, 0.3
    least = np.minimum(*values)
    f32 = [jnp.asarray(x, jnp.float32) for x in (reward, values, log_prob, temperature)]
    target = soft_target(f32[0], jnp.asarray(goes_on), f32[1], f32[2], f32[3], 0.9)
    np.testing.assert_allclose(target, reward + 0.9 * goes_on * (least - 0.3 * log_prob), atol=1e-6)
    np.testing.assert_allclose(policy_loss(f32[2], f32[1], f32[3]), 0.3 * log_prob - least, atol=1e-6)
    for entropy, rises in ((-1.0, False), (2.0, True)):  # log pi is 0.5: the entropy is -0.5
        slope = jax.grad(lambda x, e=entropy: temperature_loss(x, jnp.full(1, 0.5), e)[0])(jnp.log(0.3))
        assert slope == pytest.approx(-0.3 * (0.5 + entropy)) and (slope < 0) == rises


def test_each_loss_moves_its_own_part_and_what_is_not_valid_moves_nothing():
    keys, config = jr.split(jr.key(0), 4), SMALL
    critics = eqx.filter_vmap(lambda key: Critic(3, 2, 8, key=key))(jr.split(keys[0]))
    agent = Agent(Actor(3, 2, 8, key=keys[1]), critics, jnp.zeros(()))
    seen, following = jr.normal(keys[2], (2, 6, 3))
    flags = jnp.ones(6, bool)
    batch = Transitions(seen, jnp.zeros((6, 2)), jnp.ones(6), following, flags, flags.at[0].set(False))
    grad = eqx.filter_jit(eqx.filter_grad(lambda a, b: loss(a, critics, b, config, keys[3])))
    whole = grad(agent, batch)
    assert all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(whole.critics))
    assert jnp.abs(whole.actor.layers[-1].weight).max() > 0 and whole.log_temperature != 0
    # The reward teaches the critics alone.
    other = grad(agent, batch._replace(reward=2 * batch.reward))
    assert eqx.tree_equal(whole.actor, other.actor) and not eqx.tree_equal(whole.critics, other.critics)
    assert eqx.tree_equal(whole, grad(agent, batch._replace(reward=batch.reward.at[0].set(9.0))))
    # Critics that are right about every reward, with nothing behind it, have nothing to learn, least from the actor.
    alike = jax.tree.map(lambda leaf: jnp.stack([leaf[0]] * 2), critics)
    value = eqx.filter_vmap(lambda critic: critic(seen, batch.action))(alike)[0]
    right, short = batch._replace(reward=value), config.model_copy(update={"discount": 0.0})
    still = eqx.filter_grad(lambda a: loss(a, alike, right, short, keys[3]))(
        eqx.tree_at(lambda a: a.critics, agent, alike)
    )
    assert all(jnp.abs(leaf).max() < 1e-6 for leaf in jax.tree.leaves(still.critics))
    assert jnp.abs(still.actor.layers[-1].weight).max() > 1e-4


class Aim(AbstractControl):
    """Pays for an action that is close to what the state tells, and the picture does not."""

    dims = 1
    channels = 1
    max_steps: int = eqx.field(static=True, default=10)
    size: int = eqx.field(static=True, default=8)

    def start(self, key):
        return jr.uniform(key, (1,), minval=-0.8, maxval=0.8)

    def advance(self, body, action):
        return -body

    def reward(self, body, action):
        return 1 - jnp.abs(action[0] + body[0])

    def draw(self, body):
        return jnp.zeros((8, 8, 1))


@pytest.fixture(scope="module")
def learned():
    env = Aim()
    return env, *train_sac(SMALL, env, keys=[jr.key(0)])


def test_it_learns_what_the_state_tells(learned):
    env, run = learned
    assert run.steps[-1] == ONLINE["sac"].steps_taken(SMALL) == 3_200
    random, ours = (
        play(policy, env, episodes=64, batch_size=64, key=jr.key(1)).returns.mean()
        for policy in (EpsilonPolicy(run.policy(), 1.0, env.spec.action), run.policy())
    )
    assert ours > random + 3 and ours > 8.5  # of 10


def test_a_policy_is_saved_and_sees_the_state_where_it_plays(learned, tmp_path):
    env, run = learned
    save_policy(tmp_path / "late", run.policy(), kind="sac", config=SMALL, spec=env.spec, about={"seed": 0})
    policy, spec, about = load_policy(tmp_path / "late", env)
    assert spec == env.spec and about == {"seed": 0}
    ours, theirs = (collect(env, one, episodes=2, key=jr.key(2))[0] for one in (run.policy(), policy))
    np.testing.assert_array_equal(ours.continuous, theirs.continuous)
    np.testing.assert_array_equal(ours.frame, theirs.frame)


def test_worlds_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="continuous actions alone"):
        train_sac(SMALL, CounterEnvironment(5, 3), keys=[jr.key(0)])


def test_it_plays_the_episodes_of_a_data_set(tmp_path):
    tiny = "sac={steps: 64, num_envs: 4, start: 8, updates: 1, batch_size: 8, hidden: 8}"
    parts = "data.mixture=[{policy: sac}, {policy: 'sac:early', epsilon: 0.5}]"
    words = [tiny, parts, "data.episodes=4", "data.held_out=0.5", "env.kwargs={size: 16, max_steps: 6}"]
    config = load("pendulum", overrides=words)
    behaviour.collect(config, tmp_path / "data", tmp_path / "behaviour")
    info = read_info(tmp_path / "data")
    assert [part.about["stage"] for part in info.behaviour] == ["late", "early"]
    assert read_info(tmp_path / "data").num_episodes == 4 and (tmp_path / "behaviour-sac" / "late").is_dir()
    behaviour.refuse_other_data(config, tmp_path / "data", "")
    with pytest.raises(InputError, match=r"sac.hidden: 8 -> 9"):
        behaviour.refuse_other_data(load("pendulum", overrides=[*words, "sac.hidden=9"]), tmp_path / "data", "")
    with pytest.raises(InputError, match="continuous actions alone"):
        behaviour.check(load("tiny", overrides=["data.policy=sac"]))
