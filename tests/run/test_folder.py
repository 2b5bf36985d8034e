"""A run folder belongs to one configuration and is never overwritten."""

import jax.numpy as jnp
import pytest

from dreamer4 import checkpoint
from dreamer4.config import Config, override
from dreamer4.dreamer import spec_to_json
from dreamer4.errors import InputError
from dreamer4.run.folder import RunFolder, cloned_head, steps_done
from dreamer4.types import ActionSpec, DataSpec


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "runs" / "catch")


def contents(path):
    return {f.relative_to(path): f.read_bytes() for f in path.rglob("*") if f.is_file()}


def test_a_new_run_writes_its_configuration_and_reads_it_back(folder):
    config = Config(seed=3)
    folder.open(config)
    assert folder.is_run
    assert folder.read_config() == config
    assert [f.name for f in folder.path.iterdir()] == ["config.yaml"]


def test_an_empty_folder_may_become_a_run(folder):
    folder.path.mkdir(parents=True)
    folder.open(Config())
    assert folder.is_run


def test_what_a_killed_collection_left_is_no_hindrance(folder):
    (folder.path / ".data.tmp").mkdir(parents=True)
    folder.open(Config())
    assert folder.is_run


def test_paths_lie_inside(folder):
    for path in (
        folder.metrics_file,
        folder.results_file,
        folder.report_file,
        folder.data,
        folder.checkpoints("agent").root,
    ):
        assert folder.path in path.parents


def test_a_run_is_continued_only_when_asked(folder):
    folder.open(Config())
    before = contents(folder.path)
    with pytest.raises(InputError, match="--resume"):
        folder.open(Config())
    folder.open(Config(), resume=True)
    assert contents(folder.path) == before


@pytest.mark.parametrize("resume", [False, True])
def test_another_configuration_is_refused_key_by_key(folder, resume):
    folder.open(Config())
    before = contents(folder.path)
    other = Config(seed=4, sampler=Config().sampler.model_copy(update={"num_steps": 2}))
    with pytest.raises(InputError) as caught:
        folder.open(other, resume=resume)
    message = str(caught.value)
    assert "seed: 0 -> 4" in message
    assert "sampler.num_steps: 4 -> 2" in message
    assert "agent" not in message.replace(str(folder.path), "")
    assert "--run" in message and "--resume" in message
    assert contents(folder.path) == before


def test_a_run_goes_on_on_other_hardware_and_keeps_what_it_was_begun_with(folder):
    folder.open(Config())
    before = contents(folder.path)
    moved = ["train.mesh.data=4", "train.mesh.fsdp=2", "train.agent.accumulate=2", "tokenizer.encoder.remat=true"]
    folder.open(override(Config(), moved), resume=True)
    assert contents(folder.path) == before
    with pytest.raises(InputError, match=r"batch_size: 32 -> 64") as caught:
        folder.open(override(Config(), [*moved, "train.agent.batch_size=64"]), resume=True)
    assert "mesh" not in str(caught.value)


def test_the_phase_that_came_last_may_be_given_more_steps_and_no_other(folder):
    folder.open(Config())
    steps = Config().train.dynamics.steps
    longer = override(Config(), [f"train.dynamics.steps={steps + 5}"])
    with pytest.raises(InputError, match=r"train.dynamics.steps"):  # which is yet to begin
        folder.open(longer, resume=True)
    for phase, other in (("tokenizer", None), ("dynamics", "tokenizer")):
        (folder.checkpoints(phase).root / "3").mkdir(parents=True)
        if other:
            with pytest.raises(InputError, match=f"train.{other}.steps"):
                folder.open(override(Config(), [f"train.{other}.steps=99999"]), resume=True)
    with pytest.raises(InputError, match=r"train.dynamics.steps"):
        folder.open(override(Config(), [f"train.dynamics.steps={steps - 1}"]), resume=True)
    assert folder.read_config() == Config()
    folder.open(longer, resume=True)
    assert folder.read_config() == longer


def test_a_link_to_nowhere_is_told(folder):
    folder.path.parent.mkdir(parents=True)
    folder.path.symlink_to("elsewhere")
    with pytest.raises(InputError, match="is a link to elsewhere, where nothing is"):
        folder.open(Config())


def test_a_key_of_another_version_is_named(folder):
    folder.open(Config())
    folder.config_file.write_text(folder.config_file.read_text().replace("seed: 0\n", "sead: 0\n"))
    for read in (folder.read_config, lambda: folder.open(Config(), resume=True)):
        with pytest.raises(InputError, match="sead"):
            read()


def test_a_folder_of_something_else_is_refused_untouched(folder):
    folder.path.mkdir(parents=True)
    (folder.path / "thesis.tex").write_text("mine")
    for resume in (False, True):
        with pytest.raises(InputError, match="not a run folder"):
            folder.open(Config(), resume=resume)
    assert [f.name for f in folder.path.iterdir()] == ["thesis.tex"]


def test_a_file_in_place_of_the_folder_is_refused(folder):
    folder.path.parent.mkdir(parents=True)
    folder.path.write_text("mine")
    with pytest.raises(InputError, match="is a file"):
        folder.open(Config())


def test_resuming_nothing_is_refused(folder):
    with pytest.raises(InputError, match="no run to resume"):
        folder.open(Config(), resume=True)
    assert not folder.path.exists()


@pytest.mark.parametrize("text", ["a: [", "- 1\n", "seed: x\n"])
def test_a_damaged_configuration_is_one_clear_error(folder, text):
    folder.open(Config())
    folder.config_file.write_text(text)
    with pytest.raises(InputError, match=r"config\.yaml|seed"):
        folder.read_config()
    with pytest.raises(InputError):
        folder.open(Config(), resume=True)


def test_a_start_that_was_killed_can_be_repeated(folder):
    folder.path.mkdir(parents=True)
    (folder.path / ".config.yaml.0a1b2c3d.tmp").write_text("preset: ca")
    folder.open(Config())
    assert folder.read_config() == Config()


def saved(path, phase, done, steps=4):
    """A checkpoint of a phase; `done` None: weights alone, as an export or an import leaves them."""
    config = override(Config(), [f"train.agent.steps={steps}"])
    spec = spec_to_json(DataSpec((2, 2, 1), ActionSpec((3,), 0), 1))
    tree = {"ema": jnp.zeros(2)} | ({} if done is None else {"step": jnp.array(done, jnp.int32)})
    checkpoint.save(path, tree, meta={"config": config.model_dump(mode="json"), "spec": spec, "phase": phase})
    return path


@pytest.mark.parametrize(
    ("phase", "done", "head"),
    [
        ("agent", 3, "policy"),
        ("agent", [3, 3], "policy"),  # two training seeds
        ("agent", 4, "prior"),
        ("agent", None, "prior"),
        ("imagination", 3, "prior"),
    ],
)
def test_the_cloned_policy_is_the_prior_once_the_agent_phase_has_ended(tmp_path, phase, done, head):
    step = saved(tmp_path / "best", phase, done)
    assert cloned_head(step) == head
    assert steps_done(step) == (done if not isinstance(done, list) else 3)


@pytest.mark.parametrize("phase", ["tokenizer", "dynamics"])
def test_before_the_agent_phase_there_is_no_cloned_policy(tmp_path, phase):
    with pytest.raises(InputError, match=f"best is of the {phase} phase, and there is no policy"):
        cloned_head(saved(tmp_path / "best", phase, 4))
