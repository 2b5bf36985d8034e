"""Episodes in which one task after another was asked for, cut into episodes of each."""

import numpy as np
import pytest

from dreamer4.data import Behaviour, Episode, by_prompt, check, cut_by_prompt, read_episodes, write_dataset
from dreamer4.errors import InputError
from dreamer4.types import ActionSpec, DataSpec, TaskSpec


TASKS = [TaskSpec(name=name, env={"id": "Own", "kwargs": {"task": name}}) for name in ("wood", "table", "pickaxe")]


def whole(reward, *, start=0, is_terminal=True):
    """Frame n shows `start` + n, and so does the action that led to it."""
    count = np.arange(len(reward))
    return Episode(
        frame=np.broadcast_to((start + count).astype(np.uint8)[:, None, None, None], (len(reward), 2, 2, 1)),
        discrete=(start + count).astype(np.int32)[:, None] * (count > 0)[:, None],
        continuous=np.zeros((len(reward), 0), np.float32),
        action_mask=count > 0,
        reward=np.float32(reward),
        is_terminal=is_terminal,
        key=np.zeros((len(reward), 2), np.uint32),
    )


def told(stretch):
    shown, last = stretch.frame[:, 0, 0, 0].tolist(), float(stretch.reward[-1])
    return stretch.task, shown, last, stretch.is_terminal, stretch.relevant


def test_a_stretch_begins_where_its_task_is_asked_for_and_ends_where_it_is_paid():
    stretches = by_prompt(whole([0, 0, 1, 0, 1, 0, 0]), 3)
    assert [told(stretch) for stretch in stretches] == [
        (0, [0, 1, 2], 1.0, True, True),
        (1, [2, 3, 4], 1.0, True, True),
        (2, [4, 5, 6], 0.0, True, False),
    ]
    for stretch in stretches:
        assert not stretch.action_mask[0] and stretch.action_mask[1:].all() and not stretch.reward[:-1].any()
        np.testing.assert_array_equal(stretch.discrete[1:, 0], stretch.frame[1:, 0, 0, 0])
        assert stretch.key is None  # no reset drew the world it begins in


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        ([0, 0, 2, 0], [(0, [0, 1, 2], 1.0, True, True), (2, [2, 3], 0.0, False, False)]),  # two at once pay one task
        ([0, 1], [(0, [0, 1], 1.0, True, True)]),  # nothing is left behind the end
        ([5, 0], [(0, [0, 1], 0.0, False, False)]),  # what came with the first frame means nothing
        ([0, 3, 0], [(0, [0, 1], 1.0, True, True), (2, [1, 2], 0.0, False, False)]),  # all done: the last goes on
    ],
)
def test_ends_of_every_kind(reward, expected):
    assert [told(stretch) for stretch in by_prompt(whole(reward, is_terminal=False), 3)] == expected


def test_a_cut_data_set_tells_its_tasks_and_holds_out_what_was_held_out(tmp_path):
    spec = DataSpec((2, 2, 1), ActionSpec((100,)))
    episodes = [whole([0, 1, 0, 1, 0], start=20), whole([0, 0], start=40), whole([0, 1, 0], start=60)]
    who = [Behaviour(policy="a", episodes=2), Behaviour(policy="b", episodes=1)]
    about = {"environment": {"id": "Own"}, "policy": "mixture", "behaviour": who, "seed": 0}
    write_dataset(tmp_path / "whole", episodes, spec=spec, held_out=[1, 2], **about)
    info = cut_by_prompt(tmp_path / "whole", tmp_path / "cut", TASKS)
    assert check(tmp_path / "cut") == []
    assert (info.spec.names, info.environment) == (("wood", "table", "pickaxe"), {"id": "Own"})
    assert [part.episodes for part in info.behaviour] == [4, 2]
    begins = {
        split: [int(e.frame[0, 0, 0, 0]) for e in read_episodes(tmp_path / "cut", split)]
        for split in ("train", "held_out")
    }
    assert begins == {"train": [20, 21, 23], "held_out": [40, 60, 61]}
    with pytest.raises(InputError, match="has 3 tasks already"):
        cut_by_prompt(tmp_path / "cut", tmp_path / "again", TASKS)
