"""Your own policy objective: advantage-weighted regression where PMPO stands.

An objective sees a `PolicyBatch` and nothing else: how likely each action taken was, how far the policy is from its
prior, how good each action turned out to be, and which steps count. It returns a loss and metrics. `ImaginationPhase`
takes any such object; to choose one by name in a configuration, add it to `dreamer4.agent.OBJECTIVES`.

PMPO listens to the sign of an advantage. Advantage-weighted regression listens to its size too: it imitates the
actions of the dream, each weighted by `exp(advantage / temperature)`, and pushes none away.

So that it runs in seconds, nothing but policy and value is trained here. The world model has random weights, and where
the reward head was stands a linear read-out that pays for the last action: nothing for action 0, up to 1 for action 3.
The best dream of six steps is worth 6, one of random actions 3. Both objectives should climb from about 3 towards 6;
how they compare on a real task is not something this world can tell.

Run: python examples/02_swap_objective.py
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from dreamer4.agent import PMPO, AbstractPolicyObjective, PolicyBatch
from dreamer4.config import Config, OptimizerConfig, PhaseConfig
from dreamer4.data import DeviceSource, collect, random_policy
from dreamer4.dynamics.shortcut import Levels, NoisyFrames
from dreamer4.envs import CounterEnvironment
from dreamer4.training import ImaginationPhase, encode_source, init_dreamer, init_state, train


ACTIONS = 4


class AdvantageWeightedRegression(AbstractPolicyObjective):
    """Imitates the dream's actions, the good ones more: `-mean(w ln pi(a)) + beta KL[pi || prior]`.

    The weight w is `exp(advantage / temperature)` with the advantage in units of its own size, clipped at `ceiling`
    lest one lucky step decide, and divided by the mean weight.
    """

    temperature: float = eqx.field(static=True, default=1.0)
    ceiling: float = eqx.field(static=True, default=20.0)
    beta: float = eqx.field(static=True, default=0.05)

    def __call__(self, batch: PolicyBatch) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        def mean(x):
            return jnp.sum(jnp.where(batch.mask, x, 0.0)) / jnp.maximum(batch.mask.sum(), 1)

        # Steps behind the end of a dream are set to zero first, so that nothing of them reaches a gradient.
        advantage = jnp.where(batch.mask, jax.lax.stop_gradient(batch.advantage), 0.0)
        size = jnp.maximum(jnp.sqrt(mean(advantage**2)), 1e-8)
        weight = jnp.minimum(jnp.exp(advantage / size / self.temperature), self.ceiling)
        weight = weight / jnp.maximum(mean(weight), 1e-8)
        kl = mean(batch.prior_kl)
        # The share of steps that carry the imitation: 1 if all weigh the same, near 0 if a single one does.
        effective = 1.0 / jnp.maximum(mean(weight**2), 1e-8)
        return -mean(weight * batch.logp) + self.beta * kl, {"prior_kl": kl, "effective_share": effective}


class Told(eqx.Module):
    """A reward without spread."""

    value: Float[Array, "*dims"]

    def mean(self) -> Float[Array, "*dims"]:
        return self.value


class LinearReward(eqx.Module):
    """A reward head that is a linear map of the agent's read-out; dreams ask it for its mean only."""

    weight: Float[Array, " E"]
    bias: Float[Array, ""]

    def __call__(self, h: Float[Array, "*dims E"]) -> Told:
        return Told(h @ self.weight + self.bias)


def build_world():
    """Returns an untrained agent that is paid for actions, and data to dream on from."""
    env = CounterEnvironment(length=8, num_actions=ACTIONS)
    transformer = {"width": 16, "depth": 2, "heads": 2, "kv_heads": 2, "time_every": 2, "context_length": 8}
    config = Config.model_validate(
        {
            "tokenizer": {
                "patch": [4, 4],
                "num_latents": 1,
                "num_spatial": 1,
                "encoder": transformer,
                "decoder": transformer,
            },
            "dynamics": {"transformer": transformer, "num_registers": 0, "shortcut": {"k_max": 2}},
            "sampler": {"num_steps": 1},
            "agent": {"hidden": 32, "mtp_length": 1, "num_bins": 21, "bin_limit": 3.0},
        }
    )
    dreamer = init_dreamer(config, env.spec)

    def where(dreamer):
        return dreamer.dynamics.network.action_in.discrete[0].table, dreamer.continuation.mlp.readout.bias

    # An untrained network hardly listens to actions, whose embeddings start small. And dreams shall not end.
    table, ends = where(dreamer)
    assert ends is not None
    dreamer = eqx.tree_at(where, dreamer, (50.0 * table, ends + 10.0))
    source = DeviceSource.from_episodes(collect(env, random_policy(env.spec), episodes=64, key=jr.key(1)))
    latents = encode_source(dreamer, source)

    h, pay, dreamed = map(np.asarray, read_outs(dreamer, source.with_latents(latents)))
    h, pay = h[dreamed], pay[dreamed]
    inputs = np.concatenate([h, np.ones((len(h), 1))], axis=1)
    weight, *_ = np.linalg.lstsq(inputs, pay, rcond=None)
    error = np.sqrt(np.mean((inputs @ weight - pay) ** 2))
    print(f"The reward is read off the dreamed frame with an error of {error:.2f}.\n")
    reward = LinearReward(jnp.asarray(weight[:-1]), jnp.asarray(weight[-1]))
    return eqx.tree_at(lambda d: d.reward, dreamer, reward), source, latents


@eqx.filter_jit
def read_outs(dreamer, source):
    """Returns read-outs of clips that end in a dream, what each action should pay, and which frames are dreamed.

    An untrained model dreams of nothing, latents of zero, so a clip that dreams from `start` on is zero from there.
    """
    batch = source.episodes(jnp.repeat(jnp.arange(64), 6), 8)
    start = 1 + jnp.tile(jnp.arange(6), 64)
    dreamed = jnp.arange(8) >= start[:, None]
    latent = jnp.where(dreamed[..., None, None], 0.0, batch.latent)
    network = dreamer.dynamics.network
    grid, clean = network.grid, network.grid.snap(dreamer.dynamics.context_signal)
    levels = Levels(jnp.full_like(dreamed, clean, jnp.int32), jnp.full_like(dreamed, grid.finest, jnp.int32))
    frames = NoisyFrames(latent, levels, batch.action, batch.action_mask)
    _, h = jax.vmap(network)(frames, batch.task)
    pay = batch.action.discrete[..., 0] / (ACTIONS - 1)
    return h.reshape(-1, h.shape[-1]), pay.reshape(-1), dreamed.reshape(-1)


def improve(objective, dreamer, source, latents):
    """Trains policy and value in dreams; returns the metrics of each step."""
    optimizer = OptimizerConfig(learning_rate=5e-3, warmup=0.05, decay=0.5)
    config = PhaseConfig(steps=100, batch_size=64, length=8, optimizer=optimizer)
    phase = ImaginationPhase(objective, horizon=6, discount=0.95, lambda_=0.95, warm_value=0.1)
    steps = train(phase, config, init_state(phase, dreamer, config), source, seed=0, latents=latents)
    return [{name: float(value) for name, value in metrics.items()} for _, metrics in steps]


def main():
    world = build_world()
    print(f"{'objective':<30}{'imagined return at first':>26}{'at last':>10}{'KL to the prior, nats':>24}")
    for objective in (PMPO(beta=0.05), AdvantageWeightedRegression()):
        told = improve(objective, *world)
        first, last = (np.mean([m["imagined_return"] for m in part]) for part in (told[:10], told[-10:]))
        print(f"{type(objective).__name__:<30}{first:>26.2f}{last:>10.2f}{told[-1]['prior_kl']:>24.2f}")
    print(f"\nAt the end {told[-1]['effective_share']:.0%} of the steps carry the imitation.")


if __name__ == "__main__":
    main()
