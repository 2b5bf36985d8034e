"""Dreamer 3's world model behind the contract of a dynamics model: recurrent state, prior, posterior, decoder, loss."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from dreamer4.config import DynamicsConfig, RSSMConfig, SamplerConfig
from dreamer4.dynamics.action import ActionEncoder
from dreamer4.dynamics.base import AbstractDynamics, Flops, Imagined, WorldLoss
from dreamer4.dynamics.rssm.network import BlockGRU, Dense, Network, draw, unimix
from dreamer4.dynamics.task import TaskVectors, build_task_input
from dreamer4.errors import InputError
from dreamer4.nn import Categorical, Embedding, RMSNorm, symexp, symlog
from dreamer4.nn.flops import matrix_parameters
from dreamer4.nn.rows import masked_mean, over_rows
from dreamer4.types import Action, DataSpec, Trajectory


class RSSMState(eqx.Module):
    """The past in a vector, and the newest frame in categorical draws; both are zero before the first frame.

    Attributes:
        recurrent: the past, `h` of the paper.
        draws: one-hot vectors, `z` of the paper.
        task: the task.
        told: its embedding.
    """

    recurrent: Float[Array, " D"]
    draws: Float[Array, "S K"]
    task: Int[Array, ""]
    told: Float[Array, " W"]


def free_bits(
    posterior: Float[Array, "*dims S K"], prior: Float[Array, "*dims S K"], free: float
) -> tuple[Float[Array, "*dims"], Float[Array, "*dims"]]:
    """Returns the dynamics and the representation loss of frames, in nats, from log-probabilities (eq 3 of the paper).

    Both are `max(free, KL[posterior || prior])`, the sum over the draws; the first trains the prior alone, the second
    the posterior alone.
    """

    def divergence(p, q):
        return jnp.maximum(free, jnp.sum(Categorical(p).kl(Categorical(q)), axis=-1))

    frozen = jax.lax.stop_gradient
    return divergence(frozen(posterior), prior), divergence(posterior, frozen(prior))


class RSSMDynamics(AbstractDynamics):
    """A recurrent state-space model of latents (arXiv 2301.04104).

    The recurrent state `h` takes in the last draws `z` and the action; the prior guesses the draws of the next frame
    from `h` alone, the posterior sees the frame too, and the decoder tells latents from `h` and `z`. Latents enter, and
    are told, in symlog, as the paper has it for vectors. An agent may know `h`, `z` and an embedding of the task.
    """

    action_in: ActionEncoder
    action_norm: RMSNorm
    past_in: Dense
    draws_in: Dense
    sequence: BlockGRU
    prior: Network
    posterior: Network
    decoder: Network
    task: Embedding | TaskVectors
    config: RSSMConfig = eqx.field(static=True)
    latent_shape: tuple[int, int] = eqx.field(static=True)
    context_length: int | None = eqx.field(static=True, default=None)

    def __init__(self, config: RSSMConfig, num_spatial: int, spatial_dim: int, spec: DataSpec, *, key: PRNGKeyArray):
        """Builds the model for latents of `num_spatial` x `spatial_dim`."""
        keys = jr.split(key, 8)
        hidden, drawn, size = config.hidden, config.draws * config.classes, config.recurrent
        layers = {"layers": config.layers}
        self.action_in, self.action_norm = ActionEncoder(spec.action, hidden, key=keys[0]), RMSNorm(hidden)
        self.past_in = Dense(size, hidden, key=keys[1])
        self.draws_in = Dense(drawn, hidden, key=keys[2])
        self.sequence = BlockGRU(size, 3 * hidden, blocks=config.blocks, key=keys[3])
        self.prior = Network(size, hidden, drawn, **layers, key=keys[4])
        self.posterior = Network(size + num_spatial * spatial_dim, hidden, drawn, **layers, key=keys[5])
        self.decoder = Network(size + drawn, hidden, num_spatial * spatial_dim, **layers, key=keys[6])
        self.task = build_task_input(spec, hidden, key=keys[7])
        self.config, self.latent_shape, self.context_length = config, (num_spatial, spatial_dim), None

    @property
    def agent_dim(self) -> int:
        return self.config.recurrent + self.config.draws * self.config.classes + self.config.hidden

    @property
    def num_tasks(self) -> int:
        return self.task.count

    def with_task(self, state: RSSMState, task: Int[Array, ""]) -> RSSMState:
        return RSSMState(state.recurrent, state.draws, task, self.task(task))

    def init(self, task: Int[Array, ""]) -> RSSMState:
        shape = self.config.draws, self.config.classes
        task = jnp.asarray(task, jnp.int32)
        return RSSMState(jnp.zeros(self.config.recurrent), jnp.zeros(shape), task, self.task(task))

    def _advance(self, state, action, action_mask):
        """Returns the recurrent state that an action leads to."""
        act = jax.nn.silu(self.action_norm(self.action_in(action, action_mask, state.task)))
        inputs = self.past_in(state.recurrent), self.draws_in(state.draws.reshape(-1)), act
        return self.sequence(state.recurrent, jnp.concatenate(inputs))

    def _mixed(self, logits):
        """Returns the log-probabilities of the draws."""
        return unimix(logits.reshape(self.config.draws, self.config.classes), self.config.unimix)

    def _observe(self, state, latent, action, action_mask, *, key):
        """Returns the state with a real frame in it, and the log-probabilities that its draws came from."""
        recurrent = self._advance(state, action, action_mask)
        posterior = self._mixed(self.posterior(recurrent, symlog(latent)))
        return RSSMState(recurrent, draw(posterior, key=key), state.task, state.told), posterior

    def observe(
        self,
        state: RSSMState,
        latent: Float[Array, "Nz Dz"],
        action: Action,
        action_mask: Bool[Array, ""],
        *,
        key: PRNGKeyArray,
    ) -> RSSMState:
        return self._observe(state, latent, action, action_mask, key=key)[0]

    def imagine(
        self,
        state: RSSMState,
        action: Action,
        *,
        action_mask: Bool[Array, ""] | None = None,
        num_steps: int | Int[Array, ""] | None = None,
        key: PRNGKeyArray,
    ) -> tuple[Imagined, RSSMState]:
        del num_steps  # there is one pass
        recurrent = self._advance(state, action, jnp.array(True) if action_mask is None else action_mask)
        draws = draw(self._mixed(self.prior(recurrent)), key=key)
        latent = symexp(self.decoder(recurrent, draws)).reshape(self.latent_shape)
        following = RSSMState(recurrent, draws, state.task, state.told)
        return jax.lax.stop_gradient((Imagined(latent, jnp.zeros(())), following))

    def readout(self, state: RSSMState) -> Float[Array, " E"]:
        return jnp.concatenate([state.recurrent, state.draws.reshape(-1), state.told])

    def loss(
        self,
        clips: Trajectory,
        progress: Float[Array, ""],
        *,
        with_readout: bool,
        accumulate: int = 1,
        key: PRNGKeyArray,
    ) -> WorldLoss:
        """Returns the loss of a batch (eqs 2 and 3 of arXiv 2301.04104), the same throughout a run.

        It is the squared error of a frame's latents in symlog, summed, and the two divergences of `free_bits`.
        """
        if clips.latent is None:
            raise InputError("dynamics: the batch holds frames, not latents. Encode the data set first.")
        size, length = clips.action_mask.shape
        counted = clips.valid & clips.uniform[:, None]

        def row(clip, key):
            def step(state, frame):
                latent, *rest, key = frame
                state, posterior = self._observe(state, latent, *rest, key=key)
                prior = self._mixed(self.prior(state.recurrent))
                told = self.decoder(state.recurrent, state.draws)
                error = jnp.sum(jnp.square(told - symlog(latent).reshape(-1)))
                terms = error, *free_bits(posterior, prior, self.config.free_nats)
                entropy = Categorical(prior).entropy().sum()
                return state, (*terms, entropy, self.readout(state) if with_readout else None)

            frames = clip.latent, clip.action, clip.action_mask, jr.split(key, length)
            return jax.lax.scan(step, self.init(clip.task), frames)[1]

        error, dynamics, representation, entropy, h = over_rows(row, accumulate)(clips, jr.split(key, size))
        frames = error + self.config.dynamics * dynamics + self.config.representation * representation
        metrics = {"latents": error, "divergence": dynamics, "prior_entropy": entropy}
        means = {name: masked_mean(value, counted) for name, value in metrics.items()}
        return WorldLoss(masked_mean(frames, counted), means, h, jnp.zeros(size, bool))

    def flops(self, *, rows: int, length: int, with_readout: bool) -> Flops:
        """Counts the operations; a differentiated pass costs three forward passes, and a read-out nothing."""
        recurrence = 2 * matrix_parameters((self.past_in, self.draws_in, self.sequence))
        prior, posterior, decoder = (2 * matrix_parameters(n) for n in (self.prior, self.posterior, self.decoder))
        observe = recurrence + posterior
        loss = 3 * rows * length * (observe + prior + decoder)
        return Flops(loss, length * observe, observe, recurrence + prior + decoder)


def build_rssm(
    config: DynamicsConfig,
    sampler: SamplerConfig,
    num_spatial: int,
    spatial_dim: int,
    spec: DataSpec,
    *,
    key: PRNGKeyArray,
) -> RSSMDynamics:
    """Builds the model that a configuration describes; there is nothing to choose about how it draws."""
    del sampler
    return RSSMDynamics(config.rssm, num_spatial, spatial_dim, spec, key=key)
