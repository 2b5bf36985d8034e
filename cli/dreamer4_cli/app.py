"""The commands: each resolves a configuration or a path and hands it to `dreamer4_cli.run`.

Imports of the library's heavy parts stand inside the bodies. How a command may end is in `endings.py`.
"""

import io
import re
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from dreamer4.errors import InputError
from dreamer4_cli import baseline_options, compile_cache, data_options, options, viewing
from dreamer4_cli.endings import Commands, complain
from dreamer4_cli.options import calls, existing, opt, there


_PHASES = ("tokenizer", "dynamics", "agent", "imagination")

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
    help="Train agents inside a learned world model: Dreamer 4 in JAX and Equinox.",
)
config_app = typer.Typer(no_args_is_help=True, help="Configurations.")
app.add_typer(config_app, name="config")
app.add_typer(baseline_options.app, name="baseline")
app.add_typer(data_options.app, name="data")


def main() -> None:
    """Runs the command line: the entry point of the console script `dreamer4`."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(
            errors="backslashreplace"
        )  # for names that a C locale, or a file on Windows, cannot hold
    app(prog_name="dreamer4")


def _version(wanted: bool) -> bool:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"dreamer4 {version('dreamer4-eqx')}")
        raise typer.Exit
    return wanted


def _a_run(path: Path | None) -> Path | None:
    existing(path and path / "config.yaml")
    return path


@app.callback()
def root(
    version: Annotated[
        bool, opt("Print the version and leave.", "--version", callback=_version, is_eager=True)
    ] = False,
    cache: Annotated[
        str | None,
        opt(
            "Where compiled programs are kept for the next start. Default: the user's cache folder.",
            "--compile-cache",
            metavar="DIR|off",
            envvar="DREAMER4_COMPILE_CACHE",
        ),
    ] = None,
    imports: Annotated[
        list[str] | None,
        opt(
            "Import a Python module first, which registers your own environments and parts; may stand anywhere "
            "in the line; repeat for more.",
            "--import",
            metavar="MODULE",
        ),
    ] = None,
) -> None:
    """Train agents inside a learned world model: Dreamer 4 in JAX and Equinox."""
    for name, value in compile_cache.settle().items():
        complain(f"{name}: got {value}, which commands do not heed: runs would differ by it.", style="yellow")
    if not compile_cache.enable(cache) and cache is not None:
        complain(f"--compile-cache: {cache} cannot be written to, so this start compiles everything anew.")
    options.import_parts(imports or ())


@app.command()
def demo(
    preset: options.Preset = None,
    config: options.File = None,
    overrides: options.Overrides = None,
    env: options.Env = None,
    run: options.Run = None,
    seed: options.Seed = None,
    seeds: options.Seeds = None,
    resume: options.Resume = False,
    no_fallback: options.NoFallback = False,
    changed_data: options.ChangedData = False,
    dry_run: options.DryRun = False,
) -> None:
    """Run the whole loop: collect, train all phases, evaluate, write a report."""
    resolved, folder = options.resolve(preset, config, overrides, env=env, seed=seed, seeds=seeds, folder=run)
    from dreamer4_cli import run as work

    if dry_run:
        if resume:
            work.RunFolder(folder).check(resolved, resume=True)
        work.dry_run(resolved, judged=True)
    else:
        work.demo(resolved, folder, resume=resume, fallback=not no_fallback, changed_data=changed_data)


@app.command()
def collect(
    preset: options.Preset = None,
    config: options.File = None,
    overrides: options.Overrides = None,
    env: options.Env = None,
    run: options.Run = None,
    seed: options.Seed = None,
    policy: Annotated[
        str | None,
        opt(
            "random, ppo, ppo:early, ppo:middle, sac, FILE.py:NAME, CHECKPOINT, weak, mixed, or "
            "mixture:WHO[~EPSILON][=SHARE],...",
            metavar="WHO",
        ),
    ] = None,
    out: Annotated[Path | None, opt("Data set. Default: data/ in the run.", metavar="DIR")] = None,
    task: options.Task = None,
) -> None:
    """Collect episodes of the environment into a data set."""
    resolved, folder = options.resolve(
        preset, config, [*options.behaviour(policy), *(overrides or ())], env=env, seed=seed, folder=run
    )
    from dreamer4_cli import run as work

    work.collect(resolved if task is None else options.one_task(resolved, task), out or folder / "data")


@app.command()
def train(
    phase: Annotated[
        Literal["tokenizer", "dynamics", "agent", "imagination", "all"],
        typer.Argument(help="The phase to train, or all of them in order."),
    ],
    preset: options.Preset = None,
    config: options.File = None,
    overrides: options.Overrides = None,
    env: options.Env = None,
    run: options.Run = None,
    seed: options.Seed = None,
    seeds: options.Seeds = None,
    resume: options.Resume = False,
    no_fallback: options.NoFallback = False,
    changed_data: options.ChangedData = False,
    dry_run: options.DryRun = False,
    origin: Annotated[
        Path | None,
        opt("Start from the phase before in another run, and on its data.", "--from", metavar="RUN", callback=_a_run),
    ] = None,
    rounds: Annotated[
        int, opt("Of all: then so often collect with the newest policy and train on all data.", min=0)
    ] = 0,
    coordinator: options.Coordinator = None,
    processes: options.Processes = None,
    process: options.Process = None,
) -> None:
    """Train one phase, or all, in a run folder; each phase starts from the one before it."""
    resolved, folder = options.resolve(
        preset, config, overrides, env=env, seed=seed, seeds=seeds, folder=run, origin=origin
    )
    from dreamer4.run import processes as together

    with together.joined(coordinator, processes, process, complain=complain):
        from dreamer4_cli import run as work

        if rounds and phase != "all":
            raise InputError("--rounds: rounds follow the whole loop. Give them with train all.")
        phases = _PHASES if phase == "all" else (phase,)
        if dry_run:
            if resume:
                work.RunFolder(folder).check(resolved, resume=True)
            work.dry_run(resolved, phases)
            return
        go_on = {"resume": resume, "fallback": not no_fallback, "changed_data": changed_data}
        work.train(resolved, folder, phases, **go_on, origin=origin, rounds=rounds)


@app.command()
def evaluate(
    path: Annotated[Path | None, there("Run folder or checkpoint.")] = None,
    run: Annotated[Path | None, opt("The same as PATH.", metavar="DIR", callback=existing)] = None,
    episodes: Annotated[
        int | None, opt("Episodes to play, or dreams. Default: what the run's configuration says.", min=1)
    ] = None,
    seed: options.DrawnFrom = 0,
    plan: Annotated[int | None, opt("Dreams before each action of planning.", min=1)] = None,
    task: options.Task = None,
    world_model: Annotated[
        bool, opt("Measure the dreams on held-out episodes instead of playing.", "--world-model")
    ] = False,
    context: Annotated[int | None, opt("Dreams: most frames given. Default: the model's context.", min=1)] = None,
    horizon: Annotated[int | None, opt("Dreams: frames dreamt. Default: the model's context.", min=1)] = None,
    lpips: Annotated[bool, opt("Dreams: judge their look by LPIPS too.", "--lpips")] = False,
    fvd: Annotated[bool, opt("Dreams: their FVD too, 4 CPU seconds a clip.", "--fvd")] = False,
    out: Annotated[
        Path | None, opt("Dreams: JSON to write. Default: world_model.json in the run.", metavar="FILE")
    ] = None,
) -> None:
    """Play a trained agent in the real environment, or measure its world model; the configuration is the run's."""
    place = path or run
    if place is None or (path and run):
        given = "neither PATH nor --run" if path is None else f"both PATH {path} and --run {run}"
        raise InputError(f"evaluate: got {given}, expected one of them: a run folder or a checkpoint.")
    if world_model:
        if plan:
            raise InputError("evaluate: --plan is a way to play, and --world-model plays nothing.")
        from dreamer4_cli.world_model import evaluate_world_model

        lengths = {"clips": episodes, "context": context, "horizon": horizon}
        evaluate_world_model(place, **lengths, lpips=lpips, fvd=fvd, task=task, out=out, seed=seed)
        return
    if context or horizon or lpips or fvd or out:
        raise InputError(
            "evaluate: --context, --horizon, --lpips, --fvd and --out are of dreams. Give --world-model with them."
        )
    from dreamer4_cli import run as work

    work.evaluate(place, episodes=episodes, seed=seed, plan=plan, task=task)


app.command()(viewing.play)


@app.command()
@calls("share")
def export(
    path: Annotated[Path, there("Run folder, checkpoint or data.")],
    out: Annotated[Path, typer.Argument(help="The folder to create.", show_default=False)],
    member: options.Member = 0,
    starts: options.Starts = 0,
    license: options.License = "mit",
    dtype: options.Kept = None,
) -> None:
    """Write an agent's weights, or data, for others: arrays, a description with hashes, a film, a card."""


@app.command()
@calls("share")
def push(
    path: Annotated[Path, there("Run folder, checkpoint, data set or exported folder.")],
    name: Annotated[str, typer.Argument(metavar="USER/NAME", help="Repository on the Hugging Face Hub.")],
    member: options.Member = 0,
    starts: options.Starts = 0,
    license: options.License = "mit",
    dtype: options.Kept = None,
    private: Annotated[bool, opt("Show a new repository to its owner alone.", "--private")] = False,
) -> None:
    """Upload an agent or data to the Hugging Face Hub, as export writes it; it then loads by hf://USER/NAME."""


@app.command(name="import")
@calls("share", "import_run")
def import_(
    path: Annotated[Path, there("Exported folder.")],
    folder: Annotated[Path, opt("The run folder to create.", "--run", metavar="DIR", show_default=False)],
    phase: options.Done = None,
    overrides: options.Overrides = None,
) -> None:
    """Make a new run out of exported weights, from which training goes on."""


@app.command()
@calls("run")
def info(
    path: Annotated[Path, there("Run folder, checkpoint, exported folder or data set.")],
) -> None:
    """Tell what a run folder, a checkpoint or a data set is."""


@app.command()
@calls("doctor")
def doctor() -> None:
    """Tell what this installation has to work with, and what stands in the way; say it in a report of a problem."""


@app.command()
def encode(
    path: Annotated[Path, there("Run folder, or a data set.")],
    tokenizer: Annotated[Path | None, there("Run whose tokenizer encodes the data set.")] = None,
    shard: Annotated[str, opt("The I-th of N shares of the work, 1/N to N/N.", metavar="I/N")] = "1/1",
) -> None:
    """Encode training episodes into the folder of a run, where its later phases find them; what is there is kept.

    With a data set, a run: a run that starts --from that one on this data takes the latents over.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", shard)
    part = (int(found[1]) - 1, int(found[2])) if found else (0, 0)
    if not 0 <= part[0] < part[1]:
        raise InputError(f"--shard: got {shard}, expected I/N with I from 1 to N, such as 2/8.")
    from dreamer4.run import latents, stopping
    from dreamer4_cli.console import ConsoleReporter, say

    stopping.note("What is encoded so far is kept. Go on with the same command.")
    data = None if tokenizer is None else path
    for store in latents.encode_run(tokenizer or path, data, ConsoleReporter(), part=part):
        say(f"latents: {store}")


for command in (viewing.report, viewing.dream, viewing.runs):
    app.command()(command)


@app.command()
def study(
    file: Annotated[Path, there("The study, a YAML file.")],
    only: Annotated[
        list[str] | None,
        opt("The cells with all these values, as preset=breakout,policy=pmpo; repeat for others.", metavar="CELL"),
    ] = None,
    workers: Annotated[int, opt("Stages side by side.", min=1)] = 1,
    quick: Annotated[bool, opt("A first look, as the study's file defines it.", "--quick")] = False,
    data_seeds: Annotated[int | None, opt("The first of its data sets alone. Default: all.", min=1)] = None,
    seeds: Annotated[int | None, opt("The first training seeds alone. Default: all.", min=1)] = None,
    only_table: Annotated[bool, opt("Draw the table of the rows there are; run nothing.", "--table")] = False,
    runs: Annotated[Path, opt("Where stages lie.", metavar="DIR")] = Path("runs/studies"),
    out: Annotated[Path, opt("Where results lie.", metavar="DIR")] = Path("benchmarks/results"),
) -> None:
    """Train and measure every cell of a study, one row each, and draw its table; what is done is not done again."""
    from dreamer4.study import read_study
    from dreamer4.study.rows import publish
    from dreamer4.study.work import command_line, run_study
    from dreamer4_cli.console import ConsoleReporter, say

    asked = read_study(file)
    asked = (asked.made_quick() if quick else asked).first(data_seeds, seeds)
    if only_table:
        say(str(publish(out, asked)))
        return
    command = command_line(file, quick=quick, only=only or (), data_seeds=data_seeds, seeds=seeds)
    where = {"runs": runs, "out": out, "only": only or (), "workers": workers}
    say(str(run_study(asked, **where, command=command, report=ConsoleReporter())))


@config_app.command()
def show(
    preset: options.Preset = None,
    config: options.File = None,
    overrides: options.Overrides = None,
    env: options.Env = None,
    run: Annotated[Path | None, opt("Start from this run's config.yaml.", metavar="DIR", callback=_a_run)] = None,
    seed: options.Seed = None,
    seeds: options.Seeds = None,
) -> None:
    """Print the whole configuration that the options describe, as YAML that --config reads back."""
    resolved, _ = options.resolve(preset, config, overrides, env=env, seed=seed, seeds=seeds, folder=run)
    from dreamer4.config import presets, to_yaml

    reasons = presets.description(resolved.preset).splitlines() if run is None else []
    typer.echo("".join(f"# {line}".strip() + "\n" for line in reasons) + to_yaml(resolved), nl=False)
