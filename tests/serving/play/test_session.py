"""A session: the same actions in both worlds, falling asleep and waking up, and nobody in another's dream."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from agent.fakes import build_tiny
from helpers import distance, equal, generic
from play_stage import LEFT, RIGHT, STAY, act, ending, stage

from dreamer4.config import load
from dreamer4.data import find_problems
from dreamer4.dreamer import Dreamer
from dreamer4.errors import InputError
from dreamer4.nn import ActionDistribution, Categorical, Normal
from dreamer4.serving.play import worlds
from dreamer4.serving.play.session import Session
from dreamer4.serving.play.worlds import Clock
from dreamer4.types import Action


def play(actions, *, mode="both", seed=3, episode=None, passed=1, on=None):
    session = Session(on or stage())
    moments = [session.start(mode, episode=episode, passed=passed, seed=seed)]
    moments += [act(session, action) for action in actions]
    return session, moments


def frames(moments, name):
    return [moment.images[name] for moment in moments]


def with_heads(**heads):
    return dataclasses.replace(
        stage(), dreamer=eqx.tree_at(lambda d: [getattr(d, n) for n in heads], stage().dreamer, list(heads.values()))
    )


class TestWorlds:
    def test_a_dreamt_frame_is_the_one_of_the_agent(self):
        # imagine_step is what the policy was trained on; what is shown must be no other dream.
        dreamer, clock = stage().dreamer, Clock.at(3, 7)
        mind = Session(stage())
        mind.start("dream", episode=0, passed=4)
        action = Action(jnp.array(LEFT), jnp.zeros(0))

        @eqx.filter_jit
        def expect(dreamer, mind):
            imagined, memory = dreamer.imagine_step(mind.memory, action, num_steps=4, key=clock.key(worlds.IMAGINE))
            return dreamer.tokenizer.decode_step(imagined.latent, mind.decoder)[0], memory

        picture, memory = expect(dreamer, mind._mind)
        passes, once = np.asarray(2, np.int32), np.asarray(False)
        following, dreamt = worlds.imagine(dreamer, mind._mind, action, passes, once, clock)
        assert distance(following.memory.world.h, memory.world.h) < 1e-5
        assert equal(following.memory.world.stream.position, memory.world.stream.position)
        assert np.abs(255 * np.clip(np.asarray(picture), 0, 1) - np.asarray(dreamt.frame)).max() < 0.51
        _, hasty = worlds.imagine(dreamer, mind._mind, action, np.asarray(0, np.int32), once, clock)
        assert float(dreamt.movement) > 0 and float(hasty.movement) == 0

    def test_a_second_draw_is_compared_and_changes_nothing(self):
        dreamer, clock, passes = stage().dreamer, Clock.at(3, 7), np.asarray(2, np.int32)
        mind = Session(stage())
        mind.start("dream", episode=0, passed=4)
        action = Action(jnp.array(LEFT), jnp.zeros(0))
        once, twice = (
            worlds.imagine(dreamer, mind._mind, action, passes, np.asarray(flag), clock) for flag in (False, True)
        )
        assert np.isnan(once[1].disagreement)
        assert equal(once[0], twice[0]) and equal(once[1].frame, twice[1].frame)

        @eqx.filter_jit
        def latent(key):
            return dreamer.imagine_step(mind._mind.memory, action, num_steps=4, key=key)[0].latent

        apart = latent(clock.key(worlds.IMAGINE)) - latent(clock.key(worlds.DOUBT))
        assert distance(twice[1].disagreement, jnp.sqrt(jnp.mean(apart**2))) < 1e-5
        assert twice[1].disagreement > 0

    def test_what_is_not_drawn_twice_tells_no_disagreement(self):
        session, _ = play([])
        plain, drawn = (
            session.step("player", discrete=STAY, continuous=[], num_steps=2, twice=twice) for twice in (False, True)
        )
        assert plain.warnings["disagreement"] is None and drawn.warnings["disagreement"] > 0

    def test_what_has_not_passed_is_not_remembered(self):
        episode, length = stage().episodes[0], 8

        def remember(frame):
            action = Action(jnp.asarray(episode.discrete[:length]), jnp.asarray(episode.continuous[:length]))
            count, task = np.asarray(3, np.int32), np.asarray(0, np.int32)
            mask = episode.action_mask[:length]
            return worlds.remember(stage().dreamer, frame, action, mask, count, task, Clock.at(0, 0))

        later, within = episode.frame[:length].copy(), episode.frame[:length].copy()
        later[3:], within[2] = 99, 99
        assert equal(remember(episode.frame[:length]), remember(later))
        assert not equal(remember(episode.frame[:length]), remember(within))

    def test_chance_differs_by_seed_step_and_purpose(self):
        keys = [Clock.at(s, t).key(k) for s in (0, 1) for t in (0, 1) for k in (worlds.IMAGINE, worlds.PLAY)]
        assert len({tuple(jr.key_data(key).tolist()) for key in keys}) == len(keys)


class TestLockstep:
    def test_the_real_game_knows_nothing_of_the_dream(self):
        actions = [LEFT, STAY, RIGHT, RIGHT]
        _, both = play(actions, mode="both")
        session, game = play(actions, mode="game")
        assert all(map(np.array_equal, frames(both, "game"), frames(game, "game")))
        # Carried along unseen, it is found where it should be.
        session, _ = play(actions, mode="dream")
        assert np.array_equal(session.look("both").images["game"], game[-1].images["game"])

    def test_actions_move_both(self):
        _, left = play([LEFT, LEFT])
        _, right = play([RIGHT, RIGHT])
        assert not np.array_equal(left[-1].images["game"], right[-1].images["game"])
        assert not np.array_equal(left[-1].images["dream"], right[-1].images["dream"])

    def test_the_first_difference_is_marked_where_it_is(self):
        _, moments = play([STAY] * 5)
        different = [(np.abs(m.images["game"].astype(int) - m.images["dream"]) > 127).any(-1) for m in moments]
        times = [t for t, d in enumerate(different) if d.any()]
        assert times, "an untrained dream differs at once"
        assert [m.first_difference for m in moments] == [times[0] if m.time >= times[0] else None for m in moments]
        for moment, d in zip(moments, different, strict=True):
            assert moment.differs == d.any()
            shown = moment.images.get("difference")
            assert (shown is None) if not d.any() else np.array_equal(shown[..., 0] > 0, d)

    def test_a_recorded_start_is_found_in_the_real_game(self):
        episode = stage().episodes[0]
        remaining = [episode.discrete[t].tolist() for t in range(4, episode.length)]
        _, moments = play(remaining, episode=0, passed=4)
        assert moments[0].mode == "both" and not moments[0].note
        shown = np.stack(frames(moments, "game"))[..., :1]
        assert np.array_equal(shown, episode.frame[3:])
        assert moments[-1].game["end"] and moments[-1].game["total"] == episode.total

    def test_a_start_that_the_game_never_shows_is_only_dreamt(self):
        episode = stage().episodes[0]
        impossible = dataclasses.replace(episode, frame=np.full_like(episode.frame, 255))
        session = Session(dataclasses.replace(stage(), episodes=(impossible,)))
        moment = session.start("both", episode=0, passed=2)
        assert (moment.mode, moment.game) == ("dream", None)
        assert "only the dream" in moment.note
        assert set(act(session).images) == {"dream"}
        assert session.look("game").mode == "dream"

    def test_where_there_is_no_game_the_dream_can_still_be_played(self):
        session = Session(dataclasses.replace(stage(), env=None, absent="It is gone."))
        assert session.start("both", episode=1).mode == "dream"
        with pytest.raises(InputError, match="It is gone"):
            session.start("dream", episode=None)


class TestSleep:
    def test_falling_asleep_dreams_on_from_the_real_frame(self):
        session, _ = play([STAY, LEFT], mode="game")
        asleep = session.look("both")
        assert np.array_equal(asleep.images["game"], asleep.images["dream"])
        assert asleep.first_difference is None and asleep.dream["total"] == 0

    def test_waking_up_forgets_the_dream(self):
        # The same real past, once with and once without a dream in between.
        dreamt, _ = play([STAY, LEFT], mode="both")
        awake, _ = play([STAY, LEFT], mode="game")
        dreamt.look("game")
        awake.look("both")
        awake.look("game")
        assert equal(dreamt._mind.memory, awake._mind.memory)
        assert np.array_equal(act(dreamt).images["game"], act(awake).images["game"])

    def test_between_dream_and_both_nothing_happens(self):
        session, _ = play([STAY, LEFT], mode="dream")
        before = session._mind
        assert session.look("both").images["dream"].shape == (10, 5, 3)
        assert session._mind is before


class TestActors:
    def test_a_policy_stays_within_the_bounds_of_actions(self):
        class Wide(eqx.Module):
            def __call__(self, h, task=None):
                return ActionDistribution((Categorical(jnp.zeros(3)),), Normal(jnp.array([0.95, 1.2]), jnp.zeros(2)))

        dreamer = eqx.tree_at(lambda d: (d.policy, d.prior), build_tiny(), (Wide(), Wide()))
        mind = worlds.Mind(dreamer.init(), dreamer.tokenizer.init_decoder())
        for policy in ("policy", "prior"):
            drawn = [worlds.choose(dreamer, mind, policy, Clock.at(0, time)).continuous for time in range(20)]
            assert np.max(drawn) == 1 and np.min(np.abs(drawn)) < 1

    def test_the_agent_plays_and_the_player_takes_over(self):
        session, _ = play([])
        for by in ("policy", "prior"):
            moment = act(session, [], by=by)
            assert moment.by == by and moment.action["discrete"][0] in (0, 1, 2)
        moment = act(session, RIGHT)
        assert (moment.by, moment.action["discrete"]) == ("player", RIGHT)

    def test_a_policy_is_followed(self):
        def always(action):
            head = stage().dreamer.policy
            readout = head.mlp.readout
            bias = jnp.zeros_like(readout.bias).at[action].set(50.0)
            where = lambda h: (h.mlp.readout.weight, h.mlp.readout.bias)  # noqa: E731
            return eqx.tree_at(where, head, (readout.weight * 0, bias))

        session, _ = play([], on=with_heads(policy=always(2), prior=always(0)))
        assert act(session, [], by="policy").action["discrete"] == RIGHT
        moment = act(session, [], by="prior")
        assert moment.action["discrete"] == LEFT
        assert moment.reading["policy"][0][2] > 0.99  # what is shown is the trained policy

    @pytest.mark.parametrize(
        ("phase", "policies", "heads"),
        [
            ("dynamics", (), ()),
            ("agent", ("prior",), ("reward", "continuation", "policy")),
            ("imagination", ("policy", "prior"), ("reward", "continuation", "policy", "value")),
        ],
    )
    def test_only_what_is_trained_is_offered(self, phase, policies, heads):
        part = dataclasses.replace(stage(), phase=phase)
        assert (part.policies, part.heads) == (policies, heads)
        session = Session(part)
        session.start("dream", episode=None)
        reading = act(session).reading
        assert (reading is None) if not heads else ("value" in reading) == ("value" in heads)
        if "policy" not in policies:
            with pytest.raises(InputError, match="by: got policy"):
                act(session, [], by="policy")


class TestEnds:
    def test_the_game_ends_and_stays_ended(self):
        session, moments = play([STAY] * 9)
        assert [m.over for m in moments] == [False] * 9 + [True]
        after = act(session)
        assert after.time == 9 and np.array_equal(after.images["game"], moments[-1].images["game"])

    def test_a_dream_ends_where_the_agent_expects_the_end(self):
        ends = with_heads(continuation=ending(stage().dreamer.continuation, at=-9.0))
        session, moments = play([STAY, STAY], mode="dream", on=ends)
        assert [m.over for m in moments] == [False, True, True]
        assert moments[-1].time == 1
        # Side by side the game goes on, and the dream stands still.
        _, moments = play([STAY] * 9, mode="both", on=ends)
        assert [m.over for m in moments].index(True) == 9
        assert np.array_equal(moments[1].images["dream"], moments[9].images["dream"])

    def test_untrained_heads_end_nothing(self):
        ends = with_heads(continuation=ending(stage().dreamer.continuation, at=-9.0))
        _, moments = play([STAY] * 12, mode="dream", on=dataclasses.replace(ends, phase="dynamics"))
        assert not any(m.over for m in moments) and moments[-1].time == 12


class TestApart:
    def test_two_sessions_never_mix(self):
        ways = {1: [LEFT, LEFT, STAY], 2: [RIGHT, STAY, RIGHT]}
        alone = {seed: play(actions, seed=seed)[1] for seed, actions in ways.items()}
        sessions = {seed: Session(stage()) for seed in ways}
        mixed = {seed: [s.start("both", episode=None, seed=seed)] for seed, s in sessions.items()}
        for t in range(3):
            for seed, session in sessions.items():
                mixed[seed].append(act(session, ways[seed][t]))
        for seed in ways:
            for a, b in zip(alone[seed], mixed[seed], strict=True):
                assert a.images.keys() == b.images.keys()
                assert all(np.array_equal(a.images[n], b.images[n]) for n in a.images)
                assert (a.reading, a.warnings, a.game, a.dream) == (b.reading, b.warnings, b.game, b.dream)

    def test_the_seed_decides(self):
        _, one = play([STAY] * 3, seed=1, episode=0, passed=3)
        _, other = play([STAY] * 3, seed=2, episode=0, passed=3)
        assert np.array_equal(one[0].images["dream"], other[0].images["dream"])
        assert not np.array_equal(one[-1].images["dream"], other[-1].images["dream"])

    def test_memory_is_bounded_and_given_back(self):
        session, _ = play([], mode="dream", on=dataclasses.replace(stage(), phase="dynamics"))
        session._rows = type(session._rows)(session._rows, maxlen=9)
        for _ in range(20):
            act(session)
        assert len(session._rows) == 9
        episode = session.episodes()["dream"]
        assert not find_problems(episode, stage().spec) and episode.length == 9
        arrays = len(jax.live_arrays())
        other, _ = play([STAY])
        assert len(jax.live_arrays()) > arrays
        del other, _
        assert len(jax.live_arrays()) == arrays


class TestKept:
    def test_episodes_say_what_happened(self):
        session, moments = play([LEFT, STAY], mode="both")
        kept = session.episodes()
        for name in ("game", "dream"):
            assert not find_problems(kept[name], stage().spec)
            assert kept[name].discrete[1:].tolist() == [LEFT, STAY]
            assert np.array_equal(kept[name].frame, np.stack(frames(moments, name))[..., :1])
        assert kept["game"].total == moments[-1].game["total"]

    def test_a_dream_from_a_recorded_start_keeps_what_was_given(self):
        session, _ = play([LEFT], mode="dream", episode=1, passed=5)
        episode = session.episodes()["dream"]
        assert np.array_equal(episode.frame[:5], stage().episodes[1].frame[:5]) and episode.length == 6

    def test_a_recorded_start_keeps_its_task(self):
        spec = dataclasses.replace(stage().spec, num_tasks=2)
        dreamer = generic(Dreamer.build, load("tiny"), spec, key=jr.key(0))
        same = [dataclasses.replace(stage().episodes[0], task=task) for task in (0, 1)]
        two = dataclasses.replace(stage(), spec=spec, dreamer=dreamer, episodes=tuple(same))
        readings = []
        for task in (0, 1):
            session = Session(two)
            readings.append(session.start("both", episode=task, passed=3).reading)
            act(session)
            kept = session.episodes()
            assert [kept[name].task for name in ("game", "dream")] == [task, task]
            assert not find_problems(kept["dream"], spec)
        assert readings[0]["value"] != readings[1]["value"]
        session.start("both", episode=None)
        assert session.episodes()["game"].task == 0

    def test_a_new_dream_is_no_sequel_of_the_old_one(self):
        session, _ = play([LEFT, LEFT], mode="both")
        session.look("game")
        session.look("both")
        kept = session.episodes()
        assert np.array_equal(kept["dream"].frame, kept["game"].frame)

    def test_a_recording_holds_what_is_shown_meanwhile(self):
        session, _ = play([STAY], mode="both")
        assert session.record(True).recorded == 1
        assert act(session).recorded == 2
        last = session.look("dream")
        assert last.recorded == 3
        stopped = session.record(False)
        assert stopped.recorded is None
        act(session)
        film = session.film()
        assert [set(p.images) - {"difference"} for p in film] == [{"game", "dream"}] * 2 + [{"dream"}]
        assert np.array_equal(film[-1].images["dream"], last.images["dream"])
        session.record(True)
        assert len(session.film()) == 1


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda s: act(s, [3]), "classes"),
        (lambda s: act(s, [-1]), "classes"),
        (lambda s: act(s, []), "got 0 classes"),
        (lambda s: act(s, num_steps=3), "num_steps: got 3"),
        (lambda s: act(s, num_steps=16), "num_steps: got 16"),
        (lambda s: s.step("player", discrete=STAY, continuous=[0.0], num_steps=1), "1 numbers"),
        (lambda s: s.start("dream", episode=2), "episode: got 2"),
        (lambda s: s.start("dream", episode=0, passed=0), "passed: got 0"),
        (lambda s: s.start("dream", episode=0, passed=10), "passed: got 10"),
        (lambda s: s.film(), "Nothing was recorded"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(ask, message):
    session, moments = play([STAY])
    with pytest.raises(InputError, match=message):
        ask(session)
    assert session.look("both").time == 1
    assert np.array_equal(act(session).images["dream"], play([STAY, STAY])[1][-1].images["dream"])


@pytest.mark.parametrize("ask", [lambda s: act(s), lambda s: s.look("game"), lambda s: s.record(True)])
def test_a_start_comes_first(ask):
    with pytest.raises(InputError, match="Nothing was started"):
        ask(Session(stage()))
