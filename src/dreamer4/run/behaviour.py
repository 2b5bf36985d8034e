"""Who plays the episodes of a data set: names to policies, PPO trained where one is named, and what came of it."""

import importlib.util
import json
import math
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import PRNGKeyArray

from dreamer4 import data, envs
from dreamer4.baselines import PLAYERS, STAGES, PPORun, is_policy, load_policy, save_policy, steps_taken, train_ppo
from dreamer4.config import BehaviourConfig, Config, TaskConfig
from dreamer4.data import AbstractPolicy, Behaviour, DatasetInfo, Episode, EpsilonPolicy, as_task
from dreamer4.dreamer import Dreamer, find_checkpoint, read_description
from dreamer4.envs import AbstractEnvironment
from dreamer4.errors import InputError, nearest, told
from dreamer4.evaluation import DreamerPolicy, play, summarise
from dreamer4.files import new_folder, read_bytes
from dreamer4.reporting.data_page import data_page
from dreamer4.reporting.page import write_page
from dreamer4.run import stopping
from dreamer4.run.folder import RunFolder, cloned_head
from dreamer4.run.reporter import SILENT, Reporter
from dreamer4.training import stream
from dreamer4.types import Action, DataSpec, TimeStep


# Beside the data set in the folder of a run: the PPO policies that made it, and where `baseline ppo` writes to.
BEHAVIOUR, PPO = "behaviour", "ppo"


class Part(NamedTuple):
    """A policy of one task, and how many of the episodes it plays."""

    task: int
    behaviour: BehaviourConfig
    episodes: int


def collect(config: Config, out: Path, agents: Path, report: Reporter = SILENT) -> DatasetInfo:
    """Plays the episodes that a configuration describes and writes them to a new data set.

    Args:
        config: the configuration of the run.
        out: the data set; it must not exist.
        agents: folder of the PPO policies, trained there if one is named and the folder does not exist; of several
            tasks each has a numbered folder in it.
        report: is told how it goes.

    Raises:
        InputError: if a policy is not what its name says, before any of them plays; or if the environment fails. What
            was collected before lies beside `out` then.
    """
    plan, spec, tasks = _plan(config), check(config), config.played
    for task, one in enumerate(_singles(config)):
        if any(part.task == task and _stage(part.behaviour.policy) for part in plan):
            _ppo(one, envs.make(one.env), _home(agents, config, task), report)
    players = [
        _player(part.behaviour.policy, tasks[part.task], spec, _home(agents, config, part.task)) for part in plan
    ]
    told = [
        Behaviour(
            policy=part.behaviour.policy,
            epsilon=part.behaviour.epsilon,
            episodes=part.episodes,
            about=about | ({"task": tasks[part.task].name} if config.tasks else {}),
        )
        for part, (_, _, about) in zip(plan, players, strict=True)
    ]

    failed: list[data.UnfinishedError] = []

    def episodes() -> Iterator[Episode]:
        with report.progress("collect", total=config.data.episodes, unit="episodes") as bar:
            for i, (part, (policy, env, _)) in enumerate(zip(plan, players, strict=True)):
                if part.behaviour.epsilon:
                    policy = EpsilonPolicy(policy, part.behaviour.epsilon, env.spec.action)
                before, key = bar.completed, stream(config.seed, "collect")
                shown = partial(as_task, own=env.spec.action, spec=spec, task=part.task)
                try:
                    played = data.collect(
                        env,
                        policy,
                        episodes=part.episodes,
                        # The first policy has the stream itself, as a single one always had.
                        key=jr.fold_in(key, i) if i else key,
                        progress=lambda done, _, before=before: bar.advance(before + done - bar.completed),
                    )
                    yield from map(shown, played)
                except data.UnfinishedError as error:
                    if not before and not error.episodes:
                        raise
                    failed.append(error)
                    told[i:] = [told[i].model_copy(update={"episodes": n})] if (n := len(error.episodes)) else []
                    yield from map(shown, error.episodes)
                    return

    info = data.write_dataset(
        out,
        episodes(),
        spec=spec,
        environment=config.described,
        policy=config.data.policy if len(config.data.behaviours) == 1 else "mixture",
        behaviour=told,
        seed=config.seed,
        held_out=config.data.held_out,
    )
    write_page(out / data.SUMMARY, data_page(info))
    if failed:  # under the name that was asked for it would be taken for the whole
        names = (out.with_name(f"{out.name}-kept{n}") for n in ("", *range(2, 1_000)))
        kept = out.rename(next(name for name in names if not os.path.lexists(name)))
        raise InputError(f"{failed[0]} The {info.num_episodes} whole episodes collected before lie in {kept}.")
    report.collected(info)
    return info


def check(config: Config) -> DataSpec:
    """Refuses a policy that is not there, or not for its environment, before any work is done.

    Returns what the data will look like.
    """
    _plan(config)
    spec = envs.spec_of(config.played)
    for part in config.data.behaviours:
        if part.policy != "random" and _stage(part.policy) is None:
            for task in config.played:
                _player(part.policy, task, spec, Path())
    return spec


def _singles(config: Config) -> list[Config]:
    """Returns the configuration as each of its tasks alone would have it."""
    return [config.model_copy(update={"env": task.env, "tasks": ()}) for task in config.played]


def _home(agents: Path, config: Config, task: int) -> Path:
    return agents / str(task) if config.tasks else agents


def kept(config: Config, run: RunFolder) -> tuple[str, ...]:
    """Returns the names of what `collect` and `baseline ppo` left in the folder of a run that is yet to start.

    Raises:
        InputError: if the run would make another data set, or plays in another environment than PPO did.
    """
    if run.is_run or not run.path.is_dir():
        return ()
    if (run.path / PPO).exists():
        env = _read(run.path / PPO, "results.json", "results of PPO").get("env")
        unstuck = {"sticky_actions": 0.0}  # what is older tells none
        _refuse_unlike(
            run.path / PPO,
            {"env": unstuck | dict(env or {})},
            {"env": config.env.model_dump(mode="json", exclude={"workers"})},
        )
    path = config.data.path
    if path is not None and Path(path).resolve() != run.data.resolve():
        return (PPO,)
    if path is None and run.data.exists():
        refuse_other_data(config, run.data, _ANOTHER_RUN)
    elif path is None and (run.path / BEHAVIOUR).exists():
        for task, one in enumerate(_singles(config)):
            _check_ppo(one, _home(run.path / BEHAVIOUR, config, task))
    return (PPO, run.data.name, BEHAVIOUR)


def refuse_other_data(config: Config, folder: Path, advice: str) -> None:
    """Refuses a data set that a configuration would not collect, and advises what to do."""
    _refuse_unlike(folder, _told(data.read_info(folder)), _wanted(config), advice)


def _wanted(config: Config) -> dict[str, Any]:
    """Returns what decides which data set a configuration collects, by key."""
    plan, episodes, where = _plan(config), config.data.episodes, config.described
    ppo = config.ppo.model_dump(mode="json") if any(_stage(part.behaviour.policy) for part in plan) else {}
    return {
        "env.id": where["id"],
        "env.kwargs": where["kwargs"],
        "env.sticky_actions": where.get("sticky_actions", 0.0),
        "seed": config.seed,
        "data.episodes": episodes,
        "data.held_out": f"{data.held_out_episodes(episodes, config.data.held_out)} episodes",
        "data.policy": [[part.behaviour.policy, part.behaviour.epsilon, part.episodes] for part in plan],
        **{f"ppo.{key}": value for key, value in ppo.items()},
    }


def _told(info: DatasetInfo) -> dict[str, Any]:
    """Returns the same of a data set that was collected."""
    ppo = next((part.about.get("ppo", {}) for part in info.behaviour if part.policy.split(":")[0] == "ppo"), {})
    return {
        "env.id": info.environment.get("id"),
        "env.kwargs": info.environment.get("kwargs"),
        "env.sticky_actions": info.environment.get("sticky_actions", 0.0),
        "seed": info.seed,
        "data.episodes": info.num_episodes,
        "data.held_out": f"{len(info.held_out)} episodes",
        "data.policy": [[part.policy, part.epsilon, part.episodes] for part in info.behaviour]
        or [[info.policy, 0.0, info.num_episodes]],  # the first version told no more
        **{f"ppo.{key}": value for key, value in ppo.items()},
    }


# What to do about the folder of a run that holds what the run would not make.
_ANOTHER_RUN = "Choose another folder with --run, or remove it; a data set that is meant is named, --set data.path=DIR."


def _refuse_unlike(folder: Path, found: dict[str, Any], wanted: dict[str, Any], advice: str = _ANOTHER_RUN) -> None:
    unlike = [f"  {key}: {found.get(key)} -> {value}\n" for key, value in wanted.items() if found.get(key) != value]
    if unlike:
        raise InputError(
            f"{folder} is not what this run would make (the folder's -> yours):\n{''.join(unlike)}{advice}"
        )


def _plan(config: Config) -> list[Part]:
    """Returns who plays which task how often: all episodes divided by shares, without losing one to rounding."""
    each = [(task, part) for task in range(len(config.played)) for part in config.data.behaviours]
    episodes, shares = config.data.episodes, [config.played[task].share * part.share for task, part in each]
    ends = np.round(np.cumsum(shares) / np.sum(shares) * episodes).astype(int)
    counts = np.diff(ends, prepend=0).tolist()
    if min(counts) < 1:
        raise InputError(
            f"data.mixture: {episodes} episodes in shares {shares} leave a policy without any. Collect more episodes."
        )
    return [Part(task, part, count) for (task, part), count in zip(each, counts, strict=True)]


def _stage(name: str) -> str | None:
    """Returns the stage of training that `ppo` or `ppo:STAGE` names; None for another kind of policy."""
    kind, _, stage = name.partition(":")
    if kind != "ppo":
        return None
    stage = stage or "late"
    if stage not in STAGES:
        raise InputError(f"data.policy: got {name!r}, expected ppo or ppo:STAGE. {nearest(stage, STAGES)}")
    return stage


def _player(
    name: str, task: TaskConfig, spec: DataSpec, agents: Path
) -> tuple[AbstractPolicy, AbstractEnvironment, dict[str, Any]]:
    """Returns the policy of a name, the environment of a task as the policy knows it, and where it comes from."""
    env = envs.make(task.env)
    if name == "random":
        return data.random_policy(env.spec), env, {}
    if name in PLAYERS:
        return PLAYERS[name](env), env, {}
    if (stage := _stage(name)) is not None:
        return _loaded(agents / stage, env, spec, task.name)
    if ".py:" in name:
        return _from_file(name, env), env, {}
    path = Path(name)
    if not os.path.exists(path):
        raise InputError(
            f"data.policy: got {name!r}, expected random, ppo, ppo:early, ppo:middle, weak, mixed, mixture, "
            f"{', '.join(PLAYERS)}, FILE.py:NAME, or a checkpoint or run that exists."
        )
    return _loaded(path, env, spec, task.name)


def _loaded(
    path: Path, env: AbstractEnvironment, spec: DataSpec, name: str
) -> tuple[AbstractPolicy, AbstractEnvironment, dict[str, Any]]:
    if is_policy(path):
        policy, made_for, about = load_policy(path)
        return policy, _world(path, made_for, env, 0), about
    step = find_checkpoint(path)
    cloned_head(step)  # refuses an agent without a policy
    _, made_for = read_description(step)
    task = made_for.find_task(name) if max(spec.num_tasks, made_for.num_tasks) > 1 else 0
    played = _world(path, made_for, env, task)  # before the weights are read
    return DreamerPolicy(Dreamer.load(step), task=task), played, {"checkpoint": str(step)}


def _world(path: Path, made_for: DataSpec, env: AbstractEnvironment, task: int) -> AbstractEnvironment:
    """Returns an environment as a policy knows it."""
    played = envs.fitted(env, made_for, task)
    if played is None:
        raise InputError(
            f"data.policy: {path} is made for {made_for}, the environment is {env.spec}. "
            "Choose a policy of this environment."
        )
    return played


def _from_file(name: str, env: AbstractEnvironment) -> AbstractPolicy:
    """Imports the user's own file, as named on the command line, and asks its function for a policy."""
    file, _, function = name.rpartition(":")
    if not os.path.isfile(file):
        raise InputError(f"data.policy: got {name!r}, but there is no file {file}.")
    name_of_module = f"behaviour_policy:{os.path.abspath(file)}".replace(".", "_")  # of no package
    described = importlib.util.spec_from_file_location(name_of_module, file)
    if described is None or described.loader is None:
        raise InputError(f"data.policy: {file} cannot be imported. Give a Python file.")
    module = importlib.util.module_from_spec(described)
    # As import does: a dataclass whose annotations are text looks its module up there.
    sys.modules[described.name] = module
    try:
        described.loader.exec_module(module)
    except BaseException as error:
        sys.modules.pop(described.name, None)
        if not isinstance(error, Exception):
            raise
        raise InputError(f"data.policy: {file} cannot be imported: {told(error)}.") from error
    build = getattr(module, function, None)
    if not callable(build):
        known = [n for n in vars(module) if callable(getattr(module, n)) and not n.startswith("_")]
        raise InputError(f"data.policy: {file} has no function {function!r}. {nearest(function, known)}")
    try:
        policy = build(env.spec)
        if not isinstance(policy, AbstractPolicy):
            raise InputError(
                f"data.policy: {name} returned {type(policy).__name__}, expected a dreamer4.data.AbstractPolicy."
            )
        asked = eqx.filter_eval_shape(_ask, policy, env.spec, jr.key(0))  # plays nothing
    except InputError:
        raise
    except Exception as error:  # of whatever kind: it is code of others
        raise InputError(
            f"data.policy: {name} cannot act: {told(error)}. Expected a function that takes the DataSpec of an "
            "environment and returns an AbstractPolicy, which JAX compiles: it computes with jax.numpy."
        ) from error
    wanted, found = (jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", tree) for tree in asked)
    if jax.tree.flatten(wanted) != jax.tree.flatten(found):
        raise InputError(f"data.policy: {name} returns {found}, expected an action and a memory like {wanted}.")
    return policy


def _ask(policy: AbstractPolicy, spec: DataSpec, key: PRNGKeyArray) -> tuple[Any, Any]:
    """Returns an action of the environment and the memory of a policy, as they are to be and as it returns them."""
    action, no, memory = Action.null(spec.action), jnp.zeros((), bool), policy.init()
    seen = TimeStep(jnp.zeros(spec.frame_shape, jnp.uint8), jnp.zeros(()), ~no, no, no)
    return jax.tree.map(jnp.asarray, ((action, memory), policy(memory, seen, action, no, key=key)))


def _ppo(config: Config, env: AbstractEnvironment, folder: Path, report: Reporter) -> None:
    """Trains the PPO policies of a run into `folder`, unless they are there."""
    if not folder.exists():
        with new_folder(folder) as hidden:  # before the training, which would be lost where it cannot be made
            (run,) = train(config, env, 1, report)
            _write(hidden, config, env, run, config.seed)
    _check_ppo(config, folder)


def _check_ppo(config: Config, folder: Path) -> None:
    """Refuses PPO policies that are not those of a run."""
    wanted, found = _facts(config), _read(folder, "ppo.json", "PPO policies")
    if {key: found.get(key) for key in wanted} != wanted:
        raise InputError(
            f"{folder} holds PPO policies of another environment, seed or setting. Remove it, or choose another folder."
        )


def _read(folder: Path, name: str, what: str) -> dict[str, Any]:
    try:
        found = json.loads(read_bytes(folder / name, limit=10**7))
        if not isinstance(found, dict):
            raise ValueError(f"{name} is no mapping")
    except (ValueError, RecursionError) as error:
        raise InputError(f"{folder} holds no {what} ({error}). Remove it, or choose another folder.") from None
    return found


def _facts(config: Config) -> dict[str, Any]:
    """Returns what PPO policies depend on, as JSON values."""
    return {
        "env": config.env.model_dump(mode="json", exclude={"workers"}),
        "ppo": config.ppo.model_dump(mode="json"),
        "seed": config.seed,
    }


def train(config: Config, env: AbstractEnvironment, seeds: int, report: Reporter) -> list[PPORun]:
    """Trains PPO with the given number of seeds side by side, from the configuration's seed on."""
    with report.progress("ppo", total=steps_taken(config.ppo)) as bar:

        def tell(done: int, returns: list[float]) -> None:
            known = ("-" if math.isnan(r) else f"{r:.2f}" for r in returns)  # unknown before an episode has ended
            bar.advance(done - bar.completed, "return " + "  ".join(known))

        keys = [stream(config.seed + i, "behaviour") for i in range(seeds)]
        return train_ppo(config.ppo, env, keys=keys, progress=tell)


def _write(folder: Path, config: Config, env: AbstractEnvironment, run: PPORun, seed: int) -> None:
    """Writes the stages of one seed and its learning curve."""
    facts = _facts(config) | {"seed": seed}
    for stage in STAGES:
        index = run.index(stage)
        about = facts | {"stage": stage, "steps": run.steps[index]} | _known("return", run.returns[index])
        save_policy(folder / stage, run.policy(stage), config=config.ppo, spec=env.spec, about=about)
    curve = [None if math.isnan(r) else round(r, 4) for r in run.returns]
    told = facts | {"steps": run.steps, "returns": curve}
    (folder / "ppo.json").write_text(json.dumps(told, indent=1) + "\n")


def _known(name: str, value: float) -> dict[str, float]:
    return {} if math.isnan(value) else {name: value}


def ppo(config: Config, out: Path, report: Reporter = SILENT) -> list[dict[str, Any]]:
    """Trains PPO alone, plays it, and writes its stages, its learning curve and `results.json` to a new folder.

    Returns:
        What the policy of each training seed came to, one row each.
    """
    if os.path.lexists(out):
        raise InputError(f"{out} exists, and results are never overwritten. Choose another folder with --out.")
    env = envs.make(config.env)
    stopping.note(f"Nothing was written to {out}.")
    rows = []
    with new_folder(out) as hidden:  # before the training, which would be lost where it cannot be made
        runs = train(config, env, config.seeds, report)
        for i, run in enumerate(runs):
            seed = config.seed + i
            _write(hidden / f"seed{seed}", config, env, run, seed)
            played = play(
                run.policy(),
                env,
                episodes=config.evaluation.episodes,
                batch_size=min(config.evaluation.batch_size, config.evaluation.episodes),
                key=stream(config.seed, "evaluate"),
            )
            rows.append(
                {"seed": seed} | summarise(np.asarray(played.returns)).model_dump(mode="json", exclude_defaults=True)
            )
        results = {
            "env": config.env.model_dump(mode="json", exclude={"workers"}),
            "ppo": config.ppo.model_dump(mode="json"),
            "steps": runs[0].steps[-1],
            "returns": rows,
        }
        (hidden / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    return rows
