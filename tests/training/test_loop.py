"""The training loop: what a step changes, that a run is a function of its seed, and that it can stop and go on."""

import dataclasses
import json
from itertools import islice
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from agent.fakes import TINY, TINY_SPEC, build_tiny, randomised
from helpers import compilations
from jaxtyping import Array, Float, PRNGKeyArray, PyTree
from training import golden
from training.faults import world

from dreamer4.checkpoint import Checkpoints, load
from dreamer4.config import OptimizerConfig, PhaseConfig, ShortcutConfig
from dreamer4.data import BalancedSource, DeviceSource, Episode, OwnReader, StreamSource, write_dataset
from dreamer4.dreamer import PHASES, Dreamer
from dreamer4.dynamics.shortcut import build_forcing
from dreamer4.training import (
    AbstractPhase,
    TokenizerPhase,
    init_dreamer,
    init_state,
    loop,
    stream,
    train,
)
from dreamer4.training.state import RMS_DECAY, ema_decay
from dreamer4.types import Trajectory


STEPS, HALF = 6, 3
CONFIG = PhaseConfig(
    steps=STEPS,
    batch_size=4,
    length=5,
    optimizer=OptimizerConfig(learning_rate=1e-2, warmup=0.0, decay=0.5),
    ema=0.5,
)
LENGTHS = (8, 3, 5, 6, 4, 8)


@pytest.fixture(scope="module")
def episodes():
    rng = np.random.default_rng(0)
    return [
        Episode(
            frame=rng.integers(0, 256, (length, *TINY_SPEC.frame_shape)).astype(np.uint8),
            discrete=rng.integers(0, 3, (length, 1)).astype(np.int32),
            continuous=rng.uniform(-1, 1, (length, 2)).astype(np.float32),
            action_mask=np.arange(length) > 0,
            reward=rng.normal(size=length).astype(np.float32),
            is_terminal=bool(i % 2),
            task=i % 2,
        )
        for i, length in enumerate(LENGTHS)
    ]


@pytest.fixture(scope="module")
def source(episodes):
    return DeviceSource.from_episodes(episodes)


@pytest.fixture(scope="module")
def tiny():
    return randomised(build_tiny())


def named(tree):
    """Arrays by dotted path."""
    leaves = jax.tree_util.tree_leaves_with_path(eqx.filter(tree, eqx.is_array))
    return {jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf) for path, leaf in leaves}


def changed(before, after):
    before, after = named(before), named(after)
    assert before.keys() == after.keys()
    return {name for name, leaf in before.items() if not np.array_equal(leaf, after[name])}


# Real models, every phase.


@pytest.fixture(scope="module")
def runs():
    """The first steps of each phase of the tiny preset, with the programs compiled at each as `compiled`."""
    made = {}

    def run(name):
        if name not in made:
            counts = []

            def counted(step):
                with compilations() as compiled:
                    result = step()
                counts.append(len(compiled))
                return result

            made[name] = golden.Run(name, STEPS, counted)
            made[name].compiled = counts
        return made[name]

    return run


TRAINED = {
    "tokenizer": ("tokenizer.",),
    "dynamics": ("dynamics.",),
    "agent": ("dynamics.", "policy.", "reward.", "continuation.", "reconstruction."),
    "imagination": ("policy.", "value."),
}


@pytest.mark.parametrize("name", PHASES)
def test_a_phase_trains_its_parts_and_leaves_the_rest_bitwise(runs, name):
    states = runs(name).states
    ours = {leaf for leaf in named(states[0].model) if leaf.startswith(TRAINED[name]) and ".stats." not in leaf}
    if name == "dynamics":
        ours -= {"dynamics.network.task.table"}  # the agent tokens, which carry the task, are left out of this phase
    assert changed(states[0].model, states[-1].model) == ours
    # Averaging a weight with itself may round, so of the frozen weights within the parts only the value is kept.
    averaged = changed(states[0].ema, states[-1].ema)
    assert ours <= averaged and all(leaf.startswith(TRAINED[name]) and ".stats." not in leaf for leaf in averaged)
    # One step moves nothing else either, and most of these already.
    first = changed(states[0].model, states[1].model)
    assert first <= ours and len(first) > 0.8 * len(ours)


@pytest.mark.parametrize("name", PHASES)
def test_losses_are_finite_and_the_state_counts(runs, name):
    run = runs(name)
    assert [int(s.step) for s in run.states] == list(range(STEPS + 1))
    for metrics in run.metrics:
        assert set(run.phase.weights) <= set(metrics)
        assert all(np.shape(v) == () and np.isfinite(v) for v in metrics.values())
        assert metrics["gradient_norm"] > 0
    # Nothing was watched, so the best held-out loss is still infinite.
    assert all(np.all(np.isfinite(x)) for name, x in named(run.states[-1]).items() if name != "watch.best")


@pytest.mark.parametrize("name", PHASES)
def test_no_phase_compiles_again(runs, name):
    assert runs(name).compiled == [1] + [0] * (STEPS - 1)


@pytest.mark.parametrize("name", PHASES)
def test_a_run_that_stops_goes_on_bitwise(runs, name, tmp_path):
    run = runs(name)
    path = Checkpoints(tmp_path).save(HALF, run.states[HALF], meta={})
    # Loaded arrays are bound to a device, which would compile the step again.
    state = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)) if eqx.is_array(x) else x, load(path, run.states[0]))
    assert not changed(state, run.states[HALF])
    for _ in range(STEPS - HALF):
        state, _ = run.step(state)
    assert not changed(state, run.states[-1])


@pytest.mark.parametrize("name", ["dynamics", "imagination"])
def test_a_step_is_a_function_of_state_and_key(runs, name):
    run = runs(name)
    again, _ = run.step(run.states[0])
    assert not changed(again, run.states[1])
    other, _ = run.step(run.states[0], jr.key(99))
    assert changed(other.model, run.states[1].model)
    # The step number is part of the key: two steps from equal weights draw different batches.
    later, _ = run.step(dataclasses.replace(run.states[0], step=jnp.asarray(1, jnp.int32)))
    assert changed(later.model, run.states[1].model)


@pytest.mark.parametrize("name", PHASES)
def test_losses_are_those_of_earlier_versions(runs, name):
    kept = json.loads(golden.FILE.read_text())
    wanted, losses = kept["losses"][name], runs(name).losses()
    assert set(losses) == set(wanted) and all(len(values) == golden.STEPS for values in losses.values())
    if kept["made with"] == golden.machine():
        assert losses == wanted
    for term, values in losses.items():
        # Sums in another order differ in the last of seven digits, and a hundred steps let that grow, about tenfold.
        # The policy's term is a difference of larger ones, so it is that accurate beside 1, not beside itself.
        np.testing.assert_allclose(values, wanted[term], rtol=1e-5, atol=1e-5 if term == "policy" else 1e-6)


def test_the_average_follows_by_its_decay(runs):
    states = runs("dynamics").states
    for step in (0, 4):
        settings = runs("dynamics").settings
        decay = float(ema_decay(settings.ema, settings.steps, jnp.asarray(step)))
        assert 0 < decay < 1
        old, new, averaged = (named(x) for x in (states[step].ema, states[step + 1].model, states[step + 1].ema))
        for name in averaged:
            if name.startswith("dynamics."):
                expected = decay * old[name] + (1 - decay) * new[name]
                np.testing.assert_allclose(averaged[name], expected, rtol=1e-5, atol=1e-7, err_msg=name)


def test_seeds_side_by_side_equal_seeds_alone(runs):
    run = runs("dynamics")
    both = jax.tree.map(lambda x: jnp.stack([x, x]) if eqx.is_array(x) else x, run.dreamer)
    latents = jnp.stack([run.source.latent, run.source.latent])
    states = train(
        run.phase,
        run.settings,
        init_state(run.phase, both, run.settings, seeds=2),
        dataclasses.replace(run.source, latent=None),
        seed=0,
        seeds=2,
        latents=latents,
    )
    side_by_side, metrics = next(states)
    alone = [run.states[1], run.step(run.states[0], stream(1, "dynamics"))[0]]
    assert metrics["dynamics"].shape == (2,)
    for i, single in enumerate(alone):
        member = jax.tree.map(lambda x, i=i: x[i] if eqx.is_array(x) else x, side_by_side)
        # Batched products sum in another order, and the first step of Adam divides a gradient by its own size, which
        # amplifies that where a gradient is almost zero; so nearly all entries must agree, not each.
        close = [
            np.isclose(a, b, atol=1e-5) for a, b in zip(named(member).values(), named(single).values(), strict=True)
        ]
        assert np.mean(np.concatenate([c.reshape(-1) for c in close])) > 0.999
    assert changed(*alone)


# The loop itself, on a phase of one number.


class OneNumber(AbstractPhase):
    """Pulls on the world's one parameter, and tells what it was given."""

    terms: tuple[tuple[str, float], ...] = eqx.field(static=True, default=(("near", 1.0), ("far", 0.0)))
    name: ClassVar[str] = "agent"
    normalise: ClassVar[bool] = False

    @property
    def weights(self) -> dict[str, float]:
        return dict(self.terms)

    def trainable(self, dreamer: Dreamer) -> PyTree[bool]:
        nothing = jax.tree.map(lambda _: False, dreamer)
        return eqx.tree_at(lambda d: d.dynamics.network.gain, nothing, True)

    def loss(
        self, dreamer: Dreamer, batch: Trajectory, progress: Float[Array, ""], *, key: PRNGKeyArray
    ) -> tuple[dict[str, Float[Array, ""]], dict[str, Float[Array, ""]]]:
        gain = dreamer.dynamics.network.gain
        told = {
            "progress": progress,
            "noise": jr.normal(key),
            "relevant": batch.relevant.mean(),
            "uniform": batch.uniform.mean(),
            "ended": batch.is_terminal.any(1).mean(),
            "latent": jnp.zeros(()) if batch.latent is None else batch.latent.mean(),
        }
        return {"near": 3.0 * gain, "far": gain - 5.0}, told


class Normalised(OneNumber):
    normalise: ClassVar[bool] = True


class OfFrames(OneNumber):
    name: ClassVar[str] = "tokenizer"


class OfTheWorld(OneNumber):
    name: ClassVar[str] = "dynamics"


@pytest.fixture(scope="module")
def small():
    return world()


def history(phase, dreamer, source, *, state=None, seeds=1, config=CONFIG, **settings):
    if state is None:
        state = init_state(phase, dreamer, config, seeds)
    found = []
    for state, metrics in train(phase, config, state, source, seeds=seeds, **{"seed": 0, **settings}):
        found.append((jax.tree.map(np.asarray, eqx.filter(state, eqx.is_array)), jax.tree.map(np.asarray, metrics)))
    return found


def test_training_runs_its_steps_and_no_more(small, source):
    found = history(OneNumber(), small, source)
    assert [int(state.step) for state, _ in found] == list(range(1, STEPS + 1))
    np.testing.assert_allclose([m["progress"] for _, m in found], np.arange(STEPS) / STEPS, rtol=1e-6)
    assert len({float(m["noise"]) for _, m in found}) == STEPS


def test_training_goes_on_where_its_state_stands(small, source):
    phase = OneNumber()
    whole = history(phase, small, source)
    *_, (state, _) = islice(train(phase, CONFIG, init_state(phase, small, CONFIG), source, seed=0), HALF)
    rest = history(phase, small, source, state=state)
    assert len(rest) == STEPS - HALF
    for (a, metrics_a), (b, metrics_b) in zip(whole[HALF:], rest, strict=True):
        assert metrics_a["noise"] == metrics_b["noise"] and not changed(a, b)


def test_seeds_have_streams_of_their_own(small, source):
    both = jax.tree.map(lambda x: jnp.stack([x, x]) if eqx.is_array(x) else x, small)
    latents = jnp.stack([jnp.full((source.num_frames, 1, 1), i) for i in (3.0, 4.0)])
    together = history(OneNumber(), both, source, seeds=2, seed=7, latents=latents)
    for i in range(2):
        alone = history(OneNumber(), small, source, seed=7 + i, latents=latents[i])
        for (_, a), (_, b) in zip(together, alone, strict=True):
            assert a["noise"][i] == b["noise"]
            # Each seed has a tokenizer, and so latents, of its own.
            assert a["latent"][i] == b["latent"] == 3.0 + i


def test_nothing_compiles_after_the_first_step_nor_in_a_second_run(small, source):
    phase = OneNumber((("near", 5.0), ("far", 0.0)))  # of no other test
    # Bound to a device, as what is made of loaded weights.
    latents = jax.device_put(jnp.zeros((source.num_frames, 1, 1)), jax.devices()[0])
    states, again = (
        train(phase, CONFIG, init_state(phase, small, CONFIG), source, seed=seed, latents=latents) for seed in range(2)
    )
    with compilations() as compiled:
        next(states)
        assert compiled
        compiled.clear()
        assert len(list(states)) == STEPS - 1
        assert len(list(again)) == STEPS
        assert not compiled


@pytest.mark.parametrize("kind", [OneNumber, Normalised])
def test_terms_are_weighed_and_divided_by_their_size(small, source, kind):
    state, metrics = history(kind((("near", 2.0), ("far", 10.0))), small, source)[0]
    # Terms 3 x and x - 5 at x = 1, their slopes 3 and 1. After one term the scale is that term's size.
    slope = 2.0 * 3.0 / 3.0 + 10.0 * 1.0 / 4.0 if kind is Normalised else 2.0 * 3.0 + 10.0 * 1.0
    np.testing.assert_allclose(metrics["gradient_norm"], slope, rtol=1e-4)
    np.testing.assert_allclose([metrics["near"], metrics["far"]], [3.0, -4.0], rtol=1e-6)
    sizes = {name: jnp.sqrt(scale.mean_square / (1 - RMS_DECAY)) for name, scale in state.loss_scale.items()}
    np.testing.assert_allclose([sizes["near"], sizes["far"]], [3.0, 4.0], rtol=1e-3)


@pytest.mark.parametrize(
    ("kind", "some_irrelevant", "balanced", "mixed"),
    [
        (OneNumber, True, True, True),
        (OneNumber, True, False, False),
        (OneNumber, False, True, False),
        (OfFrames, True, True, False),
        (OfTheWorld, True, True, False),
    ],
)
def test_rows_are_balanced_only_where_there_is_a_choice(small, source, kind, some_irrelevant, balanced, mixed):
    if some_irrelevant:
        source = dataclasses.replace(source, relevant=jnp.arange(len(LENGTHS)) == 2)
    _, metrics = history(kind(), small, source, balanced=balanced)[0]
    assert metrics["uniform"] == (0.5 if mixed else 1.0)
    if mixed:
        assert metrics["relevant"] == 0.5
    elif not some_irrelevant:
        assert metrics["relevant"] == 1.0


def test_the_world_learns_from_as_many_ends_as_are_set(small, source):
    plain, half, all_ = (
        [m["ended"] for _, m in history(OfTheWorld(), small, source, config=CONFIG.model_copy(update={"ends": share}))]
        for share in (0.0, 0.5, 1.0)
    )
    assert min(plain) < 0.5 <= min(half) and min(all_) == 1.0


@pytest.mark.parametrize("fraction", [0.25, 0.5])
def test_teachers_take_their_share_of_the_rows_that_teach_the_world(source, fraction):
    # In a balanced batch the world learns from one half of the rows only; teachers take the first rows of the batch.
    source = dataclasses.replace(source, relevant=jnp.arange(len(LENGTHS)) == 2)
    forcing = build_forcing(ShortcutConfig(bootstrap_fraction=fraction), context_signal=0.9)
    batch = BalancedSource(source).sample(16, 2, key=jr.key(0))
    assert batch.uniform[: forcing.bootstrap_rows(16)].sum() == fraction * batch.uniform.sum()


# Beginnings.


def test_streams_are_apart():
    keys = [stream(seed, name) for seed in (0, 1) for name in loop.STREAMS]
    assert len({tuple(jr.key_data(key).tolist()) for key in keys}) == len(keys)
    assert set(PHASES) < set(loop.STREAMS)


def test_an_agent_is_built_from_its_own_seed(small, monkeypatch):
    def build(config, spec, *, key):
        return eqx.tree_at(lambda d: d.dynamics.network.gain, small, jr.normal(key))

    monkeypatch.setattr(Dreamer, "build", build)
    both = init_dreamer(TINY.model_copy(update={"seed": 3, "seeds": 2}), TINY_SPEC)
    for i in range(2):
        alone = init_dreamer(TINY.model_copy(update={"seed": 3 + i}), TINY_SPEC)
        assert both.dynamics.network.gain[i] == alone.dynamics.network.gain
    assert both.dynamics.network.gain[0] != both.dynamics.network.gain[1]


def test_training_consumes_its_own_copy_of_the_agent(small, source):
    # As after finetuning, when prior and policy are one.
    agent = eqx.tree_at(lambda d: d.prior, small, small.policy)
    before = named(agent)
    history(OneNumber(), agent, source)
    for name, leaf in named(agent).items():  # a donated buffer could not be read any more
        np.testing.assert_array_equal(leaf, before[name], err_msg=name)


def test_a_phase_begins_with_the_average_at_the_weights(small):
    state = init_state(OneNumber(), small, CONFIG)
    assert not changed(state.model, state.ema) and state.step == 0
    assert set(state.loss_scale) == {"near", "far"}
    # Only what is trained has an optimiser state.
    moments = [x for x in jax.tree.leaves(state.opt_state) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert all(x.shape == () for x in moments)


def test_a_streamed_run_takes_the_steps_of_one_on_the_device_and_goes_on_as_if_never_stopped(
    tiny, episodes, source, tmp_path
):
    write_dataset(tmp_path / "d", episodes, spec=TINY_SPEC, environment={}, policy="p", seed=0, held_out=0)
    phase = TokenizerPhase()

    def states(source, state, count):
        taken = train(phase, CONFIG, state, source, seed=3)
        return [jax.device_get(eqx.filter((s, m), eqx.is_array)) for s, m in islice(taken, count)]

    def start():
        return init_state(phase, tiny, CONFIG)

    streamed = StreamSource(OwnReader(tmp_path / "d"))
    whole = states(streamed, start(), STEPS)
    halfway = eqx.combine(jax.tree.map(jnp.asarray, whole[HALF - 1][0]), start())
    resumed = states(streamed, halfway, STEPS)
    assert len(resumed) == STEPS - HALF
    assert eqx.tree_equal(resumed, whole[HALF:])
    for (_, ours), (_, theirs) in zip(whole, states(source, start(), STEPS), strict=True):
        np.testing.assert_allclose(ours["mse"], theirs["mse"], rtol=1e-5)
