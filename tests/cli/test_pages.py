"""Which code made a result."""

import subprocess

from dreamer4.run.facts import source_commit


def test_a_commit_is_marked_by_changed_code_and_not_by_results(tmp_path):
    assert source_commit(tmp_path) is None

    def git(*words):
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *words], check=True, capture_output=True)

    git("init")
    git("commit", "--allow-empty", "-m", "first")
    commit = source_commit(tmp_path)
    assert commit and not commit.endswith("+")
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    (results / "catch.json").write_text("{}")
    assert source_commit(tmp_path) == commit
    (tmp_path / "benchmarks" / "catch.py").write_text("")
    assert source_commit(tmp_path) == commit + "+"
