"""What is done between two phases: latents for those that train on them, and an agent as the next should find it."""

import equinox as eqx
from jaxtyping import Array, Float

from dreamer4.config import Config
from dreamer4.data import DeviceSource
from dreamer4.dreamer import Dreamer
from dreamer4.errors import InputError
from dreamer4.training.encoding import encode_source
from dreamer4.training.heads import finish_agent, told
from dreamer4.training.loop import member, stack_members, stream
from dreamer4.training.phases import AbstractPhase, measure_latents
from dreamer4.training.placement import bring_home
from dreamer4.training.state import TrainState


def encode_members(config: Config, dreamer: Dreamer, source: DeviceSource) -> Float[Array, "*seeds N Nz Dz"]:
    """Returns the latents of a data set, by the tokenizer of each training seed.

    Raises:
        InputError: the tokenizer phase did not come to its end.
    """
    agents = [member(dreamer, i, config.seeds) for i in range(config.seeds)]
    if not all(bool(agent.tokenizer.stats.measured) for agent in agents):
        raise InputError("The tokenizer's latent statistics were never measured. Train the tokenizer phase to its end.")
    return stack_members([encode_source(agent, source) for agent in agents])


def finish(
    config: Config,
    phase: AbstractPhase,
    state: TrainState,
    source: DeviceSource,
    latents: Float[Array, "*seeds N Nz Dz"] | None,
    held_out: DeviceSource | None,
) -> tuple[TrainState, list[dict[str, float | list[float]]]]:
    """Returns the last state of a phase, with the averaged weights as the phase leaves them.

    Args:
        config: settings of the run.
        phase: the phase.
        state: its state after the last step.
        source: training episodes.
        latents: theirs, behind the tokenizer phase.
        held_out: held-out episodes, by which the heads of an agent are trained to the end; None: they are not.

    Returns:
        The state, and what `training.heads` tells of its looks at held-out episodes, if it was asked.
    """
    agents, looks, ema = [], [], state.ema if config.train.mesh.size == 1 else bring_home(state.ema)
    for i in range(config.seeds):
        dreamer = member(ema, i, config.seeds)
        if phase.name == "agent" and config.train.heads.patience and held_out is not None:
            encoded, key = source.with_latents(member(latents, i, config.seeds)), stream(config.seed + i, "heads")
            dreamer, seen = finish_agent(dreamer, encoded, held_out, config, key=key)
            looks.append(seen)
        dreamer = phase.finish(dreamer)
        if phase.name == "tokenizer":
            dreamer, _ = measure_latents(dreamer, lambda d: encode_source(d, source))
        agents.append(dreamer)
    return eqx.tree_at(lambda s: s.ema, state, stack_members(agents)), told(looks) if looks else []
