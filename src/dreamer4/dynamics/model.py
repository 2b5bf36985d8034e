"""The interactive dynamics model (arXiv 2509.24527, section 3.2)."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from dreamer4.config import DynamicsConfig
from dreamer4.dynamics.base import AbstractDynamics
from dreamer4.dynamics.noise import NoiseGrid, NoisyFrames
from dreamer4.nn import Embedding, Entry, Linear, Stream, TokenGroup, TokenLayout, Transformer
from dreamer4.nn import transformer as transformers
from dreamer4.nn.layers import initial_tokens
from dreamer4.types import Action, ActionSpec, DataSpec


def dynamics_layout(num_spatial: int, num_registers: int, num_agent_tokens: int) -> TokenLayout:
    """Returns the slots of a frame. All world tokens see each other; agent tokens see all, and nobody sees them.

    So the task can reach the future only through actions. The agent tokens come last, which lets a pass that needs
    only the world leave them out.
    """
    world = ("action", "shortcut", "spatial", "register")
    return TokenLayout(
        (
            TokenGroup("action", 1, world),
            TokenGroup("shortcut", 1, world),
            TokenGroup("spatial", num_spatial, world),
            TokenGroup("register", num_registers, world),
            TokenGroup("agent", num_agent_tokens, (*world, "agent")),
        )
    )


class ActionEncoder(eqx.Module):
    """Turns a factored action into one token: a learned base plus one embedding per component.

    Where the action is unknown or absent only the base remains, so unlabelled video needs no special case.
    """

    base: Float[Array, " D"]
    discrete: tuple[Embedding, ...]
    continuous: Linear | None

    def __init__(self, spec: ActionSpec, width: int, *, key: PRNGKeyArray):
        """Builds the encoder for actions of `spec` into tokens of `width` features."""
        key_base, key_continuous, *keys = jr.split(key, 2 + len(spec.num_classes))
        self.base = initial_tokens(key_base, (width,))
        self.discrete = tuple(Embedding(n, width, key=k) for n, k in zip(spec.num_classes, keys, strict=True))
        self.continuous = Linear(spec.continuous_dim, width, key=key_continuous) if spec.continuous_dim else None

    def __call__(self, action: Action, mask: Bool[Array, "*dims"]) -> Float[Array, "*dims D"]:
        """Encodes actions; components count only where `mask` holds."""
        parts = [table(action.discrete[..., i]) for i, table in enumerate(self.discrete)]
        if self.continuous is not None:
            parts.append(self.continuous(jnp.clip(action.continuous, -1.0, 1.0)))
        return self.base + jnp.where(mask[..., None], sum(parts), 0.0)


class TransformerDynamics(AbstractDynamics):
    """A block-causal transformer over action, shortcut, spatial, register and agent tokens."""

    action_in: ActionEncoder
    signal: Embedding
    step_size: Embedding
    spatial_in: Linear
    task: Embedding
    transformer: Transformer
    flow_head: Linear
    grid: NoiseGrid
    num_spatial: int = eqx.field(static=True)
    spatial_dim: int = eqx.field(static=True)
    agent_dim: int = eqx.field(static=True)
    context_length: int = eqx.field(static=True)

    def __init__(
        self,
        transformer: Transformer,
        *,
        spatial_dim: int,
        action: ActionSpec,
        num_tasks: int = 1,
        k_max: int = 64,
        key: PRNGKeyArray,
    ):
        """Builds the model around a transformer.

        Args:
            transformer: over the slots of `dynamics_layout`, of even width.
            spatial_dim: channels of a spatial token, Dz.
            action: factors of an action.
            num_tasks: number of tasks.
            k_max: finest number of sampling steps, a power of two.
            key: randomness of the remaining weights.
        """
        key_action, key_signal, key_step, key_in, key_task, key_out = jr.split(key, 6)
        width = transformer.slot.shape[-1]
        spatial, agent = transformer.layout.slots("spatial"), transformer.layout.slots("agent")
        self.grid = NoiseGrid(k_max)
        self.action_in = ActionEncoder(action, width, key=key_action)
        self.signal = Embedding(k_max + 1, width // 2, key=key_signal)
        self.step_size = Embedding(self.grid.finest + 1, width - width // 2, key=key_step)
        self.spatial_in = Linear(spatial_dim, width, use_bias=True, key=key_in)
        self.task = Embedding(num_tasks, width, key=key_task)
        self.transformer = transformer
        self.flow_head = Linear(width, spatial_dim, use_bias=True, scale=0.0, key=key_out)
        self.num_spatial, self.spatial_dim = spatial.stop - spatial.start, spatial_dim
        self.agent_dim = (agent.stop - agent.start) * width
        self.context_length = transformer.context_length

    def _tokens(self, frame, task):
        """Lays one frame out; `task=None` leaves the agent slots out."""
        layout, width = self.transformer.layout, self.transformer.slot.shape[-1]
        shortcut = jnp.concatenate([self.signal(frame.levels.tau_index), self.step_size(frame.levels.step_index)])
        registers, agents = layout.slots("register"), layout.slots("agent")
        parts = [
            self.action_in(frame.action, frame.action_mask)[None],
            shortcut[None],
            self.spatial_in(frame.z),
            jnp.zeros((registers.stop - registers.start, width)),
        ]
        if task is not None:
            parts.append(jnp.broadcast_to(self.task(task), (agents.stop - agents.start, width)))
        return jnp.concatenate(parts)

    def _clip_tokens(self, frames, task):
        return jax.vmap(self._tokens, in_axes=(0, None))(frames, task)

    def _read(self, tokens, task):
        """Reads prediction and `h` of one frame. The flow head is float32, as the transformer's output is."""
        layout = self.transformer.layout
        h = None if task is None else tokens[layout.slots("agent")].reshape(-1)
        return self.flow_head(tokens[layout.slots("spatial")]), h

    def __call__(
        self, frames: NoisyFrames, task: Int[Array, ""] | None, segment: Int[Array, " T"] | None = None
    ) -> tuple[Float[Array, "T Nz Dz"], Float[Array, "T E"] | None]:
        tokens = self.transformer(self._clip_tokens(frames, task), segment)
        return jax.vmap(self._read, in_axes=(0, None))(tokens, task)

    def prefill(
        self, frames: NoisyFrames, task: Int[Array, ""] | None, segment: Int[Array, " T"] | None = None
    ) -> tuple[Float[Array, "T Nz Dz"], Float[Array, "T E"] | None, Entry]:
        tokens, entries = self.transformer.prefill(self._clip_tokens(frames, task), segment)
        return *jax.vmap(self._read, in_axes=(0, None))(tokens, task), entries

    def drafts(
        self, frames: NoisyFrames, entries: Entry, segment: Int[Array, " T"] | None = None
    ) -> Float[Array, "T Nz Dz"]:
        tokens = self.transformer.drafts(self._clip_tokens(frames, None), entries, segment)
        return jax.vmap(self._read, in_axes=(0, None))(tokens, None)[0]

    def init_cache(self) -> Stream:
        return Stream(self.transformer.init_cache(), jnp.zeros((), jnp.int32))

    def step(
        self, frame: NoisyFrames, task: Int[Array, ""] | None, stream: Stream
    ) -> tuple[Float[Array, "Nz Dz"], Float[Array, " E"] | None, Entry]:
        tokens, entry = self.transformer.step(self._tokens(frame, task), stream.cache, stream.position)
        return *self._read(tokens, task), entry


def build_transformer(
    config: DynamicsConfig, num_spatial: int, spatial_dim: int, spec: DataSpec, *, key: PRNGKeyArray
) -> TransformerDynamics:
    """Builds the dynamics that a configuration describes, for latents of `num_spatial` x `spatial_dim`."""
    key_transformer, key_rest = jr.split(key)
    layout = dynamics_layout(num_spatial, config.num_registers, config.num_agent_tokens)
    return TransformerDynamics(
        transformers.build(layout, config.transformer, key=key_transformer),
        spatial_dim=spatial_dim,
        action=spec.action,
        num_tasks=spec.num_tasks,
        k_max=config.shortcut.k_max,
        key=key_rest,
    )
