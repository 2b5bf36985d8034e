"""Imagination once more with other settings, in the world models and from the cloned policies of the ledger's runs.

    python -m benchmarks.objectives breakout --set imagination.objective.beta=0.1   # after benchmarks results
    python -m benchmarks.objectives --table                                         # print the results again

The first trains and plays one variant over the training seeds of `benchmarks results NAME`, whose runs must lie in
`--runs`, and adds it to results/objectives.json. A seed that is done is not run again, so an interrupted series goes on
where it stopped.
"""

import argparse
import json
import re
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks import units
from benchmarks.ledger import read_entries
from benchmarks.plan import EVALUATION_SEED, Plan
from dreamer4 import allocator
from dreamer4.errors import InputError
from dreamer4.evaluation import interval, paired_difference


RESULTS = Path(__file__).parent / "results"
FILE = RESULTS / "objectives.json"


def run(name: str, settings: list[str], count: int, folder: Path, together: bool) -> dict:
    """Trains and plays a variant on so many training seeds, as far as that is not done, and returns its result."""
    command = f"python -m benchmarks.objectives {name}" + "".join(f" --set {setting}" for setting in settings)
    plan = Plan(name, tuple(range(count)), None, folder / name, command, together=together)
    kind = "objectives-" + re.sub(r"[^\w.]+", "-", "-".join(settings))
    groups = [plan.seeds] if together else [(seed,) for seed in plan.seeds]
    for seeds in groups:
        if not plan.done(("dreamer", seeds)):
            raise InputError(
                f"{plan.work('dreamer', seeds)} holds no finished agents. Run python -m benchmarks results {name} "
                f"--only dreamer{' --together' if together else ''} first, or choose another folder with --runs."
            )
    for seeds in groups:
        if not plan.done((kind, seeds)):
            again = partial(units.imagine_again, plan, seeds, method="imagination", settings=settings)
            units.record(plan, kind, seeds, again)
    found = [json.loads(plan.result(kind, seed).read_text()) for seed in plan.seeds]
    return {
        "benchmark": name,
        "settings": settings,
        "seeds": list(plan.seeds),
        "returns": [unit["returns"]["imagination"] for unit in found],
        "by_mode": [unit["by_mode"]["imagination"] for unit in found],
        "episodes": found[0]["episodes"],
        "evaluation_seed": EVALUATION_SEED,
        "minutes": [round(unit["minutes"]["imagination"], 2) for unit in found],
        "data": found[0]["data"],
        "commit": ", ".join(sorted({unit["commit"] for unit in found})),
        "device": ", ".join(sorted({unit["device"] for unit in found})),
        "command": command,
    }


def merged(results: list[dict], result: dict) -> list[dict]:
    """Returns the results with one more, in the place of an earlier one of the same variant."""

    def variant(result):
        return result["benchmark"], sorted(result["settings"])

    return sorted([*(old for old in results if variant(old) != variant(result)), result], key=variant)


def table(results: list[dict]) -> str:
    """Returns the results as Markdown, beside what the ledger's objective reached in the same world models."""

    def cell(values):
        low, high = interval(np.array(values))
        return f"{np.mean(values):.1f} ({low:.1f} to {high:.1f})"

    def difference(values, others):
        mean, low, high = paired_difference(np.array(values), np.array(others))
        return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"

    lines = [
        "| benchmark | settings | sampled | minus the preset's | greedy | minus the preset's | device | commit |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        preset = read_entries(RESULTS, result["benchmark"]).get("imagination")
        # Differences are of policies that learned in the same world models.
        learned_in = tuple(result["seeds"]), result["data"], result["commit"]
        same = preset is not None and learned_in == (preset.seeds, preset.data, preset.commit)
        gains = [difference(result[key], getattr(preset, key)) if same else "-" for key in ("returns", "by_mode")]
        settings = ", ".join(setting.removeprefix("imagination.objective.") for setting in result["settings"])
        sampled, greedy = cell(result["returns"]), cell(result["by_mode"])
        cells = result["benchmark"], settings, sampled, gains[0], greedy, gains[1], result["device"], result["commit"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Runs one variant, or prints the table of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", help="the benchmark, as bench results names it")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="imagination.x=value")
    parser.add_argument("--seeds", type=int, default=5, metavar="N")
    parser.add_argument("--together", action="store_true", help="if the ledger trained its seeds together")
    parser.add_argument("--runs", type=Path, default=Path("runs/bench"))
    parser.add_argument("--table", action="store_true", help="run nothing")
    given = parser.parse_args()
    allocator.keep_freed()  # as the command line does
    results = json.loads(FILE.read_text())
    if not given.table:
        if given.name is None or not given.settings:
            parser.error("name a benchmark and one --set at least, or --table")
        try:
            result = run(given.name, given.settings, given.seeds, given.runs, given.together)
        except InputError as error:
            parser.exit(2, f"{error}\n")
        results = merged(results, result)
        FILE.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
