"""One benchmark of `dreamer4 bench speed`, as one line of JSON.

    python benchmarks/speed.py frame --preset small --batch 16

`dreamer4 bench speed --help` lists the benchmarks; the JSON tells device, versions, flags, commit and the floor.
"""

import json
from typing import Annotated

import typer

from dreamer4 import allocator
from dreamer4_cli import options
from dreamer4_cli.bench.speed import options as speed_options


def main(
    name: Annotated[str, typer.Argument(help="The benchmark.", show_default=False)],
    preset: options.Preset = None,
    overrides: options.Overrides = None,
    batch: speed_options.Batch = None,
    length: speed_options.Length = None,
    context: speed_options.Context = None,
    dtype: speed_options.Type = None,
    weights: speed_options.Weights = None,
    repeats: speed_options.Repeats = None,
) -> None:
    """Measures, and prints one line."""
    allocator.keep_freed()
    from dreamer4_cli.bench.speed.suite import measure

    settings = speed_options.settings(preset, overrides, batch, length, context, dtype, weights, repeats)
    print(json.dumps(measure(name, settings)))


if __name__ == "__main__":
    typer.run(main)
