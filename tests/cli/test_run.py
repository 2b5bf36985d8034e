"""The commands at work, on the smallest preset: one whole demo, and what can be done with its folder."""

import json
import shutil
import signal
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import equal

from dreamer4 import checkpoint, data
from dreamer4.checkpoint import Checkpoints
from dreamer4.config import load, override
from dreamer4.dreamer import PHASES, Dreamer
from dreamer4.envs import CounterEnvironment, make
from dreamer4.errors import InputError
from dreamer4.evaluation import Played
from dreamer4.run import facts, latents, lineage, pages, playing, stages, stopping, world_model
from dreamer4.run.folder import RunFolder
from dreamer4.run.metrics import read_metrics
from dreamer4.run.reporter import SILENT
from dreamer4.run.rounds import rounds as online
from dreamer4.sharing import import_agent
from dreamer4.training import init_dreamer
from dreamer4_cli import describe, run
from dreamer4_cli.world_model import evaluate_world_model


pytestmark = pytest.mark.slow


# As many episodes as the data has: random play is then collected by one compiled program, here and there.
# The tokenizer learns nothing, and is found out at its second step.
STILL = ["steps=6", "patience=1", "look_every=1", "optimizer.learning_rate=1e-30"]
SETTINGS = ["train.save_every=2", "evaluation.episodes=32", *(f"train.tokenizer.{setting}" for setting in STILL)]


@pytest.fixture(scope="module")
def config():
    return load("tiny", overrides=SETTINGS)


@pytest.fixture(scope="module")
def folder(config, tmp_path_factory):
    path = tmp_path_factory.mktemp("demo") / "run"
    run.demo(config, path, resume=False)
    return path


def test_results_hold_what_is_promised(folder, config):
    results = json.loads((folder / "results.json").read_text())
    assert results["env"] == config.env.id
    assert results["seed"] == config.seed
    assert results["minutes"] > 0
    assert set(results["returns"]) == {"random", "data", "cloned", "imagination"}
    for row in results["returns"].values():
        assert row["low"] <= row["mean"] <= row["high"]
        assert row["episodes"] >= config.evaluation.episodes
    world = results["world_model"]
    assert world["num_steps"] == config.sampler.num_steps
    assert world["psnr"].keys() >= {"1", "2"} and all(value > 0 for value in world["psnr"].values())


def test_a_run_on_unlabelled_video_has_a_report_and_no_measured_dreams(config, tmp_path, capsys):
    spec = make(config.env).spec
    labelled = data.collect(make(config.env), data.random_policy(spec), episodes=3, key=jax.random.key(0))
    video = [replace(e, action_mask=np.zeros_like(e.action_mask)) for e in labelled]
    data.write_dataset(tmp_path / "video", video, spec=spec, environment={"id": "Own"}, policy="none", seed=0)
    own = load("tiny", overrides=[*SETTINGS, f"data.path={tmp_path / 'video'}"])
    for phase in PHASES[:2]:
        run.train(own, tmp_path / "run", (phase,), resume=False)
    pages.report([tmp_path / "run"], None)
    assert "No action is known in the held-out episodes" in (tmp_path / "run" / "report.html").read_text()
    with pytest.raises(InputError, match="no action is known in the held-out episodes"):
        evaluate_world_model(tmp_path / "run", clips=2, context=None, horizon=None, out=None, seed=0)


def test_shares_of_exact_frames_are_left_out_where_the_tokenizer_never_is(folder):
    world = json.loads((folder / "results.json").read_text())["world_model"]
    assert world["tokenizer_exact"] == 0  # after four steps
    assert world["exact_frames"] == world["controls"] == {}
    report = (folder / "report.html").read_text()
    assert "Share of exact frames" not in report and "exactly right, K" not in report
    assert ">exact<" not in report and ">PSNR, dB<" in report


def test_the_report_is_one_complete_file(folder):
    report = (folder / "report.html").read_text()
    assert report.rstrip().endswith("</html>")
    assert "Imagination policy" in report
    assert "data:image/gif" in report


def test_every_phase_left_metrics_and_a_last_checkpoint(folder, config):
    metrics = read_metrics(folder / "metrics.jsonl")
    for phase in PHASES:
        steps = getattr(config.train, phase).steps
        assert [line["step"] for line in metrics if line["phase"] == phase][-1] == steps
        assert checkpoint.read_meta(folder / "checkpoints" / phase / str(steps))["phase"] == phase


def test_a_phase_that_held_out_episodes_end_leaves_out_steps_and_the_heads_are_trained_to_the_end(folder):
    metrics = read_metrics(folder / "metrics.jsonl")
    tokenizer, heads = ([line for line in metrics if line["phase"] == phase] for phase in ("tokenizer", "heads"))
    assert [line["step"] for line in tokenizer] == [4, 6], "step 2 led to step 3"
    assert tokenizer[-1]["held_out"] > 0
    assert [line["step"] for line in heads] == [0, 2]
    assert "A fresh, wide one" in (folder / "report.html").read_text()


def test_each_phase_starts_from_the_average_of_the_one_before(folder, config):
    agent = Dreamer.load(folder / "checkpoints" / "agent")
    last = Dreamer.load(folder)
    frozen = ("tokenizer", "dynamics", "reward", "continuation", "prior")
    for name in frozen:
        assert eqx.tree_equal(getattr(agent, name), getattr(last, name)), name
    assert not eqx.tree_equal(agent.value, last.value)
    assert eqx.tree_equal(agent.prior.mlp, agent.policy.mlp)
    assert bool(last.tokenizer.stats.measured)


def test_a_finished_run_resumes_to_the_same_results(folder, config, capsys):
    before = json.loads((folder / "results.json").read_text())
    run.demo(config, folder, resume=True)
    after = json.loads((folder / "results.json").read_text())
    assert "done before" in capsys.readouterr().out
    assert after["returns"] == before["returns"]
    assert after["minutes"] > before["minutes"]  # what it took as a whole
    assert after["world_model"] == before["world_model"]


def test_a_run_that_lost_its_end_goes_on_to_the_same_weights(folder, config):
    wanted = Dreamer.load(folder)
    last = folder / "checkpoints" / "imagination" / "4"
    last.rename(folder / "moved")
    (folder / "moved" / checkpoint.MANIFEST).unlink()
    run.train(config, folder, ("imagination",), resume=True)
    resumed = Dreamer.load(folder)
    leaves = zip(jax.tree.leaves(wanted), jax.tree.leaves(resumed), strict=True)
    assert all(bool(jnp.array_equal(a, b)) for a, b in leaves)


def test_a_run_is_neither_repeated_nor_mixed(folder, config):
    with pytest.raises(InputError, match="--resume"):
        run.demo(config, folder, resume=False)
    other = load("tiny", overrides=[*SETTINGS, "imagination.horizon=3"])
    with pytest.raises(InputError, match=r"imagination\.horizon"):
        run.demo(other, folder, resume=True)


def test_info_tells_apart_what_it_is_shown(folder, capsys):
    describe.info(folder)
    describe.info(folder / "data")
    describe.info(folder / "checkpoints" / "agent" / "4")
    told = capsys.readouterr().out
    assert all(word in told for word in ("run", "data set", "checkpoint", "whole", "held out"))
    with pytest.raises(InputError, match="no data set"):
        describe.info(folder / "checkpoints")


def test_evaluation_needs_only_the_folder(folder, capsys):
    run.evaluate(folder, episodes=16, seed=3, plan=2)
    told = capsys.readouterr().out
    assert "cloned policy" in told
    assert "imagination policy" in told and "plan 2 x" in told
    with pytest.raises(InputError, match="--plan: .* is of the agent phase, and planning needs the value head"):
        run.evaluate(folder / "checkpoints" / "agent" / "4", episodes=16, seed=3, plan=2)


def test_an_unfinished_agent_phase_plays_what_it_has_cloned_and_an_earlier_one_nothing(folder, capsys, monkeypatch):
    played = []
    nothing = Played(jnp.zeros(16), jnp.ones(16, int), jnp.ones(16, bool), jnp.zeros((16, 0), int))
    monkeypatch.setattr(playing, "play_agent", lambda _, agent, __, count, head, *___: played.append(head) or nothing)
    run.evaluate(folder / "checkpoints" / "agent" / "2", episodes=16, seed=0)
    told = capsys.readouterr().out
    assert "step 2 of 4" in told and "cloned policy" in told and "imagination policy" not in told
    run.evaluate(folder / "checkpoints" / "agent" / "4", episodes=16, seed=0)
    assert played == ["policy"] * 2 + ["prior"] * 2
    assert "step" not in capsys.readouterr().out
    for phase in ("tokenizer", "dynamics"):
        with pytest.raises(InputError, match=f"of the {phase} phase, and there is no policy before the agent phase"):
            run.evaluate(folder / "checkpoints" / phase, episodes=16, seed=0)
        early = load("tiny", overrides=[f"data.policy={folder / 'checkpoints' / phase / '4'}"])
        with pytest.raises(InputError, match="no policy before the agent phase"):
            run.collect(early, folder / "new")
    assert not (folder / "new").exists() and len(played) == 4


def test_evaluation_tells_how_often_and_when_events_happened(folder, capsys, monkeypatch):
    happened = np.tile([[7, -1]], (16, 1)) * (np.arange(16) < 4)[:, None] - (np.arange(16) >= 4)[:, None]
    played = Played(jnp.zeros(16), jnp.full(16, 9), jnp.ones(16, bool), jnp.asarray(happened))
    monkeypatch.setattr(playing, "play_agent", lambda *_: played)
    monkeypatch.setattr(CounterEnvironment, "events", ("wood", "diamond"))
    monkeypatch.setattr(playing.sizes, "environment", lambda *_: CounterEnvironment(5, 3))
    run.evaluate(folder / "checkpoints" / "agent" / "4", episodes=16, seed=0)
    told = " ".join(capsys.readouterr().out.split())
    assert "25.0 (10-50) @ 7" in told and "0.0 (0-19)" in told


def test_the_world_model_is_measured_from_the_folder_alone(folder, config, capsys, monkeypatch):
    monkeypatch.setattr(world_model, "source_commit", lambda: "0123abc+")
    monkeypatch.setattr(world_model, "REAL_EPISODES", 16)  # as many as are played side by side elsewhere in this file
    monkeypatch.setattr(world_model, "OWN_GAMES", 16)
    measure = {"clips": 12, "context": 2, "horizon": 5, "seed": 0}
    evaluate_world_model(folder, **measure, out=None)
    told = json.loads((folder / "world_model.json").read_text())
    assert (told["commit"], told["device"]) == ("0123abc+", facts.device())
    (record,) = told["seeds"]
    assert set(record["passes"]) == {"1", "2", "4", "8"}
    assert {len(c["psnr"]) for c in (*record["passes"].values(), *record["controls"].values())} == {5}
    assert set(record["signals"]) == {"decode_encode_residual", "seed_disagreement", "late_movement"}
    assert record["heads"]["dreamt"]["end"]["events"] > 0
    assert record["returns"]["low"] <= record["returns"]["difference"] <= record["returns"]["high"]
    assert sum(record["ends"]["own"]["ends"]) == 16 and record["ends"]["own"]["over"] == 1.0
    assert "its own games" in capsys.readouterr().out
    page = (folder / "world_model.html").read_text()
    assert "data:image/gif" in page and "Warnings without labels" in page and "</html>" in page
    assert "0123abc+" in page and facts.device() in page

    # The dynamics phase has no heads, and no file is written over; a folder may be called as one likes.
    renamed = shutil.copytree(folder / "checkpoints" / "dynamics" / "2", folder / "checkpoints" / "dynamics" / "best")
    evaluate_world_model(renamed, **measure, out=None)
    dynamics = json.loads((folder / "world_model-2.json").read_text())
    assert (dynamics["phase"], dynamics["step"]) == ("dynamics", 2)
    (early,) = dynamics["seeds"]
    assert early["heads"] == early["returns"] == "not trained"
    assert "not trained" in capsys.readouterr().out
    assert json.loads((folder / "world_model.json").read_text()) == told


def test_a_world_model_is_measured_on_its_own_data_and_never_over_old_results(folder, tmp_path):
    measure = {"clips": 4, "context": None, "horizon": None, "seed": 0}
    (tmp_path / "old.json").write_text("{}")
    with pytest.raises(InputError, match="never overwritten"):
        evaluate_world_model(folder, **measure, out=tmp_path / "old.json")
    with pytest.raises(InputError, match="no world model yet"):
        evaluate_world_model(folder / "checkpoints" / "tokenizer" / "4", **measure, out=tmp_path / "new.json")
    description = folder / "data" / "dataset.json"
    text = description.read_text()
    fingerprint = json.loads(text)["fingerprint"]
    description.write_text(text.replace(fingerprint, "0" * len(fingerprint)))
    with pytest.raises(InputError, match="not the data set of this run"):
        evaluate_world_model(folder, **measure, out=tmp_path / "new.json")
    description.write_text(text)
    assert not (tmp_path / "new.json").exists()


def test_data_can_be_checked_and_is_not_overwritten(folder, config):
    run.check_data(folder / "data", {})
    with pytest.raises(InputError, match="never overwritten"):
        run.collect(config, folder / "data")
    shard = next((folder / "data").glob("shard-*"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-20])
    with pytest.raises(InputError, match="problems"):
        run.check_data(folder / "data", {})
    shard.write_bytes(whole)


@pytest.fixture
def fingerprints(monkeypatch):
    """What data sets tell as their fingerprints, by their folders, where it is another one than they have."""
    told, read = {}, data.read_info
    for module in (data, stages.latents):
        monkeypatch.setattr(
            module, "read_info", lambda p: read(p).model_copy(update={"fingerprint": told[p]} if p in told else {})
        )
    return told


@pytest.fixture
def stopped(monkeypatch):
    """Runs that are stopped where training would begin."""

    def stop(*_):
        raise stopping.Stopped(signal.SIGTERM)

    monkeypatch.setattr(stages.latents, "encode", stop)
    return pytest.raises(stopping.Stopped)


def test_a_changed_data_set_is_refused_between_phases_unless_accepted(
    folder, config, tmp_path, capsys, fingerprints, stopped
):
    path = shutil.copytree(folder, tmp_path / "run")
    (path / "checkpoints" / "imagination" / "4" / checkpoint.MANIFEST).write_text("")  # passed over
    fingerprints[path / "data"] = 64 * "0"
    with pytest.raises(InputError, match=r"data set changed since .*imagination/2 was saved.*--changed-data"):
        run.demo(config, path, resume=True)
    shutil.rmtree(path / "checkpoints" / "imagination")
    for phases in (PHASES, ("imagination",)):
        with pytest.raises(InputError, match=r"data set changed since .*agent/4 was saved.*--changed-data"):
            run.train(config, path, phases, resume=True)
    with stopped:
        run.train(config, path, ("imagination",), resume=True, changed_data=True)
    assert "Going on with the changed one" in capsys.readouterr().out
    del fingerprints[path / "data"]
    with stopped:
        run.train(config, path, ("imagination",), resume=True)
    assert "changed" not in capsys.readouterr().out


def test_imported_weights_come_without_their_data(folder, config, tmp_path, fingerprints, stopped):
    import_agent(folder / "checkpoints" / "agent", tmp_path / "run", overrides=[f"data.path={folder / 'data'}"])
    fingerprints[folder / "data"] = 64 * "0"
    with stopped:
        run.train(RunFolder(tmp_path / "run").read_config(), tmp_path / "run", ("imagination",), resume=False)


def test_a_start_from_another_run_may_change_the_data_on_purpose_and_once(folder, tmp_path, fingerprints, stopped):
    path, elsewhere = tmp_path / "other", shutil.copytree(folder / "data", tmp_path / "data")
    other = load("tiny", overrides=[f"data.path={elsewhere}", "seed=1"])
    fingerprints[elsewhere] = 64 * "1"
    for _ in range(2):
        with stopped:
            run.train(other, path, ("imagination",), resume=False, origin=folder)
    fingerprints[elsewhere] = 64 * "2"
    with pytest.raises(InputError, match="fingerprint 1111.* now 2222"):
        run.train(other, path, ("imagination",), resume=False, origin=folder)
    # The data set of the other run, if it has changed since, is another matter.
    same = load("tiny", overrides=[f"data.path={folder / 'data'}", "seed=1"])
    fingerprints[folder / "data"] = 64 * "3"
    with pytest.raises(InputError, match="data set changed"):
        run.train(same, tmp_path / "same", ("imagination",), resume=False, origin=folder)


def test_a_demo_that_could_not_be_judged_is_refused_before_it_trains(folder, tmp_path):
    whole, info = tmp_path / "whole", data.read_info(folder / "data")
    episodes = data.read_episodes(folder / "data")[:4]
    data.write_dataset(
        whole, episodes, spec=info.spec, environment=info.environment, policy="random", seed=0, held_out=0.0
    )
    with pytest.raises(InputError, match=r"data\.path: .*whole holds no episodes out"):
        run.demo(load("tiny", overrides=[*SETTINGS, f"data.path={whole}"]), tmp_path / "run", resume=False)
    other = [*SETTINGS, f"data.path={folder / 'data'}", "env.id=FourRooms-pixels"]
    with pytest.raises(InputError, match=r"env\.id: FourRooms-pixels looks like"):
        run.demo(load("tiny", overrides=other), tmp_path / "run", resume=False)
    assert not (tmp_path / "run").exists()


def test_a_run_without_held_out_episodes_has_a_page_and_is_told_that_dreams_need_them(folder, tmp_path, monkeypatch):
    whole, info, path = tmp_path / "whole", data.read_info(folder / "data"), tmp_path / "run"
    episodes = data.read_episodes(folder / "data")
    data.write_dataset(
        whole, episodes, spec=info.spec, environment=info.environment, policy="random", seed=0, held_out=0.0
    )
    shutil.copytree(folder, path, ignore=shutil.ignore_patterns("data", "report.html"))
    told = (path / "config.yaml").read_text()
    (path / "config.yaml").write_text(told.replace("path: null", f"path: {whole}"))
    pages.report([path], None)
    page = (path / "report.html").read_text()
    assert "Imagination policy" in page and "Dreams beside the truth" not in page
    monkeypatch.setattr(world_model, "_dataset", lambda *_: whole)
    with pytest.raises(InputError, match=r"dreams held-out episodes, and .*whole has none\. Import it again with"):
        evaluate_world_model(path, clips=None, context=None, horizon=None, out=None, seed=0)


def test_a_context_of_one_frame_is_dreamt_from_too(folder):
    sizes = ["dynamics.transformer.context_length=1", "train.imagination.length=1"]
    config = load("tiny", overrides=[*SETTINGS, *sizes])
    agent = init_dreamer(config, data.read_info(folder / "data").spec)
    ((quality, _),) = pages.measure(config, [agent], folder / "data", seed=0)
    assert quality.context_length == 1 and len(quality.frames) == 1


def test_an_agent_is_not_played_in_a_world_that_looks_otherwise(folder, tmp_path):
    step = folder / "checkpoints" / "agent" / "4"
    meta = checkpoint.read_meta(step)
    meta["config"]["env"] = {"id": "FourRooms-pixels", "kwargs": {}}
    checkpoint.save(tmp_path / "agent", {"ema": jnp.zeros(1)}, meta=meta)
    with pytest.raises(InputError, match=r"env\.id: FourRooms-pixels looks like"):
        run.evaluate(tmp_path / "agent", episodes=16, seed=0)


def test_a_phase_needs_the_one_before(config, tmp_path):
    with pytest.raises(InputError, match="Train tokenizer first"):
        run.train(config, tmp_path / "run", ("dynamics",), resume=False)
    assert not (tmp_path / "run").exists()


def test_a_phase_starts_from_another_run_with_its_own_settings(folder, config, tmp_path):
    path = tmp_path / "other"
    other = load("tiny", overrides=[f"data.path={folder / 'data'}", "seed=1"])
    with pytest.raises(InputError, match="starts from nothing"):
        run.train(other, path, PHASES, resume=False, origin=folder)
    run.train(other, path, ("imagination",), resume=False, origin=folder)
    agent, trained, first = Dreamer.load(folder / "checkpoints" / "agent"), Dreamer.load(path), Dreamer.load(folder)
    for name in ("tokenizer", "dynamics", "prior"):
        assert eqx.tree_equal(getattr(agent, name), getattr(trained, name)), name
    assert not eqx.tree_equal(trained.policy, first.policy)


def hashes(run_folder, phase, step):
    leaves = checkpoint.read_manifest(RunFolder(run_folder).checkpoints(phase).path(step)).leaves
    return {name: leaf.sha256 for name, leaf in leaves.items()}


def test_a_run_that_reads_from_disk_encodes_once_and_resumes_bitwise(folder, config, tmp_path, monkeypatch):
    path = tmp_path / "run"
    streamed = override(config, [f"data.path={folder / 'data'}", "data.source=stream", "train.tokenizer.patience=0"])
    run.train(streamed, path, PHASES, resume=False)
    looks = [row for row in read_metrics(RunFolder(path).metrics_file) if row["phase"] == "heads"]
    assert looks and set(looks[0]) > {"cloning", "reward", "continuation", "probe"}

    def encode(*args, **how):
        raise AssertionError("what was encoded is encoded again")

    monkeypatch.setattr(latents, "encode_store", encode)
    for phase in reversed(PHASES):
        steps = RunFolder(path).checkpoints(phase)
        *before, last = steps.steps()
        whole = hashes(path, phase, last)
        shutil.rmtree(steps.path(last))
        run.train(streamed, path, (phase,), resume=True)
        assert before and hashes(path, phase, last) == whole, phase


def test_latents_are_encoded_ahead_in_parts(folder, tmp_path):
    path = shutil.copytree(folder, tmp_path / "run")
    (store,) = (path / "latents").iterdir()
    kept = {file.name: file.read_bytes() for file in store.iterdir()}
    shutil.rmtree(store)
    for part in ((1, 2), (0, 2)):
        assert latents.encode_run(path, None, SILENT, part=part) == [store]
    assert {file.name: file.read_bytes() for file in store.iterdir()} == kept


def test_a_start_from_another_run_that_was_stopped_before_its_first_save_can_be_repeated(folder, tmp_path, monkeypatch):
    path = tmp_path / "other"
    other = load("tiny", overrides=[f"data.path={folder / 'data'}", "seed=1"])

    def stop(*_):
        raise stopping.Stopped(signal.SIGTERM)

    for holder, place, taken in ((stages.Session, "dataset", []), (stages.latents, "encode", [4])):
        with monkeypatch.context() as patched, pytest.raises(stopping.Stopped):
            patched.setattr(holder, place, stop)
            run.train(other, path, ("imagination",), resume=False, origin=folder)
        assert RunFolder(path).checkpoints("agent").steps() == taken
        assert stopping.message(0).endswith(f"--resume --from {folder}" if not taken else "--resume")
    assert RunFolder(path).checkpoints("imagination").steps() == []
    run.train(other, path, ("imagination",), resume=True, origin=folder)
    assert RunFolder(path).checkpoints("imagination").steps()[-1] == other.train.imagination.steps


def test_a_start_from_another_run_of_another_size_is_refused_before_anything_is_written(folder, tmp_path):
    path = tmp_path / "wider"
    wider = load("tiny", overrides=[f"data.path={folder / 'data'}", "agent.hidden=48"])
    with pytest.raises(InputError, match="was saved as"):
        run.train(wider, path, ("imagination",), resume=False, origin=folder)
    assert not path.exists()


def test_a_dynamics_of_another_size_starts_from_the_tokenizer_of_another_run(folder, tmp_path):
    path = tmp_path / "wider"
    wider = load("tiny", overrides=[f"data.path={folder / 'data'}", "dynamics.transformer.width=48", "agent.hidden=48"])
    other = load("tiny", overrides=[f"data.path={folder / 'data'}", "tokenizer.latent_dim=8"])
    with pytest.raises(InputError, match=r"leaf ema\.tokenizer\..* was saved as"):
        run.train(other, path, ("dynamics",), resume=False, origin=folder)
    assert not path.exists()
    run.train(wider, path, ("dynamics",), resume=False, origin=folder)
    first, trained = Dreamer.load(folder / "checkpoints" / "tokenizer"), Dreamer.load(path)
    assert eqx.tree_equal(first.tokenizer, trained.tokenizer)
    assert trained.dynamics.agent_dim == 48 and first.dynamics.agent_dim == 32


def test_heads_of_another_size_start_from_the_dynamics_of_another_run(folder, tmp_path):
    path = tmp_path / "wider"
    wider = load("tiny", overrides=[f"data.path={folder / 'data'}", "agent.hidden=48"])
    narrower = load("tiny", overrides=[f"data.path={folder / 'data'}", "dynamics.transformer.width=16"])
    with pytest.raises(InputError, match=r"leaf ema\.dynamics\..* was saved as"):
        run.train(narrower, path, ("agent",), resume=False, origin=folder)
    assert not path.exists()
    run.train(wider, path, ("agent",), resume=False, origin=folder)
    taken, first = (Dreamer.load(run_ / "checkpoints" / "dynamics") for run_ in (path, folder))
    assert eqx.tree_equal((taken.tokenizer, taken.dynamics), (first.tokenizer, first.dynamics))


def test_what_was_taken_from_another_run_stays_is_mended_and_is_not_replaced_by_another(folder, tmp_path):
    own, end = RunFolder(tmp_path / "own"), Checkpoints(folder / "checkpoints" / "agent").latest_valid()
    config = load("tiny", overrides=[f"data.path={folder / 'data'}"])
    info = data.read_info(folder / "data")

    def take(end):
        lineage.write(config, own, end, folder / "data", info.fingerprint, info.spec)
        return own.checkpoints("agent").path(config.train.agent.steps)

    taken = take(end)
    before = taken.stat().st_mtime_ns
    assert take(end).stat().st_mtime_ns == before
    largest = max((f for f in taken.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])
    assert checkpoint.verify(taken)
    assert checkpoint.verify(take(end)) == []
    assert [f.name for f in taken.parent.iterdir()] == [taken.name]
    changed = jax.tree.map(lambda x: x + 1, Dreamer.load(end))
    elsewhere = tmp_path / "else" / "checkpoints" / "agent" / "4"
    checkpoint.save(elsewhere, {"ema": changed, "step": jnp.zeros(())}, meta=checkpoint.read_meta(end))
    with pytest.raises(InputError, match="holds other weights than"):
        take(elsewhere)


def test_a_round_begins_with_the_newest_agent_learns_from_all_that_was_played_and_can_be_repeated(
    folder, config, tmp_path
):
    path = tmp_path / "run"
    shutil.copytree(folder, path)
    run.train(config, path, PHASES, resume=True, rounds=1)
    rows = json.loads((path / "results.json").read_text())["rounds"]
    assert [row["number"] for row in rows] == [0, 1] and rows[0]["collected"] is None
    first, everything = data.read_info(path / "data"), data.read_info(path / "rounds" / "1" / "data")
    assert [row["episodes"] for row in rows] == [32, 32 + config.rounds.episodes]
    assert everything.returns[:32] == first.returns
    assert set(first.held_out) == {i for i in everything.held_out if i < 32}, "what was trained on is never held out"
    newest, begun = Dreamer.load(path), Dreamer.load(path / "rounds" / "1" / "checkpoints" / "tokenizer")
    # Weights alone: a round has settings of its own.
    assert equal(jax.tree.leaves(newest), jax.tree.leaves(begun))
    last = Dreamer.load(path / "rounds" / "1")
    assert equal(jax.tree.leaves(last.tokenizer), jax.tree.leaves(newest.tokenizer))
    assert not equal(jax.tree.leaves(last.dynamics), jax.tree.leaves(newest.dynamics))

    shutil.rmtree(path / "rounds" / "1" / "checkpoints" / "imagination")
    results = json.loads((path / "results.json").read_text())
    (path / "results.json").write_text(json.dumps(results | {"rounds": rows[:1]}))
    run.train(config, path, PHASES, resume=True, rounds=1)
    assert eqx.tree_equal(Dreamer.load(path / "rounds" / "1"), last)
    assert json.loads((path / "results.json").read_text())["rounds"] == rows
    with pytest.raises(InputError, match="--rounds: data is collected by one agent"):
        stages.execute(load("tiny", overrides=[*SETTINGS, "seeds=2"]), tmp_path / "two", online(1))
    assert not (tmp_path / "two").exists()
