"""The options of `python -m benchmarks speed`; what it does stands in `suite`, whose imports are heavy."""

from pathlib import Path
from typing import Annotated, Any

import typer

from dreamer4_cli import options


Batch = Annotated[
    int | None, typer.Option("--batch", min=1, help="Rows, or environments, side by side. Default: the preset's.")
]
Length = Annotated[int | None, typer.Option("--length", min=1, help="Frames of a training clip, or of a dream.")]
Context = Annotated[int | None, typer.Option("--context", min=1, help="Frames that the dynamics sees.")]
Type = Annotated[str | None, typer.Option("--dtype", help="Compute type: float32, bfloat16. Default: the preset's.")]
Weights = Annotated[
    str | None, typer.Option("--weights", help="Dreams: type that matrices are cast to once. Default: float32.")
]
Repeats = Annotated[int | None, typer.Option("--repeats", min=1, help="Timed calls. Default: 100 frames, 20 steps.")]


def settings(
    preset: str | None,
    overrides: list[str] | None,
    batch: int | None,
    length: int | None,
    context: int | None,
    dtype: str | None,
    weights: str | None,
    repeats: int | None,
) -> Any:
    """Returns the `programs.Settings` that the options describe."""
    from benchmarks.speed.programs import Settings

    return Settings(preset, tuple(overrides or ()), batch, length, context, dtype, weights, repeats)


def speed(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="frame, imagination, dynamics, tokenizer, start, depth, recompilations, collect, load; or all.",
            show_default=False,
        ),
    ] = None,
    preset: options.Preset = None,
    overrides: options.Overrides = None,
    batch: Batch = None,
    length: Length = None,
    context: Context = None,
    dtype: Type = None,
    weights: Weights = None,
    repeats: Repeats = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="JSON to write, or to add to. Default: runs/speed-PRESET.json."),
    ] = None,
) -> None:
    """Time the library's programs on random weights and data, beside the least that the device's rates allow."""
    chosen = settings(preset, overrides, batch, length, context, dtype, weights, repeats)
    from benchmarks.speed import suite as work

    work.speed(names or (), chosen, out=out or Path("runs") / f"speed-{chosen.config().preset}.json")
