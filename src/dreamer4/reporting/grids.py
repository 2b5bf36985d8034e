"""One clip dreamt in many ways, side by side: with every number of denoise passes, and under the wrong actions."""

import base64
from collections.abc import Sequence
from html import escape

import numpy as np
from jaxtyping import UInt8

from dreamer4.evaluation.dreams import Grid
from dreamer4.reporting import media


_SIDE = 64  # pixels of the longer side of a picture, about
_ALL = 10  # so many frames are all shown; of longer clips, those at powers of two and the last


def horizons(length: int) -> list[int]:
    """Returns which of the dreamt frames are shown, counted from 1."""
    if length <= _ALL:
        return list(range(1, length + 1))
    powers = [2**i for i in range(length.bit_length()) if 2**i < length]
    return [*powers, length]


def grid_table(grid: Grid) -> str:
    """Returns the clip as an HTML table: a column for each horizon, a row for the truth and for each way to dream."""
    steps = horizons(len(grid.truth))
    index = np.array(steps) - 1
    head = "".join(f'<th scope="col">{step}</th>' for step in steps)
    truth = grid.truth[index]
    given = _cell(grid.given[None], grid.given[None], "given")
    rows = [_row("truth", given + _cells(truth, truth, ["given"] * len(steps)))]
    for name, video in grid.dreams.items():
        dream = video[index]
        kinds = ["wrong" if c == media.WRONG else "right" for c in media.frame_colours(truth, dream, 0)]
        rows.append(_row(name, "<td></td>" + _cells(truth, dream, kinds)))
    return (
        '<div class="scroll"><table class="grids"><thead><tr><th scope="col">dreamt frame</th>'
        f'<th scope="col">given</th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )


def _row(name: str, cells: str) -> str:
    return f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>'


def _cells(truth: UInt8[np.ndarray, "L H W C"], dream: UInt8[np.ndarray, "L H W C"], kinds: Sequence[str]) -> str:
    return "".join(_cell(truth[i : i + 1], dream[i : i + 1], kind) for i, kind in enumerate(kinds))


def _cell(truth: UInt8[np.ndarray, "1 H W C"], dream: UInt8[np.ndarray, "1 H W C"], kind: str) -> str:
    scale = media.fitting_scale(dream.shape[1:], _SIDE)
    picture = base64.b64encode(media.png(media.marked(truth, dream, scale=scale)[0])).decode()
    return f'<td><img class="{kind}" src="data:image/png;base64,{picture}" alt="{kind}"></td>'
