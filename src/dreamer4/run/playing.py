"""Playing the agents of a run in the real environments of their tasks."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from dreamer4 import data
from dreamer4.config import Config
from dreamer4.data import AbstractPolicy
from dreamer4.dreamer import Dreamer
from dreamer4.envs import AbstractEnvironment
from dreamer4.evaluation import evaluate, play, summarise_seeds
from dreamer4.evaluation.statistics import Estimate
from dreamer4.run.reporter import SILENT, Reporter
from dreamer4.training import stream


# By policy; of each task, of each training seed the returns of its episodes.
Found = dict[str, list[list[Float[np.ndarray, " N"]]]]


def play_agent(
    config: Config,
    agent: Dreamer,
    env: AbstractEnvironment,
    episodes: int,
    policy,
    mode,
    seed: int,
    report: Reporter,
    task: int = 0,
) -> np.ndarray:
    """Returns the returns of an agent in the real environment of a task.

    Args:
        config: of its run.
        agent: who plays.
        env: where.
        episodes: how many are played.
        policy: which of its heads chooses, `policy` or `prior`.
        mode: how: `sample` or `mode`.
        seed: of the episodes.
        report: is told how it goes.
        task: id of the task.
    """
    with report.progress(f"play {policy}", total=episodes, unit="episodes") as bar:
        played = evaluate(
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
    return np.asarray(played.returns)


def play_policy(
    config: Config,
    policy: AbstractPolicy,
    env: AbstractEnvironment,
    episodes: int,
    seed: int,
    report: Reporter = SILENT,
    name: str = "policy",
) -> np.ndarray:
    """Returns the returns of a policy of any kind, in the episodes that an agent plays by the same seed."""
    with report.progress(f"play {name}", total=episodes, unit="episodes") as bar:
        played = play(
            policy,
            env,
            episodes=episodes,
            batch_size=min(config.evaluation.batch_size, episodes),
            progress=lambda done, _: bar.advance(done - bar.completed),
            key=stream(seed, "evaluate"),
        )
    return np.asarray(played.returns)


def play_all(
    config: Config, agents: Sequence[Dreamer], worlds: Sequence[AbstractEnvironment], report: Reporter
) -> tuple[Found, Found]:
    """Returns what random play and an agent's two policies get in the environment of each task, sampled and greedy."""
    count, seed = config.evaluation.episodes, config.seed

    def by_chance(env: AbstractEnvironment) -> list[np.ndarray]:
        policy = data.random_policy(env.spec)
        played = data.collect(env, policy, episodes=count, key=stream(seed, "evaluate"))
        return [np.array([episode.total for episode in played])]

    def played(policy, mode) -> list[list[np.ndarray]]:
        how = (count, policy, mode, seed, report)
        return [[play_agent(config, agent, env, *how, task) for agent in agents] for task, env in enumerate(worlds)]

    names = {"cloned": "prior", "imagination": "policy"}
    sampled, greedy = ({name: played(head, mode) for name, head in names.items()} for mode in ("sample", "mode"))
    return {"random": [by_chance(env) for env in worlds], **sampled}, greedy


def over_all(returns: Sequence[Sequence[Float[np.ndarray, " N"]]]) -> Estimate:
    """Returns the estimate over the episodes of all tasks, of which each has as many."""
    return summarise_seeds([np.concatenate(each) for each in zip(*returns, strict=True)])
