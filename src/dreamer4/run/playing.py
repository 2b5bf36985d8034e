"""Playing the agents of a run in the real environments of their tasks."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dreamer4 import checkpoint, data
from dreamer4.config import Config
from dreamer4.data import AbstractPolicy
from dreamer4.dreamer import Dreamer, find_checkpoint, read_description
from dreamer4.envs import AbstractEnvironment
from dreamer4.errors import InputError
from dreamer4.evaluation import PlanningPolicy, Played, acting, play, summarise_seeds
from dreamer4.evaluation.statistics import Estimate, Rate, event_rates
from dreamer4.run import sizes
from dreamer4.run.folder import cloned_head, steps_done
from dreamer4.run.reporter import SILENT, Reporter
from dreamer4.run.sizes import World
from dreamer4.training import stream


# By policy; of each task, of each training seed its episodes.
Found = dict[str, list[list[Played]]]


def play_agent(
    config: Config,
    agent: Dreamer,
    env: AbstractEnvironment,
    episodes: int,
    policy,
    mode,
    seed: int,
    report: Reporter,
    task: int | None = 0,
) -> Played:
    """Returns what an agent comes to in the real environment of a task.

    Args:
        config: of its run.
        agent: who plays.
        env: where.
        episodes: how many are played.
        policy: which of its heads chooses, `policy` or `prior`.
        mode: how: `sample` or `mode`.
        seed: of the episodes.
        report: is told how it goes.
        task: id of the task; None: as the environment asks.
    """
    how = {"mode": mode, "policy": policy, "temperature": config.evaluation.temperature, "task": task}
    return play_policy(config, acting(agent, env, **how), env, episodes, seed, report, policy)


def play_policy(
    config: Config,
    policy: AbstractPolicy,
    env: AbstractEnvironment,
    episodes: int,
    seed: int,
    report: Reporter = SILENT,
    name: str = "policy",
) -> Played:
    """Returns what a policy of any kind comes to in the episodes that an agent plays by the same seed."""
    with report.progress(f"play {name}", total=episodes, unit="episodes") as bar:
        return play(
            policy,
            env,
            episodes=episodes,
            batch_size=min(config.evaluation.batch_size, episodes),
            progress=lambda done, _: bar.advance(done - bar.completed),
            key=stream(seed, "evaluate"),
        )


def play_all(
    config: Config, agents: Sequence[Dreamer], worlds: Sequence[World], report: Reporter
) -> tuple[Found, Found]:
    """Returns what random play and an agent's two policies come to in each task's world, sampled and greedy."""
    count, seed = config.evaluation.episodes, config.seed

    def by_chance(env: AbstractEnvironment) -> list[Played]:
        return [play_policy(config, data.random_policy(env.spec), env, count, seed, report, "random")]

    def played(policy, mode) -> list[list[Played]]:
        how = (count, policy, mode, seed, report)
        return [[play_agent(config, agent, env, *how, task) for agent in agents] for _, task, env in worlds]

    names = {"cloned": "prior", "imagination": "policy"}
    sampled, greedy = ({name: played(head, mode) for name, head in names.items()} for mode in ("sample", "mode"))
    return {"random": [by_chance(world.env) for world in worlds], **sampled}, greedy


def over_all(tasks: Sequence[Sequence[Played]]) -> Estimate:
    """Returns the estimate of the return over the episodes of all tasks, of which each has as many."""
    return summarise_seeds([np.concatenate([one.returns for one in each]) for each in zip(*tasks, strict=True)])


def rates(env: AbstractEnvironment, seeds: Sequence[Played]) -> dict[str, Rate]:
    """Returns how often each event of an environment happened, in the episodes of all training seeds together."""
    return event_rates(env.events, np.concatenate([played.happened for played in seeds]))


def play_run(
    path: Path,
    *,
    episodes: int | None = None,
    seed: int = 0,
    plan: int | None = None,
    task: str | int | None = None,
    report: Reporter = SILENT,
) -> tuple[dict[str, dict[tuple[str, str], list[Played]]], list[World]]:
    """Plays a trained agent in the real environment of each of its tasks, sampled and greedily.

    Args:
        path: a run or a checkpoint.
        episodes: how many of each task; None: as many as the configuration says.
        seed: of the episodes.
        plan: dreams before each action of one more way to act, planning; None: without it.
        task: name or number of the one task to play; None: all.
        report: is told how it goes.

    Returns:
        By task, by policy and way to act, the episodes of each training seed; and the worlds they were played in.

    Raises:
        InputError: if there is no policy yet, no such task or environment, or nothing to plan with.
    """
    step = find_checkpoint(path)
    cloned, phase, (config, spec) = cloned_head(step), checkpoint.read_meta(step).get("phase"), read_description(step)
    if task is None:
        played_in = sizes.worlds(config, spec)
    else:
        number = spec.find_task(task)
        played_in = [World(spec.names[number], number, sizes.environment(config, spec, number))]
    if plan is not None and phase != "imagination":
        raise InputError(
            f"--plan: {path} is of the {phase} phase, and planning needs the value head, which the imagination phase "
            "trains. Train it, or leave --plan out."
        )
    if plan is not None and played_in[0].task is None:
        raise InputError(
            f"--plan: {played_in[0].name} asks for its tasks in turn, and a plan is for one. Name it by --task."
        )
    agents = [Dreamer.load(path, member=i) for i in range(config.seeds)]
    count, settings = episodes or config.evaluation.episodes, config.imagination
    if cloned == "policy":
        report.say(f"agent phase: step {steps_done(step)} of {config.train.agent.steps}; its policy is cloned so far")
    heads = [(cloned, "cloned policy"), *([("policy", settings.result)] if phase == "imagination" else [])]
    found = {}
    for name, number, env in played_in:
        rows = found[name] = {
            (label, mode): [
                play_agent(config, agent, env, count, policy, mode, seed, report, number) for agent in agents
            ]
            for policy, label in heads
            for mode in ("sample", "mode")
        }
        if plan is not None:
            planners = [PlanningPolicy(a, plan, settings.horizon, settings.discount, number or 0) for a in agents]
            rows[settings.result, f"plan {plan} x {settings.horizon}"] = [
                play_policy(config, planner, env, count, seed, report, "planning") for planner in planners
            ]
    return found, played_in
