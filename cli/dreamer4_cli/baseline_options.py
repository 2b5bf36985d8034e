"""`dreamer4 baseline`: the commands that train agents without a world model."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from dreamer4.errors import InputError
from dreamer4_cli import options
from dreamer4_cli.options import existing, opt


app = typer.Typer(no_args_is_help=True, help="Agents without a world model.")

Steps = Annotated[int | None, opt("Environment steps of each seed.", min=1)]


@app.command()
def ppo(
    preset: options.Preset = None,
    config: options.File = None,
    overrides: options.Overrides = None,
    env: options.Env = None,
    seed: options.Seed = None,
    seeds: options.Seeds = None,
    steps: Steps = None,
    out: Annotated[Path | None, opt("New folder. Default: ppo/ in the run.", metavar="DIR")] = None,
) -> None:
    """Train PPO online in the real environment, from frames, and play it by samples."""
    _online("ppo", steps, out, preset, config, overrides, env=env, seed=seed, seeds=seeds)


@app.command()
def sac(
    preset: options.Preset = None,
    config: options.File = None,
    overrides: options.Overrides = None,
    env: options.Env = None,
    seed: options.Seed = None,
    seeds: options.Seeds = None,
    steps: Steps = None,
    out: Annotated[Path | None, opt("New folder. Default: sac/ in the run.", metavar="DIR")] = None,
) -> None:
    """Train SAC online in the real environment, from its state, and play its mean actions: continuous control alone."""
    _online("sac", steps, out, preset, config, overrides, env=env, seed=seed, seeds=seeds)


def _online(
    kind: str,
    steps: int | None,
    out: Path | None,
    preset: str | None,
    config: Path | None,
    overrides: list[str] | None,
    **others: Any,
) -> None:
    given = [f"{kind}.steps={steps}"] if steps else []
    resolved, folder = options.resolve(preset, config, [*given, *(overrides or ())], **others)
    from dreamer4_cli import run as work

    work.baseline(resolved, kind, out or folder / kind)


@app.command()
def offline(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="clone, best-quarter, best-tenth, conditioned, cql, iql; all by default.", show_default=False
        ),
    ] = None,
    data: Annotated[Path | None, opt("The data set.", metavar="SET", callback=existing)] = None,
    run: Annotated[Path | None, opt("Or a run, for its data and settings.", metavar="DIR", callback=existing)] = None,
    preset: options.Preset = None,
    config: options.File = None,
    overrides: options.Overrides = None,
    seed: options.Seed = None,
    seeds: options.Seeds = None,
    episodes: Annotated[int | None, opt("Episodes to play each policy.", min=1)] = None,
    entropy: Annotated[
        float | None, opt("Nats: also play the clone at the temperature that is as sharp.", min=0)
    ] = None,
    out: Annotated[Path | None, opt("JSON, a new file. Default: offline.json beside the data.", metavar="FILE")] = None,
) -> None:
    """Train what a data set allows without a world model, from frames, and play it by samples and greedily."""
    if (data is None) == (run is None):
        raise InputError("baseline offline: expected one of --data SET and --run RUN.")
    path: Any = data
    told = []
    if data is not None:
        from dreamer4.data import read_info

        environment = read_info(data).environment
        told = [f"env.{key}={json.dumps(value)}" for key, value in environment.items() if key != "world"]
    given = [*told, *([f"evaluation.episodes={episodes}"] if episodes else []), *(overrides or ())]
    resolved, _ = options.resolve(preset, config, given, seed=seed, seeds=seeds, folder=run)
    if run is not None:
        path = Path(resolved.data.path) if resolved.data.path else existing(run / "data")
    from dreamer4_cli import run as work

    work.offline(resolved, path, out or path.with_name("offline.json"), names or (), entropy=entropy)
