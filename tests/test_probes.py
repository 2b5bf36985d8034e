"""The five probe environments through the whole of imagination training, in a world model that is written down.

Only policy and value learn, so a wrong number here is a fault of returns, objective, clock or masks, not of a model.
Episodes of random play in the real probe are read as states, dreamed on from, and the policy that comes out is played
in the real probe again. Two imagined steps reach past the end of the short probes, where nothing may count, and not to
the end of the long one, where the value has to bootstrap.
"""

import dataclasses
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from agent.fakes import OracleHead, OracleTokenizer, oracle
from probes import PROBES, ChosenReward, ConstantReward, DelayedReward, MatchedReward, ObservedReward, ProbeState

from dreamer4.agent import PMPO
from dreamer4.config import OptimizerConfig, PhaseConfig
from dreamer4.data import DeviceSource, Episode
from dreamer4.evaluation import evaluate
from dreamer4.training import ImaginationPhase, build_optimizer, draw_and_step, init_state
from dreamer4.types import Action


DISCOUNT, HORIZON, FRAMES, LONGEST = 0.9, 2, 64, 3
CONFIG = PhaseConfig(
    steps=250,
    batch_size=32,
    length=4,
    optimizer=OptimizerConfig(learning_rate=2e-2, warmup=0.02, decay=0.5),
    ema=0.02,
)
# Returns lean on values as much as on rewards, so that a value of the wrong state is felt.
PHASE = ImaginationPhase(PMPO(0.5, 0.1), HORIZON, DISCOUNT, 0.5, 0.0)


def transition(state, action):
    del action
    return state + jnp.array([0.0, 1.0, 0.0])


def reward(h, table):
    colour, time, _, action, _ = h.astype(jnp.int32)
    return table[colour, time - 1, action]


def continuation(h, table):
    return (h[1] < table).astype(jnp.float32)


def unread(frame):
    """Stands for the tokenizer in imagination training, which never looks at a frame."""
    raise NotImplementedError


def agent_of(env):
    """An agent that knows the probe: a state is (colour, time, 1). All probes share one compilation."""
    grid = np.ndindex(2, LONGEST, 2)
    rewards = [env.reward(ProbeState(jnp.asarray(c), jnp.asarray(t)), jnp.asarray(a)) for c, t, a in grid]
    table = jnp.asarray(np.array(rewards, np.float32).reshape(2, LONGEST, 2))
    ends = jnp.asarray(env.max_steps, jnp.float32)
    return oracle(
        env.spec,
        size=3,
        read=unread,
        transition=transition,
        reward=OracleHead(reward, table),
        continuation=OracleHead(continuation, ends),
    )


def state_of(env, frame):
    """Colour and time as a frame in [0, 1] shows them, and 1."""
    return jnp.stack([frame[0, 0, 0], jnp.round(env.max_steps * frame[1, 0, 0]), jnp.ones(())])


def random_play(env, count=16):
    """Whole episodes of the real probe, and the states that their frames show."""
    rng, episodes, states = np.random.default_rng(0), [], []
    for i in range(count):
        state, step = env.reset(key=jr.key(i))
        steps, chosen = [step], [0]
        while not step.is_last:
            chosen.append(int(rng.integers(2)))
            action = Action(jnp.asarray(chosen[-1:], jnp.int32), jnp.zeros(0))
            state, step = env.step(state, action, key=jr.key(i))
            steps.append(step)
        frame = np.stack([s.frame for s in steps])
        states += [np.asarray(state_of(env, x / 255.0)) for x in frame]
        episodes.append(
            Episode(
                frame=frame,
                discrete=np.array(chosen, np.int32)[:, None],
                continuous=np.zeros((len(steps), 0), np.float32),
                action_mask=np.arange(len(steps)) > 0,
                reward=np.array([s.reward for s in steps], np.float32),
                is_terminal=bool(step.is_terminal),
            )
        )
    return episodes, np.stack(states)


@eqx.filter_jit
def run(state, source):
    optimizer = build_optimizer(CONFIG.optimizer, CONFIG.steps)
    arrays, static = eqx.partition(state, eqx.is_array)

    def body(arrays, _):
        state, _ = draw_and_step(PHASE, optimizer, CONFIG, eqx.combine(arrays, static), source, jr.key(0))
        return eqx.filter(state, eqx.is_array), None

    return eqx.combine(jax.lax.scan(body, arrays, length=CONFIG.steps)[0], static)


def train_in(env):
    episodes, states = random_play(env)
    source = DeviceSource.from_episodes(episodes).with_latents(jnp.asarray(states)[:, None])

    def pad(x):  # to one shape for all probes; rows behind the last episode are never drawn
        return jnp.pad(x, [(0, FRAMES - len(x))] + [(0, 0)] * (x.ndim - 1)) if len(x) == len(states) else x

    source = dataclasses.replace(jax.tree.map(pad, source), max_length=LONGEST + 1)
    before = agent_of(env)
    return before, run(init_state(PHASE, before, CONFIG), source).ema


@pytest.fixture(scope="module")
def trained():
    """The agent of every probe before and after imagination training."""
    return {probe: train_in(probe()) for probe in PROBES}


@eqx.filter_jit
def _ask(dreamer, h):
    return dreamer.value(h).mean(), dreamer.policy(h).discrete[0].mean()[:, 1]


def ask(dreamer):
    """Value and probability of action 1, by (colour, time) as the agent meets them: at time 0 no action led there."""
    states = list(np.ndindex(2, LONGEST))
    h = [[colour, time, 1.0, 0.0, time > 0] for colour, time in states]
    value, choice = map(np.asarray, _ask(dreamer, jnp.asarray(h, jnp.float32)))
    return dict(zip(states, value, strict=True)), dict(zip(states, choice, strict=True))


def real_return(dreamer, env):
    tokenizer = OracleTokenizer(partial(state_of, env), env.spec.frame_shape, 3)
    dreamer = eqx.tree_at(lambda d: d.tokenizer, dreamer, tokenizer)
    played = evaluate(dreamer, env, episodes=256, batch_size=256, key=jr.key(3))
    assert np.all(played.finished) and np.all(played.length == env.max_steps + 1)
    return float(played.returns.mean())


def test_constant_reward_is_worth_itself(trained):
    value, _ = ask(trained[ConstantReward][1])
    np.testing.assert_allclose(value[0, 0], 1.0, atol=0.05)


def test_value_tells_good_sights_from_bad(trained):
    value, _ = ask(trained[ObservedReward][1])
    np.testing.assert_allclose([value[0, 0], value[1, 0]], [-1.0, 1.0], atol=0.1)


def test_delayed_reward_is_discounted_by_its_distance(trained):
    value, _ = ask(trained[DelayedReward][1])
    got = [value[0, time] for time in range(3)]
    np.testing.assert_allclose(got, [DISCOUNT**2, DISCOUNT, 1.0], atol=0.05)


def test_policy_takes_the_better_action(trained):
    value, choice = ask(trained[ChosenReward][1])
    assert choice[0, 0] > 0.9
    # The value is that of the policy being followed, not of the random one, which is 0.
    assert value[0, 0] > 0.7


def test_policy_takes_the_action_that_the_sight_calls_for(trained):
    dreamer = trained[MatchedReward][1]
    _, choice = ask(dreamer)
    assert choice[1, 0] > 0.9 and choice[0, 0] < 0.1
    assert real_return(dreamer, MatchedReward()) > 0.8


@pytest.mark.parametrize("probe", PROBES)
def test_only_policy_and_value_move(trained, probe):
    before, after = trained[probe]
    for name in ("tokenizer", "dynamics", "prior", "reward", "continuation"):
        old, new = (jax.tree.leaves(eqx.filter(getattr(d, name), eqx.is_array)) for d in (before, after))
        assert all(np.array_equal(a, b) for a, b in zip(old, new, strict=True)), name
    np.testing.assert_allclose(after.prior(jnp.ones(5)).discrete[0].mean(), [0.5, 0.5])
