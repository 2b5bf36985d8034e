"""Players who look into a world, by the names that `data.policy` gives them."""

from collections.abc import Callable
from functools import partial

from dreamer4.baselines.craftax import STYLES, craftax_player
from dreamer4.baselines.mpc import mpc_player
from dreamer4.data import AbstractPolicy
from dreamer4.envs import AbstractEnvironment


# Built for an environment, which they refuse if they cannot look into it.
PLAYERS: dict[str, Callable[[AbstractEnvironment], AbstractPolicy]] = {
    **{style.__name__: partial(craftax_player, i) for i, style in enumerate(STYLES)},
    "mpc": mpc_player,
}
