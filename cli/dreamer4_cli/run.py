"""What the commands do: configuration to parts, parts to training, training to files a person can look at."""

import contextlib
import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import equinox as eqx
import numpy as np
from rich.console import Console
from rich.table import Table

from dreamer4 import checkpoint, data, envs
from dreamer4.config import Config
from dreamer4.data import AbstractPolicy, DeviceSource
from dreamer4.dreamer import PHASES, Dreamer, find_checkpoint, read_description, spec_to_json
from dreamer4.envs import AbstractEnvironment
from dreamer4.errors import InputError
from dreamer4.evaluation import PlanningPolicy, summarise, summarise_seeds
from dreamer4.evaluation import evaluate as play
from dreamer4.evaluation import play as play_policy
from dreamer4.evaluation.results import Results, summarise_worlds
from dreamer4.evaluation.return_gap import measure_return_gap
from dreamer4.evaluation.statistics import Estimate
from dreamer4.reporting import write_report
from dreamer4.training import (
    TrainState,
    build_phase,
    encode_source,
    init_dreamer,
    init_state,
    measure_latents,
    member,
    stack_members,
    stream,
    trackers,
)
from dreamer4.training.folder import RunFolder, cloned_head, steps_done
from dreamer4.training.metrics import MetricLog, Progress
from dreamer4.training.placement import bring_home, build_mesh, spread
from dreamer4.training.state import ADDED
from dreamer4.types import DataSpec
from dreamer4_cli import behaviour, pages, processes, stopping, takeover, writing
from dreamer4_cli.describe import check_data as check_data
from dreamer4_cli.describe import check_sizes
from dreamer4_cli.describe import dry_run as dry_run
from dreamer4_cli.describe import info as info
from dreamer4_cli.invocation import invoked
from dreamer4_cli.pages import device as device
from dreamer4_cli.pages import source_commit as source_commit
from dreamer4_cli.phase import Work, resume_command, save


try:
    import resource
except ImportError:  # Windows
    resource = None

console = Console()

_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, kilobytes elsewhere

_POLICY_NAMES = {
    "random": "random actions",
    "data": "behaviour data",
    "cloned": "cloned policy",
    "imagination": "imagination policy",
}


def collect(config: Config, out: Path) -> None:
    """Collects the data set that a configuration describes into the new folder `out`."""
    if os.path.lexists(out):
        raise InputError(f"{out} exists, and a data set is never overwritten. Choose another folder with --out.")
    stopping.note(f"No data set was written to {out}.")
    agents = out.with_name(behaviour.BEHAVIOUR if out.name == RunFolder(out).data.name else f"{out.name}-behaviour")
    info = behaviour.collect(config, envs.make(config.env), out, agents)
    _say(f"{out}: {info.num_episodes} episodes, {info.num_frames} frames, mean return {info.return_mean:.3f}")


def _dataset(config: Config, folder: RunFolder) -> Path:
    """Returns the data set of a run, collecting it first if the run brings none."""
    if config.data.path is not None:
        return Path(config.data.path)
    if not folder.data.exists():
        if processes.several():
            raise InputError(
                "data.path: several processes train on a data set that is there before they start. Make one with "
                "dreamer4 collect --out DIR, and give it with --set data.path=DIR."
            )
        behaviour.collect(config, envs.make(config.env), folder.data, folder.path / behaviour.BEHAVIOUR)
    return folder.data


def train(
    config: Config,
    folder: Path,
    phases: tuple[str, ...],
    *,
    resume: bool,
    fallback: bool = True,
    changed_data: bool = False,
    origin: Path | None = None,
) -> None:
    """Trains phases in a run folder, each from the end of the one before it.

    Args:
        config: settings of the run.
        folder: the run.
        phases: neighbours in the order of `PHASES`.
        resume: whether to continue a phase that was begun.
        fallback: whether a damaged checkpoint may be passed over for an older one.
        changed_data: whether the data set may be another one than that of the checkpoint.
        origin: another run; what its phases before the first of `phases` have trained is taken over.
    """
    run = RunFolder(folder)
    spec = _check_paths(config)
    begun = any(run.checkpoints(phase).steps() for phase in phases)
    before = PHASES[: PHASES.index(phases[0])]
    start = None if origin is None or begun else takeover.end_of(RunFolder(origin), before)
    if start is not None:
        takeover.check(start, config, spec)  # before anything is written
    missing = [phase for phase in before if not run.checkpoints(phase).steps()]
    # An imported run has the end of the one before, and no others; so has one that starts from another run.
    if start is None and missing and missing[-1] == before[-1]:
        raise InputError(f"{folder} has no {missing[0]} phase, which {phases[0]} builds on. Train {missing[0]} first.")
    resume = resume or (run.is_run and not begun)
    kept = behaviour.kept(config, run)
    run.check(config, resume=resume, kept=kept)
    processes.agree(config)
    processes.wait("checked")  # what they are all to refuse, before the first one changes it
    if processes.first():
        run.open(config, resume=resume, kept=kept)
    processes.wait("opened")
    command = resume_command(f"train {'all' if phases == PHASES else phases[0]}", run, config)
    with writing.alone(run), writing.clock(run):
        _train(config, run, phases, command, fallback=fallback, changed_data=changed_data, end=start)


def _check_paths(config: Config) -> DataSpec:
    """Refuses what can be refused before anything is written: the environment, the data set, the sizes, the tracker.

    Returns what the data is, or will be.
    """
    trackers.check(config.train.tracker)
    build_mesh(config.train.mesh)
    if config.data.path is None:
        env = envs.make(config.env)
        behaviour.check(config, env)
        spec = env.spec
    else:
        spec = data.read_info(Path(config.data.path)).spec
    check_sizes(config, spec)
    return spec


def _train(
    config: Config,
    run: RunFolder,
    phases: tuple[str, ...],
    command: str,
    *,
    fallback: bool,
    changed_data: bool,
    end: Path | None = None,
) -> None:
    """Trains phases in an opened run, from the `end` of the phase before them in another run, if that is given."""
    stopping.note(f"Go on with: {command}" + ("" if end is None else f" --from {shlex.quote(str(end.parents[2]))}"))
    path = _dataset(config, run)
    info = data.read_info(path)
    if end is not None:
        if processes.first():
            takeover.write(config, run, end, path, info.fingerprint, info.spec)
        processes.wait("taken over")
        stopping.note(f"Go on with: {command}")
    _check_data_unchanged(run, info.fingerprint, accept=changed_data)
    episodes = data.read_episodes(path, "train")
    source = DeviceSource.from_episodes(episodes)
    todo = [build_phase(name, config, info.spec) for name in phases]
    sources = [phase.prepare(source, episodes) for phase in todo]  # before the first trains, lest the last be refused
    del episodes
    mesh = build_mesh(config.train.mesh)
    opened: contextlib.AbstractContextManager[MetricLog | None] = contextlib.nullcontext()
    if processes.first():
        tracker = trackers.start(config.train.tracker, run.path, config.model_dump(mode="json"))
        opened = contextlib.closing(MetricLog(run.metrics_file, tracker))
    meta = {"config": config.model_dump(mode="json"), "spec": spec_to_json(info.spec), "data": info.fingerprint}
    with opened as log:
        work, latents = Work(config, run, source, info, log, meta, command, mesh), None
        for phase, prepared in zip(todo, sources, strict=True):
            name, settings = phase.name, getattr(config.train, phase.name)
            steps = run.checkpoints(name, keep=config.train.keep)
            newest = steps.latest_valid(fallback=fallback)
            if newest is not None and int(newest.name) == settings.steps:
                _say(f"{name}: done before")
                continue
            start = _start(config, run, name, info.spec)
            state = spread(init_state(phase, start, settings, config.seeds), mesh)
            if newest is not None:
                state = checkpoint.load(newest, state, added=ADDED)
            if name != "tokenizer" and latents is None:
                latents = _encode(config, start, source)
            with stopping.hold():
                state = replace(work, source=prepared).train(phase, settings, state, latents, steps)
                save(steps, settings.steps, _finish(config, phase, state, source), meta | {"phase": name})
                stopping.note(f"{name}: done. Go on with: {command}")


def _finish(config: Config, phase, state: TrainState, source: DeviceSource) -> TrainState:
    """Returns the last state of a phase, with the averaged weights as the phase leaves them."""
    agents, ema = [], state.ema if config.train.mesh.size == 1 else bring_home(state.ema)
    for i in range(config.seeds):
        dreamer = phase.finish(member(ema, i, config.seeds))
        if phase.name == "tokenizer":
            dreamer, _ = measure_latents(dreamer, lambda d: encode_source(d, source))
        agents.append(dreamer)
    return eqx.tree_at(lambda s: s.ema, state, stack_members(agents))


def _start(config: Config, run: RunFolder, name: str, spec: DataSpec) -> Dreamer:
    """Returns the agent that a phase starts from: untrained, or the averaged weights of the phase before."""
    if name == PHASES[0]:
        return init_dreamer(config, spec)
    before = PHASES[PHASES.index(name) - 1]
    path = run.checkpoints(before).latest_valid()
    wanted = getattr(config.train, before).steps
    if path is None or int(path.name) < wanted:
        reached = "no checkpoint" if path is None else f"step {path.name}"
        raise InputError(
            f"{name} starts from the end of {before}, step {wanted}, but {run.path} has {reached}. "
            f"Run: dreamer4 train {before} --run {shlex.quote(str(run.path))} --resume"
        )
    return checkpoint.load(path, eqx.filter_eval_shape(init_dreamer, config, spec), at="ema")


def _encode(config: Config, dreamer: Dreamer, source: DeviceSource):
    agents = [member(dreamer, i, config.seeds) for i in range(config.seeds)]
    if not all(bool(agent.tokenizer.stats.measured) for agent in agents):
        raise InputError("The tokenizer's latent statistics were never measured. Train the tokenizer phase to its end.")
    return stack_members([encode_source(agent, source) for agent in agents])


def _check_data_unchanged(run: RunFolder, fingerprint: str, *, accept: bool) -> None:
    """Refuses a data set that is not the one of the run's newest checkpoint.

    That one speaks for all: it was saved after its run had passed here with the older ones.
    """
    steps = [run.checkpoints(phase).path(n) for phase in PHASES for n in run.checkpoints(phase).steps()]
    for path in reversed(steps):
        try:
            saved = takeover.data_of(path)
        except InputError:  # it is passed over or refused where it is loaded
            continue
        if saved in (None, fingerprint):
            return
        what = f"The data set changed since {path} was saved (fingerprint {str(saved)[:12]}, now {fingerprint[:12]})."
        if not accept:
            raise InputError(
                f"{what} Restore the data set, start a new run, or go on all the same with --changed-data."
            )
        _say(f"{what} Going on with the changed one.")
        return


def evaluate(path: Path, *, episodes: int | None, seed: int, plan: int | None = None) -> None:
    """Plays a trained agent in the real environment and prints its returns.

    Args:
        path: a run or a checkpoint.
        episodes: how many; None: as many as the configuration says.
        seed: of the episodes.
        plan: dreams before each action of one more way to act, planning; None: without it.
    """
    step = find_checkpoint(path)
    cloned, meta, (config, spec) = cloned_head(step), checkpoint.read_meta(step), read_description(step)
    env = _environment(config, spec)
    if plan is not None and meta.get("phase") != "imagination":
        raise InputError(
            f"--plan: {path} is of the {meta.get('phase')} phase, and planning needs the value head, which the "
            "imagination phase trains. Train it, or leave --plan out."
        )
    agents = [Dreamer.load(path, member=i) for i in range(config.seeds)]
    count = episodes or config.evaluation.episodes
    table = Table("policy", "acting by", "return", "95 % interval", "episodes")
    if cloned == "policy":
        _say(f"agent phase: step {steps_done(step)} of {config.train.agent.steps}; its policy is cloned so far")
    for policy, name in ((cloned, "cloned"), ("policy", "imagination")):
        if name == "imagination" and meta.get("phase") != "imagination":
            continue
        for mode in ("sample", "mode"):
            returns = [_play(config, agent, env, count, policy, mode, seed) for agent in agents]
            row = summarise_seeds(returns)
            label = config.imagination.result if name == "imagination" else _POLICY_NAMES[name]
            table.add_row(label, mode, *_cells(row))
    if plan is not None:
        settings = config.imagination
        planners = [PlanningPolicy(agent, plan, settings.horizon, settings.discount) for agent in agents]
        returns = [_played(planner, env, count, config, seed) for planner in planners]
        table.add_row(settings.result, f"plan {plan} x {settings.horizon}", *_cells(summarise_seeds(returns)))
    console.print(table)


def _played(policy: AbstractPolicy, env, episodes: int, config: Config, seed: int) -> np.ndarray:
    with Progress("play planning", total=episodes, unit="episodes", console=console) as bar:
        played = play_policy(
            policy,
            env,
            episodes=episodes,
            batch_size=min(config.evaluation.batch_size, episodes),
            progress=lambda done, _: bar.advance(done - bar.completed),
            key=stream(seed, "evaluate"),
        )
    return np.asarray(played.returns)


def _environment(config: Config, spec: DataSpec) -> AbstractEnvironment:
    """Returns the real environment, in which an agent of such data can play."""
    env = envs.make(config.env)
    if (env.spec.frame_shape, env.spec.action) != (spec.frame_shape, spec.action):
        raise InputError(
            f"env.id: {config.env.id} looks like {env.spec}, but the data like {spec}, so what learns from it cannot "
            "play there. Name the environment of the data with --env and env.kwargs; dreamer4 train all needs none."
        )
    return env


def _play(config: Config, agent: Dreamer, env, episodes: int, policy, mode, seed: int) -> np.ndarray:
    with Progress(f"play {policy}", total=episodes, unit="episodes", console=console) as bar:
        played = play(
            agent,
            env,
            episodes=episodes,
            batch_size=min(config.evaluation.batch_size, episodes),
            mode=mode,
            policy=policy,
            temperature=config.evaluation.temperature,
            progress=lambda done, _: bar.advance(done - bar.completed),
            key=stream(seed, "evaluate"),
        )
    return np.asarray(played.returns)


def _cells(row: Estimate) -> tuple[str, str, str]:
    return f"{row.mean:+.3f}", f"{row.low:+.3f} to {row.high:+.3f}", str(row.episodes)


def demo(config: Config, folder: Path, *, resume: bool, fallback: bool = True, changed_data: bool = False) -> None:
    """Runs the whole loop and writes `results.json` and `report.html`."""
    if not config.imagination.is_imagined:
        raise InputError(
            "imagination.world: got real, and demo publishes what imagination gives. The perfect-world twin is a "
            "diagnostic: use dreamer4 train all, then dreamer4 evaluate."
        )
    run = RunFolder(folder)
    env = _environment(config, _check_paths(config))
    if config.data.path is not None and not data.read_info(Path(config.data.path)).held_out:
        raise InputError(
            f"data.path: {config.data.path} holds no episodes out, and demo dreams on those. Import it again with "
            "--held-out 0.1, or use dreamer4 train all."
        )
    run.open(config, resume=resume, kept=behaviour.kept(config, run))
    command = resume_command("demo", run, config)
    with writing.alone(run), writing.clock(run) as seconds:
        commit = source_commit()  # of the code that runs; by the end there may be another
        _train(config, run, PHASES, command, fallback=fallback, changed_data=changed_data)
        _judge(config, run, env, seconds, commit)


def _judge(
    config: Config, run: RunFolder, env: AbstractEnvironment, seconds: Callable[[], float], commit: str | None
) -> None:
    """Plays the agents of a trained run, measures their dreams, and writes down what came out."""
    path = _dataset(config, run)
    info = data.read_info(path)
    agents = [Dreamer.load(run.path, member=i) for i in range(config.seeds)]
    count, seed = config.evaluation.episodes, config.seed
    by_chance = data.collect(env, data.random_policy(env.spec), episodes=count, key=stream(seed, "evaluate"))
    returns = {
        "random": summarise(np.array([episode.total for episode in by_chance])),
        "data": summarise(np.array(info.returns)),
        "cloned": summarise_seeds([_play(config, a, env, count, "prior", "sample", seed) for a in agents]),
        "imagination": summarise_seeds([_play(config, a, env, count, "policy", "sample", seed) for a in agents]),
    }
    by_mode = {
        "cloned": summarise_seeds([_play(config, a, env, count, "prior", "mode", seed) for a in agents]),
        "imagination": summarise_seeds([_play(config, a, env, count, "policy", "mode", seed) for a in agents]),
    }
    _say("measuring dreams on held-out episodes")
    (quality, frames), *others = pages.measure(config, agents, path, seed=seed)
    gap = measure_return_gap(
        agents[0],
        env,
        episodes=min(count, pages.REAL_EPISODES),
        spread=float(np.std(info.returns)),
        key=stream(seed, "evaluate"),
    )
    quality = quality.model_copy(update={"returns": gap})
    results = Results(
        env=config.env.id,
        seed=seed,
        seeds=config.seeds,
        minutes=round(seconds() / 60, 2),
        returns=returns,
        by_mode=by_mode,
        world_model=summarise_worlds([quality, *(other for other, _ in others)]),
        device=device(),
        memory_gb=_peak_memory(),
        commit=commit,
    )
    run.results_file.write_text(results.model_dump_json(indent=1) + "\n")
    write_report(run.report_file, pages.run_page(run, results, quality, frames))
    _print_results(config, results, run)


def _peak_memory() -> float | None:
    """Returns the most memory that the process had, GB; None where the system does not tell."""
    if resource is None:
        return None
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_UNIT / 1e9, 2)


def _print_results(config: Config, results: Results, run: RunFolder) -> None:
    over = "episodes" if config.seeds == 1 else f"{config.seeds} training seeds"
    table = Table("policy", "mean return", "95 % interval", "episodes", title=f"{config.env.id}, interval over {over}")
    for name, row in results.returns.items():
        table.add_row(_POLICY_NAMES[name], *_cells(row), style="bold" if name == "imagination" else "")
    console.print(table)
    world = results.world_model
    dreamt = f"dreamt frames {world.psnr[world.num_steps]} dB"
    if (exact := world.exact) is not None:
        dreamt = f"{100 * exact:.1f} % of dreamt frames exactly right"
    _say(f"world model: {dreamt}; tokenizer {world.tokenizer_psnr} dB")
    if world.returns is not None:
        _say(world.returns.verdict)
    best = results.by_mode["imagination"].mean
    _say(f"imagination policy, always taking its most likely action: {best:+.3f}")
    memory = f", {results.memory_gb} GB at most" if results.memory_gb else ""
    _say(f"{results.minutes:.1f} minutes on {results.device}{memory}")
    _say(f"results: {run.results_file}")
    _say(f"report:  {run.report_file}")
    _say(f"play it: {invoked()} play {shlex.quote(str(run.path))}")


def _say(line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
