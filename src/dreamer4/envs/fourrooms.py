"""FourRooms seen from above: gymnax's game, drawn so that the frame tells the whole state.

gymnax has a visual mode of its own, `FourRooms-misc` with `use_visual_obs`. It draws the agent with row and column
exchanged, so that the agent walks through walls, and does not draw the goal.

One lit cell of many is hard to draw for a small network: every cell is learned by itself, and a miss by one costs as
much as any other. A picture out of focus (`blur`) tells the same by several cells that change gradually.
"""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree, UInt8

from dreamer4.envs.gymnax import AbstractGymnaxEnvironment, Game, out_of_focus
from dreamer4.errors import InputError
from dreamer4.types import DataSpec, to_uint8


class FourRoomsPixels(AbstractGymnaxEnvironment):
    """FourRooms as a grid of cells: reward 1 at the goal, which terminates the episode; at most 500 steps.

    The three channels show walls, agent and goal. The map has 13 x 13 cells, a prime number; the outer wall is drawn
    one cell thicker below and to the right, so that patches of 7 x 7 cells, each about one room, divide the frame.
    """

    spec: DataSpec = eqx.field(static=True)
    max_steps: int = eqx.field(static=True)
    blur: float = eqx.field(static=True)
    game: Game

    def __init__(self, *, blur: float = 0.0, params: dict[str, Any] | None = None):
        """Sets the focus and the rules.

        Args:
            blur: how far agent and goal are out of focus, as the standard deviation of a Gaussian, cells, 0 to 4; 0 is
                sharp, one lit cell each. Walls stay sharp, and neither hides nor dims what is behind them.
            params: changes to the gymnax parameters: `resample_init_pos` and `resample_goal_pos` (else start and goal
                are the same in every episode), `fail_prob` (share of moves in a random direction, a third unless
                changed), `max_steps_in_episode`.

        Raises:
            InputError: if the blur lies outside its range, or a parameter is unknown.
        """
        if not 0 <= blur <= 4:
            raise InputError(f"FourRoomsPixels: got blur {blur}, expected 0 <= blur <= 4.")
        self.game = Game("FourRooms-misc", params=params)
        self.max_steps = self.game.max_steps
        self.blur = float(blur)
        self.spec = DataSpec((14, 14, 3), self.game.action_spec)

    def frame(self, observation: PyTree, inner: PyTree) -> UInt8[Array, "H W C"]:
        del observation
        return self.draw(inner.pos, inner.goal)

    def draw(self, agent: Int[Array, "2"], goal: Int[Array, "2"]) -> UInt8[Array, "14 14 3"]:
        """Draws a state.

        Args:
            agent: row and column of the agent.
            goal: row and column of the goal.
        """
        walls = jnp.pad(~jnp.asarray(self.game.inner.env_map, bool), ((0, 1), (0, 1)), constant_values=True)
        rows, columns = jnp.mgrid[:14, :14]
        cells = jnp.stack([(rows == row) & (columns == column) for row, column in (agent, goal)], axis=-1)
        spots = out_of_focus(cells.astype(jnp.float32), self.blur)
        return to_uint8(jnp.concatenate([walls[..., None].astype(jnp.float32), spots], axis=-1))
