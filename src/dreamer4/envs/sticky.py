"""Sticky actions: now and then a world carries out the last action once more instead of the new one."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from dreamer4.envs.base import AbstractEnvironment, Pace, Symbols
from dreamer4.errors import InputError
from dreamer4.types import Action, DataSpec, TimeStep


class StickyState(eqx.Module):
    """State of the world within, the action it carried out last, and whether it has carried out one in this episode."""

    inner: PyTree
    previous: Action
    moved: Bool[Array, ""]


class StickyActions(AbstractEnvironment):
    """Another environment whose actions stick: chance for a game that has none of its own.

    At each step, with a fixed probability, the action carried out is the one carried out before, whatever was chosen,
    so a repeated action may be repeated again (arXiv 1709.06009, section 5.2; MinAtar does so with probability 0.1).
    The first action of an episode has none before it and is always carried out. What is recorded is what was chosen:
    sticking is part of the world, and no player sees it coming.
    """

    env: AbstractEnvironment
    probability: float = eqx.field(static=True)

    def __init__(self, env: AbstractEnvironment, probability: float):
        """Wraps an environment.

        Args:
            env: the environment.
            probability: of a repetition at each step, at least 0 and below 1.

        Raises:
            InputError: if it is no such probability.
        """
        if not 0 <= probability < 1:
            raise InputError(f"env.sticky_actions: got {probability}, expected a probability, 0 <= p < 1.")
        self.env, self.probability = env, float(probability)

    @property
    def spec(self) -> DataSpec:
        """That of the environment within."""
        return self.env.spec

    @property
    def max_steps(self) -> int:
        """That of the environment within."""
        return self.env.max_steps

    @property
    def pace(self) -> Pace:
        """That of the environment within."""
        return self.env.pace

    def fault(self) -> str | None:
        return self.env.fault()

    @property
    def events(self) -> tuple[str, ...]:
        """Those of the environment within."""
        return self.env.events

    def happened(self, state: StickyState) -> Bool[Array, " E"]:
        return self.env.happened(state.inner)

    @property
    def prompts(self) -> tuple[str, ...]:
        """Those of the environment within."""
        return self.env.prompts

    def prompt(self, state: StickyState) -> Int[Array, ""]:
        return self.env.prompt(state.inner)

    def observe(self, state: StickyState) -> Float[Array, " S"]:
        return self.env.observe(state.inner)

    def symbols(self, frames: np.ndarray) -> Symbols:
        return self.env.symbols(frames)

    def effects(self, before: Symbols, after: Symbols, action: np.ndarray) -> dict[str, np.ndarray]:
        return self.env.effects(before, after, action)

    @property
    def places(self) -> dict[str, tuple[str, ...]]:
        """Those of the environment within."""
        return self.env.places

    def reset(self, *, key: PRNGKeyArray) -> tuple[StickyState, TimeStep]:
        _, step_key = jr.split(key)  # as `step` does behind a last frame
        inner, time_step = self.env.reset(key=step_key)
        return StickyState(inner, Action.null(self.spec.action), jnp.zeros((), bool)), time_step

    def step(self, state: StickyState, action: Action, *, key: PRNGKeyArray) -> tuple[StickyState, TimeStep]:
        stick_key, step_key = jr.split(key)
        sticks = state.moved & jr.bernoulli(stick_key, self.probability)
        action = jax.tree.map(lambda old, new: jnp.where(sticks, old, new), state.previous, action)
        inner, time_step = self.env.step(state.inner, action, key=step_key)
        return StickyState(inner, action, ~time_step.is_first), time_step
