"""A run is a list of stages over one folder: each does what is left of its work, and what is done is not done again.

    execute(config, Path("runs/mine"), LOOP)
    execute(config, Path("runs/mine"), (Collect(), Train("tokenizer"), Train("dynamics")), resume=True)

All that evolves lies in the folder, so a run that was stopped goes on with the same list, and a longer list goes on
where a shorter one ended. Parts and environments are named in the configuration; own ones are registered before.
"""

import contextlib
import shlex
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import equinox as eqx
import numpy as np

from dreamer4 import checkpoint, data, envs
from dreamer4.config import Config, diff
from dreamer4.data import DeviceSource
from dreamer4.dreamer import PHASES, Dreamer, spec_to_json
from dreamer4.envs import AbstractEnvironment
from dreamer4.errors import InputError
from dreamer4.evaluation import evaluate, summarise, summarise_seeds
from dreamer4.evaluation.dreams import DreamFrames, DreamQuality
from dreamer4.evaluation.results import Results, summarise_worlds
from dreamer4.evaluation.return_gap import measure_return_gap
from dreamer4.evaluation.statistics import Estimate
from dreamer4.files import write_atomically
from dreamer4.reporting import write_report
from dreamer4.run import behaviour, lineage, pages, processes, sizes, stopping, trackers, writing
from dreamer4.run.facts import device, memory_gb, run_results, source_commit
from dreamer4.run.folder import RunFolder
from dreamer4.run.metrics import MetricLog
from dreamer4.run.phase import Work, save
from dreamer4.run.reporter import SILENT, Reporter
from dreamer4.training import (
    build_phase,
    init_dreamer,
    init_state,
    stream,
)
from dreamer4.training.finish import encode_members, finish
from dreamer4.training.placement import build_mesh, spread
from dreamer4.training.state import ADDED
from dreamer4.types import DataSpec


class Session(contextlib.ExitStack):
    """What the stages of one execution share. What training holds in memory is opened by the first phase.

    Args:
        config: settings of the run.
        run: its folder, opened.
        report: is told how it goes.
        command: what a person types to go on with the run.
        phases: those that will be trained.
        end: the end of the phase before the first one, in another run.
        fallback: whether a damaged checkpoint may be passed over for an older one.
        changed_data: whether the data set may be another one than that of the checkpoint.
        seconds: tells how long the run has taken, earlier pieces included.
    """

    def __init__(
        self,
        config: Config,
        run: RunFolder,
        report: Reporter,
        command: str,
        phases: Sequence[str],
        *,
        seconds: Callable[[], float],
        end: Path | None = None,
        fallback: bool = True,
        changed_data: bool = False,
    ):
        super().__init__()
        self.config, self.run, self.report, self.command, self.phases = config, run, report, command, phases
        self.seconds, self.end, self.fallback, self.changed_data = seconds, end, fallback, changed_data
        self.commit = source_commit()  # of the code that runs; by the end there may be another
        self.measured: tuple[DreamQuality, DreamFrames] | None = None
        self.latents: Any = None
        self.sources: dict[str, DeviceSource] = {}
        self._work: Work | None = None

    def dataset(self) -> Path:
        """Returns the data set of the run, collecting it first if the run brings none."""
        config, folder = self.config, self.run
        if config.data.path is not None:
            return Path(config.data.path)
        if not folder.data.exists():
            if processes.several():
                raise InputError(
                    "data.path: several processes train on a data set that is there before they start. Make one with "
                    "dreamer4 collect --out DIR, and give it with --set data.path=DIR."
                )
            agents = folder.path / behaviour.BEHAVIOUR
            behaviour.collect(config, envs.make(config.env), folder.data, agents, self.report)
        return folder.data

    def work(self) -> Work:
        """Returns what the phases share: the training episodes, the devices, the log."""
        if self._work is not None:
            return self._work
        config, run, path = self.config, self.run, self.dataset()
        info = data.read_info(path)
        if self.end is not None:
            if processes.first():
                lineage.write(config, run, self.end, path, info.fingerprint, info.spec)
            processes.wait("taken over")
            stopping.note(f"Go on with: {self.command}")
        _check_data_unchanged(run, info.fingerprint, self.report, accept=self.changed_data)
        episodes, held_out = (data.read_episodes(path, split) for split in ("train", "held_out"))
        at_least = data.return_of_best(episodes, config.data.relevant)
        episodes, held_out = (data.flag_relevant(part, at_least) for part in (episodes, held_out))
        source, judged = DeviceSource.from_episodes(episodes).with_labels(config.data.labelled), None
        if held_out:
            judged = DeviceSource.from_episodes(held_out)
        elif waiting := [name for name in self.phases if getattr(config.train, name).patience]:
            raise InputError(
                f"train.{waiting[0]}.patience: {path} holds no episodes out to stop by. Set it to 0, or import the "
                "data again with --held-out 0.1."
            )
        # Before the first trains, lest the last be refused.
        self.sources = {name: build_phase(name, config, info.spec).prepare(source, episodes) for name in self.phases}
        log = None
        if processes.first():
            tracker = trackers.start(config.train.tracker, run.path, config.model_dump(mode="json"))
            log = self.enter_context(contextlib.closing(MetricLog(run.metrics_file, tracker)))
        meta = {"config": config.model_dump(mode="json"), "spec": spec_to_json(info.spec), "data": info.fingerprint}
        mesh = build_mesh(config.train.mesh)
        self._work = Work(config, run, source, info, log, meta, self.command, mesh, self.report, judged)
        return self._work

    def release(self) -> None:
        """Lets go of what training holds: the episodes and latents on the devices, and the log."""
        self._work = self.latents = None
        self.sources = {}
        self.close()


class AbstractStage(eqx.Module):
    """One stage of a run: does what is left of its work, and nothing if that is done."""

    def trains(self) -> tuple[str, ...]:
        """Returns the phases that this stage trains."""
        return ()

    def check(self, config: Config, spec: DataSpec) -> None:
        """Refuses what can be refused before anything is written.

        Raises:
            InputError: if the stage could not do its work.
        """

    @abstractmethod
    def __call__(self, session: Session) -> None:
        """Does the work."""


class Collect(AbstractStage):
    """Plays the episodes that the configuration describes, unless it names a data set."""

    def __call__(self, session: Session) -> None:
        session.dataset()


class Train(AbstractStage):
    """Trains one phase to its end, from the end of the phase before it.

    Attributes:
        phase: its name.
    """

    phase: str

    def __check_init__(self):
        if self.phase not in PHASES:
            raise ValueError(f"phase: got {self.phase!r}, expected one of {', '.join(PHASES)}.")

    def trains(self) -> tuple[str, ...]:
        return (self.phase,)

    def __call__(self, session: Session) -> None:
        work = session.work()
        config, run, name = session.config, session.run, self.phase
        phase, settings = build_phase(name, config, work.info.spec), getattr(config.train, name)
        steps = run.checkpoints(name, keep=config.train.keep)
        newest = steps.latest_valid(fallback=session.fallback)
        if newest is not None and int(newest.name) == settings.steps:
            session.report.say(f"{name}: done before")
            return
        start = _start(config, run, name, work.info.spec)
        state = spread(init_state(phase, start, settings, config.seeds), work.mesh)
        if newest is not None:
            state = checkpoint.load(newest, state, added=ADDED)
        if name != "tokenizer" and session.latents is None:
            session.latents = encode_members(config, start, work.source)
        with stopping.hold():
            latents = None if name == "tokenizer" else session.latents
            work = replace(work, source=session.sources[name])
            if settings.patience and work.held_out is not None and latents is not None:
                work = replace(work, held_out_latents=encode_members(config, start, work.held_out))
            state = work.train(phase, settings, state, latents, steps)
            state, looks = finish(config, phase, state, session.work().source, latents, work.held_out)
            if work.log is not None and looks:
                work.log.truncate("heads", -1)
                for number, figures in enumerate(looks):
                    work.log.append("heads", number * config.train.heads.every, figures)
            save(steps, settings.steps, state, work.meta | {"phase": name})
            stopping.note(f"{name}: done. Go on with: {session.command}")


class Evaluate(AbstractStage):
    """Plays the trained agents, measures their dreams, and writes `results.json`."""

    def check(self, config: Config, spec: DataSpec) -> None:
        if not config.imagination.is_imagined:
            raise InputError(
                "imagination.world: got real, and demo publishes what imagination gives. The perfect-world twin is a "
                "diagnostic: use dreamer4 train all, then dreamer4 evaluate."
            )
        sizes.environment(config, spec)
        if config.data.path is not None and not data.read_info(Path(config.data.path)).held_out:
            raise InputError(
                f"data.path: {config.data.path} holds no episodes out, and demo dreams on those. Import it again with "
                "--held-out 0.1, or use dreamer4 train all."
            )

    def __call__(self, session: Session) -> None:
        session.release()
        config, run, path = session.config, session.run, session.dataset()
        info = data.read_info(path)
        env = sizes.environment(config, info.spec)
        agents = [Dreamer.load(run.path, member=i) for i in range(config.seeds)]
        count, seed = config.evaluation.episodes, config.seed
        by_chance = data.collect(env, data.random_policy(env.spec), episodes=count, key=stream(seed, "evaluate"))

        def returns_of(policy, mode) -> Estimate:
            return summarise_seeds(
                [play_agent(config, a, env, count, policy, mode, seed, session.report) for a in agents]
            )

        returns = {
            "random": summarise(np.array([episode.total for episode in by_chance])),
            "data": summarise(np.array(info.returns)),
            "cloned": returns_of("prior", "sample"),
            "imagination": returns_of("policy", "sample"),
        }
        by_mode = {"cloned": returns_of("prior", "mode"), "imagination": returns_of("policy", "mode")}
        session.report.say("measuring dreams on held-out episodes")
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
            minutes=round(session.seconds() / 60, 2),
            returns=returns,
            by_mode=by_mode,
            world_model=summarise_worlds([quality, *(other for other, _ in others)]),
            device=device(),
            memory_gb=memory_gb(),
            commit=session.commit,
        )
        write_atomically(run.results_file, results.model_dump_json(indent=1) + "\n")
        session.measured = (quality, frames)


class Report(AbstractStage):
    """Writes `report.html`, as far as the run has come."""

    def __call__(self, session: Session) -> None:
        session.release()
        run = session.run
        if session.measured is not None:
            write_report(run.report_file, pages.run_page(run, run_results(run), *session.measured))
        else:
            pages.report([run.path], None)


# Everything that training needs, and the whole loop with what is measured at its end.
TRAINING: tuple[AbstractStage, ...] = (Collect(), *map(Train, PHASES))
LOOP: tuple[AbstractStage, ...] = (*TRAINING, Evaluate(), Report())


def execute(
    config: Config,
    folder: Path,
    stages: Sequence[AbstractStage] = LOOP,
    *,
    report: Reporter = SILENT,
    resume: bool = False,
    fallback: bool = True,
    changed_data: bool = False,
    origin: Path | None = None,
    program: str = "dreamer4 train all",
) -> RunFolder:
    """Works through the stages of a run, each from where it was left.

    Args:
        config: settings of the run.
        folder: the run.
        stages: in order; phases are neighbours in the order of `PHASES`.
        report: is told how it goes.
        resume: whether to continue a phase that was begun.
        fallback: whether a damaged checkpoint may be passed over for an older one.
        changed_data: whether the data set may be another one than that of the checkpoint.
        origin: another run; what its phases before the first of these have trained is taken over.
        program: what a person types to do these stages, without the options that name the run.

    Raises:
        InputError: if a stage could not do its work, or the folder holds something else; nothing is written then.
    """
    run = RunFolder(folder)
    spec = sizes.check_paths(config)
    for stage in stages:
        stage.check(config, spec)
    phases = [phase for stage in stages for phase in stage.trains()]
    begun = any(run.checkpoints(phase).steps() for phase in phases)
    before: tuple[str, ...] = PHASES[: PHASES.index(phases[0])] if phases else ()
    end = None if origin is None or begun else lineage.end_of(RunFolder(origin), before)
    if end is not None:
        lineage.check(end, config, spec)  # before anything is written
    missing = [phase for phase in before if not run.checkpoints(phase).steps()]
    # An imported run has the end of the one before, and no others; so has one that starts from another run.
    if end is None and missing and missing[-1:] == list(before[-1:]):
        raise InputError(f"{folder} has no {missing[0]} phase, which {phases[0]} builds on. Train {missing[0]} first.")
    resume = resume or (run.is_run and bool(phases) and not begun)
    kept = behaviour.kept(config, run)
    run.check(config, resume=resume, kept=kept)
    processes.agree(config)
    processes.wait("checked")  # what they are all to refuse, before the first one changes it
    if processes.first():
        run.open(config, resume=resume, kept=kept)
    processes.wait("opened")
    command = resume_command(program, run, config)
    go_on = {"end": end, "fallback": fallback, "changed_data": changed_data}
    with writing.alone(run), writing.clock(run) as seconds:
        stopping.note(f"Go on with: {command}" + ("" if end is None else f" --from {shlex.quote(str(end.parents[2]))}"))
        with Session(config, run, report, command, phases, seconds=seconds, **go_on) as session:
            for stage in stages:
                stage(session)
    return run


def resume_command(program: str, run: RunFolder, config: Config) -> str:
    """Returns what a person types to go on with a run, on other devices than it was begun with if it is on such now."""
    parts = [program, *(f"--import {name}" for name in config.imports), "--run", shlex.quote(str(run.path)), "--resume"]
    for change in diff(run.read_config(), config.model_copy(update={"imports": run.read_config().imports})):
        key, _, value = change.replace(": ", "=", 1).partition("=")
        parts += ["--set", f"{key}={value.rpartition(' -> ')[2]}"]
    return " ".join(parts)


def play_agent(
    config: Config, agent: Dreamer, env: AbstractEnvironment, episodes: int, policy, mode, seed: int, report: Reporter
) -> np.ndarray:
    """Returns the returns of an agent in the real environment.

    Args:
        config: of its run.
        agent: who plays.
        env: where.
        episodes: how many are played.
        policy: which of its heads chooses, `policy` or `prior`.
        mode: how: `sample` or `mode`.
        seed: of the episodes.
        report: is told how it goes.
    """
    with report.progress(f"play {policy}", total=episodes, unit="episodes") as bar:
        played = evaluate(
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


def _check_data_unchanged(run: RunFolder, fingerprint: str, report: Reporter, *, accept: bool) -> None:
    """Refuses a data set that is not the one of the run's newest checkpoint.

    That one speaks for all: it was saved after its run had passed here with the older ones.
    """
    steps = [run.checkpoints(phase).path(n) for phase in PHASES for n in run.checkpoints(phase).steps()]
    for path in reversed(steps):
        try:
            saved = lineage.data_of(path)
        except InputError:  # it is passed over or refused where it is loaded
            continue
        if saved in (None, fingerprint):
            return
        what = f"The data set changed since {path} was saved (fingerprint {str(saved)[:12]}, now {fingerprint[:12]})."
        if not accept:
            raise InputError(
                f"{what} Restore the data set, start a new run, or go on all the same with --changed-data."
            )
        report.say(f"{what} Going on with the changed one.")
        return
