"""The four phases. A phase says what is trained, on which loss, and what happens to the model when it ends.

Here, and in imagination and evaluation, batches exist: each phase adds the batch axis by one `vmap` over rows.
"""

from abc import abstractmethod
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from dreamer4.agent import AbstractPolicyObjective, PolicyBatch, agent_losses, build_objective, lambda_returns
from dreamer4.agent.objectives import masked_mean
from dreamer4.config import Config
from dreamer4.dreamer import Dreamer
from dreamer4.dynamics import Levels, ShortcutForcing, bootstrap_target, corrupt, ramp
from dreamer4.errors import InputError
from dreamer4.imagination import imagine
from dreamer4.tokenizer import LatentStats, RandomFeatures, tokenizer_loss
from dreamer4.types import DataSpec, Trajectory, to_float


Metrics = dict[str, Float[Array, ""]]


class AbstractPhase(eqx.Module):
    """One phase of training.

    `weights` names the loss terms and their weights. A term is divided by its running RMS first, where `normalise`
    says so.
    """

    name: eqx.AbstractVar[str]
    weights: eqx.AbstractVar[dict[str, float]]
    normalise: eqx.AbstractVar[bool]

    @abstractmethod
    def parts(self, dreamer: Dreamer) -> list[PyTree]:
        """Returns the parts of the agent whose arrays are trained."""

    @abstractmethod
    def loss(
        self, dreamer: Dreamer, batch: Trajectory, progress: Float[Array, ""], *, key: PRNGKeyArray
    ) -> tuple[Metrics, Metrics]:
        """Returns the loss terms and further metrics of a batch.

        Arguments:
            dreamer: the agent.
            batch: a batch of clips.
            progress: share of the run that is done, in [0, 1].
            key: randomness of the step.
        """

    def finish(self, dreamer: Dreamer) -> Dreamer:
        """Returns the agent as the next phase should find it."""
        return dreamer

    def trainable(self, dreamer: Dreamer) -> PyTree[bool]:
        """Returns a tree that is True at the arrays this phase trains."""
        nothing = jax.tree.map(lambda _: False, dreamer)
        return eqx.tree_at(self.parts, nothing, replace_fn=lambda part: jax.tree.map(lambda _: True, part))


def mean_metrics(rows: Metrics) -> Metrics:
    """Averages metrics over the batch axis."""
    return {name: jnp.mean(values) for name, values in rows.items()}


class TokenizerPhase(AbstractPhase):
    """Trains the tokenizer as a masked autoencoder (eq 5)."""

    perceptual: Callable | None
    name: str = eqx.field(static=True, default="tokenizer")
    weights: dict[str, float] = eqx.field(static=True, default_factory=lambda: {"mse": 1.0})
    normalise: bool = eqx.field(static=True, default=True)

    def parts(self, dreamer: Dreamer) -> list[PyTree]:
        # The latent statistics are measured, never trained.
        tokenizer = dreamer.tokenizer
        return [getattr(tokenizer, name) for name in vars(tokenizer) if name != "stats"]

    def trainable(self, dreamer: Dreamer) -> PyTree[bool]:
        tree = jax.tree.map(lambda _: False, dreamer)
        tree = eqx.tree_at(lambda d: d.tokenizer, tree, jax.tree.map(lambda _: True, dreamer.tokenizer))
        return eqx.tree_at(lambda d: d.tokenizer.stats, tree, jax.tree.map(lambda _: False, dreamer.tokenizer.stats))

    def loss(
        self, dreamer: Dreamer, batch: Trajectory, progress: Float[Array, ""], *, key: PRNGKeyArray
    ) -> tuple[Metrics, Metrics]:
        assert batch.frame is not None
        keys = jr.split(key, batch.frame.shape[0])
        terms = jax.vmap(lambda video, valid, key: tokenizer_loss(dreamer.tokenizer, video, valid, self.perceptual, key=key))(
            to_float(batch.frame), batch.valid, keys
        )
        return mean_metrics(terms), {}


def dynamics_loss(
    dreamer: Dreamer,
    forcing: ShortcutForcing,
    batch: Trajectory,
    progress: Float[Array, ""],
    *,
    with_agent: bool,
    key: PRNGKeyArray,
) -> tuple[Float[Array, ""], Metrics, Float[Array, "B T E"] | None, Bool[Array, " B"]]:
    """Returns the shortcut-forcing loss of a batch (eq 7 with the ramp of eq 8), and the read-outs it produced.

    The teachers of the bootstrap rows run first, without gradient, on those rows only; one differentiated pass over all
    rows follows.

    Returns:
        The loss; metrics; read-outs `h` (None without agent); and which rows were trained as separate images.
    """
    grid, dynamics = forcing.grid, dreamer.dynamics
    if batch.latent is None:
        raise InputError("dynamics: the batch holds frames, not latents. Encode the data set first.")
    size, length = batch.reward.shape
    count = forcing.bootstrap_rows(size)
    key_levels, key_segments, key_noise = jr.split(key, 3)
    keys = jr.split(key_levels, size)
    rows = [
        jax.vmap(lambda k: forcing.bootstrap_row(length, key=k))(keys[:count]),
        jax.vmap(lambda k: forcing.flow_row(length, key=k))(keys[count:]),
    ]
    levels: Levels = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *rows)
    segment, image = jax.vmap(lambda k: forcing.segments(length, key=k))(jr.split(key_segments, size))
    action_mask = batch.action_mask & ~image[:, None]
    tau = grid.tau(levels.tau_index)
    z_noisy = corrupt(batch.latent, jr.normal(key_noise, batch.latent.shape), tau)

    def teach(model, z_noisy, levels, action, action_mask, segment):
        def predict(z, tau_index, step_index):
            return model(z, tau_index, step_index, action, action_mask, None, segment)[0]

        return bootstrap_target(predict, grid, z_noisy, levels)

    target, learns_from_teacher = batch.latent, jnp.zeros((size, length), bool)
    if count:
        taught = [x[:count] for x in (z_noisy, action_mask, segment)]
        first = jax.tree.map(lambda x: x[:count], (levels, batch.action))
        started = progress >= forcing.bootstrap_start
        # Before teachers start, coarse steps learn from the data too, so that no teacher is untrained.
        taught_target = jax.lax.cond(
            started,
            lambda: jax.vmap(teach, in_axes=(None, 0, 0, 0, 0, 0))(
                jax.lax.stop_gradient(dynamics), taught[0], first[0], first[1], taught[1], taught[2]
            ),
            lambda: batch.latent[:count],
        )
        coarse = levels.step_index[:count] < grid.finest
        taught_target = jnp.where(coarse[..., None, None], taught_target, batch.latent[:count])
        target = jnp.concatenate([taught_target, batch.latent[count:]])
        learns_from_teacher = levels.step_index < grid.finest

    predict = jax.vmap(dynamics, in_axes=(0, 0, 0, 0, 0, 0 if with_agent else None, 0))
    task = batch.task if with_agent else None
    z_hat, h = predict(z_noisy, levels.tau_index, levels.step_index, batch.action, action_mask, task, segment)
    error = jnp.mean((z_hat - jax.lax.stop_gradient(target)) ** 2, axis=(-2, -1))
    counted = batch.valid & batch.uniform[:, None]
    loss = masked_mean(ramp(tau, floor=forcing.ramp_floor) * error, counted)
    metrics = {
        "flow": masked_mean(error, counted & ~learns_from_teacher),
        "flow_from_noise": masked_mean(error, counted & ~learns_from_teacher & (levels.tau_index == 0) & ~image[:, None]),
        "bootstrap": masked_mean(error, counted & learns_from_teacher),
    }
    return loss, metrics, h, image


class DynamicsPhase(AbstractPhase):
    """Trains the dynamics on latents by shortcut forcing (eqs 7, 8)."""

    forcing: ShortcutForcing
    name: str = eqx.field(static=True, default="dynamics")
    weights: dict[str, float] = eqx.field(static=True, default_factory=lambda: {"dynamics": 1.0})
    normalise: bool = eqx.field(static=True, default=True)

    def parts(self, dreamer: Dreamer) -> list[PyTree]:
        return [dreamer.dynamics]

    def loss(
        self, dreamer: Dreamer, batch: Trajectory, progress: Float[Array, ""], *, key: PRNGKeyArray
    ) -> tuple[Metrics, Metrics]:
        loss, metrics, _, _ = dynamics_loss(dreamer, self.forcing, batch, progress, with_agent=False, key=key)
        return {"dynamics": loss}, metrics


class AgentPhase(AbstractPhase):
    """Finetunes the dynamics together with policy, reward and continuation heads (eqs 7 and 9).

    Rows trained as separate images teach the world model only: without a past there is nothing to act on.
    """

    forcing: ShortcutForcing
    name: str = eqx.field(static=True, default="agent")
    weights: dict[str, float] = eqx.field(
        static=True,
        default_factory=lambda: {"dynamics": 1.0, "cloning": 1.0, "reward": 1.0, "continuation": 1.0},
    )
    normalise: bool = eqx.field(static=True, default=True)

    def parts(self, dreamer: Dreamer) -> list[PyTree]:
        return [dreamer.dynamics, dreamer.policy, dreamer.reward, dreamer.continuation]

    def loss(
        self, dreamer: Dreamer, batch: Trajectory, progress: Float[Array, ""], *, key: PRNGKeyArray
    ) -> tuple[Metrics, Metrics]:
        loss, metrics, h, image = dynamics_loss(dreamer, self.forcing, batch, progress, with_agent=True, key=key)
        rows = jax.vmap(lambda h, row: agent_losses(dreamer.policy, dreamer.reward, dreamer.continuation, h, row))(
            h, batch
        )
        clip = ~image
        share = {"cloning": clip & batch.relevant, "reward": clip, "continuation": clip}
        terms = {
            name: jnp.sum(jnp.where(share[name], values, 0.0)) / jnp.maximum(share[name].sum(), 1)
            for name, values in rows.items()
        }
        return {"dynamics": loss} | terms, metrics

    def finish(self, dreamer: Dreamer) -> Dreamer:
        """Freezes a copy of the cloned policy as the prior."""
        return eqx.tree_at(lambda d: d.prior, dreamer, dreamer.policy)


class ImaginationPhase(AbstractPhase):
    """Trains policy and value on dreams, everything else frozen (eqs 10, 11).

    Policy and value share no weights, so their losses are not mixed and need no normalising. All of it is float32.
    """

    objective: AbstractPolicyObjective
    horizon: int = eqx.field(static=True)
    discount: float = eqx.field(static=True)
    lambda_: float = eqx.field(static=True)
    warm_value: float = eqx.field(static=True)
    name: str = eqx.field(static=True, default="imagination")
    weights: dict[str, float] = eqx.field(static=True, default_factory=lambda: {"policy": 1.0, "value": 1.0})
    normalise: bool = eqx.field(static=True, default=False)

    def parts(self, dreamer: Dreamer) -> list[PyTree]:
        return [dreamer.policy, dreamer.value]

    def loss(
        self, dreamer: Dreamer, batch: Trajectory, progress: Float[Array, ""], *, key: PRNGKeyArray
    ) -> tuple[Metrics, Metrics]:
        size = batch.reward.shape[0]
        keys = jr.split(key, size)

        def dream(row, key):
            key_count, key_recall, key_dream = jr.split(key, 3)
            count, starts = context_count(row, key=key_count)
            memory = dreamer.recall(row, count, key=key_recall)
            return imagine(dreamer, memory, self.horizon, key=key_dream), starts

        rollout, starts = jax.vmap(dream)(batch, keys)
        mask = rollout.alive & starts[:, None]
        value = dreamer.value(rollout.h)
        baseline = jax.lax.stop_gradient(value.mean())
        returns = jax.vmap(
            lambda r, c, v: lambda_returns(r, c, v, discount=self.discount, lambda_=self.lambda_)
        )(rollout.reward, rollout.continuation, baseline)
        policy = dreamer.policy(rollout.h[:, :-1])
        prior = dreamer.prior(rollout.h[:, :-1])
        prior_batch = PolicyBatch(policy.log_prob(rollout.action), policy.kl(prior), returns - baseline[:, :-1], mask)
        policy_loss, metrics = self.objective(prior_batch)
        states = jax.tree.map(lambda leaf: leaf[:, :-1], value)
        value_loss = masked_mean(-states.log_prob(returns), mask)
        # Signs of advantages from an untrained value are noise, so the policy may wait.
        policy_loss = jnp.where(progress >= self.warm_value, policy_loss, 0.0)
        metrics |= {
            "imagined_return": jnp.mean(jnp.sum(rollout.reward * mask, axis=-1)),
            "value_mean": masked_mean(baseline[:, :-1], mask),
            "advantage_abs": masked_mean(jnp.abs(returns - baseline[:, :-1]), mask),
            "entropy": masked_mean(policy.entropy(), mask),
            "imagined_length": jnp.mean(mask.sum(-1).astype(jnp.float32)),
        }
        return {"policy": policy_loss, "value": value_loss}, metrics


def context_count(row: Trajectory, *, key: PRNGKeyArray) -> tuple[Int[Array, ""], Bool[Array, ""]]:
    """Draws how many frames of a clip a dream starts from, uniformly, so that the last one does not end the episode.

    Returns:
        The number of frames, at least 1, and whether the clip offers such a start at all.
    """
    usable = jnp.cumprod(row.valid & ~row.is_terminal).sum()
    count = 1 + jnp.floor(jr.uniform(key) * usable).astype(jnp.int32)
    return jnp.clip(count, 1, jnp.maximum(usable, 1)), usable > 0


def measure_latents(
    dreamer: Dreamer, encode: Callable[[Dreamer], Float[Array, "N Nz Dz"]]
) -> tuple[Dreamer, Float[Array, "N Nz Dz"]]:
    """Measures the latent statistics of a trained tokenizer on a data set.

    Arguments:
        dreamer: the agent whose tokenizer was trained.
        encode: encodes the data set with an agent's tokenizer.

    Returns:
        The agent with measured statistics, and the data set's standardised latents.
    """
    tokenizer = dreamer.tokenizer
    identity = LatentStats.identity(tokenizer.num_spatial, tokenizer.spatial_dim)
    raw = encode(eqx.tree_at(lambda d: d.tokenizer.stats, dreamer, identity))
    stats = LatentStats.measure(raw)
    return eqx.tree_at(lambda d: d.tokenizer.stats, dreamer, stats), stats.standardise(raw)


def build_phase(name: str, config: Config, spec: DataSpec) -> AbstractPhase:
    """Builds the phase of the given name as a configuration describes it."""
    forcing = ShortcutForcing(config.dynamics.shortcut, context_signal=config.sampler.context_signal)
    if name == "tokenizer":
        if config.tokenizer.perceptual == "none":
            return TokenizerPhase(None)
        weights = {"mse": 1.0, "perceptual": config.tokenizer.perceptual_weight}
        return TokenizerPhase(RandomFeatures(spec.frame_shape[2]), weights=weights)
    if name == "dynamics":
        return DynamicsPhase(forcing)
    if name == "agent":
        return AgentPhase(forcing)
    if name == "imagination":
        settings = config.imagination
        return ImaginationPhase(
            build_objective(settings.objective),
            settings.horizon,
            settings.discount,
            settings.lambda_,
            config.train.imagination.warm_value,
        )
    raise InputError(f"phase: unknown {name!r}. Known: tokenizer, dynamics, agent, imagination.")
