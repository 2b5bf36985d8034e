"""The four phases. A phase says what is trained, on which loss, and what happens to the model when it ends.

Here, and in imagination and evaluation, batches exist: each phase adds the batch axis by one `vmap` over rows, which
`over_rows` takes in parts where memory is short. What rows have in common (means, the sets of PMPO) is always of the
whole batch.
"""

import itertools
import math
import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from dreamer4.agent import (
    AbstractPolicyObjective,
    PolicyBatch,
    agent_losses,
    build_objective,
    lambda_returns,
    reconstruction_loss,
    weighted_mean,
)
from dreamer4.config import Config
from dreamer4.data import DeviceSource, Episode
from dreamer4.dreamer import Dreamer
from dreamer4.errors import InputError
from dreamer4.nn.rows import Metrics as Metrics
from dreamer4.nn.rows import masked_mean, over_rows
from dreamer4.pretrained import LPIPS
from dreamer4.tokenizer import LatentStats, Perceptual, RandomFeatures, tokenizer_loss
from dreamer4.types import DataSpec, Trajectory, to_float
from dreamer4.worlds import WORLDS, AbstractWorld, DreamWorld


NOTHING_TO_CLONE = (
    "agent: no action is known in any relevant training episode, so there is nothing to clone, and no policy to "
    "improve in imagination. Label some episodes; of unlabelled video a world model can be learned: dreamer4 train "
    "tokenizer, then dreamer4 train dynamics."
)


class AbstractPhase(eqx.Module):
    """One phase of training: what is trained, on which loss, and what the model becomes at the end.

    `normalise` says whether each loss term is divided by its running RMS before it is weighted.
    """

    name: eqx.AbstractClassVar[str]
    normalise: eqx.AbstractClassVar[bool]

    @property
    @abstractmethod
    def weights(self) -> dict[str, float]:
        """The loss terms by name, and their weights."""

    @property
    def switches(self) -> tuple[float, ...]:
        """Shares of the run at which the loss begins to ask for something else, and its size and gradient may jump."""
        return ()

    @abstractmethod
    def trainable(self, dreamer: Dreamer) -> PyTree[bool]:
        """Returns a tree that is True at the arrays this phase trains."""

    @abstractmethod
    def loss(
        self, dreamer: Dreamer, batch: Trajectory, progress: Float[Array, ""], *, key: PRNGKeyArray
    ) -> tuple[Metrics, Metrics]:
        """Returns the loss terms and further metrics of a batch.

        Args:
            dreamer: the agent.
            batch: a batch of clips.
            progress: share of the run that is done, in [0, 1].
            key: randomness of the step.
        """

    def check(self, episodes: Sequence[Episode]) -> None:
        """Refuses episodes that hold nothing to learn from, and warns as `warn` does.

        Args:
            episodes: those to be trained on; their frames are not looked at.
        """
        self.warn([episode.reward[1:] for episode in episodes])

    def warn(self, rewards: Sequence[np.ndarray]) -> None:
        """Warns of what the heads cannot tell apart among the rewards of episodes, each without its first frame's."""

    def prepare(self, source: DeviceSource, episodes: Sequence[Episode]) -> DeviceSource:
        """Returns the data set with all that the loss needs of its clips; raises as `check` and a world do."""
        self.check(episodes)
        return source

    def finish(self, dreamer: Dreamer) -> Dreamer:
        """Returns the agent as the next phase should find it."""
        return dreamer


def mark(dreamer: Dreamer, where: Callable[[Dreamer], Sequence[PyTree]]) -> PyTree[bool]:
    """Returns a tree that is True at the arrays of the chosen parts, if the agent has them, and False elsewhere."""
    nothing = jax.tree.map(lambda _: False, dreamer)

    def present(dreamer):
        return [part for part in where(dreamer) if part is not None]

    return eqx.tree_at(present, nothing, replace_fn=lambda part: jax.tree.map(lambda _: True, part))


def mark_tokenizer(dreamer: Dreamer) -> PyTree[bool]:
    """Returns a tree that is True at the tokenizer's weights; its latent statistics are measured, never trained."""
    whole = mark(dreamer, lambda d: [d.tokenizer])
    fixed = jax.tree.map(lambda _: False, dreamer.tokenizer.stats)
    return eqx.tree_at(lambda d: d.tokenizer.stats, whole, fixed)


def freeze_prior(dreamer: Dreamer) -> Dreamer:
    """Returns the agent with a frozen copy of its cloned policy as the prior."""
    return eqx.tree_at(lambda d: d.prior, dreamer, dreamer.policy)


class TokenizerPhase(AbstractPhase):
    """Trains the tokenizer as a masked autoencoder (eq 5)."""

    perceptual: Callable | None = None
    perceptual_weight: float = eqx.field(static=True, default=0.2)
    accumulate: int = eqx.field(static=True, default=1)
    name: ClassVar[str] = "tokenizer"
    normalise: ClassVar[bool] = True

    @property
    def weights(self) -> dict[str, float]:
        return {"mse": 1.0} | ({} if self.perceptual is None else {"perceptual": self.perceptual_weight})

    def trainable(self, dreamer: Dreamer) -> PyTree[bool]:
        return mark_tokenizer(dreamer)

    def loss(
        self, dreamer: Dreamer, batch: Trajectory, progress: Float[Array, ""], *, key: PRNGKeyArray
    ) -> tuple[Metrics, Metrics]:
        if batch.frame is None:
            raise InputError("tokenizer: the batch holds latents, not frames. Give the data set before it was encoded.")

        def row(video, valid, key):
            return tokenizer_loss(dreamer.tokenizer, video, valid, self.perceptual, key=key)

        keys = jr.split(key, batch.frame.shape[0])
        rows = over_rows(row, self.accumulate)(to_float(batch.frame), batch.valid, keys)
        return {name: weighted_mean(values, batch.valid.sum(axis=1)) for name, values in rows.items()}, {}


class DynamicsPhase(AbstractPhase):
    """Trains the dynamics on latents by its own loss: shortcut forcing for the model of the paper (eqs 7, 8).

    `changes` are the shares of the run at which that loss begins to ask for something else.
    """

    changes: tuple[float, ...] = eqx.field(static=True, default=())
    accumulate: int = eqx.field(static=True, default=1)
    name: ClassVar[str] = "dynamics"
    normalise: ClassVar[bool] = True

    @property
    def weights(self) -> dict[str, float]:
        return {"dynamics": 1.0}

    @property
    def switches(self) -> tuple[float, ...]:
        return self.changes

    def trainable(self, dreamer: Dreamer) -> PyTree[bool]:
        return mark(dreamer, lambda d: [d.dynamics])

    def loss(
        self, dreamer: Dreamer, batch: Trajectory, progress: Float[Array, ""], *, key: PRNGKeyArray
    ) -> tuple[Metrics, Metrics]:
        how = {"with_readout": False, "accumulate": self.accumulate}
        world = dreamer.dynamics.loss(batch, progress, **how, key=key)
        return {"dynamics": world.loss}, world.metrics


class AgentPhase(AbstractPhase):
    """Finetunes the dynamics together with policy, reward and continuation heads (eqs 7 and 9).

    Where the agent has a head for it, and `reconstruction` is the weight, `h` also learns to keep the frame's latents.
    Rows trained as separate images teach the world model only: without a past there is nothing to act on.
    """

    warm_heads: float = eqx.field(static=True, default=0.0)
    reconstruction: float = eqx.field(static=True, default=0.0)
    limit: float = eqx.field(static=True, default=math.inf)
    accumulate: int = eqx.field(static=True, default=1)
    name: ClassVar[str] = "agent"
    normalise: ClassVar[bool] = True

    @property
    def weights(self) -> dict[str, float]:
        weights = {"dynamics": 1.0, "cloning": 1.0, "reward": 1.0, "continuation": 1.0}
        return weights | ({"reconstruction": self.reconstruction} if self.reconstruction else {})

    @property
    def switches(self) -> tuple[float, ...]:
        return (self.warm_heads,)

    def check(self, episodes: Sequence[Episode]) -> None:
        if not any(e.relevant and e.action_mask.any() for e in episodes):
            raise InputError(NOTHING_TO_CLONE)
        super().check(episodes)
        if not any(e.reward[1:].any() for e in episodes):
            warnings.warn(
                "No reward of the data differs from 0, so a policy has nothing to gain in imagination.", stacklevel=2
            )

    def warn(self, rewards: Sequence[np.ndarray]) -> None:
        warn_beyond("rewards", rewards, self.limit)

    def trainable(self, dreamer: Dreamer) -> PyTree[bool]:
        return mark(dreamer, lambda d: [d.dynamics, d.policy, d.reward, d.continuation, d.reconstruction])

    def loss(
        self, dreamer: Dreamer, batch: Trajectory, progress: Float[Array, ""], *, key: PRNGKeyArray
    ) -> tuple[Metrics, Metrics]:
        # The model comes trained, so its teachers teach from the first step.
        late = jnp.ones(())
        how = {"with_readout": True, "accumulate": self.accumulate}
        world = dreamer.dynamics.loss(batch, late, **how, key=key)
        h = world.h
        assert h is not None  # with read-outs
        # Heads that know nothing yet would teach the read-out to forget what they have not come to use.
        h = jnp.where(progress >= self.warm_heads, h, jax.lax.stop_gradient(h))

        def losses(h, row):
            terms, counts = agent_losses(dreamer.policy, dreamer.reward, dreamer.continuation, h, row)
            if self.reconstruction:
                assert dreamer.reconstruction is not None  # built from the same configuration
                terms["reconstruction"] = reconstruction_loss(dreamer.reconstruction, h, row.latent, row.valid)
                counts["reconstruction"] = row.valid.sum()
            return terms, counts

        rows, counts = over_rows(losses, self.accumulate)(h, batch)
        terms = {name: weighted_mean(values, jnp.where(world.image, 0, counts[name])) for name, values in rows.items()}
        return {"dynamics": world.loss} | terms, world.metrics

    def finish(self, dreamer: Dreamer) -> Dreamer:
        return freeze_prior(dreamer)


class ImaginationPhase(AbstractPhase):
    """Trains policy and value on lives in a world, dreams above all, everything else frozen (eqs 10, 11).

    Policy and value share no weights, so their losses are not mixed and need no normalising. All of it is float32.
    """

    objective: AbstractPolicyObjective
    horizon: int = eqx.field(static=True)
    discount: float = eqx.field(static=True)
    lambda_: float = eqx.field(static=True)
    warm_value: float = eqx.field(static=True)
    accumulate: int = eqx.field(static=True, default=1)
    world: AbstractWorld = DreamWorld()
    limit: float = eqx.field(static=True, default=math.inf)
    name: ClassVar[str] = "imagination"
    normalise: ClassVar[bool] = False

    @property
    def weights(self) -> dict[str, float]:
        return {"policy": 1.0, "value": 1.0}

    @property
    def switches(self) -> tuple[float, ...]:
        return (self.warm_value,)

    def trainable(self, dreamer: Dreamer) -> PyTree[bool]:
        return mark(dreamer, lambda d: [d.policy, d.value])

    def warn(self, rewards: Sequence[np.ndarray]) -> None:
        def returns(rewards: np.ndarray) -> np.ndarray:
            return np.array([*itertools.accumulate(rewards.tolist()[::-1], lambda later, r: r + self.discount * later)])

        warn_beyond("discounted returns", [returns(r) for r in rewards], self.limit)

    def prepare(self, source: DeviceSource, episodes: Sequence[Episode]) -> DeviceSource:
        return self.world.prepare(super().prepare(source, episodes), episodes)

    def loss(
        self, dreamer: Dreamer, batch: Trajectory, progress: Float[Array, ""], *, key: PRNGKeyArray
    ) -> tuple[Metrics, Metrics]:
        size = batch.reward.shape[0]
        keys = jr.split(key, size)

        def dream(row, key):
            key_count, key_enter, key_live = jr.split(key, 3)
            count, starts = context_count(row, key=key_count)
            start = self.world.enter(dreamer, row, count, key=key_enter)
            return self.world.live(dreamer, start, self.horizon, key=key_live), starts

        rollout, starts = over_rows(dream, self.accumulate)(batch, keys)
        mask = rollout.alive & starts[:, None]
        value = dreamer.value(rollout.h)
        baseline = jax.lax.stop_gradient(value.mean())
        returns = jax.vmap(lambda r, c, v: lambda_returns(r, c, v, discount=self.discount, lambda_=self.lambda_))(
            rollout.reward, rollout.continuation, baseline
        )
        h, task = rollout.h[:, :-1], batch.task[:, None]
        policy, prior = dreamer.policy(h, task), dreamer.prior(h, task)
        prior_batch = PolicyBatch(policy.log_prob(rollout.action), policy.kl(prior), returns - baseline[:, :-1], mask)
        policy_loss, metrics = self.objective(prior_batch)
        states = jax.tree.map(lambda leaf: leaf[:, :-1], value)
        value_loss = masked_mean(-states.log_prob(returns), mask)
        # Signs of advantages from an untrained value are noise, so the policy may wait.
        policy_loss = jnp.where(progress >= self.warm_value, policy_loss, 0.0)
        metrics |= {
            "imagined_return": jnp.mean(jnp.sum(jnp.where(mask, rollout.reward, 0.0), axis=-1)),
            "value_mean": masked_mean(baseline[:, :-1], mask),
            "advantage_abs": masked_mean(jnp.abs(returns - baseline[:, :-1]), mask),
            "entropy": masked_mean(policy.entropy(), mask),
            "imagined_length": jnp.mean(mask.sum(-1).astype(jnp.float32)),
        }
        return {"policy": policy_loss, "value": value_loss}, metrics


def warn_beyond(what: str, values: Sequence[np.ndarray], limit: float) -> None:
    """Warns of numbers beyond the bins of a head, which span symexp(-limit) to symexp(limit): to it they are alike."""
    least, most = (float(f(np.concatenate(values), initial=0.0)) for f in (np.min, np.max))
    if max(-least, most) > np.expm1(limit):
        warnings.warn(
            f"The {what} of the data span {least:g} to {most:g}, but the bins of the heads end at "
            f"{np.expm1(limit):.4g}, and all beyond it looks the same to them. Scale the rewards, or widen the bins: "
            f"--set agent.bin_limit={np.ceil(10 * np.log1p(max(-least, most))) / 10:g}, and agent.num_bins with it.",
            stacklevel=2,
        )


def context_count(row: Trajectory, *, key: PRNGKeyArray) -> tuple[Int[Array, ""], Bool[Array, ""]]:
    """Draws how many frames of a clip a dream starts from, uniformly, so that the last one does not end the episode.

    Returns:
        The number of frames, at least 1, and whether the clip offers such a start at all.
    """
    usable = jnp.cumprod(row.valid & ~row.is_terminal).sum()
    count = 1 + jnp.floor(jr.uniform(key) * usable.astype(jnp.float32)).astype(jnp.int32)
    return jnp.clip(count, 1, jnp.maximum(usable, 1)), usable > 0


def measure_latents(
    dreamer: Dreamer, encode: Callable[[Dreamer], Float[Array, "N Nz Dz"]]
) -> tuple[Dreamer, Float[Array, "N Nz Dz"]]:
    """Measures the latent statistics of a trained tokenizer on a data set.

    Args:
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


_PERCEPTUAL: dict[str, Callable[[tuple[int, int, int]], Perceptual | None]] = {
    "none": lambda shape: None,
    "random_features": lambda shape: RandomFeatures(shape[2]),
    "lpips": LPIPS.load,
    "lpips_vgg": lambda shape: LPIPS.load(shape, net="vgg16"),
}


def build_phase(name: str, config: Config, spec: DataSpec) -> AbstractPhase:
    """Builds the phase of the given name as a configuration describes it."""
    train = config.train
    if name == "tokenizer":
        perceptual = _PERCEPTUAL[config.tokenizer.perceptual](spec.frame_shape)
        return TokenizerPhase(perceptual, config.tokenizer.perceptual_weight, train.tokenizer.accumulate)
    if name == "dynamics":
        return DynamicsPhase(config.dynamics.changes, train.dynamics.accumulate)
    if name == "agent":
        return AgentPhase(
            train.agent.warm_heads, config.agent.reconstruction, config.agent.bin_limit, train.agent.accumulate
        )
    if name == "imagination":
        settings = config.imagination
        return ImaginationPhase(
            build_objective(settings.objective),
            settings.horizon,
            settings.discount,
            settings.lambda_,
            train.imagination.warm_value,
            train.imagination.accumulate,
            WORLDS[settings.world](config),
            config.agent.bin_limit,
        )
    raise InputError(f"phase: unknown {name!r}. Known: tokenizer, dynamics, agent, imagination.")
