"""Who plays the episodes of a data set: names to policies, trained where an agent is named, and what came of it."""

import json
import math
import os
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax.random as jr
import numpy as np

from dreamer4 import data, envs
from dreamer4.baselines import ONLINE, PLAYERS, STAGES, TrainingRun, is_policy, load_policy, save_policy
from dreamer4.config import BehaviourConfig, Config, TaskConfig
from dreamer4.data import AbstractPolicy, Behaviour, DatasetInfo, Episode, EpsilonPolicy, as_task
from dreamer4.dreamer import Dreamer, find_checkpoint, read_description
from dreamer4.envs import AbstractEnvironment
from dreamer4.errors import InputError, nearest
from dreamer4.evaluation import DreamerPolicy, play, summarise
from dreamer4.files import new_folder, read_bytes
from dreamer4.reporting.data_page import data_page
from dreamer4.reporting.page import write_page
from dreamer4.run import stopping
from dreamer4.run.folder import RunFolder, cloned_head
from dreamer4.run.own_policy import policy_from_file
from dreamer4.run.reporter import SILENT, Reporter
from dreamer4.training import stream
from dreamer4.types import DataSpec


# Beside the data set in the folder of a run: the PPO policies that made it; those of others have their name behind it.
# `baseline NAME` writes to NAME.
BEHAVIOUR = "behaviour"


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
        agents: folder of the policies of agents, trained there if one is named and the folder does not exist; of
            several tasks each has a numbered folder in it.
        report: is told how it goes.

    Raises:
        InputError: if a policy is not what its name says, before any of them plays; or if the environment fails. What
            was collected before lies beside `out` then.
    """
    if config.data.prompts:
        own, whole = _whole(config, out)
        if whole.exists():
            refuse_other_data(own, whole, f"Remove it, or choose another folder than {out}.")
        else:
            collect(own, whole, agents, report)
        info = data.cut_by_prompt(whole, out, check(config).tasks)
        write_page(out / data.SUMMARY, data_page(info))
        return info
    plan, spec, tasks = _plan(config), check(config), config.played
    for task, one in enumerate(_singles(config)):
        for kind in _kinds(part for part in plan if part.task == task):
            _train(one, kind, _home(agents, kind, config, task), report)
    players = [_player(part.behaviour.policy, tasks[part.task], spec, agents, config) for part in plan]
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
    plan = _plan(config)
    spec = envs.spec_of(config.played)
    for part in plan:
        if (agent := _agent(part.behaviour.policy)) is None:
            if part.behaviour.policy != "random":
                _player(part.behaviour.policy, config.played[part.task], spec, Path(), config)
        else:
            ONLINE[agent.kind].check(envs.make(config.played[part.task].env))
    if not config.data.prompts:
        return spec
    if config.tasks:
        raise InputError("data.prompts: got tasks too, expected one environment that asks for tasks itself.")
    asked = envs.prompted(config.env)
    return DataSpec(spec.frame_shape, spec.action, len(asked), asked)


def _whole(config: Config, out: Path) -> tuple[Config, Path]:
    """Returns the configuration of the episodes that are cut into a data set, and where they lie."""
    uncut = config.data.model_copy(update={"prompts": False})
    return config.model_copy(update={"data": uncut}), out.with_name(f"{out.name}-whole")


def _singles(config: Config) -> list[Config]:
    """Returns the configuration as each of its tasks alone would have it."""
    return [config.model_copy(update={"env": task.env, "tasks": ()}) for task in config.played]


def _home(agents: Path, kind: str, config: Config, task: int) -> Path:
    home = agents if kind == "ppo" else agents.with_name(f"{agents.name}-{kind}")
    return home / str(task) if config.tasks else home


def kept(config: Config, run: RunFolder) -> tuple[str, ...]:
    """Returns the names of what `collect` and `baseline` left in the folder of a run that is yet to start.

    Raises:
        InputError: if the run would make another data set, or plays in another environment than the baseline did.
    """
    if run.is_run or not run.path.is_dir():
        return ()
    for kind in ONLINE:
        if not (run.path / kind).exists():
            continue
        env = _read(run.path / kind, "results.json", f"results of {kind.upper()}").get("env")
        unstuck = {"sticky_actions": 0.0}  # what is older tells none
        _refuse_unlike(
            run.path / kind,
            {"env": unstuck | dict(env or {})},
            {"env": config.env.model_dump(mode="json", exclude={"workers"})},
        )
    path = config.data.path
    if path is not None and Path(path).resolve() != run.data.resolve():
        return tuple(ONLINE)
    if path is None and run.data.exists():
        refuse_other_data(config, run.data, _ANOTHER_RUN)
    homes = {kind: _home(run.path / BEHAVIOUR, kind, config.model_copy(update={"tasks": ()}), 0) for kind in ONLINE}
    for kind, home in homes.items():
        if path is None and not run.data.exists() and home.exists():
            for task, one in enumerate(_singles(config)):
                _check_agents(one, kind, _home(run.path / BEHAVIOUR, kind, config, task))
    return (*ONLINE, run.data.name, _whole(config, run.data)[1].name, *(home.name for home in homes.values()))


def refuse_other_data(config: Config, folder: Path, advice: str) -> None:
    """Refuses a data set that a configuration would not collect, and advises what to do."""
    if config.data.prompts:
        config, folder = _whole(config, folder)
    _refuse_unlike(folder, _told(data.read_info(folder)), _wanted(config), advice)


def _wanted(config: Config) -> dict[str, Any]:
    """Returns what decides which data set a configuration collects, by key."""
    plan, episodes, where = _plan(config), config.data.episodes, config.described
    agents = {kind: getattr(config, kind).model_dump(mode="json") for kind in _kinds(plan)}
    return {
        "env.id": where["id"],
        "env.kwargs": where["kwargs"],
        "env.sticky_actions": where.get("sticky_actions", 0.0),
        "seed": config.seed,
        "data.episodes": episodes,
        "data.held_out": f"{data.held_out_episodes(episodes, config.data.held_out)} episodes",
        "data.policy": [[part.behaviour.policy, part.behaviour.epsilon, part.episodes] for part in plan],
        **{f"{kind}.{key}": value for kind, told in agents.items() for key, value in told.items()},
    }


def _told(info: DatasetInfo) -> dict[str, Any]:
    """Returns the same of a data set that was collected."""
    agents = {
        kind: part.about.get(kind, {}) for part in info.behaviour if (kind := part.policy.split(":")[0]) in ONLINE
    }
    return {
        "env.id": info.environment.get("id"),
        "env.kwargs": info.environment.get("kwargs"),
        "env.sticky_actions": info.environment.get("sticky_actions", 0.0),
        "seed": info.seed,
        "data.episodes": info.num_episodes,
        "data.held_out": f"{len(info.held_out)} episodes",
        "data.policy": [[part.policy, part.epsilon, part.episodes] for part in info.behaviour]
        or [[info.policy, 0.0, info.num_episodes]],  # the first version told no more
        **{f"{kind}.{key}": value for kind, told in agents.items() for key, value in told.items()},
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
    episodes, behaviours, each, shares = config.data.episodes, config.data.behaviours, [], []
    for number, task in enumerate(config.played):
        own = [part for part in behaviours if not part.tasks or task.name in part.tasks]
        if not own:
            raise InputError(f"data.mixture: no policy of it plays the task {task.name}. Add one, such as random.")
        # A task has its share however few play it.
        weight = sum(part.share for part in behaviours) / sum(part.share for part in own)
        each += [(number, part) for part in own]
        shares += [task.share * part.share * weight for part in own]
    ends = np.round(np.cumsum(shares) / np.sum(shares) * episodes).astype(int)
    counts = np.diff(ends, prepend=0).tolist()
    if min(counts) < 1:
        raise InputError(
            f"data.mixture: {episodes} episodes in shares {shares} leave a policy without any. Collect more episodes."
        )
    return [Part(task, part, count) for (task, part), count in zip(each, counts, strict=True)]


class _Agent(NamedTuple):
    """An agent that is trained to play, and the stage of its training."""

    kind: str
    stage: str


def _agent(name: str) -> _Agent | None:
    """Returns what a policy like `ppo` or `ppo:STAGE` names; None for another kind of policy."""
    kind, _, stage = name.partition(":")
    if kind not in ONLINE:
        return None
    stage = stage or "late"
    if stage not in STAGES:
        raise InputError(f"data.policy: got {name!r}, expected {kind} or {kind}:STAGE. {nearest(stage, STAGES)}")
    return _Agent(kind, stage)


def _kinds(plan: Iterable[Part]) -> list[str]:
    """Returns which agents play, each once."""
    return list(dict.fromkeys(agent.kind for part in plan if (agent := _agent(part.behaviour.policy))))


def _player(
    name: str, task: TaskConfig, spec: DataSpec, agents: Path, config: Config
) -> tuple[AbstractPolicy, AbstractEnvironment, dict[str, Any]]:
    """Returns the policy of a name, the environment of a task as the policy knows it, and where it comes from."""
    env = envs.make(task.env)
    if name == "random":
        return data.random_policy(env.spec), env, {}
    if name in PLAYERS:
        return PLAYERS[name](env), env, {}
    if (agent := _agent(name)) is not None:
        home = _home(agents, agent.kind, config, config.played.index(task))
        return _loaded(home / agent.stage, env, spec, task.name)
    if ".py:" in name:
        return policy_from_file(name, env), env, {}
    path = Path(name)
    if not os.path.exists(path):
        raise InputError(
            f"data.policy: got {name!r}, expected random, ppo, ppo:early, ppo:middle, sac, weak, mixed, mixture, "
            f"{', '.join(PLAYERS)}, FILE.py:NAME, or a checkpoint or run that exists."
        )
    return _loaded(path, env, spec, task.name)


def _loaded(
    path: Path, env: AbstractEnvironment, spec: DataSpec, name: str
) -> tuple[AbstractPolicy, AbstractEnvironment, dict[str, Any]]:
    if is_policy(path):
        policy, made_for, about = load_policy(path, env)
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


def _train(config: Config, kind: str, folder: Path, report: Reporter) -> None:
    """Trains the agents of a run into `folder`, unless they are there."""
    if not folder.exists():
        env = _world_of(config, kind)
        with new_folder(folder) as hidden:  # before the training, which would be lost where it cannot be made
            (run,) = train(config, kind, env, 1, report)
            _write(hidden, config, kind, env, run, config.seed)
    _check_agents(config, kind, folder)


def _world_of(config: Config, kind: str) -> AbstractEnvironment:
    """Returns the environment that an agent learns in, drawn if it sees."""
    return envs.make(config.env) if ONLINE[kind].sees else envs.blind(config.env)


def _check_agents(config: Config, kind: str, folder: Path) -> None:
    """Refuses agents that are not those of a run."""
    wanted, found = _facts(config, kind), _read(folder, f"{kind}.json", f"{kind.upper()} policies")
    if {key: found.get(key) for key in wanted} != wanted:
        raise InputError(
            f"{folder} holds {kind.upper()} policies of another environment, seed or setting. Remove it, or choose "
            "another folder."
        )


def _read(folder: Path, name: str, what: str) -> dict[str, Any]:
    try:
        found = json.loads(read_bytes(folder / name, limit=10**7))
        if not isinstance(found, dict):
            raise ValueError(f"{name} is no mapping")
    except (ValueError, RecursionError) as error:
        raise InputError(f"{folder} holds no {what} ({error}). Remove it, or choose another folder.") from None
    return found


def _facts(config: Config, kind: str) -> dict[str, Any]:
    """Returns what an agent depends on, as JSON values."""
    return {
        "env": config.env.model_dump(mode="json", exclude={"workers"}),
        kind: getattr(config, kind).model_dump(mode="json"),
        "seed": config.seed,
    }


def train(config: Config, kind: str, env: AbstractEnvironment, seeds: int, report: Reporter) -> list[TrainingRun]:
    """Trains an agent with the given number of seeds side by side, from the configuration's seed on."""
    online, settings = ONLINE[kind], getattr(config, kind)
    with report.progress(kind, total=online.steps_taken(settings)) as bar:

        def tell(done: int, returns: list[float]) -> None:
            known = ("-" if math.isnan(r) else f"{r:.2f}" for r in returns)  # unknown before an episode has ended
            bar.advance(done - bar.completed, "return " + "  ".join(known))

        keys = [stream(config.seed + i, "behaviour") for i in range(seeds)]
        return online.train(settings, env, keys=keys, progress=tell)


def _write(folder: Path, config: Config, kind: str, env: AbstractEnvironment, run: TrainingRun, seed: int) -> None:
    """Writes the stages of one seed and its learning curve."""
    facts = _facts(config, kind) | {"seed": seed}
    for stage in STAGES:
        index = run.index(stage)
        about = facts | {"stage": stage, "steps": run.steps[index]} | _known("return", run.returns[index])
        settings = getattr(config, kind)
        save_policy(folder / stage, run.policy(stage), kind=kind, config=settings, spec=env.spec, about=about)
    curve = [None if math.isnan(r) else round(r, 4) for r in run.returns]
    told = facts | {"steps": run.steps, "returns": curve}
    (folder / f"{kind}.json").write_text(json.dumps(told, indent=1) + "\n")


def _known(name: str, value: float) -> dict[str, float]:
    return {} if math.isnan(value) else {name: value}


def baseline(config: Config, kind: str, out: Path, report: Reporter = SILENT) -> list[dict[str, Any]]:
    """Trains an agent alone, plays it, and writes its stages, its learning curve and `results.json` to a new folder.

    Returns:
        What the policy of each training seed came to, one row each.
    """
    if os.path.lexists(out):
        raise InputError(f"{out} exists, and results are never overwritten. Choose another folder with --out.")
    env = _world_of(config, kind)
    stopping.note(f"Nothing was written to {out}.")
    rows = []
    with new_folder(out) as hidden:  # before the training, which would be lost where it cannot be made
        runs = train(config, kind, env, config.seeds, report)
        for i, run in enumerate(runs):
            seed = config.seed + i
            _write(hidden / f"seed{seed}", config, kind, env, run, seed)
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
        results = _facts(config, kind) | {"steps": runs[0].steps[-1], "returns": rows}
        del results["seed"]
        (hidden / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    return rows
