"""What is done between two phases: latents for those that train on them, and an agent as the next should find it."""

from collections.abc import Callable

import equinox as eqx
from jaxtyping import Array, Float

from dreamer4.config import Config
from dreamer4.data import DeviceSource
from dreamer4.dreamer import Dreamer
from dreamer4.errors import InputError
from dreamer4.tokenizer import LatentStats
from dreamer4.training.encoding import encode_source
from dreamer4.training.heads import finish_agent, told
from dreamer4.training.loop import member, stack_members, stream
from dreamer4.training.phases import AbstractPhase
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
    measure: Callable[[Dreamer], list[LatentStats]],
    given: Callable[[int], tuple[DeviceSource, DeviceSource] | None],
) -> tuple[TrainState, list[dict[str, float | list[float]]]]:
    """Returns the last state of a phase, with the averaged weights as the phase leaves them.

    Args:
        config: settings of the run.
        phase: the phase.
        state: its state after the last step.
        measure: returns the statistics of the raw latents of the training episodes, for each training seed.
        given: returns for the agent of a training seed the training episodes in its latents, and the frames of held-out
            ones, by which its heads are trained to the end; None: they are not.

    Returns:
        The state, and what `training.heads` tells of its looks at held-out episodes, if it was asked.
    """
    agents, looks, ema = [], [], state.ema if config.train.mesh.size == 1 else bring_home(state.ema)
    for i in range(config.seeds):
        dreamer = member(ema, i, config.seeds)
        if phase.name == "agent" and config.train.heads.patience and (sources := given(i)) is not None:
            dreamer, seen = finish_agent(dreamer, *sources, config, key=stream(config.seed + i, "heads"))
            looks.append(seen)
        agents.append(phase.finish(dreamer))
    if phase.name == "tokenizer":
        stats = measure(stack_members(agents))
        agents = [
            eqx.tree_at(lambda d: d.tokenizer.stats, agent, found) for agent, found in zip(agents, stats, strict=True)
        ]
    return eqx.tree_at(lambda s: s.ema, state, stack_members(agents)), told(looks) if looks else []
