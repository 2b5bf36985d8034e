"""How far the dreams of a run can be trusted: measured on its held-out episodes, written as JSON and as a page."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import PRNGKeyArray

from dreamer4 import checkpoint, data
from dreamer4.config import Config, to_yaml
from dreamer4.data import DeviceSource
from dreamer4.dreamer import Dreamer, find_checkpoint, read_description
from dreamer4.envs import AbstractEnvironment
from dreamer4.errors import InputError
from dreamer4.evaluation.clips import anywhere
from dreamer4.evaluation.dreams import NO_FRAMES, NOT_TRAINED, DreamFrames, WorldModel
from dreamer4.evaluation.ends import measure_ends, measure_own_ends
from dreamer4.evaluation.interactions import measure_interactions
from dreamer4.evaluation.play import DreamerPolicy
from dreamer4.evaluation.return_gap import measure_return_gap
from dreamer4.files import check_place
from dreamer4.reporting import Report, write_report
from dreamer4.run import sizes
from dreamer4.run.facts import device, source_commit
from dreamer4.run.folder import RunFolder, run_of, steps_done
from dreamer4.run.pages import REAL_EPISODES, measure_agent, read_held_out
from dreamer4.run.reporter import SILENT, Reporter
from dreamer4.training import encode_source, stream
from dreamer4.worlds import RealWorld


OWN_GAMES = 100


def measure_world_model(
    path: Path,
    *,
    clips: int | None = None,
    context: int | None = None,
    horizon: int | None = None,
    lpips: bool = False,
    fvd: bool = False,
    task: str | int | None = None,
    out: Path | None = None,
    seed: int = 0,
    report: Reporter = SILENT,
) -> tuple[WorldModel, Path]:
    """Measures the dreams of a run on its held-out episodes and its policy's returns in dreams and in reality.

    Args:
        path: run folder or checkpoint.
        clips: dreams; None: as many as the run's configuration says.
        context: most frames given to a dream; None: the dynamics' context, which is what an acting agent remembers.
        horizon: frames dreamt; None: as many as the dynamics' context, at most as many as an episode has.
        lpips: whether dreams are judged by LPIPS too.
        fvd: whether they are by FVD.
        task: name or number of the task whose episodes are dreamt; None: all, without returns if there are several.
        out: the JSON file; None: `world_model.json` in the run, numbered if there is one.
        seed: of starts and noise.
        report: is told how it goes.

    Returns:
        What came out, and the file that holds it; its page lies beside it.

    Raises:
        InputError: if the checkpoint has no world model yet or never learned the task, its data set is not the one
            that it was trained on or holds nothing out, or the results could not be written.
    """
    commit = source_commit()  # of the code that runs; by the end there may be another
    step = find_checkpoint(path)
    meta = checkpoint.read_meta(step)
    config, phase = read_description(step)[0], meta["phase"]
    asked = config.evaluation
    asked = asked.model_copy(update={"lpips": lpips or asked.lpips, "fvd": fvd or asked.fvd})
    config = config.model_copy(update={"evaluation": asked})
    if phase == "tokenizer":
        raise InputError(f"{step} is of the tokenizer phase, which has no world model yet. Train the dynamics first.")
    done, run = steps_done(step), run_of(step)
    run = run if run is not None and run.is_run else None
    out = _free_file(out, run)
    check_place(out)
    dataset = _dataset(config, run, meta["data"])
    info = data.read_info(dataset)
    if not info.held_out:
        raise InputError(
            f"evaluate --world-model dreams held-out episodes, and {dataset} has none. Import it again with "
            "--held-out 0.1."
        )
    number = None if task is None else info.spec.find_task(task)
    episodes = read_held_out(dataset, number)
    source = DeviceSource.from_episodes(episodes)
    most = source.max_length - 1
    longest = config.dynamics.context_length or most
    context = longest if context is None else context
    horizon = min(horizon or longest, most)
    trained = phase in ("agent", "imagination")
    env, missing = _environment(config, info, number) if trained else (None, NOT_TRAINED)
    world, placed, unplaced = None, source, missing
    if env is not None:
        world = RealWorld(env)
        try:
            placed = world.prepare(source, episodes)
        except InputError as error:
            world, unplaced = None, f"no places in the game: {error}"
    key, readable = stream(seed, "evaluate"), sizes.only_environment(config, info.spec)
    starts = anywhere(source, clips or asked.clips, key=key)
    members, frames = [], None
    for i in range(config.seeds):
        dreamer = Dreamer.load(step, member=i)
        latents = encode_source(dreamer, source)
        with report.progress("dream", total=len(starts.episode), unit="clips") as bar:
            quality, seen = measure_agent(
                config,
                dreamer,
                info,
                source,
                latents,
                starts,
                num_steps=(*asked.passes, 16, dreamer.dynamics.passes[-1]),
                context_length=context,
                horizon=horizon,
                heads=trained,
                progress=lambda done, _: bar.advance(done - bar.completed),  # noqa: B023
                key=key,
            )
        frames = frames or seen
        done_by = {}
        if readable is not None:
            done_by = measure_interactions(dreamer, source, latents, readable, context_length=context, key=key)
        returns, ends = missing, unplaced
        if world is not None:
            at = placed.with_latents(latents)
            how = {"context_length": context, "key": key}
            played = _play(dreamer, world, number or 0, key)
            own = None if played is None else measure_own_ends(dreamer, world, played, **how)
            ends = replace(measure_ends(dreamer, world, at, starts, **how), own=own).record()
        if env is not None:
            spread = float(np.std(info.returns if number is None else [episode.total for episode in episodes]))
            how = {"spread": spread, "task": number or 0}
            returns = measure_return_gap(dreamer, env, episodes=REAL_EPISODES, **how, key=key)
        told = {"seed": config.seed + i, "returns": returns, "ends": ends, "interactions": done_by}
        members.append(quality.model_copy(update=told))
    results = WorldModel(
        env=config.env.id if number is None else info.spec.names[number],
        phase=phase,
        step="exported" if done is None else done,
        data=info.fingerprint,
        starts_seed=seed,
        device=device(),
        commit=commit,
        seeds=tuple(members),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("x") as file:
        file.write(results.model_dump_json(indent=1) + "\n")
    write_report(out.with_suffix(".html"), _page(config, results, frames or NO_FRAMES))
    return results, out


def _play(dreamer: Dreamer, world: RealWorld, task: int, key: PRNGKeyArray) -> DeviceSource | None:
    """Returns the games of the agent's own that ended, with latents and places; None if none did."""
    played = data.collect(world.env, DreamerPolicy(dreamer, task=task), episodes=OWN_GAMES, key=key)
    ended = [episode for episode in played if episode.is_terminal]
    if not ended:
        return None
    source = world.prepare(DeviceSource.from_episodes(ended), ended)
    return source.with_latents(encode_source(dreamer, source))


def _free_file(out: Path | None, run: RunFolder | None) -> Path:
    """Returns the file to write, which does not exist yet, and whose page does not either."""
    if out is not None:
        for file in (out, out.with_suffix(".html")):
            if os.path.lexists(file):
                raise InputError(f"--out {out}: {file} exists, and results are never overwritten. Choose another name.")
        if out.suffix == ".html":
            raise InputError(f"--out {out}: expected the name of a JSON file; the page is written beside it as .html.")
        return out
    if run is None:
        raise InputError("The checkpoint lies in no run folder. Say where to write the results with --out FILE.")
    names = ("world_model" if n == 1 else f"world_model-{n}" for n in range(1, 10_000))
    files = (run.path / f"{name}.json" for name in names)
    return next(f for f in files if not os.path.lexists(f) and not os.path.lexists(f.with_suffix(".html")))


def _dataset(config: Config, run: RunFolder | None, fingerprint: str) -> Path:
    """Returns the data set of the run, which must be the one that it was trained on."""
    path = Path(config.data.path) if config.data.path is not None else None if run is None else run.data
    if path is None:
        raise InputError("The checkpoint lies in no run folder and names no data set. Give the run folder.")
    found = data.read_info(path).fingerprint
    if found != fingerprint:
        raise InputError(
            f"{path} is not the data set of this run (fingerprint {found[:12]}, trained on {fingerprint[:12]}). Its "
            "held-out episodes may have been trained on; restore the data set."
        )
    return path


def _environment(config: Config, info: data.DatasetInfo, task: int | None) -> tuple[AbstractEnvironment | None, str]:
    """Returns the real environment, or None and why there is none to play in."""
    if info.spec.num_tasks > 1 and task is None:
        return None, f"the tasks are {', '.join(info.spec.names)}: choose one with --task"
    try:
        return sizes.environment(config, info.spec, task or 0), ""
    except InputError as error:
        return None, f"no environment: {error}"


def _page(config: Config, results: WorldModel, frames: DreamFrames) -> Report:
    facts = {"environment": results.env, "preset": config.preset, "phase": results.phase, "step": results.step}
    told = {"seed": config.seed, "device": results.device, "commit": results.commit or ""}
    return Report(
        title=f"World model of {results.env}",
        run=facts | {name: value for name, value in told.items() if value != ""},
        world=results.seeds[0],
        frames=frames,
        config=to_yaml(config),
    )
