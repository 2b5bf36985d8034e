"""The full-size model on one GPU: one command of at most ten minutes, which goes on where the last call stopped.

    python -m benchmarks.gpu                  # again and again until it says that nothing is left
    python -m benchmarks.gpu --plan           # memory and floor of every row, without a GPU and without computing
    python -m benchmarks.gpu --tiny --out runs/gpu-tiny.json   # proves the script on any machine

Each row is a process of its own, `python -m benchmarks speed` or `dreamer4 demo`, so that it can have its own XLA
flags, its peak memory is its own, and one that fails leaves the others alone. What is measured is kept in a JSON file
with the device's name and the commit; rows of another commit are measured anew.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.speed.floor import Rates, floor
from benchmarks.speed.programs import PROGRAMS, Settings
from dreamer4.config import TransformerConfig
from dreamer4.files import check_place, write_atomically
from dreamer4.nn import ATTENTIONS
from dreamer4.run.facts import source_commit


ROOT = Path(__file__).parents[1]

NO_GRAPHS = "--xla_gpu_enable_command_buffer="
SLICES_FUSED = "--xla_gpu_enable_dynamic_slice_fusion=true"
MORE_GRAPHS = "--xla_gpu_enable_command_buffer=+WHILE,+CONDITIONAL --xla_gpu_graph_min_graph_size=1"

# What the plan reckons with: an H100 by data sheet.
H100 = Rates(989e12, 3.35e12)


@dataclass(frozen=True)
class Work:
    """A row.

    Attributes:
        benchmark: of `python -m benchmarks speed`, or `demo`.
        settings: at which size.
        figure: what is judged: a key of the measured row.
        accept: the least that is good enough; of the demo, the most.
        goal: what is aimed at.
        flags: XLA's.
        minutes: what it may take, compiling included.
    """

    benchmark: str
    settings: Settings
    figure: str = "value"
    accept: float | None = None
    goal: float | None = None
    flags: str = ""
    minutes: float = 3.0


def rows() -> dict[str, Work]:
    """Returns the rows: those with a promise first, then what is tried against the first of them."""
    paper, base = Settings("paper", weights="bfloat16"), Settings("base", weights="bfloat16")
    play = Work("frame", replace(paper, batch=1))
    dynamics = Work("dynamics", Settings("paper", batch=1, length=64), "mfu_data_sheet", 0.45, 0.58, minutes=5)
    tokenizer = Work("tokenizer", Settings("paper", batch=1, length=32), "mfu_data_sheet", 0.35, 0.50, minutes=5)
    dreams = Work("imagination", replace(paper, batch=16, repeats=3), accept=80, goal=120, minutes=3)  # seconds a call
    promised = {
        "play, paper": replace(play, accept=45, goal=75),
        "imagination, paper": dreams,
        "dynamics training, paper": dynamics,
        "tokenizer training, paper": tokenizer,
        "play, base": Work("frame", replace(base, batch=1), accept=200, goal=400),
        "collection, 2048 environments": Work("collect", Settings(batch=2048), accept=1e6, goal=5e6),
        "Catch demo, seconds": Work("demo", Settings("catch"), accept=60, goal=30, minutes=4),
    }
    no_cap = tuple(f"{place}.soft_cap=null" for place in ("tokenizer.encoder", "tokenizer.decoder"))
    no_cap += ("dynamics.transformer.soft_cap=null",)
    unjudged = replace(dynamics, accept=None, goal=None)
    tried = {
        "play, paper: weights cast at each call": replace(play, settings=replace(paper, batch=1, weights=None)),
        "play, paper: no command buffers": replace(play, flags=NO_GRAPHS),
        "play, paper: command buffers for loops": replace(play, flags=MORE_GRAPHS),
        "play, paper: weights read from their stack": replace(play, flags=SLICES_FUSED),
        "play, paper: no soft cap": replace(play, settings=replace(paper, batch=1, overrides=no_cap)),
        "play, base: no command buffers": Work("frame", replace(base, batch=1), flags=NO_GRAPHS),
        "play, base: command buffers for loops": Work("frame", replace(base, batch=1), flags=MORE_GRAPHS),
        "dynamics training, paper: no Triton products": replace(dynamics, flags="--xla_gpu_enable_triton_gemm=false"),
        # The first is what a fused kernel is to be compared with.
        "dynamics training, paper: no soft cap": replace(
            unjudged, settings=replace(dynamics.settings, overrides=no_cap)
        ),
        "dynamics training, paper: results of products kept": replace(
            unjudged, settings=replace(dynamics.settings, overrides=("dynamics.transformer.remat=products",))
        ),
    }
    for kind in sorted(set(ATTENTIONS) - {TransformerConfig().attention}):
        chosen = tuple(f"{place}.attention={kind}" for place in ("tokenizer.encoder", "tokenizer.decoder"))
        chosen += (f"dynamics.transformer.attention={kind}", *no_cap)  # which fused kernels do not know
        for name in ("play, paper", "dynamics training, paper"):
            before = promised[name]
            overrides = (*before.settings.overrides, *chosen)
            tried[f"{name}: attention {kind}"] = replace(
                before, settings=replace(before.settings, overrides=overrides), accept=None, goal=None
            )
    return promised | tried


def tiny(work: Work) -> Work:
    """Returns a row at a size that any machine can hold."""
    small = replace(work.settings, preset="tiny", batch=2, length=None, repeats=2)
    return replace(work, settings=small, accept=None, goal=None)


def measure(work: Work, seconds: float) -> dict:
    """Runs a row in a process of its own, and returns what it tells, or why it failed."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} {work.flags}".strip()
    environment = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"} | os.environ | {"XLA_FLAGS": flags}
    with tempfile.TemporaryDirectory() as folder:
        if work.benchmark == "demo":
            run = ["demo", "--preset", str(work.settings.preset), "--run", f"{folder}/run"]
            command = [sys.executable, "-m", "dreamer4_cli", "--compile-cache", f"{folder}/compiled", *run]
        else:
            out = ["--out", f"{folder}/speed.json"]
            command = [sys.executable, "-m", "benchmarks", "speed", work.benchmark, *work.settings.options(), *out]
        began = time.monotonic()
        try:
            child = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=seconds)  # noqa: S603
        except subprocess.TimeoutExpired:
            return {"failed": f"took more than the {seconds:.0f} seconds that were left"}
        if child.returncode:
            return {"failed": child.stderr.strip()[-2000:]}
        if work.benchmark != "demo":
            return json.loads(Path(f"{folder}/speed.json").read_text())[work.benchmark]
        told = json.loads(Path(f"{folder}/run/results.json").read_text())
        figure = {"what": "demo, nothing compiled before", "value": time.monotonic() - began, "unit": "s"}
        kept = {name: told[name] for name in ("device", "commit", "returns", "memory_gb")}
        return {"command": f"dreamer4 demo --preset {work.settings.preset}", "rows": [figure], **kept}


def plan() -> dict[str, dict]:
    """Returns memory and floor of every row of a program, by shape alone."""
    told = {}
    for name, work in rows().items():
        if work.benchmark in PROGRAMS:
            program = PROGRAMS[work.benchmark](work.settings)
            needs = program.memory()
            told[name] = {
                "gb": round(sum(needs.values()) / 1e9, 2),
                "parts_gb": {part: round(value / 1e9, 3) for part, value in needs.items()},
                "floor_frames_per_s": round(program.frames / floor(program.parts, H100), 1),
            }
    return told


def _judged(work: Work, told: dict) -> str:
    if "failed" in told:
        return f"failed: {told['failed'].splitlines()[-1] if told['failed'] else 'without a word'}"
    row = told["rows"][0]
    value = row.get(work.figure)
    if value is None:
        return f"{row['value']:.4g} {row['unit']} (no data sheet is known for {told['device']})"
    unit = row["unit"] if work.figure == "value" else "of the data sheet's products"
    wanted = "" if work.accept is None else f" (accept {work.accept:g}, goal {work.goal:g})"
    return f"{value:.4g} {unit}{wanted}"


def main() -> None:
    """Measures what is left, as far as the time goes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="after which no row is begun or waited for")
    parser.add_argument("--only", nargs="*", default=[], help="words; rows whose names hold one of them")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu.json"))
    parser.add_argument("--tiny", action="store_true", help="the same at a size for any machine")
    parser.add_argument("--plan", action="store_true", help="tell memory and floor of each row, and leave")
    options = parser.parse_args()
    if options.plan:
        print(json.dumps(plan(), indent=1))
        return
    check_place(options.out)
    began, commit = time.monotonic(), source_commit() or "unknown"
    kept = json.loads(options.out.read_text()) if options.out.exists() else {}
    wanted = {name: work for name, work in rows().items() if not options.only or any(w in name for w in options.only)}
    left = []
    for name, work in wanted.items():
        work = tiny(work) if options.tiny else work
        told = kept.get(name, {})
        if "rows" in told and told["commit"] == commit:
            continue
        seconds = 60 * options.minutes - (time.monotonic() - began)
        if seconds < 60 * min(work.minutes, options.minutes / 2):
            left.append(name)
            continue
        told = measure(work, seconds)
        kept[name] = {"accept": work.accept, "goal": work.goal, "xla_flags": work.flags, "commit": commit, **told}
        print(f"{name}: {_judged(work, told)}", flush=True)
        write_atomically(options.out, json.dumps(kept, indent=1) + "\n")
    print(f"left for the next call: {', '.join(left)}" if left else "nothing is left")


if __name__ == "__main__":
    main()
