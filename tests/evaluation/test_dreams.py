"""Dream quality in worlds whose right answer is known: one that is perfect, one blind to actions, one with errors.

The world is the counter, whose frames show how many there were and which action led there. Its model is written down;
it may ignore actions, and after one of them it may err with the noise it starts from, so that where its dreams are
wrong is known too.
"""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from agent.fakes import K_MAX, OracleTokenizer, oracle, snap
from jaxtyping import Array, Bool, Float

from dreamer4.data import DeviceSource, collect, random_policy
from dreamer4.dynamics.shortcut import AbstractNetwork, NoiseGrid
from dreamer4.envs import CounterEnvironment
from dreamer4.errors import InputError
from dreamer4.evaluation.clips import Clips, Starts, anywhere, first_frames
from dreamer4.evaluation.dreams import CEILING, LAST_REPEATED, NO_OP, SHUFFLED, DreamQuality, measure_dreams
from dreamer4.evaluation.interactions import measure_interactions
from dreamer4.nn import Entry, RingCache, Stream
from dreamer4.training import encode_source


LENGTH, ACTIONS = 9, 3
ENV = CounterEnvironment(length=LENGTH, num_actions=ACTIONS)
TIME, CHOICE = 255 // (LENGTH - 1), 255 // ACTIONS


def read(frame):
    return jnp.round(jnp.stack([frame[0, 0, 0] * 255 / TIME, frame[-1, 0, 0] * 255 / CHOICE]))


def show(state):
    column = jnp.where(jnp.arange(4) < 2, state[0] * TIME, state[1] * CHOICE) / 255
    return jnp.broadcast_to(column[:, None, None], (4, 4, 1))


def symbols(frames):
    unit = frames / 255 if frames.dtype == np.uint8 else np.asarray(frames)
    count, choice = unit[..., :1, 0, 0] * 255 / TIME, unit[..., -1:, 0, 0] * 255 / CHOICE
    return {"count": np.round(count), "choice": np.round(choice)}


class Counter(AbstractNetwork):
    """Knows the next state (count, action + 1), up to `blind` and `error`, and reads it out as long as heads ask."""

    blind: Bool[Array, ""]
    error: Float[Array, ""]
    grid: NoiseGrid = NoiseGrid(K_MAX)
    num_spatial: int = eqx.field(static=True, default=1)
    spatial_dim: int = eqx.field(static=True, default=2)
    agent_dim: int = eqx.field(static=True, default=4)
    context_length: int = eqx.field(static=True, default=4)

    def __call__(self, frames, task, segment=None):
        raise NotImplementedError

    def prefill(self, frames, task, segment=None):
        z = snap(frames.z)
        return z, self._readout(z[:, 0]), Entry(z, z)

    def drafts(self, frames, entries, segment=None):
        raise NotImplementedError

    def flops(self, *, frames, agent):
        return 0

    def init_cache(self):
        cache = RingCache.empty((), self.context_length, 1, 2, jnp.float32)
        return Stream(cache, jnp.zeros((), jnp.int32))

    def step(self, frame, task, stream):
        z, action = snap(frame.z), frame.action
        newest = jnp.round(stream.cache.key[0, (stream.position - 1) % self.context_length])
        taken = jnp.where(self.blind, 0, action.discrete[0])
        following = jnp.stack([newest[0] + 1, taken + 1.0])
        kept = self.error * (action.discrete[0] == 2) * jnp.sin(7.0 * frame.z)
        return following[None] + kept, None if task is None else self._readout(z[0]), Entry(z, z)

    def _readout(self, state):
        return jnp.concatenate([state, jnp.zeros_like(state)], -1)


def agent(*, blind=False, error=0.0):
    dreamer = oracle(
        ENV.spec,
        size=2,
        read=read,
        transition=lambda state, action: state,
        reward=lambda h: jnp.round(h[0]),
        continuation=lambda h: (jnp.round(h[0]) < LENGTH - 1).astype(jnp.float32),
    )
    dynamics = Counter(jnp.asarray(blind), jnp.asarray(error))
    tokenizer = OracleTokenizer(read, ENV.spec.frame_shape, 2, show)
    parts = (dynamics, tokenizer, dreamer.reward)  # the value is what the reward is
    dreamer = eqx.tree_at(lambda d: (d.dynamics.network, d.tokenizer, d.value), dreamer, parts)
    return eqx.tree_at(lambda d: d.dynamics, dreamer, dreamer.dynamics.with_passes(4))


@pytest.fixture(scope="module")
def source():
    return DeviceSource.from_episodes(collect(ENV, random_policy(ENV.spec), episodes=40, key=jr.key(0)))


@pytest.fixture(scope="module")
def measure(source):
    levels = (np.unique(np.asarray(source.frame)) / 255).tolist()
    starts = anywhere(source, 60, key=jr.key(1))

    def measure(**kind):
        dreamer = agent(**kind)
        latents = encode_source(dreamer, source)
        # Beyond the dynamics' context of 4, and with fewer frames given than have passed.
        return measure_dreams(
            dreamer,
            source,
            latents,
            starts,
            levels=levels,
            read=symbols,
            places={"choice": ("choice",)},
            num_steps=(1, 4),
            context_length=3,
            horizon=6,
            lpips=lambda a, b: jnp.abs(a - b).max(axis=(1, 2, 3)),
            key=jr.key(2),
        )

    return measure


@pytest.fixture(scope="module")
def perfect_world(measure):
    return measure()


@pytest.fixture(scope="module")
def perfect(perfect_world):
    return perfect_world[0]


@pytest.fixture(scope="module")
def frames(perfect_world):
    return perfect_world[1]


class Readable(CounterEnvironment):
    """Its frames show the action that led to them, and one of its actions has an effect."""

    def symbols(self, frames):
        return symbols(frames)

    def effects(self, before, after, action):
        counts = after["count"][..., 0] == before["count"][..., 0] + 1
        return {"chosen": counts & (action[..., 0] == 2) & (after["choice"][..., 0] == 3), "never": counts & False}


def test_what_an_action_does_is_found_in_the_dreams_of_a_model_that_knows_actions_and_in_none_without(source):
    found = {}
    for blind in (False, True):
        dreamer = agent(blind=blind)
        told = measure_interactions(
            dreamer,
            source,
            encode_source(dreamer, source),
            Readable(length=LENGTH, num_actions=ACTIONS),
            context_length=3,
            most=20,
            key=jr.key(0),
        )
        assert told.keys() == {"chosen"}
        found[blind] = told["chosen"]
    for blind, dreamt in ((False, 1.0), (True, 0.0)):
        shown = found[blind]
        assert (shown.dreamt.mean, shown.no_op.mean, shown.decoded.mean) == (dreamt, 0.0, 1.0)
        assert shown.dreamt.episodes == 20 and shown.holds is not blind


def test_a_perfect_model_is_exact_at_every_depth_and_every_number_of_steps(perfect):
    assert set(perfect.passes) == {1, 4}
    for curves in perfect.passes.values():
        assert curves.exact == (1.0,) * 6
        assert min(curves.psnr) > 60 and min(curves.ssim) > 0.999
    assert perfect.controls[CEILING].exact == (1.0,) * 6
    assert perfect.tells_exactness
    ceiling = perfect.controls[CEILING]
    never = ceiling.model_copy(update={"mean": ceiling.mean.model_copy(update={"exact": 0.0})})
    assert not perfect.model_copy(update={"controls": {**perfect.controls, CEILING: never}}).tells_exactness


def test_the_controls_of_a_perfect_model_are_worse(perfect):
    assert perfect.controls[LAST_REPEATED].exact == (0.0,) * 6
    assert perfect.passes[4].lpips == (0.0,) * 6 and all(seen > 0 for seen in perfect.controls[LAST_REPEATED].lpips)
    for name in (SHUFFLED, NO_OP):
        assert 0.1 < perfect.controls[name].mean.exact < 0.6
        assert perfect.controls[name].mean.psnr < perfect.passes[4].mean.psnr - 20
    told = perfect.comparisons
    assert told.above_last_frame_at_every_step
    assert told.psnr_over_shuffled_actions > 20
    assert told.psnr_below_finest_sampler == 0.0


def test_a_step_counts_the_clips_that_reach_it(perfect, source):
    starts = anywhere(source, 60, key=jr.key(1))
    expected = [int((starts.passed + d < LENGTH).sum()) for d in range(6)]
    assert list(perfect.frames) == expected and expected[0] == 60 and expected[-1] < 40


def test_perfect_heads_find_every_event_on_dreamt_frames(perfect):
    for read in ("dreamt", "true"):
        rewards, ends = perfect.heads[read].reward, perfect.heads[read].end
        assert rewards.mae == 0.0 and rewards.recall == rewards.precision == rewards.sign_accuracy == 1.0
        assert ends.recall == ends.precision == 1.0 and 0 < ends.base_rate < 0.5
        assert len(rewards.mae_by_depth) == 6


def test_symbols_are_read_by_kind_step_and_control(perfect):
    right = {"count": (1.0,) * 6, "choice": (1.0,) * 6}
    assert perfect.passes[4].read == perfect.controls[CEILING].read == right
    assert perfect.controls[LAST_REPEATED].read["count"] == (0.0,) * 6
    assert perfect.controls[SHUFFLED].read["count"] == (1.0,) * 6  # the number of a frame does not depend on actions
    assert perfect.controls[SHUFFLED].mean.read["choice"] == perfect.controls[SHUFFLED].mean.exact < 0.6


def test_numbers_that_change_are_judged_where_they_rise_and_where_they_fall(perfect):
    own, shuffled = perfect.passes[4].changes, perfect.controls[SHUFFLED].changes
    assert own.keys() == shuffled.keys() == {"choice +", "choice -"}
    for way, found in own.items():
        assert found.mean == 1.0 and shuffled[way].mean < 0.7
        assert shuffled[way].episodes == found.episodes
    # Of two draws from three classes a third are equal, a third rise and a third fall; a first frame has none before.
    assert abs(own["choice +"].episodes / own["choice -"].episodes - 1) < 0.5
    assert own["choice +"].episodes + own["choice -"].episodes < 0.85 * sum(perfect.frames[1:])


def test_a_model_blind_to_actions_gains_nothing_from_the_true_ones(measure):
    blind, _ = measure(blind=True)
    assert blind.comparisons.psnr_over_shuffled_actions == 0.0
    assert blind.controls[SHUFFLED].exact == blind.passes[4].exact == blind.controls[NO_OP].exact
    assert blind.passes[4].mean.exact < 0.6


def test_warnings_rise_where_errors_were_planted(measure, perfect):
    wrong, _ = measure(error=0.3)
    for name in ("decode_encode_residual", "seed_disagreement", "late_movement"):
        # Two thirds of the frames have no error at all; how the others rank among themselves is left to the noise.
        assert wrong.signals[name].rank_correlation > 0.7, name
        assert wrong.signals[name].rank_correlation_at_equal_depth > 0.7, name
        assert max(wrong.signals[name].by_depth) > 0.01
        assert max(perfect.signals[name].by_depth) < 1e-5
    assert wrong.signals["decode_encode_residual"].of_truth < 1e-5


def test_what_is_shown_is_the_context_and_then_the_dream(frames):
    assert len(frames.shown) == 6
    for truth, dreamt, given in frames.shown:
        assert truth.shape == dreamt.shape and 1 <= given <= 3
        np.testing.assert_array_equal(truth, dreamt)


def test_the_same_clip_is_shown_at_every_number_of_steps_and_under_wrong_actions(frames):
    for grid, (truth, _, given) in zip(frames.grids, frames.shown, strict=False):
        assert list(grid.dreams) == ["K = 1", "K = 4", SHUFFLED, NO_OP]
        np.testing.assert_array_equal(grid.given, truth[given - 1])
        np.testing.assert_array_equal(grid.truth, truth[given:])
        np.testing.assert_array_equal(grid.dreams["K = 1"], grid.truth)
    assert any((grid.dreams[NO_OP] != grid.truth).any() for grid in frames.grids)


def test_heads_are_followed_along_an_episode(perfect):
    for trace in perfect.traces:
        assert trace.reward.dreamt == trace.reward.true == trace.reward.happened
        assert trace.continuation.dreamt == trace.continuation.happened
        ended = trace.continuation.happened[-1] == 0.0
        for read in ("true", "dreamt"):
            assert getattr(trace.value, read) == getattr(trace.reward, read)[: 5 if ended else 6], "an end has no value"
    assert DreamQuality.model_validate_json(perfect.model_dump_json()) == perfect


def test_shuffling_permutes_the_actions_that_count(source):
    starts = Starts(np.arange(12), np.full(12, 6))
    clips = Clips(source, source, starts, 1, 5)
    assert clips.valid.sum() == 12 * (LENGTH - 6)
    before, after = (
        np.asarray(a.discrete)[clips.valid] for a in (clips.actions, clips.shuffled_actions(key=jr.key(3)))
    )
    np.testing.assert_array_equal(np.sort(before, axis=0), np.sort(after, axis=0))
    assert (before != after).any()


def test_starts_depend_on_the_key_alone_and_reach_everywhere(source):
    starts = anywhere(source, 200, key=jr.key(0))
    again = anywhere(source, 200, key=jr.key(0))
    np.testing.assert_array_equal(starts.passed, again.passed)
    assert (starts.passed != anywhere(source, 200, key=jr.key(1)).passed).any()
    counts = np.bincount(starts.passed, minlength=LENGTH)[1:]
    assert counts.sum() == 200 and counts.size == LENGTH - 1
    np.testing.assert_allclose(counts, 200 / (LENGTH - 1), atol=1)
    assert (first_frames(source, 5, passed=2).passed == 2).all()


def test_nothing_behind_an_unknown_action_counts(source):
    hole = eqx.tree_at(lambda s: s.action_mask, source, source.action_mask.at[jnp.asarray([3])].set(False))
    valid = Clips(hole, hole, Starts(np.array([0, 1]), np.array([1, 1])), 1, 5).valid
    assert valid.tolist() == [[True, True, False, False, False], [True] * 5]


def test_dreams_begin_where_what_follows_is_known(source):
    mask = np.asarray(source.action_mask).copy()
    mask[1:3] = False  # of the first episode, whose fourth frame is the first that a known action led to
    hole = eqx.tree_at(lambda s: s.action_mask, source, jnp.asarray(mask))
    starts = first_frames(hole, 2)
    assert starts.passed.tolist() == [3, 1]
    assert Clips(hole, hole, starts, 1, 2).valid[:, 0].all()
    anyhow = anywhere(hole, 60, key=jr.key(0))
    assert Clips(hole, hole, anyhow, 1, 2).valid[:, 0].all()
    unlabelled = eqx.tree_at(lambda s: s.action_mask, source, jnp.zeros_like(source.action_mask))
    for draw in (lambda s: first_frames(s, 2), lambda s: anywhere(s, 2, key=jr.key(0))):
        with pytest.raises(InputError, match="no action is known"):
            draw(unlabelled)


@pytest.mark.parametrize(
    ("context_length", "horizon", "told"),
    [
        (5, 2, "got 5 context frames, expected 1 to 4"),
        (0, 2, "got context_length=0, expected a whole number"),
        (1, 0, "got horizon=0, expected a whole number"),
    ],
)
def test_lengths_that_make_no_sense_are_refused(source, context_length, horizon, told):
    dreamer = agent()
    with pytest.raises(InputError, match=told):
        measure_dreams(
            dreamer, source, jnp.zeros((source.num_frames, 1, 2)), first_frames(source, 2), levels=[0.0, 1.0],
            context_length=context_length, horizon=horizon, key=jr.key(0),
        )  # fmt: skip
    with pytest.raises(InputError, match="fewer context frames"):
        first_frames(source, 2, passed=LENGTH)
