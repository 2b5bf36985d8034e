"""Latents of a run that another run starts from."""

from dreamer4.run.folder import RunFolder
from dreamer4.run.latents import take_over


def test_latents_are_taken_over_once_and_stay_those_of_both(tmp_path):
    theirs, ours = RunFolder(tmp_path / "theirs"), RunFolder(tmp_path / "ours")
    ours.path.mkdir()
    take_over(theirs.path, ours)
    assert list(ours.path.iterdir()) == []

    shard = theirs.latents / "tokenizer-data" / "shard-0"
    shard.parent.mkdir(parents=True)
    shard.write_bytes(b"latents")
    take_over(theirs.path, ours)
    taken = ours.latents / "tokenizer-data" / "shard-0"
    assert taken.read_bytes() == b"latents" and [path.name for path in ours.path.iterdir()] == ["latents"]

    shard.unlink()
    shard.write_bytes(b"others")
    take_over(theirs.path, ours)
    assert taken.read_bytes() == b"latents"


def test_what_is_taken_from_a_closed_run_is_our_own(tmp_path):
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    store = theirs / "latents" / "a-b"
    store.mkdir(parents=True)
    ours.mkdir()
    (store / "shard-00000.npy").write_bytes(b"x")
    for folder in (store, store.parent):  # a shared disk, readable and no more
        folder.chmod(0o555)
    take_over(theirs, RunFolder(ours))
    assert (ours / "latents" / "a-b" / "shard-00000.npy").read_bytes() == b"x"
    assert all(folder.stat().st_mode & 0o200 for folder in (ours / "latents", ours / "latents" / "a-b"))
