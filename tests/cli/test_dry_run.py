"""What is found out before any work is done: whether sizes fit, and what a run would cost."""

import pytest

from dreamer4.config import PRESETS, load
from dreamer4.errors import InputError
from dreamer4_cli import run


def test_impossible_sizes_are_refused_before_anything_is_written(tmp_path):
    for override, match in (
        ("tokenizer.patch=[3,5]", "patch"),
        ("train.imagination.length=9", "context_length"),
        ("env.id=Catch-bsuit", "Catch-bsuite"),
        ("env.id=CartPole-v1", "adapter"),
    ):
        with pytest.raises(InputError, match=match):
            run.demo(load("tiny", overrides=[override]), tmp_path / "run", resume=False)
        assert not (tmp_path / "run").exists()


def test_a_dry_run_refuses_what_training_would():
    for override, match in (
        ("train.imagination.length=9", "context_length"),
        ("data.policy=nowhere.py:Agent", "nowhere.py"),
        ("env.kwargs.rows=-3", "does not run"),
    ):
        with pytest.raises(InputError, match=match):
            run.dry_run(load("tiny", overrides=[override]))


# The full size has a test of its own.
@pytest.mark.parametrize("preset", sorted(set(PRESETS) - {"paper"}))
def test_every_preset_fits_its_environment_and_its_own_sizes(preset, capsys):
    config = load(preset)
    run.dry_run(config)
    assert "imagination" in capsys.readouterr().out


def test_a_dry_run_of_the_full_size_prints_its_parameters(capsys):
    run.dry_run(load("paper"))
    told = capsys.readouterr().out
    assert "1,67" in told  # 1.67 billion parameters of dynamics
    assert "imagination" in told
