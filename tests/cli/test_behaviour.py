"""Who plays: names become policies, mixtures keep shares, and bad names are refused before anything is written."""

import dataclasses
import json
import os
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from dreamer4 import checkpoint, data, envs
from dreamer4.config import load, override
from dreamer4.dreamer import PHASES, spec_to_json
from dreamer4.errors import InputError
from dreamer4.run import behaviour, stages
from dreamer4.run.folder import RunFolder
from dreamer4.run.own_policy import policy_from_file
from dreamer4.run.stages import AbstractStage, execute
from dreamer4_cli import options, run


PPO = "ppo={steps: 2048, num_envs: 16, rollout_length: 16, hidden: 16}"
OWN = """
import jax.numpy as jnp
from dreamer4.data import AbstractPolicy
from dreamer4.types import Action


class Left(AbstractPolicy):
    def init(self):
        return None

    def __call__(self, memory, time_step, action, action_mask, *, key):
        return Action(jnp.zeros(1, jnp.int32), jnp.zeros(0)), memory


def left(spec):
    return Left()


def nothing(spec):
    return None
"""


def config(policy, *more):
    return load("tiny", overrides=["data.episodes=40", PPO, *options.behaviour(policy), *more])


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    file = tmp_path_factory.mktemp("own") / "mine.py"
    file.write_text(OWN)
    return file


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, own):
    """A run's data of four policies, collected by the command."""
    folder = tmp_path_factory.mktemp("mixed")
    run.collect(config(f"mixture:random=1,{own}:left~0.5=2,ppo:early=1,ppo=1"), folder / "data")
    return folder


def test_a_mixture_keeps_its_shares_and_tells_who_played(mixed, own):
    info = data.read_info(mixed / "data")
    assert data.check(mixed / "data") == []
    assert info.policy == "mixture"
    assert [b.policy for b in info.behaviour] == ["random", f"{own}:left", "ppo:early", "ppo"]
    assert [b.episodes for b in info.behaviour] == [8, 16, 8, 8]
    assert [b.epsilon for b in info.behaviour] == [0, 0.5, 0, 0]
    assert info.behaviour[3].about["stage"] == "late" and info.behaviour[3].about["env"]["id"] == "Catch-bsuite"
    # Half of the actions are the policy's, a third of the others too.
    taken = np.concatenate([e.discrete[1:, 0] for e in data.read_episodes(mixed / "data")[8:24]])
    assert abs(np.mean(taken == 0) - 2 / 3) < 0.15


def test_agents_are_trained_once(mixed):
    before = (mixed / "behaviour/ppo.json").stat().st_mtime_ns
    told = json.loads((mixed / "behaviour/ppo.json").read_text())
    assert told["steps"][-1] == 2048 and len(told["returns"]) == len(told["steps"])
    (mixed / "again").mkdir()
    (mixed / "behaviour").rename(mixed / "again/behaviour")
    run.collect(config("ppo"), mixed / "again/data")
    assert (mixed / "again/behaviour/ppo.json").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="another environment, seed or setting"):
        other = config("ppo", "ppo.hidden=32")
        behaviour.collect(other, mixed / "other", mixed / "again/behaviour")
    # A checkpoint by its path is the same policy.
    run.collect(config(str(mixed / "again/behaviour/late")), mixed / "by_path")
    ours, theirs = data.read_info(mixed / "again/data"), data.read_info(mixed / "by_path")
    assert ours.returns == theirs.returns


@pytest.mark.parametrize(
    ("policy", "match"),
    [
        ("master", "FILE.py:NAME"),
        ("ppo:best", "late"),
        ("missing.py:left", "no file"),
        ("OWN:lef", "Did you mean left"),
        ("OWN:nothing", "returned NoneType"),
        ("mixture:random=1,random=0.0001", "without any"),
    ],
)
def test_a_bad_policy_is_refused_before_anything_is_written(policy, match, own, tmp_path):
    policy = policy.replace("OWN", str(own))
    for work in (lambda c: run.collect(c, tmp_path / "data"), lambda c: run.demo(c, tmp_path / "run", resume=False)):
        with pytest.raises(InputError, match=match):
            work(config(policy))
    assert list(tmp_path.iterdir()) == []


def test_a_mixture_on_the_command_line_is_the_one_in_a_file():
    given = load("tiny", overrides=options.behaviour("mixture:random,ppo:early~0.1=2"))
    written = load(
        "tiny",
        overrides=[
            "data.policy=mixture",
            "data.mixture=[{policy: random}, {policy: ppo:early, epsilon: 0.1, share: 2}]",
        ],
    )
    assert given == written
    with pytest.raises(InputError, match="--policy"):
        options.behaviour("mixture:random=much")


def test_a_policy_of_another_environment_is_refused(mixed, tmp_path):
    late = next(mixed.rglob("late"))
    with pytest.raises(InputError, match="Choose a policy of this environment"):
        run.collect(load("tiny", overrides=["env.id=Breakout-MinAtar", f"data.policy={late}"]), tmp_path / "data")


def test_an_agent_of_a_game_with_other_actions_is_refused_before_it_is_loaded(tmp_path):
    """Two games of MinAtar look alike, but one has three actions and the other five."""
    settings = load("tiny", overrides=["env.id=Breakout-MinAtar", "tokenizer.patch=[5, 5]"])
    spec = spec_to_json(envs.make(settings.env).spec)
    meta = {"config": settings.model_dump(mode="json"), "spec": spec, "phase": "imagination"}
    checkpoint.save(tmp_path / "agent", {"ema": jnp.zeros(1)}, meta=meta)
    for env, match in (("Asterix-MinAtar", "Choose a policy of this environment"), ("Breakout-MinAtar", "leaf")):
        other = config(str(tmp_path / "agent"), f"env.id={env}")
        for work in (
            lambda c: run.collect(c, tmp_path / "data"),
            lambda c: run.demo(c, tmp_path / "run", resume=False),
        ):
            with pytest.raises(InputError, match=match):
                work(other)
    assert [entry.name for entry in tmp_path.iterdir()] == ["agent"]


def test_a_policy_may_be_in_a_file_whose_annotations_are_text(tmp_path):
    env = envs.make(config("random").env)
    for name in ("one", "two"):
        text = OWN.replace("    def init", f"    name: str = {name!r}\n\n    def init")
        (tmp_path / f"{name}.py").write_text(f"from __future__ import annotations\n{text}")
    policies = [policy_from_file(f"{tmp_path / name}.py:left", env) for name in ("one", "two")]
    assert [policy.name for policy in policies] == ["one", "two"]
    assert [vars(sys.modules[type(policy).__module__])["Left"] for policy in policies] == list(map(type, policies))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("\n1 / 0", r"wrong.py cannot be imported: ZeroDivisionError: division by zero \(.*wrong.py, line 2\)"),
        ("from .mine import left", "cannot be imported: ImportError: attempted relative import"),
        (OWN + "left = Left", r"cannot act: TypeError: .*Expected a function that takes the DataSpec"),
        (OWN.replace("jnp.zeros(1", "np.asarray(time_step.reward), jnp.zeros(1"), "cannot act: NameError.*line 12"),
        (OWN.replace("jnp.zeros(1,", "jnp.zeros(2,"), r"returns .*int32\[2\].*expected an action .*int32\[1\]"),
        (OWN.replace("memory\n\n", "jnp.ones(3)\n\n"), r"returns .*float32\[3\].*expected an action and a memory"),
    ],
)
def test_a_policy_file_that_does_not_work_is_told_of_with_its_line(text, match, tmp_path):
    (tmp_path / "wrong.py").write_text(text)
    env = envs.make(config("random").env)
    before = set(sys.modules)
    with pytest.raises(InputError, match=match):
        policy_from_file(f"{tmp_path / 'wrong'}.py:left", env)
    if "cannot be imported" in match:
        assert set(sys.modules) == before


def clear(opened):
    """Takes away what opening a run leaves in its folder."""
    for file in (opened.config_file, opened.lock_file, opened.seconds_file):
        file.unlink()


@pytest.fixture
def opened():
    """Opens a run and trains nothing; returns whether it was begun."""

    class Idle(AbstractStage):
        def trains(self):
            return PHASES

        def __call__(self, session):
            pass

    def attempt(config, folder):
        execute(config, folder, (Idle(),))
        begun = RunFolder(folder).is_run
        clear(RunFolder(folder))
        return begun

    return attempt


def test_what_was_collected_beforehand_is_what_a_run_of_the_same_settings_begins_with(tmp_path, opened, monkeypatch):
    folder = tmp_path / "run"
    run.collect(config("random"), folder / "data")
    assert opened(config("random"), folder)
    with monkeypatch.context() as patched, pytest.raises(KeyError, match="trained"):
        patched.setattr(stages.Session, "work", lambda _: {}["trained"])
        run.demo(config("random"), folder, resume=False)
    clear(RunFolder(folder))
    others = {
        "seed=1": "seed: 0 -> 1",
        "data.episodes=41": "data.episodes: 40 -> 41",
        "data.held_out=0.2": "10 episodes -> 8 episodes",
        "env.kwargs={rows: 15}": "env.kwargs: {} -> {'rows': 15}",
        "data.policy=ppo": r"data.policy: \[\['random', 0.0, 40\]\] -> \[\['ppo', 0.0, 40\]\]",
    }
    for change, told in others.items():
        with pytest.raises(InputError, match=f"data is not what this run would make(.|\n)*{told}"):
            opened(config("random", change), folder)
        assert [file.name for file in folder.iterdir()] == ["data"]
    # A data set that is named is meant, but then another one has no business in the folder.
    assert opened(config("random", "seed=1", f"data.path={folder / 'data'}"), folder)
    (folder / "data").rename(tmp_path / "data")
    (folder / "data").mkdir()
    with pytest.raises(InputError, match="not empty and not a run folder"):
        opened(config("random", f"data.path={tmp_path / 'data'}"), folder)
    (folder / "data").rmdir()
    (folder / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match="not empty and not a run folder"):
        opened(config("random"), folder)


def test_policies_that_were_trained_beforehand_are_those_of_the_run(mixed, tmp_path, opened):
    policy = data.read_info(mixed / "data").behaviour[1].policy.removesuffix(":left")
    mixture = f"mixture:random=1,{policy}:left~0.5=2,ppo:early=1,ppo=1"
    os.symlink(mixed / "data", tmp_path / "data")
    assert opened(config(mixture), tmp_path)
    with pytest.raises(InputError, match="  ppo.hidden: 16 -> 32"):
        opened(config(mixture, "ppo.hidden=32"), tmp_path)
    (tmp_path / "data").unlink()
    about = config("ppo").model_dump(mode="json")
    del about["env"]["workers"]  # where a world is played is no part of what was learned
    described = {"env": about["env"], "ppo": about["ppo"]}
    (tmp_path / "behaviour").mkdir()
    (tmp_path / "behaviour/ppo.json").write_text(json.dumps(described | {"seed": 0}))
    (tmp_path / "ppo").mkdir()
    (tmp_path / "ppo/results.json").write_text(json.dumps(described))
    assert opened(config("ppo"), tmp_path)
    with pytest.raises(InputError, match="PPO policies of another environment, seed or setting"):
        opened(config("ppo", "seed=1"), tmp_path)
    with pytest.raises(InputError, match=r"ppo is not what this run would make(.|\n)*env: "):
        opened(config("ppo", "env.id=Breakout-MinAtar", "tokenizer.patch=[5, 5]"), tmp_path)


def test_an_online_run_leaves_its_results(tmp_path):
    behaviour.baseline(config("random"), "ppo", tmp_path / "out")
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["steps"] == 2048 and results["returns"][0]["episodes"] == 16
    assert (tmp_path / "out/seed0/late").is_dir()


@pytest.mark.parametrize("place", ["file/out", "link"])
def test_where_no_results_can_be_written_none_are_computed(place, tmp_path, monkeypatch):
    monkeypatch.setattr(behaviour, "train", lambda *_: pytest.fail("trained"))
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match=f"{place} (exists|cannot be made)"):
        behaviour.baseline(config("random"), "ppo", tmp_path / place)
    settings = config("ppo")
    with pytest.raises(InputError, match=f"{place} (exists|cannot be made)"):
        behaviour.collect(settings, tmp_path / "data", tmp_path / place)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "link"]


def test_a_training_that_is_stopped_leaves_nothing(tmp_path, monkeypatch):
    def stop(*_):
        assert len(list(tmp_path.iterdir())) == 1  # a hidden folder, which will be found to be writable
        raise KeyboardInterrupt

    monkeypatch.setattr(behaviour, "train", stop)
    with pytest.raises(KeyboardInterrupt):
        behaviour.baseline(config("random"), "ppo", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_weak_and_mixed_are_mixtures_of_the_same_kind(tmp_path):
    """`weak` has no late player, `mixed` does; a data set tells both as a mixture, part by part."""
    weak, mixed = (load("breakout", overrides=[f"data.policy={name}"]).data.behaviours for name in ("weak", "mixed"))
    assert {part.policy for part in weak} == {"random", "ppo:early", "ppo:middle"}
    assert {part.policy for part in mixed} == {"random", "ppo:early", "ppo:middle", "ppo"}
    with pytest.raises(InputError, match="whose policies are fixed"):
        load("breakout", overrides=["data.mixture=[{policy: random}]"])
    with pytest.raises(InputError, match="cannot hold a mixture"):
        load("tiny", overrides=["data.policy=mixture", "data.mixture=[{policy: weak}]"])


def test_a_task_has_its_share_however_few_play_it():
    parts = [{"policy": "random"}, {"policy": "ppo", "share": 3, "tasks": ["point"]}]
    words = [f"data.mixture={json.dumps(parts)}", "data.episodes=60"]
    plan = behaviour._plan(load("toy3", overrides=words))
    played = [(part.task, part.behaviour.policy, part.episodes) for part in plan]
    assert played == [(0, "random", 20), (1, "random", 5), (1, "ppo", 15), (2, "random", 20)]
    words[0] = words[0].replace('"random"', '"random", "tasks": ["pendulum", "point"]')
    with pytest.raises(InputError, match="no policy of it plays the task reacher"):
        behaviour.check(load("toy3", overrides=words))


def test_sticky_data_tells_so_and_is_not_taken_for_plain_data(tmp_path):
    sticky = config("random", "env.sticky_actions=0.25")
    run.collect(sticky, tmp_path / "data")
    assert data.read_info(tmp_path / "data").environment == {**config("random").env.described, "sticky_actions": 0.25}
    behaviour.refuse_other_data(sticky, tmp_path / "data", "")
    with pytest.raises(InputError, match="sticky_actions: 0.25 -> 0.0"):
        behaviour.refuse_other_data(config("random"), tmp_path / "data", "")


class Asking(envs.CounterEnvironment):
    """Asks for its frame 2, then for its frame 4, and goes on to frame 5."""

    def __init__(self, task: str = "both"):
        super().__init__(6, 2)

    prompts = ("two", "four")

    def prompt(self, state):
        return (state.index >= 2).astype(jnp.int32)

    def _time_step(self, index, action):
        step = super()._time_step(index, action)
        return dataclasses.replace(step, reward=((index == 2) | (index == 4)).astype(jnp.float32))


def test_what_is_collected_is_cut_into_the_tasks_that_were_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(envs.registry.ENVIRONMENTS, "Asking", Asking)
    asked = config("random", "env.id=Asking", "env.kwargs={}", "data.prompts=true", "data.episodes=10")
    folder = RunFolder(tmp_path)
    info = behaviour.collect(asked, folder.data, tmp_path / "behaviour")
    assert behaviour.check(asked).names == info.spec.names == ("two", "four")
    whole = data.read_info(tmp_path / "data-whole")
    assert (whole.num_episodes, info.num_episodes, len(info.held_out)) == (10, 30, 3 * len(whole.held_out))
    assert {"data", "data-whole"} <= {*behaviour.kept(asked, folder)}
    folder.data.rename(tmp_path / "before")  # the rest of the work goes on from what was played
    played = (tmp_path / "data-whole/dataset.json").stat().st_mtime_ns
    assert behaviour.collect(asked, folder.data, tmp_path / "behaviour").fingerprint == info.fingerprint
    assert (tmp_path / "data-whole/dataset.json").stat().st_mtime_ns == played
    other = override(asked, ["data.episodes=11"])
    with pytest.raises(InputError, match="data.episodes: 10 -> 11"):
        behaviour.kept(other, folder)
    with pytest.raises(InputError, match="data.episodes: 10 -> 11"):
        behaviour.collect(other, folder.data, tmp_path / "behaviour")
    with pytest.raises(InputError, match="asks for no tasks in turn"):
        behaviour.check(config("random", "data.prompts=true"))
