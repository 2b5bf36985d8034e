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
