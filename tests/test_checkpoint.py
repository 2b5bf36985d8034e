"""Checkpoints: what is read is what was written, bit for bit, or an error that says which part is not."""

import json
import os
import shutil
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
import safetensors.numpy

from dreamer4 import checkpoint
from dreamer4.checkpoint import Checkpoints
from dreamer4.errors import InputError
from dreamer4.files import reading


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


KINDS = ["orbax", "safetensors"]


@pytest.fixture(scope="module", params=KINDS)
def saved(tmp_path_factory, request):
    path = tmp_path_factory.mktemp("checkpoint") / "5"
    checkpoint.save(path, make_tree(), meta={"step": 5, "preset": "catch"}, kind=request.param)
    return path


@pytest.fixture
def copy(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "5"))


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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", "float32 float16 bfloat16 float8_e4m3fn int8 int32 uint8 uint32 bool".split())
def test_every_type_keeps_every_bit(tmp_path, dtype, kind):
    values = jnp.asarray(np.random.default_rng(0).integers(0, 2, (3, 5)), dtype)
    if jnp.issubdtype(values.dtype, jnp.floating):
        values = values.at[0, 0].set(-0.0).at[0, 1].set(jnp.nan).at[0, 2].set(jnp.finfo(dtype).smallest_subnormal)
    checkpoint.save(tmp_path / "x", {"a": values}, meta={}, kind=kind)
    assert_bitwise(checkpoint.load(tmp_path / "x", {"a": jax.ShapeDtypeStruct((3, 5), dtype)})["a"], values)


@pytest.mark.parametrize("kind", KINDS)
def test_scalars_empty_arrays_and_trees_without_arrays_are_nothing_special(tmp_path, kind):
    for name, tree in {
        "scalar": jnp.float32(3),
        "empty": {"a": jnp.zeros((0, 2)), "b": jnp.ones(1)},
        "none": {"f": 1},
    }.items():
        checkpoint.save(tmp_path / name, tree, meta={}, kind=kind)
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


def test_a_part_that_earlier_versions_had_not_is_taken_as_given(saved):
    like = eqx.filter_eval_shape(make_tree) | {"guard": {"recent": jnp.full(3, 2.0), "count": jnp.array(1)}}
    with pytest.raises(InputError, match=r"leaf guard\..* was saved as nothing"):
        checkpoint.load(saved, like, added=("more",))
    loaded = checkpoint.load(saved, like, added=("guard",))
    assert loaded["guard"] is not like["guard"] and loaded["guard"]["count"] == 1
    assert_bitwise(loaded["guard"]["recent"], like["guard"]["recent"])
    assert_bitwise(loaded["step"], jnp.array(7, jnp.int32))


def test_a_part_that_is_there_in_part_is_no_part_of_an_earlier_version(tmp_path):
    checkpoint.save(tmp_path / "x", {"guard": {"count": jnp.array(1)}}, meta={})
    like = {"guard": {"recent": jnp.zeros(3), "count": jnp.array(0)}}
    with pytest.raises(InputError, match=r"leaf guard\.recent was saved as nothing"):
        checkpoint.load(tmp_path / "x", like, added=("guard",))


def test_meta_and_leaves_are_read_without_arrays(saved, copy):
    shutil.rmtree(copy / "arrays", ignore_errors=True)
    (copy / "model.safetensors").unlink(missing_ok=True)
    assert checkpoint.read_meta(copy) == {"step": 5, "preset": "catch"}
    leaves = checkpoint.read_leaves(copy)
    assert leaves["model.weight"] == jax.ShapeDtypeStruct((4, 3), jnp.float32)
    assert set(checkpoint.read_leaves(copy, at="step")) == {"step"}
    assert "model.layers.1.scale" in leaves and "opt_state.0.mu.weight" in leaves


def test_manifest_states_libraries_and_schema(saved):
    manifest = json.loads(next(saved.glob("*.json")).read_text())
    assert manifest["schema"] == checkpoint.SCHEMA
    assert manifest["libraries"]["jax"] == jax.__version__


def test_nothing_is_overwritten(saved, tmp_path):
    with pytest.raises(InputError, match="exists"):
        checkpoint.save(saved, make_tree(), meta={})
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="exists"):
        checkpoint.save(tmp_path / "file", make_tree(), meta={})
    assert (tmp_path / "file").read_text() == "mine"


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
    for refuse in (checkpoint.load, checkpoint.check):
        with pytest.raises(InputError, match=message):
            refuse(saved, change(eqx.filter_eval_shape(make_tree)))


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


def test_the_tensors_are_those_that_other_programs_read(saved):
    """The reference library reads what we write."""
    if not (saved / "model.safetensors").exists():
        pytest.skip("written by Orbax")
    arrays = safetensors.numpy.load_file(saved / "model.safetensors")
    leaves = checkpoint.load(saved, checkpoint.read_leaves(saved))
    assert set(arrays) == set(leaves)
    for name, array in arrays.items():
        assert_bitwise(array, leaves[name])


def test_two_leaves_of_one_path_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"a\.b"):
        checkpoint.save(tmp_path / "x", {"a": {"b": jnp.ones(1)}, "a.b": jnp.ones(1)}, meta={})


def test_no_steps_at_all_is_none(tmp_path):
    assert Checkpoints(tmp_path / "nowhere").latest_valid() is None
    assert Checkpoints(tmp_path / "nowhere").steps() == []


def test_steps_are_numbers_in_order_and_nothing_else(tmp_path):
    for name in ("10", "9", "007", "notes", ".3.tmp", "-1"):
        (tmp_path / name).mkdir()
    (tmp_path / "11").write_text("a file")
    assert Checkpoints(tmp_path).steps() == [9, 10]


def test_retention_keeps_the_newest(tmp_path):
    steps = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 10):
        steps.save(step, {"a": jnp.ones(1)}, {})
    assert steps.steps() == [2, 10]
    assert sorted(os.listdir(tmp_path)) == ["10", "2"]


def test_keep_of_zero_is_refused(tmp_path):
    with pytest.raises(InputError, match="got keep=0"):
        Checkpoints(tmp_path, keep=0)


@pytest.mark.parametrize("name", ["run[1]", "a\\b", "lr=[1e-3]/x", "a*b?{1,2}", "gs:"])
def test_every_character_of_a_path_is_itself(tmp_path, name):
    checkpoint.save(tmp_path / name / "1", {"w": jnp.arange(3.0)}, meta={})
    np.testing.assert_array_equal(checkpoint.load(tmp_path / name / "1", {"w": jnp.zeros(3)})["w"], [0, 1, 2])


def test_a_step_that_is_read_stays_until_a_later_save(tmp_path):
    steps = Checkpoints(tmp_path, keep=1)
    steps.save(1, {"w": jnp.zeros(3)}, meta={})
    with reading(steps.path(1)):
        steps.save(2, {"w": jnp.zeros(3)}, meta={})
        assert steps.steps() == [1, 2]
    steps.save(3, {"w": jnp.zeros(3)}, meta={})
    assert steps.steps() == [3]


def test_a_step_removed_meanwhile_is_no_damage(tmp_path, monkeypatch):
    steps = Checkpoints(tmp_path)
    steps.save(2, {"w": jnp.zeros(3)}, meta={})
    listed = iter([[1], [2]])  # step 1 was there when the folder was listed
    monkeypatch.setattr(Checkpoints, "steps", lambda self: next(listed))
    assert steps.latest_valid() == steps.path(2)
