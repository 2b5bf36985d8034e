"""What a session leaves behind: a film as GIF or MP4, and its episodes as data sets in our own format."""

import io
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from dreamer4.data import Episode, write_dataset
from dreamer4.media import GROUND, RIGHT, WRONG, fitting_scale
from dreamer4.types import DataSpec


_SIDE = 320  # pixels, about, of the longer side of a frame
_PANELS = ("game", "dream")


@dataclass(frozen=True)
class Picture:
    """What was shown at one moment.

    Attributes:
        images: the images by name, `game` and `dream` among them.
        differs: whether the two were seen to differ.
    """

    images: Mapping[str, UInt8[np.ndarray, "H W _"]]
    differs: bool


def compose(pictures: Sequence[Picture]) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """Yields the frames of a film of what was shown, pixels enlarged and never blended; both sides are even.

    They are many times larger than what was recorded, so each is made when it is asked for.

    Where game and dream were shown side by side at any time, each has its panel throughout, dark while it was not
    shown, and the dream a frame in green, or in red where it differed.

    Args:
        pictures: at least one.
    """
    names = [name for name in _PANELS if any(name in picture.images for picture in pictures)]
    height, width, _ = next(iter(pictures[0].images.values())).shape
    scale = fitting_scale((height, width), _SIDE)
    border = max(2, scale // 4) if len(names) > 1 else 0
    for picture in pictures:
        panels = []
        for name in names:
            colour = GROUND
            if name == "dream" and name in picture.images:
                colour = WRONG if picture.differs else RIGHT
            panels.append(_panel(picture.images.get(name), (height, width), scale, border, colour))
        frame = np.concatenate(panels, axis=1)
        odd = ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0))  # MP4 wants even sides
        yield np.pad(frame, odd, mode="edge")


def archive(episodes: Mapping[str, Episode], *, spec: DataSpec, environment: Mapping[str, Any], seed: int) -> bytes:
    """Returns a ZIP file with a data set of one episode for each name; `dreamer4 data check` reads them unpacked.

    Args:
        episodes: the episodes, `game` or `dream`.
        spec: what they look like.
        environment: where they come from, JSON values.
        seed: of the session.
    """
    buffer = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, episode in episodes.items():
            path = Path(folder) / name
            write_dataset(
                path,
                [episode],
                spec=spec,
                environment={**environment, "world": name},
                policy="play",
                seed=seed,
                held_out=0.0,
            )
            for part in sorted(path.iterdir()):
                file.write(part, f"{name}/{part.name}")
    return buffer.getvalue()


def _panel(image, size, scale, border, colour) -> UInt8[np.ndarray, "h w 3"]:
    inner = tuple(scale * side for side in size)
    panel = np.empty((inner[0] + 4 * border, inner[1] + 4 * border, 3), np.uint8)
    panel[:] = GROUND
    if border:
        panel[border:-border, border:-border] = colour
    large = np.array(GROUND, np.uint8) if image is None else image.repeat(scale, axis=0).repeat(scale, axis=1)
    panel[2 * border : 2 * border + inner[0], 2 * border : 2 * border + inner[1]] = large
    return panel
