"""How good the dreams are: held-out episodes dreamt again under their own actions, frame by frame against the truth."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from dreamer4.data import DeviceSource
from dreamer4.dreamer import Dreamer
from dreamer4.envs import Symbols
from dreamer4.errors import InputError, check_whole
from dreamer4.evaluation.clips import Clips, Starts
from dreamer4.evaluation.closeness import Curves, Scores, curves_of
from dreamer4.evaluation.dreaming import Batch
from dreamer4.evaluation.fvd import FVD, TRUTH, VideoFeatures, Videos, whole
from dreamer4.evaluation.head_scores import HeadScores, score_heads
from dreamer4.evaluation.interactions import Interaction
from dreamer4.evaluation.record import Record
from dreamer4.evaluation.return_gap import ReturnGap
from dreamer4.evaluation.signals import Signal, disagreement, judge_signal
from dreamer4.evaluation.stills import film, reconstructions
from dreamer4.tokenizer import Perceptual
from dreamer4.types import check_key, to_uint8


GRIDS, TRACES = 2, 2  # clips shown in many ways, episodes whose rewards are followed
NOT_TRAINED = "not trained"
NOT_MEASURED = "Not measured here. dreamer4 evaluate RUN --world-model compares the two."
LAST_REPEATED, SHUFFLED, NO_OP, CEILING = (
    "last frame repeated",
    "actions shuffled",
    "no-op actions",
    "tokenizer ceiling",
)


@dataclass(frozen=True)
class Grid:
    """A clip as it was and as it was dreamt.

    Attributes:
        given: the last frame that the dreams were given.
        truth: the frames that followed.
        dreams: in their place, by what was dreamt how.
    """

    given: UInt8[np.ndarray, "H W C"]
    truth: UInt8[np.ndarray, "L H W C"]
    dreams: Mapping[str, UInt8[np.ndarray, "L H W C"]]


class Comparisons(Record):
    """What the dreams must show: distances between the curves, in dB over all frames."""

    psnr_over_shuffled_actions: float
    psnr_over_last_frame: float
    psnr_below_finest_sampler: float = 0.0
    psnr_below_tokenizer: float
    above_last_frame_at_every_step: bool = False


class Followed(Record):
    """What `happened`, and what a head says having seen the `true` frames or the `dreamt` ones, by dreamt frame."""

    happened: tuple[float, ...]
    true: tuple[float, ...]
    dreamt: tuple[float, ...]


class Trace(Record):
    """One episode along which the heads are followed, after `given` frames; no value ever happens."""

    given: int
    reward: Followed
    continuation: Followed
    value: Followed


class DreamQuality(Record):
    """What was measured on held-out episodes.

    Attributes:
        context_length: most true frames the model was given.
        clips: dreams.
        frames: number of dreams compared at each step behind the context.
        num_steps: K of the agent's own sampler.
        comparisons: what the dreams must show.
        passes: by number K of denoise passes, the quality of the dreams.
        fvd: distances of dreamt videos from true ones as sets; None where they were not measured.
        controls: the same at the agent's own K for shuffled actions and for no-op actions; for repeating the last frame
            of the context; and for the truth encoded and decoded, which no dream can surpass by much.
        signals: label-free warnings and their rank correlation with the true error.
        heads: scores of the reward and continuation heads on `dreamt` and on `true` frames, or that they are untrained.
        traces: a few episodes along which the heads are followed.
        returns: imagined against real return, or why it was not measured.
        ends: where the game ends and where its dreams do, or why it was not measured.
        interactions: what actions do, by name, where the environment can tell it from pictures.
        seed: the training seed, where it is told.
    """

    context_length: int
    clips: int
    frames: tuple[int, ...] = ()
    num_steps: int
    comparisons: Comparisons
    passes: dict[int, Curves]
    controls: dict[str, Curves]
    fvd: FVD | None = None
    signals: dict[str, Signal]
    heads: dict[str, HeadScores] | str
    traces: tuple[Trace, ...] = ()
    returns: ReturnGap | str = ""
    ends: dict[str, Any] | str = ""
    interactions: dict[str, Interaction] = {}
    seed: int | None = None

    @property
    def tells_exactness(self) -> bool:
        """Whether shares of exact frames tell anything: not where even the truth, encoded and decoded, never is."""
        ceiling = self.controls.get(CEILING)
        return ceiling is None or ceiling.mean.exact > 0


class WorldModel(Record):
    """What `dreamer4 evaluate --world-model` writes.

    Attributes:
        env: id of the environment.
        phase: the last one trained.
        step: its step, or that the agent was exported.
        data: fingerprint of the data set.
        starts_seed: draws where dreams begin.
        no_op: what counts as no action.
        device: what it was computed on.
        commit: of the code.
        seeds: one for each training seed.
    """

    env: str
    phase: str
    step: int | str
    data: str
    starts_seed: int
    no_op: str = "class 0 of each component, 0 of continuous ones"
    device: str
    commit: str | None
    seeds: tuple[DreamQuality, ...]


@dataclass(frozen=True)
class DreamFrames:
    """What can be looked at.

    Attributes:
        shown: triples of true frames, the same with the dream in place of what was not given, and how many were given.
        grids: a few clips dreamt with every K and under the wrong actions.
        reconstructions: a few frames, then as the encoder saw them in training, then as decoded.
    """

    shown: Sequence[tuple[UInt8[np.ndarray, "_ H W C"], UInt8[np.ndarray, "_ H W C"], int]] = ()
    grids: Sequence[Grid] = ()
    reconstructions: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]] = ()


NO_FRAMES = DreamFrames()


def measure_dreams(
    dreamer: Dreamer,
    source: DeviceSource,
    latents: Float[Array, "N Nz Dz"],
    starts: Starts,
    *,
    levels: Sequence[float],
    read: Callable[[np.ndarray], Symbols] = lambda frames: {},
    places: Mapping[str, Sequence[str]] = {},
    num_steps: Sequence[int] = (1, 2, 4, 8),
    context_length: int = 1,
    horizon: int,
    noise_seeds: int = 4,
    heads: bool = True,
    lpips: Perceptual | None = None,
    video_features: VideoFeatures | None = None,
    shown: int = 6,
    progress: Callable[[int, int], None] | None = None,
    key: PRNGKeyArray,
) -> tuple[DreamQuality, DreamFrames]:
    """Dreams held-out episodes again and compares them with what happened.

    A step counts the episodes that reach it; nothing behind the end of an episode counts. All dreams of a clip share
    their noise, save those whose disagreement is measured.

    Args:
        dreamer: the agent.
        source: held-out episodes, with frames.
        latents: their latents.
        starts: where the dreams begin.
        levels: the pixel values that occur, in [0, 1]; dreams are rounded to the nearest.
        read: reads symbols off frames, as `AbstractEnvironment.symbols` does.
        places: names of places of numbers among them, as `AbstractEnvironment.places` tells.
        num_steps: numbers K of denoise passes to try, with the agent's own K; those that the dynamics does not know
            are left out.
        context_length: most true frames given, at most the dynamics' context.
        horizon: most frames dreamt; it may exceed the dynamics' context.
        noise_seeds: dreams of each clip whose disagreement is measured, at least 2.
        heads: whether the reward and continuation heads are trained.
        lpips: a distance of how frames look, to measure it too.
        video_features: what videos are compared by, to measure FVD too.
        shown: clips whose frames are returned.
        progress: called with clips done and in total.
        key: randomness of the dreams.

    Raises:
        InputError: if the lengths make no sense.
    """
    check_key("dreams", key)
    check_whole("dreams", context_length=context_length, horizon=horizon)
    check_whole("dreams", least=2, noise_seeds=noise_seeds)
    longest = dreamer.dynamics.context_length or source.max_length
    if context_length > longest:
        raise InputError(
            f"dreams: got {context_length} context frames, expected 1 to {longest}, the context of the dynamics."
        )
    clips = Clips(source, source.with_latents(latents), starts, context_length, horizon)
    own = dreamer.dynamics.own_passes
    tried = sorted({k for k in num_steps if k in dreamer.dynamics.passes} | {own})
    key_noise, key_shuffle = jr.split(key)
    actions, shuffled, none = clips.actions, clips.shuffled_actions(key=key_shuffle), clips.no_actions()

    scores, films, grids = Scores(levels, read, places, lpips), [], []
    videos = None if video_features is None else Videos(video_features, clips.valid)
    for index in clips.batches():
        batch = Batch.load(dreamer, clips, index, key=key_noise)
        dreams = {f"K = {steps}": batch.look(batch.dream(steps, actions).latent)[0] for steps in tried}
        for steps, video in zip(tried, dreams.values(), strict=True):
            scores.judge(str(steps), video, batch.frames)
        ours = batch.dream(own, actions)
        video, residual = batch.look(ours.latent)
        ceiling, residual_of_truth = batch.look(batch.truth)
        for name, wrong in ((SHUFFLED, shuffled), (NO_OP, none)):
            dreams[name] = batch.look(batch.dream(own, wrong).latent)[0]
            scores.judge(name, dreams[name], batch.frames)
        scores.judge(LAST_REPEATED, batch.last_frame(), batch.frames)
        scores.judge(CEILING, ceiling, batch.frames)
        if videos is not None:
            at = whole(clips.valid, index, len(starts.episode))
            sets = {k: v for k, v in dreams.items() if k not in (SHUFFLED, NO_OP)}
            for name, seen in (sets | {TRUTH: batch.frames, CEILING: ceiling}).items():
                videos.add(name, seen, at)
        others = [batch.look(batch.dream(own, actions, seed=i).latent)[0] for i in range(1, noise_seeds)]
        scores.add(
            decode_encode_residual=residual,
            residual_of_truth=residual_of_truth,
            late_movement=ours.movement,
            seed_disagreement=disagreement([video, *others]),
        )
        if heads:
            true = batch.dream(own, actions, observed=True)
            scores.add(reward=batch.reward, terminal=batch.terminal)
            scores.add(dreamt_reward=ours.reward, dreamt_continuation=ours.continuation)
            scores.add(true_reward=true.reward, true_continuation=true.continuation)
            scores.add(dreamt_value=ours.value, true_value=true.value)
        grids += [
            _grid(clips, row, i, batch, dreams) for row, i in enumerate(index[: max(0, GRIDS - len(grids))].tolist())
        ]
        wanted = index[: max(0, shown - len(films))].tolist()
        films += [film(clips, i, t, v) for i, t, v in zip(wanted, batch.frames, video, strict=False)]
        if progress is not None:
            progress(int(index[-1]) + 1, len(starts.episode))

    valid = clips.valid
    measured = scores.first(len(valid))
    names = ["decode_encode_residual", "seed_disagreement"] + (["late_movement"] if own > 1 else [])
    of_truth = {"decode_encode_residual": measured["residual_of_truth"]}
    error, right = measured[f"{own} error"], measured[f"{own} exact"]
    passes = {k: curves_of(measured, str(k), valid) for k in tried}
    controls = {name: curves_of(measured, name, valid) for name in (SHUFFLED, NO_OP, LAST_REPEATED, CEILING)}
    quality = DreamQuality(
        context_length=context_length,
        clips=int(valid[:, 0].sum()),
        frames=tuple(int(n) for n in valid.sum(0) if n),
        num_steps=own,
        comparisons=_compare(passes[own], passes[max(tried)], controls),
        passes=passes,
        controls=controls,
        fvd=None if videos is None else videos.distances(),
        signals={n: judge_signal(measured[n], error, right, valid, truth=of_truth.get(n)) for n in names},
        heads=_judge_heads(measured, valid) if heads else NOT_TRAINED,
        traces=tuple(_traces(measured, clips)) if heads else (),
        returns=NOT_MEASURED if heads else NOT_TRAINED,
    )
    pictures = reconstructions(dreamer, source, starts.episode[:shown], key=key)
    return quality, DreamFrames(films, grids, pictures)


def _compare(own: Curves, finest: Curves, controls: Mapping[str, Curves]) -> Comparisons:
    def gain(other: Curves) -> float:
        return round(own.mean.psnr - other.mean.psnr, 2)

    still = controls[LAST_REPEATED]
    return Comparisons(
        psnr_over_shuffled_actions=gain(controls[SHUFFLED]),
        psnr_over_last_frame=gain(still),
        psnr_below_finest_sampler=-gain(finest),
        psnr_below_tokenizer=-gain(controls[CEILING]),
        above_last_frame_at_every_step=all(a > b for a, b in zip(own.psnr, still.psnr, strict=True)),
    )


def _judge_heads(measured: Mapping[str, np.ndarray], valid: np.ndarray) -> dict[str, HeadScores]:
    return {
        read: score_heads(
            measured[f"{read}_reward"],
            measured[f"{read}_continuation"],
            measured["reward"],
            measured["terminal"],
            valid,
        )
        for read in ("dreamt", "true")
    }


def _grid(clips: Clips, row: int, index: int, batch: Batch, dreams: Mapping[str, np.ndarray]) -> Grid:
    """Returns one clip of a batch as it was and as it was dreamt; nothing behind its end."""
    length = int(clips.valid[index].sum())
    shown = {name: np.asarray(to_uint8(jnp.asarray(video[row, :length]))) for name, video in dreams.items()}
    return Grid(np.asarray(batch.before[row, 0]), np.asarray(batch.frames[row, :length]), shown)


def _traces(measured: Mapping[str, np.ndarray], clips: Clips) -> list[Trace]:
    """Follows the clips that earned most and least among the longest.

    A value is not read at a termination: an end has none.
    """
    length = clips.valid.sum(axis=1)
    earned = np.where(clips.valid, measured["reward"], 0.0).sum(axis=1)
    longest = np.flatnonzero(length == length.max())
    chosen = dict.fromkeys([longest[earned[longest].argmax()], longest[earned[longest].argmin()]])
    happened = {"reward": measured["reward"], "continuation": 1.0 - measured["terminal"]}

    def along(values, i, ending=0):
        return tuple(round(float(x), 4) for x in values[i, : length[i] - ending])

    def read(name, kind, i):
        ending = int(measured["terminal"][i, length[i] - 1]) if name == "value" else 0
        return along(measured[f"{kind}_{name}"], i, ending)

    def followed(name, i):
        seen = along(happened[name], i) if name in happened else ()
        return Followed(happened=seen, true=read(name, "true", i), dreamt=read(name, "dreamt", i))

    heads = ("reward", "continuation", "value")
    return [
        Trace(given=int(clips.given[i]), **{name: followed(name, i) for name in heads}) for i in list(chosen)[:TRACES]
    ]
