"""The formulas against two counts that know nothing of them: the products in the traced program, and XLA's own."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import EXTRA

from dreamer4.config import PRESETS, Config, load, override
from dreamer4.dreamer import Dreamer
from dreamer4.dynamics.shortcut import Levels, NoisyFrames
from dreamer4.run.sizes import data_spec
from dreamer4.training import build_phase
from dreamer4.training.flops import matrix_parameters, parameters, step_flops
from dreamer4.types import Action, ActionSpec, DataSpec, Trajectory


SPEC = DataSpec((16, 16, 3), ActionSpec((4,)))
TRANSFORMER = {"width": 32, "depth": 6, "heads": 4, "kv_heads": 2, "time_every": 2, "context_length": 6}
CLIP = {"batch_size": 4, "length": 5}


def configure(*, bootstrap_fraction=0.25, **transformer):
    sizes = {**TRANSFORMER, **transformer}
    return Config.model_validate(
        {
            "tokenizer": {
                "patch": [4, 4],
                "num_latents": 4,
                "latent_dim": 8,
                "num_spatial": 4,
                "encoder": sizes,
                "decoder": sizes,
                "time_tokens": "latents",
            },
            "dynamics": {
                "transformer": sizes,
                "num_registers": 2,
                "shortcut": {"k_max": 8, "bootstrap_fraction": bootstrap_fraction},
            },
            "sampler": {"num_steps": 4 if bootstrap_fraction else 8},  # the finest steps need no teachers
            "agent": {"hidden": 16, "mtp_length": 2, "num_bins": 11},
            "imagination": {"horizon": 3},
            "train": {name: CLIP for name in ("tokenizer", "dynamics", "agent", "imagination")},
        }
    )


def shapes(config):
    return eqx.filter_eval_shape(Dreamer.build, config, SPEC, key=jr.key(0))


def bodies(equation):
    """Yields the programs inside an equation: the bodies of loops, branches and calls."""
    for value in equation.params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            part = getattr(part, "jaxpr", part)
            if hasattr(part, "eqns"):
                yield part


def products(jaxpr) -> int:
    """Counts the multiplications and additions of all matrix products, loops included; of branches, the longest."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)
            continue
        inner = [products(body) for body in bodies(equation)]
        if equation.primitive.name == "cond":
            total += max(inner)
        else:
            total += equation.params.get("length", 1) * sum(inner)
    return total


def traced(function, *args) -> int:
    return products(eqx.filter_make_jaxpr(function)(*args)[0].jaxpr)


def real(*shape):
    return jnp.asarray(np.zeros(shape, np.float32))


def whole(*shape):
    return jnp.asarray(np.zeros(shape, np.int32))


@pytest.mark.parametrize(
    "settings", [[], ["tokenizer.kind=patchwise", "tokenizer.num_latents=16", "tokenizer.latent_dim=2"]]
)
def test_encoding_and_decoding_a_frame(settings):
    tokenizer, frames = shapes(override(configure(), settings)).tokenizer, CLIP["length"]
    video, latent = real(frames, *SPEC.frame_shape), real(frames, 4, 8)
    assert traced(lambda t, x: t.encode(x), tokenizer, video) == frames * tokenizer.encoder_flops(frames=frames)
    assert traced(lambda t, x: t.decode(x), tokenizer, latent) == frames * tokenizer.decoder_flops(frames=frames)


@pytest.mark.parametrize("agent", [False, True])
def test_a_pass_of_the_dynamics_over_a_clip_and_frame_by_frame(agent):
    dynamics = shapes(configure()).dynamics.network
    action = Action(whole(1), real(0))
    clip = Action(whole(5, 1), real(5, 0))

    def over_a_clip(model, z, index, action):
        return model(NoisyFrames(z, Levels(index, index), action, jnp.ones(5, bool)), jnp.array(0) if agent else None)

    def frame_by_frame(model, z, index, action, stream):
        frame = NoisyFrames(z, Levels(index, index), action, jnp.array(True))
        return model.step(frame, jnp.array(0) if agent else None, stream)

    stream = eqx.filter_eval_shape(dynamics.init_cache)
    expected = 5 * dynamics.flops(frames=5, agent=agent)
    assert traced(over_a_clip, dynamics, real(5, 4, 8), whole(5), clip) == expected
    expected = dynamics.flops(frames=dynamics.context_length + 1, agent=agent)
    # A frame's attention to itself is two products of elements, which a trace does not show as matrix products.
    counted = traced(frame_by_frame, dynamics, real(4, 8), whole(), action, stream)
    assert counted == pytest.approx(expected, rel=5e-3)


def batch(phase):
    rows, length = CLIP["batch_size"], CLIP["length"]
    flags, row = (jnp.asarray(np.ones(shape, bool)) for shape in ((rows, length), (rows,)))
    return Trajectory(
        frame=whole(rows, length, *SPEC.frame_shape).astype(jnp.uint8) if phase == "tokenizer" else None,
        latent=None if phase == "tokenizer" else real(rows, length, 4, 8),
        action=Action(whole(rows, length, 1), real(rows, length, 0)),
        action_mask=flags,
        reward=real(rows, length),
        is_first=flags,
        is_last=flags,
        is_terminal=flags,
        valid=flags,
        task=whole(rows),
        relevant=row,
        uniform=row,
    )


def gradient_of(phase):
    """Returns the differentiated loss of a phase as a function of agent and batch."""

    def gradient(dreamer, batch):
        trained, frozen = eqx.partition(dreamer, phase.trainable(dreamer))

        def loss(trained):
            terms, _ = phase.loss(eqx.combine(trained, frozen), batch, jnp.ones(()), key=jr.key(0))
            return sum(terms.values())

        return jax.grad(loss)(trained)

    return gradient


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        *((name, "dynamics.shortcut.mode=split") for name in ("tokenizer", "dynamics", "agent", "imagination")),
        *((name, "dynamics.shortcut.mode=drafts") for name in ("dynamics", "agent")),
        *((name, "dynamics.kind=rssm") for name in ("dynamics", "agent", "imagination")),
    ],
)
def test_a_training_step(name, setting):
    config = override(configure(), [setting])
    dreamer = shapes(config)
    counted = traced(gradient_of(build_phase(name, config, SPEC)), dreamer, batch(name))
    # The gradient of the first product's input is never asked for, so a step costs a little less than three passes.
    assert counted == pytest.approx(step_flops(name, dreamer, config), rel=0.005)


def compiled_count(function, *args) -> float:
    arrays, static = eqx.partition(args, lambda leaf: hasattr(leaf, "shape"))
    compiled = jax.jit(lambda arrays: function(*eqx.combine(arrays, static))).lower(arrays).compile()
    analysis = compiled.cost_analysis()
    return (analysis[0] if isinstance(analysis, list) else analysis)["flops"]  # pyright: ignore[reportOptionalSubscript]


@pytest.fixture(scope="module")
def wide():
    """One group of layers and no teachers, for XLA counts the body of a loop once."""
    config = configure(width=128, depth=2, heads=2, kv_heads=2, bootstrap_fraction=0.0)
    return config, shapes(config)


# XLA counts what lies between the products as well.
def test_xla_counts_a_training_step_alike(wide):
    config, dreamer = wide
    counted = compiled_count(gradient_of(build_phase("dynamics", config, SPEC)), dreamer, batch("dynamics"))
    assert 1.0 < counted / step_flops("dynamics", dreamer, config) < 1.2


def test_xla_counts_encoding_decoding_and_passes_alike(wide):
    _, dreamer = wide
    tokenizer, dynamics, frames = dreamer.tokenizer, dreamer.dynamics.network, CLIP["length"]
    counted = compiled_count(lambda t, x: t.encode(x), tokenizer, real(frames, *SPEC.frame_shape))
    assert 1.0 < counted / (frames * tokenizer.encoder_flops(frames=frames)) < 1.2
    counted = compiled_count(lambda t, z: t.decode(z), tokenizer, real(frames, 4, 8))
    assert 1.0 < counted / (frames * tokenizer.decoder_flops(frames=frames)) < 1.2

    clip = Action(whole(frames, 1), real(frames, 0))

    def over_a_clip(model, z, index, action):
        return model(NoisyFrames(z, Levels(index, index), action, jnp.ones(frames, bool)), None)

    def frame_by_frame(model, z, index, action, stream):
        return model.step(NoisyFrames(z, Levels(index, index), action, jnp.array(True)), jnp.array(0), stream)

    counted = compiled_count(over_a_clip, dynamics, real(frames, 4, 8), whole(frames), clip)
    assert 1.0 < counted / (frames * dynamics.flops(frames=frames, agent=False)) < 1.2
    stream = eqx.filter_eval_shape(dynamics.init_cache)
    counted = compiled_count(frame_by_frame, dynamics, real(4, 8), whole(), Action(whole(1), real(0)), stream)
    assert 1.0 < counted / dynamics.flops(frames=dynamics.context_length + 1, agent=True) < 1.2


def transformer_parameters(config, slots) -> int:
    width, hidden, head = config.width, round(config.width * config.mlp_ratio), config.width // config.heads
    attention = 2 * width * width + 2 * width * config.kv_heads * head + 2 * head  # four maps, and two norms of a head
    layer = attention + 3 * width * hidden + 2 * width
    return config.depth * layer + slots * width + width


def causal_parameters(tok, pixels, slots):
    ends = (pixels + 1) * tok.encoder.width + (tok.encoder.width + 1) * tok.latent_dim + tok.encoder.width  # mask token
    ends += (tok.latent_dim + 1) * tok.decoder.width + (tok.decoder.width + 1) * pixels
    return transformer_parameters(tok.encoder, slots) + transformer_parameters(tok.decoder, slots) + ends


def patchwise_parameters(tok, pixels, _):
    width = tok.patchwise.width
    layers = tok.patchwise.layers * (width + 3 * width * 2 * width) + width  # the last norm behind them
    ends = [(pixels, tok.latent_dim), (tok.latent_dim, pixels)]
    return 2 * layers + sum((a + 1) * width + (width + 1) * b for a, b in ends)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_parameters_of_every_preset(preset):
    if preset in EXTRA:
        pytest.importorskip(EXTRA[preset])
    config = load(preset)
    spec = data_spec(config)
    dreamer = eqx.filter_eval_shape(Dreamer.build, config, spec, key=jr.key(0))
    (height, channels), tok, dyn = (spec.frame_shape[0], spec.frame_shape[2]), config.tokenizer, config.dynamics
    pixels = tok.patch[0] * tok.patch[1] * channels
    expected = {"causal": causal_parameters, "patchwise": patchwise_parameters}[tok.kind]
    slots = height * spec.frame_shape[1] // (tok.patch[0] * tok.patch[1]) + tok.num_latents
    assert parameters(dreamer.tokenizer) - parameters(dreamer.tokenizer.stats) == expected(tok, pixels, slots)

    width, k_max, dim = dyn.transformer.width, dyn.shortcut.k_max, tok.spatial_dim
    slots = 2 + tok.num_spatial + dyn.num_registers + dyn.num_agent_tokens
    actions = sum(spec.action.num_classes) + spec.action.continuous_dim
    tables = (1 + actions + spec.num_tasks) * width  # base action, actions, tasks
    tables += (k_max + 1) * (width // 2) + (k_max.bit_length()) * (width - width // 2)  # signal levels, step sizes
    tables += bool(spec.action.present) * spec.action.continuous_dim * width  # dimensions that a task may lack
    ends = (dim + 1) * width + (width + 1) * dim
    assert parameters(dreamer.dynamics) == transformer_parameters(dyn.transformer, slots) + tables + ends


def test_parameters_are_counted():
    dreamer = shapes(configure())
    mlp = dreamer.value.mlp
    width = 32
    assert matrix_parameters(mlp) == width * 16 + 16 * 11
    assert parameters(mlp) == matrix_parameters(mlp) + 16 + 11 + width + 16
