"""A world model as an environment: it starts where real episodes were, and goes on in dreams.

Every frame behind the start is drawn by the dynamics, its reward is what the reward head expects, and the episode
terminates where the continuation head says so. Nothing real is consulted after the start.
"""

import dataclasses
import math
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray, UInt8

from dreamer4 import checkpoint, data, hub
from dreamer4.config import Config
from dreamer4.data import DeviceSource
from dreamer4.dreamer import Dreamer, Memory, find_checkpoint, read_description
from dreamer4.dynamics import State
from dreamer4.envs import AbstractEnvironment
from dreamer4.errors import InputError, check_whole
from dreamer4.nn import Stream, cast_weights
from dreamer4.precision import in_32_bits
from dreamer4.run.folder import run_of
from dreamer4.sharing import STARTS
from dreamer4.training import encode_source
from dreamer4.types import Action, DataSpec, TimeStep, Trajectory, check_key, to_uint8


_MOST_BYTES = 2**31  # of frames that are read in place to dream on from

# Starts are held with their caches, so that a reset is one look-up; as many as keep that small.
NUM_STARTS = 256


class DreamState(eqx.Module):
    """Where a dream stands.

    Attributes:
        world: the state of the dynamics.
        decoder: the past of the tokenizer's decoder.
        time: actions since the start.
        ended: whether the newest frame is the last of its episode.
    """

    world: State
    decoder: Stream
    time: Int[Array, "*batch"]
    ended: Bool[Array, "*batch"]


class DreamWorld(AbstractEnvironment):
    """The learned world behind the contract of every real one: whatever plays in those plays in this.

    An episode begins with a real frame, after real frames that the model remembers. It ends by termination where the
    predicted continuation is at most one half, and by the limit of `max_steps` actions.

    Attributes:
        dreamer: the agent whose world it is; its policy and value are not used.
        starts: states to start from, stacked.
        frames: the real frames that belong to them.
        levels: the pixel values that occur, ascending, to the nearest of which dreamt frames are rounded; none: frames
            are rounded to 0 to 255.
    """

    dreamer: Dreamer
    starts: DreamState
    frames: UInt8[Array, "N H W C"]
    spec: DataSpec = eqx.field(static=True)
    max_steps: int = eqx.field(static=True)
    levels: tuple[int, ...] = eqx.field(static=True)

    @classmethod
    @in_32_bits
    def from_source(
        cls,
        dreamer: Dreamer,
        source: DeviceSource,
        spec: DataSpec,
        *,
        context_length: int = 1,
        anywhere: bool = False,
        max_steps: int | None = None,
        num_starts: int = NUM_STARTS,
        levels: tuple[int, ...] = (),
        key: PRNGKeyArray,
    ) -> "DreamWorld":
        """Draws starts from real episodes.

        Args:
            dreamer: an agent with trained reward and continuation heads.
            source: real episodes, with frames.
            spec: what they look like.
            context_length: real frames that a dream remembers at its start, at most the dynamics' context.
            anywhere: whether dreams start anywhere in an episode; else after its first `context_length` frames, as the
                real environment does.
            max_steps: limit of the actions in an episode; as many as in the longest real one by default.
            num_starts: how many starts are kept, at most.
            levels: as of the class.
            key: draws the starts, and the noise of their contexts.

        Raises:
            InputError: if a number makes no sense, or no episode is longer than the context.
        """
        check_key("DreamWorld", key)
        longest = dreamer.dynamics.context_length or source.max_length
        check_whole("DreamWorld", context_length=context_length)
        if context_length > longest:
            raise InputError(
                f"DreamWorld: got context_length {context_length}, expected 1 to {longest}, the dynamics' context."
            )
        max_steps = source.max_length - 1 if max_steps is None else max_steps
        check_whole("DreamWorld", max_steps=max_steps, num_starts=num_starts)
        key_starts, key_noise = jr.split(key)
        index, offset = _draw(source, context_length, anywhere, num_starts, key=key_starts)
        given = source.with_latents(encode_source(dreamer, source)).stretches(index, offset, context_length)
        frames = source.stretches(index, offset + context_length - 1, 1).frame
        assert frames is not None
        starts = _recall(dreamer, given, jr.split(key_noise, len(index)))
        return cls(
            dreamer=dreamer,
            starts=starts,
            frames=frames[:, 0],
            spec=spec,
            max_steps=max_steps,
            levels=tuple(levels),
        )

    @classmethod
    @in_32_bits
    def load(
        cls,
        path: str | Path,
        *,
        dataset: str | Path | None = None,
        context_length: int = 1,
        anywhere: bool = False,
        max_steps: int | None = None,
        num_starts: int = NUM_STARTS,
        num_steps: int | None = None,
        task: str | int | None = None,
        member: int = 0,
        seed: int = 0,
    ) -> "DreamWorld":
        """Loads the world of a run, which starts from the episodes that the model was trained on.

        Args:
            path: run, checkpoint or exported folder, as `Dreamer.load` takes it.
            dataset: folder of the episodes to start from; by default those that it was trained on, or that were
                exported with it.
            context_length: real frames that a dream remembers at its start.
            anywhere: whether dreams start anywhere in an episode; else after its first frames.
            max_steps: limit of the actions in an episode; as many as in the longest real one by default.
            num_starts: how many starts are kept, at most.
            num_steps: K, denoise passes of a frame; the agent's own by default.
            task: name or number of the task whose episodes it starts from; None: any.
            member: which of several training seeds.
            seed: draws the starts.

        Raises:
            InputError: if a part is missing, damaged or does not fit, if the heads are not trained yet, or as
                `from_source`.
        """
        check_whole("DreamWorld", num_starts=num_starts)
        step = find_checkpoint(hub.local(path))
        config, spec = read_description(step)
        folder = find_dataset(step, config) if dataset is None else Path(dataset).expanduser()
        info = data.read_info(folder)
        if info.spec != spec:
            raise InputError(f"{folder} holds {info.spec}, but {step} was trained on {spec}. Give its own data set.")
        dreamer = load_agent(step, num_steps=num_steps, member=member)
        episodes = data.of_task(data.read_episodes(folder, "train"), spec, task)
        # Encoding is most of the work, so what no start is drawn from is left out before it.
        chosen = np.random.default_rng(seed).permutation(len(episodes))[: max(1, num_starts)]
        longest = max(episode.length for episode in episodes) - 1
        return cls.from_source(
            dreamer,
            DeviceSource.from_episodes([episodes[i] for i in chosen]),
            spec,
            context_length=context_length,
            anywhere=anywhere,
            max_steps=longest if max_steps is None else max_steps,
            num_starts=num_starts,
            levels=info.frame_levels or (),
            key=jr.key(seed),
        )

    @in_32_bits
    def reset(self, *, key: PRNGKeyArray) -> tuple[DreamState, TimeStep]:
        check_key("DreamWorld.reset", key)
        index = jr.randint(key, (), 0, self.frames.shape[0])
        state = jax.tree.map(lambda x: x[index], self.starts)
        no = jnp.zeros((), bool)
        return state, TimeStep(self.frames[index], jnp.zeros(()), is_first=~no, is_last=no, is_terminal=no)

    @in_32_bits
    def step(self, state: DreamState, action: Action, *, key: PRNGKeyArray) -> tuple[DreamState, TimeStep]:
        def go_on():
            following, frame, reward, terminal = self.advance(state, action, key=key)
            last = terminal | (following.time >= self.max_steps)
            following = dataclasses.replace(following, ended=last)
            return following, TimeStep(frame, reward, jnp.zeros((), bool), last, terminal)

        return jax.lax.cond(state.ended, lambda: self.reset(key=key), go_on)

    @in_32_bits
    def advance(
        self, state: DreamState, action: Action, *, action_mask: Bool[Array, ""] | None = None, key: PRNGKeyArray
    ) -> tuple[DreamState, UInt8[Array, "H W C"], Float[Array, ""], Bool[Array, ""]]:
        """Dreams one frame, without limit and without reset.

        Args:
            state: where the dream stands.
            action: the action.
            action_mask: False where the frame is dreamt without the action; None: True.
            key: randomness of the frame.

        Returns:
            The next state, the frame the action led to, its expected reward, and whether the episode terminated there.
        """
        dreamer = self.dreamer
        memory = Memory(dreamer.tokenizer.init_encoder(), state.world)
        image, _, memory, decoder = dreamer.imagine_frame(
            memory, state.decoder, action, action_mask=action_mask, key=key
        )
        h = dreamer.readout(memory)
        terminal = ~(dreamer.continuation(h).mean() > 0.5)
        following = DreamState(memory.world, decoder, state.time + 1, terminal)
        return following, self._frame(image), dreamer.reward(h).mean(), terminal

    def _frame(self, image: Float[Array, "H W C"]) -> UInt8[Array, "H W C"]:
        if not self.levels:
            return to_uint8(image)
        levels = np.asarray(self.levels)
        middles = jnp.asarray((levels[1:] + levels[:-1]) / 510.0, jnp.float32)
        return jnp.asarray(levels, jnp.uint8)[jnp.sum(image[..., None] > middles, axis=-1)]


def _draw(
    source: DeviceSource, context_length: int, anywhere: bool, count: int, *, key: PRNGKeyArray
) -> tuple[Int[Array, " N"], Int[Array, " N"]]:
    """Returns episodes, and the first frame of a context in each; the last frame of an episode starts nothing."""
    room = np.asarray(source.length) - context_length
    eligible = np.flatnonzero(room > 0)
    if not len(eligible):
        raise InputError(
            f"DreamWorld: got context_length {context_length}, but the longest episode has {source.max_length} frames, "
            "and one must be left to dream. Give a shorter context."
        )
    key_episode, key_offset = jr.split(key)
    index = jr.permutation(key_episode, jnp.asarray(eligible))[:count]
    if not anywhere:
        return index, jnp.zeros_like(index)
    # Several starts of each episode, where there are fewer episodes than starts.
    index = jnp.resize(index, (count,))
    return index, jr.randint(key_offset, (count,), 0, jnp.asarray(room)[index])


@eqx.filter_jit
def _recall(dreamer: Dreamer, given: Trajectory, keys: Key[Array, " N"]) -> DreamState:
    """Returns the states behind clips of latents."""

    def start(row, key):
        memory = dreamer.recall(row, jnp.asarray(row.action_mask.shape[0]), key=key)

        def body(stream, latent):
            return dreamer.tokenizer.decode_step(latent, stream)[1], None

        decoder, _ = jax.lax.scan(body, dreamer.tokenizer.init_decoder(), row.latent)
        zero = jnp.zeros((), jnp.int32)
        return DreamState(memory.world, decoder, zero, jnp.zeros((), bool))

    return jax.vmap(start)(given, keys)


def load_agent(step: Path, *, num_steps: int | None = None, member: int = 0, heads: bool = True) -> Dreamer:
    """Loads an agent that dreams.

    Args:
        step: checkpoint or exported folder.
        num_steps: K, denoise passes of a frame; the agent's own by default.
        member: which of several training seeds.
        heads: whether its dreams must have rewards and ends.

    Raises:
        InputError: if what is needed is not trained yet, or `num_steps` does not divide k_max; and as `Dreamer.load`.
    """
    phase = checkpoint.read_meta(step).get("phase")
    if phase == "tokenizer":
        raise InputError(
            f"{step} is of the tokenizer phase, which cannot dream yet. Run dreamer4 train dynamics first."
        )
    if phase == "dynamics" and heads:
        raise InputError(
            f"{step} is of the {phase} phase, which knows neither rewards nor ends. Train the agent phase first."
        )
    dreamer = cast_weights(Dreamer.load(step, member=member))
    if num_steps is None:
        return dreamer
    return dataclasses.replace(dreamer, dynamics=dreamer.dynamics.with_passes(num_steps))


def find_dataset(step: Path, config: Config) -> Path:
    """Returns the data set that belongs to a checkpoint, as `own_dataset` finds it.

    Raises:
        InputError: if it is not there, or is another one than the checkpoint was trained on.
    """
    path, trained_on = own_dataset(step, config), checkpoint.read_meta(step).get("data")
    if path is None:
        told = f" Its configuration names {config.data.path}." if config.data.path is not None else ""
        raise InputError(
            f"{step}: the episodes that it learned from are not here.{told} Give the data set: --data DIR, or dataset="
            " in Python."
        )
    if path != step / STARTS and trained_on not in (None, data.read_info(path).fingerprint):
        raise InputError(f"{path} is not the data set that {step} was trained on. Restore it, or give a data set.")
    return path


def own_dataset(step: Path, config: Config) -> Path | None:
    """Returns where the data set of a checkpoint is, if it is where it should be.

    That is beside exported weights, where their configuration says, or in the run that the checkpoint lies in.
    """
    run = run_of(step)
    candidates = [step / STARTS]
    candidates += [Path(config.data.path)] if config.data.path is not None else []
    candidates += [run.data] if run is not None and run.is_run else []
    return next((path for path in candidates if (path / "dataset.json").is_file() or _fits(path)), None)


def _fits(path: Path) -> bool:
    """Returns whether data of another format, read in place, is there and can be held in memory."""
    if data.format_of(path) is None:
        return False
    info = data.read_info(path)
    return info.num_frames * math.prod(info.frame_shape) < _MOST_BYTES
