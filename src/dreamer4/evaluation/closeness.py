"""How close dreamt frames come to true ones: pixel by pixel, symbol by symbol, step by step."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from dreamer4.envs import Symbols
from dreamer4.evaluation.quality import frame_ssim, matching_frames, squared_errors, unit
from dreamer4.evaluation.record import Record
from dreamer4.evaluation.statistics import Rate, rate
from dreamer4.tokenizer import Perceptual
from dreamer4.types import to_uint8


HIGHEST_PSNR = 100.0  # dB; frames of eight bits cannot tell better ones apart, and infinity is no JSON
SMALLEST_SIDE = 3  # pixels, of frames that have a structural similarity


class Closeness(Record):
    """How close dreamt frames are to the true ones, over all frames.

    Attributes:
        exact: share of frames with every pixel right after rounding to the pixel values that occur.
        psnr: dB, of the squared error averaged over frames.
        ssim: structural similarity; None for frames too small to have one.
        read: by kind, share of the symbols of a frame that are read as those of the truth, where symbols can be read.
        lpips: how different they look, 0 where equal; None where it was not measured.
    """

    exact: float
    psnr: float
    ssim: float | None
    read: dict[str, float] = {}
    lpips: float | None = None


class Curves(Record):
    """The same at each step behind the context, and in `mean` over all frames.

    Attributes:
        changes: of the frames at which a number in the picture rose (+) or fell (-) in truth, the share that shows
            the true number.
    """

    exact: tuple[float, ...]
    psnr: tuple[float, ...]
    ssim: tuple[float, ...] | None
    read: dict[str, tuple[float, ...]] = {}
    changes: dict[str, Rate] = {}
    lpips: tuple[float, ...] | None = None
    mean: Closeness


class Scores:
    """Numbers of every dreamt frame by name, batch after batch; frames themselves are not kept."""

    def __init__(
        self,
        levels: Sequence[float],
        read: Callable[[np.ndarray], Symbols],
        places: Mapping[str, Sequence[str]],
        lpips: Perceptual | None,
    ):
        self._levels, self._read, self._places, self._lpips = levels, read, places, lpips
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
        told = self._read(truth)
        for kind, symbols in self._read(video).items():
            right = symbols == told[kind]
            self.add(**{f"{name} read {kind}": right.mean(axis=-1)})
            change = np.diff(told[kind], axis=1)
            for i, place in enumerate(self._places.get(kind, ())):
                for way, moved in (("+", change[..., i] > 0), ("-", change[..., i] < 0)):
                    self.add(**{f"{name} change {place} {way}": np.where(moved, right[:, 1:, i], np.nan)})
        if min(truth.shape[2:4]) >= SMALLEST_SIDE:
            self.add(**{f"{name} ssim": frame_ssim(video, truth)})
        if self._lpips is not None:
            pairs = zip(unit(video).astype(np.float32), unit(truth).astype(np.float32), strict=True)
            seen = [np.asarray(self._lpips(jnp.asarray(a), jnp.asarray(b))) for a, b in pairs]
            self.add(**{f"{name} lpips": np.stack(seen)})

    def first(self, count: int) -> dict[str, np.ndarray]:
        """Returns the numbers of the first `count` clips, which leaves out what fills the last batch."""
        return {name: np.concatenate(parts)[:count] for name, parts in self._parts.items()}


def curves_of(measured: Mapping[str, np.ndarray], name: str, valid: np.ndarray) -> Curves:
    """Returns the curves of one kind of dream or control, by its name, over the frames that count."""

    def means(kind):
        values = measured[f"{name} {kind}"]
        steps = [float(values[valid[:, d], d].mean()) for d in range(valid.shape[1]) if valid[:, d].any()]
        return tuple(round(x, 4) for x in steps), round(float(values[valid].mean()), 4)

    def decibels(error):
        return round(float(-10 * np.log10(max(error, 10 ** (-HIGHEST_PSNR / 10)))), 3)

    error = measured[f"{name} error"]
    psnr = [decibels(error[valid[:, d], d].mean()) for d in range(valid.shape[1]) if valid[:, d].any()]
    exact, mean_exact = means("exact")
    seen, mean_seen = {}, {}
    for kind in ("ssim", "lpips"):
        known = f"{name} {kind}" in measured
        seen[kind], mean_seen[kind] = means(kind) if known else (None, None)
    kinds = [key.removeprefix(f"{name} read ") for key in measured if key.startswith(f"{name} read ")]
    told = {kind: means(f"read {kind}") for kind in kinds}
    shares = {kind: share for kind, (_, share) in told.items()}
    mean = Closeness(exact=mean_exact, psnr=decibels(error[valid].mean()), read=shares, **mean_seen)
    steps = {kind: steps for kind, (steps, _) in told.items()}
    moved = {key.removeprefix(f"{name} change "): v for key, v in measured.items() if key.startswith(f"{name} change ")}
    known = {change: values[~np.isnan(values)] for change, values in moved.items()}
    changes = {change: rate(int(right.sum()), len(right)) for change, right in known.items() if len(right)}
    return Curves(exact=exact, psnr=tuple(psnr), read=steps, changes=changes, **seen, mean=mean)
