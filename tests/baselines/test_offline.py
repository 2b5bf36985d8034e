"""The offline baselines: equations against NumPy, the data against its episodes, and right answers on the probes."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import generic
from probes import DelayedReward, MatchedReward

from dreamer4.baselines import OFFLINE, ActorCritic, Decisions, OfflineData, suited, train_offline, with_entropy
from dreamer4.baselines.fit import fit
from dreamer4.baselines.offline import (
    ConditionedPolicy,
    CQLLoss,
    IQLLoss,
    advantage_weight,
    advantages_of_data,
    brightness,
    cloning_loss,
    conservative_gap,
    expectile_loss,
)
from dreamer4.config import OfflineConfig
from dreamer4.data import collect, flag_relevant, random_policy, return_of_best
from dreamer4.envs import CounterEnvironment
from dreamer4.errors import InputError
from dreamer4.evaluation import play
from dreamer4.types import Action, ActionSpec, DataSpec, TaskSpec, TimeStep


SETTINGS = OfflineConfig(num_frames=1, hidden=16, batch_size=64, learning_rate=1e-2, every=100, patience=2)


def episodes(env, count, seed=0):
    return collect(env, random_policy(env.spec), episodes=count, key=jr.key(seed))


@pytest.fixture(scope="module")
def matched():
    env = MatchedReward()
    return OfflineData(episodes(env, 128), episodes(env, 64, seed=1), env.spec)


def mean_return(policy, env=None):
    played = play(policy, env or MatchedReward(), episodes=64, batch_size=64, key=jr.key(5))
    return float(played.returns.mean())


def greedy(offline):
    return dataclasses.replace(offline.policy, mode="mode")


class TestEquations:
    def test_expectiles_weigh_the_two_sides(self):
        u = np.array([-2.0, -0.5, 0.0, 1.0, 3.0])
        expected = np.where(u < 0, 0.3, 0.7) * u**2
        np.testing.assert_allclose(expectile_loss(jnp.float32(u), 0.7), expected, rtol=1e-6)
        # Its minimum over v of a sample is the expectile, above the mean of the sample for 0.7.
        draws, grid = np.random.default_rng(0).normal(size=2000), np.linspace(-1, 1, 401)
        losses = [float(expectile_loss(jnp.float32(draws - v), 0.7).mean()) for v in grid]
        v = grid[np.argmin(losses)]
        above, below = np.clip(draws - v, 0, None).sum(), np.clip(v - draws, 0, None).sum()
        assert 0.7 * above == pytest.approx(0.3 * below, rel=0.02)

    def test_weights_grow_with_the_advantage_up_to_a_limit(self):
        advantage = np.array([-1.0, 0.0, 0.5, 100.0])
        expected = np.minimum(np.exp(3 * np.minimum(advantage, 10)), 20)
        np.testing.assert_allclose(advantage_weight(jnp.float32(advantage), 3.0, 20.0), expected, rtol=1e-5)

    def test_the_gap_is_zero_only_for_a_sure_action(self):
        q = np.array([1.0, 2.0, -1.0])
        for action in range(3):
            expected = np.log(np.exp(q).sum()) - q[action]
            np.testing.assert_allclose(conservative_gap(jnp.float32(q), jnp.int32(action)), expected, rtol=1e-6)
        assert float(conservative_gap(jnp.float32([40.0, 0.0]), jnp.int32(0))) == pytest.approx(0, abs=1e-6)

    def test_a_wish_is_black_at_the_least_return_and_white_at_the_most(self):
        got = brightness(jnp.float32([-9.0, -1.0, 1.0, 3.0, 50.0]), (-1.0, 3.0))
        np.testing.assert_array_equal(got, [0, 0, 128, 255, 255])

    @pytest.mark.parametrize("ends", [True, False])
    def test_the_losses_of_values_are_their_definitions(self, ends):
        env = CounterEnvironment(3, 3, terminates=ends)
        decisions = Decisions.of(episodes(env, 1))
        networks = [generic(ActorCritic, env.spec, 1, 8, key=jr.key(0), seed=i) for i in (1, 2)]

        def values(network, ahead):
            frames = decisions.frame[i + ahead][None]
            distribution, value = network(frames)
            return np.asarray(distribution.discrete[0].logits, np.float64), float(value)

        for i in range(2):  # the second decision leads to the last frame
            (q, v), (slow, _), (coming, _) = values(networks[0], 0), values(networks[1], 0), values(networks[0], 1)
            slow_coming, slow_v = values(networks[1], 1)
            action, reward = int(decisions.action.discrete[i, 0]), i + 1.0
            bootstraps = not (ends and i == 1)
            target = reward + 0.9 * bootstraps * slow_coming[np.argmax(coming)]
            expected = 0.5 * (q[action] - target) ** 2 + 2.0 * (np.log(np.exp(q).sum()) - q[action])
            np.testing.assert_allclose(CQLLoss(0.9, 2.0)(*networks, decisions, jnp.int32(i)), expected, rtol=1e-4)
            u = slow[action] - v
            expected = (0.8 if u >= 0 else 0.2) * u**2 + (q[action] - reward - 0.9 * bootstraps * slow_v) ** 2
            np.testing.assert_allclose(IQLLoss(0.9, 0.8)(*networks, decisions, jnp.int32(i)), expected, rtol=1e-4)


class TestDecisions:
    def test_they_are_those_of_the_episodes(self):
        env = CounterEnvironment(5, 3)
        played = episodes(env, 2)
        played[1].action_mask[2] = False  # an unknown action is no decision
        decisions = Decisions.of(played)
        assert decisions.count == 4 + 3
        rows = np.asarray(decisions.row)
        np.testing.assert_array_equal(rows, [0, 1, 2, 3, 5, 7, 8])
        np.testing.assert_array_equal(decisions.to_go, [10, 9, 7, 4, 10, 7, 4])
        np.testing.assert_array_equal(decisions.is_terminal, [0, 0, 0, 1, 0, 0, 1])
        for i, row in enumerate(rows):
            index, led = env.decode(decisions.seen(jnp.int32(i), 3, ahead=1))
            assert int(led[-1]) == int(decisions.action.discrete[i, 0])
            np.testing.assert_array_equal(index, np.maximum(row % 5 + np.array([-1, 0, 1]), 0))
            assert float(decisions.reward[i]) == row % 5 + 1

    def test_the_best_share_is_by_return_and_keeps_equals(self):
        env = MatchedReward()
        played = episodes(env, 40)
        winners = sum(e.total == 1 for e in played)
        assert return_of_best(played, winners / 40) == 1
        assert return_of_best(played, (winners + 1) / 40) == -1
        flagged = flag_relevant(played, 1.0)
        assert [e.relevant for e in flagged] == [e.total == 1 for e in played]


class TestProbes:
    def test_a_clone_is_as_undecided_as_random_play_and_stops_by_itself(self, matched):
        clone = train_offline("clone", matched, SETTINGS, key=jr.key(0))
        assert clone.held_out == pytest.approx(np.log(2), abs=0.03)
        assert clone.steps[1] < SETTINGS.max_steps
        sharp = with_entropy(clone, matched, 0.3)
        held_out = Decisions.of(matched.held_out)
        entropies = [
            sharp.policy.network(held_out.seen(jnp.int32(i), 1))[0].tempered(sharp.policy.temperature).entropy()
            for i in range(8)
        ]
        assert np.mean(entropies) < np.log(2) - 0.1

    @pytest.mark.parametrize("name", ["best-quarter", "conditioned", "cql", "iql"])
    def test_what_tells_good_from_bad_finds_the_best_policy(self, matched, name):
        settings = SETTINGS.model_copy(update={"value_steps": 500, "cql_alpha": 0.1})
        assert mean_return(greedy(train_offline(name, matched, settings, key=jr.key(1)))) == 1.0

    def test_what_is_told_its_task_does_what_that_task_pays_for(self):
        """Frames are all alike, and task i was done by action i alone."""
        played = [dataclasses.replace(e, discrete=np.full_like(e.discrete, t), task=t)
                  for e in episodes(MatchedReward(), 16) for t in (0, 1)]  # fmt: skip
        spec = dataclasses.replace(MatchedReward().spec, num_tasks=2)
        for name in ("clone", "iql"):
            settings = SETTINGS.model_copy(update={"value_steps": 100})
            policy = greedy(train_offline(name, OfflineData(played, played, spec), settings, key=jr.key(1)))
            no, first = jnp.zeros((), bool), MatchedReward().reset(key=jr.key(0))[1]
            for asked in (0, 1):
                told = dataclasses.replace(policy, prompt=lambda state: state)
                memory = told.peek(told.init(), jnp.int32(asked))
                action, _ = told(memory, first, Action.null(spec.action), no, key=jr.key(0))
                assert int(action.discrete[0]) == asked, name

    def test_the_values_of_one_discrete_action_are_not_asked_of_others(self, matched):
        def left_out(action, tasks=1):
            return set(OFFLINE) - set(suited(DataSpec((1, 1, 1), action, tasks)))

        assert left_out(ActionSpec((3,))) == set()
        for other in (ActionSpec((), 2), ActionSpec((2, 2)), ActionSpec((3,), 1)):
            assert left_out(other) == {"cql", "iql"}
        assert left_out(ActionSpec((3,)), 2) == {"conditioned"}
        spec = dataclasses.replace(matched.spec, action=ActionSpec((), 2))
        moved = OfflineData(matched.train, matched.held_out, spec)
        with pytest.raises(InputError, match="cql is of one discrete action"):
            train_offline("cql", moved, SETTINGS, key=jr.key(0))

    def test_values_of_iql_are_discounted_from_the_end(self):
        env = DelayedReward()
        decisions = Decisions.of(episodes(env, 32))
        settings = SETTINGS.model_copy(update={"average": 0.05})
        start = ActorCritic(env.spec, 1, 16, key=jr.key(0))
        loss = IQLLoss(0.9, 0.7)
        network = fit(loss, start, decisions, settings, held_out=None, steps=600, key=jr.key(1)).network
        values = [float(network(decisions.seen(jnp.int32(i), 1))[1]) for i in range(3)]
        np.testing.assert_allclose(values, [0.81, 0.9, 1.0], atol=0.05)
        np.testing.assert_allclose(advantages_of_data(network, decisions), 0, atol=0.05)

    def test_the_best_look_is_kept(self, matched):
        """Trained far beyond it on four episodes, a clone must not be worse on held-out ones than it was."""
        few = Decisions.of(matched.train[:4])
        held_out, seen = Decisions.of(matched.held_out), []
        start = ActorCritic(matched.spec, 1, 16, key=jr.key(0))
        settings = SETTINGS.model_copy(update={"every": 20, "average": 0.2})
        found = fit(
            cloning_loss,
            start,
            few,
            settings,
            held_out=held_out,
            steps=2000,
            progress=lambda done, judged: seen.append((judged, done)),
            key=jr.key(1),
        )
        assert (found.held_out, found.steps) == min(seen)
        assert found.taken == seen[-1][1] == found.steps + 20 * settings.patience

    def test_weights_decide_what_is_cloned(self, matched):
        decisions = Decisions.of(matched.train)
        ones = eqx.tree_at(lambda d: d.weight, decisions, (decisions.action.discrete[:, 0] == 1).astype(jnp.float32))
        start = ActorCritic(matched.spec, 1, 16, key=jr.key(0))
        network = fit(cloning_loss, start, ones, SETTINGS, held_out=None, steps=200, key=jr.key(1)).network
        probabilities = jax.nn.softmax(network(decisions.seen(jnp.int32(0), 1))[0].discrete[0].logits)
        assert probabilities[1] > 0.9


def test_a_wish_shrinks_by_what_was_earned():
    spec = DataSpec((2, 2, 1), ActionSpec((2,)))
    policy = ConditionedPolicy(generic(ActorCritic, spec, 3, 8, key=jr.key(0)), 5.0, (0.0, 5.0))
    memory, no = policy.init(), jnp.zeros((), bool)
    for t, (level, reward) in enumerate(((5, 9.0), (6, 1.0), (7, 2.0))):
        step = TimeStep(jnp.full((2, 2, 1), level, jnp.uint8), jnp.float32(reward), jnp.asarray(t == 0), no, no)
        _, memory = policy(memory, step, Action.null(spec.action), no, key=jr.key(t))
    np.testing.assert_array_equal(memory[0][:, 0, 0, 0], [6, 7])
    assert float(memory[1]) == 2.0  # a first frame's reward means nothing


def test_what_cannot_be_trained_is_refused(matched):
    with pytest.raises(InputError, match="unknown 'clones'"):
        train_offline("clones", matched, SETTINGS, key=jr.key(0))
    with pytest.raises(InputError, match="holds no episodes out"):
        train_offline("clone", OfflineData(matched.train, [], matched.spec), SETTINGS, key=jr.key(0))
    factored = OfflineData(matched.train, matched.held_out, DataSpec((2, 2, 1), ActionSpec((2, 2))))
    with pytest.raises(InputError, match="one discrete action"):
        train_offline("iql", factored, SETTINGS, key=jr.key(0))


def test_the_episodes_of_one_task_are_data_that_know_no_other(matched):
    """A clone of each of two tasks learns its own, where one of both, told neither, could not."""
    spec = DataSpec(matched.spec.frame_shape, matched.spec.action, 2, (TaskSpec(name="same"), TaskSpec(name="other")))

    def both(episodes):
        match = [e for e in episodes if e.reward[1:].sum() > 0]  # the action that the picture asks for
        return [dataclasses.replace(e, task=0) for e in match] + [
            dataclasses.replace(e, task=1, discrete=np.where(e.action_mask[:, None], 1 - e.discrete, 0)) for e in match
        ]

    data = OfflineData(both(matched.train), both(matched.held_out), spec)
    played = [
        mean_return(greedy(train_offline("clone", data.of_task(task), SETTINGS, key=jr.key(1)))) for task in (0, 1)
    ]
    assert data.of_task(1).spec.names == ("other",) and "conditioned" in suited(data.of_task(1).spec)
    assert played[0] == 1.0 > 0.0 >= played[1]
