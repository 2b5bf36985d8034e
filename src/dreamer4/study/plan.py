"""What a study asks: its file, its cells, and which stages of which cells are the same."""

import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, JsonValue, ValidationError, field_validator

from dreamer4.config import Branch, Config, load
from dreamer4.config.text import explain, parse, read
from dreamer4.dreamer import PHASES
from dreamer4.errors import InputError, nearest


Measure = Literal["dreams", "return", "references", "ppo"]

# The stage at whose end each measure is taken. What needs no world model is shared by all that are trained on the data.
MEASURED_AT: dict[Measure, str] = {"dreams": "dynamics", "return": "imagination", "references": "data", "ppo": "data"}

# What the weights at the end of a stage depend on, beside all that is listed before it.
_PARTS = {
    "data": ("env", "ppo", "data"),
    "tokenizer": ("seed", "tokenizer", "train.tokenizer"),
    "dynamics": ("data.labelled", "dynamics", "sampler", "train.dynamics"),
    "agent": ("data.relevant", "agent", "train.agent", "train.heads"),
    "imagination": ("imagination", "train.imagination"),
}
STAGES = tuple(_PARTS)

# A seed of the data set and a training seed.
Seeds = tuple[int, int]


class Quick(Branch):
    """What makes a study a first look."""

    settings: tuple[str, ...] = Field(default=(), description="assignments a.b=c after all others")
    seeds: int = Field(default=1, gt=0)
    data_seeds: int = Field(default=1, gt=0)


class Study(Branch):
    """A study, as its file tells it."""

    study: str = Field(description="its name, which its results bear")
    about: str = Field(default="", description="what it asks")
    preset: str = Field(default="catch", description="preset of every cell")
    settings: tuple[str, ...] = Field(default=(), description="assignments a.b=c of every cell")
    axes: dict[str, list[JsonValue] | dict[str, list[str]]] = Field(
        min_length=1,
        description="a key and its values; any name, and the assignments of each of its values by name; or `preset`",
    )
    seeds: int = Field(default=3, gt=0, description="training seeds of each cell on each data set: 0, 1, ...")
    data_seeds: int = Field(default=1, gt=0, description="data sets of each cell, by their seed: 0, 1, ...")
    measure: tuple[Measure, ...] = Field(
        min_length=1,
        description="dreams: against held-out episodes; return: of clone and policy in the real environment; "
        "references: random play, the data and every baseline without a world model; ppo: trained online",
    )
    compare: dict[str, tuple[list[str], list[str]]] = Field(
        default={}, description="by name, measures of which the best is set against the best of others, paired"
    )
    scale: tuple[str, str] | None = Field(
        default=None,
        description="two measures; a task's comparisons are told in shares of the range from one mean to the other",
    )
    quick: Quick = Quick()
    at_last: tuple[str, ...] = Field(default=(), description="assignments a.b=c after those of the axes")

    @field_validator("study")
    @classmethod
    def _name(cls, value: str) -> str:
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", value):
            raise ValueError(f"got {value}, expected lower-case letters, digits and hyphens")
        return value

    def made_quick(self) -> "Study":
        """Returns the study as a first look, under a name of its own."""
        changes = {
            "seeds": self.quick.seeds,
            "data_seeds": self.quick.data_seeds,
            "at_last": (*self.at_last, *self.quick.settings),
        }
        return self.model_copy(update={"study": f"{self.study}-quick", **changes})

    def first(self, data_seeds: int | None, seeds: int | None) -> "Study":
        """Returns the study on its first seeds alone; None leaves their number as it is.

        Raises:
            InputError: if there are not so many.
        """
        asked = {"data_seeds": data_seeds or self.data_seeds, "seeds": seeds or self.seeds}
        for name, count in asked.items():
            if count > getattr(self, name):
                option = name.replace("_", "-")
                raise InputError(f"--{option}: got {count}, and {self.study} has {getattr(self, name)}.")
        return self.model_copy(update=asked)

    @property
    def last(self) -> str:
        """The last stage that the measures need."""
        return max((MEASURED_AT[name] for name in self.measure), key=STAGES.index)

    @property
    def every_seed(self) -> tuple[Seeds, ...]:
        """Every training seed on every data set."""
        return tuple(itertools.product(range(self.data_seeds), range(self.seeds)))

    def cells(self, only: Sequence[str] = ()) -> list["Cell"]:
        """Returns the cells, every combination of the axes' values, or those that one of the given names fits.

        Raises:
            InputError: if a name fits none, or a configuration is refused.
        """
        cells = [self._cell(choices) for choices in itertools.product(*map(self._choices, self.axes))]
        names = [cell.name for cell in cells]
        for name in only:
            if not any(cell.fits(name) for cell in cells):
                raise InputError(f"--only: no cell {name!r} in {self.study}. {nearest(name, names)}")
        for cell in cells:
            cell.config((0, 0))
        return [cell for cell in cells if not only or any(map(cell.fits, only))]

    def _choices(self, axis):
        values = self.axes[axis]
        if isinstance(values, dict):
            return [(axis, label, tuple(settings)) for label, settings in values.items()]
        return [(axis, str(value), (f"{axis}={json.dumps(value)}",)) for value in values]

    def _cell(self, choices):
        name = ",".join(f"{axis.rpartition('.')[2]}={label}" for axis, label, _ in choices)
        preset = next((label for axis, label, _ in choices if axis == "preset"), self.preset)
        own = itertools.chain(*(own for axis, _, own in choices if axis != "preset"))
        return Cell(name, preset, (*self.settings, *own, *self.at_last))


@dataclass(frozen=True)
class Cell:
    """One combination of a study.

    Attributes:
        name: what it is called.
        preset: preset of its runs.
        settings: assignments a.b=c over it.
    """

    name: str
    preset: str
    settings: tuple[str, ...]

    def fits(self, name: str) -> bool:
        """Tells whether a name, some `axis=value` in any order, is this cell's or leaves it open."""
        return {*name.split(",")} <= {*self.name.split(",")}

    @property
    def file_name(self) -> str:
        """Its name, as a file may bear it."""
        return re.sub(r"[^A-Za-z0-9=,.-]", "_", self.name)

    def config(self, seeds: Seeds) -> Config:
        """Returns the configuration of a training seed."""
        return load(self.preset, overrides=self.settings, seed=seeds[1])

    def collecting(self, seeds: Seeds) -> Config:
        """Returns the configuration that its data set is collected by."""
        return load(self.preset, overrides=self.settings, seed=seeds[0])

    def fingerprint(self, stage: str, seeds: Seeds) -> str:
        """Returns what stands for everything that the end of a stage depends on; equal ones are trained once."""
        return _digest([("data seed", seeds[0]), *_depends(self.config(seeds), stage).items()])

    def made_by(self, study: Study) -> dict[str, Any]:
        """Returns everything but the seeds that its numbers in a study depend on."""
        config = self.config((0, 0))
        found = _depends(config, study.last) | {"measure": list(study.measure)}
        found.pop("seed", None)  # not there if only the data count
        tree = config.model_dump(mode="json", include={"evaluation", "offline"})
        return found | tree

    def measured(self, measure: Measure, seeds: Seeds) -> str:
        """Returns the same of a measure."""
        tree = self.config(seeds).model_dump(mode="json")
        settings = [seeds[1], tree["evaluation"], tree["offline"] if measure == "references" else None]
        return _digest([self.fingerprint(MEASURED_AT[measure], seeds), *settings])


def _depends(config: Config, stage: str) -> dict[str, Any]:
    """Returns the parts of a configuration, by key, that the end of a stage depends on."""
    tree = config.model_dump(mode="json")
    late = {name: tree["data"].pop(name) for name in ("labelled", "relevant")}  # they choose among what is there
    found = {}
    for key in itertools.chain(*(_PARTS[name] for name in STAGES[: STAGES.index(stage) + 1])):
        value: Any = tree
        for part in key.split("."):
            value = late[part] if part in late else value[part]
        found[key] = value
    return found


def still_holds(then: dict[str, Any], now: dict[str, Any]) -> bool:
    """Tells whether what numbers were made by is what makes them now; keys that came since must be at their default."""
    defaults = _depends(Config(), STAGES[-1]) | Config().model_dump(mode="json", include={"evaluation", "offline"})
    return _agrees(then, now, defaults)


def _agrees(then: Any, now: Any, default: Any) -> bool:
    if not (isinstance(then, dict) and isinstance(now, dict) and isinstance(default, dict)):
        return then == now
    old = all(key in now and _agrees(then[key], now[key], default.get(key)) for key in then)
    return old and all(key in default and now[key] == default[key] for key in now.keys() - then.keys())


def _digest(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def read_study(path: Path) -> Study:
    """Reads a study from its YAML file.

    Raises:
        InputError: names every key that is wrong, what it got, and the rule.
    """
    try:
        return Study.model_validate(parse(read(path), str(path)))
    except ValidationError as error:
        told = [
            f"{e['loc'][0]}: missing, and a study has one." if e["type"] == "missing" else explain(dict(e), Study)
            for e in error.errors()
        ]
        raise InputError("\n".join(f"{path}: {line}" for line in told)) from None


assert (*STAGES[1:],) == PHASES
