"""What is found out before any work is done: whether sizes fit, and what a run would cost."""

import warnings

import jax
import numpy as np
import pytest
from helpers import EXTRA
from typer.testing import CliRunner

from dreamer4.config import PRESETS, load, to_yaml
from dreamer4.data import Episode, read_info, write_dataset
from dreamer4.dreamer import PHASES
from dreamer4.errors import InputError
from dreamer4.run import memory, stopping
from dreamer4.run.latents import draw
from dreamer4.run.sizes import check_sizes
from dreamer4.types import ActionSpec, DataSpec
from dreamer4_cli import run
from dreamer4_cli.app import app


def test_impossible_sizes_are_refused_before_anything_is_written(tmp_path):
    for override, match in (
        ("tokenizer.patch=[30,5]", "patch"),
        ("train.imagination.length=9", "context_length"),
        ("env.id=Catch-bsuit", "Catch-bsuite"),
        ("env.id=SimpleBandit-bsuite", "adapter"),
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


def test_a_tokenizer_of_patches_needs_as_many_latents(capsys):
    patches = ["tokenizer.kind=patchwise", "tokenizer.num_spatial=2"]
    with pytest.raises(InputError, match=r"num_latents: got 4, .* Set it to 2\."):
        run.dry_run(load("tiny", overrides=[*patches, "tokenizer.num_latents=4"]))
    run.dry_run(load("tiny", overrides=[*patches, "tokenizer.num_latents=2"]))
    assert "imagination" in capsys.readouterr().out


# The full size has a test of its own.
@pytest.mark.parametrize("preset", sorted(set(PRESETS) - {"paper"}))
def test_every_preset_fits_its_environment_and_its_own_sizes(preset, capsys):
    if preset in EXTRA:
        pytest.importorskip(EXTRA[preset])
    config = load(preset)
    run.dry_run(config)
    assert "imagination" in capsys.readouterr().out


def test_a_dry_run_of_the_full_size_prints_its_parameters(capsys):
    run.dry_run(load("paper"))
    told = capsys.readouterr().out
    assert "1,67" in told  # 1.67 billion parameters of dynamics
    assert "imagination" in told


def test_a_dry_run_to_go_on_refuses_other_settings_as_going_on_does(tmp_path):
    (tmp_path / "config.yaml").write_text(to_yaml(load("tiny")))
    for words, code in ((["--set", "tokenizer.patch=[2,5]"], 2), ([], 0)):
        line = ["train", "all", "--run", str(tmp_path), "--resume", "--dry-run", *words]
        done = CliRunner().invoke(app, line)
        assert done.exit_code == code and ("tokenizer.patch" in done.output) == bool(words)


def own_data(path, *, reward=1.0, known=True, shape=(9, 15, 3), dims=2):
    spec = DataSpec(shape, ActionSpec((3, 5), dims))
    one = Episode(
        frame=np.zeros((6, *shape), np.uint8),
        discrete=np.zeros((6, 2), np.int32),
        continuous=np.zeros((6, dims), np.float32),
        action_mask=np.arange(6) > (0 if known else 9),
        reward=np.asarray([0, 0, 0, 0, 0, reward], np.float32),
        is_terminal=True,
    )
    write_dataset(path, [one] * 3, spec=spec, environment={"id": "Own"}, policy="own", seed=0)
    return [f"data.path={path}", "env.id=Own", "tokenizer.patch=[3,5]"]


def test_a_dry_run_of_ones_own_data_is_of_that_data(tmp_path, capsys):
    own = own_data(tmp_path / "own")
    run.dry_run(load("small", overrides=own))  # a preset that declares frames of its own
    told = " ".join(capsys.readouterr().out.split())
    assert "(9, 15, 3)" in told
    # 9 x 15 x 3 bytes of two training episodes of 6 frames
    assert "12 training frames" in told and "0.0 MB" in told
    with pytest.raises(InputError, match="env.id"):  # where a demo would play
        run.dry_run(load("small", overrides=own), judged=True)
    with pytest.raises(InputError, match="patch"):
        run.dry_run(load("small", overrides=[*own, "tokenizer.patch=[64,64]"]))


def test_rewards_beyond_the_bins_are_told_before_training(tmp_path):
    # exp(4) - 1 = 53.6; behind four steps of discount 0.9 60 are worth 39.4 at the first frame.
    bins = ["agent.bin_limit=4", "imagination.discount=0.9"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.dry_run(load("tiny", overrides=[*own_data(tmp_path / "fits", reward=53), *bins]))
    with pytest.warns(UserWarning) as said:
        run.dry_run(load("tiny", overrides=[*own_data(tmp_path / "beyond", reward=-60), *bins]))
    told = [str(warning.message) for warning in said]
    assert any("rewards of the data span -60 to 0" in t and "53.6" in t and "bin_limit=4.2" in t for t in told)
    assert any("discounted returns of the data span -60 to 0" in t for t in told)


def test_rewards_beyond_the_bins_are_told_where_the_data_stays_on_disk(tmp_path):
    bins = ["agent.bin_limit=4", "data.source=stream"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(load("tiny", overrides=[*own_data(tmp_path / "fits", reward=53), *bins]), tmp_path / "fits", PHASES)
    with pytest.warns(UserWarning) as said:
        draw(load("tiny", overrides=[*own_data(tmp_path / "beyond", reward=-60), *bins]), tmp_path / "beyond", PHASES)
    told = [str(warning.message) for warning in said]
    assert [t.split(" of the data span -60 to 0")[0] for t in told] == ["The rewards", "The discounted returns"]


def test_data_without_known_actions_trains_a_world_model_and_no_agent(tmp_path):
    own = own_data(tmp_path / "video", known=False)
    config, streamed = load("tiny", overrides=own), load("tiny", overrides=[*own, "data.source=stream"])
    run.dry_run(config, ("tokenizer", "dynamics"))
    with pytest.raises(InputError, match="no action is known in any relevant training episode"):
        run.dry_run(config)
    with pytest.raises(InputError, match="nothing to clone"):
        run.train(config, tmp_path / "run", PHASES, resume=False)
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="nothing to clone"):  # where the frames are left on disk
        run.train(streamed, tmp_path / "run", PHASES, resume=False)
    assert not (tmp_path / "run").exists()


class TestMemory:
    def check(self, monkeypatch, limit, more=(), info=None, phases=PHASES):
        monkeypatch.setattr(memory, "device_memory", lambda: limit)
        spec, config = DataSpec((30, 40, 3), ActionSpec((3,))), load("tiny", overrides=["tokenizer.patch=[1,1]", *more])
        dreamer, built = check_sizes(config, spec)
        with warnings.catch_warnings(record=True) as said:
            memory.check(config, spec, dreamer, [phase for phase in built if phase.name in phases], info)
        return [str(warning.message) for warning in said]

    def test_patches_beyond_it_are_refused_before_anything_is_written(self, tmp_path, monkeypatch):
        monkeypatch.setattr(memory, "device_memory", lambda: 5e8)
        config = load("tiny", overrides=[*own_data(tmp_path / "own", shape=(30, 40, 3)), "tokenizer.patch=[1,1]"])
        with pytest.raises(InputError) as planned:
            run.dry_run(config)
        with pytest.raises(InputError) as begun:
            run.train(config, tmp_path / "run", PHASES, resume=False)
        assert str(planned.value) == str(begun.value) and not (tmp_path / "run").exists()
        # Two heads in 4 x 8 frames. Patches see patches and the 2 latents all; then latents latents, and queries all.
        held = 4 * 2 * 4 * 8 * (2 * 1200**2 + 2 * 1200 * 2 + 2 * 2 * 2)
        told = str(begun.value)
        assert "1,200 patches" in told and f"{held / 1e9:.1f} GB at least, and there are 0.5 GB" in told
        assert "Set tokenizer.patch=[2,2]" in told

    def test_what_fits_is_not(self, monkeypatch):
        held = 740_000_000
        assert not self.check(monkeypatch, 7.1 * held)
        assert ["may not fit" in told for told in self.check(monkeypatch, 1.1 * held)] == [True]
        with pytest.raises(InputError, match="patch"):
            self.check(monkeypatch, 0.9 * held)
        assert not self.check(monkeypatch, 0.9 * held, phases=PHASES[1:])  # which see latents
        assert not self.check(monkeypatch, 7.1 * held / 4, ["train.tokenizer.accumulate=4"])  # a quarter at a time

    def test_the_state_and_the_frames_count_too(self, tmp_path, monkeypatch):
        own_data(tmp_path / "own")
        info = read_info(tmp_path / "own").model_copy(update={"num_frames": 10**8})
        with pytest.raises(InputError, match="source=stream"):
            self.check(monkeypatch, 40.4e9, ["data.source=device"], info)
        assert not self.check(monkeypatch, 6e9, ["data.source=stream"], info)
        with pytest.raises(InputError, match="smaller preset"):
            self.check(monkeypatch, 1e6, phases=PHASES[1:])

    def test_it_is_no_more_than_the_process_may_have(self, monkeypatch):
        assert 0 < memory.device_memory() < 2**50
        resource = pytest.importorskip("resource")
        monkeypatch.setattr(resource, "getrlimit", lambda which: (1000, 2000))
        assert list(memory.limits())[1] == 1000

    @pytest.mark.parametrize(
        "error",
        [
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 7 bytes."),
            MemoryError("no 7 bytes"),
            jax.errors.JaxRuntimeError("INTERNAL: 7 bytes are wrong."),
        ],
    )
    def test_the_end_of_it_is_told_in_one_message(self, error, monkeypatch):
        def train(*args, **kwargs):
            stopping.note("Go on with: it")
            raise error

        monkeypatch.setattr(run, "train", train)
        result = CliRunner().invoke(app, ["train", "all", "--preset", "tiny", "--run", "r"])
        if "INTERNAL" in str(error):  # a defect
            assert result.exception is error
            return
        assert result.exit_code == 2 and "7 bytes" in result.output
        assert result.output.startswith("Error: Out of memory.") and "tokenizer.patch" in result.output
        assert result.output.strip().endswith("Go on with: it") and len(result.output.strip().splitlines()) == 1
