"""Your own data: record episodes, import them, learn their world, dream in it.

An episode is a file. Here it is an `.npz` file of frames and actions, as any recorder can write; videos and folders of
images with their actions in a CSV file are imported the same way (`docs/data.md`), by this function or by

    dreamer4 data import recordings/ --out my_data --action-timing taken-at

The one trap is time: this recorder notes, as most do, the action *taken at* a frame, which leads to the next one. Say
so, and the data set is on the clock of this library, where `action[t]` led to `frame[t]`. The world here is one of a
square that is pushed about between four walls; what an action did can be seen, so a wrong clock could be seen too.

Run: python examples/04_own_dataset.py
"""

import tempfile
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from dreamer4.config import load
from dreamer4.data import DeviceSource, check, import_folder, read_episodes
from dreamer4.imagination import imagine
from dreamer4.training import build_phase, encode_source, init_dreamer, init_state, measure_latents, train


EPISODES, LENGTH, CONTEXT = 300, 10, 2
MOVES = np.array([[-1, 0], [1, 0], [0, -1], [0, 1]])  # up, down, left, right


def record(folder, seed):
    """Pushes a square of 2 x 2 pixels about on 4 x 4 cells and saves what was seen and done, one file per episode."""
    random = np.random.default_rng(seed)
    for number in range(EPISODES):
        place, frames, actions = random.integers(0, 4, 2), [], []
        for _ in range(LENGTH):
            frame = np.zeros((4, 4), np.uint8)
            frame[tuple(place)] = 255
            frames.append(frame.repeat(2, axis=0).repeat(2, axis=1))
            actions.append(random.integers(4))
            place = np.clip(place + MOVES[actions[-1]], 0, 3)
        np.savez_compressed(folder / f"episode{number}.npz", frame=np.array(frames), action=np.array(actions))


def learn(config, source, spec):
    """Trains tokenizer and dynamics; returns the agent, whose heads remain untrained."""
    dreamer, latents = init_dreamer(config, spec), None
    for name in ("tokenizer", "dynamics"):
        phase, settings = build_phase(name, config, spec), getattr(config.train, name)
        state, averaged, told = init_state(phase, dreamer, settings), dreamer, []
        for state, metrics in train(phase, settings, state, source, seed=0, latents=latents):
            averaged = state.ema
            told.append(metrics)
        term = next(iter(phase.weights))
        first, last = (np.mean([metrics[term] for metrics in part]) for part in (told[:5], told[-5:]))
        print(f"   {name}: {term} loss {first:.4f} at first, {last:.4f} after {len(told)} steps")
        dreamer = phase.finish(averaged)
        if name == "tokenizer":
            dreamer, latents = measure_latents(dreamer, lambda d: encode_source(d, source))
    return dreamer


@eqx.filter_jit
def dream(dreamer, rows, key):
    """Dreams clips on from their first frames, under the actions that were taken in them; True where the square is."""

    def one(row, key):
        key_past, key_dream = jr.split(key)
        memory = dreamer.recall(row, jnp.array(CONTEXT), key=key_past)
        actions = jax.tree.map(lambda leaf: leaf[CONTEXT:], row.action)
        rollout = imagine(dreamer, memory, LENGTH - CONTEXT, actions=actions, key=key_dream)
        return dreamer.tokenizer.decode(jnp.concatenate([row.latent[:CONTEXT], rollout.latent]))

    return jax.vmap(one)(rows, jr.split(key, rows.reward.shape[0]))[..., 0] > 0.5


def draw(video):
    """Prints frames side by side, a character for each cell."""
    for row in range(4):
        print("   " + "  ".join("".join("#" if cell else "." for cell in frame[2 * row, ::2]) for frame in video))


def main():
    with tempfile.TemporaryDirectory() as temporary:
        recordings, path = Path(temporary) / "recordings", Path(temporary) / "my_data"
        recordings.mkdir()
        record(recordings, seed=0)
        info = import_folder(recordings, path, timing="taken-at")
        print(f"1. Imported {info.num_episodes} episodes of {info.frame_shape}, {len(info.held_out)} held out;")
        print(f"   classes {info.num_classes}, taken {info.action_counts[0]} times; problems: {check(path) or 'none'}.")
        source, held_out = (DeviceSource.from_episodes(read_episodes(path, split)) for split in ("train", "held_out"))

    print("2. Its world is learned.")
    phases = [f"train.{name}.length={LENGTH}" for name in ("tokenizer", "dynamics")]
    sizes = ["tokenizer.patch=[4, 4]", "train.tokenizer.steps=200", "train.dynamics.steps=350"]
    dreamer = learn(load("catch", overrides=[*phases, *sizes]), source, info.spec)

    print("3. Held-out episodes, dreamt on from two frames under their own actions:")
    index = jnp.arange(held_out.num_episodes)
    rows = held_out.with_latents(encode_source(dreamer, held_out)).episodes(index, LENGTH)
    truth = np.asarray(held_out.episodes(index, LENGTH).frame)[..., 0] > 127
    other = eqx.tree_at(lambda r: r.action.discrete, rows, (rows.action.discrete + 1) % 4)
    dreams = {
        "with the actions taken": dream(dreamer, rows, jr.key(1)),
        "with other actions": dream(dreamer, other, jr.key(1)),
        "last frame repeated": truth[:, CONTEXT - 1 : CONTEXT].repeat(LENGTH, axis=1),
    }
    for name, video in dreams.items():
        exact = (np.asarray(video) == truth)[:, CONTEXT:].all(axis=(2, 3)).mean()
        print(f"   {name:<24}{exact:>6.1%} of the frames exactly right")
    print("   One of them; what happened, and below it the dream (its first two frames are given):")
    draw(truth[0])
    print()
    draw(np.asarray(dreams["with the actions taken"][0]))


if __name__ == "__main__":
    main()
