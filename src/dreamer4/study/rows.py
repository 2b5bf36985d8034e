"""The rows of a study: one file for each cell, with a number for every training seed; a table and a figure of them."""

import io
import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from pydantic import ValidationError

from dreamer4.errors import InputError
from dreamer4.evaluation.record import Record
from dreamer4.evaluation.statistics import Rate, nested_interval
from dreamer4.files import write_atomically
from dreamer4.study.plan import Cell, Study


class Row(Record):
    """What one cell came to.

    Attributes:
        study: name of the study.
        cell: name of the cell.
        preset: preset of its runs.
        settings: assignments over it.
        seeds: the seed of the data set and the training seed of each run.
        values: each measure, for each of them; one number where they all share it.
        curves: measures by dreamt frame, likewise.
        rates: how often each event happened to each policy, likewise.
        minutes: of training, likewise; stages that cells share count in each of them.
        data: fingerprints of the data sets.
        device: what it was computed on.
        commit: of the code; a + marks changes that were not committed.
        command: what to run for the same numbers.
        made_by: all settings that they depend on but the seeds, as JSON; empty in rows that no seeds are added to.
    """

    study: str
    cell: str
    preset: str
    settings: tuple[str, ...]
    seeds: tuple[tuple[int, int], ...]
    values: dict[str, tuple[float, ...]]
    curves: dict[str, tuple[tuple[float, ...], ...]]
    rates: dict[str, tuple[dict[str, Rate], ...]] = {}
    minutes: tuple[float, ...]
    data: tuple[str, ...]
    device: str
    commit: str
    command: str
    made_by: str = ""

    def with_more(self, more: "Row") -> "Row":
        """Returns the row with the seeds of another of the same settings put after its own."""
        lists = {
            name: {key: (*values, *getattr(more, name)[key]) for key, values in getattr(self, name).items()}
            for name in ("values", "curves", "rates")
        }
        told = {
            name: ", ".join(dict.fromkeys(f"{getattr(self, name)}, {getattr(more, name)}".split(", ")))
            for name in ("device", "commit")
        }
        data = tuple(sorted({*self.data, *more.data}))
        both = {"seeds": (*self.seeds, *more.seeds), "minutes": (*self.minutes, *more.minutes), "data": data}
        return more.model_copy(update=both | lists | told)


def row_file(out: Path, study: Study, cell: Cell) -> Path:
    """Returns where the row of a cell lies."""
    return out / study.study / f"{cell.file_name}.json"


def read_row(file: Path) -> Row:
    """Reads a row.

    Raises:
        InputError: if the file is none.
    """
    try:
        return Row.model_validate_json(file.read_text())
    except ValidationError as error:
        raise InputError(f"{file}: no row of a study ({error.errors()[0]['msg']}). Remove it.") from None


def publish(out: Path, study: Study) -> Path:
    """Draws the table and the figure of all rows that there are; returns the page."""
    rows = [read_row(file) for cell in study.cells() if (file := row_file(out, study, cell)).exists()]
    folder, figure = out / study.study, ""
    for name in dict.fromkeys(name for row in rows for name in row.curves):
        write_atomically(folder / f"{name}.svg", _chart(rows, name))
        figure += f"\n![{name} by dreamt frame]({name}.svg)\n"
    told = f"{study.about.strip()}\n\n" if study.about else ""
    commands = ", ".join(
        f"`{command}`" for command in dict.fromkeys(", ".join(row.command for row in rows).split(", "))
    )
    page = folder / "README.md"
    text = f"# {study.study}\n\n{told}{commands}. Means over runs, with 95 % bootstrap intervals over them.\n\n"
    often = "".join(f"\n{row.cell}:\n\n{rates_table(row)}\n" for row in rows if row.rates)
    if often:
        often = f"\nShare of episodes in which each happened, %, with its 95 % interval, @ median frame.\n{often}"
    write_atomically(page, f"{text}{table(rows, study)}\n{figure}{often}")
    return page


def rates_table(row: Row) -> str:
    """Returns how often each event happened as a Markdown table, a line for each policy."""
    events = list(dict.fromkeys(event for seeds in row.rates.values() for event in seeds[0]))
    lines = [["", *(event.replace("_", " ") for event in events)], ["---"] * (len(events) + 1)]
    lines += [
        [name, *(_often([seed[event] for seed in seeds], row.seeds) for event in events)]
        for name, seeds in row.rates.items()
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _often(rates: Sequence[Rate], seeds: Sequence[tuple[int, int]]) -> str:
    """Returns a mean share with its interval: over runs, or over the episodes of a single one."""
    shares, frames = [rate.mean for rate in rates], [rate.frame for rate in rates if rate.frame is not None]
    low, high = rates[0].low, rates[0].high
    if len(rates) > 1:
        low, high = nested_interval(np.array(shares), np.array([data for data, _ in seeds[: len(shares)]]))
    told = f"{100 * np.mean(shares):.3g} ({100 * low:.3g}-{100 * high:.3g})"
    return f"{told} @ {np.mean(frames):.0f}" if frames else told


def table(rows: Sequence[Row], study: Study) -> str:
    """Returns the rows as a Markdown table, a column for each cell."""
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    lines = [["", *(row.cell for row in rows)], ["---"] * (len(rows) + 1)]
    lines += [[name, *(_estimate(row, row.values.get(name)) for row in rows)] for name in names]
    lines += [[name, *(_compared(row, *sides, study.scale) for row in rows)] for name, sides in study.compare.items()]
    facts = {
        "data sets, runs": lambda row: f"{len({data for data, _ in row.seeds})}, {len(row.seeds)}",
        "minutes a run": lambda row: f"{np.mean(row.minutes):.1f}",
        "device": lambda row: row.device,
        "commit": lambda row: row.commit,
    }
    lines += [[name, *(tell(row) for row in rows)] for name, tell in facts.items()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _compared(row: Row, better: Sequence[str], than: Sequence[str], scale: tuple[str, str] | None = None) -> str:
    """Returns the difference of the best of one side to the best of the other, each chosen by its mean."""
    task = "".join(better[0].rpartition(": ")[:2])  # of several, with what parts it from the measure
    ends = [float(np.mean(row.values.get(task + name, math.nan))) for name in scale or ()]
    zero, one = ends or (0.0, 1.0)
    sides = [[row.values[name] for name in side if name in row.values] for side in (better, than)]
    if not all(sides):
        return "-"
    best, other = (max(side, key=np.mean) for side in sides)
    return _estimate(row, tuple((np.subtract(best, other) / (one - zero)).tolist()), signed=True)


def _estimate(row: Row, values: Sequence[float] | None, signed: bool = False) -> str:
    """Returns a mean with its interval: over data sets, and training seeds within each, where there are several."""
    if not values:
        return "-"
    sign = "+" if signed else ""
    mean = f"{np.mean(values):{sign}.3g}"
    if len(values) == 1:
        return mean
    low, high = nested_interval(np.array(values), np.array([data for data, _ in row.seeds[: len(values)]]))
    return f"{mean} ({low:{sign}.3g} to {high:{sign}.3g})"


def _chart(rows: Sequence[Row], name: str) -> str:
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.add_subplot(xlabel="dreamt frame", ylabel=name)
    for row in rows:
        if name in row.curves:
            length = max(map(len, row.curves[name]))
            seeds = np.array([[*curve, *[math.nan] * (length - len(curve))] for curve in row.curves[name]])
            axes.plot(np.arange(1, length + 1), np.nanmean(seeds, axis=0), marker=".", label=row.cell)
    axes.legend(fontsize="small")
    drawn = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):  # the same rows, the same file
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    return drawn.getvalue()
