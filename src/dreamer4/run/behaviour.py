"""Who plays the episodes of a data set: names to policies, PPO trained where one is named, and what came of it."""

import importlib.util
import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import PRNGKeyArray

from dreamer4 import data, envs
from dreamer4.baselines import STAGES, PPORun, is_policy, load_policy, save_policy, steps_taken, train_ppo
from dreamer4.config import Config
from dreamer4.data import AbstractPolicy, Behaviour, DatasetInfo, Episode, EpsilonPolicy
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


def collect(
    config: Config, env: AbstractEnvironment, out: Path, agents: Path, report: Reporter = SILENT
) -> DatasetInfo:
    """Plays the episodes that a configuration describes and writes them to a new data set.

    Args:
        config: the configuration of the run.
        env: its environment.
        out: the data set; it must not exist.
        agents: folder of the PPO policies, trained there if one is named and the folder does not exist.
        report: is told how it goes.

    Raises:
        InputError: if a policy is not what its name says, before any of them plays; or if the environment fails. What
            was collected before lies beside `out` then.
    """
    parts, counts = config.data.behaviours, _counts(config)
    check(config, env)
    if any(_stage(part.policy) for part in parts):
        _ppo(config, env, agents, report)
    players = [_policy(part.policy, env, agents) for part in parts]
    told = [
        Behaviour(policy=part.policy, epsilon=part.epsilon, episodes=count, about=about)
        for part, count, (_, about) in zip(parts, counts, players, strict=True)
    ]

    failed: list[data.UnfinishedError] = []

    def episodes() -> Iterator[Episode]:
        with report.progress("collect", total=config.data.episodes, unit="episodes") as bar:
            for i, (part, count, (policy, _)) in enumerate(zip(parts, counts, players, strict=True)):
                if part.epsilon:
                    policy = EpsilonPolicy(policy, part.epsilon, env.spec.action)
                before, key = bar.completed, stream(config.seed, "collect")
                try:
                    yield from data.collect(
                        env,
                        policy,
                        episodes=count,
                        # The first policy has the stream itself, as a single one always had.
                        key=jr.fold_in(key, i) if i else key,
                        progress=lambda done, _, before=before: bar.advance(before + done - bar.completed),
                    )
                except data.UnfinishedError as error:
                    if not before and not error.episodes:
                        raise
                    failed.append(error)
                    told[i:] = [told[i].model_copy(update={"episodes": n})] if (n := len(error.episodes)) else []
                    yield from error.episodes
                    return

    info = data.write_dataset(
        out,
        episodes(),
        spec=env.spec,
        environment=config.env.described,
        policy=config.data.policy if len(parts) == 1 else "mixture",
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


def check(config: Config, env: AbstractEnvironment) -> None:
    """Refuses a policy that is not there, or not for this environment, before any work is done."""
    _counts(config)
    for part in config.data.behaviours:
        if part.policy != "random" and _stage(part.policy) is None:
            _policy(part.policy, env, Path())


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
        _refuse_unlike(run.path / PPO, {"env": unstuck | dict(env or {})}, {"env": config.env.model_dump(mode="json")})
    path = config.data.path
    if path is not None and Path(path).resolve() != run.data.resolve():
        return (PPO,)
    if path is None and run.data.exists():
        refuse_other_data(config, run.data, _ANOTHER_RUN)
    elif path is None and (run.path / BEHAVIOUR).exists():
        _check_ppo(config, run.path / BEHAVIOUR)
    return (PPO, run.data.name, BEHAVIOUR)


def refuse_other_data(config: Config, folder: Path, advice: str) -> None:
    """Refuses a data set that a configuration would not collect, and advises what to do."""
    _refuse_unlike(folder, _told(data.read_info(folder)), _wanted(config), advice)


def _wanted(config: Config) -> dict[str, Any]:
    """Returns what decides which data set a configuration collects, by key."""
    parts, counts, episodes = config.data.behaviours, _counts(config), config.data.episodes
    ppo = config.ppo.model_dump(mode="json") if any(_stage(part.policy) for part in parts) else {}
    return {
        "env.id": config.env.id,
        "env.kwargs": config.env.kwargs,
        "env.sticky_actions": config.env.sticky_actions,
        "seed": config.seed,
        "data.episodes": episodes,
        "data.held_out": f"{data.held_out_episodes(episodes, config.data.held_out)} episodes",
        "data.policy": [[part.policy, part.epsilon, count] for part, count in zip(parts, counts, strict=True)],
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


def _counts(config: Config) -> list[int]:
    """Returns the episodes of each policy: all of them divided by shares, without losing one to rounding."""
    episodes, shares = config.data.episodes, [part.share for part in config.data.behaviours]
    ends = np.round(np.cumsum(shares) / np.sum(shares) * episodes).astype(int)
    counts = np.diff(ends, prepend=0).tolist()
    if min(counts) < 1:
        raise InputError(
            f"data.mixture: {episodes} episodes in shares {shares} leave a policy without any. Collect more episodes."
        )
    return counts


def _stage(name: str) -> str | None:
    """Returns the stage of training that `ppo` or `ppo:STAGE` names; None for another kind of policy."""
    kind, _, stage = name.partition(":")
    if kind != "ppo":
        return None
    stage = stage or "late"
    if stage not in STAGES:
        raise InputError(f"data.policy: got {name!r}, expected ppo or ppo:STAGE. {nearest(stage, STAGES)}")
    return stage


def _policy(name: str, env: AbstractEnvironment, agents: Path) -> tuple[AbstractPolicy, dict[str, Any]]:
    """Returns the policy of a name, and where it comes from."""
    if name == "random":
        return data.random_policy(env.spec), {}
    if (stage := _stage(name)) is not None:
        return _loaded(agents / stage, env)
    if ".py:" in name:
        return _from_file(name, env), {}
    path = Path(name)
    if not os.path.exists(path):
        raise InputError(
            f"data.policy: got {name!r}, expected random, ppo, ppo:early, ppo:middle, weak, mixed, mixture, "
            "FILE.py:NAME, or a checkpoint or run that exists."
        )
    return _loaded(path, env)


def _loaded(path: Path, env: AbstractEnvironment) -> tuple[AbstractPolicy, dict[str, Any]]:
    if is_policy(path):
        policy, spec, about = load_policy(path)
        _refuse_other_world(path, spec, env)
    else:
        step = find_checkpoint(path)
        cloned_head(step)  # refuses an agent without a policy
        _, spec = read_description(step)
        _refuse_other_world(path, spec, env)  # before the weights are read
        policy, about = DreamerPolicy(Dreamer.load(step)), {"checkpoint": str(step)}
    return policy, about


def _refuse_other_world(path: Path, spec: DataSpec, env: AbstractEnvironment) -> None:
    # A policy chooses by what it sees; how many tasks its data had is nothing that an environment says.
    if (spec.frame_shape, spec.action) != (env.spec.frame_shape, env.spec.action):
        raise InputError(
            f"data.policy: {path} is made for {spec}, the environment is {env.spec}. "
            "Choose a policy of this environment."
        )


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
        "env": config.env.model_dump(mode="json"),
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
            "env": config.env.model_dump(mode="json"),
            "ppo": config.ppo.model_dump(mode="json"),
            "steps": runs[0].steps[-1],
            "returns": rows,
        }
        (hidden / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    return rows
