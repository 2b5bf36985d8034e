"""The ground of the configuration tree, and its branches about where data comes from."""

import os
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, JsonValue, PositiveInt, field_validator, model_validator

from dreamer4.config.text import show


class Branch(BaseModel):
    """Base of every branch: immutable, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_as_number(cls, value: Any, info: Any) -> Any:
        # Python counts true as 1, and YAML reads `yes` and `on` as true: `steps: on` would train one step.
        annotation = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and annotation in (int, float, int | None, float | None):
            raise ValueError(f"got {show(value)}, expected a number")
        return value


class EnvConfig(Branch):
    """The real environment."""

    id: str = Field(
        default="Catch-bsuite",
        min_length=1,
        description="id of ours (`envs.ENVIRONMENTS`), gymnax, Gymnasium or dm_control",
    )
    kwargs: dict[str, JsonValue] = Field(
        default_factory=dict, description="its arguments, or those of its library's make"
    )
    sticky_actions: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="probability at each step that the action before is carried out again; original MinAtar has 0.1",
    )

    workers: int = Field(
        default=0,
        ge=0,
        description="processes that play a world outside JAX, each its share of the episodes; 0: this one alone",
    )

    @property
    def described(self) -> dict[str, Any]:
        """What a data set tells about the environment that it comes from."""
        sticky = {"sticky_actions": self.sticky_actions} if self.sticky_actions else {}
        return {"id": self.id, "kwargs": self.kwargs} | sticky


class TaskConfig(Branch):
    """One of several tasks."""

    name: str = Field(min_length=1, description="of one's choice")
    env: EnvConfig = Field(description="where it is played")
    text: str | None = Field(default=None, description="the task in words")
    vector: tuple[FiniteFloat, ...] | str = Field(
        default=(),
        description="numbers that tell the agent the task in place of its own number, such as an embedding of text by "
        "a language model, or a .npy file that holds them; of all tasks or of none",
    )
    share: float = Field(
        default=1.0, gt=0, description="of the episodes to collect and of the rows of a batch, relative to the others'"
    )


class SpecConfig(Branch):
    """What data looks like, declared where neither environment nor data set is at hand to tell."""

    frame_shape: tuple[PositiveInt, PositiveInt, PositiveInt] = Field(description="height, width, channels")
    num_classes: tuple[PositiveInt, ...] = Field(default=(), description="classes of each discrete action component")
    continuous_dim: int = Field(default=0, ge=0, description="size of the continuous action")
    num_tasks: int = Field(default=1, gt=0)


def _at_home(path: str | None) -> str | None:
    """Returns a path in which ~ is the home folder, where no shell has said so."""
    return path if path is None else os.path.expanduser(path)


class BehaviourConfig(Branch):
    """One policy of a mixture."""

    policy: str = Field(description="as data.policy, but no mixture")
    share: float = Field(default=1.0, gt=0, description="of the episodes, relative to the other policies' shares")
    epsilon: float = Field(default=0.0, ge=0, le=1, description="probability of a random action at each step")
    tasks: tuple[str, ...] = Field(default=(), description="names of the tasks that it plays; none: all of them")

    _at_home = field_validator("policy")(_at_home)


MIXTURES: dict[str, tuple[BehaviourConfig, ...]] = {
    # No good player: what is to be learned is not in the data to be copied.
    "weak": (
        BehaviourConfig(policy="random", share=0.4),
        BehaviourConfig(policy="ppo:early", share=0.4, epsilon=0.1),
        BehaviourConfig(policy="ppo:middle", share=0.2, epsilon=0.1),
    ),
    # Random play, and PPO at three stages of its training, with a little and with much exploration noise, since a
    # learning agent visits states that a good policy avoids.
    "mixed": (
        BehaviourConfig(policy="random", share=0.2),
        BehaviourConfig(policy="ppo:early", share=0.2, epsilon=0.1),
        BehaviourConfig(policy="ppo:middle", share=0.2, epsilon=0.1),
        BehaviourConfig(policy="ppo", share=0.2, epsilon=0.1),
        BehaviourConfig(policy="ppo", share=0.2, epsilon=0.4),
    ),
}


class DataConfig(Branch):
    """The offline data set."""

    path: str | None = Field(default=None, description="existing data set; None: collect one into the run folder")
    episodes: int = Field(default=2000, gt=0, description="episodes to collect")
    policy: str = Field(
        default="random",
        description="behaviour policy: random, ppo, ppo:early, ppo:middle, sac, FILE.py:NAME, a checkpoint; in "
        "Craftax expert, gatherer, explorer, wanderer; or several: weak (random, PPO early and middle), mixed (PPO "
        "late too) or mixture",
    )
    mixture: tuple[BehaviourConfig, ...] = Field(default=(), description="mixture: its policies")
    prompts: bool = Field(
        default=False, description="cut what is collected into episodes of the tasks that the environment asks for"
    )
    held_out: float = Field(default=0.1, gt=0, lt=1, description="share of episodes kept for evaluation")
    relevant: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="share of the training episodes, the best by return, that cloning learns from (agent.balanced); "
        "the paper clones successful ones alone",
    )
    labelled: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="share of the training episodes, in the order of the data set, whose actions are told "
        "to dynamics and agent; the others are video alone",
    )
    source: Literal["auto", "device", "stream"] = Field(
        default="auto",
        description="where batches come from: all of the data on the device, or read from disk; auto: by its size",
    )
    spec: SpecConfig | None = Field(
        default=None, description="shapes for a dry run without data; training reads the data's own"
    )

    _at_home = field_validator("path", "policy")(_at_home)

    @field_validator("path", mode="before")
    @classmethod
    def _single(cls, path: Any) -> Any:
        if isinstance(path, list | tuple):
            raise ValueError("it names several data sets, expected one. Join them: dreamer4 data merge A B --out C")
        return path

    @property
    def behaviours(self) -> tuple[BehaviourConfig, ...]:
        """The policies that play the episodes."""
        if self.policy == "mixture":
            return self.mixture
        return MIXTURES.get(self.policy, (BehaviourConfig(policy=self.policy),))

    @model_validator(mode="after")
    def _mixed(self):
        if self.policy == "mixture" and not self.mixture:
            raise ValueError("policy is mixture, but mixture names no policies")
        if any(part.policy in ("mixture", *MIXTURES) for part in self.mixture):
            raise ValueError("a mixture cannot hold a mixture")
        if self.policy in MIXTURES and self.mixture:
            raise ValueError(f"policy is {self.policy}, whose policies are fixed; for those of mixture it is mixture")
        return self

    @model_validator(mode="after")
    def _both_parts(self):
        if self.path is None and not 1 <= self.episodes * self.held_out <= self.episodes - 1:
            raise ValueError(
                f"episodes {self.episodes} with held_out {self.held_out} leaves the training part or the held-out part "
                "without an episode"
            )
        return self


class PPOConfig(Branch):
    """The online agent without a world model: behaviour policy of a data set, and reference."""

    steps: int = Field(default=500_000, gt=0, description="environment steps, rounded up to whole updates")
    num_envs: int = Field(default=64, gt=0, description="environments played side by side")
    rollout_length: int = Field(default=64, gt=0, description="steps in each of them between two updates")
    epochs: int = Field(default=4, gt=0, description="passes over the steps of an update")
    minibatches: int = Field(default=8, gt=0, description="gradient steps of a pass")
    learning_rate: float = Field(default=1e-3, gt=0, description="at the start; it decays linearly to zero")
    discount: float = Field(default=0.99, gt=0, le=1)
    lambda_: float = Field(default=0.95, ge=0, le=1)
    clip: float = Field(default=0.2, gt=0, description="bound of the change of a probability ratio")
    clip_value: float = Field(default=0.2, gt=0, description="bound of the change of a value, in units of reward")
    entropy: float = Field(default=0.01, ge=0, description="weight of the entropy bonus")
    value_weight: float = Field(default=0.5, ge=0)
    max_grad_norm: float = Field(default=0.5, gt=0, description="global norm of the gradient")
    num_frames: int = Field(default=2, gt=0, description="newest frames that the agent sees")
    hidden: int = Field(default=128, gt=0, description="units of a hidden layer")

    @model_validator(mode="after")
    def _whole_minibatches(self):
        if self.steps_per_update % self.minibatches:
            raise ValueError(
                f"num_envs * rollout_length is {self.steps_per_update}, not divisible by minibatches {self.minibatches}"
            )
        return self

    @property
    def steps_per_update(self) -> int:
        """Environment steps between two updates."""
        return self.num_envs * self.rollout_length

    @property
    def updates(self) -> int:
        """Updates of the whole training, at least 1."""
        return -(-self.steps // self.steps_per_update)


class SACConfig(Branch):
    """The online agent that learns continuous actions from the state of the world: an expert to make data with."""

    steps: int = Field(default=60_000, gt=0, description="environment steps")
    num_envs: int = Field(default=16, gt=0, description="environments played side by side")
    start: int = Field(default=2_000, ge=0, description="first steps, which are random and teach nothing yet")
    updates: int = Field(default=8, gt=0, description="gradient steps behind a step of all environments")
    batch_size: int = Field(default=256, gt=0, description="remembered steps in a gradient step")
    memory: int = Field(default=100_000, gt=0, description="newest steps that are remembered")
    learning_rate: float = Field(default=1e-3, gt=0, description="of Adam, constant")
    discount: float = Field(default=0.99, gt=0, lt=1)
    average: float = Field(default=0.005, gt=0, le=1, description="rate of the running average of the critics")
    entropy: float = Field(
        default=-0.5, description="of the policy, nats a dimension, which its temperature holds; the paper has -1"
    )
    hidden: int = Field(default=128, gt=0, description="units of a hidden layer")

    @property
    def capacity(self) -> int:
        """Steps remembered, whole steps of all environments."""
        return -(-min(self.memory, self.steps) // self.num_envs) * self.num_envs


class OfflineConfig(Branch):
    """Baselines that learn from the data set alone, without a world model."""

    num_frames: int = Field(default=2, gt=0, description="newest frames that they see")
    hidden: int = Field(default=128, gt=0, description="units of a hidden layer")
    batch_size: int = Field(default=256, gt=0, description="decisions of a gradient step")
    learning_rate: float = Field(default=1e-3, gt=0, description="of Adam, constant")
    average: float = Field(default=0.005, gt=0, le=1, description="rate of the running average of weights")
    every: int = Field(default=250, gt=0, description="steps between two looks at held-out decisions")
    patience: int = Field(default=4, gt=0, description="looks without a better one that end cloning")
    max_steps: int = Field(default=20_000, gt=0, description="most steps of cloning")
    value_steps: int = Field(default=6_000, gt=0, description="steps of CQL, and of the values of IQL")
    discount: float = Field(default=0.99, gt=0, le=1)
    cql_alpha: float = Field(default=1.0, ge=0, description="weight of CQL's conservative gap")
    expectile: float = Field(default=0.7, gt=0, lt=1, description="of IQL; 0.5 values the data's policy")
    advantage_scale: float = Field(default=3.0, ge=0, description="of IQL's weights; 0 clones")
    weight_limit: float = Field(default=100.0, ge=1, description="largest of IQL's weights")
