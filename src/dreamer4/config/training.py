"""The part of the configuration that says how the phases are trained, and on what hardware."""

from typing import Literal

from pydantic import Field, model_validator

from dreamer4.config.data import Branch


class OptimizerConfig(Branch):
    """The optimiser of one phase; the paper names none."""

    kind: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.0, ge=0, description="of matrices alone")
    warmup: float = Field(default=0.05, ge=0, lt=1, description="share of the run spent in linear warm-up")
    decay: float = Field(
        default=0.5, ge=0, le=1, description="share of the run, at its end, spent in linear decay to zero"
    )
    clip: float = Field(default=1.0, gt=0, description="global norm of the gradient")

    @model_validator(mode="after")
    def _schedule(self):
        if self.warmup + self.decay > 1:
            raise ValueError(f"warmup {self.warmup} and decay {self.decay} add up to more than the whole run")
        return self


class GuardConfig(Branch):
    """Which steps are left out as faults, and when that is enough (our values)."""

    window: int = Field(default=128, ge=2, description="steps that a step is judged by, once there are half of them")
    sigma: float = Field(
        default=10.0,
        gt=0,
        description="deviations above the window's mean, of loss or gradient, that make a spike; "
        "a deviation below the mean counts as the mean",
    )
    abort_after: int = Field(default=10, gt=0, description="steps left out in a row that end the run")


class PhaseConfig(Branch):
    """One training phase."""

    steps: int = Field(default=1000, gt=0)
    batch_size: int = Field(default=32, gt=0, description="rows; one row is one clip or one rollout")
    length: int = Field(default=16, gt=0, description="frames of a clip")
    accumulate: int = Field(
        default=1,
        gt=0,
        description="parts that a batch is taken in, one after another, to save memory; its gradient stays the same",
    )
    optimizer: OptimizerConfig = OptimizerConfig()
    guard: GuardConfig = GuardConfig()
    ema: float = Field(
        default=0.02, ge=0, lt=1, description="half-life of the weight average, share of the run; 0: none"
    )
    patience: int = Field(
        default=0,
        ge=0,
        description="looks at held-out episodes without a lower loss, after which the phase goes on where its learning "
        "rate falls; 0: it takes all its steps",
    )
    look_every: int = Field(default=250, gt=0, description="steps between two looks")
    ends: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="dynamics: share of the clips that hold the last frame of an episode that terminated (ours)",
    )
    warm_heads: float = Field(
        default=0.0, ge=0, le=1, description="agent: share of the run in which the heads do not train the transformer"
    )
    warm_value: float = Field(
        default=0.0, ge=0, lt=1, description="imagination: share of the run that trains the value alone"
    )


class HeadsConfig(Branch):
    """Policy, reward and continuation heads trained to the end behind the agent phase, on read-outs computed once."""

    patience: int = Field(
        default=4, ge=0, description="looks at held-out episodes without a better one that end it; 0: it is left out"
    )
    every: int = Field(default=250, gt=0, description="steps between two looks")
    looks: int = Field(default=40, gt=0, description="most looks")
    batch_size: int = Field(default=64, gt=0, description="clips of a step")
    length: int = Field(default=8, gt=1, description="frames of a clip")
    learning_rate: float = Field(default=1e-3, gt=0, description="of Adam, constant")


class MeshConfig(Branch):
    """The devices of a run, `data` times `fsdp`. The rows of a batch are split over all of them."""

    data: int = Field(default=1, gt=0, description="devices, or groups of `fsdp` devices, with all of the weights each")
    fsdp: int = Field(
        default=1, gt=0, description="devices that weights, their average and the optimiser's state are split over"
    )

    @property
    def size(self) -> int:
        """Number of devices."""
        return self.data * self.fsdp


class TrainConfig(Branch):
    """The four phases, and the end of the agent's heads."""

    mesh: MeshConfig = MeshConfig()
    tokenizer: PhaseConfig = PhaseConfig()
    dynamics: PhaseConfig = PhaseConfig()
    agent: PhaseConfig = PhaseConfig()
    heads: HeadsConfig = HeadsConfig()
    imagination: PhaseConfig = PhaseConfig()
    log_every: int = Field(default=20, gt=0, description="steps between two lines of metrics")
    save_every: int = Field(default=500, gt=0, description="steps between two checkpoints")
    keep: int = Field(default=2, gt=0, description="checkpoints kept of each phase")
    on_save_error: Literal["stop", "continue"] = Field(
        default="stop",
        description="when a disk is full or closed: stop, or go on; the end of a phase must be saved in any case",
    )
    tracker: Literal["none", "tensorboard", "wandb"] = Field(
        default="none", description="where metrics go besides metrics.jsonl"
    )

    @model_validator(mode="after")
    def _even(self):
        for name in ("tokenizer", "dynamics", "agent", "imagination"):
            phase = getattr(self, name)
            if phase.batch_size % (self.mesh.size * phase.accumulate):
                raise ValueError(
                    f"{name}.batch_size {phase.batch_size} is not divisible by mesh.data {self.mesh.data} * "
                    f"mesh.fsdp {self.mesh.fsdp} * {name}.accumulate {phase.accumulate}"
                )
        if self.imagination.patience:
            raise ValueError("imagination.patience is set, but the loss of a policy does not tell when it is good")
        return self

    @model_validator(mode="after")
    def _own_phase(self):
        for key, owner, what in (
            ("ends", "dynamics", "draws ends of its own"),
            ("warm_heads", "agent", "has heads to warm up"),
            ("warm_value", "imagination", "has a value to warm up"),
        ):
            for name in ("tokenizer", "dynamics", "agent", "imagination"):
                if name != owner and (given := getattr(getattr(self, name), key)):
                    raise ValueError(f"{name}.{key} is {given}, but only the {owner} phase {what}")
        return self
