"""FVD (Unterthiner et al., arXiv 1812.01717): how far dreamt videos are from true ones as a set, not one by one.

Small sets make it large by hundreds whatever they show, and it hardly sees motion. So it comes with the number of
videos, with the truth against itself, and with the truth in a random order of its frames; compare at equal numbers
alone.
"""

from collections import defaultdict
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from dreamer4.errors import InputError
from dreamer4.evaluation.quality import unit
from dreamer4.evaluation.record import Record


LONGEST, SHORTEST = 16, 9  # frames of a video; the features need nine
FEWEST = 4  # videos, of which halves are compared
TRUTH, REORDERED = "truth", "true frames in random order"

VideoFeatures = Callable[[Float[Array, "N T H W 3"]], Float[Array, "N D"]]


class FVD(Record):
    """Distances between sets of videos.

    Attributes:
        videos: in each set, N.
        frames: of each video.
        distances: from the true videos, by what the others are.
        floor: of one half of the true videos from the other, at half that number.
    """

    videos: int
    frames: int
    distances: dict[str, float]
    floor: float


def frechet_distance(a: Float[np.ndarray, "N D"], b: Float[np.ndarray, "M D"]) -> float:
    """Returns the squared 2-Wasserstein distance of the normal distributions with the moments of two sets.

    |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), in float64.

    Raises:
        InputError: if a set has fewer than two members.
    """
    if min(len(a), len(b)) < 2:
        raise InputError(f"FVD: got sets of {len(a)} and {len(b)} videos, expected at least two in each.")
    (mean_a, cov_a), (mean_b, cov_b) = (_moments(np.asarray(x, np.float64)) for x in (a, b))
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    # S_a^(1/2) S_b S_a^(1/2) is symmetric and has the eigenvalues of S_a S_b.
    both = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov_b @ root), 0)).sum()
    return float(((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * both)


def told_fvd(fvd: FVD) -> str:
    """Returns what one must know to read FVD, in a sentence."""
    return (
        f"FVD of {fvd.videos} videos of {fvd.frames} frames on each side; of the same frames in random order "
        f"{fvd.distances[REORDERED]:.0f}, of one half of the truth from the other {fvd.floor:.0f}."
    )


class Videos:
    """Features of sets of videos, gathered batch after batch; the frames are not kept."""

    def __init__(self, features: VideoFeatures, valid: Bool[np.ndarray, "N H"]):
        """Takes the network, and which frames behind each start count; these are cut into videos.

        Raises:
            InputError: if too few frames are dreamt, or too few follow the starts.
        """
        horizon = valid.shape[1]
        if horizon < SHORTEST:
            raise InputError(
                f"FVD: dreams of {horizon} frames are shorter than the {SHORTEST} its features need. Give a longer "
                "--horizon, or leave FVD out where episodes are shorter."
            )
        self.frames = min(LONGEST, horizon)
        count = sum(int(valid[:, start : start + self.frames].all(axis=1).sum()) for start in self._starts(horizon))
        if count < FEWEST:
            raise InputError(
                f"FVD: {count} held-out stretches of {self.frames} frames follow the starts, expected at least "
                f"{FEWEST}, and better hundreds. Give more --episodes, or a shorter --horizon."
            )
        self._features = features
        self._found: dict[str, list[np.ndarray]] = defaultdict(list)
        self._order = np.random.default_rng(0)

    def add(self, name: str, frames: UInt8[np.ndarray, "B H h w c"] | Float[np.ndarray, "B H h w c"], valid) -> None:
        """Takes in the videos of a batch whose frames are all `valid`, `[B, H]`."""
        for start in self._starts(frames.shape[1]):
            for row in np.flatnonzero(valid[:, start : start + self.frames].all(axis=1)):
                video = frames[row, start : start + self.frames]
                if name == TRUTH:
                    self._take(REORDERED, video[self._order.permutation(self.frames)])
                self._take(name, video)

    def _take(self, name, video):
        shown = np.broadcast_to(unit(video).astype(np.float32), (*video.shape[:-1], 3))
        self._found[name].append(np.asarray(self._features(jnp.asarray(shown[None])))[0])

    def _starts(self, horizon):
        return range(0, horizon - self.frames + 1, self.frames)

    def distances(self) -> FVD:
        """Returns how far each set is from the truth."""
        truth = np.stack(self._found[TRUTH])
        found = {name: frechet_distance(truth, np.stack(rows)) for name, rows in self._found.items() if name != TRUTH}
        return FVD(
            videos=len(truth),
            frames=self.frames,
            distances={name: round(value, 2) for name, value in found.items()},
            floor=round(frechet_distance(truth[::2], truth[1::2]), 2),
        )


def _moments(x: Float[np.ndarray, "N D"]) -> tuple[Float[np.ndarray, " D"], Float[np.ndarray, "D D"]]:
    return x.mean(axis=0), np.cov(x, rowvar=False).reshape(x.shape[1], x.shape[1])


def whole(valid: Bool[np.ndarray, "N H"], index: Int[np.ndarray, " B"], count: int) -> Bool[np.ndarray, "B H"]:
    """Returns which frames of a batch count; a clip that only fills the last batch does not."""
    first = np.r_[True, np.diff(index) > 0] & (index < count)
    return valid[index] & first[:, None]
