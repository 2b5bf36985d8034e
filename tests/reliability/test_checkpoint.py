"""Damage of every kind to a checkpoint: found, told by the name of what is damaged, and never silently lived with."""

import contextlib
import errno
import os
import random
import shutil
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from dreamer4 import checkpoint
from dreamer4.checkpoint import Checkpoints, arrays, folder, tensors
from dreamer4.errors import InputError


TREE = {
    "model": {"weight": jr.normal(jr.key(0), (5, 3)), "scale": jnp.ones(3, jnp.bfloat16)},
    "moments": [jnp.zeros((5, 3)), jnp.full((5, 3), 0.5)],
    "step": jnp.array(7, jnp.int32),
}
LIKE = jax.eval_shape(lambda: TREE)
CARD = "README.md"  # beside exported weights, for people; no part of them


def save(path, kind):
    checkpoint.save(path, TREE, meta={"step": 7, "note": [1, None, "é"], "rate": 0.1}, kind=kind)
    if kind == "safetensors":
        (path / CARD).write_text("# A model\n")


@pytest.fixture(scope="module", params=["orbax", "safetensors"])
def saved(tmp_path_factory, request):
    path = tmp_path_factory.mktemp(request.param) / "5"
    save(path, request.param)
    return path


@pytest.fixture
def copy(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "5"))


def files_of(path):
    return sorted(f for f in path.rglob("*") if f.is_file())


def parts_of(path):
    """The files that hold something of the checkpoint."""
    return [f for f in files_of(path) if f.stat().st_size and f.name != CARD]


def manifest_of(path):
    return next(path.glob("*.json"))


def is_bitwise(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: np.asarray(x).tobytes() == np.asarray(y).tobytes(), a, b))


@contextlib.contextmanager
def flipped(file, index, bit):
    raw = file.read_bytes()
    file.write_bytes(raw[:index] + bytes([raw[index] ^ 1 << bit]) + raw[index + 1 :])
    yield
    file.write_bytes(raw)


def truncate(file):
    file.write_bytes(file.read_bytes()[:-1])


def replace_by_folder(file):
    file.unlink()
    file.mkdir()


class TestDamage:
    def test_a_whole_checkpoint_has_no_problems(self, saved):
        assert checkpoint.verify(saved) == []
        assert is_bitwise(checkpoint.load(saved, LIKE), TREE)

    def test_200_flipped_bits_over_all_files_are_found_or_harmless(self, copy):
        rng = random.Random(0)
        files = [f for f in files_of(copy) if f.stat().st_size]
        found, harmless = 0, 0
        for trial in range(200):
            file = files[trial % len(files)]
            with flipped(file, rng.randrange(file.stat().st_size), rng.randrange(8)):
                if problems := checkpoint.verify(copy):
                    assert file.name in problems[0]
                    found += 1
                elif is_bitwise(checkpoint.load(copy, LIKE), TREE):
                    assert file.name == CARD
                    harmless += 1
        assert found + harmless == 200
        assert checkpoint.verify(copy) == []

    def test_loading_finds_a_flipped_bit_in_every_file(self, copy):
        for file in parts_of(copy):
            with flipped(file, file.stat().st_size // 2, 3), pytest.raises(InputError, match=file.name):
                checkpoint.load(copy, LIKE)

    def test_every_byte_of_the_manifest_counts(self, tmp_path):
        checkpoint.save(tmp_path / "x", {}, meta={"b": [1, None, "é"], "c": 0.1})
        file = tmp_path / "x" / "manifest.json"
        for index in range(file.stat().st_size):
            with flipped(file, index, index % 8):
                assert checkpoint.verify(tmp_path / "x"), index

    @pytest.mark.parametrize("damage", [truncate, Path.unlink, lambda f: f.write_bytes(b""), replace_by_folder])
    def test_truncated_deleted_emptied_and_replaced_files_are_named(self, saved, tmp_path, damage):
        for number, name in enumerate(f.relative_to(saved) for f in parts_of(saved)):
            harmed = Path(shutil.copytree(saved, tmp_path / str(number)))
            damage(harmed / name)
            # Without its manifest a checkpoint has no name to be known by: it does not exist.
            wanted = name.name if (harmed / manifest_of(saved).name).exists() else "No checkpoint"
            assert wanted in checkpoint.verify(harmed)[0]
            with pytest.raises(InputError, match=wanted):
                checkpoint.load(harmed, LIKE)

    def test_unreadable_files_are_named(self, saved, monkeypatch):
        for file in parts_of(saved):  # by patching, because the superuser reads what is closed to others

            def closed(self, *args, closed=file, opens=Path.open, **kwargs):
                if self == closed:
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
                return opens(self, *args, **kwargs)

            with monkeypatch.context() as patch:
                patch.setattr(Path, "open", closed)
                (problem,) = checkpoint.verify(saved)
            assert file.name in problem and "Permission denied" in problem

    def test_swapped_files_are_named(self, copy):
        one, two, *_ = sorted(parts_of(copy), key=lambda f: f.stat().st_size)
        raw = one.read_bytes()
        one.write_bytes(two.read_bytes())
        two.write_bytes(raw)
        problem = " ".join(checkpoint.verify(copy))
        assert one.name in problem or two.name in problem
        with pytest.raises(InputError, match="damaged|No checkpoint"):
            checkpoint.load(copy, LIKE)

    @pytest.mark.parametrize("store, kind", [(arrays, "orbax"), (tensors, "safetensors")])
    def test_swapped_leaves_are_found_even_if_the_files_agree(self, tmp_path, monkeypatch, store, kind):
        tree, write = {"a": jnp.zeros(3), "b": jnp.ones(3)}, store.write
        monkeypatch.setattr(store, "write", lambda at, x: write(at, {"a": x["b"], "b": x["a"]}))
        checkpoint.save(tmp_path / "x", tree, meta={}, kind=kind)
        assert checkpoint.verify(tmp_path / "x") == []
        with pytest.raises(InputError, match="leaf a "):
            checkpoint.load(tmp_path / "x", tree)

    def test_missing_checkpoints_are_told_from_unfinished_ones(self, tmp_path):
        with pytest.raises(InputError, match="no such folder"):
            checkpoint.read_meta(tmp_path / "nowhere")
        with pytest.raises(InputError, match=r"no manifest\.json"):
            checkpoint.load(tmp_path, {})

    def test_a_refused_restore_names_the_first_leaf_and_both_sides(self, saved):
        other = {**LIKE, "model": {**LIKE["model"], "scale": jax.ShapeDtypeStruct((3,), jnp.float16)}}
        with pytest.raises(InputError, match=r"leaf model\.scale was saved as \(3,\) bfloat16, wanted is \(3,\) float"):
            checkpoint.load(saved, other)

    @pytest.mark.parametrize("kind", ["orbax", "safetensors"])
    @pytest.mark.parametrize("narrow", [jnp.bfloat16, jnp.float16])
    def test_half_precision_comes_back_wide_without_loss_and_never_the_other_way(self, tmp_path, narrow, kind):
        wide = jr.normal(jr.key(0), (5, 3))
        checkpoint.save(tmp_path / "half", {"a": wide.astype(narrow)}, meta={}, kind=kind)
        checkpoint.save(tmp_path / "full", {"a": wide}, meta={}, kind=kind)
        loaded = checkpoint.load(tmp_path / "half", {"a": wide})["a"]
        assert loaded.dtype == jnp.float32
        np.testing.assert_array_equal(loaded, np.asarray(wide.astype(narrow)).astype(np.float32))
        checkpoint.check(tmp_path / "half", {"a": wide})
        for like in ({"a": wide.astype(narrow)}, {"a": wide.astype(jnp.int32)}, {"a": wide.astype(jnp.float8_e5m2)}):
            with pytest.raises(InputError, match=r"leaf a was saved as \(5, 3\) float32"):
                checkpoint.load(tmp_path / "full", like)
        with pytest.raises(InputError, match=r"leaf a was saved as \(5, 3\)"):
            checkpoint.load(tmp_path / "half", {"a": wide[:4]})


def fill(steps, *numbers):
    for step in numbers:
        steps.save(step, {"a": jnp.full(2, step)}, {"step": step})


class TestFallback:
    def test_it_names_every_refused_step_in_one_warning(self, tmp_path):
        steps = Checkpoints(tmp_path)
        fill(steps, 1, 2, 3)
        truncate(steps.path(3) / "manifest.json")
        truncate(parts_of(steps.path(2) / "arrays")[0])
        with pytest.warns(UserWarning) as caught:
            assert steps.latest_valid() == tmp_path / "1"
        assert len(caught) == 1
        assert "Step 3" in str(caught[0].message) and "Step 2" in str(caught[0].message)

    def test_it_can_be_refused(self, tmp_path, recwarn):
        steps = Checkpoints(tmp_path)
        fill(steps, 1, 2)
        assert steps.latest_valid(fallback=False) == tmp_path / "2"
        truncate(steps.path(2) / "manifest.json")
        with pytest.raises(InputError, match=r"Step 2 is refused.*Step 1 is whole.*--no-fallback"):
            steps.latest_valid(fallback=False)
        assert not recwarn

    @pytest.mark.parametrize("allowed", [True, False])
    def test_nothing_whole_is_an_error_not_a_fresh_start(self, tmp_path, allowed):
        steps = Checkpoints(tmp_path)
        fill(steps, 1, 2)
        for step in (1, 2):
            truncate(steps.path(step) / "manifest.json")
        with pytest.raises(InputError, match="Step 2 is refused.*Step 1 is refused"):
            steps.latest_valid(fallback=allowed)

    def test_retention_never_removes_the_last_whole_step(self, tmp_path):
        steps = Checkpoints(tmp_path, keep=1)
        fill(steps, 1)
        (tmp_path / "9").mkdir()
        fill(steps, 2)
        assert steps.steps() == [1, 2, 9]

    def test_retention_looks_at_the_newest_before_it_removes_older_ones(self, tmp_path, monkeypatch):
        steps = Checkpoints(tmp_path, keep=1)
        fill(steps, 1)
        flush = folder._flush

        def lose(path):  # a disk that loses what it said it kept
            flush(path)
            truncate(parts_of(path)[0])

        monkeypatch.setattr(folder, "_flush", lose)
        fill(steps, 2)
        assert steps.steps() == [1, 2]
        with pytest.warns(UserWarning, match="Falling back"):
            assert steps.latest_valid() == tmp_path / "1"

    def test_a_damaged_step_is_saved_anew_and_a_whole_one_is_not(self, tmp_path):
        steps = Checkpoints(tmp_path)
        fill(steps, 1)
        with pytest.raises(InputError, match="whole checkpoint"):
            fill(steps, 1)
        truncate(steps.path(1) / "manifest.json")
        steps.save(1, {"a": jnp.ones(1)}, {})
        assert checkpoint.load(steps.path(1), {"a": jnp.zeros(1)})["a"][0] == 1
        assert os.listdir(tmp_path) == ["1"]


# Where a save may come to grief: before, between and after its writes.
STAGES = [(arrays, "write"), (folder, "describe_file"), (folder, "encode"), (folder, "_flush")]


@contextlib.contextmanager
def failing(monkeypatch, stage, error):
    def fail(*args, **kwargs):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(*stage, fail)
        yield patch


class TestSaving:
    @pytest.mark.parametrize("stage", STAGES, ids=str)
    def test_one_that_is_interrupted_leaves_nothing(self, tmp_path, monkeypatch, stage):
        with failing(monkeypatch, stage, KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
            checkpoint.save(tmp_path / "x", TREE, meta={})
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("stage", STAGES, ids=str)
    def test_one_that_is_killed_leaves_no_step_and_is_tidied_up(self, tmp_path, monkeypatch, stage):
        steps = Checkpoints(tmp_path)
        fill(steps, 1)
        with failing(monkeypatch, stage, SystemExit) as patch, pytest.raises(SystemExit):
            patch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)  # the dead tidy nothing up
            fill(steps, 2)
        assert len(os.listdir(tmp_path)) == 2
        assert steps.latest_valid() == tmp_path / "1"
        fill(steps, 2)
        assert sorted(os.listdir(tmp_path)) == ["1", "2"]

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS], ids=["full", "read-only"])
    @pytest.mark.parametrize("stage", STAGES, ids=str)
    def test_a_disk_that_takes_no_more_is_told_and_the_last_step_stays(self, tmp_path, monkeypatch, stage, number):
        steps = Checkpoints(tmp_path, keep=1)
        fill(steps, 1)
        before = {f: f.read_bytes() for f in files_of(tmp_path)}
        with failing(monkeypatch, stage, OSError(number, os.strerror(number))), pytest.raises(InputError) as caught:
            fill(steps, 2)
        assert os.strerror(number) in str(caught.value)
        assert "Step 1 was saved before and is whole" in str(caught.value)
        assert {f: f.read_bytes() for f in files_of(tmp_path)} == before
        fill(steps, 2)
        assert steps.latest_valid() == tmp_path / "2"

    def test_a_really_full_disk(self, tmp_path):
        disk = tmp_path / "disk"
        disk.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting a small disk is not permitted here")
        try:
            steps = Checkpoints(disk / "steps")
            fill(steps, 1)
            for kind in ("orbax", "safetensors"):
                with pytest.raises(InputError, match="No space left on device"):
                    checkpoint.save(disk / kind, {"a": jnp.zeros(10**6)}, meta={}, kind=kind)
            with pytest.raises(InputError, match=r"No space left on device.*Step 1 was saved before"):
                steps.save(2, {"a": jnp.zeros(10**6)}, {})
            assert steps.latest_valid() == steps.path(1)
            assert sorted(os.listdir(disk)) == ["steps"]
            fill(steps, 2)
        finally:
            subprocess.run(["umount", str(disk)], check=True)
