"""The two worlds of a session, one step at a time, each step one compiled program.

All of it is a function of what goes in: chance comes from the session's seed and the number of the step. So two
sessions of one seed and equal actions see equal frames, whatever others play beside them.
"""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, UInt8

from dreamer4.dreamer import Dreamer, Memory
from dreamer4.envs import AbstractEnvironment, is_sound
from dreamer4.envs.render import render
from dreamer4.nn import Stream
from dreamer4.types import Action, TimeStep, to_float, to_uint8, within_bounds


# Streams of chance within a session.
RECALL, OBSERVE, IMAGINE, ACT, OPEN, PLAY, DOUBT = range(7)


class Clock(eqx.Module):
    """Where a session's chance comes from: its seed, and how many steps it has made."""

    seed: Int[np.ndarray | Array, ""]
    time: Int[np.ndarray | Array, ""]

    @classmethod
    def at(cls, seed: int, time: int) -> "Clock":
        """Returns the clock of a step."""
        return cls(np.asarray(seed, np.int32), np.asarray(time, np.int32))

    def key(self, stream: int) -> PRNGKeyArray:
        """Returns the key of one stream of chance at this step."""
        return jr.fold_in(jr.fold_in(jr.key(self.seed), stream), self.time)


class Mind(eqx.Module):
    """What is carried through a session: the agent's memory, and the past of the decoder that shows its dreams."""

    memory: Memory
    decoder: Stream


class Reading(eqx.Module):
    """What the heads tell at a frame.

    Attributes:
        reward: expected reward that arrived with it.
        continuation: probability that the episode goes on.
        value: expected return from here.
        policy: probability of each class of each component of the next action.
        centre: centre of the continuous part of the next action.
    """

    reward: Float[Array, ""]
    continuation: Float[Array, ""]
    value: Float[Array, ""]
    policy: tuple[Float[Array, " _"], ...]
    centre: Float[Array, " dims"]


class Dreamt(eqx.Module):
    """A dreamt frame, and what warns of it.

    Attributes:
        frame: the frame.
        image: the frame in colours.
        reading: what the heads tell.
        movement: how far its clean estimate moved in the second half of the denoise passes, RMS; 0 for one pass.
        residual: how far its latents move when the frame is encoded again, RMS.
        disagreement: how far they are from those of a second draw with other noise, RMS; NaN if there was none.
    """

    frame: UInt8[Array, "H W C"]
    image: UInt8[Array, "H W 3"]
    reading: Reading
    movement: Float[Array, ""]
    residual: Float[Array, ""]
    disagreement: Float[Array, ""]


class Played(eqx.Module):
    """A frame of the real environment, and whether it is in its place."""

    step: TimeStep
    image: UInt8[Array, "H W 3"]
    sound: Bool[Array, ""]


@eqx.filter_jit
def remember(
    dreamer: Dreamer,
    frame: UInt8[Array | np.ndarray, "T H W C"],
    action: Action,
    action_mask: Bool[Array | np.ndarray, " T"],
    count: Int[Array | np.ndarray, ""],
    task: Int[Array | np.ndarray, ""],
    clock: Clock,
) -> tuple[Mind, Reading]:
    """Returns the mind that has seen the first `count` frames of a clip, at least one, and what it reads in them."""
    tokenizer = dreamer.tokenizer
    video = to_float(jnp.asarray(frame))
    keys = jr.split(clock.key(RECALL), video.shape[0])

    def body(i, mind):
        row = jax.tree.map(lambda leaf: jnp.asarray(leaf)[i], (action, action_mask))
        memory = dreamer.take_in(mind.memory, video[i], *row, key=keys[i])
        latent, _ = tokenizer.encode_step(video[i], mind.memory.encoder)
        _, decoder = tokenizer.decode_step(latent, mind.decoder)
        return Mind(memory, decoder)

    start = Mind(dreamer.init(jnp.asarray(task)), tokenizer.init_decoder())
    mind = jax.lax.fori_loop(0, count, body, start)
    return mind, read(dreamer, mind.memory)


@eqx.filter_jit
def observe(
    dreamer: Dreamer, mind: Mind, frame: UInt8[Array, "H W C"], action: Action, clock: Clock
) -> tuple[Mind, Reading]:
    """Takes in a real frame. The decoder stands still, for nothing is dreamt."""
    known = jnp.array(True)
    memory = dreamer.take_in(mind.memory, to_float(frame), action, known, key=clock.key(OBSERVE))
    return Mind(memory, mind.decoder), read(dreamer, memory)


@eqx.filter_jit
def imagine(
    dreamer: Dreamer,
    mind: Mind,
    action: Action,
    step_index: Int[Array | np.ndarray, ""],
    twice: Bool[Array | np.ndarray, ""],
    clock: Clock,
) -> tuple[Mind, Dreamt]:
    """Dreams the frame that an action leads to, in `2 ** step_index` passes; the same as `Dreamer.imagine_step`.

    With `twice` the frame is drawn a second time, for the comparison alone: what is dreamt stays the same.
    """
    num_steps = jnp.asarray(1, jnp.int32) << jnp.asarray(step_index)
    memory = mind.memory
    how = {"num_steps": num_steps, "key": clock.key(IMAGINE)}
    picture, imagined, following, decoder = dreamer.imagine_frame(memory, mind.decoder, action, **how)
    z = imagined.latent

    def disagree():
        again, _ = dreamer.imagine_step(memory, action, num_steps=num_steps, key=clock.key(DOUBT))
        return _rms(z - again.latent)

    disagreement = jax.lax.cond(twice, disagree, lambda: jnp.full((), jnp.nan, z.dtype))
    picture = jnp.clip(picture, 0.0, 1.0)
    # The encoder sees what is shown, so that a latent which is the code of no frame gives itself away.
    again, encoder = dreamer.tokenizer.encode_step(picture, memory.encoder)
    memory = Memory(encoder, following.world)
    frame = to_uint8(picture)
    warnings = imagined.movement, _rms(again - z), disagreement
    return Mind(memory, decoder), Dreamt(frame, render(frame), read(dreamer, memory), *warnings)


@eqx.filter_jit
def choose(dreamer: Dreamer, mind: Mind, policy: Literal["policy", "prior"], clock: Clock) -> Action:
    """Draws the next action of the trained or of the cloned policy, as a world takes it."""
    return within_bounds(dreamer.act(mind.memory, policy=policy, key=clock.key(ACT)))


@eqx.filter_jit
def open_game(env: AbstractEnvironment, clock: Clock) -> tuple[PyTree, Played]:
    """Begins an episode of the real environment."""
    state, step = env.reset(key=clock.key(OPEN))
    return state, Played(step, render(step.frame), is_sound(step, follows_last=True))


@eqx.filter_jit
def play_game(env: AbstractEnvironment, state: PyTree, action: Action, clock: Clock) -> tuple[PyTree, Played]:
    """Advances the real environment."""
    state, step = env.step(state, action, key=clock.key(PLAY))
    return state, Played(step, render(step.frame), is_sound(step, follows_last=False))


@eqx.filter_jit
def replay_game(
    env: AbstractEnvironment,
    frame: UInt8[Array | np.ndarray, "T H W C"],
    action: Action,
    count: Int[Array | np.ndarray, ""],
    tries: int,
) -> tuple[Bool[Array, ""], PyTree]:
    """Looks for an episode of the real environment that passes through the first `count` frames of a recorded one.

    A recording holds frames and no states. Where chance has few outcomes, some of many episodes is the same by luck.

    Returns:
        Whether there is one among `tries`, and its state at the last of those frames.
    """
    video, actions = jnp.asarray(frame), jax.tree.map(jnp.asarray, action)

    def attempt(key):
        state, step = env.reset(key=key)

        def body(i, carry):
            state, same = carry
            state, step = env.step(state, jax.tree.map(lambda leaf: leaf[i], actions), key=jr.fold_in(key, i))
            return state, same & jnp.all(step.frame == video[i])

        return jax.lax.fori_loop(1, count, body, (state, jnp.all(step.frame == video[0])))

    states, same = jax.vmap(attempt)(jr.split(jr.key(0), tries))
    first = jnp.argmax(same)
    return same[first], jax.tree.map(lambda leaf: leaf[first], states)


@eqx.filter_jit
def in_colours(frame: UInt8[Array | np.ndarray, "H W C"]) -> UInt8[Array, "H W 3"]:
    """Returns a frame as an image in colours."""
    return render(jnp.asarray(frame))


def read(dreamer: Dreamer, memory: Memory) -> Reading:
    """Returns what the heads tell from a memory."""
    h = dreamer.readout(memory)
    chosen = dreamer.decide(memory)
    return Reading(
        dreamer.reward(h).mean(),
        dreamer.continuation(h).mean(),
        dreamer.value(h).mean(),
        tuple(part.mean() for part in chosen.discrete),
        chosen.continuous.mean(),
    )


def _rms(x: Float[Array, "Nz Dz"]) -> Float[Array, ""]:
    return jnp.sqrt(jnp.mean(jnp.square(x)))
