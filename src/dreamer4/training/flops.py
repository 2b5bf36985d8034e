"""How many operations a training step costs, by formula; `nn.flops` says what is counted."""

from dreamer4.config import Config
from dreamer4.dreamer import Dreamer
from dreamer4.nn.flops import matrix_parameters as matrix_parameters
from dreamer4.nn.flops import parameters as parameters
from dreamer4.nn.flops import transformer_flops as transformer_flops


def step_flops(phase: str, dreamer: Dreamer, config: Config) -> int:
    """Returns the operations of one training step of a phase; a differentiated pass costs three forward passes.

    Args:
        phase: name of the phase.
        dreamer: the agent, or its shapes.
        config: its configuration; one training seed is counted.
    """
    settings = getattr(config.train, phase)
    rows, length = settings.batch_size, settings.length
    tokenizer = dreamer.tokenizer
    if phase == "tokenizer":
        return 3 * rows * length * (tokenizer.encoder_flops(frames=length) + tokenizer.decoder_flops(frames=length))
    agent = phase == "agent"
    world = dreamer.dynamics.flops(rows=rows, length=length, with_readout=agent)
    if phase == "imagination":
        states = rows * (config.imagination.horizon + 1)
        dreamt = rows * config.imagination.horizon
        heads = states * 3 * matrix_parameters(dreamer.value)
        heads += dreamt * (5 * matrix_parameters(dreamer.policy) + matrix_parameters(dreamer.reward))
        heads += dreamt * matrix_parameters(dreamer.continuation)
        return rows * world.recall + dreamt * world.imagine + 2 * heads
    heads = (dreamer.policy, dreamer.reward, dreamer.continuation, dreamer.reconstruction) if agent else ()
    return world.loss + 3 * rows * length * 2 * matrix_parameters(heads)
