"""The results ledger: what each method reached on each environment, over training seeds, in files that can be diffed.

One JSON file holds one method on one environment, with one number per training seed: the mean return over the same
evaluation episodes. Means, intervals and differences are computed from these numbers whenever a table is drawn, and are
stored nowhere.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, JsonValue, NonNegativeInt, PositiveInt, ValidationError

from dreamer4.errors import InputError
from dreamer4.evaluation.statistics import interval, iqm, paired_difference
from dreamer4.files import write_atomically


SCHEMA_VERSION = 1

# In the order of the table; the ladder is the three rungs in the middle.
METHODS: dict[str, str] = {
    "random": "random actions",
    "data": "behaviour data",
    "cloning": "cloning from pixels, no world model",
    "world_model_cloning": "world model + cloning",
    "imagination": "world model + cloning + imagination",
    "pmpo": "the same with PMPO (beta 0.3)",
    "policy_gradient": "the same with a policy gradient (beta 0.3)",
    "dream_ppo": "PPO inside the world model",
    "ppo": "PPO, online, model-free",
}

_LEGEND = (
    "Returns are means over training seeds in the real environment, actions sampled (*greedy*: the most likely action\n"
    "taken); intervals are 95 % percentile bootstraps over training seeds. The minutes of a world model's run, from\n"
    "tokenizer to imagination, stand in both of its rows; those of what builds on a world model are of that part alone."
)

# Of these a benchmark runs the one that its preset does not use, at the prior weight of the paper.
OTHER_OBJECTIVE = ("pmpo", "policy_gradient")


class Entry(BaseModel):
    """One method on one environment.

    Attributes:
        schema_version: of this file.
        benchmark: name of the benchmark, by custom the preset.
        env: id of the environment.
        method: a key of `METHODS`.
        seeds: the training seeds, ascending. A method that trains nothing has one.
        returns: mean undiscounted return over the evaluation episodes, for each training seed.
        by_mode: the same, acting by the most likely action; empty where that was not measured.
        episodes: evaluation episodes of each training seed.
        evaluation_seed: seed of the evaluation episodes, the same for every method.
        minutes: training time of each seed.
        device: what it was trained on.
        commit: of the code; a + marks changes that were not committed.
        command: what to run for the same numbers.
        data: fingerprint of the offline data set; empty for methods that use none.
        notes: further figures of the runs, such as the quality of the world model.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    schema_version: PositiveInt = SCHEMA_VERSION
    benchmark: str
    env: str
    method: str
    seeds: tuple[NonNegativeInt, ...]
    returns: tuple[float, ...]
    by_mode: tuple[float, ...] = ()
    episodes: PositiveInt
    evaluation_seed: NonNegativeInt
    minutes: tuple[float, ...]
    device: str
    commit: str
    command: str
    data: str = ""
    notes: dict[str, JsonValue] = {}


def write_entry(folder: Path, entry: Entry) -> Path:
    """Writes an entry to `<folder>/<benchmark>/<method>.json`, replacing an older one; returns the file."""
    file = folder / entry.benchmark / f"{entry.method}.json"
    write_atomically(file, json.dumps(entry.model_dump(mode="json"), indent=1) + "\n")
    return file


def read_entries(folder: Path, benchmark: str) -> dict[str, Entry]:
    """Reads the entries of a benchmark by method, in the order of `METHODS`.

    Raises:
        InputError: if a file is no entry, or was written by a newer version.
    """
    found = {}
    for method in METHODS:
        file = folder / benchmark / f"{method}.json"
        if not file.is_file():
            continue
        try:
            entry = Entry.model_validate_json(file.read_text())
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"]) or "the file"
            raise InputError(f"{file}: {place}: {first['msg']}. Remove it, and it will be made again.") from None
        if entry.schema_version > SCHEMA_VERSION:
            raise InputError(
                f"{file} has schema version {entry.schema_version}, of a newer dreamer4. Upgrade dreamer4."
            )
        found[method] = entry
    return found


def rows(entries: Mapping[str, Entry]) -> list[tuple[str, ...]]:
    """Returns the table of one benchmark.

    Columns are the method; mean, 95 % interval and IQM over training seeds, actions sampled; the mean by the most
    likely action; seeds; minutes; device; commit.

    Every method has a row; one without an entry is "not run". A single seed has no interval.
    """
    table = []
    ran = [method for method in OTHER_OBJECTIVE if method in entries]
    for method, name in METHODS.items():
        entry = entries.get(method)
        if entry is None and method in OTHER_OBJECTIVE:
            if ran or method != OTHER_OBJECTIVE[0]:
                continue
            name = "the same with the other policy objective"
        if entry is None:
            table.append((name, "not run", "", "", "", "", "", "", ""))
            continue
        values = np.array(entry.returns)
        several = len(values) > 1
        low, high = interval(values) if several else (0.0, 0.0)
        table.append(
            (
                name,
                _number(values.mean()),
                f"{_number(low)} to {_number(high)}" if several else "-",
                _number(float(iqm(values))) if several else "-",
                _number(float(np.mean(entry.by_mode))) if entry.by_mode else "-",
                str(len(values)),
                f"{np.mean(entry.minutes):.1f}" if any(entry.minutes) else "-",
                entry.device,
                entry.commit,
            )
        )
    return table


def improvement(
    entries: Mapping[str, Entry], method: str = "imagination", over: str = "world_model_cloning"
) -> tuple[float, float, float] | None:
    """Returns the paired difference of two methods over the training seeds that both have: mean, low, high.

    None if they share fewer than two seeds.
    """
    if method not in entries or over not in entries:
        return None
    a, b = ({s: r for s, r in zip(e.seeds, e.returns, strict=True)} for e in (entries[method], entries[over]))
    shared = sorted(a.keys() & b.keys())
    if len(shared) < 2:
        return None
    return paired_difference(np.array([a[s] for s in shared]), np.array([b[s] for s in shared]))


def data_sets(entries: Mapping[str, Entry]) -> str:
    """Returns a warning where entries are of different data sets, and so cannot be compared; else an empty string."""
    methods: dict[str, list[str]] = {}
    for method, entry in entries.items():
        if entry.data:
            methods.setdefault(entry.data[:8], []).append(METHODS[method])
    if len(methods) < 2:
        return ""
    return "These rows are of different data sets, and not to be compared: " + "; ".join(
        f"{', '.join(names)} ({data})" for data, names in methods.items()
    )


def page(benchmarks: Mapping[str, Mapping[str, Entry]]) -> str:
    """Returns the ledger as a Markdown document."""
    return f"# Results\n\n{_LEGEND}\n\n{markdown(benchmarks)}\n"


def markdown(benchmarks: Mapping[str, Mapping[str, Entry]]) -> str:
    """Returns the tables of several benchmarks, entries by method by benchmark, as Markdown."""
    parts: list[str] = []
    for name, entries in benchmarks.items():
        parts += [f"## {name}", "", _provenance(name, entries), ""]
        if not entries:
            continue
        parts += [
            "| method | mean return | 95 % interval | IQM | greedy | seeds | minutes a seed | device | commit |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        parts += ["| " + " | ".join(row) + " |" for row in rows(entries)]
        if warning := data_sets(entries):
            parts += ["", f"{warning}."]
        if (gain := improvement(entries)) is not None:
            mean, low, high = map(_number, gain)
            parts += ["", f"Imagination minus cloning on the same world models, paired: {mean} ({low} to {high})."]
        parts.append("")
    return "\n".join(parts).rstrip()


def _provenance(name: str, entries: Mapping[str, Entry]) -> str:
    if not entries:
        return f"Not run. Command: `python -m benchmarks results {name}`."

    def each(name: str) -> str:
        return ", ".join(sorted({str(getattr(e, name)) for m, e in entries.items() if m != "data"}))

    commands = " and ".join(f"`{command}`" for command in dict.fromkeys(each("command").split(", ")))
    return f"{each('env')}; {each('episodes')} episodes for each seed; {commands}."


def _number(value: float) -> str:
    return f"{value:+.3f}" if abs(value) < 10 else f"{value:+.1f}"
