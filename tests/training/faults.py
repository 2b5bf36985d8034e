"""A phase of one number with faults planted into it, and the smallest data and agent that it runs on."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from agent.fakes import TINY_SPEC, oracle
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from dreamer4.data import DeviceSource, Episode
from dreamer4.dreamer import Dreamer
from dreamer4.training import AbstractPhase
from dreamer4.types import Trajectory


STEPS = 64
FAULTS = ("NaN loss", "infinite loss", "NaN gradient", "infinite gradient", "loss x 100", "gradient x 1000")


class Planted(AbstractPhase):
    """Pulls on the world's one parameter, with a fault of `FAULTS`, counted from 1, at each step that names one."""

    faults: Int[Array, " steps"]
    name: ClassVar[str] = "dynamics"
    normalise: ClassVar[bool] = True

    @property
    def weights(self) -> dict[str, float]:
        return {"near": 1.0}

    def trainable(self, dreamer: Dreamer) -> PyTree[bool]:
        return eqx.tree_at(lambda d: d.dynamics.network.gain, jax.tree.map(lambda _: False, dreamer), True)

    def loss(
        self, dreamer: Dreamer, batch: Trajectory, progress: Float[Array, ""], *, key: PRNGKeyArray
    ) -> tuple[dict[str, Float[Array, ""]], dict[str, Float[Array, ""]]]:
        fault = self.faults[jnp.round(progress * STEPS).astype(jnp.int32)]
        gain, fixed = dreamer.dynamics.network.gain, jax.lax.stop_gradient(dreamer.dynamics.network.gain)
        loss = gain**2 * (1.0 + 0.1 * jr.normal(key))
        # The slope of a root at zero is infinite, and not a number if nothing moves under it; the root itself is zero.
        sound = jnp.where((fault == 3) | (fault == 4), 0.0, 1.0)
        moves = jnp.where(fault == 4, 1.0, 0.0)
        loss += jnp.sqrt(moves * (gain - fixed) + sound) - sound
        loss += jnp.where(fault == 6, 1000.0, 0.0) * (gain - fixed)
        loss *= jnp.where(fault == 5, 100.0, 1.0)
        return {"near": loss + jnp.where(fault == 1, jnp.nan, jnp.where(fault == 2, jnp.inf, 0.0))}, {}


def planted(places):
    """Returns the phase with a fault at each step of a dictionary."""
    return Planted(jnp.zeros(STEPS, jnp.int32).at[jnp.array(list(places))].set(jnp.array(list(places.values()))))


def source():
    """Two episodes, in latents."""
    rng = np.random.default_rng(0)
    made = DeviceSource.from_episodes(
        [
            Episode(
                frame=rng.integers(0, 256, (length, *TINY_SPEC.frame_shape)).astype(np.uint8),
                discrete=rng.integers(0, 3, (length, 1)).astype(np.int32),
                continuous=rng.uniform(-1, 1, (length, 2)).astype(np.float32),
                action_mask=np.arange(length) > 0,
                reward=rng.normal(size=length).astype(np.float32),
                is_terminal=True,
            )
            for length in (4, 6)
        ]
    )
    return made.with_latents(jnp.zeros((made.num_frames, 1, 1)))


def world():
    """An agent with one parameter."""
    return oracle(
        TINY_SPEC,
        size=1,
        read=lambda frame: frame[0, 0],
        transition=lambda state, action: state,
        reward=lambda h: h[0],
        continuation=lambda h: h[0],
    )
