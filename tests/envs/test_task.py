"""Several tasks behind one space of frames and actions."""

import dataclasses

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from dreamer4.config import EnvConfig, TaskConfig
from dreamer4.data import as_task, collect, random_policy, read_info, write_dataset
from dreamer4.dreamer import spec_from_json, spec_to_json
from dreamer4.envs import fitted, make, spec_of
from dreamer4.errors import InputError
from dreamer4.types import Action, ActionSpec, DataSpec, TaskSpec


IDS = {"swing": "PendulumSwingup-pixels", "goal": "PointGoal-pixels"}
TASKS = [TaskConfig(name=name, env=EnvConfig(id=id)) for name, id in IDS.items()]


def test_actions_get_a_place_in_the_order_of_their_components():
    whole = ActionSpec.around([ActionSpec((3, 2), 1), ActionSpec((2, 5)), ActionSpec((3,), 2)])
    assert (whole.num_classes, whole.continuous_dim) == ((3, 2, 5), 2)
    assert whole.place(ActionSpec((2, 5))) == (1, 2)
    assert whole.place(ActionSpec((3, 2), 1)) == (0, 1, 3)
    assert whole.place(ActionSpec((5, 2))) is None  # the other order
    assert whole.place(ActionSpec((), 3)) is None


def test_a_mask_tells_the_components_of_each_task_and_nothing_where_none_lacks_one():
    spec = spec_of(TASKS)
    assert spec.frame_shape == (16, 16, 2) and spec.names == ("swing", "goal")
    assert spec.action == ActionSpec((), 2, ((True, False), (True, True)))
    assert spec.action.components(jnp.array([1, 0])).tolist() == [[True, True], [True, False]]
    whole = dataclasses.replace(spec, tasks=tuple(t.model_copy(update={"present": ()}) for t in spec.tasks))
    assert whole.action.present == () and whole.action.components(jnp.array(0)).tolist() == [True, True]
    assert spec_from_json(spec_to_json(spec)) == spec


def test_tasks_are_found_by_name_or_number_and_others_refused():
    spec = spec_of(TASKS)
    assert [spec.find_task(task) for task in ("swing", "goal", "0", "1", 1)] == [0, 1, 0, 1, 1]
    with pytest.raises(InputError, match="--task: got 'fly', but the tasks of this agent are: 0 swing, 1 goal"):
        spec.find_task("fly")
    assert DataSpec((2, 2, 1), ActionSpec((2,)), 3).find_task("2") == 2


@pytest.mark.parametrize("name", IDS)
def test_an_environment_among_several_tasks_is_the_same_world(name):
    spec, env = spec_of(TASKS), make(EnvConfig(id=IDS[name]))
    shared = fitted(env, spec, spec.names.index(name))
    dims, channels = env.spec.action.continuous_dim, env.spec.frame_shape[2]

    def play(env, pushes):
        state, first = env.reset(key=jr.key(0))

        def step(state, push):
            return env.step(state, Action(jnp.zeros(0, jnp.int32), push), key=jr.key(1))

        return jax.lax.scan(step, state, pushes)[1]

    pushes = jr.uniform(jr.key(2), (6, 2), minval=-1.0)
    own, seen = play(env, pushes[:, :dims]), play(shared, pushes)
    np.testing.assert_array_equal(seen.frame[..., :channels], own.frame)
    assert not np.any(seen.frame[..., channels:])
    np.testing.assert_array_equal(seen.reward, own.reward)
    assert fitted(env, spec, 1 - spec.names.index(name)) is None  # another task has other components


def test_episodes_of_a_task_are_told_by_name_in_the_data_set(tmp_path):
    spec, env = spec_of(TASKS), make(EnvConfig(id=IDS["swing"]))
    (episode,) = collect(env, random_policy(env.spec), episodes=1, num_envs=1, key=jr.key(0))
    held = as_task(episode, env.spec.action, spec, 0)
    np.testing.assert_array_equal(held.continuous[:, :1], episode.continuous)
    assert not np.any(held.continuous[:, 1])
    write_dataset(tmp_path / "set", [held], spec=spec, environment={"id": "two"}, policy="random", seed=0, held_out=0)
    assert read_info(tmp_path / "set").spec == spec
    assert read_info(tmp_path / "set").tasks[0] == TaskSpec(
        name="swing", env=TASKS[0].env.described, present=(True, False), max_steps=60
    )
