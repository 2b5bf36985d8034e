"""Data for others: a data set without the paths of this machine, its card, and a table for viewers.

my_data/
    episodes/          the data set
    preview.parquet    its first frames, a row each, as the Hub shows them
    README.md          the card; it may be edited
"""

import os
from pathlib import Path

import numpy as np

from dreamer4 import media
from dreamer4.config import MIXTURES
from dreamer4.data import Episode, read_episodes, read_info, write_dataset
from dreamer4.errors import InputError
from dreamer4.files import new_folder
from dreamer4.hub import EPISODES
from dreamer4.sharing.cards import COLUMNS, PREVIEW, dataset_card


_PREVIEWED = 2000  # frames


def export_dataset(path: Path, out: Path, *, license: str) -> None:
    """Writes data into a new folder for others.

    Args:
        path: of anything that `data.open_reader` opens.
        out: the folder to create.
        license: of the data, as the Hub names it.

    Raises:
        InputError: if the data cannot be read or lie in memory, `out` exists, or pyarrow is missing.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise InputError("export: the viewer's table needs pyarrow. Run: pip install 'dreamer4-eqx[hub]'.") from None
    info, episodes = read_info(path), read_episodes(path)
    with new_folder(out) as hidden:
        told = [
            part.model_copy(update={"policy": policy_name(part.policy), "about": _placeless(part.about)})
            for part in info.behaviour
        ]
        written = write_dataset(
            hidden / EPISODES,
            episodes,
            spec=info.spec,
            environment=info.environment,
            policy=policy_name(info.policy),
            behaviour=told,
            seed=info.seed,
            held_out=info.held_out or 0.0,
        )
        table = pyarrow.Table.from_pylist(_preview(episodes))
        parquet.write_table(table, hidden / PREVIEW)
        card = dataset_card(written, license=license, previewed=len(table))
        (hidden / "README.md").write_text(card, encoding="utf-8")


def policy_name(policy: str) -> str:
    """Returns the name of a behaviour policy without the folder that its file or its checkpoint lies in."""
    name = Path(policy).name or "checkpoint"
    # A folder that is called as a kind of policy is still none.
    return f"./{name}" if name != policy and name in ("random", "ppo", "sac", "mixture", *MIXTURES) else name


def _placeless(about: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in about.items() if not (isinstance(value, str) and os.sep in value)}


def _preview(episodes: list[Episode]) -> list[dict[str, object]]:
    """Returns the first frames as rows of `COLUMNS`; those that an action did not lead to tell none."""
    rows = []
    for number, episode in enumerate(episodes):
        pictures = media.to_rgb(episode.frame[: _PREVIEWED - len(rows)])
        for t, picture in enumerate(pictures):
            cells = (
                {"bytes": media.png(picture), "path": None},
                np.int32(number),
                np.int32(t),
                episode.discrete[t],
                episode.continuous[t],
                bool(episode.action_mask[t]),
                np.float32(episode.reward[t]),
            )
            rows.append(dict(zip(COLUMNS, cells, strict=True)))
        if len(rows) >= _PREVIEWED:
            break
    return rows
