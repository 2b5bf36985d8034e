"""The configuration tree: frozen, typed, closed; plus presets, dotted overrides and the YAML round trip.

A configuration is data. It is checked whole before any device is touched, and no class of the library takes one in its
constructor: the `build` function beside each part reads the branch that concerns it and passes plain sizes on. So a
part can be used without any of this, and this file can be read without knowing any part.

Each field's description states meaning, unit and, where the paper (arXiv 2509.24527) is silent, that the value is ours.
"""

import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    Field,
    PositiveInt,
    ValidationError,
    model_validator,
)

from dreamer4.config.data import Branch, DataConfig, EnvConfig, OfflineConfig, PPOConfig, SACConfig, TaskConfig
from dreamer4.config.dynamics import DynamicsConfig, SamplerConfig, TransformerConfig
from dreamer4.config.presets import PRESETS
from dreamer4.config.presets import preset as read_preset
from dreamer4.config.text import assignment, explain, merge, parse, read, show
from dreamer4.config.training import TrainConfig
from dreamer4.errors import InputError, nearest


class PatchwiseConfig(Branch):
    """The network that codes one patch, and the one that draws it (not in the paper)."""

    width: int = Field(default=128, gt=0, description="features")
    layers: int = Field(default=2, ge=0)


class TokenizerConfig(Branch):
    """The causal tokenizer (paper, section 3.1), made of `encoder` and `decoder`, or that of single patches."""

    kind: str = Field(
        default="causal",
        description="registered tokenizer: causal; patchwise, each patch by itself, as many latents as patches",
    )
    patchwise: PatchwiseConfig = PatchwiseConfig()
    patch: tuple[PositiveInt, PositiveInt] = Field(default=(5, 5), description="height and width of a patch, pixels")
    num_latents: int = Field(default=4, gt=0, description="Nb, latent tokens of a frame")
    latent_dim: int = Field(default=8, gt=0, description="Db, channels of a latent token")
    num_spatial: int = Field(
        default=4, gt=0, description="Nz, tokens the dynamics sees; Nb * Db is regrouped into Nz * Dz"
    )
    encoder: TransformerConfig = TransformerConfig()
    decoder: TransformerConfig = TransformerConfig()
    mask_max: float = Field(
        default=0.9, ge=0, lt=1, description="causal: upper end of the mask rate of an image, drawn from U(0, .)"
    )
    pixel_zero: float = Field(
        default=0.5, ge=0, le=1, description="pixel value that enters the network as zero; 0 suits a black background"
    )
    time_tokens: Literal["all", "latents"] = Field(default="all", description="causal: which attend through time")
    perceptual: Literal["none", "random_features", "lpips", "lpips_vgg"] = Field(
        default="none", description="perceptual term of eq 5; lpips is of AlexNet, and needs the extra fvd"
    )
    perceptual_weight: float = Field(default=0.2, ge=0, description="its weight; 0.2 in eq 5")

    @model_validator(mode="after")
    def _sizes(self):
        if self.num_latents * self.latent_dim % self.num_spatial:
            raise ValueError(
                f"num_latents * latent_dim is {self.num_latents * self.latent_dim}, "
                f"not divisible by num_spatial {self.num_spatial}"
            )
        return self

    @property
    def spatial_dim(self) -> int:
        """Channels of a spatial token, Dz."""
        return self.num_latents * self.latent_dim // self.num_spatial


class ContinuousConfig(Branch):
    """How the policy draws each dimension of a continuous action (not in the paper, which bins the mouse)."""

    kind: str = Field(default="bins", description="registered kind of continuous policy: bins, normal or beta")
    bins: int = Field(
        default=21, ge=2, description="bins: their number over [-1, 1], the outermost centred on the ends"
    )
    least_scale: float = Field(default=0.1, gt=0, lt=1, description="normal: least standard deviation")


class AgentConfig(Branch):
    """Heads on the agent read-out (paper, section 3.3)."""

    hidden: int = Field(default=64, gt=0, description="width of the heads")
    layers: int = Field(default=1, ge=0, description="hidden layers of the heads")
    mtp_length: int = Field(default=8, gt=0, description="L, offsets that policy, reward and continuation predict")
    num_bins: int = Field(default=255, ge=3, description="bins of reward and value, odd")
    bin_limit: float = Field(default=20.0, gt=0, description="bins span symexp(-limit) to symexp(limit)")
    continuous: ContinuousConfig = ContinuousConfig()
    reconstruction: float = Field(
        default=0.0, ge=0, description="weight of reconstructing a frame's latents from its read-out (not in the paper)"
    )
    balanced: bool = Field(
        default=True, description="cloning on relevant rows, world model on uniform rows, when data has both"
    )

    @model_validator(mode="after")
    def _odd(self):
        if self.num_bins % 2 == 0:
            raise ValueError(f"num_bins {self.num_bins} is even; an odd number puts one bin at zero")
        return self


class ObjectiveConfig(Branch):
    """The policy objective."""

    kind: str = Field(default="pmpo", description="registered policy objective")
    alpha: float = Field(default=0.5, ge=0, le=1, description="PMPO: weight of the positive set")
    beta: float = Field(default=0.3, ge=0, description="weight of the KL to the cloned prior")
    temperature: float = Field(default=1.0, gt=0, description="AWR: of advantages in units of their size")


class ImaginationConfig(Branch):
    """Rollouts and returns (eqs 10, 11)."""

    horizon: int = Field(default=16, gt=0, description="H, imagined steps")
    discount: float = Field(default=0.997, gt=0, le=1)
    lambda_: float = Field(default=0.95, ge=0, le=1)
    world: Literal["dream", "real"] = Field(
        default="dream",
        description="where the policy lives; real: in the environment itself, from the same starts, a diagnostic of "
        "what a perfect world model would give and no result of imagination",
    )
    objective: ObjectiveConfig = ObjectiveConfig()

    @property
    def is_imagined(self) -> bool:
        """Whether what the policy becomes is a result of imagination."""
        return self.world == "dream"

    @property
    def result(self) -> str:
        """Name of the policy that comes out, in tables."""
        return "imagination policy" if self.is_imagined else "perfect-world twin, no imagination"


class EvaluationConfig(Branch):
    """Evaluation in the real environment."""

    episodes: int = Field(default=1000, gt=0)
    batch_size: int = Field(default=250, gt=0, description="episodes played side by side")
    temperature: float = Field(default=1.0, gt=0, description="of the sampled policy")
    passes: tuple[int, ...] = Field(default=(1, 2, 4, 8), description="numbers K of passes by which dreams are drawn")
    clips: int = Field(default=200, gt=0, description="dreams that a world model is measured by")
    lpips: bool = Field(default=False, description="measure dreams by LPIPS too; needs the extra fvd")
    fvd: bool = Field(default=False, description="measure dreams by FVD too, 4 CPU seconds a clip; needs the extra fvd")


class RoundsConfig(Branch):
    """Online rounds behind the offline loop; how many there are is said by `train all --rounds`."""

    episodes: int = Field(default=100, gt=1, description="episodes that the newest policy collects for a round")
    share: float = Field(default=0.5, gt=0, description="steps of a phase in a round, relative to the offline ones")


class Config(Branch):
    """A whole run."""

    preset: str = Field(default="catch", description="preset this was derived from")
    seed: int = Field(default=0, ge=0, lt=2**31)
    seeds: int = Field(default=1, gt=0, description="training seeds trained side by side: seed, seed + 1, ...")
    imports: tuple[str, ...] = Field(
        default=(), description="modules that registered parts of this run, as --import names them; never run from here"
    )
    env: EnvConfig = EnvConfig()
    tasks: tuple[TaskConfig, ...] = Field(
        default=(), description="several tasks, each with an environment; env.id is then a name for all of them"
    )
    data: DataConfig = DataConfig()
    ppo: PPOConfig = PPOConfig()
    sac: SACConfig = SACConfig()
    offline: OfflineConfig = OfflineConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    dynamics: DynamicsConfig = DynamicsConfig()
    sampler: SamplerConfig = SamplerConfig()
    agent: AgentConfig = AgentConfig()
    imagination: ImaginationConfig = ImaginationConfig()
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    rounds: RoundsConfig = RoundsConfig()

    @property
    def played(self) -> tuple[TaskConfig, ...]:
        """The tasks, of which `env` alone is one."""
        return self.tasks or (TaskConfig(name=self.env.id, env=self.env),)

    @property
    def described(self) -> dict[str, Any]:
        """What a data set tells about where it comes from."""
        tasks = {task.name: task.env.described for task in self.tasks}
        return {"id": self.env.id, "kwargs": tasks} if tasks else self.env.described

    @model_validator(mode="after")
    def _across(self):
        if len({task.name for task in self.tasks}) < len(self.tasks):
            raise ValueError(f"tasks are named {', '.join(task.name for task in self.tasks)}, expected different names")
        known, named = (task.name for task in self.played), {name for part in self.data.mixture for name in part.tasks}
        if unknown := named - set(known):
            raise ValueError(f"data.mixture names tasks that are not there: {', '.join(sorted(unknown))}")
        if self.agent.mtp_length > self.train.agent.length:
            raise ValueError(
                f"agent.mtp_length {self.agent.mtp_length} reaches beyond the clips of train.agent.length "
                f"{self.train.agent.length}"
            )
        if self.dynamics.is_shortcut:
            self._shortcut()
        return self

    def _shortcut(self):
        shortcut = self.dynamics.shortcut
        k_max, steps = shortcut.k_max, self.sampler.num_steps
        if k_max % steps or steps & (steps - 1):
            raise ValueError(
                f"sampler.num_steps {steps} is not a power of two that divides dynamics.shortcut.k_max {k_max}"
            )
        if shortcut.has_shares:
            self._both_kinds_of_rows()
        clip = self.train.dynamics.length
        if shortcut.chunk_length is not None and clip % shortcut.chunk_length:
            raise ValueError(
                f"train.dynamics.length {clip} is not divisible by "
                f"dynamics.shortcut.chunk_length {shortcut.chunk_length}"
            )

    def _both_kinds_of_rows(self):
        shortcut = self.dynamics.shortcut
        for name in ("dynamics", "agent"):
            if getattr(self.train, name).batch_size == 1 and 0 < shortcut.bootstrap_fraction < 1:
                raise ValueError(
                    f"train.{name}.batch_size 1 has no room for a row that learns from the data and one that learns "
                    f"from teachers (dynamics.shortcut.bootstrap_fraction {shortcut.bootstrap_fraction:g}); use 2 or "
                    "more, or dynamics.shortcut.mode paper, where each row does both"
                )


def load(
    preset: str | None = None,
    file: str | Path | None = None,
    overrides: Sequence[str] = (),
    *,
    env: str | None = None,
    seed: int | None = None,
    seeds: int | None = None,
) -> Config:
    """Builds a configuration: defaults, then the preset, then the file, then `env`, `seed` and `seeds`, then overrides.

    Mappings merge key by key; any other value replaces what it meets. Nothing is adapted to the environment: a preset
    whose patch is larger than the frames of `env` is refused when the tokenizer is built.

    Args:
        preset: a name of `PRESETS`. None: the one the file names, else `catch`.
        file: a YAML file with any part of the tree, such as the `config.yaml` of a run.
        overrides: assignments `a.b=c`; each value is read as YAML, so `[5, 5]`, `null` and `1e-3` mean what they say.
        env: gymnax id, short for `env.id`.
        seed: short for `seed`.
        seeds: short for `seeds`.

    Raises:
        InputError: names every key that is wrong, what it got, and the rule.
    """
    tree = {} if file is None else parse(read(Path(file)), str(file))
    named = tree.pop("preset", None)
    if preset is not None and named is not None and preset != named:
        raise InputError(
            f"preset: got {preset}, but {file} is derived from {named}. Leave the preset out, or use its name."
        )
    start = _preset(next((name for name in (preset, named) if name is not None), "catch"))
    shortcuts = {"env": None if env is None else {"id": env}, "seed": seed, "seeds": seeds}
    tree = merge(start, tree)
    tree = merge(tree, {key: value for key, value in shortcuts.items() if value is not None})
    for text in overrides:
        tree = merge(tree, assignment(text))
    return validate(tree)


def override(config: Config, overrides: Sequence[str]) -> Config:
    """Returns a configuration with assignments `a.b=c` laid over it; raises as `load`."""
    tree = config.model_dump(mode="json")
    for text in overrides:
        tree = merge(tree, assignment(text))
    return validate(tree)


def to_yaml(config: Config) -> str:
    """Writes every key of a configuration; `from_yaml` reads it back equal."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def from_yaml(text: str, source: str = "configuration") -> Config:
    """Reads what `to_yaml` wrote. Missing keys take their defaults; `source` names the text in errors.

    Raises:
        InputError: as for `load`.
    """
    return validate(parse(text, source))


def diff(a: Config, b: Config) -> list[str]:
    """Lists the keys in which two configurations differ, as `key: value in a -> value in b`."""
    return [f"{key}: {show(x)} -> {show(y)}" for (key, x), (_, y) in zip(_leaves(a), _leaves(b), strict=True) if x != y]


def without_hardware(config: Config) -> Config:
    """Returns a configuration without what may change when a run goes on elsewhere: how its work is cut up.

    That is what devices it lies on, where data is read, and what is computed twice to save memory. Batches and results
    are the same; only the order in which sums are taken is not. Nor does it hold which modules were imported.
    """
    tree = config.model_dump(mode="json")
    del tree["train"]["mesh"], tree["data"]["source"], tree["env"]["workers"], tree["imports"]
    for name in ("tokenizer", "dynamics", "agent", "imagination"):
        del tree["train"][name]["accumulate"]
    for transformer in (tree["tokenizer"]["encoder"], tree["tokenizer"]["decoder"], tree["dynamics"]["transformer"]):
        del transformer["remat"]
    return validate(tree)


def require_imports(config: Config) -> Config:
    """Returns a configuration if the modules whose parts it may name are imported.

    They are not imported here: a configuration may come from anyone, and importing runs what it names.

    Raises:
        InputError: names those that are not.
    """
    if missing := [name for name in config.imports if name not in sys.modules]:
        options = " ".join(f"--import {name}" for name in missing)
        raise InputError(
            f"imports: parts of this run are registered by {', '.join(missing)}, not imported yet. If you trust it, "
            f"add {options} to the command, or import it in Python first."
        )
    return config


def _leaves(branch: Branch, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, about in type(branch).model_fields.items():
        value = getattr(branch, name)
        # By the declared type: a branch that may be missing counts as one value, or two trees would not line up.
        if isinstance(about.annotation, type) and issubclass(about.annotation, Branch):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _preset(name: Any) -> dict[str, Any]:
    if not isinstance(name, str) or name not in PRESETS:
        raise InputError(f"preset: got {show(name)}, expected a preset. {nearest(str(name), PRESETS)}")
    return {"preset": name, **read_preset(name)}


def earlier(tree: dict[str, Any]) -> dict[str, Any]:
    """Returns a configuration as an earlier version wrote it, with what was fixed then and is a setting now."""
    if isinstance(tree.get("agent"), dict) and "continuous" not in tree["agent"]:
        tree = {**tree, "agent": {**tree["agent"], "continuous": {"kind": "normal", "least_scale": math.exp(-4)}}}
    return tree


def validate(tree: Any) -> Config:
    """Returns the configuration that nested mappings describe, such as `model_dump` wrote. Missing keys take defaults.

    Raises:
        InputError: as for `load`.
    """
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise InputError("\n".join(explain(dict(e), Config) for e in error.errors())) from None
    except RecursionError:
        raise InputError("configuration: nested too deeply, or a YAML alias that contains itself.") from None
