"""Files from strangers: none can run code, lead out of its folder, or make a reader ask for more than it brings."""

import ast
import json
import os
import resource
import shutil
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from dreamer4 import checkpoint, config, data
from dreamer4.checkpoint import manifest, tensors
from dreamer4.errors import InputError
from dreamer4.run.metrics import MetricLog, read_metrics


ROOT = Path(__file__).parents[2]
FOLDERS = ("src", "cli", "examples", "benchmarks", "tests", ".ci")
MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "shelve"}
CALLS = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "torch.load"),
    *("shutil.unpack_archive", "extractall", "extract"),
}


def dangers(source: str) -> list[str]:
    """Lists what in a program could run code that data brings along, or write where an archive says."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [f"{node.lineno}: import {name}" for name in names if name.split(".")[0] in MODULES]
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            checked = "extract" in name and keywords.get("filter") == "'data'"
            if (name in CALLS or name.split(".")[-1] in {"extractall"}) and not checked:
                found.append(f"{node.lineno}: {name}(...)")
            if keywords.get("allow_pickle", "False") != "False":
                found.append(f"{node.lineno}: allow_pickle")
    return found


# The one reader of a format that can run things makes arrays and nothing else, and its test tries it.
READS_ARRAYS_ALONE = {"src/dreamer4/pretrained/arrays.py", "tests/pretrained/test_pretrained.py"}


def test_no_program_of_ours_runs_what_data_brings_along():
    files = [file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py"))]
    found = {str(file.relative_to(ROOT)): dangers(file.read_text()) for file in files}
    assert len(files) > 100
    assert not {name: lines for name, lines in found.items() if lines and name not in READS_ARRAYS_ALONE}
    assert all([line.split(": ")[1] for line in found[name]] == ["import pickle"] for name in READS_ARRAYS_ALONE)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "def f():\n    import cloudpickle.x",
        "eval('1')",
        "yaml.load(text, Loader=yaml.SafeLoader)",
        "np.load(file, allow_pickle=True)",
        "np.load(file, allow_pickle=choice)",
        "tarfile.open(f).extractall(to)",
        "archive.extractall(to, filter='fully_trusted')",
        "shutil.unpack_archive(f)",
    ],
)
def test_the_check_finds_what_it_is_for(source):
    assert dangers(source)


@pytest.mark.parametrize("source", ["yaml.safe_load(x)", "np.load(f)", "archive.extractall(to, filter='data')"])
def test_the_check_lets_safe_ones_pass(source):
    assert not dangers(source)


@pytest.fixture(autouse=True)
def little_memory():
    """Nothing here may ask for more than a gigabyte beyond what the process has."""
    before, status = resource.getrlimit(resource.RLIMIT_AS), Path("/proc/self/statm")
    if not status.exists():  # not Linux, which alone tells and keeps such a limit
        yield
        return
    used = int(status.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


TREE = {"a": jnp.arange(4.0), "b": jnp.ones((2, 2), jnp.bfloat16)}
DIGEST = "0" * 64


@pytest.fixture(scope="module", params=["orbax", "safetensors"])
def saved(tmp_path_factory, request):
    path = tmp_path_factory.mktemp(request.param) / "1"
    checkpoint.save(path, TREE, meta={}, kind=request.param)
    return path


@pytest.fixture
def copy(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "1"))


def forge(path, change):
    """Rewrites a manifest as an attacker would: with a right checksum of its own."""
    file = next(path.glob("*.json"))
    body = json.loads(file.read_text())
    del body["sha256"]
    change(body)
    file.write_bytes(manifest.seal(body))


def set_leaf(**values):
    return lambda body: body["leaves"]["a"].update(values)


def add_file(name, size=0):
    return lambda body: body["files"].update({name: {"bytes": size, "sha256": DIGEST}})


FORGERIES = {
    "huge shape": set_leaf(shape=[2**40]),
    "overflowing shape": set_leaf(shape=[2**63, 2**63]),
    "many axes": set_leaf(shape=[1] * 1000),
    "negative shape": set_leaf(shape=[-4]),
    "shape of text": set_leaf(shape="4"),
    "shape of truth": set_leaf(shape=[True]),
    "object type": set_leaf(dtype="object"),
    "text type": set_leaf(dtype="U1000000"),
    "no digest": set_leaf(sha256="x"),
    "unknown key": lambda body: body.update(more=1),
    "no leaves": lambda body: body.pop("leaves"),
    "leaves of a list": lambda body: body.update(leaves=[]),
    "meta of text": lambda body: body.update(meta="x"),
    "negative size": lambda body: body["files"].update(x={"bytes": -1, "sha256": DIGEST}),
    "no schema": lambda body: body.pop("schema"),
    "schema of text": lambda body: body.update(schema="1"),
    "schema of truth": lambda body: body.update(schema=True),
    "absolute name": add_file("/etc/passwd"),
    "name above": add_file("../other"),
    "name above, inside": add_file("arrays/../../other"),
    "name with a backslash": add_file("..\\other"),
    "name with a null": add_file("a\0b"),
    "name of nothing": add_file(""),
    "name too long": add_file("x" * 5000),
    "name of the folder": add_file("."),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_manifest_is_refused(copy, forgery):
    forge(copy, FORGERIES[forgery])
    assert checkpoint.verify(copy)
    with pytest.raises(InputError):
        checkpoint.load(copy, jax.eval_shape(lambda: TREE))


def test_a_newer_schema_is_refused_by_its_number_and_an_upgrade_named(copy):
    forge(copy, lambda body: body.update(schema=99, something="new"))
    for use in (checkpoint.read_meta, lambda path: checkpoint.load(path, TREE)):
        with pytest.raises(InputError, match=r"schema 99.*reads up to 1.*Upgrade"):
            use(copy)


@pytest.mark.parametrize("harm", ["link", "folder behind a link", "pipe", "link in a circle"])
def test_files_that_lead_elsewhere_are_refused(copy, tmp_path, harm):
    inside, name = copy / "inside", "inside/file"
    if harm == "folder behind a link":
        (tmp_path / "outside").mkdir()
        (tmp_path / "outside" / "file").touch()
        inside.symlink_to(tmp_path / "outside")
    else:
        inside.mkdir()
        if harm == "pipe":
            os.mkfifo(inside / "file")
        else:
            (inside / "file").symlink_to("/etc/hostname" if harm == "link" else inside / "file")
    forge(copy, add_file(name))
    (problem,) = checkpoint.verify(copy)
    assert "inside/file" in problem


MANIFESTS = {
    "deep": b"[" * 100_000,
    "long number": b'{"schema": ' + b"9" * 100_000 + b"}",
    "not a mapping": b"[1]",
    "not a number": b'{"schema": NaN}',
    "not text": b"\xff\xfe",
    "nothing": b"",
}


@pytest.mark.parametrize("content", MANIFESTS)
@pytest.mark.parametrize("name", ["manifest.json", "dreamer4.json"])
def test_what_is_no_manifest_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(MANIFESTS[content])
    with pytest.raises(InputError, match="damaged"):
        checkpoint.read_manifest(tmp_path)


def sparse(file, size):
    """A file that claims a size and takes no room."""
    with file.open("wb") as stream:
        stream.truncate(size)


def test_files_too_large_for_what_they_are_are_not_read(tmp_path):
    size = 2**40
    sparse(tmp_path / "manifest.json", size)
    with pytest.raises(InputError, match="larger"):
        checkpoint.read_manifest(tmp_path)
    sparse(tmp_path / "config.yaml", size)
    with pytest.raises(InputError, match="larger"):
        config.load(file=tmp_path / "config.yaml")
    sparse(tmp_path / "metrics.jsonl", size)
    # Logs of weeks are large, and read line by line; only a line has a bound.
    for read in (read_metrics, MetricLog):
        with pytest.raises(InputError, match="is not a line of metrics: it is too long"):
            read(tmp_path / "metrics.jsonl")
    sparse(tmp_path / "dataset.json", size)
    with pytest.raises(InputError, match="more than"):
        data.read_info(tmp_path)


@pytest.mark.parametrize("line", [b"[" * 100_000, b'{"phase": "a"}', b"9" * 100_000, b"\xff", b"null"])
def test_a_line_that_is_no_metric_is_refused(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_bytes(line + b"\n")
    with pytest.raises(InputError, match="Line 1"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_a_few_lines_that_stand_for_billions_are_refused():
    lines = ["env:", "  kwargs:", "    a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"    a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    with pytest.raises(InputError, match="aliases"):
        config.from_yaml("\n".join(lines))


def tensor_file(path, header, payload=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + payload)
    return path


def entry(dtype="F32", shape=(2,), begin=0, end=8):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


TENSORS = {
    "too short": (b"", b"", None),
    "a terabyte of header": (b"{}", b"", 2**40),
    "a header of all bits": (b"{}", b"", 2**64 - 1),
    "deep": (b"[" * 100_000, b"", None),
    "a list": ([], b"", None),
    "unknown type": ({"a": entry("PICKLE")}, b"\0" * 8, None),
    "type of a list": ({"a": entry([])}, b"\0" * 8, None),
    "huge": ({"a": entry(shape=(2**60,), end=2**62)}, b"\0" * 8, None),
    "shape and range disagree": ({"a": entry(shape=(3,))}, b"\0" * 8, None),
    "negative": ({"a": entry(shape=(-2,), begin=8, end=0)}, b"\0" * 8, None),
    "truth": ({"a": entry("BOOL", (True,), 0, 1)}, b"\0", None),
    "overlap": ({"a": entry(), "b": entry(begin=4, end=12)}, b"\0" * 12, None),
    "gap": ({"a": entry(), "b": entry(begin=12, end=20)}, b"\0" * 20, None),
    "rest": ({"a": entry()}, b"\0" * 9, None),
    "cut": ({"a": entry()}, b"\0" * 7, None),
    "missing key": ({"a": {"dtype": "F32", "shape": [2]}}, b"\0" * 8, None),
    "many axes": ({"a": entry(shape=[1] * 1000 + [2])}, b"\0" * 8, None),
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_forged_safetensors_header_is_refused(tmp_path, name):
    with pytest.raises(InputError, match="no sound safetensors file"):
        tensors.read_header(tensor_file(tmp_path / "x", *TENSORS[name]))


def test_a_sound_safetensors_header_is_read(tmp_path):
    header = {"__metadata__": {"format": "np"}, "b": entry("BF16", (2, 2), 8, 16), "a": entry()}
    found, start = tensors.read_header(tensor_file(tmp_path / "x", header, b"\0" * 16))
    assert found == {"a": ((2,), "float32", 0, 8), "b": ((2, 2), "bfloat16", 8, 16)}
    assert start == (tmp_path / "x").stat().st_size - 16
