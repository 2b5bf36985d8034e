"""What a data set allows without a world model: every offline baseline trained on it and played by one rule."""

import dataclasses
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dreamer4 import data
from dreamer4.baselines import Offline, OfflineData, check_baseline, suited, train_offline, with_entropy
from dreamer4.config import Config
from dreamer4.data import AbstractPolicy, DatasetInfo
from dreamer4.envs import AbstractEnvironment
from dreamer4.errors import InputError
from dreamer4.evaluation import summarise
from dreamer4.files import check_place
from dreamer4.run import facts, sizes, stopping
from dreamer4.run.playing import play_policy
from dreamer4.run.reporter import SILENT, Reporter
from dreamer4.training import stream
from dreamer4.types import DataSpec


def offline(
    config: Config,
    path: Path,
    out: Path,
    names: Sequence[str] = (),
    *,
    entropy: float | None = None,
    report: Reporter = SILENT,
) -> list[dict[str, Any]]:
    """Trains baselines on a data set, plays each by samples and greedily, and writes what came out as JSON.

    Data of several tasks have baselines of each, from its own episodes.

    Args:
        config: its environment, its seeds, and the settings `offline` and `evaluation`.
        path: the data set.
        out: JSON to write, a new file.
        names: of `OFFLINE`; none means all that suit the data.
        entropy: nats; adds the clone at the temperature that gives it this mean entropy.
        report: is told how it goes.

    Returns:
        The rows of the file, one for each baseline of each task.

    Raises:
        InputError: if the file exists, a baseline is unknown or not for such actions, or the environment is another.
    """
    if os.path.lexists(out):
        raise InputError(f"{out} exists, and results are never overwritten. Choose another file with --out.")
    check_place(out)
    info = data.read_info(path)
    worlds = sizes.worlds(config, info.spec)
    every = episodes_of(path, info)
    parts = [every.of_task(world.task) for world in worlds]
    for name in names:
        for part in parts:
            check_baseline(name, part.spec)
    stopping.note(f"Nothing was written to {out}.")
    rows = []
    for world, part in zip(worlds, parts, strict=True):
        of = {"task": world.name} if len(worlds) > 1 else {}
        for name in names or suited(part.spec):
            began = time.monotonic()
            trained = [train(config, name, part, config.seed + i, report) for i in range(config.seeds)]
            minutes = (time.monotonic() - began) / 60 / config.seeds
            rows.append(of | _row(config, world.env, part.spec, name, trained, minutes))
            if entropy is not None and name == "clone":
                sharp = [with_entropy(one, part, entropy) for one in trained]
                rows.append(of | _row(config, world.env, part.spec, f"{name}, tempered", sharp, minutes))
    told = {
        "env": config.env.model_dump(mode="json", exclude={"workers"}),
        "data": info.fingerprint,
        "settings": config.offline.model_dump(mode="json"),
        "episodes": config.evaluation.episodes,
        "seeds": [config.seed + i for i in range(config.seeds)],
        "commit": facts.source_commit(),
        "device": facts.device(),
        "baselines": rows,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(told, indent=1) + "\n")
    return rows


def episodes_of(path: Path, info: DatasetInfo) -> OfflineData:
    """Returns the episodes of a data set as the baselines take them."""
    return OfflineData(data.read_episodes(path, "train"), data.read_episodes(path, "held_out"), info.spec)


def train(config: Config, name: str, episodes: OfflineData, seed: int, report: Reporter) -> Offline:
    """Trains one baseline from one seed."""
    with report.progress(name, total=config.offline.max_steps) as bar:

        def tell(done: int, judged: float | None) -> None:
            # Values and the policy after them are counted anew.
            bar.advance(max(done - bar.completed, 0), "" if judged is None else f"held-out {judged:.4f}")

        return train_offline(name, episodes, config.offline, progress=tell, key=stream(seed, "offline"))


def acting(trained: Offline, env: AbstractEnvironment, spec: DataSpec, mode: str) -> AbstractPolicy:
    """Returns the policy of a baseline as it acts; it is told its task where the environment asks for those of data."""
    asked = {"prompt": env.prompt} if spec.num_tasks > 1 and env.prompts == spec.names else {}
    return dataclasses.replace(trained.policy, mode=mode, **asked)


def _row(
    config: Config, env: AbstractEnvironment, spec: DataSpec, name: str, trained: list[Offline], minutes: float
) -> dict[str, Any]:
    def returns(one: Offline, mode: str) -> dict[str, Any]:
        # By the starts that every other policy is judged by.
        played = play_policy(config, acting(one, env, spec, mode), env, config.evaluation.episodes, seed=0)
        return summarise(played.returns).model_dump(mode="json", exclude_defaults=True)

    modes = {"sampled": "sample", "greedy": "mode"}
    return {
        "name": name,
        **{how: [returns(one, mode) for one in trained] for how, mode in modes.items()},
        "steps": [one.steps for one in trained],
        "minutes": round(minutes, 2),
        "episodes": trained[0].episodes,
        "held_out": [one.held_out for one in trained],
        "note": trained[0].note,
    }
