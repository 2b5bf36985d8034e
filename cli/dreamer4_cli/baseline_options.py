"""`dreamer4 baseline`: the commands that train agents without a world model."""

import json
from pathlib import Path
from typing import Annotated

import typer

from dreamer4.errors import InputError
from dreamer4_cli import options, viewing


app = typer.Typer(no_args_is_help=True, help="Agents without a world model.")


@app.command()
def ppo(
    preset: options.Preset = None,
    config: options.File = None,
    overrides: options.Overrides = None,
    env: options.Env = None,
    seed: options.Seed = None,
    seeds: options.Seeds = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Environment steps of each seed.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="New folder. Default: ppo/ in the run.")
    ] = None,
) -> None:
    """Train PPO online in the real environment, from frames, and play it."""
    given = [f"ppo.steps={steps}"] if steps else []
    resolved, folder = options.resolve(preset, config, [*given, *(overrides or ())], env=env, seed=seed, seeds=seeds)
    from dreamer4_cli import run as work

    work.ppo(resolved, out or folder / "ppo")


@app.command()
def offline(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="clone, best-quarter, best-tenth, conditioned, cql, iql; all by default.", show_default=False
        ),
    ] = None,
    data: Annotated[Path | None, typer.Option("--data", metavar="SET", help="The data set.")] = None,
    run: Annotated[
        Path | None, typer.Option("--run", metavar="DIR", help="Or a run, for its data and settings.")
    ] = None,
    preset: options.Preset = None,
    config: options.File = None,
    overrides: options.Overrides = None,
    seed: options.Seed = None,
    seeds: options.Seeds = None,
    episodes: Annotated[int | None, typer.Option("--episodes", min=1, help="Episodes to play each policy.")] = None,
    entropy: Annotated[
        float | None,
        typer.Option("--entropy", min=0, help="Nats: also play the clone at the temperature that is as sharp."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="JSON, a new file. Default: offline.json beside the data."),
    ] = None,
) -> None:
    """Train what a data set allows without a world model, from frames, and play it by samples and greedily."""
    if (data is None) == (run is None):
        raise InputError("baseline offline: expected one of --data SET and --run RUN.")
    path, told = viewing.existing(data or run), []
    if data is not None:
        from dreamer4.data import read_info

        environment = read_info(data).environment
        told = [f"env.{key}={json.dumps(value)}" for key, value in environment.items() if key != "world"]
    given = [*told, *([f"evaluation.episodes={episodes}"] if episodes else []), *(overrides or ())]
    resolved, _ = options.resolve(preset, config, given, seed=seed, seeds=seeds, folder=run)
    if run is not None:
        path = Path(resolved.data.path) if resolved.data.path else viewing.existing(run / "data")
    from dreamer4_cli import offline as work

    work.offline(resolved, path, out or path.with_name("offline.json"), names or (), entropy=entropy)
