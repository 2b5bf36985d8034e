"""Online rounds: the newest agent plays, and all but the tokenizer learns on from everything that was ever played.

    RUN/collected/<n>/     what the newest policy played for round n; written once, never changed
    RUN/rounds/<n>/        a run of its own: data/ is all of it up to here, checkpoints/ the agent that came out

A round begins with the whole agent of the one before. Each line of `results.json` under `rounds` is one of them, the
offline loop being round 0, played in the same episodes. The paper names this step as future work (section 6).
"""

from pathlib import Path

import numpy as np

from dreamer4 import data
from dreamer4.config import Config, override
from dreamer4.data.merge import merge_datasets
from dreamer4.dreamer import PHASES, Dreamer, find_checkpoint
from dreamer4.errors import InputError
from dreamer4.evaluation import summarise
from dreamer4.evaluation.results import Results, RoundResult
from dreamer4.files import write_atomically
from dreamer4.run import behaviour, processes, sizes
from dreamer4.run.facts import device, run_results
from dreamer4.run.folder import RunFolder
from dreamer4.run.playing import play_agent
from dreamer4.run.stages import AbstractStage, Session, Train, execute
from dreamer4.types import DataSpec


class Round(AbstractStage):
    """One round, and what its agent gets in the real environment.

    Attributes:
        number: from 1; 0 only plays the agent of the offline loop.
    """

    number: int

    def check(self, config: Config, spec: DataSpec) -> None:
        sizes.environment(config, spec)
        if config.seeds > 1 or processes.several():
            raise InputError(
                "--rounds: data is collected by one agent, in one process. Train each of several seeds in a run of its "
                "own, with --seed, and start without --coordinator."
            )

    def __call__(self, session: Session) -> None:
        session.release()
        run, results = session.run, run_results(session.run)
        if results is not None and any(row.number == self.number for row in results.rounds):
            session.report.say(f"round {self.number}: done before")
            return
        path = self._learn(session) if self.number else run.path
        config, info = session.config, data.read_info(session.dataset() if not self.number else path / "data")
        env, agent, count = sizes.environment(config, info.spec), Dreamer.load(path), config.evaluation.episodes
        sampled, greedy = (
            summarise(play_agent(config, agent, env, count, "policy", mode, config.seed, session.report).returns)
            for mode in ("sample", "mode")
        )
        row = RoundResult(
            number=self.number,
            episodes=info.num_episodes,
            collected=data.read_info(_collected(run, self.number)).return_mean if self.number else None,
            sampled=sampled,
            greedy=greedy,
        )
        results = run_results(run) or Results(env=config.env.id, seed=config.seed, device=device())
        results = results.model_copy(update={"rounds": (*results.rounds, row)})
        write_atomically(run.results_file, results.model_dump_json(indent=1) + "\n")

    def _learn(self, session: Session) -> Path:
        """Collects, and trains on all there is; returns the folder of the round."""
        config, run, number = session.config, session.run, self.number
        before = run.path if number == 1 else _folder(run, number - 1)
        folder, new = _folder(run, number), _collected(run, number)
        seed = _seed(config.seed, number)
        if not new.exists():
            newest = str(find_checkpoint(before))
            plain = {"path": None, "policy": newest, "mixture": (), "episodes": config.rounds.episodes}
            collecting = config.model_copy(update={"data": config.data.model_copy(update=plain), "seed": seed})
            behaviour.collect(collecting, new, new, session.report)
        everything = folder / "data"
        if not everything.exists():
            merge_datasets([session.dataset(), *(_collected(run, n) for n in range(1, number + 1))], everything)
        settings = _settings(config, everything, seed)
        execute(
            settings,
            folder,
            tuple(map(Train, PHASES[1:])),
            report=session.report,
            resume=RunFolder(folder).is_run,
            origin=before,
            newest=True,
            command=session.command,
        )
        return folder


def rounds(count: int) -> tuple[Round, ...]:
    """Returns the stages behind the offline loop, its own row included."""
    return tuple(map(Round, range(count + 1)))


def _folder(run: RunFolder, number: int) -> Path:
    return run.path / "rounds" / str(number)


def _collected(run: RunFolder, number: int) -> Path:
    return run.path / "collected" / str(number)


def _seed(seed: int, number: int) -> int:
    """Returns the seed of a round, which no other run or round is likely to have."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0] >> 1)


def _settings(config: Config, path: Path, seed: int) -> Config:
    """Returns the settings of a round: fewer steps, and nothing waits for what is trained by now."""
    assignments = [f'data.path="{path}"', f"seed={seed}", "train.agent.warm_heads=0", "train.imagination.warm_value=0"]
    for name in PHASES[1:]:
        assignments.append(
            f"train.{name}.steps={max(1, round(config.rounds.share * getattr(config.train, name).steps))}"
        )
    if config.dynamics.is_shortcut:
        assignments.append("dynamics.shortcut.bootstrap_start=0")
    return override(config, assignments)
