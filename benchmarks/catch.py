"""The whole loop on Catch over several training seeds, and a table with intervals over them.

    python benchmarks/catch.py                      # five demos, one after the other
    python benchmarks/catch.py --table              # print the table of results/catch.json again

Runs that already have their `results.json` are not repeated, so an interrupted series goes on where it stopped.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from dreamer4.evaluation import interval, paired_difference


RESULTS = Path(__file__).parent / "results" / "catch.json"
NAMES = {"random": "random actions", "data": "behaviour data", "cloned": "cloned", "imagination": "imagination"}


def run(seeds: list[int], folder: Path) -> list[dict]:
    """Runs the demo for each seed that has no results yet, and returns all results."""
    results = []
    for seed in seeds:
        path = folder / f"seed{seed}"
        if not (path / "results.json").exists():
            command = [sys.executable, "-m", "dreamer4_cli", "demo", "--seed", str(seed), "--run", str(path)]
            resume = ["--resume"] if (path / "config.yaml").exists() else []
            subprocess.run([*command, *resume], check=True)  # noqa: S603
        results.append(json.loads((path / "results.json").read_text()))
    return results


def summarise(results: list[dict]) -> dict:
    """Reduces one result per training seed to means and 95 % bootstrap intervals over the seeds."""

    def over_seeds(values):
        low, high = interval(np.array(values))
        return {"mean": float(np.mean(values)), "low": low, "high": high, "seeds": values}

    def means(name):
        return [result["returns"][name]["mean"] for result in results]

    world = [result["world_model"] for result in results]
    gain = paired_difference(np.array(means("imagination")), np.array(means("cloned")))
    return {
        "env": results[0]["env"],
        "command": "python benchmarks/catch.py",
        "commit": sorted({str(result["commit"]) for result in results}),
        "device": sorted({result["device"] for result in results}),
        "training_seeds": [result["seed"] for result in results],
        "episodes_per_seed": results[0]["returns"]["imagination"]["episodes"],
        "returns": {name: over_seeds(means(name)) for name in NAMES},
        "imagination_by_mode": over_seeds([result["by_mode"]["imagination"]["mean"] for result in results]),
        "imagination_minus_cloned": dict(zip(("mean", "low", "high"), gain, strict=True)),
        "minutes": over_seeds([result["minutes"] for result in results]),
        "memory_gb": over_seeds([result["memory_gb"] for result in results]),
        "tokenizer_psnr": over_seeds([w["tokenizer_psnr"] for w in world]),
        "tokenizer_exact": over_seeds([w["tokenizer_exact"] for w in world]),
        "dreams_exact": {
            k: over_seeds([float(np.mean(w["exact_frames"][k])) for w in world]) for k in world[0]["exact_frames"]
        },
        "dreams_exact_by_step": {
            k: np.mean([w["exact_frames"][k] for w in world], axis=0).round(4).tolist()
            for k in world[0]["exact_frames"]
        },
        "controls_by_step": {
            name: np.mean([w["controls"][name] for w in world], axis=0).round(4).tolist()
            for name in world[0]["controls"]
        },
    }


def table(summary: dict) -> str:
    """Returns the summary as Markdown."""

    def row(name, value, form="{:+.3f}"):
        numbers = (form.format(value[key]) for key in ("mean", "low", "high"))
        return "| {} | {} | {} to {} |".format(name, *numbers)

    returns = summary["returns"]
    lines = [
        f"{summary['env']}, {len(summary['training_seeds'])} training seeds, {summary['episodes_per_seed']} episodes "
        f"each in the real environment; {', '.join(summary['device'])}; commit {', '.join(summary['commit'])}; "
        f"`{summary['command']}`",
        "",
        "| return | mean | 95 % interval over seeds |",
        "|---|---|---|",
        *(row(name, returns[key]) for key, name in NAMES.items()),
        row("imagination, most likely action", summary["imagination_by_mode"]),
        row("imagination minus cloned, paired", summary["imagination_minus_cloned"]),
        "",
        "| world model, held-out episodes | mean | 95 % interval over seeds |",
        "|---|---|---|",
        row("tokenizer, dB", summary["tokenizer_psnr"], "{:.1f}"),
        row("tokenizer, frames exact", summary["tokenizer_exact"], "{:.4f}"),
        *(row(f"dreamt frames exact, K = {k}", value, "{:.3f}") for k, value in summary["dreams_exact"].items()),
        "| shuffled actions | {:.3f} | |".format(np.mean(summary["controls_by_step"]["actions shuffled"])),
        "| last frame repeated | {:.3f} | |".format(np.mean(summary["controls_by_step"]["last frame repeated"])),
        "",
        "Minutes per run: {mean:.1f} ({low:.1f} to {high:.1f}).".format(**summary["minutes"])
        + " Peak memory: {mean:.2f} GB.".format(**summary["memory_gb"]),
    ]
    return "\n".join(lines)


def main() -> None:
    """Runs the series and writes the ledger entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--runs", type=Path, default=Path("runs/catch-series"), help="where the runs lie")
    parser.add_argument("--table", action="store_true", help="print the committed table and leave")
    options = parser.parse_args()
    if not options.table:
        summary = summarise(run(options.seeds, options.runs))
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(summary, indent=1) + "\n")
    print(table(json.loads(RESULTS.read_text())))


if __name__ == "__main__":
    main()
