"""Your own policy objective: advantage-weighted regression where PMPO stands.

An objective sees a `PolicyBatch` and nothing else: how likely each action taken was, how far the policy is from its
prior, how good each action turned out to be, and which steps count. It returns a loss and metrics. `ImaginationPhase`
takes any such object; to choose one by name in a configuration, add it to `dreamer4.agent.OBJECTIVES`.

PMPO listens to the sign of an advantage. Advantage-weighted regression listens to its size too: it imitates the
actions of the dream, each weighted by `exp(advantage / temperature)`, and pushes none away.

So that it runs in seconds, nothing but policy and value is trained here: the world model has random weights, and the
reward is a random function of what it dreams. Such a world means nothing, but actions have consequences in it, and the
two objectives can be seen at work. Which of them is better for a real task is not something it can tell.

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
from dreamer4.envs import CounterEnvironment
from dreamer4.training import ImaginationPhase, encode_source, init_dreamer, init_state, train


class AdvantageWeightedRegression(AbstractPolicyObjective):
    """Imitates the dream's actions, the good ones more: `-mean(w ln pi(a)) + beta KL[pi || prior]`.

    The weight w is `exp(advantage / temperature)` with the advantage in units of its own size, clipped at `ceiling` lest
    one lucky step decide, and divided by the mean weight.
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


def build_world():
    """Returns an untrained agent whose reward head has random weights, and data to dream on from."""
    env = CounterEnvironment(length=8, num_actions=4)
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
        return dreamer.reward.mlp.readout.weight, dreamer.dynamics.action_in.discrete[0].table

    readout, table = where(dreamer)
    # An untrained network hardly listens to actions, whose embeddings start small.
    dreamer = eqx.tree_at(where, dreamer, (jr.normal(jr.key(1), readout.shape), 50.0 * table))
    source = DeviceSource.from_episodes(collect(env, random_policy(env.spec), episodes=64, key=jr.key(2)))
    return dreamer, source, encode_source(dreamer, source)


def improve(objective, dreamer, source, latents):
    """Trains policy and value in dreams; returns the metrics of each step."""
    optimizer = OptimizerConfig(learning_rate=5e-3, warmup=0.05, decay=0.5)
    config = PhaseConfig(steps=100, batch_size=64, length=8, optimizer=optimizer)
    phase = ImaginationPhase(objective, horizon=6, discount=0.95, lambda_=0.95, warm_value=0.1)
    steps = train(phase, config, init_state(phase, dreamer, config), source, seed=0, latents=latents)
    return [{name: float(value) for name, value in metrics.items()} for _, metrics in steps]


def main():
    world = build_world()
    print("Sum of imagined rewards over a dream of 6 steps, and distance of the policy from its prior:\n")
    print(f"{'objective':<30}{'first 15 steps':>16}{'last 15 steps':>16}{'KL, nats':>12}")
    for objective in (PMPO(beta=0.05), AdvantageWeightedRegression()):
        told = improve(objective, *world)
        first, last = (np.mean([m["imagined_return"] for m in part]) for part in (told[:15], told[-15:]))
        print(f"{type(objective).__name__:<30}{first:>16.2f}{last:>16.2f}{told[-1]['prior_kl']:>12.2f}")
    print(f"\nAt the end {told[-1]['effective_share']:.0%} of the steps carry the imitation.")
    print("The world is random: that both rise shows that both objectives work, not which one to prefer.")


if __name__ == "__main__":
    main()
