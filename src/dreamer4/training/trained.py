"""What of an agent is trained by the end of a phase, and agents that start from that part of someone's weights.

`train --from` and `dreamer4 import` both go by this table, so that either route makes the same experiment: what later
phases train is drawn by the seed of the new run, whatever the weights at hand have been through since.
"""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import equinox as eqx

from dreamer4 import checkpoint
from dreamer4.config import Config
from dreamer4.dreamer import Dreamer, weights_of
from dreamer4.training.loop import init_dreamer
from dreamer4.types import DataSpec


_WORLD = ("tokenizer", "dynamics")
_AGENT = (*_WORLD, "policy", "prior", "reward", "continuation", "reconstruction")

# By phase, the parts that it or one before it has trained; the prior is the policy as the agent phase leaves it.
TRAINED = {"tokenizer": ("tokenizer",), "dynamics": _WORLD, "agent": _AGENT, "imagination": (*_AGENT, "value")}


def check_trained(step: Path, phase: str, config: Config, spec: DataSpec) -> None:
    """Refuses a checkpoint as `load_trained` would; no array is read."""
    checkpoint.check(step, _template(step, phase, config, spec), at=weights_of(step))


def load_trained(step: Path, phase: str, config: Config, spec: DataSpec) -> Dreamer:
    """Returns an untrained agent with the parts of a checkpoint that are trained by the end of a phase.

    Args:
        step: a checkpoint, of as many training seeds as the configuration has.
        phase: the phase; the checkpoint may be of a later one.
        config: describes the agent. Its seed draws the other parts, whose sizes in the checkpoint may differ.
        spec: of the data.

    Raises:
        InputError: if the checkpoint is missing or damaged, or a part that is taken from it does not fit.
    """
    parts = TRAINED[phase]
    saved = checkpoint.load(step, _template(step, phase, config, spec), at=weights_of(step))
    taken = [saved[part] for part in parts]
    del saved  # the rest of it, before as much is drawn
    untrained = init_dreamer(config, spec)
    # No reconstruction head is a part to take, too.
    return eqx.tree_at(lambda d: [getattr(d, part) for part in parts], untrained, taken, is_leaf=lambda x: x is None)


def _template(step: Path, phase: str, config: Config, spec: DataSpec) -> OrderedDict[str, Any]:
    """Returns trained parts as the configuration describes them beside other leaves as they are saved.

    All of it is one tree, since each reading of a checkpoint begins with a check of all its files.
    """
    like, at = eqx.filter_eval_shape(init_dreamer, config, spec), weights_of(step)
    # Ordered, for an error names the first leaf that does not fit, and JAX would sort the names.
    tree = OrderedDict((part, getattr(like, part)) for part in TRAINED[phase])
    prefix = f"{at}." if at else ""
    saved = {name.removeprefix(prefix): leaf for name, leaf in checkpoint.read_leaves(step, at=at).items()}
    tree.update({name: leaf for name, leaf in saved.items() if name.partition(".")[0] not in tree})
    return tree
