"""The baseline without a world model: the same transformer, trained from pixels to clone and on nothing else."""

import dataclasses
from typing import ClassVar

import equinox as eqx
import jax
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from dreamer4.agent import agent_losses, weighted_mean
from dreamer4.dreamer import Dreamer
from dreamer4.errors import InputError
from dreamer4.training.phases import AbstractPhase, Metrics, freeze_prior, mark, mark_tokenizer
from dreamer4.types import Trajectory, to_float


class CloningPhase(AbstractPhase):
    """Trains encoder, transformer and policy end to end on the cloning term of eq 9.

    Frames are encoded without masking and enter the dynamics as they do when the agent acts. What it lacks against the
    ladder's next rung is the world model alone.
    """

    name: ClassVar[str] = "cloning"
    normalise: ClassVar[bool] = False

    @property
    def weights(self) -> dict[str, float]:
        return {"cloning": 1.0}

    def trainable(self, dreamer: Dreamer) -> PyTree[bool]:
        world = mark(dreamer, lambda d: [d.dynamics, d.policy])
        return eqx.tree_at(lambda d: d.tokenizer, world, mark_tokenizer(dreamer).tokenizer)

    def loss(
        self, dreamer: Dreamer, batch: Trajectory, progress: Float[Array, ""], *, key: PRNGKeyArray
    ) -> tuple[Metrics, Metrics]:
        if batch.frame is None:
            raise InputError("cloning: the batch holds latents, not frames. Give the data set before it was encoded.")

        def row(clip, key):
            latent = dreamer.tokenizer.encode(to_float(clip.frame))
            h = dreamer.dynamics.readouts(dataclasses.replace(clip, frame=None, latent=latent), key=key)
            terms, counts = agent_losses(dreamer.policy, dreamer.reward, dreamer.continuation, h, clip)
            return terms["cloning"], counts["cloning"]

        return {"cloning": weighted_mean(*jax.vmap(row)(batch, jr.split(key, batch.reward.shape[0])))}, {}

    def finish(self, dreamer: Dreamer) -> Dreamer:
        return freeze_prior(dreamer)
