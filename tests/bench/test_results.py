"""The bookkeeping of the benchmarks: what is still to run, and what the ledger holds of what has run."""

import dataclasses
import json
import math
import os
import shutil

import equinox as eqx
import pytest

from benchmarks import results as bench
from benchmarks import units
from benchmarks.ledger import read_entries
from benchmarks.workers import Workers
from dreamer4 import envs
from dreamer4.baselines import PPORun
from dreamer4.config import EnvConfig, load
from dreamer4.data import collect, random_policy, read_info, write_dataset
from dreamer4.errors import InputError
from dreamer4.run import behaviour
from dreamer4.training import init_dreamer, stream


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A folder with the data set of the smallest preset."""
    folder = tmp_path_factory.mktemp("bench")
    env = envs.make(EnvConfig())
    config = load("tiny").data
    episodes = collect(env, random_policy(env.spec), episodes=config.episodes, key=stream(0, "collect"))
    about = {"id": "Catch-bsuite", "kwargs": {}}
    how = {"policy": "random", "seed": 0, "held_out": config.held_out}
    write_dataset(folder / "data", episodes, spec=env.spec, environment=about, **how)
    return folder


@pytest.fixture
def plan(shared, tmp_path):
    os.symlink(shared / "data", tmp_path / "data")
    return bench.Plan("tiny", (0, 1), 16, tmp_path, "python -m benchmarks results tiny")


def finish(plan, kind, seed, **unit):
    file = plan.result(kind, seed)
    file.parent.mkdir(parents=True)
    facts = {"device": "a device", "commit": "abc"}
    file.write_text(json.dumps(facts | unit))


def test_what_is_done_is_not_done_again(plan):
    todo = plan.units()
    assert len(todo) == 1 + 2 * (len(bench.UNITS) - 1)
    finish(plan, "ppo", 1)
    assert sorted(todo) == sorted([*plan.units(), ("ppo", (1,))])


def test_the_main_comparison_is_made_over_all_seeds_before_the_rest_begins(plan):
    kinds = [kind for kind, _ in plan.units()]
    assert kinds[:3] == ["references", "dreamer", "dreamer"]
    for kind in bench.ON_A_WORLD_MODEL:
        assert kinds.index(kind) > kinds.index("dreamer")


def test_a_part_of_the_ledger_may_be_run_alone(plan):
    part = dataclasses.replace(plan, kinds=("references", "ppo"))
    assert part.units() == [("references", (0,)), ("ppo", (0,)), ("ppo", (1,))]


def test_a_part_that_lacks_its_world_model_is_refused_before_anything_runs(plan):
    part = dataclasses.replace(plan, kinds=("dream_ppo",))
    with pytest.raises(InputError, match=r"tiny has no world model of training seed 0 yet\. Add --only dreamer"):
        bench._refuse_lone(part)
    finish(plan, "dreamer", 0)
    (plan.work("dreamer", (0,)) / "run").mkdir()
    with pytest.raises(InputError, match="training seed 1"):
        bench._refuse_lone(part)
    bench._refuse_lone(dataclasses.replace(plan, kinds=("dreamer", "dream_ppo")))


def test_units_judged_by_other_episodes_are_refused(plan):
    finish(plan, "ppo", 0, episodes=16)
    finish(plan, "ppo", 1)  # from before the number was kept
    bench._refuse_others(plan)
    finish(plan, "cloning", 1, episodes=200)
    only = dataclasses.replace(plan, kinds=("ppo",))  # the ledger is made of all
    with pytest.raises(InputError, match=r"unit\.json was judged by 200 episodes, and this command plays 16\. Choose"):
        bench._refuse_others(only)


def test_units_of_another_data_set_are_refused_and_so_is_a_data_set_of_another_preset(plan):
    finish(plan, "ppo", 0)  # learns from none
    finish(plan, "cloning", 0, data=read_info(plan.data).fingerprint)
    bench._refuse_other_data(plan)
    finish(plan, "cloning", 1, data="f" * 64)
    only = dataclasses.replace(plan, kinds=("ppo",))
    with pytest.raises(InputError, match=r"seed1/unit\.json was trained on a data set with the fingerprint f{16}, and"):
        bench._refuse_other_data(only)
    with pytest.raises(InputError, match=r"env\.id: Catch-bsuite -> CartPole-pixels(.|\n)*another folder with --runs"):
        bench._refuse_other_data(dataclasses.replace(plan, name="cartpole"))


def test_what_is_missing_is_run_in_processes_and_fills_the_ledger(plan, tmp_path):
    part = dataclasses.replace(plan, kinds=("references",))
    bench._run(part, 1, tmp_path / "ledger")
    assert part.units() == []
    entries = read_entries(tmp_path / "ledger", "tiny")
    assert set(entries) == {"random", "data"}
    assert (entries["random"].data, entries["data"].data) == ("", read_info(plan.data).fingerprint)
    assert json.loads(plan.result("references", 0).read_text())["episodes"] == 16


def test_a_data_set_is_collected_first_by_one_thread(tmp_path, monkeypatch):
    seen = []

    class Spied(Workers):
        def begin(self, name, function, *args, variables=None):
            seen.append((function, variables))
            super().begin(name, function, *args, variables=variables)

    monkeypatch.setattr(bench, "Workers", Spied)
    plan = bench.Plan("tiny", (0,), 16, tmp_path / "tiny", "python -m benchmarks results tiny", kinds=("references",))
    bench._run(plan, 1, tmp_path / "ledger")
    assert seen == [(units.collect, units.ONE_THREAD), (units.run_unit, None)]
    assert read_entries(tmp_path / "ledger", "tiny")["data"].data == read_info(plan.data).fingerprint


def test_quick_runs_the_main_comparison_alone(monkeypatch, tmp_path):
    plans = []
    monkeypatch.setattr(bench, "_run", lambda plan, workers, out: plans.append((plan, workers)))
    common = {"runs": tmp_path, "out": tmp_path, "only_table": False, "workers": 2}
    bench.results((), seeds=None, quick=True, **common)
    assert [(plan.name, plan.seeds, plan.kinds) for plan, _ in plans] == [
        (name, (0, 1), ("references", "dreamer")) for name in ("catch", "cartpole")
    ]
    bench.results(["catch"], seeds=1, quick=False, only=["cloning"], **common)
    assert plans[-1][0].units() == [("cloning", (0,))]
    with pytest.raises(InputError, match="--only: unknown part 'clonning'. Did you mean cloning"):
        bench.results(["catch"], seeds=1, quick=False, only=["clonning"], **common)


def test_all_seeds_share_the_data_set_and_differ_in_nothing_but_the_seed(plan):
    a, b = plan.config(0), plan.config(1)
    assert a.data.path == str(plan.data)
    assert a.model_copy(update={"seed": 1}) == b
    assert a.evaluation.episodes == 16


def test_entries_gather_the_units_that_are_done(plan, tmp_path):
    for seed in (0, 1):
        finish(
            plan,
            "dreamer",
            seed,
            returns={"world_model_cloning": 0.1 * seed, "imagination": 0.5 + seed},
            by_mode={"world_model_cloning": 0.2, "imagination": 0.9},
            minutes={"world_model_cloning": 3.0, "imagination": 3.0},
            data="fingerprint",
        )
    finish(plan, "ppo", 1, returns={"ppo": 0.8}, minutes={"ppo": 1.0})
    bench.gather(plan, tmp_path / "ledger")
    entries = read_entries(tmp_path / "ledger", "tiny")
    assert set(entries) == {"world_model_cloning", "imagination", "ppo"}
    assert entries["imagination"].returns == (0.5, 1.5)
    assert entries["imagination"].by_mode == (0.9, 0.9)
    assert entries["imagination"].data == "fingerprint"
    assert entries["ppo"].seeds == (1,)
    assert entries["ppo"].by_mode == ()


def test_an_entry_tells_the_commands_that_its_units_were_made_with(plan, tmp_path):
    facts = {"returns": {"ppo": 0.5}, "minutes": {"ppo": 1.0}}
    finish(plan, "ppo", 0, command="python -m benchmarks results tiny --together", **facts)
    finish(plan, "ppo", 1, **facts)  # from before it was kept
    entry = bench.gather(plan, tmp_path / "ledger")["ppo"]
    assert entry.command == "python -m benchmarks results tiny --together, python -m benchmarks results tiny"


def test_an_entry_gives_way_to_one_with_all_of_its_seeds_and_to_no_other(plan, tmp_path, capsys, monkeypatch):
    ledger, again = tmp_path / "ledger", {"returns": {"ppo": 0.7}, "minutes": {"ppo": 1.0}}
    for seed in (0, 1):
        finish(plan, "ppo", seed, returns={"ppo": 0.5}, minutes={"ppo": 1.0})
    bench.gather(plan, ledger)
    for seed in (0, 1):
        shutil.rmtree(plan.result("ppo", seed).parent)
    finish(plan, "ppo", 0, **again)
    monkeypatch.setattr(bench, "_run", lambda plan, workers, out: None)
    monkeypatch.setattr(bench, "Plan", lambda **settings: plan)
    how = {"quick": False, "workers": 1, "runs": tmp_path / "runs", "out": ledger, "only_table": False, "only": ["ppo"]}
    bench.results(["catch"], seeds=2, **how)
    said = " ".join(capsys.readouterr().out.split())
    assert "+0.700" in said, "the table tells what was run here"
    assert "ppo.json holds training seeds [1] too, and is kept until they have been run here" in said
    assert read_entries(ledger, "tiny")["ppo"].returns == (0.5, 0.5)
    finish(plan, "ppo", 1, **again)
    bench.results(["catch"], seeds=2, **how)
    assert "kept" not in capsys.readouterr().out
    assert read_entries(ledger, "tiny")["ppo"].returns == (0.7, 0.7)


def test_a_unit_leaves_its_result_and_its_output_in_its_folder(plan, capsys):
    units.run_unit(plan, "references", (0,))
    unit = json.loads(plan.result("references", 0).read_text())
    assert -1 <= unit["returns"]["random"] <= 1
    assert -1 <= unit["returns"]["data"] <= 1
    assert (plan.work("references", (0,)) / "log.txt").exists()
    assert capsys.readouterr().out == ""
    assert ("references", (0,)) not in plan.units()


@pytest.mark.parametrize(("known", "told"), [(0.5, "return 0.50"), (math.nan, "return -")])
def test_ppo_is_trained_from_the_units_own_seed_and_played(plan, monkeypatch, known, told):
    asked = []

    def train_ppo(config, env, *, keys, progress):
        asked.extend(keys)
        progress(1, [known])
        return [PPORun(snapshots=(), steps=(1,), returns=(known,))]

    monkeypatch.setattr(PPORun, "policy", lambda run: random_policy(envs.make(EnvConfig()).spec))
    monkeypatch.setattr(behaviour, "train_ppo", train_ppo)
    units.run_unit(plan, "ppo", (1,))
    unit = json.loads(plan.result("ppo", 1).read_text())
    assert -1 <= unit["returns"]["ppo"] <= 1
    assert told in (plan.work("ppo", (1,)) / "log.txt").read_text()
    assert asked == [stream(1, "behaviour")]


def test_ppo_may_train_in_the_world_model_of_its_seed(plan, monkeypatch, tmp_path):
    asked = []

    def load(path, *, member, seed):
        asked.append((path, member, seed))
        return "the dream"

    def train(config, env, seeds, report):
        asked.append((env, seeds))
        return [PPORun(snapshots=(), steps=(1, 2), returns=(0.25, float("nan")))]

    monkeypatch.setattr(units.DreamWorld, "load", load)
    monkeypatch.setattr(behaviour, "train", train)
    monkeypatch.setattr(PPORun, "policy", lambda run: random_policy(envs.make(EnvConfig()).spec))
    units.run_unit(plan, "dream_ppo", (1,))
    assert asked == [(plan.work("dreamer", (1,)) / "run", 0, 1), ("the dream", 1)]
    bench.gather(plan, tmp_path / "ledger")
    entry = read_entries(tmp_path / "ledger", "tiny")["dream_ppo"]
    assert -1 <= entry.returns[0] <= 1  # of the real environment
    assert entry.notes == {"return_in_the_dream": [0.25]}
    assert entry.data


@pytest.mark.parametrize(("preset", "other"), [("tiny", "policy_gradient"), ("cartpole", "pmpo")])
def test_the_other_objective_is_the_one_that_the_preset_leaves_at_the_papers_weight(plan, monkeypatch, preset, other):
    trained, played = [], []

    def train(config, path, phases, **more):
        trained.append((config.imagination.objective, phases))

    monkeypatch.setattr(units.work, "train", train)
    monkeypatch.setattr(units, "_agents", lambda run, count: [f"agent of {run.path.name}"] * count)
    monkeypatch.setattr(units, "_ladder", lambda plan, config, agents, minutes: played.append(agents) or [{}])
    units.run_unit(dataclasses.replace(plan, name=preset), "other_objective", (1,))
    ((objective, phases),) = trained
    assert (objective.kind, objective.beta, phases) == (other, 0.3, ("imagination",))
    assert played == [{other: ["agent of run"]}]


@pytest.fixture
def joint(plan):
    return dataclasses.replace(plan, together=True)


def test_seeds_that_train_together_are_one_unit_of_each_part(joint):
    assert joint.units() == [
        ("references", (0,)),
        ("dreamer", (0, 1)),
        ("cloning", (0, 1)),
        ("ppo", (0, 1)),
        ("dream_ppo", (0,)),
        ("dream_ppo", (1,)),
        ("other_objective", (0, 1)),
    ]
    finish(joint, "ppo", 0)
    assert ("ppo", (0, 1)) in joint.units(), "one of its seeds is missing"
    finish(joint, "ppo", 1)
    assert ("ppo", (0, 1)) not in joint.units()


def test_together_each_seed_comes_to_what_it_comes_to_alone(plan, joint):
    units.run_unit(joint, "cloning", (0, 1))
    found = [json.loads(joint.result("cloning", seed).read_text()) for seed in (0, 1)]
    assert [line["step"] for line in _lines(joint.work("cloning", (0, 1)) / "metrics.jsonl")] == [2, 4, 6, 8]
    joint.result("cloning", 1).unlink()
    units.run_unit(plan, "cloning", (1,))
    alone = json.loads(plan.result("cloning", 1).read_text())
    together = _lines(joint.work("cloning", (0, 1)) / "metrics.jsonl")
    for both, one in zip(together, _lines(plan.work("cloning", (1,)) / "metrics.jsonl"), strict=True):
        # Products of several seeds are other kernels, which add up in another order.
        assert both["cloning"][1] == pytest.approx(one["cloning"], rel=1e-4)
        assert both["cloning"][0] != both["cloning"][1]
    for mode in ("returns", "by_mode"):
        assert found[1][mode] == alone[mode]
    assert found[0]["minutes"] == found[1]["minutes"]


def _lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_together_the_minutes_of_a_run_are_shared_among_its_seeds(joint, monkeypatch):
    played = iter([[0.1, 0.2], [0.3, 0.4]])
    monkeypatch.setattr(units, "_play", lambda config, policies: next(played))
    monkeypatch.setattr(units, "DreamerPolicy", lambda agent, mode: agent)
    agent = eqx.filter_eval_shape(init_dreamer, joint.config(0), read_info(joint.data).spec)
    found = units._ladder(joint, joint.config(0, seeds=2), {"cloning": [agent, agent]}, 3.0)
    fingerprint = read_info(joint.data).fingerprint
    assert found == [
        {"returns": {"cloning": 0.1}, "by_mode": {"cloning": 0.3}, "minutes": {"cloning": 1.5}, "data": fingerprint},
        {"returns": {"cloning": 0.2}, "by_mode": {"cloning": 0.4}, "minutes": {"cloning": 1.5}, "data": fingerprint},
    ]


def test_what_builds_on_a_world_model_finds_it_where_its_seeds_trained(plan, joint):
    assert plan.world(1) == (plan.folder / "dreamer" / "seed1" / "run", 0)
    assert joint.world(1) == (plan.folder / "dreamer" / "seeds0-1" / "run", 1)
    for seed in (0, 1):
        finish(plan, "dreamer", seed)
        (plan.work("dreamer", (seed,)) / "run").mkdir()
    part = {"kinds": ("other_objective",)}
    bench._refuse_lone(dataclasses.replace(plan, **part))
    with pytest.raises(
        InputError, match=r"seed 0, but not in .*seeds0-1/run\. Leave out --together, as it was trained"
    ):
        bench._refuse_lone(dataclasses.replace(joint, **part))


def test_minutes_of_interrupted_attempts_add_up(tmp_path, monkeypatch):
    now = iter([0.0, 60.0, 100.0, 220.0])
    monkeypatch.setattr("dreamer4.run.writing.time.monotonic", lambda: next(now))
    with pytest.raises(KeyboardInterrupt), units._clock(tmp_path):
        raise KeyboardInterrupt
    with units._clock(tmp_path) as minutes:
        pass
    assert minutes() == 3.0


def test_an_unknown_benchmark_is_refused_with_the_nearest(tmp_path):
    with pytest.raises(InputError, match="catch"):
        bench.results(
            ["catsh"], seeds=None, quick=False, workers=1, runs=tmp_path, out=tmp_path / "out", only_table=False
        )
    assert list(tmp_path.iterdir()) == []
