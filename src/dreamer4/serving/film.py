"""A film of one dream, under actions of the user's choice."""

import importlib.util
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from dreamer4 import checkpoint, data, media
from dreamer4.data import DeviceSource, Episode, random_action
from dreamer4.dreamer import Memory, find_checkpoint, read_description
from dreamer4.errors import InputError
from dreamer4.files import check_place, write_atomically
from dreamer4.serving.dream import DreamWorld, find_dataset, load_agent
from dreamer4.types import Action, ActionSpec


_SIDE = 192  # pixels of the longer side of a film, about


def write_film(
    path: Path,
    out: Path,
    *,
    actions: str = "policy",
    episode: int = 0,
    context: int = 1,
    length: int | None = None,
    num_steps: int | None = None,
    seed: int = 0,
    fps: float = 6.0,
    dataset: Path | None = None,
    task: str | int | None = None,
) -> str:
    """Dreams on from a held-out episode, writes a film, and returns in a sentence what happened in it.

    Args:
        path: run or checkpoint.
        out: the .gif or .mp4 to create.
        actions: `policy`, `random`, `data`, `none`, or a list as `parse_actions` reads it.
        episode: which held-out episode, or which of all if none is held out.
        context: its first frames, which the dream remembers.
        length: frames to dream at most; None: as many as there are actions, or the longest episode has.
        num_steps: K; None: the agent's own.
        seed: of the dream.
        fps: frames per second.
        dataset: where the episode is from; None: what belongs to the checkpoint.
        task: name or number of the task whose episodes are counted; None: all.

    Raises:
        InputError: if there is no such episode, context, action or length, or the film cannot be written.
    """
    if out.suffix == ".mp4" and importlib.util.find_spec("av") is None:
        raise InputError(f"--out {out}: MP4 needs PyAV. Install dreamer4-eqx[video], or choose a .gif.")
    check_place(out)
    step = find_checkpoint(path)
    config, spec = read_description(step)
    headless = checkpoint.read_meta(step).get("phase") == "dynamics"
    if headless and actions == "policy":
        raise InputError(
            f"--actions policy: {step} is of the dynamics phase, which has no policy yet. Give --actions data, none, "
            "random or a list, or train the agent phase."
        )
    listed = None if actions in ("policy", "random", "data", "none") else parse_actions(actions, spec.action)
    folder = find_dataset(step, config) if dataset is None else dataset
    info = data.read_info(folder)
    if info.spec != spec:
        raise InputError(f"{folder} holds {info.spec}, but {step} was trained on {spec}. Give its own data set.")
    held_out = data.of_task(data.read_episodes(folder, "held_out" if info.held_out else "all"), spec, task)
    if episode >= len(held_out):
        kind = "held-out episodes" if info.held_out else "episodes"
        raise InputError(f"--episode: got {episode}, but {folder} holds {len(held_out)} {kind}, from 0 on.")
    chosen, longest = held_out[episode], max(e.length for e in held_out)
    if context >= chosen.length:
        raise InputError(f"--context: got {context}, but episode {episode} has {chosen.length} frames. Give fewer.")
    agent = load_agent(step, num_steps=num_steps, heads=False)
    world = DreamWorld.from_source(
        agent,
        DeviceSource.from_episodes([chosen]),
        spec,
        context_length=context,
        levels=info.frame_levels or (),
        key=jr.key(seed),
    )
    if actions == "data":
        known = int(np.cumprod(chosen.action_mask[context:]).sum())
        if not known:
            raise InputError(
                f"--actions data: no action is known behind frame {context - 1} of episode {episode}, as in unlabelled "
                "video. Choose other actions, another --episode or another --context."
            )
        rows = slice(context, context + known)
        listed = Action(jnp.asarray(chosen.discrete[rows]), jnp.asarray(chosen.continuous[rows]))
    most = longest - context if listed is None else len(listed.discrete)
    count = most if length is None else length
    if listed is not None and count > most:
        raise InputError(f"--length: got {length}, but there are {most} actions.")
    taken = None if listed is None else jax.tree.map(lambda x: x[:count], listed)
    known = jnp.array(actions != "none")
    dreamt = _film(world, taken, count, actions == "policy", known, key=jr.key(seed))
    frames, rewards, terminal = (np.asarray(x) for x in dreamt)
    ends = np.flatnonzero(terminal & (not headless))
    shown = int(ends[0]) + 1 if len(ends) else count
    film = _pictures(chosen, frames[:shown], context, beside=actions == "data")
    even = film[:, : film.shape[1] // 2 * 2, : film.shape[2] // 2 * 2]  # as MP4 wants it; the last line is ground
    content = media.gif(film, fps=fps) if out.suffix == ".gif" else media.mp4(even, fps=fps)
    write_atomically(out, content)
    if headless:
        return f"{out}: {context} real frames, then {count} dreamt. Rewards and ends are learned in the agent phase."
    end = f"the model sees the end after {shown}" if len(ends) else f"no end within {shown}"
    return f"{out}: {context} real frames, then the dream; {end}, predicted return {rewards[:shown].sum():+.2f}"


@eqx.filter_jit
def _film(world, taken, count, by_policy, known, *, key):
    """Returns frames, expected rewards and terminations of one dream."""
    state = jax.tree.map(lambda x: x[0], world.starts)

    def body(state, step):
        action, key = step
        key_act, key_world = jr.split(key)
        if by_policy:
            memory = Memory(world.dreamer.tokenizer.init_encoder(), state.world)
            action = world.dreamer.act(memory, key=key_act)
        elif action is None:
            action = random_action(world.spec.action, key=key_act)
        state, *seen = world.advance(state, action, action_mask=known, key=key_world)
        return state, tuple(seen)

    return jax.lax.scan(body, state, (taken, jr.split(key, count)))[1]


def _pictures(episode: Episode, dreamt: np.ndarray, context: int, *, beside: bool) -> np.ndarray:
    """Returns real frames framed in grey and dreamt ones in green; or truth, dream and difference side by side."""
    frames = np.concatenate([episode.frame[:context], dreamt])
    scale = media.fitting_scale(frames.shape[1:], _SIDE)
    if beside:
        truth = episode.frame[: len(frames)]
        return media.side_by_side(truth, frames, context_length=context, scale=scale)
    colours = media.frame_colours(frames, frames, context)
    pictures = media.to_rgb(frames, scale=scale)
    rows = [media.film_strip(pictures[t : t + 1], borders=[colour], width=4) for t, colour in enumerate(colours)]
    return np.stack(rows)


def parse_actions(text: str, spec: ActionSpec) -> Action:
    """Returns the actions that a list names, time first.

    Args:
        text: entries separated by commas, one for each frame. An entry is the classes of the discrete components and
            then the numbers of the continuous dimensions, separated by colons; `xN` behind it repeats it.
        spec: the factors of an action.

    Raises:
        InputError: if an entry is not an action of `spec`.
    """
    classes = len(spec.num_classes)
    rows = []
    for entry in text.split(","):
        values, _, times = entry.strip().partition("x")
        parts = values.split(":")
        try:
            discrete = [int(part) for part in parts[:classes]]
            continuous = [float(part) for part in parts[classes:]]
            repeats = int(times or 1)
        except ValueError:
            raise _no_action(entry, spec) from None
        fits = len(parts) == classes + spec.continuous_dim and 1 <= repeats <= 10_000
        if not (
            fits
            and all(0 <= c < n for c, n in zip(discrete, spec.num_classes, strict=True))
            and all(abs(x) <= 1 for x in continuous)
        ):
            raise _no_action(entry, spec)
        rows += [(discrete, continuous)] * repeats
    shape = len(rows)
    return Action(
        jnp.asarray([row[0] for row in rows], jnp.int32).reshape(shape, classes),
        jnp.asarray([row[1] for row in rows], jnp.float32).reshape(shape, spec.continuous_dim),
    )


def _no_action(entry: str, spec: ActionSpec) -> InputError:
    wanted = [f"0 to {n - 1}" for n in spec.num_classes] + ["-1 to 1"] * spec.continuous_dim
    return InputError(
        f"--actions: got {entry.strip()!r}, expected policy, random, data, or entries {' : '.join(wanted)}, each "
        "repeated by xN if you like, separated by commas."
    )
