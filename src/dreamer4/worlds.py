"""Where a policy is trained to live: in the dream, or as a diagnostic in the real environment itself.

Imagination training asks a world for two things: to enter it where a clip of the data stands, and to live on from there
under the policy. `DreamWorld` is the world model. `RealWorld` is a world model without error, the perfect-world twin of
the same run: same clips, same rollouts, same returns and objective. What the policy gains in it is what a better model
could give at most, and the gain in the dream as a share of that is the dream's efficiency. A run in the real world uses
the environment, so it is no result of imagination and never named one.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Int, PRNGKeyArray, PyTree

from dreamer4.config import Config
from dreamer4.data import DeviceSource, Episode, replay
from dreamer4.dreamer import Dreamer, Memory
from dreamer4.envs import AbstractEnvironment, make
from dreamer4.errors import InputError
from dreamer4.imagination import ImaginedRollout, imagine
from dreamer4.types import Action, Trajectory, to_float, within_bounds


class AbstractWorld(eqx.Module):
    """A world to be lived in from places in the data on."""

    def prepare(self, source: DeviceSource, episodes: Sequence[Episode]) -> DeviceSource:
        """Returns a source with all that `enter` needs of its clips.

        Args:
            source: the data.
            episodes: its episodes, in order.

        Raises:
            InputError: if the data does not tell enough.
        """
        del episodes
        return source

    @abstractmethod
    def enter(self, dreamer: Dreamer, row: Trajectory, count: Int[Array, ""], *, key: PRNGKeyArray) -> PyTree:
        """Returns where a life begins that has the first `count` frames of a clip, at least 1, as its past."""

    @abstractmethod
    def live(
        self, dreamer: Dreamer, start: PyTree, horizon: int, *, actions: Action | None = None, key: PRNGKeyArray
    ) -> ImaginedRollout:
        """Lives on; no gradient flows through it.

        Args:
            dreamer: the agent.
            start: what `enter` returned.
            horizon: steps, H.
            actions: actions to follow; by default the policy is sampled.
            key: randomness of policy and world.
        """


class DreamWorld(AbstractWorld):
    """The agent's own world model; a start is its memory."""

    def enter(self, dreamer: Dreamer, row: Trajectory, count: Int[Array, ""], *, key: PRNGKeyArray) -> Memory:
        return dreamer.recall(row, count, key=key)

    def live(
        self, dreamer: Dreamer, start: Memory, horizon: int, *, actions: Action | None = None, key: PRNGKeyArray
    ) -> ImaginedRollout:
        return imagine(dreamer, start, horizon, actions=actions, key=key)


class Standing(eqx.Module):
    """A moment of a life in the real world: what the agent remembers, the environment's state, whether it is over."""

    memory: Memory
    state: PyTree
    ended: Bool[Array, ""]


class RealWorld(AbstractWorld):
    """The real environment, entered where an episode of the data stood, as `replay` finds out.

    The agent observes true frames, and rewards and ends are true too. Its past is observed anew from the first frame of
    the clip, as acting begins, where a dream recalls latents that were encoded from the first frame of the episode.
    Behind the last frame of an episode time stands still: the state is not alive, and pays nothing. So a life that a
    time limit cuts is worth the value of its last state, of which a return keeps `discount` a step.
    """

    env: AbstractEnvironment

    def prepare(self, source: DeviceSource, episodes: Sequence[Episode]) -> DeviceSource:
        return source.with_places(replay(self.env, episodes))

    def enter(self, dreamer: Dreamer, row: Trajectory, count: Int[Array, ""], *, key: PRNGKeyArray) -> Standing:
        if row.place is None:
            raise InputError("RealWorld.enter: got a clip without places. Draw it from a source that was prepared.")

        def body(memory, step):
            time, frame, action, known, key = step
            after = dreamer.observe(memory, to_float(frame), action, known, key=key)
            return _where(time < count, after, memory), None

        times = jnp.arange(row.reward.shape[0])
        keys = jr.split(key, times.shape[0])
        past = (times, row.place.frame, row.action, row.action_mask, keys)
        memory, _ = jax.lax.scan(body, dreamer.init(row.task), past)
        state = jax.tree.map(lambda leaf: leaf[count - 1], row.place.state)
        return Standing(memory, state, row.is_last[count - 1])

    def live(
        self, dreamer: Dreamer, start: Standing, horizon: int, *, actions: Action | None = None, key: PRNGKeyArray
    ) -> ImaginedRollout:
        def body(now, step):
            key, forced = step
            key_act, key_env, key_observe = jr.split(key, 3)
            action = dreamer.act(now.memory, key=key_act) if forced is None else forced
            taken = within_bounds(action)
            state, time_step = self.env.step(now.state, taken, key=key_env)
            latent, _ = dreamer.tokenizer.encode_step(to_float(time_step.frame), now.memory.encoder)
            memory = dreamer.observe(now.memory, to_float(time_step.frame), taken, jnp.array(True), key=key_observe)
            reward = jnp.where(now.ended, 0.0, time_step.reward)
            goes_on = now.ended | ~time_step.is_terminal
            following = _where(now.ended, now, Standing(memory, state, time_step.is_last))
            return following, (
                latent,
                dreamer.readout(following.memory),
                action,
                reward,
                goes_on.astype(jnp.float32),
                ~now.ended,
            )

        _, life = jax.lax.scan(body, start, (jr.split(key, horizon), actions))
        latent, h, action, reward, continuation, alive = life
        h = jnp.concatenate([dreamer.readout(start.memory)[None], h])
        return jax.lax.stop_gradient(ImaginedRollout(latent, h, action, reward, continuation, alive))


def _where(condition: Bool[Array, ""], new: PyTree, old: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


WORLDS: dict[str, Callable[[Config], AbstractWorld]] = {
    "dream": lambda config: DreamWorld(),
    "real": lambda config: RealWorld(make(config.env)),
}
