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
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dreamer4 import checkpoint, data
from dreamer4.config import Config, diff
from dreamer4.data import AbstractEpisodeSource, DeviceSource, LatentStore, StreamSource
from dreamer4.dreamer import PHASES, Dreamer, find_checkpoint, spec_to_json
from dreamer4.errors import InputError
from dreamer4.evaluation import summarise, summarise_seeds
from dreamer4.evaluation.dreams import DreamFrames, DreamQuality
from dreamer4.evaluation.results import Results, summarise_worlds
from dreamer4.evaluation.return_gap import measure_return_gap
from dreamer4.files import write_atomically
from dreamer4.reporting import write_report
from dreamer4.run import behaviour, latents, lineage, pages, processes, sizes, stopping, trackers, writing
from dreamer4.run.facts import device, memory_gb, run_results, source_commit
from dreamer4.run.folder import RunFolder
from dreamer4.run.metrics import MetricLog
from dreamer4.run.phase import Work, save, start_of
from dreamer4.run.playing import over_all, play_all, rates
from dreamer4.run.reporter import SILENT, Reporter
from dreamer4.tokenizer import LatentStats
from dreamer4.training import build_phase, init_state, measure_store, member, stack_members, stream
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
        end: the end of the phase before the first one, in another run; or the newest agent there.
        fallback: whether a damaged checkpoint may be passed over for an older one.
        changed_data: whether the data set may be another one than that of the checkpoint.
        seconds: tells how long the run has taken, earlier pieces included.
        drawn: what the phases draw from, if it is prepared already.
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
        drawn: latents.Drawn | None = None,
    ):
        super().__init__()
        self.config, self.run, self.report, self.command, self.phases = config, run, report, command, phases
        self.seconds, self.end, self.fallback, self.changed_data = seconds, end, fallback, changed_data
        self.commit = source_commit()  # of the code that runs; by the end there may be another
        self.measured: tuple[DreamQuality, DreamFrames] | None = None
        self.drawn = drawn
        self._encoded: tuple[StreamSource | None, Any] | None = None
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
            behaviour.collect(config, folder.data, agents, self.report)
        return folder.data

    def draw(self) -> latents.Drawn:
        """Returns what the phases draw from."""
        if self.drawn is None:
            self.drawn = latents.draw(self.config, self.dataset(), self.phases)
        return self.drawn

    def work(self) -> Work:
        """Returns what the phases share: the training episodes, the devices, the log."""
        if self._work is not None:
            return self._work
        config, run, path, drawn = self.config, self.run, self.dataset(), self.draw()
        info = drawn.info
        if self.end is not None:
            if processes.first():
                before = PHASES[PHASES.index(self.phases[0]) - 1]
                lineage.write(config, run, self.end, path, info.fingerprint, info.spec, into=before)
                latents.take_over(self.end.parents[2], run)
            processes.wait("taken over")
            stopping.note(f"Go on with: {self.command}")
        lineage.check_data(run, info.fingerprint, self.report, accept=self.changed_data)
        log = None
        if processes.first():
            tracker = trackers.start(config.train.tracker, run.path, config.model_dump(mode="json"))
            log = self.enter_context(contextlib.closing(MetricLog(run.metrics_file, tracker)))
        meta = {"config": config.model_dump(mode="json"), "spec": spec_to_json(info.spec), "data": info.fingerprint}
        mesh = build_mesh(config.train.mesh)
        self._work = Work(config, run, drawn.source, info, log, meta, self.command, mesh, self.report, drawn.held_out)
        return self._work

    def encode(self, agent: Dreamer) -> list[LatentStore]:
        """Returns the raw latents of the training episodes by each seed's tokenizer, encoding what is not there."""
        tokenizers = [member(agent, i, self.config.seeds).tokenizer for i in range(self.config.seeds)]
        return latents.encode(self.run, tokenizers, self.dataset(), self.work().info, self.report)

    def measure(self, agents: Dreamer) -> list[LatentStats]:
        """Returns the statistics of the raw latents of the training episodes, of each seed's tokenizer."""
        return [measure_store(store) for store in self.encode(agents)]

    def reads(self, phase: str, start: Dreamer) -> tuple[AbstractEpisodeSource, Any]:
        """Returns what a phase draws from, and the latents of all of it where these lie on the device.

        Args:
            phase: its name.
            start: the agent that it starts from.
        """
        sources = self.draw().sources
        if phase == PHASES[0]:
            return sources[phase], None
        if self._encoded is None:
            stats = [member(start, i, self.config.seeds).tokenizer.stats for i in range(self.config.seeds)]
            stores = [latents.standardised(*pair) for pair in zip(self.encode(start), stats, strict=True)]
            if latents.streams(self.config, self.work().info):
                self._encoded = latents.streamed(self.config, self.work().info, stores[0]), None
            else:
                self._encoded = None, stack_members([jnp.asarray(store.latents()) for store in stores])
        source, held = self._encoded
        return sources[phase] if source is None else source, held

    def for_heads(
        self, agent_dim: int, held: Float[Array, "N Nz Dz"] | None
    ) -> tuple[DeviceSource, DeviceSource] | None:
        """Returns training episodes in latents and held-out ones in frames, by which heads are trained to the end.

        Args:
            agent_dim: size of a read-out.
            held: the latents of all training episodes, where these lie on the device.
        """
        drawn, streamed = self.draw(), None if self._encoded is None else self._encoded[0]
        if streamed is not None:
            return latents.for_heads(self.config, self.dataset(), streamed, agent_dim)
        if held is None or drawn.device is None or drawn.held_out is None:
            return None
        return drawn.device.with_latents(held), drawn.held_out

    def release(self) -> None:
        """Lets go of what training holds: the episodes and latents on the devices, and the log."""
        self._work = self._encoded = self.drawn = None
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
        start = start_of(config, run, name, work.info.spec)
        state = spread(init_state(phase, start, settings, config.seeds), work.mesh)
        if newest is not None:
            state = checkpoint.load(newest, state, added=ADDED)
        source, held = session.reads(name, start)
        with stopping.hold():
            work = replace(work, source=source)
            if settings.patience and work.held_out is not None and held is not None:
                work = replace(work, held_out_latents=encode_members(config, start, work.held_out))
            state = work.train(phase, settings, state, held, steps)

            def given(i: int):
                return session.for_heads(
                    start.dynamics.agent_dim, None if held is None else member(held, i, config.seeds)
                )

            state, looks = finish(config, phase, state, session.measure, given)
            if work.log is not None and looks:
                work.log.truncate("heads", -1)
                for number, figures in enumerate(looks):
                    work.log.append("heads", number * config.train.heads.every, figures)
            save(steps, settings.steps, state, work.meta | {"phase": name})
            stopping.note(f"{name}: done. Go on with: {session.command}")


class Encode(AbstractStage):
    """Encodes the training episodes with the finished tokenizer, which the phases behind it would do otherwise."""

    def __call__(self, session: Session) -> None:
        session.encode(start_of(session.config, session.run, PHASES[1], session.work().info.spec))


class Evaluate(AbstractStage):
    """Plays the trained agents, measures their dreams, and writes `results.json`."""

    def check(self, config: Config, spec: DataSpec) -> None:
        if not config.imagination.is_imagined:
            raise InputError(
                "imagination.world: got real, and demo publishes what imagination gives. The perfect-world twin is a "
                "diagnostic: use dreamer4 train all, then dreamer4 evaluate."
            )
        sizes.worlds(config, spec)
        if config.data.path is not None and not data.read_info(Path(config.data.path)).held_out:
            raise InputError(
                f"data.path: {config.data.path} holds no episodes out, and demo dreams on those. Import it again with "
                "--held-out 0.1, or use dreamer4 train all."
            )

    def __call__(self, session: Session) -> None:
        session.release()
        config, run, path = session.config, session.run, session.dataset()
        info = data.read_info(path)
        worlds = sizes.worlds(config, info.spec)
        agents = [Dreamer.load(run.path, member=i) for i in range(config.seeds)]
        count, seed = config.evaluation.episodes, config.seed
        found, greedy = play_all(config, agents, worlds, session.report)
        returns = {name: over_all(each) for name, each in found.items()}
        returns = {"random": returns.pop("random"), "data": summarise(np.array(info.returns)), **returns}
        by_mode = {name: over_all(each) for name, each in greedy.items()}
        by_task = {
            world.name: {policy: summarise_seeds([seed.returns for seed in each[i]]) for policy, each in found.items()}
            for i, world in enumerate(worlds)
        }
        events = {
            world.name: {policy: rates(world.env, each[i]) for policy, each in found.items()}
            for i, world in enumerate(worlds)
            if world.env.events
        }
        session.report.say("measuring dreams on held-out episodes")
        (quality, frames), *others = pages.measure(config, agents, path, seed=seed)
        gaps = [
            measure_return_gap(
                agents[0],
                world.env,
                episodes=min(count, pages.REAL_EPISODES),
                spread=float(np.std(info.returns)),
                task=world.task,
                key=stream(seed, "evaluate"),
            )
            for world in worlds
            if world.task is not None  # a dream is of one task
        ]
        if gaps:  # of the task whose dreams pay too much, if any do
            quality = quality.model_copy(update={"returns": max(gaps, key=lambda gap: gap.difference)})
        before = run_results(run)
        results = Results(
            env=config.env.id,
            seed=seed,
            seeds=config.seeds,
            minutes=round(session.seconds() / 60, 2),
            returns=returns,
            by_mode=by_mode,
            by_task=by_task if len(worlds) > 1 else {},
            events=events,
            world_model=summarise_worlds([quality, *(other for other, _ in others)]),
            device=device(),
            memory_gb=memory_gb(),
            commit=session.commit,
            rounds=() if before is None else before.rounds,
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
    newest: bool = False,
    program: str = "dreamer4 train all",
    command: str | None = None,
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
        newest: take over the whole newest agent of `origin`, whatever its phase.
        program: what a person types to do these stages, without the options that name the run.
        command: what a person types to go on, all of it; None: `program` with this run.

    Raises:
        InputError: if a stage could not do its work, or the folder holds something else; nothing is written then.
    """
    run = RunFolder(folder)
    phases = [phase for stage in stages for phase in stage.trains()]
    left = [name for name in phases if run.checkpoints(name).steps()[-1:] != [getattr(config.train, name).steps]]
    spec = sizes.check_paths(config, left)
    for stage in stages:
        stage.check(config, spec)
    begun = any(run.checkpoints(phase).steps() for phase in phases)
    before: tuple[str, ...] = PHASES[: PHASES.index(phases[0])] if phases else ()
    end = None
    if origin is not None and not begun:
        end = find_checkpoint(origin) if newest else lineage.end_of(RunFolder(origin), before)
    if end is not None:
        lineage.check(end, config, spec)  # before anything is written
    missing = [phase for phase in before if not run.checkpoints(phase).steps()]
    # An imported run has the end of the one before, and no others; so has one that starts from another run.
    if end is None and missing and missing[-1:] == list(before[-1:]):
        raise InputError(f"{folder} has no {missing[0]} phase, which {phases[0]} builds on. Train {missing[0]} first.")
    resume = resume or (run.is_run and bool(phases) and not begun)
    kept = behaviour.kept(config, run)
    run.check(config, resume=resume, kept=kept)
    drawn = None
    if phases and config.data.path is not None:
        drawn = latents.draw(config, Path(config.data.path), phases)
    processes.agree(config)
    processes.wait("checked")  # what they are all to refuse, before the first one changes it
    if processes.first():
        run.open(config, resume=resume, kept=kept)
    processes.wait("opened")
    told = "" if end is None or command else f" --from {shlex.quote(str(end.parents[2]))}"
    command = command or resume_command(program, run, config)
    go_on = {"end": end, "fallback": fallback, "changed_data": changed_data}
    with writing.alone(run), writing.clock(run) as seconds:
        stopping.note(f"Go on with: {command}{told}")
        with Session(config, run, report, command, phases, seconds=seconds, drawn=drawn, **go_on) as session:
            del drawn  # which the session lets go of when training is over
            for stage in stages:
                stage(session)
    return run


def resume_command(program: str, run: RunFolder, config: Config) -> str:
    """Returns what a person types to go on with a run, on other devices than it was begun with if it is on such now."""
    parts = [program, *(f"--import {name}" for name in config.imports), "--run", shlex.quote(str(run.path)), "--resume"]
    for change in diff(run.read_config(), config.model_copy(update={"imports": run.read_config().imports})):
        key, _, value = change.replace(": ", "=", 1).partition("=")
        parts += ["--set", shlex.quote(f"{key}={value.rpartition(' -> ')[2]}")]
    return " ".join(parts)
