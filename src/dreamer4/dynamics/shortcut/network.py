"""The network of the interactive dynamics model (arXiv 2509.24527, section 3.2)."""

from abc import abstractmethod

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int, PRNGKeyArray

from dreamer4.config import DynamicsConfig
from dreamer4.dynamics.action import ActionEncoder
from dreamer4.dynamics.shortcut.noise import NoiseGrid, NoisyFrames
from dreamer4.dynamics.task import TaskVectors, build_task_input
from dreamer4.nn import Embedding, Entry, Linear, Stream, TokenGroup, TokenLayout, Transformer
from dreamer4.nn import transformer as transformers
from dreamer4.nn.flops import transformer_flops
from dreamer4.types import DataSpec


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


class AbstractNetwork(eqx.Module):
    """A network that predicts clean latents from noisy ones, given the past, actions and noise labels (x-prediction).

    Every method takes `task=None` for a pass without agent tokens; the world's prediction is the same with and
    without, since nothing reads the agent tokens.
    """

    grid: eqx.AbstractVar[NoiseGrid]
    num_spatial: eqx.AbstractVar[int]
    spatial_dim: eqx.AbstractVar[int]
    agent_dim: eqx.AbstractVar[int]
    context_length: eqx.AbstractVar[int]

    @property
    def num_tasks(self) -> int | None:
        """How many tasks it tells apart; None: it takes any number."""
        return None

    @abstractmethod
    def __call__(
        self, frames: NoisyFrames, task: Int[Array, ""] | None, segment: Int[Array, " T"] | None = None
    ) -> tuple[Float[Array, "T Nz Dz"], Float[Array, "T E"] | None]:
        """Predicts a clip.

        Args:
            frames: the clip.
            task: the task, or None to leave the agent tokens out.
            segment: frames of different segments do not see each other; None: one segment.

        Returns:
            The prediction of the clean latents, and the agent read-out `h` (None without a task).
        """

    @abstractmethod
    def prefill(
        self, frames: NoisyFrames, task: Int[Array, ""] | None, segment: Int[Array, " T"] | None = None
    ) -> tuple[Float[Array, "T Nz Dz"], Float[Array, "T E"] | None, Entry]:
        """Predicts a clip as `__call__` does, and returns the cache entries of its frames."""

    @abstractmethod
    def drafts(
        self, frames: NoisyFrames, entries: Entry, segment: Int[Array, " T"] | None = None
    ) -> Float[Array, "T Nz Dz"]:
        """Predicts every frame of a clip as `step` would after the frames before it, all at once.

        Args:
            frames: drafts of the frames.
            entries: what `prefill` returned for the frames as the past holds them.
            segment: as given to `prefill`.
        """

    @abstractmethod
    def init_cache(self) -> Stream:
        """Returns the start of a frame-by-frame prediction."""

    @abstractmethod
    def step(
        self, frame: NoisyFrames, task: Int[Array, ""] | None, stream: Stream
    ) -> tuple[Float[Array, "Nz Dz"], Float[Array, " E"] | None, Entry]:
        """Predicts the next frame, a single one, against the cache, without writing to it.

        Returns:
            The prediction, the agent read-out (None without a task), and the entry that remembers the frame.
        """

    @abstractmethod
    def flops(self, *, frames: int, agent: bool) -> int:
        """Counts the operations of one frame in one pass, with or without agent tokens.

        Args:
            frames: frames it is computed against: those of a clip, or the capacity of the cache and one.
            agent: whether with agent tokens.
        """


class TransformerNetwork(AbstractNetwork):
    """A block-causal transformer over action, shortcut, spatial, register and agent tokens."""

    action_in: ActionEncoder
    signal: Embedding
    step_size: Embedding
    spatial_in: Linear
    task: Embedding | TaskVectors
    transformer: Transformer
    flow_head: Linear
    grid: NoiseGrid
    num_spatial: int = eqx.field(static=True)
    spatial_dim: int = eqx.field(static=True)
    agent_dim: int = eqx.field(static=True)
    context_length: int = eqx.field(static=True)
    velocity: bool = eqx.field(static=True)

    def __init__(
        self,
        transformer: Transformer,
        *,
        spatial_dim: int,
        spec: DataSpec,
        grid: NoiseGrid,
        velocity: bool = False,
        key: PRNGKeyArray,
    ):
        """Builds the model around a transformer.

        Args:
            transformer: over the slots of `dynamics_layout`, of even width.
            spatial_dim: channels of a spatial token, Dz.
            spec: factors of an action, and the tasks.
            grid: the signal levels and step sizes, and how much noise there is.
            velocity: whether the head tells the velocity towards the clean latents in place of them (v-prediction).
            key: randomness of the remaining weights.
        """
        key_action, key_signal, key_step, key_in, key_task, key_out = jr.split(key, 6)
        width = transformer.slot.shape[-1]
        spatial, agent = transformer.layout.slots("spatial"), transformer.layout.slots("agent")
        self.grid = grid
        self.action_in = ActionEncoder(spec.action, width, key=key_action)
        self.signal = Embedding(grid.k_max + 1, width // 2, key=key_signal)
        self.step_size = Embedding(grid.finest + 1, width - width // 2, key=key_step)
        self.spatial_in = Linear(spatial_dim, width, use_bias=True, key=key_in)
        self.task = build_task_input(spec, width, key=key_task)
        self.transformer = transformer
        self.flow_head = Linear(width, spatial_dim, use_bias=True, scale=0.0, key=key_out)
        self.num_spatial, self.spatial_dim = spatial.stop - spatial.start, spatial_dim
        self.agent_dim = (agent.stop - agent.start) * width
        self.context_length, self.velocity = transformer.context_length, velocity

    @property
    def num_tasks(self) -> int:
        return self.task.count

    def _tokens(self, frame, task):
        """Lays one frame out; `task=None` leaves the agent slots out."""
        layout, width = self.transformer.layout, self.transformer.slot.shape[-1]
        shortcut = jnp.concatenate([self.signal(frame.levels.tau_index), self.step_size(frame.levels.step_index)])
        registers, agents = layout.slots("register"), layout.slots("agent")
        parts = [
            self.action_in(frame.action, frame.action_mask, frame.task)[None],
            shortcut[None],
            self.spatial_in(frame.z / self.grid.level(frame.levels.tau_index)),
            jnp.zeros((registers.stop - registers.start, width)),
        ]
        if task is not None:
            parts.append(jnp.broadcast_to(self.task(task), (agents.stop - agents.start, width)))
        return jnp.concatenate(parts)

    def _clip_tokens(self, frames, task):
        return jax.vmap(self._tokens, in_axes=(0, None))(frames, task)

    def _read(self, tokens, frame, task):
        """Reads prediction and `h` of one frame. The flow head is float32, as the transformer's output is.

        A head that tells the velocity v means the clean latents `z + (1 - tau) v`.
        """
        layout = self.transformer.layout
        h = None if task is None else tokens[layout.slots("agent")].reshape(-1)
        told = self.flow_head(tokens[layout.slots("spatial")])
        return frame.z + (1.0 - self.grid.tau(frame.levels.tau_index)) * told if self.velocity else told, h

    def _read_clip(self, tokens, frames, task):
        return jax.vmap(self._read, in_axes=(0, 0, None))(tokens, frames, task)

    def __call__(
        self, frames: NoisyFrames, task: Int[Array, ""] | None, segment: Int[Array, " T"] | None = None
    ) -> tuple[Float[Array, "T Nz Dz"], Float[Array, "T E"] | None]:
        tokens = self.transformer(self._clip_tokens(frames, task), segment)
        return self._read_clip(tokens, frames, task)

    def prefill(
        self, frames: NoisyFrames, task: Int[Array, ""] | None, segment: Int[Array, " T"] | None = None
    ) -> tuple[Float[Array, "T Nz Dz"], Float[Array, "T E"] | None, Entry]:
        tokens, entries = self.transformer.prefill(self._clip_tokens(frames, task), segment)
        return *self._read_clip(tokens, frames, task), entries

    def drafts(
        self, frames: NoisyFrames, entries: Entry, segment: Int[Array, " T"] | None = None
    ) -> Float[Array, "T Nz Dz"]:
        tokens = self.transformer.drafts(self._clip_tokens(frames, None), entries, segment)
        return self._read_clip(tokens, frames, None)[0]

    def init_cache(self) -> Stream:
        return Stream(self.transformer.init_cache(), jnp.zeros((), jnp.int32))

    def step(
        self, frame: NoisyFrames, task: Int[Array, ""] | None, stream: Stream
    ) -> tuple[Float[Array, "Nz Dz"], Float[Array, " E"] | None, Entry]:
        tokens, entry = self.transformer.step(self._tokens(frame, task), stream.cache, stream.position)
        return *self._read(tokens, frame, task), entry

    def flops(self, *, frames: int, agent: bool) -> int:
        slots = None if agent else self.transformer.layout.slots("agent").start
        ends = self.num_spatial * (self.spatial_in.weight.size + self.flow_head.weight.size)
        return transformer_flops(self.transformer, frames=frames, slots=slots) + 2 * ends


def build_network(
    config: DynamicsConfig, num_spatial: int, spatial_dim: int, spec: DataSpec, *, key: PRNGKeyArray
) -> TransformerNetwork:
    """Builds the dynamics that a configuration describes, for latents of `num_spatial` x `spatial_dim`."""
    key_transformer, key_rest = jr.split(key)
    layout = dynamics_layout(num_spatial, config.num_registers, config.num_agent_tokens)
    return TransformerNetwork(
        transformers.build(layout, config.transformer, key=key_transformer),
        spatial_dim=spatial_dim,
        spec=spec,
        grid=NoiseGrid(config.shortcut.k_max, config.shortcut.noise_scale),
        velocity=config.prediction == "v",
        key=key_rest,
    )
