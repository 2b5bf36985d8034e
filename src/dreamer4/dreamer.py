"""The agent and its world in one Module. The parts meet here and nowhere else.

A `Dreamer` lives frame by frame in one of two worlds. `observe` takes in a real frame, `imagine_step` invents the next
one, and `imagine_frame` shows it; all advance the same `Memory`, from whose read-out `act` chooses. Acting, evaluating
and imagining are therefore short scans over the same methods.
"""

import math
from pathlib import Path
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from dreamer4 import agent as agents
from dreamer4 import checkpoint, dynamics, hub, tokenizer
from dreamer4.agent import ContinuationHead, LatentHead, PolicyHead, ScalarHead
from dreamer4.config import Config, earlier, require_imports, validate
from dreamer4.dynamics import AbstractDynamics, Imagined, State
from dreamer4.errors import InputError, check_whole
from dreamer4.nn import ActionDistribution, Stream
from dreamer4.precision import in_32_bits
from dreamer4.tokenizer import AbstractTokenizer
from dreamer4.types import Action, ActionSpec, DataSpec, TaskSpec, Trajectory, check_action, check_key


PHASES = ("tokenizer", "dynamics", "agent", "imagination")
_TRIES = 10  # to load from a run that goes on


class Memory(eqx.Module):
    """What an agent carries from frame to frame, in the real world and in a dream alike.

    Attributes:
        encoder: the tokenizer's past; it stands still in a dream, whose frames are latents already.
        world: the state of the dynamics, which only that can read; it holds the task too.
    """

    encoder: Stream
    world: State


class Dreamer(eqx.Module):
    """A tokenizer, a dynamics model, and the heads of an agent.

    `prior` is the cloned policy, frozen before imagination training; until then it equals the policy's start.
    `reconstruction` exists where a configuration gives it weight, and serves the agent phase alone.
    """

    tokenizer: AbstractTokenizer
    dynamics: AbstractDynamics
    policy: PolicyHead
    prior: PolicyHead
    reward: ScalarHead
    continuation: ContinuationHead
    value: ScalarHead
    reconstruction: LatentHead | None = None

    @classmethod
    @in_32_bits
    def build(cls, config: Config, spec: DataSpec, *, key: PRNGKeyArray) -> "Dreamer":
        """Builds the untrained agent that a configuration describes, for data of `spec`."""
        check_key("Dreamer.build", key)
        key_tokenizer, key_dynamics, key_heads = jr.split(key, 3)
        tok = tokenizer.build(config.tokenizer, spec, key=key_tokenizer)
        dyn = dynamics.build(config.dynamics, config.sampler, tok.num_spatial, tok.spatial_dim, spec, key=key_dynamics)
        heads = agents.build_heads(config.agent, dyn.agent_dim, spec.action, key=key_heads)
        # A copy, lest the two heads share buffers that a training step donates.
        prior = jax.tree.map(lambda leaf: leaf + 0 if eqx.is_array(leaf) else leaf, heads.policy)
        reconstruction = None
        if config.agent.reconstruction:
            key_latent = jr.fold_in(key_heads, 0)
            reconstruction = LatentHead(dyn.agent_dim, tok.num_spatial, tok.spatial_dim, key=key_latent)
        return cls(tok, dyn, heads.policy, prior, heads.reward, heads.continuation, heads.value, reconstruction)

    @classmethod
    @in_32_bits
    def load(cls, path: str | Path, *, member: int = 0, like: "Dreamer | None" = None) -> "Dreamer":
        """Loads an agent from a checkpoint, which describes itself.

        Args:
            path: a checkpoint `<run>/checkpoints/<phase>/<step>`, a folder of such steps, or a run, of which the newest
                of the latest phase is taken; or an exported folder, or `hf://USER/NAME[@REVISION]`, one on the Hub.
            member: which of several training seeds, if the run trained more than one.
            like: a template, needed only for parts of your own that are not registered.

        Raises:
            InputError: the checkpoint is missing or damaged, or does not fit the template.
        """
        given = hub.local(path)
        for _ in range(_TRIES):
            step = find_checkpoint(given)
            try:
                return cls._load(step, member, like)
            except InputError:
                if step == given or step.exists():
                    raise
                # The run trains, and has removed what was its newest checkpoint; there are newer ones.
        raise InputError(f"Dreamer.load: {path} removes its checkpoints faster than they load. Raise its train.keep.")

    @classmethod
    def _load(cls, step: Path, member: int, like: "Dreamer | None") -> "Dreamer":
        config, spec = read_description(step)
        check_whole("Dreamer.load", 0, member=member)
        if member >= config.seeds:
            raise InputError(
                f"Dreamer.load: got member {member}, but {step} holds {config.seeds} training seeds, "
                f"0 to {config.seeds - 1}."
            )
        template = eqx.filter_eval_shape(cls.build, config, spec, key=jr.key(0)) if like is None else like
        at = weights_of(step)
        if config.seeds == 1:
            return checkpoint.load(step, template, at=at)
        dynamic, static = eqx.partition(template, lambda leaf: hasattr(leaf, "shape"))
        stacked = jax.tree.map(lambda x: jax.ShapeDtypeStruct((config.seeds, *x.shape), x.dtype), dynamic)
        return eqx.combine(jax.tree.map(lambda x: x[member], checkpoint.load(step, stacked, at=at)), static)

    @property
    def spec(self) -> DataSpec:
        """The shape of the frames that it sees, and the components of the actions that its policy takes."""
        policy = eqx.filter_eval_shape(lambda agent: agent.decide(agent.init()), self)
        chosen = eqx.filter_eval_shape(lambda p: p.mode(), policy)
        classes = tuple(part.logits.shape[-1] for part in policy.discrete)
        return DataSpec(self.tokenizer.frame_shape, ActionSpec(classes, chosen.continuous.shape[-1]))

    @in_32_bits
    def init(self, task: int | Int[Array, ""] = 0) -> Memory:
        """Returns the memory of an agent that has seen nothing yet.

        Raises:
            InputError: the agent knows no such task, where the number is known when this is called.
        """
        known = self.dynamics.num_tasks
        if not isinstance(task, Tracer):
            check_whole("Dreamer.init", 0, task=task)
            if known is not None and task >= known:
                raise InputError(f"Dreamer.init: task: got {task}, but the agent has {known}, counted from 0.")
        return Memory(self.tokenizer.init_encoder(), self.dynamics.init(jnp.asarray(task, jnp.int32)))

    @in_32_bits
    def observe(
        self,
        memory: Memory,
        frame: Float[Array, "H W C"],
        action: Action,
        action_mask: Bool[Array, ""],
        *,
        key: PRNGKeyArray,
    ) -> Memory:
        """Takes in a real frame.

        In a loop of one's own, jit it as `eqx.filter_jit(dreamer.observe)`; `jax.jit` takes no methods of a Module.

        Args:
            memory: the past.
            frame: pixels in [0, 1]; `dreamer4.types.to_float` makes them of bytes.
            action: action that led to the frame.
            action_mask: False at the first frame of an episode, or where the action is unknown.
            key: randomness of how the frame is remembered.

        Raises:
            InputError: the frame is of another shape or type than the agent's, or leaves [0, 1], which in a jitted
                function is the error of `equinox.error_if`; or the action has other components or is of no class.
        """
        frame = _as_pixels(frame, self.tokenizer.frame_shape)
        check_action("Dreamer.observe", action, self.spec.action)
        return self.take_in(memory, frame, action, action_mask, key=key)

    @in_32_bits
    def take_in(
        self,
        memory: Memory,
        frame: Float[Array, "H W C"],
        action: Action,
        action_mask: Bool[Array, ""],
        *,
        key: PRNGKeyArray,
    ) -> Memory:
        """Does as `observe` without looking at the frame, for frames that `to_float` made of an environment's."""
        check_key("Dreamer.observe", key)
        latent, encoder = self.tokenizer.encode_step(frame, memory.encoder)
        return Memory(encoder, self.dynamics.observe(memory.world, latent, action, action_mask, key=key))

    def observe_latent(
        self,
        memory: Memory,
        latent: Float[Array, "Nz Dz"],
        action: Action,
        action_mask: Bool[Array, ""],
        *,
        key: PRNGKeyArray,
    ) -> Memory:
        """Takes in a real frame that is encoded already, as `observe` does; the tokenizer's past stands still."""
        return Memory(memory.encoder, self.dynamics.observe(memory.world, latent, action, action_mask, key=key))

    @in_32_bits
    def recall(self, row: Trajectory, count: Int[Array, ""], *, key: PRNGKeyArray) -> Memory:
        """Returns the memory after the first `count` latents of a clip, as if they had been observed in turn.

        Args:
            row: a clip of latents, no longer than the dynamics' context.
            count: frames that happened, at least 1.
            key: randomness of how the frames are remembered.
        """
        if row.latent is None:
            raise InputError("Dreamer.recall: got a clip without latents. Encode its frames first.")
        return Memory(self.tokenizer.init_encoder(), self.dynamics.recall(row, count, key=key))

    def readout(self, memory: Memory) -> Float[Array, " E"]:
        """Returns what the heads read: `h` of the newest frame."""
        return self.dynamics.readout(memory.world)

    @in_32_bits
    def imagine_step(
        self,
        memory: Memory,
        action: Action,
        *,
        action_mask: Bool[Array, ""] | None = None,
        num_steps: int | Int[Array, ""] | None = None,
        key: PRNGKeyArray,
    ) -> tuple[Imagined, Memory]:
        """Invents the frame that an action leads to, as latents.

        Args:
            memory: the past.
            action: the action.
            action_mask: False where the frame is invented without the action; None: True.
            num_steps: K, passes that draw the frame, as `AbstractDynamics.imagine` takes it.
            key: randomness of the frame.

        Returns:
            The frame, and the memory that includes it.

        Raises:
            InputError: the action has other components or is of no class, or the dynamics knows no such K.
        """
        check_key("Dreamer.imagine_step", key)
        check_action("Dreamer.imagine_step", action, self.spec.action)
        known = self.dynamics.passes
        if num_steps is not None and not isinstance(num_steps, Tracer) and num_steps not in known:
            raise InputError(f"Dreamer.imagine_step: num_steps: got {num_steps}, expected one of {known}.")
        imagined, world = self.dynamics.imagine(
            memory.world, action, action_mask=action_mask, num_steps=num_steps, key=key
        )
        return imagined, Memory(memory.encoder, world)

    def imagine_frame(
        self,
        memory: Memory,
        decoder: Stream,
        action: Action,
        *,
        action_mask: Bool[Array, ""] | None = None,
        num_steps: int | Int[Array, ""] | None = None,
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, "H W C"], Imagined, Memory, Stream]:
        """Invents a frame as `imagine_step` does, and shows it.

        Returns:
            Its pixels, not clipped; the frame as latents; and the pasts of agent and decoder that include it.
        """
        imagined, memory = self.imagine_step(memory, action, action_mask=action_mask, num_steps=num_steps, key=key)
        pixels, decoder = self.tokenizer.decode_step(imagined.latent, decoder)
        return pixels, imagined, memory, decoder

    def decide(self, memory: Memory, policy: Literal["policy", "prior"] = "policy") -> ActionDistribution:
        """Returns the distribution of the next action, over the components that the task of the memory has."""
        head = {"policy": self.policy, "prior": self.prior}[policy]
        return head(self.readout(memory), self.dynamics.task_of(memory.world))

    @in_32_bits
    def act(
        self,
        memory: Memory,
        *,
        mode: Literal["sample", "mode"] = "sample",
        policy: Literal["policy", "prior"] = "policy",
        temperature: float | Float[Array, ""] = 1.0,
        key: PRNGKeyArray,
    ) -> Action:
        """Chooses the next action.

        Args:
            memory: the past, with at least one frame.
            mode: draw from the policy, or take its most likely action.
            policy: the trained policy, or the cloned prior.
            temperature: divides the logits of discrete components, scales the spread of continuous ones; at 0 the most
                likely action is taken.
            key: randomness of the draw.

        Raises:
            InputError: there is no such mode or policy, or the temperature is negative or not finite.
        """
        check_key("Dreamer.act", key)
        check_acting(mode=mode, policy=policy, temperature=temperature)
        distribution = self.decide(memory, policy)
        if mode == "mode":
            return distribution.mode()
        warm = jnp.asarray(temperature) > 0
        drawn = distribution.tempered(jnp.where(warm, temperature, 1.0)).sample(key=key)
        return jax.tree.map(lambda a, b: jnp.where(warm, a, b), drawn, distribution.mode())


def check_acting(*, mode: str = "sample", policy: str = "policy", temperature: float | Float[Array, ""] = 1.0) -> None:
    """Refuses what `Dreamer.act` cannot act by; a traced temperature is taken as it is."""
    for name, value, known in (("mode", mode, ("sample", "mode")), ("policy", policy, ("policy", "prior"))):
        if value not in known:
            raise InputError(f"{name}: got {value!r}, expected {' or '.join(map(repr, known))}.")
    if not isinstance(temperature, Tracer) and not 0 <= float(temperature) < math.inf:
        raise InputError(f"temperature: got {temperature}, expected a number from 0 (greedy) on.")


def _as_pixels(frame: Array, shape: tuple[int, int, int]) -> Float[Array, "H W C"]:
    """Returns a frame of pixels in [0, 1], refusing one of another kind."""
    if jnp.shape(frame) != shape:
        raise InputError(
            f"Dreamer.observe: got a frame of shape {jnp.shape(frame)}, expected {shape}: height, width, channels."
        )
    if not jnp.issubdtype(jnp.result_type(frame), jnp.floating):
        raise InputError(
            f"Dreamer.observe: got a frame of {jnp.result_type(frame)}, expected floats in [0, 1]. "
            "Make them of bytes with dreamer4.types.to_float."
        )
    message = "Dreamer.observe: got pixels outside [0, 1]. Divide bytes by 255, as dreamer4.types.to_float does."
    # A decoded frame may leave the range by a trace.
    outside = ~jnp.all((jnp.asarray(frame) >= -0.05) & (jnp.asarray(frame) <= 1.05))
    if isinstance(outside, Tracer):
        return eqx.error_if(frame, outside, message)
    if outside:
        raise InputError(message)
    return jnp.asarray(frame)


def find_checkpoint(path: Path) -> Path:
    """Returns the checkpoint that a path means: itself, the newest step of a phase, or the latest phase of a run.

    Raises:
        InputError: there is none, or all are damaged.
    """
    if checkpoint.is_checkpoint(path):
        return path
    folders = [path / "checkpoints" / phase for phase in reversed(PHASES)] + [path]
    for folder in folders:
        if folder.is_dir() and (step := checkpoint.Checkpoints(folder).latest_valid()) is not None:
            return step
    raise InputError(
        f"No checkpoint at {path}: expected a run, an exported folder, a folder of steps, or a step with "
        f"{checkpoint.MANIFEST}."
    )


def read_description(step: Path) -> tuple[Config, DataSpec]:
    """Returns the configuration and the data specification that a checkpoint was saved with.

    Raises:
        InputError: the checkpoint is missing or damaged, or describes no agent that this version knows.
    """
    meta = checkpoint.read_meta(step)
    try:
        config, spec = validate(earlier(meta["config"])), spec_from_json(meta["spec"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"Checkpoint {step} does not describe an agent: {error}") from None
    return require_imports(config), spec


def weights_of(step: Path) -> str:
    """Returns the path in a checkpoint's tree at which the agent lies: the average of a training state, or all."""
    return "ema" if checkpoint.read_leaves(step, at="ema") else ""


def spec_to_json(spec: DataSpec) -> dict:
    """Returns a data specification as plain JSON."""
    return {
        "frame_shape": list(spec.frame_shape),
        "num_classes": list(spec.action.num_classes),
        "continuous_dim": spec.action.continuous_dim,
        "num_tasks": spec.num_tasks,
        "tasks": [task.model_dump(mode="json") for task in spec.tasks],
    }


def spec_from_json(data: dict) -> DataSpec:
    """Inverts `spec_to_json`."""
    height, width, channels = data["frame_shape"]
    action = ActionSpec(tuple(data["num_classes"]), data["continuous_dim"])
    tasks = tuple(TaskSpec.model_validate(task) for task in data.get("tasks", ()))
    return DataSpec((height, width, channels), action, data["num_tasks"], tasks)
