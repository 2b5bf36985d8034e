"""Your own environment, attention and dynamics in every command: `--import MODULE` runs the lines that register them.

A module puts what is yours into the registries, under names of your choice; a configuration then names it like any
other part. The environment here is that of `03_own_environment.py` and the attention that of `01_swap_attention.py`;
the world model below is a recurrent cell that guesses the next frame.

    dreamer4 --import my_parts train all --preset tiny --env Corridor --set dynamics.kind=gru

As the commands below show, at sizes at which nothing is learned: collect, look before you train, train, evaluate, write
a report, play. A run remembers which modules it needs, and says so where they are missing; it never imports them by
itself, for a folder may come from anyone.

Run: python examples/05_own_parts.py
"""

import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from dreamer4.config import DynamicsConfig, SamplerConfig
from dreamer4.dynamics import DYNAMICS, AbstractDynamics, ActionEncoder, Flops, Imagined, WorldLoss
from dreamer4.envs import ENVIRONMENTS
from dreamer4.nn import MLP, Embedding
from dreamer4.nn.flops import matrix_parameters
from dreamer4.nn.rows import masked_mean, over_rows
from dreamer4.types import Action, DataSpec, Trajectory


class GRUState(eqx.Module):
    """What the cell remembers, and the task."""

    hidden: Float[Array, " E"]
    task: Int[Array, ""]


class GRUDynamics(AbstractDynamics):
    """A recurrent cell remembers what was seen and done; from that and an action the next frame is guessed."""

    cell: eqx.nn.GRUCell
    actions: ActionEncoder
    guess: MLP
    tasks: Embedding
    shape: tuple[int, int] = eqx.field(static=True)
    agent_dim: int = eqx.field(static=True)
    context_length: int | None = eqx.field(static=True, default=None)

    def __init__(self, shape: tuple[int, int], spec: DataSpec, width: int, *, key: PRNGKeyArray):
        key_cell, key_actions, key_guess, key_tasks = jr.split(key, 4)
        size = shape[0] * shape[1]
        self.shape, self.agent_dim = shape, width
        self.cell = eqx.nn.GRUCell(size + width, width, key=key_cell)
        self.actions = ActionEncoder(spec.action, width, key=key_actions)
        self.guess = MLP(2 * width, width, size, layers=1, key=key_guess)
        self.tasks = Embedding(spec.num_tasks, width, key=key_tasks)

    def init(self, task: Int[Array, ""]) -> GRUState:
        return GRUState(jnp.zeros(self.agent_dim), jnp.asarray(task))

    def observe(
        self, state, latent: Float[Array, "Nz Dz"], action: Action, action_mask: Bool[Array, ""], *, key: PRNGKeyArray
    ):
        acted = self.actions(action, action_mask, state.task)
        return GRUState(self.cell(jnp.concatenate([latent.ravel(), acted]), state.hidden), state.task)

    def _next(self, state, action, action_mask):
        acted = self.actions(action, action_mask, state.task)
        return self.guess(jnp.concatenate([state.hidden, acted])).reshape(self.shape)

    def imagine(
        self,
        state,
        action: Action,
        *,
        action_mask: Bool[Array, ""] | None = None,
        num_steps: int | Int[Array, ""] | None = None,
        key: PRNGKeyArray,
    ):
        known = jnp.array(True) if action_mask is None else action_mask
        latent = self._next(state, action, known)
        following = self.observe(state, latent, action, known, key=key)
        return jax.lax.stop_gradient((Imagined(latent, jnp.zeros(())), following))

    def readout(self, state) -> Float[Array, " E"]:
        return state.hidden + self.tasks(
            state.task
        )  # only the agent sees the task; the world is the same for every one

    def loss(
        self,
        clips: Trajectory,
        progress: Float[Array, ""],
        *,
        with_readout: bool,
        accumulate: int = 1,
        key: PRNGKeyArray,
    ) -> WorldLoss:
        def row(clip, key):
            states, h = self._watch(clip, key=key)
            before, after = jax.tree.map(lambda x: x[:-1], states), jax.tree.map(lambda x: x[1:], clip.action)
            guesses = jax.vmap(self._next)(before, after, clip.action_mask[1:])
            return jnp.square(guesses - clip.latent[1:]).mean(axis=(1, 2)), h

        rows = clips.action_mask.shape[0]
        error, h = over_rows(row, accumulate)(clips, jr.split(key, rows))
        loss = masked_mean(error, clips.valid[:, 1:])
        return WorldLoss(loss, {}, h if with_readout else None, jnp.zeros(rows, bool))

    def flops(self, *, rows: int, length: int, with_readout: bool) -> Flops:
        frame, guess = 2 * matrix_parameters((self.cell, self.guess)), 2 * matrix_parameters(self.guess)
        return Flops(3 * rows * length * frame, length * frame, frame - guess, frame)


def build(
    config: DynamicsConfig,
    sampler: SamplerConfig,
    num_spatial: int,
    spatial_dim: int,
    spec: DataSpec,
    *,
    key: PRNGKeyArray,
) -> GRUDynamics:
    """Builds the dynamics from what a configuration hands over."""
    return GRUDynamics((num_spatial, spatial_dim), spec, config.transformer.width, key=key)


# What --import is for: these lines run before the command does.
import_module("01_swap_attention")  # registers the attention `sink`
ENVIRONMENTS["Corridor"] = import_module("03_own_environment").Corridor
DYNAMICS["gru"] = build

SETTINGS = (
    "--preset tiny --env Corridor --set dynamics.kind=gru --set tokenizer.encoder.attention=sink "
    "--set tokenizer.patch=[2,2]"
)


def dreamer4(line: str, *, until: str | None = None) -> None:
    """Runs a command from the folder of this file, and shows the last of what it says; `until` it says something."""
    print(f"$ dreamer4 {line}")
    command = [sys.executable, "-m", "dreamer4_cli", *line.split()]
    said = []
    with subprocess.Popen(command, cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        assert process.stdout is not None
        for text in process.stdout:
            said.append(text.rstrip())
            if until is not None and until in text:
                process.terminate()
                until = None
    print("\n".join(f"    {text}" for text in [text for text in said if text][-4:]))
    if process.returncode not in (0, 143):  # 143: it was asked to end
        raise SystemExit(f"dreamer4 {line.split()[2]} left with {process.returncode}.")


def main():
    own = "--import 05_own_parts"
    with tempfile.TemporaryDirectory() as folder:
        run, data = f"{folder}/run", f"{folder}/corridor"
        dreamer4(f"{own} collect {SETTINGS} --out {data}")
        dreamer4(f"{own} train all {SETTINGS} --dry-run")
        dreamer4(f"{own} train all {SETTINGS} --set data.path={data} --run {run}")
        dreamer4(f"evaluate {run} {own}")  # it may stand anywhere in the line
        dreamer4(f"{own} report {run}")
        dreamer4(f"{own} play {run} --port 0", until="Play at")


if __name__ == "__main__":
    main()
