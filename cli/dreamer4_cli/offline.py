"""`dreamer4 baseline offline`: every baseline without a world model on one data set, played by one rule."""

import dataclasses
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from dreamer4 import data, envs
from dreamer4.baselines import OFFLINE, Offline, OfflineData, train_offline, with_entropy
from dreamer4.config import Config
from dreamer4.envs import AbstractEnvironment
from dreamer4.errors import InputError, nearest
from dreamer4.evaluation import summarise
from dreamer4.files import check_place
from dreamer4.run import facts, stopping
from dreamer4.run.playing import play_policy
from dreamer4.training import stream
from dreamer4_cli.console import ProgressBar


console = Console()


def offline(config: Config, path: Path, out: Path, names: Sequence[str], *, entropy: float | None) -> None:
    """Trains baselines on a data set, plays each by samples and greedily, prints the table and writes it as JSON.

    Args:
        config: its environment, its seeds, and the settings `offline` and `evaluation`.
        path: the data set.
        out: JSON to write, a new file.
        names: of `OFFLINE`; none means all.
        entropy: nats; adds the clone at the temperature that gives it this mean entropy.
    """
    if os.path.lexists(out):
        raise InputError(f"{out} exists, and results are never overwritten. Choose another file with --out.")
    check_place(out)
    if unknown := [name for name in names if name not in OFFLINE]:
        raise InputError(f"baseline offline: unknown {unknown[0]!r}. {nearest(unknown[0], OFFLINE)}")
    info, env = data.read_info(path), envs.make(config.env)
    if env.spec.looks != info.spec.looks:
        raise InputError(f"env.id: {config.env.id} looks like {env.spec}, but {path} like {info.spec}. Name its own.")
    episodes = OfflineData(data.read_episodes(path, "train"), data.read_episodes(path, "held_out"), info.spec)
    stopping.note(f"Nothing was written to {out}.")
    rows = []
    for name in names or OFFLINE:
        rows += _rows(config, env, episodes, name, entropy if name == "clone" else None)
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
    table = Table("baseline", "sampled", "greedy", "steps", "minutes", "episodes", "held-out nats", "")
    for row in rows:
        cells = [f"{np.mean([r['mean'] for r in row[mode]]):.2f}" for mode in ("sampled", "greedy")]
        steps = "  ".join(f"{best:,} of {taken:,}" for best, taken in row["steps"])
        nats = "  ".join("-" if x is None else f"{x:.3f}" for x in row["held_out"])
        table.add_row(row["name"], *cells, steps, f"{row['minutes']:.1f}", f"{row['episodes']:,}", nats, row["note"])
    console.print(table)
    console.print(f"results: {out}", markup=False, highlight=False, soft_wrap=True)


def _rows(
    config: Config, env: AbstractEnvironment, episodes: OfflineData, name: str, entropy: float | None
) -> list[dict[str, Any]]:
    began, trained = time.monotonic(), []
    for i in range(config.seeds):
        with ProgressBar(name, total=config.offline.max_steps, console=console) as bar:

            def tell(done: int, judged: float | None, bar=bar) -> None:
                # Values and the policy after them are counted anew.
                bar.advance(max(done - bar.completed, 0), "" if judged is None else f"held-out {judged:.4f}")

            trained.append(
                train_offline(name, episodes, config.offline, progress=tell, key=stream(config.seed + i, "offline"))
            )
    minutes = (time.monotonic() - began) / 60 / config.seeds
    rows = [_played(config, env, name, trained, minutes)]
    if entropy is not None:
        sharp = [with_entropy(one, episodes, entropy) for one in trained]
        rows.append(_played(config, env, f"{name}, tempered", sharp, minutes))
    return rows


def _played(
    config: Config, env: AbstractEnvironment, name: str, trained: list[Offline], minutes: float
) -> dict[str, Any]:
    def returns(one: Offline, mode: str) -> dict[str, Any]:
        acting = dataclasses.replace(one.policy, mode=mode)
        # By the starts that every other policy is judged by.
        played = play_policy(config, acting, env, config.evaluation.episodes, seed=0)
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
