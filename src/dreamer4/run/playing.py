"""Playing the agents of a run in the real environments of their tasks."""

from collections.abc import Sequence

import numpy as np

from dreamer4 import data
from dreamer4.config import Config
from dreamer4.data import AbstractPolicy
from dreamer4.dreamer import Dreamer
from dreamer4.envs import AbstractEnvironment
from dreamer4.evaluation import Played, evaluate, play, summarise_seeds
from dreamer4.evaluation.statistics import Estimate, Rate, event_rates
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
    with report.progress(f"play {policy}", total=episodes, unit="episodes") as bar:
        return evaluate(
            agent,
            env,
            episodes=episodes,
            batch_size=min(config.evaluation.batch_size, episodes),
            mode=mode,
            policy=policy,
            temperature=config.evaluation.temperature,
            task=task,
            progress=lambda done, _: bar.advance(done - bar.completed),
            key=stream(seed, "evaluate"),
        )


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
