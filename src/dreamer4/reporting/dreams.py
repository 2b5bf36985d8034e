"""How good the dreams are: held-out episodes dreamt again under their own actions, frame by frame against the truth."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray, UInt8

from dreamer4.data import DeviceSource
from dreamer4.dreamer import Dreamer, Memory
from dreamer4.dynamics import commit, denoise_watched
from dreamer4.errors import InputError
from dreamer4.reporting.clips import Clips, Starts
from dreamer4.reporting.head_scores import score_heads
from dreamer4.reporting.quality import frame_ssim, matching_frames, squared_errors
from dreamer4.reporting.signals import disagreement, judge_signals
from dreamer4.reporting.stills import film, reconstructions
from dreamer4.tokenizer import AbstractTokenizer
from dreamer4.types import Action, Trajectory, to_uint8


HIGHEST_PSNR = 100.0  # dB; frames of eight bits cannot tell better ones apart, and infinity is no JSON
SMALLEST_SIDE = 3  # pixels, of frames that have a structural similarity

LAST_REPEATED, SHUFFLED, NO_OP, CEILING = (
    "last frame repeated",
    "actions shuffled",
    "no-op actions",
    "tokenizer ceiling",
)


class Dreamt(eqx.Module):
    """A batch of dreams, as latents.

    Attributes:
        latent: the dreamt frames.
        reward: expected rewards at them.
        continuation: probabilities that the episode goes on at them.
        movement: how far the clean estimate of a frame moved in the second half of its denoise passes, RMS.
    """

    latent: Float[Array, "*B H Nz Dz"]
    reward: Float[Array, "*B H"]
    continuation: Float[Array, "*B H"]
    movement: Float[Array, "*B H"]


@dataclass(frozen=True)
class Curves:
    """Closeness to the truth, at each step behind the context and over all frames.

    Attributes:
        exact: share of frames with every pixel right after rounding to the pixel values that occur.
        psnr: dB, of the squared error averaged over frames.
        ssim: structural similarity; None for frames too small to have one.
        mean_exact: `exact` of all frames together.
        mean_psnr: `psnr` of all frames together.
        mean_ssim: `ssim` of all frames together.
    """

    exact: list[float]
    psnr: list[float]
    ssim: list[float] | None
    mean_exact: float
    mean_psnr: float
    mean_ssim: float | None

    def record(self) -> dict[str, object]:
        """Returns the curves as plain data."""
        mean = {"exact": self.mean_exact, "psnr": self.mean_psnr, "ssim": self.mean_ssim}
        return {"exact": self.exact, "psnr": self.psnr, "ssim": self.ssim, "mean": mean}


@dataclass(frozen=True)
class DreamQuality:
    """What was measured on held-out episodes.

    Attributes:
        context_length: most true frames the model was given.
        frames: number of dreams compared at each step behind the context.
        num_steps: K of the agent's own sampler.
        passes: by number K of denoise passes, the quality of the dreams.
        controls: the same at the agent's own K for shuffled actions and for no-op actions; for repeating the last frame
            of the context; and for the truth encoded and decoded, which no dream can surpass by much.
        signals: label-free warnings and their rank correlation with the true error.
        heads: scores of the reward and continuation heads on `dreamt` and on `true` frames; None if not trained.
        shown: triples of true frames, the same with the dream in place of what was not given, and how many were given.
        reconstructions: a few frames, then as the encoder saw them in training, then as decoded.
    """

    context_length: int
    frames: list[int]
    num_steps: int
    passes: Mapping[int, Curves]
    controls: Mapping[str, Curves]
    signals: Mapping[str, Mapping[str, object]]
    heads: Mapping[str, Mapping[str, object]] | None
    shown: Sequence[tuple[UInt8[np.ndarray, "_ H W C"], UInt8[np.ndarray, "_ H W C"], int]]
    reconstructions: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]

    @property
    def comparisons(self) -> dict[str, object]:
        """What the dreams must show: distances between the curves, in dB over all frames."""
        own, finest = self.passes[self.num_steps], self.passes[max(self.passes)]

        def gain(other):
            return round(own.mean_psnr - other.mean_psnr, 2)

        still = self.controls[LAST_REPEATED]
        return {
            "psnr_over_shuffled_actions": gain(self.controls[SHUFFLED]),
            "psnr_over_last_frame": gain(still),
            "psnr_below_finest_sampler": -gain(finest),
            "psnr_below_tokenizer": -gain(self.controls[CEILING]),
            "above_last_frame_at_every_step": all(a > b for a, b in zip(own.psnr, still.psnr, strict=True)),
        }

    def record(self) -> dict[str, object]:
        """Returns all numbers as plain data."""
        return {
            "context_length": self.context_length,
            "clips": self.frames[0],
            "frames": self.frames,
            "num_steps": self.num_steps,
            "comparisons": self.comparisons,
            "passes": {str(k): curves.record() for k, curves in self.passes.items()},
            "controls": {name: curves.record() for name, curves in self.controls.items()},
            "signals": {name: dict(signal) for name, signal in self.signals.items()},
            "heads": "not trained" if self.heads is None else {k: dict(v) for k, v in self.heads.items()},
        }


@eqx.filter_jit
def dream(
    dreamer: Dreamer,
    given: Trajectory,
    count: Int[Array, " B"],
    actions: Action,
    truth: Float[Array, "B H Nz Dz"],
    observed: Bool[Array, ""],
    step_index: Int[Array, ""],
    *,
    key: Key[Array, " B"],
) -> Dreamt:
    """Dreams on from the first frames of clips under given actions, at any number of denoise passes.

    Args:
        dreamer: the agent.
        given: clips of latents, no longer than the dynamics' context.
        count: how many of their frames are given, at least 1.
        actions: actions of the frames to dream, `[B, H, ...]`.
        truth: the true latents of those frames.
        observed: whether each true frame is taken in after it was dreamt, so that the heads read the real past.
        step_index: logarithm of K to base two.
        key: one key for each clip.
    """
    dynamics = dreamer.dynamics

    def clip(given, count, actions, truth, key):
        key_recall, key_dream = jr.split(key)
        memory = dreamer.recall(given, count, key=key_recall)

        def body(memory, step):
            action, true, key = step
            key_denoise, key_commit = jr.split(key)
            known = jnp.array(True)
            z, halfway = denoise_watched(dynamics, action, known, memory.world, step_index, key=key_denoise)
            kept = jnp.where(observed, true, z)
            signal = dreamer.sampler.context_signal
            h, world = commit(dynamics, kept, action, known, memory.task, memory.world, signal, key=key_commit)
            return Memory(memory.encoder, world, h, memory.task), (z, h, _rms(z - halfway))

        keys = jr.split(key_dream, truth.shape[0])
        _, (latent, h, movement) = jax.lax.scan(body, memory, (actions, truth, keys))
        return Dreamt(latent, dreamer.reward(h).mean(), dreamer.continuation(h).mean(), movement)

    return jax.vmap(clip)(given, count, actions, truth, key)


@eqx.filter_jit
def view(
    tokenizer: AbstractTokenizer,
    given: Float[Array, "B C Nz Dz"],
    count: Int[Array, " B"],
    dreamt: Float[Array, "B H Nz Dz"],
) -> tuple[Float[Array, "B H h w c"], Float[Array, "B H"]]:
    """Decodes dreams behind their contexts.

    Args:
        tokenizer: the tokenizer.
        given: latents of the context.
        count: how many of them are given.
        dreamt: latents of the frames that follow.

    Returns:
        The frames in [0, 1], and the RMS change of each latent when its frame is encoded again.
    """

    def clip(given, count, dreamt):
        time = jnp.arange(given.shape[0] + dreamt.shape[0])
        later = dreamt[jnp.clip(time - count, 0, dreamt.shape[0] - 1)]
        latent = jnp.where((time < count)[:, None, None], given[jnp.minimum(time, given.shape[0] - 1)], later)
        video = jnp.clip(tokenizer.decode(latent), 0.0, 1.0)
        residual = _rms(tokenizer.encode(video) - latent)
        horizon = dreamt.shape[0]
        return (
            jax.lax.dynamic_slice_in_dim(video, count, horizon),
            jax.lax.dynamic_slice_in_dim(residual, count, horizon),
        )

    return jax.vmap(clip)(given, count, dreamt)


def measure_dreams(
    dreamer: Dreamer,
    source: DeviceSource,
    latents: Float[Array, "N Nz Dz"],
    starts: Starts,
    *,
    levels: Sequence[float],
    num_steps: Sequence[int] = (1, 2, 4, 8),
    context_length: int = 1,
    horizon: int,
    noise_seeds: int = 4,
    heads: bool = True,
    shown: int = 6,
    progress: Callable[[int, int], None] | None = None,
    key: PRNGKeyArray,
) -> DreamQuality:
    """Dreams held-out episodes again and compares them with what happened.

    A step counts the episodes that reach it; nothing behind the end of an episode counts. All dreams of a clip share
    their noise, save those whose disagreement is measured.

    Args:
        dreamer: the agent.
        source: held-out episodes, with frames.
        latents: their latents.
        starts: where the dreams begin.
        levels: the pixel values that occur, in [0, 1]; dreams are rounded to the nearest.
        num_steps: numbers K of denoise passes to try, with the K of the agent's sampler; those that do not divide k_max
            are left out.
        context_length: most true frames given, at most the dynamics' context.
        horizon: most frames dreamt; it may exceed the dynamics' context.
        noise_seeds: dreams of each clip whose disagreement is measured, at least 2.
        heads: whether the reward and continuation heads are trained.
        shown: clips whose frames are returned.
        progress: called with clips done and in total.
        key: randomness of the dreams.

    Raises:
        InputError: if the lengths make no sense.
    """
    longest = dreamer.dynamics.context_length
    if not 1 <= context_length <= longest or horizon < 1:
        raise InputError(
            f"dreams: got {context_length} context frames and a horizon of {horizon}, expected 1 to {longest} context "
            "frames, which is the context of the dynamics, and at least 1 dreamt frame."
        )
    clips = Clips(source, source.with_latents(latents), starts, context_length, horizon)
    k_max = dreamer.dynamics.grid.k_max
    own = getattr(dreamer.sampler, "num_steps", k_max)
    tried = sorted({k for k in num_steps if k_max % k == 0} | {own})
    key_noise, key_shuffle = jr.split(key)
    actions, shuffled, none = clips.actions, clips.shuffled_actions(key=key_shuffle), clips.no_actions()

    scores, films = _Scores(levels), []
    for index in clips.batches():
        batch = _Batch.load(dreamer, clips, index, key=key_noise)
        for steps in tried:
            scores.judge(str(steps), batch.look(batch.dream(steps, actions).latent)[0], batch.frames)
        ours = batch.dream(own, actions)
        video, residual = batch.look(ours.latent)
        ceiling, residual_of_truth = batch.look(batch.truth)
        scores.judge(SHUFFLED, batch.look(batch.dream(own, shuffled).latent)[0], batch.frames)
        scores.judge(NO_OP, batch.look(batch.dream(own, none).latent)[0], batch.frames)
        scores.judge(LAST_REPEATED, batch.last_frame(), batch.frames)
        scores.judge(CEILING, ceiling, batch.frames)
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
        wanted = index[: max(0, shown - len(films))].tolist()
        films += [film(clips, i, t, v) for i, t, v in zip(wanted, batch.frames, video, strict=False)]
        if progress is not None:
            progress(int(index[-1]) + 1, len(starts.episode))

    valid = clips.valid
    measured = scores.first(len(valid))
    names = ["decode_encode_residual", "seed_disagreement"] + (["late_movement"] if own > 1 else [])
    signals = judge_signals({name: measured[name] for name in names}, measured[f"{own} error"], valid)
    signals["decode_encode_residual"]["of_truth"] = round(float(measured["residual_of_truth"][valid].mean()), 5)
    return DreamQuality(
        context_length=context_length,
        frames=[int(n) for n in valid.sum(0) if n],
        num_steps=own,
        passes={k: _curves(measured, str(k), valid) for k in tried},
        controls={name: _curves(measured, name, valid) for name in (SHUFFLED, NO_OP, LAST_REPEATED, CEILING)},
        signals=signals,
        heads=_judge_heads(measured, valid) if heads else None,
        shown=films,
        reconstructions=reconstructions(dreamer, source, starts.episode[:shown], key=key),
    )


@dataclass(frozen=True)
class _Batch:
    """Clips of one batch on the device, ready to be dreamt in several ways."""

    dreamer: Dreamer
    count: Int[Array, " B"]
    given: Trajectory
    context: Float[Array, "B C Nz Dz"]
    truth: Float[Array, "B H Nz Dz"]
    before: UInt8[np.ndarray, "B 1 h w c"]
    frames: UInt8[np.ndarray, "B H h w c"]
    reward: Float[Array, "B H"]
    terminal: Bool[Array, "B H"]
    index: Int[Array, " B"]
    key: PRNGKeyArray

    @classmethod
    def load(cls, dreamer: Dreamer, clips: Clips, index: Int[np.ndarray, " B"], *, key: PRNGKeyArray) -> "_Batch":
        episode, start = clips.episode_and_start(index)
        count = jnp.asarray(clips.given[index])
        given = clips.encoded.stretches(episode, start - count, clips.context_length)
        truth = clips.encoded.stretches(episode, start, clips.horizon).latent
        seen = clips.source.stretches(episode, start, clips.horizon)
        before = clips.source.stretches(episode, start - 1, 1).frame
        assert given.latent is not None and truth is not None and seen.frame is not None
        seen_frames, rows = np.asarray(seen.frame), jnp.asarray(index)
        return cls(
            dreamer, count, given, given.latent, truth, np.asarray(before), seen_frames, seen.reward, seen.is_terminal,
            rows, key,
        )  # fmt: skip

    def dream(self, steps: int, actions: Action, *, seed: int = 0, observed: bool = False) -> Dreamt:
        """Dreams the clips with K = `steps`, under the actions that all clips have in `actions`."""
        noise = jr.fold_in(self.key, seed)
        keys = jax.vmap(lambda i: jr.fold_in(noise, i))(self.index)
        taken = jax.tree.map(lambda x: x[self.index], actions)
        step_index = jnp.asarray(steps.bit_length() - 1)
        flag = jnp.asarray(observed)
        return dream(self.dreamer, self.given, self.count, taken, self.truth, flag, step_index, key=keys)

    def look(self, latent: Float[Array, "B H Nz Dz"]) -> tuple[np.ndarray, np.ndarray]:
        """Returns frames and decode-encode residuals of dreamt latents, on the host."""
        video, residual = view(self.dreamer.tokenizer, self.context, self.count, latent)
        return np.asarray(video), np.asarray(residual)

    def last_frame(self) -> UInt8[np.ndarray, "B H h w c"]:
        """Returns the last given frame in place of every dreamt one."""
        return np.broadcast_to(self.before, self.frames.shape)


class _Scores:
    """Numbers of every dreamt frame by name, batch after batch; frames themselves are not kept."""

    def __init__(self, levels: Sequence[float]):
        self._levels = levels
        self._parts: dict[str, list[np.ndarray]] = defaultdict(list)

    def add(self, **values: Float[Array | np.ndarray, "B H"] | Bool[Array | np.ndarray, "B H"]) -> None:
        """Takes in one number for each frame of a batch."""
        for name, value in values.items():
            self._parts[name].append(np.asarray(value))

    def judge(self, name: str, video: np.ndarray, truth: np.ndarray) -> None:
        """Takes in how close the frames of a batch are to the truth."""
        rounded = video if video.dtype == np.uint8 else np.asarray(to_uint8(jnp.asarray(video)))
        self.add(**{f"{name} error": squared_errors(video, truth)})
        self.add(**{f"{name} exact": matching_frames(rounded, truth, self._levels)})
        if min(truth.shape[2:4]) >= SMALLEST_SIDE:
            self.add(**{f"{name} ssim": frame_ssim(video, truth)})

    def first(self, count: int) -> dict[str, np.ndarray]:
        """Returns the numbers of the first `count` clips, which leaves out what fills the last batch."""
        return {name: np.concatenate(parts)[:count] for name, parts in self._parts.items()}


def _rms(x):
    return jnp.sqrt(jnp.mean(jnp.square(x), axis=(-2, -1)))


def _curves(measured: Mapping[str, np.ndarray], name: str, valid: np.ndarray) -> Curves:
    def mean(kind):
        values = measured[f"{name} {kind}"]
        steps = [float(values[valid[:, d], d].mean()) for d in range(valid.shape[1]) if valid[:, d].any()]
        return [round(x, 4) for x in steps], round(float(values[valid].mean()), 4)

    def decibels(error):
        return round(float(-10 * np.log10(max(error, 10 ** (-HIGHEST_PSNR / 10)))), 3)

    error = measured[f"{name} error"]
    psnr = [decibels(error[valid[:, d], d].mean()) for d in range(valid.shape[1]) if valid[:, d].any()]
    exact, mean_exact = mean("exact")
    ssim, mean_ssim = mean("ssim") if f"{name} ssim" in measured else (None, None)
    return Curves(exact, psnr, ssim, mean_exact, decibels(error[valid].mean()), mean_ssim)


def _judge_heads(measured: Mapping[str, np.ndarray], valid: np.ndarray) -> dict[str, Mapping[str, object]]:
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
