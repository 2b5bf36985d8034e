"""What a benchmark of `python -m benchmarks results` consists of, and where its parts lie.

The work is cut into units: one method on one training seed or, where seeds train together, on all of them.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from benchmarks.ledger import OTHER_OBJECTIVE
from dreamer4 import config as configuration
from dreamer4.config import Config


EVALUATION_SEED = 0
DATA_SEED = 0

# The methods that one unit of work fills. A cloned policy is part of every run that goes on to imagination. They run in
# this order, each over all seeds, so that a ledger which is cut short holds the main comparison first.
UNITS = {
    "references": ("random", "data"),
    "dreamer": ("world_model_cloning", "imagination"),
    "cloning": ("cloning",),
    "ppo": ("ppo",),
    "dream_ppo": ("dream_ppo",),
    "other_objective": OTHER_OBJECTIVE,
}

# Units that build on the world model of their seed.
ON_A_WORLD_MODEL = ("other_objective", "dream_ppo")

# Units of one seed at a time, seeds together or not: the first trains nothing, the other plays in one seed's world.
ALONE = ("references", "dream_ppo")

Unit = tuple[str, tuple[int, ...]]


@dataclass(frozen=True)
class Plan:
    """One benchmark: what is run, and where it lies.

    Attributes:
        name: the benchmark, which is the name of its preset.
        seeds: the training seeds, neighbours and ascending.
        episodes: evaluation episodes of each seed; None: what the preset says.
        folder: where its data set and runs lie.
        command: what a reader types for the same.
        kinds: which of `UNITS` are run.
        together: whether a unit is one program for all seeds.
    """

    name: str
    seeds: tuple[int, ...]
    episodes: int | None
    folder: Path
    command: str
    kinds: tuple[str, ...] = tuple(UNITS)
    together: bool = False

    @property
    def data(self) -> Path:
        """The data set of all seeds."""
        return self.folder / "data"

    def config(self, seed: int, *overrides: str, seeds: int = 1, collecting: bool = False) -> Config:
        """Returns the configuration of training seeds, on the shared data set unless it is yet to be collected."""
        path = () if collecting else (f"data.path={json.dumps(str(self.data))}",)
        episodes = () if self.episodes is None else (f"evaluation.episodes={self.episodes}",)
        given = (*path, *episodes, f"seeds={seeds}", *overrides)
        return configuration.load(self.name, overrides=given, seed=seed)

    def result(self, kind: str, seed: int) -> Path:
        """Returns the file that tells what a part came to on a training seed, and that it is done."""
        return self.folder / kind / f"seed{seed}" / "unit.json"

    def work(self, kind: str, seeds: tuple[int, ...]) -> Path:
        """Returns the folder that a unit works in."""
        name = f"seed{seeds[0]}" if len(seeds) == 1 else f"seeds{seeds[0]}-{seeds[-1]}"
        return self.folder / kind / name

    def world(self, seed: int) -> tuple[Path, int]:
        """Returns the run with the world model of a seed, and the seed's place in it."""
        seeds = self.seeds if self.together else (seed,)
        return self.work("dreamer", seeds) / "run", seeds.index(seed)

    def units(self) -> list[Unit]:
        """Returns the units still to be run, in an order in which each finds what it builds on."""
        return [unit for unit in self.wanted() if not self.done(unit)]

    def done(self, unit: Unit) -> bool:
        """Returns whether a unit is finished."""
        kind, seeds = unit
        return all(self.result(kind, seed).exists() for seed in seeds)

    def wanted(self) -> list[Unit]:
        """Returns all units in that order. What trains nothing has one seed."""
        found: list[Unit] = []
        for kind in (kind for kind in UNITS if kind in self.kinds):
            seeds = (DATA_SEED,) if kind == "references" else self.seeds
            found += [(kind, seeds)] if self.together and kind not in ALONE else [(kind, (seed,)) for seed in seeds]
        return found
