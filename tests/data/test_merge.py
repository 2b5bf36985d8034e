"""Several data sets as one."""

import tracemalloc

import numpy as np
import pytest

from dreamer4.data import Behaviour, Episode, check, import_folder, merge_datasets, read_episodes, write_dataset
from dreamer4.errors import InputError
from dreamer4.types import ActionSpec, DataSpec, TaskSpec


SPEC = DataSpec((2, 2, 1), ActionSpec((3,)))


def write(path, first, count, spec=SPEC, tasks=(), **about):
    episodes = [
        Episode(
            frame=np.full((3, *spec.frame_shape), first + i, np.uint8),
            discrete=np.zeros((3, 1), np.int32),
            continuous=np.zeros((3, spec.action.continuous_dim), np.float32),
            action_mask=np.arange(3) > 0,
            reward=np.float32([0, 1, first]),
            is_terminal=True,
            task=tasks[i] if tasks else 0,
        )
        for i in range(count)
    ]
    told = {"environment": {"id": "Own"}, "policy": f"from {first}", "seed": 0, "held_out": 0.3} | about
    return write_dataset(path, episodes, spec=spec, **told)


def shown(path, split):
    return [int(episode.frame[0, 0, 0, 0]) for episode in read_episodes(path, split)]


def test_a_merged_set_holds_all_episodes_and_holds_out_what_its_parts_held_out(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    write(a, 10, 6, behaviour=[Behaviour(policy="left", episodes=2), Behaviour(policy="right", episodes=4)])
    write(b, 20, 4)
    info = merge_datasets([a, b], tmp_path / "both")
    assert check(tmp_path / "both") == []
    assert shown(tmp_path / "both", "all") == [*range(10, 16), *range(20, 24)]
    assert shown(tmp_path / "both", "held_out") == shown(a, "held_out") + shown(b, "held_out")
    assert [(part.policy, part.episodes) for part in info.behaviour] == [("left", 2), ("right", 4), ("from 20", 4)]
    assert info.environment == {"id": "Own"}


def test_tasks_of_several_sets_are_told_apart_by_name_and_given_one_space(tmp_path):
    def spec(action, *names, channels=1):
        return DataSpec((2, 2, channels), action, len(names), tuple(TaskSpec(name=name) for name in names))

    write(tmp_path / "a", 10, 2, spec(ActionSpec((3,), 1), "left", "right"), tasks=[1, 0])
    write(tmp_path / "b", 20, 1, spec(ActionSpec((4,), 2), "up", channels=2))
    write(tmp_path / "c", 30, 1, spec(ActionSpec((3,), 1), "right"))
    info = merge_datasets([tmp_path / name for name in "abc"], tmp_path / "all")
    assert check(tmp_path / "all") == [] and info.spec.names == ("left", "right", "up")
    assert (info.frame_shape, info.num_classes, info.continuous_dim) == ((2, 2, 2), (3, 4), 2)
    assert [task.present for task in info.tasks] == [(True, False, True, False)] * 2 + [(False, True, True, True)]
    assert [episode.task for episode in read_episodes(tmp_path / "all")] == [1, 0, 2, 1]
    write(tmp_path / "d", 40, 1, spec(ActionSpec((2,), 1), "right"))
    with pytest.raises(InputError, match="differ in their classes"):
        merge_datasets([tmp_path / "a", tmp_path / "d"], tmp_path / "no")


def test_sets_that_do_not_fit_together_are_refused(tmp_path):
    a, other = tmp_path / "a", tmp_path / "other"
    write(a, 1, 3)
    write(other, 2, 3, DataSpec((2, 3, 1), ActionSpec((3,))))
    wide = DataSpec((2, 2, 1), ActionSpec((3,), 1))
    for name, low in (("one", -1), ("two", -2)):
        write(tmp_path / name, 3, 3, wide, environment={"id": "imported", "kwargs": {"bounds": [[low, 1]]}})
    for sources, told in (
        ([a], "two or more"),
        ([a, a], "the same episodes"),
        ([a, other], "differ in their frames"),
        ([tmp_path / "one", tmp_path / "two"], "bounds of continuous actions"),
    ):
        with pytest.raises(InputError, match=told):
            merge_datasets(sources, tmp_path / "both")
    assert not (tmp_path / "both").exists()


def test_sets_larger_than_memory_are_merged_an_episode_at_a_time(tmp_path):
    spec = DataSpec((200, 200, 3), ActionSpec((3,)))
    each = 3 * 200 * 200 * 3
    for name, first in (("a", 0), ("b", 40)):
        write(tmp_path / name, first, 40, spec, shard_bytes=5 * each)
    tracemalloc.start()
    merge_datasets([tmp_path / "a", tmp_path / "b"], tmp_path / "both")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 25 * each  # of 80, and a shard of five is read at a time to check it
    assert sorted(shown(tmp_path / "both", "all")) == list(range(80))


def test_a_long_episode_that_lies_in_pieces_is_merged_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("dreamer4.data.format._CHUNK_BYTES", 8)  # two frames of three
    write(tmp_path / "a", 10, 3)
    write(tmp_path / "b", 20, 3)
    merge_datasets([tmp_path / "a", tmp_path / "b"], tmp_path / "both")
    assert [episode.length for episode in read_episodes(tmp_path / "both")] == [3] * 6
    assert shown(tmp_path / "both", "all") == [10, 11, 12, 20, 21, 22]


def test_a_data_set_is_not_imported_but_merged(tmp_path):
    write(tmp_path / "a", 1, 2)
    with pytest.raises(InputError, match="is a data set already.*data merge"):
        import_folder(tmp_path / "a", tmp_path / "b")
