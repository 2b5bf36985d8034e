"""The agents that learn online, by name, and their policies on disk."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax.random as jr

from dreamer4 import checkpoint
from dreamer4.baselines import ppo, sac
from dreamer4.baselines.actor_critic import ActorCritic, NetworkPolicy
from dreamer4.baselines.learned import TrainingRun
from dreamer4.config import PPOConfig, SACConfig
from dreamer4.data import AbstractPolicy
from dreamer4.dreamer import spec_from_json, spec_to_json
from dreamer4.envs import AbstractEnvironment, check_environment
from dreamer4.errors import InputError
from dreamer4.types import DataSpec


class Online(NamedTuple):
    """A kind of agent.

    Attributes:
        settings: class of its branch of a configuration, which bears its name.
        sees: whether it learns from frames.
        check: refuses an environment that it cannot learn in.
        train: as `train_ppo`.
        steps_taken: environment steps of a seed.
        network: what is saved of it, untrained.
        player: makes a policy of that.
    """

    settings: Any
    sees: bool
    check: Callable[[AbstractEnvironment], None]
    train: Callable[..., list[TrainingRun]]
    steps_taken: Callable[[Any], int]
    network: Callable[[Any, DataSpec, AbstractEnvironment], eqx.Module]
    player: Callable[[Any, AbstractEnvironment], AbstractPolicy]


def _frames(config: PPOConfig, spec: DataSpec, env: AbstractEnvironment) -> ActorCritic:
    del env
    return ActorCritic(spec, config.num_frames, config.hidden, key=jr.key(0))


def _state(config: SACConfig, spec: DataSpec, env: AbstractEnvironment) -> sac.Actor:
    return sac.Actor(sac.senses(env), spec.action.continuous_dim, config.hidden, key=jr.key(0))


def _by_frames(network: ActorCritic, env: AbstractEnvironment) -> NetworkPolicy:
    del env
    return NetworkPolicy(network)


ONLINE = {
    "ppo": Online(PPOConfig, True, check_environment, ppo.train_ppo, ppo.steps_taken, _frames, _by_frames),
    "sac": Online(SACConfig, False, sac.check, sac.train_sac, sac.steps_taken, _state, sac.SACPolicy),
}


def save_policy(path: Path, policy: Any, *, kind: str, config: Any, spec: DataSpec, about: dict[str, Any]) -> None:
    """Writes a policy as a checkpoint that describes itself; `load_policy` reads it.

    Args:
        path: the folder to create.
        policy: the policy.
        kind: of `ONLINE`.
        config: what it was trained with.
        spec: frames and actions of its environment.
        about: where it comes from, JSON values.

    Raises:
        InputError: if `path` exists.
    """
    described = {"kind": kind, kind: config.model_dump(mode="json"), "spec": spec_to_json(spec)}
    checkpoint.save(path, policy.network, meta=described | {"about": about})


def is_policy(path: Path) -> bool:
    """Returns whether a checkpoint holds a policy of `save_policy`."""
    return (path / checkpoint.MANIFEST).is_file() and checkpoint.read_meta(path).get("kind") in ONLINE


def load_policy(path: Path, env: AbstractEnvironment) -> tuple[AbstractPolicy, DataSpec, dict[str, Any]]:
    """Reads what `save_policy` wrote: the policy, the specification of its environment, and what is told about it.

    Args:
        path: the checkpoint.
        env: where it will play; one whose state an agent learned from has to be that one.

    Raises:
        InputError: if there is no such checkpoint, or it is damaged.
    """
    meta = checkpoint.read_meta(path)
    if (kind := meta.get("kind")) not in ONLINE:
        raise InputError(f"{path} is no checkpoint of a policy that learned online. Save one with save_policy.")
    online, spec = ONLINE[kind], spec_from_json(meta["spec"])
    template = eqx.filter_eval_shape(online.network, online.settings.model_validate(meta[kind]), spec, env)
    return online.player(checkpoint.load(path, template), env), spec, meta["about"]
