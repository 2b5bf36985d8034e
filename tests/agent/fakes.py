"""Agents for tests: a real one at the smallest sizes, and one whose world is known exactly.

`build_tiny` gives the real one; every file asks for the same sizes, so that it is compiled once. `oracle` is an agent
whose world model is not learned but written down: the latent of a frame is its state, and the next one is a function of
state and action. It never looks at the noise, so dreams are exact at any number of steps.
"""

from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from inspect import unwrap
from unittest import mock

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from dreamer4.agent import build_heads
from dreamer4.agent.heads import Heads
from dreamer4.config import AgentConfig, Config, ShortcutConfig
from dreamer4.dreamer import Dreamer
from dreamer4.dynamics import action
from dreamer4.dynamics.shortcut import (
    AbstractNetwork,
    NoiseGrid,
    NoisyFrames,
    ShortcutDynamics,
    build_forcing,
)
from dreamer4.nn import Entry, RingCache, Stream, layers, transformer
from dreamer4.tokenizer import AbstractTokenizer, LatentStats, causal
from dreamer4.types import ActionSpec, DataSpec


TINY_SPEC = DataSpec((4, 4, 1), ActionSpec((3,), 2), num_tasks=2)
_TRANSFORMER = {"width": 16, "depth": 2, "heads": 2, "kv_heads": 2, "time_every": 2, "context_length": 5}
TINY = Config.model_validate(
    {
        "tokenizer": {
            "patch": [2, 2],
            "num_latents": 2,
            "latent_dim": 4,
            "num_spatial": 2,
            "encoder": _TRANSFORMER,
            "decoder": _TRANSFORMER,
        },
        "dynamics": {"transformer": _TRANSFORMER, "num_registers": 1, "shortcut": {"k_max": 8}},
        "sampler": {"num_steps": 2},
        "agent": {"hidden": 8, "mtp_length": 2, "num_bins": 11, "bin_limit": 2.0, "reconstruction": 1.0},
    }
)


def drawn_on_the_host(build: Callable, *args, **kwargs):
    """Returns what `build(*args, **kwargs)` builds, with initial weights that NumPy draws.

    All of it is one program of constants: compiling random draws and zeros of some thirty shapes, one by one, takes
    longer than most tests.
    """
    rng = np.random.default_rng(0)

    def normal(key, shape=(), dtype=jnp.float32):
        return jnp.asarray(rng.normal(size=shape), dtype)

    def truncated_normal(key, lower, upper, shape, dtype=jnp.float32):
        return jnp.asarray(np.clip(rng.normal(size=shape), lower, upper), dtype)

    with ExitStack() as patches:
        for draw in (normal, truncated_normal):
            patches.enter_context(mock.patch.object(jr, draw.__name__, draw))
        # Without their own jit, which would keep one draw as the constant of its shape, for this agent and the next.
        patches.enter_context(mock.patch.object(layers, "initial_weight", unwrap(layers.initial_weight)))
        for module in (layers, transformer, action, causal):
            patches.enter_context(mock.patch.object(module, "initial_tokens", unwrap(layers.initial_tokens)))
        return eqx.filter_jit(lambda: build(*args, **kwargs))()


@cache
def build_tiny() -> Dreamer:
    """Builds the untrained agent of `TINY` for data of `TINY_SPEC`."""
    return drawn_on_the_host(Dreamer.build, TINY, TINY_SPEC, key=jr.key(0))


def randomised(dreamer: Dreamer) -> Dreamer:
    """Returns the agent with read-outs that are no longer zero, and with a policy that differs from its prior."""

    def where(d):
        heads = (d.policy, d.prior, d.reward, d.continuation, d.value)
        return [head.mlp.readout.weight for head in heads] + [d.dynamics.network.flow_head.weight]

    rng = np.random.default_rng(0)
    return eqx.tree_at(where, dreamer, [jnp.asarray(rng.normal(size=x.shape), jnp.float32) for x in where(dreamer)])


# Context noise at the highest trained level is then a millionth, and states survive rounding.
K_MAX = 1 << 20


class OracleTokenizer(AbstractTokenizer):
    """Reads the state off a frame, and shows it again, by functions that the test gives; unless told, all is black."""

    read: Callable = eqx.field(static=True)
    show: Callable | None = eqx.field(static=True)
    stats: LatentStats
    frame_shape: tuple[int, int, int] = eqx.field(static=True)
    num_spatial: int = eqx.field(static=True)
    spatial_dim: int = eqx.field(static=True)

    def __init__(self, read: Callable, frame_shape: tuple[int, int, int], size: int, show: Callable | None = None):
        self.show = show
        self.read, self.frame_shape, self.num_spatial, self.spatial_dim = read, frame_shape, 1, size
        self.stats = LatentStats.identity(1, size)

    def encode(self, video: Float[Array, "T H W C"]) -> Float[Array, "T Nz Dz"]:
        return jax.vmap(self.read)(video)[:, None]

    def decode(self, latent: Float[Array, "T Nz Dz"]) -> Float[Array, "T H W C"]:
        if self.show is not None:
            return jax.vmap(self.show)(latent[:, 0])
        return jnp.zeros((latent.shape[0], *self.frame_shape))

    def reconstruct(
        self, video: Float[Array, "T H W C"], *, key: PRNGKeyArray
    ) -> tuple[Float[Array, "T H W C"], Bool[Array, "T P"]]:
        return video, jnp.zeros((video.shape[0], 1), bool)

    def init_encoder(self) -> Stream:
        return Stream(RingCache.empty((), 1, 1, 1, jnp.float32), jnp.zeros((), jnp.int32))

    def encode_step(self, frame: Float[Array, "H W C"], stream: Stream) -> tuple[Float[Array, "Nz Dz"], Stream]:
        return self.read(frame)[None], Stream(stream.cache, stream.position + 1)

    def init_decoder(self) -> Stream:
        return self.init_encoder()

    def decode_step(self, latent: Float[Array, "Nz Dz"], stream: Stream) -> tuple[Float[Array, "H W C"], Stream]:
        return jnp.zeros(self.frame_shape), stream

    def encoder_flops(self, *, frames: int) -> int:
        return 0

    def decoder_flops(self, *, frames: int) -> int:
        return 0


class OracleNetwork(AbstractNetwork):
    """Knows the next state; its read-out is the state, the action that led to it, and whether there was one."""

    transition: Callable = eqx.field(static=True)
    gain: Float[Array, ""]
    grid: NoiseGrid
    num_spatial: int = eqx.field(static=True)
    spatial_dim: int = eqx.field(static=True)
    agent_dim: int = eqx.field(static=True)
    context_length: int = eqx.field(static=True)

    def __init__(self, transition: Callable, size: int, action_size: int, context_length: int = 8):
        self.transition, self.gain, self.grid = transition, jnp.ones(()), NoiseGrid(K_MAX)
        self.num_spatial, self.spatial_dim, self.context_length = 1, size, context_length
        self.agent_dim = size + action_size + 1

    def _read_out(self, state, action, known):
        led = jnp.where(known, jnp.concatenate([action.discrete.astype(jnp.float32), action.continuous]), 0.0)
        return self.gain * jnp.concatenate([state, led, known.astype(jnp.float32)[None]])

    def __call__(
        self, frames: NoisyFrames, task: Int[Array, ""] | None, segment: Int[Array, " T"] | None = None
    ) -> tuple[Float[Array, "T Nz Dz"], Float[Array, "T E"] | None]:
        h = jax.vmap(self._read_out)(snap(frames.z[:, 0]), frames.action, frames.action_mask)
        return frames.z, None if task is None else h

    def prefill(
        self, frames: NoisyFrames, task: Int[Array, ""] | None, segment: Int[Array, " T"] | None = None
    ) -> tuple[Float[Array, "T Nz Dz"], Float[Array, "T E"] | None, Entry]:
        return *self(frames, task), Entry(snap(frames.z), snap(frames.z))

    def drafts(self, frames: NoisyFrames, entries: Entry, segment: Int[Array, " T"] | None = None):
        raise NotImplementedError

    def flops(self, *, frames: int, agent: bool) -> int:
        return 0

    def init_cache(self) -> Stream:
        cache = RingCache.empty((), self.context_length, 1, self.spatial_dim, jnp.float32)
        return Stream(cache, jnp.zeros((), jnp.int32))

    def step(
        self, frame: NoisyFrames, task: Int[Array, ""] | None, stream: Stream
    ) -> tuple[Float[Array, "Nz Dz"], Float[Array, " E"] | None, Entry]:
        newest = stream.cache.key[0, (stream.position - 1) % self.context_length]
        prediction = self.gain * self.transition(newest, frame.action)[None]
        h = None if task is None else self._read_out(snap(frame.z[0]), frame.action, frame.action_mask)
        return prediction, h, Entry(snap(frame.z), snap(frame.z))


def snap(state: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
    """Removes the trace of context noise: states are multiples of 1/64. The gradient passes as if nothing happened."""
    return state + jax.lax.stop_gradient(jnp.round(64.0 * state) / 64.0 - state)


class Known(eqx.Module):
    """A distribution, as far as dreams ask: its mean."""

    value: Float[Array, "*dims"]

    def mean(self) -> Float[Array, "*dims"]:
        return self.value


class OracleHead(eqx.Module):
    """A reward or continuation head that evaluates a written function of one read-out.

    What varies between worlds can be handed over as `table`, the function's second argument, so that they share one
    compilation.
    """

    function: Callable = eqx.field(static=True)
    gain: Float[Array, ""]
    table: Float[Array, "..."] | None

    def __init__(self, function: Callable, table: Float[Array, "..."] | None = None):
        self.function, self.gain, self.table = function, jnp.ones(()), table

    def __call__(self, h: Float[Array, "*dims E"], task=None) -> Known:
        flat = h.reshape(-1, h.shape[-1])
        known = self.function if self.table is None else lambda h: self.function(h, self.table)
        return Known(self.gain * jax.vmap(known)(flat).reshape(h.shape[:-1]))


@cache
def _heads(config: AgentConfig, in_size: int, action: ActionSpec) -> Heads:
    return drawn_on_the_host(build_heads, config, in_size, action, key=jr.key(0))


def oracle(
    spec: DataSpec,
    *,
    size: int,
    read: Callable,
    transition: Callable,
    reward: Callable | OracleHead,
    continuation: Callable | OracleHead,
    agent: AgentConfig | None = None,
) -> Dreamer:
    """Builds an agent in a known world, with policy and value heads that learn.

    Arguments:
        spec: of the environment.
        size: numbers of a state.
        read: state of a frame in [0, 1].
        transition: state after a state and an action.
        reward: of a read-out `[state, action, known]`.
        continuation: of a read-out.
        agent: sizes of the heads.
    """
    agent = AgentConfig(hidden=16, mtp_length=1, num_bins=41, bin_limit=2.0) if agent is None else agent
    known_world = OracleNetwork(transition, size, len(spec.action.num_classes) + spec.action.continuous_dim)
    heads = _heads(agent, known_world.agent_dim, spec.action)
    forcing = build_forcing(ShortcutConfig(k_max=K_MAX), context_signal=1.0)
    prior = jax.tree.map(lambda x: jnp.asarray(np.array(x)) if eqx.is_array(x) else x, heads.policy)
    dreamer = Dreamer(
        OracleTokenizer(read, spec.frame_shape, size),
        ShortcutDynamics(known_world, forcing, 1, 1.0),
        heads.policy,
        prior,
        heads.reward,
        heads.continuation,
        heads.value,
    )
    known = tuple(x if isinstance(x, OracleHead) else OracleHead(x) for x in (reward, continuation))
    return eqx.tree_at(lambda d: (d.reward, d.continuation), dreamer, known)
