"""`dreamer4 evaluate --world-model`: how far the dreams of a run can be trusted, as JSON, as a page, on the console."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from dreamer4 import checkpoint, data
from dreamer4.config import Config, to_yaml
from dreamer4.data import DeviceSource
from dreamer4.dreamer import Dreamer, find_checkpoint, read_description
from dreamer4.envs import AbstractEnvironment
from dreamer4.errors import InputError
from dreamer4.evaluation.clips import anywhere
from dreamer4.evaluation.dreams import (
    CEILING,
    NO_FRAMES,
    NOT_TRAINED,
    SHUFFLED,
    DreamFrames,
    DreamQuality,
    WorldModel,
    measure_dreams,
)
from dreamer4.evaluation.ends import measure_ends
from dreamer4.evaluation.fvd import told_fvd
from dreamer4.evaluation.return_gap import measure_return_gap
from dreamer4.files import check_place
from dreamer4.reporting import Report, write_report
from dreamer4.reporting.figures import percent
from dreamer4.run import sizes
from dreamer4.run.facts import device, source_commit
from dreamer4.run.folder import RunFolder, run_of, steps_done
from dreamer4.run.pages import REAL_EPISODES, judges
from dreamer4.training import encode_source, stream
from dreamer4.worlds import RealWorld
from dreamer4_cli.console import ProgressBar


console = Console()


def evaluate_world_model(
    path: Path,
    *,
    clips: int | None,
    context: int | None,
    horizon: int | None,
    lpips: bool = False,
    fvd: bool = False,
    out: Path | None,
    seed: int,
) -> None:
    """Measures the dreams of a run on its held-out episodes and its policy's returns in dreams and in reality.

    Args:
        path: run folder or checkpoint.
        clips: dreams; None: as many as the run's configuration says.
        context: most frames given to a dream; None: the dynamics' context, which is what an acting agent remembers.
        horizon: frames dreamt; None: as many as the dynamics' context, at most as many as an episode has.
        lpips: whether dreams are judged by LPIPS too.
        fvd: whether they are by FVD.
        out: the JSON file; None: `world_model.json` in the run, numbered if there is one.
        seed: of starts and noise.
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
    episodes = data.read_episodes(dataset, "held_out")
    source = DeviceSource.from_episodes(episodes)
    levels = [level / 255 for level in (info.frame_levels or range(256))]
    longest = config.dynamics.context_length or source.max_length - 1
    context = longest if context is None else context
    horizon = min(longest, source.max_length - 1) if horizon is None else horizon
    trained = phase in ("agent", "imagination")
    env, missing = _environment(config, info) if trained else (None, NOT_TRAINED)
    world, placed, unplaced = None, source, missing
    if env is not None:
        world = RealWorld(env)
        try:
            placed = world.prepare(source, episodes)
        except InputError as error:
            world, unplaced = None, f"no places in the game: {error}"
    key, judged = stream(seed, "evaluate"), judges(config, info.spec.frame_shape)
    starts = anywhere(source, clips or asked.clips, key=key)
    members, frames = [], None
    for i in range(config.seeds):
        dreamer = Dreamer.load(step, member=i)
        latents = encode_source(dreamer, source)
        with ProgressBar("dream", total=len(starts.episode), unit="clips", console=console) as bar:
            quality, seen = measure_dreams(
                dreamer,
                source,
                latents,
                starts,
                levels=levels,
                **sizes.reading(config, info.spec),
                num_steps=(*asked.passes, 16, dreamer.dynamics.passes[-1]),
                context_length=context,
                horizon=min(horizon, source.max_length - 1),
                heads=trained,
                **judged,
                progress=lambda done, _: bar.advance(done - bar.completed),  # noqa: B023
                key=key,
            )
        frames = frames or seen
        returns = missing
        ends = unplaced
        if world is not None:
            at = placed.with_latents(latents)
            ends = measure_ends(dreamer, world, at, starts, context_length=context, key=key).record()
        if env is not None:
            spread = float(np.std(info.returns))
            returns = measure_return_gap(dreamer, env, episodes=REAL_EPISODES, spread=spread, key=key)
        members.append(quality.model_copy(update={"seed": config.seed + i, "returns": returns, "ends": ends}))
        _print(members[-1], config)
    results = WorldModel(
        env=config.env.id,
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
    page = out.with_suffix(".html")
    write_report(page, _report(config, results, frames or NO_FRAMES))
    _say(f"results: {out}")
    _say(f"report:  {page}")


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


def _environment(config: Config, info: data.DatasetInfo) -> tuple[AbstractEnvironment | None, str]:
    """Returns the real environment, or None and why there is none to play in."""
    if info.spec.num_tasks > 1:
        return None, f"the tasks are {', '.join(info.spec.names)}: dreamer4 evaluate plays each"
    try:
        return sizes.environment(config, info.spec), ""
    except InputError as error:
        return None, f"no environment: {error}"


def _print(quality: DreamQuality, config: Config) -> None:
    depth = len(quality.frames)
    title = f"{config.env.id}, seed {quality.seed}: {quality.clips} dreams of up to {depth} frames"
    exact = quality.tells_exactness
    head = ["exact"] if exact else []
    looks = quality.passes[quality.num_steps].lpips is not None
    also = [*(["LPIPS"] if looks else []), *(["FVD"] if quality.fvd else [])]
    table = Table("", *head, "PSNR", "SSIM", "PSNR, first", f"PSNR, frame {depth}", *also, title=title)
    for name, curves in ({f"K = {k}": c for k, c in quality.passes.items()} | quality.controls).items():
        share = [percent(curves.mean.exact)] if exact else []
        psnr = [f"{value:.1f} dB" for value in (curves.mean.psnr, curves.psnr[0], curves.psnr[-1])]
        similarity = "n/a" if curves.mean.ssim is None else f"{curves.mean.ssim:.3f}"
        own = name == f"K = {quality.num_steps}"
        look = [f"{curves.mean.lpips:.3f}"] if looks else []
        far = [f"{quality.fvd.distances[name]:.0f}" if name in quality.fvd.distances else "n/a"] if quality.fvd else []
        table.add_row(name, *share, psnr[0], similarity, *psnr[1:], *look, *far, style="bold" if own else "")
    console.print(table)
    if quality.fvd:
        _say(told_fvd(quality.fvd))

    if kinds := quality.passes[quality.num_steps].mean.read:
        table = Table(
            "read as the truth", *(f"{kind}{at}" for kind in kinds for at in ("", ", first", f", frame {depth}"))
        )
        for name, curves in (
            {f"K = {quality.num_steps}": quality.passes[quality.num_steps]} | quality.controls
        ).items():
            shares = [[curves.mean.read[kind], curves.read[kind][0], curves.read[kind][-1]] for kind in kinds]
            table.add_row(name, *(percent(share) for three in shares for share in three))
        console.print(table)

    own, controls = quality.passes[quality.num_steps], quality.controls
    if own.changes:
        # Nothing changes where the last frame is repeated, and the decoded truth is the most that there is to reach.
        against = {"dreamt": own, **{name: controls[name] for name in (SHUFFLED, CEILING)}}
        table = Table("changes read as in truth, %", "times", *against)
        for change, rate in own.changes.items():
            shares = (curves.changes[change] for curves in against.values())
            cells = (f"{100 * r.mean:.0f} ({100 * r.low:.0f}-{100 * r.high:.0f})" for r in shares)
            table.add_row(change, str(rate.episodes), *cells)
        console.print(table)

    table = Table("warning without labels", "mean", "rank correlation with error", "at equal depth")
    for name, signal in quality.signals.items():
        pair = (signal.rank_correlation, signal.rank_correlation_at_equal_depth)
        cells = ("n/a" if r is None else f"{r:+.2f}" for r in pair)
        table.add_row(name.replace("_", " "), f"{np.mean(signal.by_depth):.4f}", *cells)
    console.print(table)

    if isinstance(quality.heads, str):
        _say(f"reward and continuation heads: {quality.heads}")
    else:
        table = Table("head", "frames", "base rate", "accuracy", "recall", "precision", "mean error")
        for read, scores in quality.heads.items():
            for head, row, error in (("reward", scores.reward, f"{scores.reward.mae:.4f}"), ("end", scores.end, "")):
                shares = (row.base_rate, row.accuracy, row.recall, row.precision)
                table.add_row(head, read, *map(percent, shares), error)
        console.print(table)
    _print_ends(quality.ends)
    if isinstance(quality.returns, str):
        _say(f"imagined against real return: {quality.returns}")
        return
    style = "bold red" if quality.returns.alarm else None
    console.print(quality.returns.verdict, style=style, markup=False, highlight=False, soft_wrap=True)


def _print_ends(ends: Mapping[str, Any] | str) -> None:
    if isinstance(ends, str):
        _say(f"ends in the game and in the dream: {ends}")
        return
    rows = [ends["policy"], ends["random"]]
    frames = [f"{first} to {last}" for first, last in rows[0]["frames"]]
    table = Table("actions", "played", *frames, "games over", title="ends met again, by frames behind the start")
    for name, recall in zip(("policy", "random"), rows, strict=True):
        table.add_row(name, "ends", *map(str, recall["ends"]), f"{recall['over']:.1%}")
        for again in ("dream", "twin"):
            shares = ["n/a" if share is None else f"{share:.1%}" for share in recall[again]]
            table.add_row("", again, *shares, f"{recall[f'{again}_over']:.1%}")
    console.print(table)


def _report(config: Config, results: WorldModel, frames: DreamFrames) -> Report:
    facts = {"environment": results.env, "preset": config.preset, "phase": results.phase, "step": results.step}
    told = {"seed": config.seed, "device": results.device, "commit": results.commit or ""}
    return Report(
        title=f"World model of {config.env.id}",
        run=facts | {name: value for name, value in told.items() if value != ""},
        world=results.seeds[0],
        frames=frames,
        config=to_yaml(config),
    )


def _say(line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
