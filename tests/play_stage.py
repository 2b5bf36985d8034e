"""A stage of the tiny preset, for the tests of play: weights by chance, the real game, two recorded episodes."""

import dataclasses
import functools

import equinox as eqx
import jax.random as jr
from helpers import generic

from dreamer4.config import EnvConfig, load
from dreamer4.dreamer import Dreamer
from dreamer4.envs import GymnaxEnvironment
from dreamer4.serving.play.controls import find_controls
from dreamer4.serving.play.session import Session
from dreamer4.serving.play.stage import Stage


LEFT, STAY, RIGHT = [0], [1], [2]


def act(session, discrete=STAY, *, by="player", num_steps=2):
    return session.step(by, discrete=discrete, continuous=[], num_steps=num_steps)


@functools.cache
def stage() -> Stage:
    config, env = load("tiny"), GymnaxEnvironment("Catch-bsuite")
    dreamer = generic(Dreamer.build, config, env.spec, key=jr.key(0))
    # Its dreams go on until a test says otherwise.
    dreamer = eqx.tree_at(lambda d: d.continuation, dreamer, ending(dreamer.continuation, at=9.0))
    bare = Stage(
        "Catch-bsuite",
        dreamer,
        env.spec,
        "imagination",
        find_controls(env.spec.action, EnvConfig(id="Catch-bsuite"), env),
        env,
        "",
        (),
        {"id": "Catch-bsuite", "kwargs": {}},
    )
    return dataclasses.replace(bare, episodes=(recorded(bare, seed=5), recorded(bare, seed=6)))


def tasks(task: int) -> Stage:
    """Returns the stage as one of two tasks, the second of which has no game."""
    names = (stage().name, "recorded")
    other = {"env": None, "absent": "It was only recorded."} if task else {}
    return dataclasses.replace(stage(), name=names[task], task=task, tasks=names, **other)


def ending(head, *, at):
    """Returns the continuation head with one logit for every frame."""
    weight, bias = head.mlp.readout.weight * 0, head.mlp.readout.bias * 0 + at
    return eqx.tree_at(lambda h: (h.mlp.readout.weight, h.mlp.readout.bias), head, (weight, bias))


def recorded(stage, *, seed):
    """Plays an episode of the real game to its end."""
    session = Session(stage)
    moment = session.start("game", episode=None, seed=seed)
    while not moment.over:
        moment = act(session, [moment.time % 3])
    return session.episodes()["game"]
