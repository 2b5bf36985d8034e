"""What came out of a run, as `results.json` holds it; files of earlier versions hold less."""

from collections.abc import Sequence

import numpy as np
from pydantic import ValidationError

from dreamer4.errors import InputError
from dreamer4.evaluation.dreams import CEILING, LAST_REPEATED, SHUFFLED, DreamQuality
from dreamer4.evaluation.record import Record
from dreamer4.evaluation.return_gap import ReturnGap
from dreamer4.evaluation.statistics import Estimate, Rate


class WorldSummary(Record):
    """World models of one run: means over its training seeds.

    Attributes:
        tokenizer_psnr: of the truth encoded and decoded, dB.
        tokenizer_exact: share of its frames that are exactly right.
        context_length: most true frames the dreams were given.
        episodes: dreams.
        psnr: by K, of all dreamt frames, dB.
        num_steps: K of the agent's own sampler; 4 where earlier versions did not tell it.
        mean_exact: by K, share of dreamt frames exactly right; empty where it tells nothing.
        exact_frames: the same at each step behind the context.
        controls: the same for what a dream must beat.
        returns: imagined against real return of the first training seed.
    """

    tokenizer_psnr: float | None = None
    tokenizer_exact: float | None = None
    context_length: int | None = None
    episodes: int | None = None
    psnr: dict[int, float] = {}
    num_steps: int = 4
    mean_exact: dict[int, float] = {}
    exact_frames: dict[int, tuple[float, ...]] = {}
    controls: dict[str, tuple[float, ...]] = {}
    returns: ReturnGap | None = None

    @property
    def exact(self) -> float | None:
        """Share of dreamt frames exactly right at the agent's own K; None where it tells nothing or was not told."""
        steps = self.exact_frames.get(self.num_steps)  # of earlier versions, which told no mean
        return self.mean_exact.get(self.num_steps, float(np.mean(steps)) if steps else None)


class RoundResult(Record):
    """One online round; 0 is the offline loop.

    Attributes:
        number: which.
        episodes: of all data that its agent was trained on.
        collected: mean return of the episodes that were new; None in round 0.
        sampled: return of its policy, actions sampled.
        greedy: return of its policy, the most likely action taken.
    """

    number: int
    episodes: int
    collected: float | None
    sampled: Estimate
    greedy: Estimate


class Results(Record):
    """A finished run.

    Attributes:
        env: id of the environment.
        seed: the first training seed.
        seeds: how many there are.
        minutes: of training and evaluation.
        returns: by policy, actions sampled.
        by_mode: by policy, the most likely action taken.
        by_task: the same as `returns` for each of several tasks, by its name.
        events: by task and policy, actions sampled, how often each event of the environment happened.
        world_model: of the first data set's held-out episodes.
        device: what it was computed on.
        memory_gb: most memory of the process.
        commit: of the code; a + marks changes.
        rounds: online rounds, if there were any.
    """

    env: str = ""
    seed: int | None = None
    seeds: int = 1
    minutes: float | None = None
    returns: dict[str, Estimate] = {}
    by_mode: dict[str, Estimate] = {}
    by_task: dict[str, dict[str, Estimate]] = {}
    events: dict[str, dict[str, dict[str, Rate]]] = {}
    world_model: WorldSummary = WorldSummary()
    device: str | None = None
    memory_gb: float | None = None
    commit: str | None = None
    rounds: tuple[RoundResult, ...] = ()


def read_results(content: bytes, *, name: str) -> Results:
    """Reads `results.json`.

    Raises:
        InputError: if it is no such file; `name` says which.
    """
    try:
        return Results.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError(f"{name} cannot be read: {place + ': ' if place else ''}{first['msg']}.") from None


def summarise_worlds(qualities: Sequence[DreamQuality]) -> WorldSummary:
    """Returns the means over training seeds; shares of exact frames are left out where they tell nothing."""

    def mean(values):
        return np.mean(values, axis=0).round(4).tolist()

    first, ceilings = qualities[0], [q.controls[CEILING].mean for q in qualities]
    passes = first.passes if first.tells_exactness else ()
    controls = (SHUFFLED, LAST_REPEATED) if first.tells_exactness else ()
    return WorldSummary(
        tokenizer_psnr=round(float(np.mean([c.psnr for c in ceilings])), 2),
        tokenizer_exact=round(float(np.mean([c.exact for c in ceilings])), 5),
        context_length=first.context_length,
        episodes=first.clips,
        psnr={k: round(float(np.mean([q.passes[k].mean.psnr for q in qualities])), 2) for k in first.passes},
        num_steps=first.num_steps,
        mean_exact={k: mean([q.passes[k].mean.exact for q in qualities]) for k in passes},
        exact_frames={k: mean([q.passes[k].exact for q in qualities]) for k in passes},
        controls={name: mean([q.controls[name].exact for q in qualities]) for name in controls},
        returns=first.returns if isinstance(first.returns, ReturnGap) else None,
    )
