"""The commands: each resolves a configuration or a path and hands it to `dreamer4_cli.run`.

Imports of the library's heavy parts stand inside the bodies. How a command may end is in `endings.py`.
"""

import enum
from pathlib import Path
from typing import Annotated

import typer

from dreamer4 import allocator
from dreamer4.errors import InputError
from dreamer4_cli import (
    baseline_options,
    compile_cache,
    data_options,
    encoding,
    options,
    play_options,
    studies,
    viewing,
)
from dreamer4_cli.endings import Commands, complain


_PHASES = ("tokenizer", "dynamics", "agent", "imagination")


class Phases(enum.StrEnum):
    """What `train` can train."""

    tokenizer = "tokenizer"
    dynamics = "dynamics"
    agent = "agent"
    imagination = "imagination"
    all = "all"


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
    app(prog_name="dreamer4")


def _version(wanted: bool) -> bool:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"dreamer4 {version('dreamer4-eqx')}")
        raise typer.Exit
    return wanted


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
    cache: Annotated[
        str | None,
        typer.Option(
            "--compile-cache",
            metavar="DIR|off",
            envvar="DREAMER4_COMPILE_CACHE",
            help="Where compiled programs are kept for the next start. Default: the user's cache folder.",
        ),
    ] = None,
    imports: Annotated[
        list[str] | None,
        typer.Option(
            "--import",
            metavar="MODULE",
            help="Import a Python module first, which registers your own environments and parts; may stand anywhere in "
            "the line; repeat for more.",
        ),
    ] = None,
) -> None:
    """Train agents inside a learned world model: Dreamer 4 in JAX and Equinox."""
    allocator.keep_freed()
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
        typer.Option(
            "--policy",
            metavar="WHO",
            help="random, ppo, ppo:early, ppo:middle, FILE.py:NAME, CHECKPOINT, weak, mixed, or "
            "mixture:WHO[~EPSILON][=SHARE],...",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Data set. Default: data/ in the run.")
    ] = None,
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
    phase: Annotated[Phases, typer.Argument(help="The phase to train, or all of them in order.")],
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
        typer.Option("--from", metavar="RUN", help="Start from the phase before in another run, and on its data."),
    ] = None,
    rounds: Annotated[
        int,
        typer.Option(
            "--rounds", min=0, help="Of all: then so often collect with the newest policy and train on all data."
        ),
    ] = 0,
    coordinator: options.Coordinator = None,
    processes: options.Processes = None,
    process: options.Process = None,
) -> None:
    """Train one phase, or all, in a run folder; each phase starts from the one before it."""
    resolved, folder = options.resolve(
        preset, config, overrides, env=env, seed=seed, seeds=seeds, folder=run, origin=_existing_run(origin)
    )
    from dreamer4.run import processes as together

    with together.joined(coordinator, processes, process, complain=complain):
        from dreamer4_cli import run as work

        if rounds and phase is not Phases.all:
            raise InputError("--rounds: rounds follow the whole loop. Give them with train all.")
        phases = _PHASES if phase is Phases.all else (phase.value,)
        if dry_run:
            work.dry_run(resolved, phases)
            return
        go_on = {"resume": resume, "fallback": not no_fallback, "changed_data": changed_data}
        work.train(resolved, folder, phases, **go_on, origin=origin, rounds=rounds)


@app.command()
def evaluate(
    path: Annotated[Path | None, typer.Argument(help="Run folder or checkpoint.", show_default=False)] = None,
    run: Annotated[Path | None, typer.Option("--run", metavar="DIR", help="The same as PATH.")] = None,
    episodes: Annotated[
        int | None,
        typer.Option(
            "--episodes", min=1, help="Episodes to play, or dreams. Default: what the run's configuration says."
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**31 - 1, help="Seed of the episodes.")] = 0,
    plan: Annotated[int | None, typer.Option("--plan", min=1, help="Dreams before each action of planning.")] = None,
    task: options.Task = None,
    world_model: Annotated[
        bool, typer.Option("--world-model", help="Measure the dreams on held-out episodes instead of playing.")
    ] = False,
    context: Annotated[
        int | None,
        typer.Option("--context", min=1, help="Dreams: most frames given. Default: the model's context."),
    ] = None,
    horizon: Annotated[
        int | None, typer.Option("--horizon", min=1, help="Dreams: frames dreamt. Default: the model's context.")
    ] = None,
    lpips: Annotated[bool, typer.Option("--lpips", help="Dreams: judge their look by LPIPS too.")] = False,
    fvd: Annotated[bool, typer.Option("--fvd", help="Dreams: their FVD too, 4 CPU seconds a clip.")] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Dreams: JSON to write. Default: world_model.json in the run."),
    ] = None,
) -> None:
    """Play a trained agent in the real environment, or measure its world model; the configuration is the run's."""
    if (path is None) == (run is None):
        given = "neither PATH nor --run" if path is None else f"both PATH {path} and --run {run}"
        raise InputError(f"evaluate: got {given}, expected one of them: a run folder or a checkpoint.")
    existing = viewing.existing(path or run)
    if world_model:
        if plan or task:
            raise InputError(
                "evaluate: --plan is a way to play, --task what is played, and --world-model plays nothing."
            )
        from dreamer4_cli.world_model import evaluate_world_model

        evaluate_world_model(
            existing, clips=episodes, context=context, horizon=horizon, lpips=lpips, fvd=fvd, out=out, seed=seed
        )
        return
    if context or horizon or lpips or fvd or out:
        raise InputError(
            "evaluate: --context, --horizon, --lpips, --fvd and --out are of dreams. Give --world-model with them."
        )
    from dreamer4_cli import run as work

    work.evaluate(existing, episodes=episodes, seed=seed, plan=plan, task=task)


app.command("play")(play_options.play)


@app.command()
def export(
    path: Annotated[Path, typer.Argument(help="Run folder or checkpoint.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="The folder to create.", show_default=False)],
    member: Annotated[int, typer.Option("--member", min=0, help="Which training seed, if the run has several.")] = 0,
    starts: Annotated[
        int, typer.Option("--starts", min=0, help="Held-out episodes to add, for dreamer4 play to start from.")
    ] = 0,
) -> None:
    """Write an agent's weights for others: safetensors, a description with hashes, a model card."""
    existing = viewing.existing(path)
    from dreamer4_cli import share

    share.export(existing, out, member=member, starts=starts)


@app.command(name="import")
def import_(
    path: Annotated[Path, typer.Argument(help="Exported folder.", show_default=False)],
    run: Annotated[Path, typer.Option("--run", metavar="DIR", help="The run folder to create.", show_default=False)],
    phase: options.Done = None,
    overrides: options.Overrides = None,
) -> None:
    """Make a new run out of exported weights, from which training goes on."""
    existing = viewing.existing(path)
    from dreamer4_cli import share

    share.import_run(existing, run, phase=phase, overrides=overrides or ())


@app.command()
def info(
    path: Annotated[
        Path, typer.Argument(help="Run folder, checkpoint, exported folder or data set.", show_default=False)
    ],
) -> None:
    """Tell what a run folder, a checkpoint or a data set is."""
    existing = viewing.existing(path)
    from dreamer4_cli import run as work

    work.info(existing)


for command in (encoding.encode, viewing.report, viewing.dream, viewing.runs, studies.study):
    app.command()(command)


@config_app.command()
def show(
    preset: options.Preset = None,
    config: options.File = None,
    overrides: options.Overrides = None,
    env: options.Env = None,
    run: Annotated[Path | None, typer.Option("--run", metavar="DIR", help="Start from this run's config.yaml.")] = None,
    seed: options.Seed = None,
    seeds: options.Seeds = None,
) -> None:
    """Print the whole configuration that the options describe, as YAML that --config reads back."""
    if run is not None:
        viewing.existing(run / "config.yaml")
    resolved, _ = options.resolve(preset, config, overrides, env=env, seed=seed, seeds=seeds, folder=run)
    from dreamer4.config import presets, to_yaml

    reasons = presets.description(resolved.preset).splitlines() if run is None else []
    typer.echo("".join(f"# {line}".strip() + "\n" for line in reasons) + to_yaml(resolved), nl=False)


def _existing_run(path: Path | None) -> Path | None:
    if path is not None:
        viewing.existing(path / "config.yaml")
    return path
