"""What four virtual devices compute, as JSON: run by `test_placement.py` in a process of its own, as it needs them."""

import json
import os
import sys
from pathlib import Path


os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"

import equinox as eqx  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import jax.random as jr  # noqa: E402
import numpy as np  # noqa: E402
from agent.fakes import TINY, TINY_SPEC, build_tiny, randomised  # noqa: E402
from training.faults import source as made  # noqa: E402

from dreamer4 import checkpoint  # noqa: E402
from dreamer4.config import MeshConfig, PhaseConfig  # noqa: E402
from dreamer4.training import build_phase, init_state, placement, train  # noqa: E402
from dreamer4.training.placement import bring_home, build_mesh, replicate, split_rows, spread  # noqa: E402


CONFIG = PhaseConfig(steps=3, batch_size=8, length=5)
SIZES = ((1, 1), (2, 1), (4, 1), (2, 2))

placement.SMALL = 64  # the model is small as a whole


def mesh_of(size):
    return build_mesh(MeshConfig(data=size[0], fsdp=size[1]))


def batches(data):
    """The same ten batches, as bytes, on each mesh."""

    @eqx.filter_jit
    def draw(data, keys):
        return jax.vmap(lambda key: split_rows(data.sample(8, 5, key=key)))(keys)

    drawn = []
    for size in SIZES:
        mesh = mesh_of(size)
        if mesh is None:
            drawn.append(draw(data, jr.split(jr.key(0), 10)))
        else:
            with jax.set_mesh(mesh):
                drawn.append(draw(*replicate((data, jr.split(jr.key(0), 10)), mesh)))
    assert len(drawn[2].reward.sharding.device_set) == 4
    return [
        [
            np.asarray(leaf).tobytes() == np.asarray(other).tobytes()
            for leaf, other in zip(jax.tree.leaves(batch), jax.tree.leaves(drawn[0]), strict=True)
        ]
        for batch in drawn
    ]


def restores(state, place):
    """SHA-256 of every leaf of a state that was saved and restored on 4, 2, 1 and 4 devices, and how it lay there."""
    found, path = [], place / "0"
    checkpoint.save(path, spread(state, mesh_of((2, 2))), meta={})
    for number, size in enumerate([(2, 1), (1, 1), (1, 4)], start=1):
        mesh = mesh_of(size)
        loaded = checkpoint.load(path, spread(state, mesh))
        weight = loaded.opt_state[1][0].mu.dynamics.network.spatial_in.weight
        shard = weight.addressable_shards[0].data
        found.append([len(weight.sharding.device_set), weight.size // shard.size])
        path = place / str(number)
        checkpoint.save(path, loaded, meta={})
    hashes = [{n: leaf.sha256 for n, leaf in checkpoint.read_manifest(place / str(i)).leaves.items()} for i in range(4)]
    home = bring_home(spread(state, mesh_of((2, 2))))
    back = all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(home), jax.tree.leaves(state), strict=True))
    return {"layouts": found, "equal": [h == hashes[0] for h in hashes], "home": back}


def losses(name, dreamer, data, size):
    """Loss and gradient of three steps of a phase, how often it was compiled, and the last weights."""
    compiled, counts = [], []

    def listen(event, duration_secs, **_):
        if event.endswith("backend_compile_duration"):
            compiled.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    phase, told = build_phase(name, TINY, TINY_SPEC), []
    latents = None if name == "tokenizer" else data.latent
    start = init_state(phase, dreamer, CONFIG)
    training = train(phase, CONFIG, start, data, seed=0, latents=latents, mesh=mesh_of(size))
    for state, metrics in training:  # noqa: B007
        told.append([float(metrics[key]) for key in (*phase.weights, "gradient_norm")])
        counts.append(len(compiled))
    weights = [np.asarray(leaf).reshape(-1) for leaf in jax.tree.leaves(eqx.filter(state.model, eqx.is_inexact_array))]
    shapes = [x.addressable_shards[0].data.size for x in jax.tree.leaves(eqx.filter(state.opt_state, eqx.is_array))]
    return told, np.concatenate(weights), sum(shapes), counts[-1] - counts[0]


if __name__ == "__main__":
    data = made()
    rng = np.random.default_rng(1)
    data = data.with_latents(jnp.asarray(rng.normal(size=(data.num_frames, 2, 4)), jnp.float32))
    tiny = randomised(build_tiny())
    phase = build_phase("dynamics", TINY, TINY_SPEC)
    one, split = (losses("dynamics", tiny, data, size) for size in ((1, 1), (2, 2)))
    result = {
        "batches": batches(data),
        "restores": restores(init_state(phase, tiny, CONFIG), Path(sys.argv[1])),
        "losses": [one[0], split[0]],
        "weights": float(np.abs(one[1] - split[1]).max()),
        "optimiser": [one[2], split[2]],
        "compiled": split[3],
    }
    print(json.dumps(result))
