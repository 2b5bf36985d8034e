"""The contract of an environment."""

from abc import abstractmethod

import equinox as eqx
from jaxtyping import PRNGKeyArray, PyTree

from dreamer4.types import Action, DataSpec, TimeStep


class AbstractEnvironment(eqx.Module):
    """A real environment: pure, jittable functions of a state and a key, for one episode stream (no batch axis).

    The timing is dm_env's. `reset` returns the first frame of an episode. `step` returns the frame the action led to,
    with the reward that arrived with it. The last frame of an episode is returned like any other; only the step after
    it ignores its action and returns the first frame of the next episode, with reward 0. So a `lax.scan` over `step`
    is an endless stream of whole episodes, and no frame is ever lost.

    `spec` and `max_steps` may be fields or properties.

    Attributes:
        spec: frame shape, action factors and number of tasks.
        max_steps: upper bound of the number of actions in an episode, which so has at most `max_steps + 1` frames. It
            is a bound for scans, not a promise that an episode lasts that long.
    """

    spec: eqx.AbstractVar[DataSpec]
    max_steps: eqx.AbstractVar[int]

    @abstractmethod
    def reset(self, *, key: PRNGKeyArray) -> tuple[PyTree, TimeStep]:
        """Starts an episode.

        Args:
            key: draws whatever is random about the start.

        Returns:
            The state to hand to `step`, and the first time step: `is_first` True, reward 0.
        """

    @abstractmethod
    def step(self, state: PyTree, action: Action, *, key: PRNGKeyArray) -> tuple[PyTree, TimeStep]:
        """Advances by one frame.

        Args:
            state: what `reset` or `step` returned, same structure and dtypes.
            action: one action of `spec.action`; ignored when `state` stands at a last frame.
            key: draws whatever is random about the transition; behind a last frame it draws the next episode's start,
                the one that `reset` draws by it, so that an episode can be played again from its keys.

        Returns:
            The next state, and the time step the action led to. `is_last` marks the end of an episode for whatever
            reason, `is_terminal` only an end that cuts the return (a goal, a death), never a time limit.
        """
