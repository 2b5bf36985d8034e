"""What is pushed to a Hub comes back by one name; the server here speaks the few calls that are used, and notes all."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import jax.random as jr
import numpy as np
import pytest
from agent.fakes import TINY, TINY_SPEC
from helpers import equal, generic
from typer.testing import CliRunner

from dreamer4 import Dreamer, checkpoint, data
from dreamer4.checkpoint import Checkpoints
from dreamer4.dreamer import spec_to_json
from dreamer4.errors import InputError
from dreamer4_cli.app import app


hub = pytest.importorskip("huggingface_hub")


class Hub(BaseHTTPRequestHandler):
    """Repositories of one branch: a dictionary of files each, by `models/USER/NAME` or `datasets/USER/NAME`."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = urlsplit(self.path).path.removeprefix("/api/")
        if path == "repos/create":
            asked = json.loads(body)
            name, kind = f"{asked['organization']}/{asked['name']}", asked.get("type") or "model"
            self.server.repos.setdefault(f"{kind}s/{name}", {})
            place = f"datasets/{name}" if kind == "dataset" else name
            self.answer({"url": f"{self.server.url}/{place}", "id": name})
        elif path == "validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            files = [{"path": f["path"], "uploadMode": "regular", "oid": None} for f in json.loads(body)["files"]]
            self.answer({"files": [{**f, "shouldIgnore": False} for f in files]})
        elif "/commit/" in path:
            files = self.server.repos[path.split("/commit/")[0]]
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer({"success": True, "commitOid": "c" * 40, "commitUrl": f"{self.server.url}/{path}"})
        else:
            self.answer({"error": "unknown"}, 404)

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        if "/resolve/" in path:
            repo, _, file = path.strip("/").partition("/resolve/")
            repo = repo if repo.startswith("datasets/") else f"models/{repo}"
            content = self.server.repos.get(repo, {}).get(file.split("/", 1)[1])
            self.server.fetched.append(file.split("/", 1)[1])
            self.answer(content) if content is not None else self.answer({"error": "none"}, 404)
            return
        repo = path.removeprefix("/api/").split("/revision/")[0].split("/tree/")[0]
        if (files := self.server.repos.get(repo)) is None:
            self.answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        elif "/tree/" in path:
            self.answer([{"type": "file", "path": f, "size": len(c), "oid": "0"} for f, c in files.items()])
        else:
            about = {"id": repo.split("/", 1)[1], "sha": "c" * 40, "private": False, "tags": [], "downloads": 0}
            self.answer(about | {"siblings": [{"rfilename": f, "size": len(c)} for f, c in files.items()]})

    do_HEAD = do_GET

    def answer(self, content, status=200, headers=()):
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        told = {"Content-Length": len(raw), "ETag": hashlib.sha256(raw).hexdigest(), "X-Repo-Commit": "c" * 40}
        for name, value in (told | dict(headers)).items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.repos, server.fetched = {}, []
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    yield server
    server.shutdown()
    server.server_close()


def invoke(*line):
    done = CliRunner().invoke(app, [str(word) for word in line])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output.replace("\n", " ")


@pytest.fixture
def run(tmp_path):
    dreamer = generic(Dreamer.build, TINY, TINY_SPEC, key=jr.key(0))
    meta = {"config": TINY.model_dump(mode="json"), "spec": spec_to_json(TINY_SPEC), "phase": "imagination"}
    path = tmp_path / "runs" / "mine"
    Checkpoints(path / "checkpoints" / "imagination").save(7, {"ema": dreamer}, meta | {"data": "f00d"})
    played = {"mean": 0.5, "low": 0.25, "high": 0.75, "episodes": 10}
    world = {"psnr": {4: 31.5}, "mean_exact": {4: 0.9}, "num_steps": 4}
    results = {"returns": {"imagination": played}, "by_mode": {"imagination": played}, "world_model": world}
    (path / "results.json").write_text(json.dumps(results))
    return path, dreamer


def test_a_pushed_agent_is_the_agent_and_nothing_else_is_fetched(server, run):
    path, dreamer = run
    assert "hf://me/mine" in invoke("push", path, "me/mine", "--license", "cc-by-4.0")
    files = server.repos["models/me/mine"]
    files |= {"model.pkl": b"cos\nsystem\n", "starts/x.pt": b"", "code.py": b"raise SystemExit"}
    assert equal(Dreamer.load("hf://me/mine"), dreamer)
    assert equal(Dreamer.load(Path("hf://me/mine@main")), dreamer)  # a Path joins the slashes
    assert set(server.fetched) == {"README.md", "config.json", "dreamer4.json", "model.safetensors"}
    assert "imagination" in invoke("info", "hf://me/mine")

    card = hub.ModelCard(files["README.md"].decode(), ignore_metadata_errors=False).data
    assert (card.license, card.library_name, card.pipeline_tag) == ("cc-by-4.0", "dreamer4", "reinforcement-learning")
    assert "arxiv:2509.24527" in card.tags
    measured = {r.metric_name: r.metric_value for r in card.eval_results}
    assert measured["imagination policy"] == measured["imagination policy, greedy"] == 0.5
    assert (measured["PSNR of dreamt frames, K = 4 (dB)"], set(map(type, card.eval_results))) == (
        31.5,
        {hub.EvalResult},
    )

    safetensors = pytest.importorskip("safetensors.numpy")
    step = path / "checkpoints" / "imagination" / "7"
    tensors = safetensors.load(files["model.safetensors"])
    assert {f"ema.{name}" for name in tensors} == set(checkpoint.read_leaves(step, at="ema"))


def test_a_card_that_was_edited_is_pushed_as_it_is(server, run, tmp_path):
    invoke("export", run[0], tmp_path / "out")
    (tmp_path / "out" / "README.md").write_text("---\nlicense: mit\n---\nmine")
    invoke("push", tmp_path / "out", "me/mine")
    assert server.repos["models/me/mine"]["README.md"].endswith(b"mine")


def test_a_pushed_data_set_is_the_data_set_and_viewers_see_its_frames(server, tmp_path):
    frames = np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1) * np.ones(TINY_SPEC.frame_shape, np.uint8)
    labels = (np.zeros((3, 1), np.int32), np.zeros((3, 2), np.float32), np.array([False, True, True]))
    episodes = [data.Episode(frames + i, *labels, np.float32([0, 1, i]), True) for i in range(4)]
    about = {"spec": TINY_SPEC, "environment": {"id": "Toy"}, "policy": str(tmp_path / "code.py:mine"), "seed": 0}
    data.write_dataset(tmp_path / "data", episodes, **about, held_out=[2])
    assert "hf://datasets/me/toy" in invoke("push", tmp_path / "data", "me/toy")
    files = server.repos["datasets/me/toy"]
    assert not [name for name, content in files.items() if str(tmp_path).encode() in content]
    assert "no problems" in invoke("data", "check", "hf://datasets/me/toy")
    from dreamer4.hub import local

    fetched = local("hf://datasets/me/toy")
    assert data.read_info(fetched).held_out == (2,)
    assert all(np.array_equal(a.frame, b.frame) for a, b in zip(data.read_episodes(fetched), episodes, strict=True))

    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "preview.parquet").write_bytes(files["preview.parquet"])
    rows = parquet.read_table(tmp_path / "preview.parquet").to_pylist()
    assert [(row["episode"], row["frame"], row["reward"]) for row in rows[-2:]] == [(3, 1, 1.0), (3, 2, 3.0)]
    assert rows[0]["image"]["bytes"].startswith(b"\x89PNG")
    card = hub.DatasetCard(files["README.md"].decode(), ignore_metadata_errors=False).data
    columns = [feature["name"] for feature in card.to_dict()["dataset_info"]["features"]]
    assert columns == list(rows[0]) and card.to_dict()["configs"][0]["data_files"] == "preview.parquet"


@pytest.mark.parametrize("name", ["hf://alone", "hf://me/a/b", "hf:///me/x", "hf://nobody/nothing"])
def test_a_name_that_leads_nowhere_is_told_in_a_line(server, name):
    with pytest.raises(InputError, match="hf:"):
        Dreamer.load(name)
