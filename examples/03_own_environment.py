"""Your own environment: write it, collect episodes from it, keep them on disk, read batches.

An environment is two pure functions, `reset` and `step`, and a `spec`. The one rule of time: the last frame of an
episode is returned like any other, and the step after it opens the next episode. To adapt an outside simulator, draw
its observation as a uint8 image in `_time_step` and call its own transition in `step`.

Run: python examples/03_own_environment.py
"""

import tempfile
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray

from dreamer4.data import DeviceSource, check, collect, random_policy, read_episodes, read_info, write_dataset
from dreamer4.envs import AbstractEnvironment
from dreamer4.types import Action, ActionSpec, DataSpec, TimeStep


class State(eqx.Module):
    """Where the walker is, and how many steps it has made."""

    position: Int[Array, ""]
    time: Int[Array, ""]


class Corridor(AbstractEnvironment):
    """A walker in a corridor of eight cells; the right end is the goal (+1), the left end a pit (-1)."""

    spec: DataSpec = eqx.field(default=DataSpec((2, 8, 3), ActionSpec((2,))), static=True)
    max_steps: int = eqx.field(default=12, static=True)

    def reset(self, *, key: PRNGKeyArray) -> tuple[State, TimeStep]:
        state = State(jr.randint(key, (), 2, 6), jnp.zeros((), jnp.int32))
        return state, self._time_step(state)

    def step(self, state: State, action: Action, *, key: PRNGKeyArray) -> tuple[State, TimeStep]:
        first, _ = self.reset(key=key)
        ended = self._time_step(state).is_last
        moved = State(state.position + 2 * action.discrete[0] - 1, state.time + 1)
        state = jax.tree.map(lambda a, b: jnp.where(ended, a, b), first, moved)
        return state, self._time_step(state)

    def _time_step(self, state: State) -> TimeStep:
        goal, pit = state.position == 7, state.position == 0
        image = jnp.zeros(self.spec.frame_shape, jnp.uint8)
        image = image.at[:, 0, 0].set(120).at[:, 7, 1].set(120)  # a red pit and a green goal
        return TimeStep(
            frame=image.at[:, state.position].set(255),
            reward=goal.astype(jnp.float32) - pit.astype(jnp.float32),
            is_first=state.time == 0,
            is_last=goal | pit | (state.time == self.max_steps),
            is_terminal=goal | pit,  # running out of time ends an episode too, but does not end the world
        )


def draw(episode):
    """Prints an episode, one line per frame."""
    for t, frame in enumerate(episode.frame):
        cells = "".join("@" if cell.min() == 255 else "v" if cell[0] else "^" if cell[1] else "." for cell in frame[0])
        led = ("left", "right")[episode.discrete[t, 0]] if episode.action_mask[t] else "start"
        print(f"  t={t:<2} |{cells}|  {led:<5}  reward {episode.reward[t]:+.0f}")


def main():
    env = Corridor()
    episodes = collect(env, random_policy(env.spec), episodes=300, key=jr.key(0))
    print(f"Collected {len(episodes)} episodes. The shortest one:")
    draw(min(episodes, key=lambda e: e.length))

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "corridor"
        write_dataset(path, episodes, spec=env.spec, environment={"id": "Corridor"}, policy="random", seed=0)
        info = read_info(path)
        print(f"\nThe data set holds {info.num_frames} frames, mean return {info.return_mean:+.3f},")
        print(f"actions {info.action_counts[0]}, pixel values {info.frame_levels}, problems: {check(path) or 'none'}.")
        source = DeviceSource.from_episodes(read_episodes(path, "train"))

    batch = source.sample(16, 8, key=jr.key(1))
    ended = sum(e.is_terminal for e in episodes)
    print(f"\n{ended} episodes ended at the goal or in the pit, {len(episodes) - ended} ran out of time.")
    print(
        f"A batch of {batch.valid.shape[0]} windows of {batch.valid.shape[1]} frames, {np.mean(batch.valid):.0%} valid."
    )


if __name__ == "__main__":
    main()
