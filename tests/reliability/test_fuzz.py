"""Whatever the bytes of a file are: what reads it returns something sound or refuses in words, and nothing else."""

import json
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dreamer4 import checkpoint, config, data
from dreamer4.checkpoint import manifest, tensors
from dreamer4.errors import InputError
from dreamer4.run import pages
from dreamer4.run.folder import RunFolder
from dreamer4.run.metrics import read_metrics


FUZZ = settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
ANY_JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


def spoilt(sound):
    """Returns a strategy: a sound document with one value anywhere exchanged for another, or removed."""
    text = json.dumps(sound)

    def change(place, value, remove):
        tree = json.loads(text)
        rng, node = random.Random(place), tree
        while True:
            key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
            if isinstance(node[key], dict | list) and node[key] and rng.random() < 0.8:
                node = node[key]
                continue
            if remove:
                del node[key]
            else:
                node[key] = value
            return tree

    return st.builds(change, st.integers(0, 10**6), ANY_JSON, st.booleans())


def survives(read, *args):
    try:
        read(*args)
    except InputError as error:
        assert str(error)


@pytest.fixture(scope="module")
def files(request):
    """The committed files of this schema."""
    return request.config.rootpath / "tests" / "fixtures" / f"v{checkpoint.SCHEMA}"


READERS = {
    "metrics.jsonl": lambda folder: read_metrics(folder / "metrics.jsonl"),
    "config.yaml": lambda folder: config.load(file=folder / "config.yaml"),
    "dataset.json": data.read_info,
    "manifest.json": checkpoint.read_manifest,
    "dreamer4.json": checkpoint.read_manifest,
    "model.safetensors": lambda folder: tensors.read_header(folder / "model.safetensors"),
    "results.json": lambda folder: pages.run_results(RunFolder(folder)),
}


@pytest.mark.parametrize("name", READERS)
@FUZZ
@given(content=st.binary(max_size=200) | ANY_JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    survives(READERS[name], tmp_path)


@pytest.mark.parametrize("letter", ["[", "9"])
@pytest.mark.parametrize("name", READERS)
def test_what_is_deeper_or_longer_than_a_reader_bears(tmp_path, name, letter):
    (tmp_path / name).write_text(100_000 * letter + "\n")
    refused = False
    try:
        READERS[name](tmp_path)
    except InputError:
        refused = True
    assert refused


@FUZZ
@given(st.data())
def test_a_manifest_that_is_sealed_and_makes_no_sense(files, tmp_path, drawn):
    sound = json.loads((files / "exported" / "dreamer4.json").read_text())
    sound.pop("sha256")
    sound["leaves"] = dict(list(sound["leaves"].items())[:3])
    body = drawn.draw(spoilt(sound))
    (tmp_path / "dreamer4.json").write_bytes(manifest.seal(json.loads(json.dumps(body), parse_constant=str)))
    survives(checkpoint.read_manifest, tmp_path)


@FUZZ
@given(st.data())
def test_a_description_of_a_data_set_that_makes_no_sense(files, tmp_path, drawn):
    body = drawn.draw(spoilt(json.loads((files / "data" / "dataset.json").read_text())))
    (tmp_path / "dataset.json").write_text(json.dumps(body))
    survives(data.read_info, tmp_path)


@FUZZ
@given(st.data())
def test_a_safetensors_header_that_makes_no_sense(tmp_path, drawn):
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    text = json.dumps(drawn.draw(spoilt({"a": entry, "b": {**entry, "data_offsets": [8, 16]}}))).encode()
    (tmp_path / "x").write_bytes(len(text).to_bytes(8, "little") + text + bytes(16))
    survives(tensors.read_header, tmp_path / "x")


@FUZZ
@given(st.data())
def test_a_configuration_that_makes_no_sense(drawn):
    tree = config.load("tiny").model_dump(mode="json")
    body = drawn.draw(spoilt({name: tree[name] for name in ("preset", "env", "sampler", "imagination")}))
    survives(config.from_yaml, json.dumps(body))
