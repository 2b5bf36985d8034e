"""Several tasks in one agent: what a task lacks changes nothing, and which number a task has means nothing."""

import dataclasses
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import equal, generic

from dreamer4.agent import agent_losses, build_heads
from dreamer4.config import TaskConfig, load
from dreamer4.dreamer import spec_from_json, spec_to_json
from dreamer4.dynamics import DYNAMICS, ActionEncoder, build
from dreamer4.dynamics.task import build_task_input
from dreamer4.envs import task_vector
from dreamer4.errors import InputError
from dreamer4.nn import ActionDistribution, Bins, Categorical
from dreamer4.types import Action, ActionSpec, DataSpec, TaskSpec, Trajectory


NZ, DZ, FRAMES = 2, 3, 5
HAS = {"arm": (True, False, True, True), "leg": (True, True, True, False)}
NUMPY = np.random.default_rng(0)


def spec(*names, vectors=None):
    tasks = tuple(TaskSpec(name=name, present=HAS[name], vector=(vectors or {}).get(name, ())) for name in names)
    return DataSpec((4, 4, 1), ActionSpec((3, 2), 2), len(tasks), tasks)


def clip(task):
    draw, flags = np.random.default_rng(1), jnp.zeros(FRAMES, bool)
    action = Action(
        jnp.asarray(draw.integers(0, 2, (FRAMES, 2)), jnp.int32),
        jnp.asarray(draw.uniform(-1, 1, (FRAMES, 2)), jnp.float32),
    )
    latent = jnp.asarray(draw.normal(size=(FRAMES, NZ, DZ)), jnp.float32)
    numbers = {"reward": jnp.zeros(FRAMES), "task": jnp.asarray(task), "frame": None, "latent": latent}
    marks = dict.fromkeys(("is_first", "is_last", "is_terminal"), flags)
    every = {"action_mask": ~flags.at[0].set(True), "valid": ~flags, "relevant": jnp.array(True)}
    return Trajectory(action=action, uniform=jnp.array(True), **numbers, **marks, **every)


def disturbed(row, task):
    """Returns the clip with other values where a task has no component."""
    lacks = ~np.array(HAS[task])
    action = Action(row.action.discrete + 5 * lacks[:2], row.action.continuous + 7.0 * lacks[2:])
    return dataclasses.replace(row, action=action)


@pytest.fixture(scope="module", params=DYNAMICS)
def config(request):
    return load("tiny", overrides=[f"dynamics.kind={request.param}"])


def parts(config, spec):
    dynamics = generic(build, config.dynamics, config.sampler, NZ, DZ, spec, key=jr.key(0))
    heads = generic(build_heads, config.agent, dynamics.agent_dim, spec.action, key=jr.key(1), seed=1)
    return dynamics, heads


@eqx.filter_jit
def told(dynamics, heads, row):
    """Returns all that an agent makes of a clip: losses and their gradients, what it remembers, dreams and does."""

    def loss(both):
        dynamics, heads = both
        rows = jax.tree.map(lambda x: x[None], row)
        world = dynamics.loss(rows, jnp.ones(()), with_readout=True, key=jr.key(0))
        terms, _ = agent_losses(heads.policy, heads.reward, heads.continuation, world.h[0], row)
        return world.loss + sum(terms.values()), terms

    losses = eqx.filter_value_and_grad(loss, has_aux=True)((dynamics, heads))
    state = dynamics.recall(row, jnp.asarray(3), key=jr.key(1))
    taken = jax.tree.map(lambda x: x[3], row.action)
    imagined, following = dynamics.imagine(state, taken, key=jr.key(2))
    policy = heads.policy(dynamics.readout(following), dynamics.task_of(following))
    chosen = policy.sample(key=jr.key(3)), policy.mode()
    numbers = policy.entropy(), policy.kl(heads.policy(jnp.zeros(dynamics.agent_dim), row.task)), policy.log_prob(taken)
    return losses, imagined.latent, dynamics.readout(following), chosen, numbers


@pytest.mark.parametrize("task", HAS)
def test_a_component_that_a_task_lacks_changes_nothing(config, task):
    dynamics, heads = parts(config, spec(*HAS))
    row = clip(list(HAS).index(task))
    before = told(dynamics, heads, row)
    assert equal(before, told(dynamics, heads, disturbed(row, task)))
    chosen = before[3][0]
    assert not np.any(np.concatenate([chosen.discrete, chosen.continuous])[~np.array(HAS[task])])
    other = "leg" if task == "arm" else "arm"
    assert not equal(before, told(dynamics, heads, disturbed(row, other)))


def test_a_dimension_at_rest_is_not_one_that_is_missing():
    encoder = generic(ActionEncoder, spec(*HAS).action, 8, key=jr.key(0))
    still, known = Action(jnp.zeros(2, jnp.int32), jnp.zeros(2)), jnp.array(True)
    arm, leg = (encoder(still, known, jnp.array(task)) for task in (0, 1))
    added = encoder.discrete[1].table[0] - encoder.presence[1]  # what a leg has and an arm lacks, and the other way
    np.testing.assert_allclose(leg - arm, added, rtol=1e-4, atol=1e-6)
    assert np.any(added)


def test_the_numbers_of_tasks_mean_nothing(config):
    table = {"transformer": lambda d: d.network.task.table, "rssm": lambda d: d.task.table}[config.dynamics.kind]
    ours, heads = parts(config, spec("arm", "leg"))
    theirs, others = parts(config, spec("leg", "arm"))
    for task in (0, 1):
        found, same = (
            told(ours, heads, clip(task)),
            told(eqx.tree_at(table, theirs, replace_fn=lambda t: t[::-1]), others, clip(1 - task)),
        )
        assert equal((found[0][0], found[1:]), (same[0][0], same[1:]))


def test_a_task_is_told_by_its_vector_where_it_has_one(config):
    vectors = {"arm": (3.0, 0.0, 4.0), "leg": (0.0, 1.0, 0.0)}
    ours, heads = parts(config, spec("arm", "leg", vectors=vectors))
    theirs, others = parts(config, spec("leg", "arm", vectors=vectors))
    # The vectors change places with the tasks, so the weights need not.
    found, same = told(ours, heads, clip(0)), told(theirs, others, clip(1))
    assert equal((found[0][0], found[1:]), (same[0][0], same[1:]))
    one, other = (told(ours, heads, clip(task)) for task in (0, 1))
    assert not equal(one[0][0], other[0][0])
    assert spec_from_json(json.loads(json.dumps(spec_to_json(spec("arm", "leg", vectors=vectors))))).vectors


def test_a_vector_is_scaled_and_projected_and_stays_as_it_was_given():
    given = ((3.0, 0.0, 4.0), (0.0, 1e-3, 0.0))
    tokens = generic(build_task_input, spec("arm", "leg", vectors=dict(zip(HAS, given, strict=True))), 4, key=jr.key(0))
    rows = np.array(given)
    rows = rows / np.sqrt(np.square(rows).mean(-1, keepdims=True))
    expected = rows @ np.asarray(tokens.project.weight) + np.asarray(tokens.project.bias)
    assert np.allclose(jax.vmap(tokens)(jnp.arange(2)), expected, atol=1e-6)
    assert tokens.count == 2 and len(jax.tree.leaves(tokens)) == 2  # nothing but the projection can learn


def test_vectors_that_fit_no_task_are_refused():
    with pytest.raises(InputError, match=r"vectors of \[0, 2\] numbers"):
        spec("arm", "leg", vectors={"arm": (1.0, 2.0)})
    with pytest.raises(InputError, match="a vector of wing, but the data hold arm, leg"):
        spec("arm", "leg").telling({"wing": (1.0,)})
    assert spec("arm", "leg").telling({"arm": (1.0,), "leg": (2.0,)}).vectors == ((1.0,), (2.0,))


def test_a_task_without_a_vector_is_written_as_it_was_before_there_were_any():
    # A data set's fingerprint is of this text.
    text = '{"name":"arm","env":{},"present":[true,false],"max_steps":null,"text":null}'
    assert TaskSpec(name="arm", present=(True, False)).model_dump_json() == text


def test_a_vector_lies_in_a_file(tmp_path):
    env = {"id": "PointGoal-pixels"}
    np.save(tmp_path / "arm.npy", np.arange(3.0))
    assert task_vector(TaskConfig(name="arm", env=env, vector=str(tmp_path / "arm.npy"))) == (0.0, 1.0, 2.0)
    assert task_vector(TaskConfig(name="arm", env=env, vector=[1, 2])) == (1.0, 2.0)
    np.save(tmp_path / "square.npy", np.ones((2, 2)))
    for name, told in (("square.npy", r"shape \(2, 2\)"), ("none.npy", "no .npy file")):
        with pytest.raises(InputError, match=f"vector of arm: .*{told}"):
            task_vector(TaskConfig(name="arm", env=env, vector=str(tmp_path / name)))


def test_losses_of_actions_are_means_over_the_dimensions_that_are_there():
    logits = [NUMPY.normal(size=(6, n)) for n in (3, 2)], NUMPY.normal(size=(6, 2, 5))
    has = np.array([HAS["arm"], HAS["leg"], (False, True, True, True), (True, True, False, False)] + [HAS["arm"]] * 2)
    discrete = tuple(Categorical(jnp.asarray(x, jnp.float32)) for x in logits[0])
    policy = ActionDistribution(discrete, Bins(jnp.asarray(logits[1], jnp.float32)), True, jnp.asarray(has))
    action = Action(jnp.ones((6, 2), jnp.int32), jnp.full((6, 2), 0.5))

    def log_softmax(x):
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    each = [log_softmax(x) for x in logits[0]]
    dims = log_softmax(logits[1])
    log_prob = np.stack([x[:, 1] for x in each], 1), dims[..., 3]
    entropy = np.stack([-(np.exp(x) * x).sum(-1) for x in each], 1), -(np.exp(dims) * dims).sum(-1)
    for found, (alone, together) in ((policy.log_prob(action), log_prob), (policy.entropy(), entropy)):
        own = has[:, 2:]
        mean = np.where(own, together, 0).sum(1) / np.maximum(own.sum(1), 1)
        np.testing.assert_allclose(found, np.where(has[:, :2], alone, 0).sum(1) + mean, rtol=1e-5)
