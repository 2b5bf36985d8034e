"""The compiled programs whose speed is measured, at the sizes of a preset, on random weights and random data.

Each is known whole before anything is allocated: what it is given, what it hands on from call to call, how many frames
a call yields, and the parts of its floor. `make` and `call` can be evaluated by shape alone, so the memory of a model
that no machine here can hold is told, and refused, in seconds.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import PRNGKeyArray, PyTree

from benchmarks.speed.floor import Part, frame_parts, size, training_part
from dreamer4 import config as configuration
from dreamer4.config import Config
from dreamer4.data import DeviceSource
from dreamer4.dreamer import Dreamer
from dreamer4.dynamics import ShortcutDynamics
from dreamer4.errors import InputError
from dreamer4.imagination import imagine
from dreamer4.nn import Stream, cast_weights
from dreamer4.run.sizes import data_spec
from dreamer4.training import build_optimizer, build_phase, draw_and_step, init_dreamer, init_state
from dreamer4.training.flops import matrix_parameters, parameters, step_flops
from dreamer4.types import Action, ActionSpec, DataSpec, to_uint8


def check_type(option: str, given: str | None) -> None:
    """Raises `InputError` if a type is not one that transformers compute in."""
    if given not in (None, "float32", "bfloat16"):
        raise InputError(f"speed {option}: got {given!r}, expected float32 or bfloat16.")


@dataclass(frozen=True)
class Settings:
    """What is measured at which size; None where the preset decides.

    Attributes:
        preset: name of the preset.
        overrides: assignments `a.b=c` over it.
        batch: rows side by side.
        length: frames of a training clip, or of a dream.
        context: frames that the dynamics sees.
        dtype: compute type of the transformers.
        weights: type in which a dream holds the matrices of the transformers, cast once; None: float32, as trained.
        repeats: timed calls.
    """

    preset: str | None = None
    overrides: tuple[str, ...] = ()
    batch: int | None = None
    length: int | None = None
    context: int | None = None
    dtype: str | None = None
    weights: str | None = None
    repeats: int | None = None

    def config(self, phase: str | None = None) -> Config:
        """Returns the configuration, with the sizes given to a training phase."""
        check_type("--dtype", self.dtype)
        check_type("--weights", self.weights)
        places = ("tokenizer.encoder", "tokenizer.decoder", "dynamics.transformer")
        given = [f"{place}.dtype={self.dtype}" for place in places if self.dtype]
        if self.context:
            given.append(f"dynamics.transformer.context_length={self.context}")
        if phase is not None:
            sizes = {"batch_size": self.batch, "length": self.length}
            given += [f"train.{phase}.{name}={value}" for name, value in sizes.items() if value]
        return configuration.load(self.preset, overrides=[*given, *self.overrides])

    def options(self) -> list[str]:
        """Returns the options of `python -m benchmarks speed` that say the same."""
        named = {name: value for name, value in vars(self).items() if value is not None and name != "overrides"}
        told = [text for name, value in named.items() for text in (f"--{name}", str(value))]
        return told + [text for assignment in self.overrides for text in ("--set", assignment)]


@dataclass(frozen=True)
class Program:
    """One program.

    Attributes:
        make: returns what `call` is given, and its first state; each a dictionary by what it is.
        call: from those, the next state, whose buffers replace those of the state, and a result.
        frames: frames that a call yields.
        parts: for the floor.
        facts: sizes, JSON values.
        other: bytes that are needed besides what `make` returns, by name.
    """

    make: Callable[[], tuple[dict[str, PyTree], dict[str, PyTree]]]
    call: Callable[[dict[str, PyTree], dict[str, PyTree]], tuple[dict[str, PyTree], Any]]
    frames: int
    parts: tuple[Part, ...]
    facts: dict[str, Any]
    other: dict[str, int] = field(default_factory=dict)

    def shapes(self) -> tuple[dict[str, PyTree], dict[str, PyTree]]:
        """Returns the shapes of what `make` makes."""
        return eqx.filter_eval_shape(self.make)

    def memory(self) -> dict[str, int]:
        """Returns the bytes that must lie on the device, by what they are; temporary ones are not among them."""
        given, state = self.shapes()
        return {name: size(tree) for name, tree in (given | state).items()} | self.other


def _shapes(config: Config, spec: DataSpec) -> Dreamer:
    return eqx.filter_eval_shape(init_dreamer, config, spec)


def _random_agent(settings: Settings, config: Config, spec: DataSpec) -> Dreamer:
    dreamer = init_dreamer(config, spec)
    return dreamer if settings.weights is None else cast_weights(dreamer, settings.weights)


def full(memory: PyTree, *, key: PRNGKeyArray) -> PyTree:
    """Returns a memory as long as it can be: every cache is full, and all its numbers are random."""
    leaves, structure = jax.tree.flatten(memory)
    keys = jr.split(key, len(leaves))

    def drawn(leaf, key):
        return jr.normal(key, leaf.shape, leaf.dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    memory = jax.tree.unflatten(structure, [drawn(leaf, key) for leaf, key in zip(leaves, keys, strict=True)])

    def seen(stream):
        if not isinstance(stream, Stream):
            return stream
        count = stream.cache.capacity
        return eqx.tree_at(lambda s: (s.position, s.cache.position), stream, (jnp.asarray(count), jnp.arange(count)))

    return jax.tree.map(seen, memory, is_leaf=lambda node: isinstance(node, Stream))


def over_rows(function: Callable, rows: int) -> Callable:
    """Returns a function for one row, or side by side over a leading axis of every argument."""
    return function if rows == 1 else jax.vmap(function)


def some_actions(spec: ActionSpec, *lead: int, key: PRNGKeyArray) -> Action:
    """Returns random actions with leading axes."""
    classes = jnp.asarray(spec.num_classes, jnp.int32)
    discrete = jr.randint(key, (*lead, len(spec.num_classes)), 0, classes)
    return Action(discrete, jnp.zeros((*lead, spec.continuous_dim)))


def frame(settings: Settings) -> Program:
    """A frame of a dream under given actions, from the past to pixels, as in play without the browser."""
    config, rows = settings.config(), settings.batch or 1
    spec = data_spec(config)

    def make():
        dreamer = _random_agent(settings, config, spec)
        lead = () if rows == 1 else (rows,)

        def begin(key):
            key_memory, key_decoder = jr.split(key)
            return full(dreamer.init(), key=key_memory), full(dreamer.tokenizer.init_decoder(), key=key_decoder)

        keys = jr.key(1) if rows == 1 else jr.split(jr.key(1), rows)
        memory, decoder = over_rows(begin, rows)(keys)
        given = {"agent": dreamer, "actions": some_actions(spec.action, *lead, key=jr.key(2))}
        return given, {"memory": memory, "decoder": decoder, "keys": keys}

    def call(given, state):
        dreamer = given["agent"]

        def dream(memory, decoder, key, action):
            key, key_frame = jr.split(key)
            picture, _, memory, decoder = dreamer.imagine_frame(memory, decoder, action, key=key_frame)
            return {"memory": memory, "decoder": decoder, "keys": key}, to_uint8(picture)

        rows_of = over_rows(dream, rows)
        return rows_of(state["memory"], state["decoder"], state["keys"], given["actions"])

    shapes = _shapes(config, spec)
    parts = frame_parts(shapes, rows, config.sampler.num_steps, decode=True)
    facts = {"batch": rows, "context": config.dynamics.transformer.context_length, "K": config.sampler.num_steps}
    return Program(make, call, rows, parts, facts | _inference_facts(settings, config))


def imagination(settings: Settings) -> Program:
    """Dreams of the policy in latent space, many side by side, with what the heads say of them."""
    config = settings.config()
    rows = settings.batch or config.train.imagination.batch_size
    horizon = settings.length or config.imagination.horizon
    spec = data_spec(config)

    def make():
        dreamer = _random_agent(settings, config, spec)
        keys = jr.split(jr.key(1), rows)
        memory = jax.vmap(lambda key: full(dreamer.init(), key=key))(keys)
        return {"agent": dreamer, "memory": memory}, {"keys": keys}

    def call(given, state):
        def dream(memory, key):
            key, key_dream = jr.split(key)
            return {"keys": key}, imagine(given["agent"], memory, horizon, key=key_dream)

        return jax.vmap(dream)(given["memory"], state["keys"])

    shapes = _shapes(config, spec)
    steps = frame_parts(shapes, rows, config.sampler.num_steps, decode=False)
    parts = tuple(Part(p.operations, p.bytes, p.times * horizon) for p in steps)
    heads = (shapes.policy, shapes.reward, shapes.continuation)
    parts += (Part(rows * horizon * 2 * matrix_parameters(heads), size(heads)),)
    context = config.dynamics.transformer.context_length
    facts = {"batch": rows, "horizon": horizon, "context": context, "K": config.sampler.num_steps}
    return Program(make, call, rows * horizon, parts, facts | _inference_facts(settings, config))


def _inference_facts(settings: Settings, config: Config) -> dict[str, Any]:
    transformer = config.dynamics.transformer
    kinds = {"dtype": transformer.dtype, "attention": transformer.attention, "soft_cap": transformer.soft_cap}
    return {**kinds, "weights": settings.weights or "float32"}


def training(name: str, settings: Settings) -> Program:
    """A training step of a phase, from drawing the batch to the new weights and their average."""
    config = settings.config(name)
    spec, phase_settings = data_spec(config), getattr(config.train, name)
    phase = build_phase(name, config, spec)
    optimizer = build_optimizer(phase_settings.optimizer, phase_settings.steps)
    rows, length = phase_settings.batch_size, phase_settings.length

    def make():
        dreamer = init_dreamer(config, spec)
        state = init_state(phase, dreamer, phase_settings)
        parts = {"weights": state.model, "averages": state.ema, "optimiser": state.opt_state}
        rest = eqx.tree_at(lambda s: (s.model, s.ema, s.opt_state), state, (None, None, None))
        source = some_data(dreamer, spec, rows, length, frames=name == "tokenizer", key=jr.key(2))
        return {"data": source, "keys": jr.key(0)}, parts | {"rest": rest}

    def call(given, state):
        parts = (state["weights"], state["averages"], state["optimiser"])
        whole = eqx.tree_at(
            lambda s: (s.model, s.ema, s.opt_state), state["rest"], parts, is_leaf=lambda node: node is None
        )
        after, metrics = draw_and_step(phase, optimizer, phase_settings, whole, given["data"], given["keys"])
        rest = eqx.tree_at(lambda s: (s.model, s.ema, s.opt_state), after, (None, None, None))
        return {"weights": after.model, "averages": after.ema, "optimiser": after.opt_state, "rest": rest}, metrics

    dreamer = _shapes(config, spec)
    trained = parameters(eqx.filter(dreamer, phase.trainable(dreamer)))
    state = eqx.filter_eval_shape(lambda: init_state(phase, init_dreamer(config, spec), phase_settings))
    transformer = config.tokenizer.encoder if name == "tokenizer" else config.dynamics.transformer
    itemsize = 2 if transformer.dtype == "bfloat16" else 4
    part = training_part(step_flops(name, dreamer, config), trained, size(state.opt_state), itemsize)
    facts = {
        "batch": rows,
        "length": length,
        "trained_parameters": trained,
        "optimizer": phase_settings.optimizer.kind,
        "dtype": transformer.dtype,
        "attention": transformer.attention,
        "soft_cap": transformer.soft_cap,
    }
    if name == "dynamics" and isinstance(dreamer.dynamics, ShortcutDynamics):
        facts["teacher_share"] = dreamer.dynamics.forcing.bootstrap_rows(rows) / rows
    return Program(make, call, rows * length, (part,), facts, {"gradient": 4 * trained})


def some_data(
    dreamer: Dreamer, spec: DataSpec, rows: int, length: int, *, frames: bool, key: PRNGKeyArray
) -> DeviceSource:
    """Returns a random data set of as many episodes as a batch has rows, as frames or as latents."""
    key_content, key_action, key_reward = jr.split(key, 3)
    count, tokenizer = rows * length, dreamer.tokenizer
    pixels = latents = None
    if frames:
        pixels = jr.randint(key_content, (count, *spec.frame_shape), 0, 256, jnp.uint8)
    else:
        latents = jr.normal(key_content, (count, tokenizer.num_spatial, tokenizer.spatial_dim))
    time = jnp.arange(count) % length
    return DeviceSource(
        frame=pixels,
        latent=latents,
        action=some_actions(spec.action, count, key=key_action),
        action_mask=time > 0,
        reward=jr.normal(key_reward, (count,)),
        start=jnp.arange(rows, dtype=jnp.int32) * length,
        length=jnp.full(rows, length, jnp.int32),
        is_terminal=jnp.zeros(rows, bool),
        task=jnp.zeros(rows, jnp.int32),
        relevant=jnp.ones(rows, bool),
        max_length=length,
    )


PROGRAMS: dict[str, Callable[[Settings], Program]] = {
    "frame": frame,
    "imagination": imagination,
    "dynamics": lambda settings: training("dynamics", settings),
    "tokenizer": lambda settings: training("tokenizer", settings),
}
