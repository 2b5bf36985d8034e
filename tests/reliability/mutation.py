"""How many small faults the tests notice: `python -m tests.reliability.mutation` writes results/mutation.json.

One operator, constant or function at a time is changed in a copy of the tree, in the files where a wrong sign, index or
mask would spoil results without an error: losses, returns, noise levels, masks, caches. Then the tests of that file run
in a process of their own. A fault that they pass survives, and is listed with its line.

No library is used, as those that we know start Python and import JAX anew for each fault, which takes longer than the
tests; here each process is a fork of one that has imported what does not change.
"""

import argparse
import ast
import copy
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


ROOT = Path(__file__).parents[2]
OUT = ROOT / "benchmarks" / "results" / "mutation.json"

TARGETS = {
    "agent/losses.py": ["agent/test_losses.py"],
    "agent/returns.py": ["agent/test_returns.py"],
    "agent/objectives.py": ["agent/test_objectives.py"],
    "dynamics/shortcut.py": ["dynamics/test_shortcut.py", "dynamics/test_objective.py"],
    "nn/attention.py": ["nn/test_attention.py", "nn/test_transformer.py"],
    "nn/transformer.py": ["nn/test_transformer.py"],
    "tokenizer/loss.py": ["tokenizer/test_loss.py"],
}

OPERATORS: dict[type, type] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
FUNCTIONS = {"minimum": "maximum", "maximum": "minimum", "sum": "mean", "mean": "sum", "ones": "zeros", "zeros": "ones"}
TRANSPARENT = {"stop_gradient", "abs", "cumsum", "cumprod", "square", "sqrt"}  # a call that becomes its first argument


@dataclass(frozen=True)
class Mutant:
    """A file with one fault.

    Attributes:
        file: below src/dreamer4.
        line: where.
        change: what, as code.
        source: the whole file.
    """

    file: str
    line: int
    change: str
    source: str


def mutants(file: str, source: str) -> Iterator[Mutant]:
    """Yields every fault that we know how to make in a file, in the order of its lines."""
    count = len(_sites(ast.parse(source)))
    for number in range(count):
        tree = ast.parse(source)
        node, replacement = _sites(tree)[number]
        before = ast.unparse(node)
        _replace(tree, node, replacement)
        yield Mutant(file, node.lineno, f"{before}  ->  {ast.unparse(replacement)}", ast.unparse(tree) + "\n")


def _sites(tree: ast.Module) -> list[tuple[ast.expr, ast.expr]]:
    """Returns the expressions that can be changed, each with what it becomes."""
    found = []
    for node in _walk(tree):
        found += [(node, other) for other in _variants(node)]
    return sorted(found, key=lambda pair: (pair[0].lineno, pair[0].col_offset))


def _walk(node: ast.AST) -> Iterator[ast.expr]:
    """Yields the expressions below a node that are computed: no annotations, no decorators."""
    for name, field in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        for child in field if isinstance(field, list) else [field]:
            if isinstance(child, ast.expr):
                yield child
            if isinstance(child, ast.AST):
                yield from _walk(child)


def _variants(node: ast.expr) -> Iterator[ast.expr]:
    changed = copy.deepcopy(node)
    match changed:
        case ast.BinOp(op=op) | ast.BoolOp(op=op) if type(op) in OPERATORS:
            changed.op = OPERATORS[type(op)]()
        case ast.Compare(ops=[op]) if type(op) in OPERATORS:
            changed.ops = [OPERATORS[type(op)]()]
        case ast.UnaryOp(op=ast.USub() | ast.Invert() | ast.Not()):
            changed = changed.operand
        case ast.Constant(value=bool(value)):
            changed.value = not value
        case ast.Constant(value=int(value) | float(value)):
            changed.value = value + 1
        case ast.Call(func=ast.Attribute(attr="where"), args=[where, one, two]):
            changed.args = [where, two, one]
        case ast.Call(func=ast.Attribute(attr=name), args=[first, *_]) if name in TRANSPARENT:
            changed = first
        case ast.Call(func=ast.Attribute(attr=name) as function) if name in FUNCTIONS:
            function.attr = FUNCTIONS[name]
        case _:
            return
    yield changed


def _replace(tree: ast.AST, old: ast.expr, new: ast.expr) -> None:
    class Exchange(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> ast.AST:
            return new if node is old else self.generic_visit(node)

    ast.fix_missing_locations(Exchange().visit(tree))


class Lab:
    """A copy of the tree, and this process, which has imported what tests need but not what is tested."""

    def __init__(self, place: Path, log: Path):
        self.place, self.log = place, log
        for name in ("src", "cli", "tests", "examples", "pyproject.toml"):
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, place / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, place)
        os.environ["JAX_PLATFORMS"] = "cpu"
        sys.path[:0] = [str(place / "src"), str(place / "cli")]
        import equinox  # noqa: F401
        import hypothesis.strategies  # noqa: F401
        import optax  # noqa: F401
        import orbax.checkpoint  # noqa: F401
        import pytest  # noqa: F401

    def tests_pass(self, files: list[str], seconds: int) -> bool:
        """Runs test files in a fork and returns whether they pass within so many seconds of processor time."""
        child = os.fork()
        if child == 0:
            self._run(files, seconds)
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status) == 0

    def _run(self, files: list[str], seconds: int) -> None:
        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        os.chdir(self.place)
        import pytest

        code = 1
        try:
            options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--hypothesis-seed=0"]
            code = pytest.main([*options, *(f"tests/{file}" for file in files)])
        finally:
            os._exit(int(code))

    def noticed(self, mutant: Mutant, seconds: int) -> bool:
        """Returns whether the tests of a file notice a fault in it."""
        path = self.place / "src" / "dreamer4" / mutant.file
        whole = path.read_text()
        # Compiled files are told by time and size, which a fault may leave as they are.
        for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
            compiled.unlink()
        sys.dont_write_bytecode = True
        try:
            path.write_text(mutant.source)
            return not self.tests_pass(TARGETS[mutant.file], seconds)
        finally:
            path.write_text(whole)
            sys.dont_write_bytecode = False


def main() -> None:
    """Makes the faults, runs the tests, writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=20, help="faults per file, drawn by a fixed seed; 0: all")
    parser.add_argument("--only", help="part of a file's name")
    parser.add_argument("--out", type=Path, default=OUT, help="a file that is there keeps its other rows")
    given = parser.parse_args()

    told = json.loads(given.out.read_text()) if given.out.exists() else {"files": {}}
    rows, total = told["files"], {}
    command = " ".join(["python", "-m", "tests.reliability.mutation", *sys.argv[1:]])
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(Path(folder), Path(folder) / "log")
        for file, tests in TARGETS.items():
            if given.only and given.only not in file:
                continue
            every = list(mutants(file, (ROOT / "src" / "dreamer4" / file).read_text()))
            chosen = every
            if given.each and len(every) > given.each:
                numbers = sorted(random.Random(0).sample(range(len(every)), given.each))  # noqa: S311
                chosen = [every[number] for number in numbers]
            began = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
            if not lab.tests_pass(tests, 600):
                raise SystemExit(f"{file}: its tests fail without a fault:\n{lab.log.read_text()[-2000:]}")
            seconds = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]) - began
            survivors, clock = [], time.monotonic()
            for number, mutant in enumerate(chosen, start=1):
                if not lab.noticed(mutant, int(5 * seconds + 20)):
                    survivors.append({"line": mutant.line, "change": mutant.change})
                    print(f"  {file}:{mutant.line}: {mutant.change}", flush=True)
                if number % 10 == 0:
                    print(f"  {number} of {len(chosen)}, {time.monotonic() - clock:.0f} s", flush=True)
            counts = {"possible": len(every), "tried": len(chosen), "noticed": len(chosen) - len(survivors)}
            rows[file] = {**counts, "survivors": survivors, "command": command, "commit": _commit()}
            print(f"{file}: {counts['noticed']} of {len(chosen)} noticed ({len(every)} possible)", flush=True)
            total = {name: sum(row[name] for row in rows.values()) for name in counts}
            files = {name: rows[name] for name in TARGETS if name in rows}
            given.out.write_text(json.dumps({"total": total, "files": files}, indent=1) + "\n")
    if not total:
        parser.error(f"--only {given.only}: no file of that name. Known: {', '.join(TARGETS)}.")
    print(f"{total['noticed']} of {total['tried']} noticed, {total['noticed'] / total['tried']:.0%}")


def _commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603, S607

    return git("rev-parse", "--short", "HEAD") + (
        " and changes" if git("status", "--porcelain", "src", "tests") else ""
    )


if __name__ == "__main__":
    main()
