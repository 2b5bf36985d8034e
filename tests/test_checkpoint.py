"""Checkpoints: what is read is what was written, bit for bit, or an error that says which part is not."""

import json
import os
import random
import shutil
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

from dreamer4 import checkpoint
from dreamer4.checkpoint import Checkpoints
from dreamer4.errors import InputError


class Pair(eqx.Module):
    weight: jax.Array
    layers: list
    name: str = eqx.field(static=True)
    activation: object


def make_tree(key=None, width=3):
    key = jr.key(0) if key is None else key
    model = Pair(jr.normal(key, (4, width)), [jr.normal(key, (width,)), {"scale": jnp.ones(())}], "pair", jax.nn.relu)
    optimiser = optax.adam(1e-3).init(eqx.filter(model, eqx.is_array))
    return {"model": model, "opt_state": optimiser, "step": jnp.array(7, jnp.int32)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "5"
    checkpoint.save(path, make_tree(), meta={"step": 5, "preset": "catch"})
    return path


@pytest.fixture
def copy(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "5"))


def files_of(path):
    return sorted(f for f in path.rglob("*") if f.is_file())


def assert_bitwise(a, b):
    a, b = np.asarray(a), np.asarray(b)
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    assert a.tobytes() == b.tobytes()


def test_round_trip_keeps_structure_and_every_bit(saved):
    tree = make_tree()
    loaded = checkpoint.load(saved, eqx.filter_eval_shape(make_tree))
    assert jax.tree.structure(eqx.filter(loaded, eqx.is_array)) == jax.tree.structure(eqx.filter(tree, eqx.is_array))
    jax.tree.map(assert_bitwise, eqx.filter(loaded, eqx.is_array), eqx.filter(tree, eqx.is_array))
    assert loaded["model"].activation is jax.nn.relu


@pytest.mark.parametrize("dtype", "float32 float16 bfloat16 float8_e4m3fn int8 int32 uint8 uint32 bool".split())
def test_every_type_keeps_every_bit(tmp_path, dtype):
    values = jnp.asarray(np.random.default_rng(0).integers(0, 2, (3, 5)), dtype)
    if jnp.issubdtype(values.dtype, jnp.floating):
        values = values.at[0, 0].set(-0.0).at[0, 1].set(jnp.nan).at[0, 2].set(jnp.finfo(dtype).smallest_subnormal)
    checkpoint.save(tmp_path / "x", {"a": values}, meta={})
    assert_bitwise(checkpoint.load(tmp_path / "x", {"a": jax.ShapeDtypeStruct((3, 5), dtype)})["a"], values)


def test_scalars_empty_arrays_and_trees_without_arrays_are_nothing_special(tmp_path):
    for name, tree in {
        "scalar": jnp.float32(3),
        "empty": {"a": jnp.zeros((0, 2)), "b": jnp.ones(1)},
        "none": {"f": 1},
    }.items():
        checkpoint.save(tmp_path / name, tree, meta={})
        assert eqx.tree_equal(checkpoint.load(tmp_path / name, tree), tree)


def test_a_state_stacked_over_seeds_is_nothing_special(tmp_path):
    stacked = eqx.filter_vmap(lambda key: make_tree(key)["model"])(jr.split(jr.key(1), 3))
    checkpoint.save(tmp_path / "x", stacked, meta={})
    loaded = checkpoint.load(tmp_path / "x", stacked)
    assert loaded.weight.shape == (3, 4, 3)
    assert_bitwise(loaded.weight, stacked.weight)


def test_a_part_is_read_alone_by_its_path(saved):
    model = checkpoint.load(saved, eqx.filter_eval_shape(make_tree)["model"], at="model")
    assert_bitwise(model.weight, make_tree()["model"].weight)
    assert_bitwise(checkpoint.load(saved, jnp.array(0, jnp.int32), at="step"), jnp.array(7, jnp.int32))


def test_a_path_prefix_is_not_a_part(tmp_path):
    checkpoint.save(tmp_path / "x", {"model": jnp.ones(2), "model_ema": jnp.zeros(2)}, meta={})
    assert_bitwise(checkpoint.load(tmp_path / "x", jnp.zeros(2), at="model"), jnp.ones(2))


def test_meta_and_leaves_are_read_without_arrays(saved, copy):
    shutil.rmtree(copy / "arrays")
    assert checkpoint.read_meta(copy) == {"step": 5, "preset": "catch"}
    leaves = checkpoint.read_leaves(copy)
    assert leaves["model.weight"] == jax.ShapeDtypeStruct((4, 3), jnp.float32)
    assert set(checkpoint.read_leaves(copy, at="step")) == {"step"}
    assert "model.layers.1.scale" in leaves and "opt_state.0.mu.weight" in leaves


def test_manifest_states_libraries_and_schema(saved):
    manifest = json.loads((saved / "manifest.json").read_text())
    assert manifest["schema"] == checkpoint.SCHEMA
    assert manifest["libraries"]["jax"] == jax.__version__


def test_a_whole_checkpoint_has_no_problems(saved):
    assert checkpoint.verify(saved) == []


def test_nothing_is_overwritten(saved, tmp_path):
    with pytest.raises(InputError, match="exists"):
        checkpoint.save(saved, make_tree(), meta={})
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="exists"):
        checkpoint.save(tmp_path / "file", make_tree(), meta={})
    assert (tmp_path / "file").read_text() == "mine"


def test_any_flipped_bit_of_any_file_is_found(copy):
    rng = random.Random(0)
    like = eqx.filter_eval_shape(make_tree)
    trials = 0
    for file in files_of(copy):
        raw = file.read_bytes()
        everywhere = [(i, b) for i in range(len(raw)) for b in range(8)]
        for index, bit in rng.sample(everywhere, min(60, len(everywhere))):
            flipped = bytearray(raw)
            flipped[index] ^= 1 << bit
            file.write_bytes(flipped)
            problems = checkpoint.verify(copy)
            assert problems and file.name in problems[0], (file, index, bit)
            trials += 1
        if raw:
            with pytest.raises(InputError, match=file.name):
                checkpoint.load(copy, like)
        file.write_bytes(raw)
    assert trials >= 300
    assert checkpoint.verify(copy) == []


def test_every_bit_of_the_manifest_counts(tmp_path):
    checkpoint.save(tmp_path / "x", {"a": jnp.zeros(0)}, meta={"b": [1, None, "é"], "c": 0.1})
    file = tmp_path / "x" / "manifest.json"
    raw = file.read_bytes()
    for index in range(len(raw)):
        for bit in range(8):
            flipped = bytearray(raw)
            flipped[index] ^= 1 << bit
            file.write_bytes(flipped)
            assert checkpoint.verify(tmp_path / "x"), (index, bit)


def truncate(file):
    file.write_bytes(file.read_bytes()[:-1])


def replace_by_folder(file):
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("damage", [truncate, Path.unlink, lambda f: f.write_bytes(b""), replace_by_folder])
def test_truncated_deleted_emptied_and_replaced_files_are_named(saved, tmp_path, damage):
    names = [f.relative_to(saved) for f in files_of(saved) if f.stat().st_size]
    for number, name in enumerate(names):
        copy = Path(shutil.copytree(saved, tmp_path / str(number)))
        damage(copy / name)
        assert name.name in checkpoint.verify(copy)[0]
        with pytest.raises(InputError, match=name.name):
            checkpoint.load(copy, eqx.filter_eval_shape(make_tree))


def test_swapped_leaves_are_found_even_if_the_files_agree(tmp_path, monkeypatch):
    tree = {"a": jnp.zeros(3), "b": jnp.ones(3)}
    write = checkpoint._write_arrays
    monkeypatch.setattr(checkpoint, "_write_arrays", lambda folder, x: write(folder, {"a": x["b"], "b": x["a"]}))
    checkpoint.save(tmp_path / "x", tree, meta={})
    assert checkpoint.verify(tmp_path / "x") == []
    with pytest.raises(InputError, match="leaf a "):
        checkpoint.load(tmp_path / "x", tree)


def test_missing_checkpoints_are_told_from_unfinished_ones(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        checkpoint.read_meta(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no manifest\.json"):
        checkpoint.load(tmp_path, {})


def test_a_newer_schema_is_refused(copy):
    file = copy / "manifest.json"
    manifest = json.loads(file.read_text())
    del manifest["sha256"]
    file.write_bytes(checkpoint._encode({**manifest, "schema": 99}))
    with pytest.raises(InputError, match="schema 99"):
        checkpoint.read_meta(copy)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda t: {**t, "step": jax.ShapeDtypeStruct((2,), jnp.int32)},
            r"leaf step was saved as \(\) int32, wanted is \(2,\) int32",
        ),
        (
            lambda t: {**t, "step": jax.ShapeDtypeStruct((), jnp.float32)},
            r"leaf step was saved as \(\) int32, wanted is \(\) float32",
        ),
        (
            lambda t: {**t, "more": jax.ShapeDtypeStruct((), jnp.int32)},
            r"leaf more was saved as nothing, wanted is \(\) int32",
        ),
        (lambda t: {k: t[k] for k in ("model", "opt_state")}, r"leaf step was saved as \(\) int32, wanted is nothing"),
    ],
)
def test_a_tree_that_does_not_fit_is_refused_by_the_name_of_its_leaf(saved, change, message):
    with pytest.raises(InputError, match=message):
        checkpoint.load(saved, change(eqx.filter_eval_shape(make_tree)))


def test_another_width_names_the_first_leaf_and_counts_the_others(saved):
    with pytest.raises(InputError, match=r"model\.weight was saved as \(4, 3\) float32, wanted is \(4, 8\).*5 more"):
        checkpoint.load(saved, eqx.filter_eval_shape(lambda: make_tree(width=8)))


@pytest.mark.parametrize(
    "leaf", [jr.key(0), np.ones(2), jax.ShapeDtypeStruct((), jnp.int32)], ids=["key", "float64", "shape"]
)
def test_what_would_not_come_back_is_refused_at_saving(tmp_path, leaf):
    with pytest.raises(InputError, match=r"leaf a\.0"):
        checkpoint.save(tmp_path / "x", {"a": [leaf]}, meta={})
    assert not any(tmp_path.iterdir())


def test_two_leaves_of_one_path_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"a\.b"):
        checkpoint.save(tmp_path / "x", {"a": {"b": jnp.ones(1)}, "a.b": jnp.ones(1)}, meta={})


@pytest.mark.parametrize("stage", ["_write_arrays", "_describe_file", "_encode", "_flush"])
def test_a_save_that_fails_leaves_nothing(tmp_path, monkeypatch, stage):
    def fail(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, stage, fail)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path / "x", make_tree(), meta={})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stage", ["_write_arrays", "_encode", "_flush"])
def test_a_save_that_is_killed_leaves_no_step_and_is_tidied_up(tmp_path, monkeypatch, stage):
    steps = Checkpoints(tmp_path)
    steps.save(1, {"a": jnp.ones(2)}, {})

    def die(*args):
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, stage, die)
        patch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)  # the dead tidy nothing up
        with pytest.raises(SystemExit):
            steps.save(2, {"a": jnp.ones(2)}, {})
    assert len(os.listdir(tmp_path)) == 2
    assert steps.steps() == [1]
    assert steps.latest_valid() == tmp_path / "1"
    steps.save(2, {"a": jnp.ones(2)}, {})
    assert sorted(os.listdir(tmp_path)) == ["1", "2"]


def test_no_steps_at_all_is_none(tmp_path):
    assert Checkpoints(tmp_path / "nowhere").latest_valid() is None
    assert Checkpoints(tmp_path / "nowhere").steps() == []


def test_steps_are_numbers_in_order_and_nothing_else(tmp_path):
    for name in ("10", "9", "007", "notes", ".3.tmp", "-1"):
        (tmp_path / name).mkdir()
    (tmp_path / "11").write_text("a file")
    assert Checkpoints(tmp_path).steps() == [9, 10]


def test_fallback_names_every_refused_step_in_one_warning(tmp_path):
    steps = Checkpoints(tmp_path)
    for step in (1, 2, 3):
        steps.save(step, {"a": jnp.full(2, step)}, {"step": step})
    truncate(steps.path(3) / "manifest.json")
    truncate(next(f for f in files_of(steps.path(2) / "arrays") if f.stat().st_size))
    with pytest.warns(UserWarning) as caught:
        assert steps.latest_valid() == tmp_path / "1"
    assert len(caught) == 1
    assert "Step 3" in str(caught[0].message) and "Step 2" in str(caught[0].message)


def test_nothing_whole_is_an_error_not_a_fresh_start(tmp_path):
    steps = Checkpoints(tmp_path)
    steps.save(1, {"a": jnp.ones(2)}, {})
    truncate(steps.path(1) / "manifest.json")
    with pytest.raises(InputError, match="Step 1 is refused"):
        steps.latest_valid()


def test_retention_keeps_the_newest(tmp_path):
    steps = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 10):
        steps.save(step, {"a": jnp.ones(1)}, {})
    assert steps.steps() == [2, 10]
    assert sorted(os.listdir(tmp_path)) == ["10", "2"]


def test_retention_never_removes_the_last_whole_step(tmp_path):
    steps = Checkpoints(tmp_path, keep=1)
    steps.save(1, {"a": jnp.ones(1)}, {})
    (tmp_path / "9").mkdir()
    steps.save(2, {"a": jnp.ones(1)}, {})
    assert steps.steps() == [1, 2, 9]


def test_a_damaged_step_is_saved_anew_and_a_whole_one_is_not(tmp_path):
    steps = Checkpoints(tmp_path)
    steps.save(1, {"a": jnp.zeros(1)}, {})
    with pytest.raises(InputError, match="whole checkpoint"):
        steps.save(1, {"a": jnp.ones(1)}, {})
    truncate(steps.path(1) / "manifest.json")
    steps.save(1, {"a": jnp.ones(1)}, {})
    assert checkpoint.load(steps.path(1), {"a": jnp.zeros(1)})["a"][0] == 1
    assert os.listdir(tmp_path) == ["1"]


def test_keep_of_zero_is_refused(tmp_path):
    with pytest.raises(InputError, match="got 0"):
        Checkpoints(tmp_path, keep=0)
