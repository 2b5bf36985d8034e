"""A shortened demo that must learn: the loop from data to returns, with bars far below the full demo's."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path


OVERRIDES = (
    "train.tokenizer.steps=300",
    "train.dynamics.steps=800",
    "train.agent.steps=250",
    "train.imagination.steps=250",
    "evaluation.episodes=500",
)


def main() -> int:
    """Runs the shortened demo and returns 0 if every bar is met."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [str(Path(sys.executable).with_name("dreamer4")), "demo", "--preset", "catch", "--run", str(run)]
        for override in OVERRIDES:
            command += ["--set", override]
        subprocess.run(command, check=True)  # noqa: S603
        results = json.loads((run / "results.json").read_text())
        report = (run / "report.html").read_text()
    world, returns = results["world_model"], results["returns"]
    dreams, shuffled = world["exact_frames"]["4"], world["controls"]["actions shuffled"]
    still = world["controls"]["last frame repeated"]
    checks = {
        "the tokenizer is exact in 95 % of frames": world["tokenizer_exact"] > 0.95,
        "two thirds of the first dreamt frames are right": dreams[0] > 0.66,
        "dreams beat repeating the last frame": sum(dreams) > sum(still) + 1,
        "dreams use their actions": sum(dreams) > sum(shuffled) + 0.5,
        "the imagination policy beats the cloned one": returns["imagination"]["low"] > returns["cloned"]["high"],
        "the report is complete": "</html>" in report and len(report) > 10_000,
    }
    for name, passed in checks.items():
        print(f"{'pass' if passed else 'FAIL'}  {name}")
    failed = sum(not passed for passed in checks.values())
    print(f"{len(checks) - failed} passed, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
