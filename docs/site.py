"""The pages of the site that nobody writes: commands, settings, library, worlds, results, equations (a hook of MkDocs).

Links of hand-written pages to files of the repository lead to the page made of that file, or become its name.
"""

import ast
import functools
import importlib
import inspect
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
import yaml
from pydantic import BaseModel

from dreamer4 import config as settings
from dreamer4.config import presets
from dreamer4.dreamer import read_description
from dreamer4.hub import SHIPPED, shipped
from dreamer4.reporting.figures import Line, line_chart
from dreamer4.study.rows import read_row
from dreamer4_cli.app import app


ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PARTS = (
    "dreamer config types nn tokenizer dynamics agent imagination data envs training evaluation baselines run study "
    "sharing serving checkpoint media reporting hub errors"
).split()
_SIZES = ("tiny", "own", "small", "base", "paper")  # presets for data of one's own
# What each curve is, and what one outside its band means.
_CURVES = {
    "tokenizer": (
        "squared error of a reconstruction",
        "Flat from the start: frames are not what the preset expects (`dreamer4 info`), or the learning rate is too "
        "high. Falls, then stays above the band: small things are lost; look at the reconstructions of the report.",
    ),
    "dynamics": (
        "flow loss of the next latents",
        "Above the band: the latents are poor; train the tokenizer longer. Within it, but dreams ignore actions: these "
        "are a frame late (`--action-timing`), or masked.",
    ),
    "agent": (
        "nats of the next actions under the cloned policy",
        "Stays at the logarithm of the number of actions: the behaviour was random, as in `catch`, or actions do not "
        "fit frames. Falls far below the band: too few episodes for so many steps.",
    ),
    "imagination": (
        "return of a dream, by the world model's own rewards",
        "Flat: the reward head finds no reward in dreams, or the policy is held too tightly "
        "(`imagination.objective.beta`). Above the band, while returns in the real environment are not: the policy "
        "exploits errors of the world model.",
    ),
}
_STYLE = (
    "<style>.curve {max-width: 26rem; --s1: #0b7a75; --soft: #6b717a; --line: #8883; --control: #8b8f97}"
    ".curve text {fill: var(--soft)} [data-md-color-scheme=slate] .curve {--s1: #4cc9bd; --soft: #9ea3ac}</style>"
)
_LINK = re.compile(r"(?<!!)\[([^]]+)\]\(([^)#:\s]+)(#[^)\s]*)?\)")


@functools.cache
def pages() -> dict[str, str]:
    """Returns Markdown by the path of its page."""
    made = {"reference/commands.md": "# Commands\n\n" + _commands(), "reference/settings.md": _settings()}
    made |= {f"reference/api/{part}.md": _part(part) for part in PARTS}
    worlds = {name: _world(name) for name in presets.PRESETS if name not in _SIZES}
    made |= {f"worlds/{name}.md": text for name, text in worlds.items()}
    listed = "\n".join(f"| [{name}]({name}.md) | {_first(presets.description(name))} |" for name in worlds)
    made["worlds/index.md"] = f"# Worlds\n\nA page for each preset with a world.\n\n| preset | |\n|---|---|\n{listed}\n"
    made |= {target: (ROOT / source).read_text() for source, target in _copied().items()}
    made["equations.md"] = _equations()
    return made


@functools.cache
def _copied() -> dict[str, str]:
    """Returns the page that a Markdown file outside docs/ becomes, by the path of the file."""
    studies = {f"benchmarks/results/{f.parent.name}/README.md": f"results/{f.parent.name}.md" for f in _readmes()}
    return studies | {
        "benchmarks/README.md": "results/measuring.md",
        "benchmarks/NOTES.md": "results/notes.md",
        "examples/luanti/README.md": "luanti.md",
        "CONTRIBUTING.md": "contributing.md",
    }


def _readmes() -> list[Path]:
    return sorted(RESULTS.glob("*/README.md"))


def on_config(config: Any) -> Any:
    """Puts the generated pages behind the written ones of their part."""
    nav = {next(iter(part)): part for part in config.nav}
    made = pages()

    def listed(folder: str, first: list[str]) -> list[Any]:
        inside = sorted(path for path in made if path.startswith(folder) and path not in first)
        return [*first, *({Path(path).stem: path} for path in inside)]

    nav["Worlds"]["Worlds"] = listed("worlds/", ["worlds/index.md"])
    nav["Paper"]["Paper"] = ["paper.md", "equations.md"]
    library = [{path.removeprefix("reference/api/")[:-3]: path} for path in made if path.startswith("reference/api/")]
    commands = ["reference/commands.md", "reference/settings.md"]
    nav["Reference"]["Reference"] = ["commands.md", *commands, {"Library": library}, "contributing.md"]
    nav["Results"]["Results"] = ["results.md", "findings.md", "reliability.md", *listed("results/", [])]
    nav["Start"]["Start"].append({"A Minecraft-like world": "luanti.md"})
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds the generated pages."""
    from mkdocs.structure.files import File

    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    for source in RESULTS.rglob("*.svg"):
        files.append(File.generated(config, f"results/{source.name}", abs_src_path=str(source)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turns links to files of the repository into links to pages, or into the names of the files."""
    sources = {target: source for source, target in _copied().items()}
    if page.file.src_uri in pages() and page.file.src_uri not in sources:
        return markdown
    here = ROOT / sources.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def lead(match: re.Match[str]) -> str:
        text, place, anchor = match.groups()
        if place in pages():  # of the site alone
            return match[0]
        file = (here.parent / place).resolve()
        if not file.exists():
            raise FileNotFoundError(f"{here}: {place} is not there")
        name = file.relative_to(ROOT).as_posix()
        page_of = _copied().get(name, name.removeprefix("docs/") if name.startswith("docs/") else None)
        if page_of is None:
            return f"{text} (`{name}`)"
        return f"[{text}]({os.path.relpath(page_of, Path(page.file.src_uri).parent)}{anchor or ''})"

    return _LINK.sub(lead, markdown)


def _first(text: str) -> str:
    return " ".join(text.split("\n\n")[0].split())


def _cell(text: Any) -> str:
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")


def _commands() -> str:
    """Returns every command with its arguments and options, as its --help tells."""
    sections = []
    for name, command in leaves():
        rows = [f"| `{_named(p)}` | {_cell(getattr(p, 'help', '') or '')} | {_default(p)} |" for p in command.params]
        table = ["| | | default |", "|---|---|---|", *rows, ""] if rows else []
        sections.append("\n".join([f"## dreamer4 {name}", "", inspect.cleandoc(command.help or ""), "", *table]))
    return "\n".join(sections)


def _named(parameter: Any) -> str:
    options = " ".join([*parameter.opts, *parameter.secondary_opts])
    return options if parameter.param_type_name == "option" else str(parameter.metavar or parameter.name).upper()


def _default(parameter: Any) -> str:
    plain = parameter.default is not None and not callable(parameter.default) and parameter.default not in (False, ())
    return (
        f"`{_cell(getattr(parameter.default, 'value', parameter.default))}`" if plain and not parameter.required else ""
    )


def leaves() -> Iterator[tuple[str, Any]]:
    """Yields every command under the words that call it."""
    for name, command in typer.main.get_command(app).commands.items():
        inside = getattr(command, "commands", None)
        yield from ((f"{name} {word}", leaf) for word, leaf in inside.items()) if inside else [(name, command)]


def _settings() -> str:
    """Returns every key of the configuration, with its default and its meaning."""
    lines = ["# Settings", "", "Every key of `--set A.B=C` and of a `--config` file.", ""]

    def table(branch: type[BaseModel], prefix: str) -> None:
        inner, rows = [], []
        for name, field in branch.model_fields.items():
            key, kind = f"{prefix}{name}", field.annotation
            if inspect.isclass(kind) and issubclass(kind, BaseModel):
                inner.append((kind, key))
            else:
                default = (
                    "" if field.is_required() else f"`{_cell(_shown(field.get_default(call_default_factory=True)))}`"
                )
                rows.append(f"| `{key}` | {_cell(field.description or '')} | {default} |")
        if prefix:
            lines.extend([f"## {prefix[:-1]}", "", _first(branch.__doc__ or ""), ""])
        lines.extend(["| key | meaning | default |", "|---|---|---|", *rows, ""] if rows else [])
        for kind, key in inner:
            table(kind, f"{key}.")

    table(settings.Config, "")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    return json.dumps(value, default=lambda x: x.model_dump() if isinstance(x, BaseModel) else str(x))


def _part(part: str) -> str:
    """Returns what a part of the library has for others: what it re-exports, or defines if it is one file."""
    module = importlib.import_module(f"dreamer4.{part}")
    package = hasattr(module, "__path__")
    lines = [f"# dreamer4.{part}", "", inspect.cleandoc(module.__doc__ or ""), ""]
    for name, thing in sorted(vars(module).items()):
        home = getattr(thing, "__module__", "")
        ours = home.startswith(f"dreamer4.{part}") if package else home == f"dreamer4.{part}"
        if ours and not name.startswith("_") and (inspect.isclass(thing) or inspect.isfunction(inspect.unwrap(thing))):
            lines += [f"::: {home}.{thing.__qualname__}", ""]
    return "\n".join(lines)


def _world(name: str) -> str:
    """Returns the page of a preset: why its values are so, what was measured, its recipe."""
    lines = [f"# {name}", "", presets.description(name), "", "```", f"dreamer4 demo --preset {name}", "```", ""]
    if (ROOT / "docs" / f"{name}.gif").exists():
        lines += [f"![Truth, dream and difference](../{name}.gif)", ""]
    lines += _ships(name)
    lines += _costs(name)
    if (file := RESULTS / "ladder" / f"preset={name}.json").exists():
        row = read_row(file)
        minutes = f"{min(row.minutes):.3g} to {max(row.minutes):.3g} minutes" if row.minutes else "minutes not kept"
        lines += ["## Returns", "", f"`{row.command}`, commits {row.commit}, {row.device}, {minutes} a run.", ""]
        lines += ["| mean return in the real environment | mean | each seed |", "|---|---|---|"]
        for measure, values in row.values.items():
            each = ", ".join(f"{value:.3g}" for value in values) if len(values) > 1 else ""
            lines.append(f"| {measure} | {sum(values) / len(values):.3g} | {each} |")
        lines.append("")
    if (file := RESULTS / f"world-model-{name}.json").exists():
        lines += _dreams(json.loads(file.read_text()))
    if (file := RESULTS / "curves" / f"{name}.json").exists():
        lines += _curves(json.loads(file.read_text()))
    for study in sorted({file.parent.name for file in RESULTS.glob(f"*/preset={name},*.json")}):
        lines += [f"More of it: [{study}](../results/{study}.md).", ""]
    plain = json.loads(json.dumps(presets.preset(name)))  # of which YAML names no part to repeat it
    recipe = yaml.safe_dump(plain, sort_keys=False, default_flow_style=None, width=110)
    about = "What differs from [the defaults](../reference/settings.md):"
    return "\n".join(
        [*lines, "What these numbers do not show: [results](../results.md).", "", "## Recipe", "", about]
    ) + (f"\n\n```yaml\n{recipe}```\n")


def _ships(name: str) -> list[str]:
    """Returns that an agent of a preset ships, and with which other settings than the preset's it was trained."""
    if name not in shipped():
        return []
    told, _ = read_description(SHIPPED / name)
    changes = [c for c in settings.diff(settings.load(name), told) if not c.startswith("data.path:")]
    how = ", trained with other settings:" if changes else "."
    return [f"`dreamer4 play {name}` opens an agent that ships{how}", "", *(f"- `{change}`" for change in changes), ""]


def _costs(name: str) -> list[str]:
    """Returns what the table of environments says of a preset's minutes and memory."""
    for row in re.findall(r"^\| (.*) \|$", (ROOT / "docs" / "environments.md").read_text(), re.M):
        cells = row.split(" | ")
        if len(cells) == 8 and cells[1].split(",")[0] == f"`{name}`" and cells[6] != "-":
            memory = "" if cells[7] == "-" else f"; peak memory {cells[7]}"
            return [f"All phases and evaluation, in minutes on two CPU cores: {cells[6]}{memory}.", ""]
    return []


def _curves(told: dict[str, Any]) -> list[str]:
    """Returns the expected curve of each phase, and what it means if one's own looks otherwise."""
    lines = ["## Expected curves", "", _STYLE, ""]
    lines += [f"Mean and range over runs, written by `python -m benchmarks curves` ({told['device']}).", ""]
    for phase, of in told["phases"].items():
        what, otherwise = _CURVES[phase]
        line = Line(of["steps"], of["mean"], around=(of["low"], of["high"]))
        logarithmic = min(of["low"]) > 0 and of["mean"][0] > 20 * of["mean"][-1]
        # What hardly changes, such as the nats of random play, is drawn from zero, not as noise.
        low, high = min(of["low"]), max(of["high"])
        ends = (0.0, 1.2 * high) if 0 < high - low < 0.05 * low else None
        svg = line_chart([line], title=f"{phase}: {what}", x_label="step", y_range=ends, logarithmic=logarithmic)
        ends = " to ".join(dict.fromkeys(f"{of[end][-1]:.3g}" for end in ("low", "high")))
        runs = "one run" if of["runs"] == 1 else f"{of['runs']} runs"
        minutes = " to ".join(dict.fromkeys(f"{m:.2g}" for m in of["minutes"]))
        lines += [f"**{phase}**: {what} (`{of['metric']}`), at the end {ends}; {runs}, {minutes} minutes each.", ""]
        lines += [f'<div class="curve">{svg}</div>', "", otherwise, ""]
    return lines


def _dreams(told: dict[str, Any]) -> list[str]:
    """Returns the table of a measured world model."""
    first = told["seeds"][0]
    horizon = len(next(iter(first["passes"].values()))["psnr"])
    rows = {f"K = {k}": of for k, of in first["passes"].items()} | first["controls"]
    lines = [
        "## Dreams",
        "",
        f"PSNR in dB of {first['clips']} dreams of {horizon} frames beside held-out truth; K = {first['num_steps']} is "
        f"the preset's. `dreamer4 evaluate RUN --world-model`, commit {told.get('commit', 'not kept')}, "
        f"{told.get('device', 'device not kept')}, "
        f"seed {first.get('seed', 0)}.",
        "",
        "| | all | first frame | last frame |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {n} | {of['mean']['psnr']:.1f} | {of['psnr'][0]:.1f} | {of['psnr'][-1]:.1f} |" for n, of in rows.items()
    ]
    returns = first.get("returns")
    said = returns.get("verdict") if isinstance(returns, dict) else None
    return [*lines, "", *([said, ""] if said else [])]


def _equations() -> str:
    """Returns where the docstrings name an equation, and the tests that do."""
    found: dict[int, dict[str, list[str]]] = {}
    for kind, folder in (("code", "src"), ("tests", "tests")):
        for file in sorted((ROOT / folder).rglob("*.py")):
            for name, text in _docstrings(file):
                for number in _numbers(text):
                    found.setdefault(number, {}).setdefault(kind, []).append(f"`{file.relative_to(ROOT)}`{name}")
    kinds = ("code", "tests")
    rows = [
        f"| {number} | {' | '.join('<br>'.join(dict.fromkeys(of.get(kind, []))) for kind in kinds)} |"
        for number, of in sorted(found.items())
    ]
    head = ["# Equations", "", "Where a docstring or a test names an equation of the paper (arXiv 2509.24527).", ""]
    return "\n".join([*head, "| equation | code | tests |", "|---|---|---|", *rows, ""])


def _docstrings(file: Path) -> Iterator[tuple[str, str]]:
    tree = ast.parse(file.read_text())
    if "tests" in file.relative_to(ROOT).parts:
        yield "", file.read_text()
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
            yield "" if isinstance(node, ast.Module) else f" `{node.name}`", text


def _numbers(text: str) -> set[int]:
    """Returns the equations of Dreamer 4 that a text names; those of other papers stand beside their names."""
    numbers = set()
    for match in re.finditer(r"\beqs? (\d+)(?:(-|, | and )(\d+))?", text):
        around = text[max(0, match.start() - 60) : match.end() + 30]
        if re.search(r"arXiv (?!2509)|IQL|CQL|of the paper", around):
            continue
        first, how, last = int(match[1]), match[2], int(match[3] or match[1])
        numbers |= set(range(first, last + 1)) if how == "-" else {first, last}
    return numbers
