"""Training, generation and imagination on the work that other implementations were timed on, as one line of JSON.

    python -m benchmarks.matched --config small --threads 1

Frames of 64x64x3 in patches of 8, 16 latents of 16 channels, 4 actions, four denoise passes and a commit pass a frame,
float32 on the CPU. Generation starts from the latents of a context and ends with pixels; taking the context in is part
of its time. Speeds are medians over wall time; `cpu` repeats them over processor time, which with one thread is what a
quiet machine would take. Nothing is read from a compilation cache.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import time


SIZES = {
    "small": {"width": 128, "depth": 4, "heads": 4, "rows": 8, "length": 16, "context": 8},
    "medium": {"width": 256, "depth": 8, "heads": 8, "rows": 4, "length": 32, "context": 16},
    "tiny": {"width": 16, "depth": 4, "heads": 2, "rows": 2, "length": 4, "context": 2},  # proves the script
}
NUM_ACTIONS, GENERATED, LONG = 4, 16, 64


def fix_threads(threads: int) -> None:
    """Leaves so many processors to this process; to be called before JAX or NumPy is imported."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])
    flag = "--xla_cpu_multi_thread_eigen=false" if threads == 1 else ""
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"


def configuration(size: dict):
    """Returns the library's configuration of a size: plain attention, every fourth layer through time."""
    from dreamer4.config import Config

    transformer = {
        "width": size["width"],
        "depth": size["depth"],
        "heads": size["heads"],
        "kv_heads": size["heads"],
        "time_every": 4,
        "mlp_ratio": 4.0,
        "soft_cap": None,
        "context_length": size["length"],
    }
    clip = {"steps": 1000, "batch_size": size["rows"], "length": size["length"]}
    by_row = {**clip, "accumulate": size["rows"]}  # what a row needs stays in the cache of the processor
    return Config.model_validate(
        {
            "tokenizer": {
                "patch": [8, 8],
                "num_latents": 16,
                "latent_dim": 16,
                "num_spatial": 16,
                "time_tokens": "latents",
                "encoder": transformer,
                "decoder": transformer,
            },
            "dynamics": {
                "transformer": transformer,
                "num_registers": 4,
                "shortcut": {"bootstrap_fraction": 0.25, "bootstrap_start": 0.0},
            },
            "sampler": {"num_steps": 4},
            "agent": {"hidden": size["width"], "mtp_length": min(8, size["length"])},
            "imagination": {"horizon": size["context"]},
            "train": {
                "tokenizer": by_row,
                "dynamics": by_row,
                "agent": clip,
                "imagination": {**clip, "length": size["context"]},
            },
        }
    )


def measure(call, repeats: int) -> tuple[float, float]:
    """Returns median wall and processor seconds of a call, after one that is not counted."""
    import jax

    jax.block_until_ready(call())
    wall, processor = [], []
    for _ in range(repeats):
        begin, busy = time.perf_counter(), time.process_time()
        jax.block_until_ready(call())
        wall.append(time.perf_counter() - begin)
        processor.append(time.process_time() - busy)
    return statistics.median(wall), statistics.median(processor)


def compiled_flops(compiled) -> float:
    """Returns what XLA counts in a compiled program. It counts the body of a loop once."""
    analysis = compiled.cost_analysis()
    return (analysis[0] if isinstance(analysis, list) else analysis)["flops"]


def main() -> None:
    """Measures one configuration and prints one line."""
    begin = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=SIZES, default="small")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=10, help="timed calls of each kind")
    options = parser.parse_args()
    fix_threads(options.threads)

    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import jax.random as jr
    import numpy as np

    from dreamer4 import allocator
    from dreamer4.data import DeviceSource
    from dreamer4.data.episode import Episode
    from dreamer4.run.facts import source_commit
    from dreamer4.training import build_optimizer, build_phase, draw_and_step, init_dreamer, init_state
    from dreamer4.training.flops import parameters, step_flops
    from dreamer4.types import Action, ActionSpec, DataSpec

    allocator.keep_freed()  # as the command line does

    size = SIZES[options.config]
    config = configuration(size)
    spec = DataSpec((64, 64, 3), ActionSpec((NUM_ACTIONS,)))
    dreamer = init_dreamer(config, spec)
    random = np.random.default_rng(0)

    def episode(length):
        return Episode(
            frame=random.integers(0, 256, (length, *spec.frame_shape), np.uint8),
            discrete=random.integers(0, NUM_ACTIONS, (length, 1), np.int32),
            continuous=np.zeros((length, 0), np.float32),
            action_mask=np.arange(length) > 0,
            reward=random.normal(size=length).astype(np.float32),
            is_terminal=False,
        )

    videos = DeviceSource.from_episodes([episode(3 * size["length"]) for _ in range(8)])
    latent_shape = (videos.num_frames, dreamer.tokenizer.num_spatial, dreamer.tokenizer.spatial_dim)
    latents = videos.with_latents(jnp.asarray(random.normal(size=latent_shape), jnp.float32))
    wall, processor, result = {}, {}, {}

    def step(name, source, frames):
        phase, settings = build_phase(name, config, spec), getattr(config.train, name)
        optimizer = build_optimizer(settings.optimizer, settings.steps)
        state = init_state(phase, dreamer, settings)

        def take(given, state):
            return draw_and_step(phase, optimizer, settings, state, *given)

        jitted = eqx.filter_jit(take, donate="all-except-first")
        compiled = jitted.lower((source, jr.key(0)), state).compile()

        def call():
            nonlocal state
            state, metrics = compiled((source, jr.key(0)), state)
            return metrics, state.step

        jax.block_until_ready(call())
        first = time.perf_counter() - begin
        seconds, busy = measure(call, options.repeats)
        short = {"tokenizer": "tok", "dynamics": "dyn", "imagination": "rl"}[name]
        wall[f"{short}_step_frames_per_s"] = frames / seconds
        processor[f"{short}_step_frames_per_s"] = frames / busy
        operations = step_flops(name, dreamer, config)
        result[f"{short}_gflop_formula"] = operations / 1e9
        result[f"{short}_gflop_cost_analysis"] = compiled_flops(compiled.compiled) / 1e9
        result[f"{short}_gflops"] = operations / seconds / 1e9
        result[f"{short}_gflops_cpu"] = operations / busy / 1e9
        return first

    frames = size["rows"] * size["length"]
    seconds_to_first_step = step("dynamics", latents, frames)
    step("tokenizer", videos, frames)
    step("imagination", latents, size["rows"] * config.imagination.horizon)

    def generate(dreamer, row, actions, key):
        tokenizer, count = dreamer.tokenizer, row.action_mask.shape[0]
        key_recall, key_dream = jr.split(key)
        memory = dreamer.recall(row, jnp.asarray(count), key=key_recall)

        def see(decoder, latent):
            return tokenizer.decode_step(latent, decoder)[1], None

        decoder, _ = jax.lax.scan(see, tokenizer.init_decoder(), row.latent)

        def dream(carry, step):
            memory, decoder = carry
            frame, _, memory, decoder = dreamer.imagine_frame(memory, decoder, step[0], key=step[1])
            return (memory, decoder), frame

        length = actions.discrete.shape[0]
        return jax.lax.scan(dream, (memory, decoder), (actions, jr.split(key_dream, length)))[1]

    for name, batch, length in (("gen_b1", 1, GENERATED), ("gen_b16", 16, GENERATED), ("gen_long_b1", 1, LONG)):
        rows = latents.sample(batch, size["context"], key=jr.key(1))
        discrete = jr.randint(jr.key(2), (batch, length, 1), 0, NUM_ACTIONS)
        actions = Action(discrete, jnp.zeros((batch, length, 0)))
        draw = eqx.filter_jit(eqx.filter_vmap(generate, in_axes=(None, 0, 0, 0)))
        keys = jr.split(jr.key(3), batch)
        seconds, busy = measure(lambda: draw(dreamer, rows, actions, keys), options.repeats)  # noqa: B023
        wall[f"{name}_frames_per_s"] = batch * length / seconds
        processor[f"{name}_frames_per_s"] = batch * length / busy

    side = 2048
    matrix = random.normal(size=(side, side)).astype(np.float32)
    on_device = jnp.asarray(matrix)
    square = jax.jit(lambda x: x @ x)
    for name, product in (("numpy", lambda: matrix @ matrix), ("xla", lambda: square(on_device))):
        seconds, busy = measure(product, 5)
        result[f"matmul_gflops_{name}"] = 2 * side**3 / seconds / 1e9
        result[f"matmul_gflops_{name}_cpu"] = 2 * side**3 / busy / 1e9

    unit = 1 if sys.platform == "darwin" else 1024
    facts = {
        "implementation": "dreamer4-eqx",
        "config": options.config,
        "threads": options.threads,
        **{name: round(value, 2) for name, value in wall.items()},
        "cpu": {name: round(value, 2) for name, value in processor.items()},
        "tokenizer_parameters": parameters(dreamer.tokenizer),
        "dynamics_parameters": parameters(dreamer.dynamics),
        **{name: round(value, 3) for name, value in result.items()},
        "peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, 3),
        "seconds_to_first_step": round(seconds_to_first_step, 2),
        "rl": {"rows": size["rows"], "context": size["context"], "horizon": config.imagination.horizon},
        "repeats": options.repeats,
        "device": platform.processor() or platform.machine(),
        "xla_flags": os.environ["XLA_FLAGS"],
        "versions": {"python": platform.python_version(), "jax": jax.__version__, "equinox": eqx.__version__},
        "commit": source_commit(),
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
