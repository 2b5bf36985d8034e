"""The branches of the configuration about the world model: its network, how it is trained, how it draws."""

from typing import Literal

from pydantic import Field, model_validator

from dreamer4.config.data import Branch


class TransformerConfig(Branch):
    """Sizes of one block-causal transformer (paper, section 3.4; all values are ours)."""

    attention: str = Field(
        default="grouped_query", description="registered attention; fused: by cuDNN on a GPU, without a soft cap"
    )
    width: int = Field(default=64, gt=0)
    depth: int = Field(default=4, gt=0, description="layers, space and time together")
    heads: int = Field(default=4, gt=0)
    kv_heads: int = Field(default=4, gt=0, description="key-value heads; fewer than heads is grouped-query attention")
    time_every: int = Field(
        default=4, gt=0, description="every n-th layer attends through time, the others within a frame"
    )
    dense: bool = Field(
        default=False, description="layers through time see every token of earlier frames, not their own slot alone"
    )
    mlp_ratio: float = Field(default=8 / 3, gt=0, description="hidden width of SwiGLU over width")
    soft_cap: float | None = Field(default=50.0, gt=0, description="soft cap of attention logits; None: none")
    context_length: int = Field(default=16, gt=0, description="frames a frame sees, itself included")
    remat: Literal[False, True, "products"] = Field(
        default=False,
        description="recompute activations in the backward pass; products: all but the results of matrix products",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="compute type; parameters stay float32"
    )

    @model_validator(mode="after")
    def _sizes(self):
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by heads {self.heads}")
        if (self.width // self.heads) % 2:
            raise ValueError(
                f"width / heads is {self.width // self.heads}, but rotary embeddings need an even head size"
            )
        if self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is not divisible by kv_heads {self.kv_heads}")
        if self.depth % self.time_every:
            raise ValueError(f"depth {self.depth} is not divisible by time_every {self.time_every}")
        return self


class ShortcutConfig(Branch):
    """How shortcut forcing draws noise levels and step sizes (eqs 4-8)."""

    k_max: int = Field(
        default=64, ge=2, description="finest number of sampling steps, a power of two; the paper gives none"
    )
    noise_scale: float = Field(
        default=1.0, gt=0, description="standard deviation of the noise, with latents of unit scale; the paper has 1"
    )
    mode: Literal["paper", "split", "drafts"] = Field(
        default="split",
        description="eq 4 literally; a fixed share of bootstrap rows; or that, with the frames before each frame at "
        "the context's signal level, as when acting (not in the paper)",
    )
    bootstrap_fraction: float = Field(
        default=0.25,
        ge=0,
        le=1,
        description="split, drafts: share of rows that learn from teachers; 0 is diffusion forcing without shortcuts, "
        "whose passes are all labelled as the finest step",
    )
    bootstrap_start: float = Field(
        default=0.25, ge=0, le=1, description="share of the run before teachers replace the data"
    )
    context_fraction: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="split: share of flow rows whose frames are either context or pure noise (not in the paper)",
    )
    context_keep: float = Field(default=0.5, gt=0, lt=1, description="share of context frames in those rows")
    noise_fraction: float = Field(
        default=0.5, ge=0, le=1, description="drafts: share of the frames of flow rows that are pure noise"
    )
    ramp_floor: float = Field(default=0.1, gt=0, le=1, description="loss weight at pure noise; eq 8 has 0.1")
    image_fraction: float = Field(default=0.3, ge=0, lt=1, description="share of rows trained as separate images")
    chunk_length: int | None = Field(
        default=None, gt=0, description="short clip length within a row; None: no alternation"
    )
    long_fraction: float = Field(default=0.1, ge=0, le=1, description="share of rows that keep the full length")

    @property
    def has_shares(self) -> bool:
        """Whether rows that learn from teachers and rows that do not have shares of a batch."""
        return self.mode != "paper"

    @model_validator(mode="after")
    def _power(self):
        if self.k_max & (self.k_max - 1):
            raise ValueError(f"k_max {self.k_max} is not a power of two")
        return self


class RSSMConfig(Branch):
    """Dreamer 3's recurrent state-space model (arXiv 2301.04104); the sizes are ours."""

    recurrent: int = Field(default=256, gt=0, description="size of the recurrent state")
    blocks: int = Field(default=8, gt=0, description="blocks that the recurrent state is cut in")
    hidden: int = Field(default=128, gt=0, description="units of a hidden layer, and of each input of the recurrence")
    layers: int = Field(default=1, gt=0, description="hidden layers of prior, posterior and decoder")
    draws: int = Field(default=32, gt=0, description="categorical draws of a frame")
    classes: int = Field(default=32, gt=1, description="classes of a draw")
    unimix: float = Field(default=0.01, gt=0, lt=1, description="share of each class's probability that is uniform")
    free_nats: float = Field(default=1.0, ge=0, description="divergence of a frame below which nothing pulls, nats")
    dynamics: float = Field(default=1.0, gt=0, description="weight of the divergence that trains the prior")
    representation: float = Field(default=0.1, ge=0, description="weight of the one that trains the posterior")

    @model_validator(mode="after")
    def _sizes(self):
        if self.recurrent % self.blocks:
            raise ValueError(f"recurrent {self.recurrent} is not divisible by blocks {self.blocks}")
        return self


class DynamicsConfig(Branch):
    """The interactive dynamics model (paper, section 3.2); each kind has settings of its own."""

    kind: str = Field(
        default="transformer",
        description="registered dynamics: transformer, by shortcut forcing; rssm, the world model of Dreamer 3",
    )
    rssm: RSSMConfig = RSSMConfig()
    prediction: Literal["x", "v"] = Field(
        default="x", description="transformer: what the network tells, the clean latents or the velocity towards them"
    )
    loss_space: Literal["x", "v"] = Field(
        default="x", description="transformer: where its error is taken; v divides it by (1 - signal level)^2"
    )
    transformer: TransformerConfig = TransformerConfig()
    num_registers: int = Field(default=2, ge=0, description="register tokens of a frame")
    num_agent_tokens: int = Field(default=1, gt=0, description="agent tokens of a frame")
    shortcut: ShortcutConfig = ShortcutConfig()

    @property
    def is_shortcut(self) -> bool:
        """Whether `transformer` and `shortcut` say what the model is."""
        return self.kind == "transformer"

    @property
    def context_length(self) -> int | None:
        """Frames that the model remembers; None: no bound is set here."""
        return self.transformer.context_length if self.is_shortcut else None

    @property
    def changes(self) -> tuple[float, ...]:
        """Shares of the run at which the loss begins to ask for something else."""
        return (self.shortcut.bootstrap_start,) if self.is_shortcut else ()


class SamplerConfig(Branch):
    """How the next frame is drawn."""

    kind: Literal["shortcut", "flow"] = Field(
        default="shortcut", description="K large steps; or, slow, as many as the grid has"
    )
    num_steps: int = Field(default=4, gt=0, description="K, denoise passes of a frame")
    context_signal: float = Field(default=0.9, gt=0, le=1, description="signal level of past frames, 1 is clean")
