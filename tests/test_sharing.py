"""Weights handed to others arrive bit by bit, tell where they come from, and say nothing about the machine."""

import dataclasses
import json
import shutil
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from agent.fakes import TINY, TINY_SPEC
from helpers import equal, generic

from dreamer4 import Dreamer, checkpoint, data
from dreamer4.checkpoint import Checkpoints
from dreamer4.config import Config
from dreamer4.dreamer import PHASES, read_description, spec_to_json
from dreamer4.errors import InputError
from dreamer4.run import lineage
from dreamer4.run.folder import RunFolder, run_of
from dreamer4.run.phase import start_of
from dreamer4.sharing import STARTS, export_agent, import_agent
from dreamer4.training import build_phase, init_dreamer, stack_members
from dreamer4.training.trained import TRAINED


RESULTS = {
    "seeds": 1,
    "commit": "abc | <b>",
    "device": "2 CPU cores",
    "returns": {"imagination": {"mean": 0.99, "low": 0.98, "high": 0.998, "episodes": 1000}},
}


@pytest.fixture(scope="module")
def dreamer():
    return generic(Dreamer.build, TINY, TINY_SPEC, key=jr.key(0))


def steps_of(phase, steps):
    train = TINY.train.model_copy(update={phase: getattr(TINY.train, phase).model_copy(update={"steps": steps})})
    return TINY.model_copy(update={"train": train})


META = {"data": "f00d"}


def save(run, tree, config=TINY, phase="imagination", step=7):
    meta = {"config": config.model_dump(mode="json"), "spec": spec_to_json(TINY_SPEC), "phase": phase, **META}
    return Checkpoints(run / "checkpoints" / phase).save(step, tree, meta)


@pytest.fixture(scope="module")
def run(dreamer, tmp_path_factory):
    path = tmp_path_factory.mktemp("private") / "run"
    config = steps_of("imagination", 7)
    config = config.model_copy(update={"data": TINY.data.model_copy(update={"path": str(path / "frames")})})
    raw = jax.tree.map(lambda x: x + 1 if eqx.is_inexact_array(x) else x, dreamer)
    save(path, {"model": raw, "ema": dreamer, "step": jnp.array(7)}, config)
    (path / "results.json").write_text(json.dumps(RESULTS))
    return path


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("shared") / "agent"
    export_agent(run, out, provenance={"commit": "abc"})
    return out


def test_an_exported_agent_is_the_agent_bit_by_bit(exported, dreamer):
    assert sorted(f.name for f in exported.iterdir()) == [
        "README.md",
        "config.json",
        "dreamer4.json",
        "model.safetensors",
    ]
    assert equal(Dreamer.load(exported), dreamer)
    assert checkpoint.verify(exported) == []


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_in_half_precision_it_is_rounded_once_loads_and_says_so(exported, run, dreamer, tmp_path, dtype):
    export_agent(run, tmp_path / "half", dtype=dtype)
    half, whole = ((folder / "model.safetensors").stat().st_size for folder in (tmp_path / "half", exported))
    assert half < 0.6 * whole
    arrays, static = eqx.partition(dreamer, eqx.is_inexact_array)
    rounded = eqx.combine(jax.tree.map(lambda x: x.astype(dtype).astype(jnp.float32), arrays), static)
    loaded = Dreamer.load(tmp_path / "half")
    assert equal(loaded, rounded) and not equal(loaded, dreamer)
    assert f"kept as {dtype}" in (tmp_path / "half" / "README.md").read_text()
    assert "kept as" not in (exported / "README.md").read_text()
    export_agent(tmp_path / "half", tmp_path / "again")  # as they are, and it still says so
    assert f"kept as {dtype}" in (tmp_path / "again" / "README.md").read_text()
    assert equal(Dreamer.load(tmp_path / "again"), rounded)
    taken = import_agent(tmp_path / "half", tmp_path / "run", phase="agent")
    assert equal(Dreamer.load(taken.path).tokenizer, rounded.tokenizer)


def test_a_weight_that_half_precision_cannot_hold_is_refused_by_name(dreamer, tmp_path):
    run = tmp_path / "run"
    save(run, {"ema": eqx.tree_at(lambda d: d.value.mlp.hidden[0].weight, dreamer, replace_fn=lambda x: x + 1e5)})
    with pytest.raises(InputError, match=r"export: value\..* beyond the range of float16.*--dtype bfloat16"):
        export_agent(run, tmp_path / "half", dtype="float16")
    assert not (tmp_path / "half").exists()
    export_agent(run, tmp_path / "half", dtype="bfloat16")


def test_tensors_are_named_by_their_place_in_the_agent(exported, dreamer):
    names = set(checkpoint.read_leaves(exported))
    assert "dynamics.transformer.groups.space.0.attention.query.weight" in names
    assert len(names) == len(jax.tree.leaves(eqx.filter(dreamer, eqx.is_array)))


def test_it_tells_where_it_comes_from_and_nothing_of_the_machine(exported, run):
    meta = checkpoint.read_meta(exported)
    assert (meta["phase"], meta["data"], meta["provenance"]["commit"]) == ("imagination", "f00d", "abc")
    assert meta["provenance"]["trained_with"]["jax"] == jax.__version__
    assert meta["config"]["data"]["path"] == "frames"
    for file in exported.iterdir():
        assert str(run.parent).encode() not in file.read_bytes()


def test_the_card_shows_the_figures_of_the_run_and_no_markup_of_others(exported):
    card = (exported / "README.md").read_text()
    assert "| imagination policy | 0.99 | 0.98 to 0.998 | 1000 |" in card
    assert "<b>" not in card and "abc | " not in card


def test_the_card_shows_no_figures_of_another_phase(run, dreamer, tmp_path):
    shutil.copy(run / "results.json", tmp_path)
    export_agent(save(tmp_path, {"ema": dreamer}, phase="agent"), tmp_path / "out")
    assert "imagination policy" not in (tmp_path / "out" / "README.md").read_text()


def test_a_checkpoint_that_was_moved_belongs_to_no_run(dreamer, tmp_path):
    config = TINY.model_copy(update={"data": TINY.data.model_copy(update={"path": None})})
    step = shutil.copytree(save(tmp_path / "run", {"ema": dreamer}, config), tmp_path / "a" / "b" / "catch")
    (tmp_path / "results.json").write_text(json.dumps(RESULTS))  # of something else, as high as a run's would be
    export_agent(step, tmp_path / "out")
    assert "imagination policy" not in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(InputError, match="lies in no run"):
        export_agent(step, tmp_path / "more", starts=1)


@pytest.mark.parametrize("path", ["/catch", "/models/catch", "/a/models/catch", "/run/checkpoints/7"])
def test_no_path_is_too_short_to_lie_in_no_run(path):
    assert run_of(Path(path)) is None


def test_names_of_behaviour_policies_tell_no_folder(dreamer, tmp_path, monkeypatch):
    home = tmp_path / "home"
    own, agent = f"{home}/code/own.py:build", f"{home}/runs/best"
    mixture = [{"policy": p, "share": 1} for p in ("random", "ppo:early", own, agent, f"{home}/mixture")]
    episode = data.Episode(
        np.zeros((3, *TINY_SPEC.frame_shape), np.uint8),
        np.zeros((3, 1), np.int32),
        np.zeros((3, 2), np.float32),
        np.array([False, True, True]),
        np.zeros(3, np.float32),
        True,
    )
    for policy, name in (("random", "random"), ("ppo", "ppo"), (own, "own.py:build"), (agent, "best")):
        run = tmp_path / name
        about = {"spec": TINY_SPEC, "environment": {"id": "Catch-bsuite"}, "policy": policy, "seed": 0}
        info = data.write_dataset(run / "data", [episode] * 3, held_out=0.4, **about)
        monkeypatch.setitem(META, "data", info.fingerprint)
        config = TINY.model_dump(mode="json")
        config["data"] |= {"path": None, "policy": policy, "mixture": mixture if policy == own else []}
        save(run, {"ema": dreamer}, Config.model_validate(config))
        export_agent(run, tmp_path / "out" / name, starts=1)
        told, _ = read_description(tmp_path / "out" / name)
        assert told.data.policy == name == data.read_info(tmp_path / "out" / name / STARTS).policy
        if policy == own:
            parts = [part.policy for part in told.data.mixture]
            assert parts == ["random", "ppo:early", "own.py:build", "best", "./mixture"]
    for file in (tmp_path / "out").rglob("*"):
        assert file.is_dir() or str(home).encode() not in file.read_bytes()


def test_held_out_episodes_go_along_if_asked_for(dreamer, tmp_path, monkeypatch):
    episodes = [
        data.Episode(
            np.full((3, *TINY_SPEC.frame_shape), i, np.uint8),
            np.zeros((3, len(TINY_SPEC.action.num_classes)), np.int32),
            np.zeros((3, TINY_SPEC.action.continuous_dim), np.float32),
            np.array([False, True, True]),
            np.zeros(3, np.float32),
            True,
        )
        for i in range(8)
    ]
    about = {"spec": TINY_SPEC, "environment": {"id": "Catch-bsuite"}, "policy": "random", "seed": 0}
    info = data.write_dataset(tmp_path / "run" / "data", episodes, held_out=0.4, **about)
    config = TINY.model_copy(update={"data": TINY.data.model_copy(update={"path": None})})
    monkeypatch.setitem(META, "data", info.fingerprint)
    save(tmp_path / "run", {"ema": dreamer}, config)
    export_agent(tmp_path / "run", tmp_path / "out", starts=2)
    kept = data.read_episodes(tmp_path / "out" / STARTS)
    assert [int(episode.frame[0, 0, 0, 0]) for episode in kept] == list(info.held_out[:2])
    assert checkpoint.verify(tmp_path / "out") == [] and equal(Dreamer.load(tmp_path / "out"), dreamer)
    with pytest.raises(InputError, match="holds 3 episodes out"):
        export_agent(tmp_path / "run", tmp_path / "more", starts=4)
    monkeypatch.setitem(META, "data", "another")
    save(tmp_path / "run", {"ema": dreamer}, config, step=8)
    with pytest.raises(InputError, match="not the data set"):
        export_agent(tmp_path / "run", tmp_path / "more", starts=1)
    assert not (tmp_path / "more").exists()


def test_exporting_an_export_changes_no_byte_of_the_weights(exported, tmp_path):
    export_agent(exported, tmp_path / "again")
    name = "model.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (exported / name).read_bytes()


def test_one_of_several_seeds_is_exported_as_a_run_of_its_own(dreamer, tmp_path):
    other = jax.tree.map(lambda x: x * 2 if eqx.is_inexact_array(x) else x, dreamer)
    stacked = stack_members([dreamer, other])
    save(tmp_path / "run", {"ema": stacked}, TINY.model_copy(update={"seeds": 2, "seed": 5}))
    export_agent(tmp_path / "run", tmp_path / "out", member=1)
    assert equal(Dreamer.load(tmp_path / "out"), other)
    config, _ = read_description(tmp_path / "out")
    assert (config.seed, config.seeds) == (6, 1)
    with pytest.raises(InputError, match="seeds 0 to 1"):
        export_agent(tmp_path / "run", tmp_path / "third", member=2)
    with pytest.raises(InputError, match="--member"):
        import_agent(tmp_path / "run", tmp_path / "new")


def test_nothing_is_overwritten_and_damage_is_not_handed_on(exported, run, tmp_path):
    with pytest.raises(InputError, match="exists"):
        export_agent(run, exported)
    copy = shutil.copytree(exported, tmp_path / "copy")
    raw = bytearray((copy / "model.safetensors").read_bytes())
    raw[-3] ^= 1
    (copy / "model.safetensors").write_bytes(raw)
    for use in (Dreamer.load, lambda p: export_agent(p, tmp_path / "x"), lambda p: import_agent(p, tmp_path / "x")):
        with pytest.raises(InputError, match=r"model\.safetensors has another SHA-256"):
            use(copy)
    assert not (tmp_path / "x").exists()


def test_parts_count_as_trained_that_phases_train_or_make(dreamer):
    trained, names = set(), [field.name for field in dataclasses.fields(Dreamer)]
    for name in PHASES:
        phase = build_phase(name, TINY, TINY_SPEC)
        marked, finished = phase.trainable(dreamer), phase.finish(dreamer)
        trained |= {part for part in names if any(jax.tree.leaves(getattr(marked, part)))}
        trained |= {part for part in names if not equal(getattr(finished, part), getattr(dreamer, part))}
        assert set(TRAINED[name]) == trained


def test_an_imported_agent_is_where_the_next_phase_starts(exported, dreamer, tmp_path):
    for phase in PHASES:
        overrides = [f"train.{phase}.steps=3", "data.path=x", "seed=4"]
        new = import_agent(exported, tmp_path / phase, phase=phase, overrides=overrides)
        config, agent = new.read_config(), Dreamer.load(new.path)
        assert (new.checkpoints(phase).steps(), config.data.path, config.seed) == ([3], "x", 4)
        # Later phases are trained anew, imagination from the cloned policy.
        untrained = init_dreamer(config, TINY_SPEC)
        for part in ("tokenizer", "dynamics", "policy", "prior", "reward", "continuation", "value", "reconstruction"):
            kept = dreamer.prior if (phase, part) == ("agent", "policy") else getattr(dreamer, part)
            assert not equal(kept, getattr(untrained, part)), part
            wanted = kept if part in TRAINED[phase] else getattr(untrained, part)
            assert equal(getattr(agent, part), wanted), (phase, part)
        if phase != PHASES[-1]:
            following = PHASES[PHASES.index(phase) + 1]
            assert equal(start_of(config, new, following, TINY_SPEC), agent)


@pytest.mark.parametrize("phase", PHASES[:-1])
def test_an_import_and_a_start_from_the_run_are_the_same_experiment(dreamer, tmp_path, phase):
    own = TINY.model_copy(update={"data": TINY.data.model_copy(update={"path": None})})
    old, new = RunFolder(tmp_path / "old"), TINY.model_copy(update={"seed": 4})
    old.open(own)
    end = build_phase(phase, own, TINY_SPEC).finish(dreamer)
    steps = getattr(own.train, phase).steps
    step = save(old.path, {"ema": end, "step": jnp.array(steps)}, own, phase, steps)
    lineage.check(step, new, TINY_SPEC)
    lineage.write(new, RunFolder(tmp_path / "from"), step, tmp_path / "data", "f00d", TINY_SPEC)
    later = save(tmp_path / "later", {"ema": eqx.tree_at(lambda d: d.policy, end, dreamer.policy)}, own)
    import_agent(later, tmp_path / "import", phase=phase, overrides=["seed=4"])
    assert equal(Dreamer.load(tmp_path / "from"), Dreamer.load(tmp_path / "import"))


def test_parts_that_are_trained_anew_may_differ_in_size(exported, dreamer, tmp_path):
    new = import_agent(exported, tmp_path / "run", phase="dynamics", overrides=["agent.hidden=16"])
    agent = Dreamer.load(new.path)
    assert equal((agent.tokenizer, agent.dynamics), (dreamer.tokenizer, dreamer.dynamics))
    with pytest.raises(InputError, match=r"leaf reconstruction\..* wanted is nothing"):
        import_agent(exported, tmp_path / "other", phase="agent", overrides=["agent.reconstruction=0"])


def test_an_agent_without_a_reconstruction_head_is_imported(tmp_path):
    config = TINY.model_copy(update={"agent": TINY.agent.model_copy(update={"reconstruction": 0.0})})
    plain = generic(Dreamer.build, config, TINY_SPEC, key=jr.key(0))
    save(tmp_path / "old", {"ema": plain}, config)
    assert equal(Dreamer.load(import_agent(tmp_path / "old", tmp_path / "run").path), plain)


def test_weights_of_one_seed_make_no_run_of_several(exported, tmp_path):
    with pytest.raises(InputError, match=r"got seeds=2, but .* holds one training seed"):
        import_agent(exported, tmp_path / "run", overrides=["seeds=2"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("done", PHASES)
def test_a_phase_beyond_what_was_trained_is_refused(dreamer, tmp_path, done):
    step = save(tmp_path / "old", {"ema": dreamer}, phase=done)
    for phase in (*PHASES[PHASES.index(done) + 1 :], "dreaming"):
        with pytest.raises(InputError, match=f"trained up to {done}"):
            import_agent(step, tmp_path / "run", phase=phase)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("phase", PHASES)
def test_a_phase_that_was_left_does_not_count_as_done(dreamer, tmp_path, phase):
    step = save(tmp_path / "old", {"ema": dreamer, "step": jnp.array(7)}, steps_of(phase, 9), phase)
    export_agent(step, tmp_path / "out")
    export_agent(tmp_path / "out", tmp_path / "again")
    assert f"*{phase}*, left at step 7 of 9;" in (tmp_path / "again" / "README.md").read_text()
    for path in (step, tmp_path / "out", tmp_path / "again"):
        with pytest.raises(InputError, match=f"left at step 7 of 9 of the {phase} phase") as caught:
            import_agent(path, tmp_path / "run")
        assert not (tmp_path / "run").exists()
    before = PHASES[: PHASES.index(phase)]
    assert ("--phase" in str(caught.value)) == bool(before)
    if before:
        run = import_agent(tmp_path / "out", tmp_path / "run", phase=before[-1])
        assert import_agent(run.path, tmp_path / "next").checkpoints(before[-1]).steps()


def test_the_clone_of_an_unfinished_agent_phase_is_exported_as_the_clone(dreamer, tmp_path):
    tree = {"ema": dreamer, "step": jnp.array(7)}
    for steps, prior in ((9, dreamer.policy), (7, dreamer.prior)):
        step = save(tmp_path / f"{steps}", tree, steps_of("agent", steps), "agent")
        export_agent(step, tmp_path / f"out{steps}")
        assert equal(Dreamer.load(tmp_path / f"out{steps}"), eqx.tree_at(lambda d: d.prior, dreamer, prior))


def test_a_phase_at_its_end_counts_as_done(dreamer, tmp_path):
    save(
        tmp_path / "old",
        {"ema": stack_members([dreamer] * 2), "step": jnp.array([7, 7])},
        steps_of("agent", 7).model_copy(update={"seeds": 2}),
        "agent",
    )
    export_agent(tmp_path / "old", tmp_path / "out")
    assert "unfinished" not in checkpoint.read_meta(tmp_path / "out")
    assert import_agent(tmp_path / "out", tmp_path / "run").checkpoints("agent").steps() == [7]


def test_weights_that_do_not_fit_the_overrides_are_refused_before_anything_is_written(exported, tmp_path):
    with pytest.raises(InputError, match=r"leaf policy\.mlp.* was saved as .* wanted is"):
        import_agent(exported, tmp_path / "run", overrides=["agent.hidden=16"])
    assert not (tmp_path / "run").exists()
