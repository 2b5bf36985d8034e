"""Imports go down only, and the repository stays free of what must never be in it."""

import ast
import functools
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]

# Names on one line do not see each other.
LAYERS = [
    {"allocator", "errors", "files", "hub", "precision", "types", "config"},
    {"nn", "checkpoint", "pretrained"},
    {"envs"},
    {"tokenizer", "dynamics", "agent", "data", "media"},
    {"dreamer"},
    {"imagination"},
    {"worlds"},
    {"training", "evaluation", "baselines"},
    {"reporting"},
    {"run"},
    {"sharing", "study"},
    {"serving"},
    {"dreamer4_cli"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
# The ground floor is files about input and the process, which may see each other where this says so.
ALLOWED = {
    ("types", "errors"),
    ("files", "errors"),
    ("hub", "errors"),
    ("config", "errors"),
    ("config", "files"),
}

# What tools leave behind (.git is a file in a worktree). Other hidden files are ours.
SKIPPED = {".git", ".venv", "dist", "build", "runs", "__pycache__", ".hypothesis"}
CODE = ("src", "cli", "examples", "benchmarks")


def imports(source: str, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """Yields line and absolute dotted name of everything that a module imports, at any depth of its code."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            yield from ((node.lineno, f"{stem}.{alias.name}") for alias in node.names)


def part(name: str) -> str:
    """Returns the part of the house that a dotted name belongs to; empty for other people's packages."""
    parts = name.split(".")
    if parts[0] == "dreamer4_cli":
        return "dreamer4_cli"
    if parts[0] != "dreamer4":
        return ""
    return parts[1] if len(parts) > 1 and parts[1] in LEVEL else "dreamer4"


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """Lists the imports of a module that do not go down, as `line: message`."""
    home, found = part(module), []
    for line, name in imports(source, module, is_package):
        target = part(name)
        if target in ("", home) or (home, target) in ALLOWED:
            continue
        if target == "dreamer4":
            # The package itself re-exports from the top of the library, so only what lies above may import it.
            if home != "dreamer4_cli":
                found.append(f"{line}: {home} imports {name}, which is the whole library. Import the part.")
        elif LEVEL[target] >= LEVEL[home]:
            found.append(f"{line}: {home} (layer {LEVEL[home]}) imports {name} (layer {LEVEL[target]})")
    return found


def modules() -> Iterator[tuple[Path, str, bool]]:
    for base in (ROOT / "src", ROOT / "cli"):
        for path in sorted(base.rglob("*.py")):
            parts = path.relative_to(base).with_suffix("").parts
            is_package = parts[-1] == "__init__"
            yield path, ".".join(parts[:-1] if is_package else parts), is_package


@functools.cache
def texts() -> list[tuple[Path, str]]:
    """Returns every text file of the repository with its path, except this one, which names what it forbids."""
    found = []
    for folder, inside, names in os.walk(ROOT):
        inside[:] = sorted(d for d in inside if d not in SKIPPED and not d.endswith((".egg-info", "_cache")))
        for path in (
            Path(folder) / name for name in sorted(names) if name not in SKIPPED
        ):  # .git is a file in a worktree
            try:
                found.append((path.relative_to(ROOT), path.read_text(encoding="utf-8")))
            except UnicodeDecodeError:
                continue
    return [(path, text) for path, text in found if ROOT / path != Path(__file__)]


def matches(pattern: str, files: list[tuple[Path, str]]) -> list[str]:
    return [
        f"{path}:{number}: {line.strip()[:120]}"
        for path, text in files
        for number, line in enumerate(text.splitlines(), 1)
        if re.search(pattern, line)
    ]


def python_files() -> list[tuple[Path, str]]:
    return [(path, text) for path, text in texts() if path.suffix == ".py"]


def test_imports_go_down():
    found = [
        f"{path.relative_to(ROOT)}:{message}"
        for path, module, is_package in modules()
        if part(module) != "dreamer4"
        for message in violations(path.read_text(), module, is_package)
    ]
    assert not found, "\n" + "\n".join(found)


def test_every_part_has_a_layer():
    unknown = {str(path.relative_to(ROOT)) for path, module, _ in modules() if part(module) == "dreamer4"}
    assert unknown <= {"src/dreamer4/__init__.py", "src/dreamer4/__main__.py"}, "give these a line in LAYERS"


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("dreamer4.nn.attention", "import dreamer4.tokenizer"),
        ("dreamer4.nn.attention", "from dreamer4.envs import base"),
        ("dreamer4.nn.attention", "from dreamer4 import checkpoint"),
        ("dreamer4.nn.attention", "from ..envs import base"),
        ("dreamer4.nn.attention", "from .. import dreamer"),
        ("dreamer4.dynamics.model", "def f():\n    from dreamer4.tokenizer.base import AbstractTokenizer"),
        ("dreamer4.agent.heads", "from dreamer4 import Dreamer"),
        ("dreamer4.evaluation.play", "from dreamer4.training import train"),
        ("dreamer4.training.loop", "import dreamer4_cli.run"),
        ("dreamer4.types", "from dreamer4.config import Config"),
        ("dreamer4.errors", "from dreamer4.types import Action"),
    ],
)
def test_upward_and_sideways_imports_are_found(module, source):
    assert violations(source, module)


@pytest.mark.parametrize(
    ("module", "source", "is_package"),
    [
        ("dreamer4.nn", "from .attention import Attention as Attention", True),
        ("dreamer4.nn.attention", "from .layers import Linear\nfrom dreamer4.errors import InputError", False),
        ("dreamer4.nn.attention", "import jax\nfrom dreamer4_other import x", False),
        ("dreamer4.dynamics.model", "from ..nn import attention", False),
        ("dreamer4_cli.run", "from dreamer4 import Dreamer\nfrom dreamer4_cli import options", False),
    ],
)
def test_downward_imports_pass(module, source, is_package):
    assert not violations(source, module, is_package)


def test_no_machine_paths():
    assert not matches(r"(?<![\w.-])/(work|home|root|Users)/", texts())


def test_no_index_addresses():
    assert not matches(r"(?i)(index-url|find-links|trusted-host|pypi\.org/simple)", texts())


def test_no_annotations_as_text():
    # They would switch off the shape checks of jaxtyping.
    assert not matches(r"^from __future__ import annotations", python_files())


def test_files_have_a_subject_and_a_size():
    named = [str(p) for p, _ in python_files() if re.fullmatch(r"_?(utils?|helpers?|misc|common)\.py", p.name)]
    assert not [p for p in named if not p.startswith("tests")], "name a file by its subject"
    long = [f"{p}: {text.count(chr(10))} lines" for p, text in python_files() if p.parts[0] in CODE]
    assert not [entry for entry in long if int(entry.split(": ")[1].split()[0]) > 450]
