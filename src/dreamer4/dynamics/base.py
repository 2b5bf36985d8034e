"""The contract of a dynamics model: anything that can be lived in, frame by frame."""

from abc import abstractmethod
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from dreamer4.errors import InputError
from dreamer4.types import Action, Trajectory


State = Any  # a PyTree of arrays of fixed shapes, which only the model that made it can read


class WorldLoss(eqx.Module):
    """What a batch of clips asks of a dynamics model.

    Attributes:
        loss: the loss, all terms together.
        metrics: further figures.
        h: agent read-outs of the frames; None if they were not asked for.
        image: rows whose frames were trained without their past, in which there is nothing to act on.
    """

    loss: Float[Array, ""]
    metrics: dict[str, Float[Array, ""]]
    h: Float[Array, "B T E"] | None
    image: Bool[Array, " B"]


class Imagined(eqx.Module):
    """A dreamt frame.

    Attributes:
        latent: its latents.
        movement: how far its estimate moved in the second half of the passes that drew it, RMS; 0 for a single pass.
    """

    latent: Float[Array, "Nz Dz"]
    movement: Float[Array, ""]


class Flops(eqx.Module):
    """Operations by formula, as `nn.flops` counts them.

    Attributes:
        loss: of a training step of the loss.
        recall: of recalling one clip.
        observe: of one real frame.
        imagine: of one dreamt frame.
    """

    loss: int
    recall: int
    observe: int
    imagine: int


class AbstractDynamics(eqx.Module):
    """Predicts the latents of the next frame, given the past and an action; one sample, no batch axis.

    The state is opaque and holds the task. The task reaches the read-out `h` alone, and tells which components of an
    action there are: the world's prediction is the same for every task of the same components.
    """

    agent_dim: eqx.AbstractVar[int]
    context_length: eqx.AbstractVar[int | None]  # frames that a state remembers; None: without end

    @abstractmethod
    def init(self, task: Int[Array, ""]) -> State:
        """Returns the state before the first frame."""

    @abstractmethod
    def observe(
        self,
        state: State,
        latent: Float[Array, "Nz Dz"],
        action: Action,
        action_mask: Bool[Array, ""],
        *,
        key: PRNGKeyArray,
    ) -> State:
        """Takes in a real frame.

        Args:
            state: the past.
            latent: the frame.
            action: action that led to it.
            action_mask: False at the first frame of an episode, or where the action is unknown.
            key: randomness.
        """

    @abstractmethod
    def imagine(
        self,
        state: State,
        action: Action,
        *,
        action_mask: Bool[Array, ""] | None = None,
        num_steps: int | Int[Array, ""] | None = None,
        key: PRNGKeyArray,
    ) -> tuple[Imagined, State]:
        """Dreams the frame that an action leads to; no gradient flows out of it.

        Args:
            state: the past.
            action: the action.
            action_mask: False where the frame is dreamt without the action, as one that is unknown; None: True.
            num_steps: K, passes that draw the frame, where the model has a choice (`passes`); an array makes one
                program serve every K. None: the model's own.
            key: randomness of the frame.
        """

    @abstractmethod
    def readout(self, state: State) -> Float[Array, " E"]:
        """Returns what an agent may know at the newest frame, `h`."""

    def task_of(self, state: State) -> Int[Array, ""]:
        """Returns the task that a state holds: its `task`, if not told otherwise."""
        return state.task

    def with_task(self, state: State, task: Int[Array, ""]) -> State:
        """Returns a state that holds another task from the next frame on: its `task`, if not told otherwise."""
        return eqx.tree_at(lambda s: s.task, state, task)

    @abstractmethod
    def loss(
        self,
        clips: Trajectory,
        progress: Float[Array, ""],
        *,
        with_readout: bool,
        accumulate: int = 1,
        key: PRNGKeyArray,
    ) -> WorldLoss:
        """Returns the loss of a batch of clips of latents.

        Args:
            clips: the batch.
            progress: share of the run that is done, in [0, 1].
            with_readout: whether the agent's read-outs are wanted too.
            accumulate: parts in which the rows are taken, one after another.
            key: randomness of the step.
        """

    @abstractmethod
    def flops(self, *, rows: int, length: int, with_readout: bool) -> Flops:
        """Counts the operations for batches of so many rows and frames."""

    @property
    def passes(self) -> tuple[int, ...]:
        """The numbers K of passes that can draw a frame, ascending."""
        return (1,)

    @property
    def num_tasks(self) -> int | None:
        """How many tasks it tells apart, numbered from 0; None: it takes any number."""
        return None

    @property
    def own_passes(self) -> int:
        """The number K of passes that draws a frame by default."""
        return 1

    def with_passes(self, num_steps: int) -> "AbstractDynamics":
        """Returns the model with another K of its own.

        Raises:
            InputError: if it is none of `passes`.
        """
        if num_steps not in self.passes:
            raise InputError(f"num_steps: got {num_steps}, expected one of {', '.join(map(str, self.passes))}.")
        return self

    def readouts(self, clip: Trajectory, *, key: PRNGKeyArray) -> Float[Array, "T E"]:
        """Returns the read-outs of all frames of a clip of latents, observed in turn."""
        return self._watch(clip, key=key)[1]

    def recall(self, clip: Trajectory, count: Int[Array, ""], *, key: PRNGKeyArray) -> State:
        """Returns the state after the first `count` latents of a clip, at least 1, as if observed in turn."""
        return jax.tree.map(lambda x: x[count - 1], self._watch(clip, key=key)[0])

    def _watch(self, clip, *, key):
        """Returns the states and the read-outs behind each frame."""

        def body(state, frame):
            state = self.observe(state, *frame[:3], key=frame[3])
            return state, (state, self.readout(state))

        frames = clip.latent, clip.action, clip.action_mask, jr.split(key, clip.action_mask.shape[0])
        return jax.lax.scan(body, self.init(jnp.asarray(clip.task)), frames)[1]
