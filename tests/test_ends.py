"""Ends in the game, in the dream and in the game once more, where the answer is known."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from agent.fakes import OracleHead, OracleNetwork, oracle

from dreamer4.data import DeviceSource, collect, random_policy
from dreamer4.data.policy import AbstractPolicy
from dreamer4.envs import CounterEnvironment, StickyActions
from dreamer4.evaluation.clips import Starts
from dreamer4.evaluation.ends import Recall, measure_ends, measure_own_ends
from dreamer4.run import world_model
from dreamer4.types import Action
from dreamer4.worlds import RealWorld


LAST, HORIZON = 12, 10  # index of the counter's last frame


def test_an_end_is_met_again_within_a_frame_and_not_by_never_ending():
    never = HORIZON + 1
    game = np.array([2, 2, 2, 6, 7, 10, never, never])
    dream = np.array([3, 5, never, 7, 1, never, never, 4])
    twin = np.array([2, 2, 2, 6, 7, 10, 10, never])
    apart, dreams_apart = np.zeros((2, 8, HORIZON))
    apart[0, :4], apart[1, 2:], apart[:, 8:] = 8.0, np.nan, np.nan  # the second pair ends behind its frame 2
    dreams_apart[:] = 0.5
    recall = Recall.of(game, dream, twin, HORIZON, apart, dreams_apart)
    assert recall.frames == ((1, 4), (5, 8), (9, 10)) and recall.ends == (3, 2, 1)
    assert recall.dream == (0.3333, 0.5, 0.0) and recall.twin == (1.0, 1.0, 1.0)
    assert (recall.over, recall.dream_over, recall.twin_over) == (0.75, 0.625, 0.875)
    assert recall.apart == (round(32 / 30, 6), 0.0, None)  # 30 distances are known, four of them are 8
    assert recall.chance == (round(0.5 / round(32 / 30, 6), 4), None, None)


def read(frame):
    return jnp.stack([jnp.round(255.0 * frame[0, 0, 0]) // (255 // LAST), jnp.zeros(())])


@pytest.mark.parametrize(
    ("believed", "expected", "over"), [(LAST, 1.0, 1.0), (LAST - 3, 0.0, 0.6667), (LAST + 11, 0.0, 0.0)]
)
def test_a_model_that_believes_in_another_end_does_not_recall_the_games(believed, expected, over):
    env = CounterEnvironment(LAST + 1, 3)
    episodes = collect(env, random_policy(env.spec), episodes=3, key=jr.key(0))
    dreamer = oracle(
        env.spec,
        size=2,
        read=read,
        transition=lambda state, action: jnp.stack([state[0] + 1, jnp.zeros(())]),
        reward=lambda h: h[0],
        continuation=OracleHead(lambda h, end: (h[0] != end).astype(jnp.float32), jnp.array(float(believed))),
    )
    world = RealWorld(env)
    source = world.prepare(DeviceSource.from_episodes(episodes), episodes)
    source = source.with_latents(eqx.filter_jit(jax.vmap(read))(source.frame / 255.0)[:, None])
    # After 3, 6 and 11 frames the newest has index 2, 5 and 10, and the end comes 10, 7 and 2 frames later.
    starts = Starts(np.array([0, 1, 2]), np.array([3, 6, 11]))
    ends = measure_ends(dreamer, world, source, starts, context_length=4, horizon=HORIZON, key=jr.key(1))
    for recall in (ends.policy, ends.random):
        assert recall.ends == (1, 1, 1) and recall.over == recall.twin_over == 1.0
        assert recall.twin == (1.0, 1.0, 1.0)
        assert recall.dream == (expected,) * 3
        assert recall.dream_over == over  # from index 10 on an end at 9 has passed
    assert ends.record()["policy"]["ends"] == (1, 1, 1)
    # Three games of the policy's own, from 1, 4 and 7 frames before their end on.
    own = measure_own_ends(dreamer, world, source, context_length=4, horizon=HORIZON, key=jr.key(2))
    assert own.ends == (2, 1, 0)
    assert own.twin == (1.0, 1.0, None) and own.over == own.twin_over == 1.0
    assert own.dream == (expected, expected, None) and own.dream_over == over


class Tossing(OracleNetwork):
    """Adds half to the known state where the noise that a frame is drawn from is positive."""

    def step(self, frame, task, stream):
        prediction, h, entry = super().step(frame, task, stream)
        return prediction + 0.5 * (frame.z > 0), h, entry


@pytest.mark.parametrize(("sticky", "tosses"), [(0.0, False), (0.5, False), (0.5, True)])
def test_the_share_of_the_worlds_chance_that_a_dream_shows(sticky, tosses):
    env = StickyActions(CounterEnvironment(LAST + 1, 3), sticky)
    episodes = collect(env, random_policy(env.spec), episodes=3, key=jr.key(0))

    def read(frame):  # the action carried out alone
        return jnp.stack([frame[-1, 0, 0], jnp.zeros(())])

    dreamer = oracle(
        env.spec,
        size=2,
        read=read,
        transition=lambda state, action: jnp.stack([action.discrete[0] / 4.0, jnp.zeros(())]),
        reward=lambda h: h[0],
        continuation=lambda h: jnp.ones(()),
    )
    if tosses:
        known = dreamer.dynamics.network
        dreamer = eqx.tree_at(lambda d: d.dynamics.network, dreamer, Tossing(known.transition, 2, 1))
    world = RealWorld(env)
    source = world.prepare(DeviceSource.from_episodes(episodes), episodes)
    source = source.with_latents(eqx.filter_jit(jax.vmap(read))(source.frame / 255.0)[:, None])
    starts = Starts(np.array([0, 1, 2]), np.array([1, 2, 3]))
    ends = measure_ends(dreamer, world, source, starts, context_length=4, horizon=HORIZON, key=jr.key(1))
    for recall in (ends.random, ends.policy):
        chance = [share for share in recall.chance if share is not None]
        assert bool(chance) == bool(sticky) and all((share > 0.1) == tosses for share in chance)
        assert any(recall.apart) == bool(sticky)


class LastIsTwo(AbstractPolicy):
    """Takes action 2 right before the counter's end, and 0 before."""

    def init(self):
        return jnp.zeros((), jnp.int32)

    def __call__(self, memory, time_step, action, action_mask, *, key):
        chosen = jnp.where(memory == LAST - 1, 2, 0)
        return Action(chosen[None], jnp.zeros(0)), memory + 1


def test_a_game_of_its_own_is_dreamt_under_the_actions_that_ended_it(monkeypatch):
    monkeypatch.setattr("dreamer4.evaluation.ends.SLACK", 0)
    env = CounterEnvironment(LAST + 1, 3)
    episodes = collect(env, LastIsTwo(), episodes=5, key=jr.key(0))
    dreamer = oracle(
        env.spec,
        size=2,
        read=read,
        transition=lambda state, action: jnp.stack([state[0] + 1, action.discrete[0].astype(jnp.float32)]),
        reward=lambda h: h[0],
        continuation=OracleHead(lambda h, two: (h[1] != two).astype(jnp.float32), jnp.array(2.0)),
    )
    world = RealWorld(env)
    source = world.prepare(DeviceSource.from_episodes(episodes), episodes)
    source = source.with_latents(eqx.filter_jit(jax.vmap(read))(source.frame / 255.0)[:, None])
    own = measure_own_ends(dreamer, world, source, context_length=4, horizon=HORIZON, key=jr.key(2))
    assert own.ends == (2, 2, 1) and own.dream == own.twin == (1.0, 1.0, 1.0)


def test_games_that_a_limit_cuts_are_not_among_those_that_ended(monkeypatch):
    monkeypatch.setattr(world_model, "OWN_GAMES", 3)
    parts = {"read": read, "transition": lambda state, action: state, "reward": lambda h: h[0]}
    for ends in (True, False):
        env = CounterEnvironment(LAST + 1, 3, terminates=ends)
        dreamer = oracle(env.spec, size=2, continuation=lambda h: jnp.ones(()), **parts)
        played = world_model._play(dreamer, RealWorld(env), 0, jr.key(0))
        assert (played is not None) == ends
        assert played is None or played.num_episodes == 3 and played.latent is not None
