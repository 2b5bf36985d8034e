"""What a phase hands on at its end."""

import equinox as eqx
import jax.random as jr
from helpers import equal, generic

from dreamer4.config import load
from dreamer4.dreamer import Dreamer
from dreamer4.training import build_phase, init_state
from dreamer4.training.finish import finish
from dreamer4.types import ActionSpec, DataSpec


TINY, SPEC = load("tiny"), DataSpec((10, 5, 1), ActionSpec((3,)))


def test_the_agent_phase_ends_with_its_averaged_policy_as_the_prior():
    def drawn(seed):
        return generic(lambda: Dreamer.build(TINY, SPEC, key=jr.key(0)), seed=seed)

    phase, averaged = build_phase("agent", TINY, SPEC), drawn(1)
    state = eqx.tree_at(lambda s: s.ema, init_state(phase, drawn(0), TINY.train.agent), averaged)
    assert not equal(averaged.prior, averaged.policy)
    ended, _ = finish(TINY, phase, state, lambda agents: [], lambda i: None)
    assert equal(ended.ema.prior, averaged.policy) and equal(ended.ema.policy, averaged.policy)
    assert equal(ended.model, state.model)  # what training would go on from
