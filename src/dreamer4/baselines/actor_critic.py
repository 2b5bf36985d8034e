"""The network of a model-free agent, and the policy that plays it: the last few frames in, action and value out."""

import math
from collections.abc import Callable
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, UInt8

from dreamer4.data import AbstractPolicy
from dreamer4.nn import ActionDistribution, Categorical, Linear, Normal
from dreamer4.types import Action, DataSpec, TimeStep, to_float, within_bounds


# A frame of at most this many values is read by a multilayer perceptron, a larger one by convolutions.
FLAT_VALUES = 64
# Convolutions halve a frame until its longer side has at most this many pixels.
_LONGEST_SIDE = 12
_CHANNELS = 16


def orthogonal(in_size: int, out_size: int, gain: float, *, key: PRNGKeyArray) -> Linear:
    """Returns an affine map with a random orthogonal matrix, scaled by `gain`, and no bias to begin with."""
    weight = jax.nn.initializers.orthogonal(gain)(key, (in_size, out_size))
    return eqx.tree_at(lambda layer: layer.weight, Linear(in_size, out_size, use_bias=True, key=key), weight)


class Convolution(eqx.Module):
    """A 3x3 convolution with zero padding, as one matrix product over shifted copies of the image.

    Written so because under `vmap` over training seeds, each with its own weights, it stays a batched product; a
    convolution of XLA would become a grouped one, which is many times slower on a CPU.
    """

    linear: Linear
    stride: int = eqx.field(static=True)

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, key: PRNGKeyArray):
        self.linear = orthogonal(9 * in_channels, out_channels, math.sqrt(2), key=key)
        self.stride = stride

    def __call__(self, image: Float[Array, "H W C"]) -> Float[Array, "h w c"]:
        height, width, _ = image.shape
        padded = jnp.pad(image, ((1, 1), (1, 1), (0, 0)))
        shifted = [
            padded[i : i + height : self.stride, j : j + width : self.stride] for i in range(3) for j in range(3)
        ]
        return self.linear(jnp.concatenate(shifted, axis=-1))


class ActorCritic(eqx.Module):
    """A policy and a value on shared features of the newest frames.

    Frames of up to `FLAT_VALUES` values pass one hidden layer. Larger ones pass convolutions that halve them until the
    longer side has at most 12 pixels, or one of stride 1 if it has. A hidden layer and two linear heads follow. Of
    several tasks the one asked for adds a learned vector to the units of the first hidden layer.
    """

    convolutions: tuple[Convolution, ...]
    hidden: tuple[Linear, ...]
    task: Linear | None
    actor: Linear
    critic: Linear
    log_scale: Float[Array, " dims"]
    num_classes: tuple[int, ...] = eqx.field(static=True)
    frames_shape: tuple[int, int, int, int] = eqx.field(static=True)

    def __init__(self, spec: DataSpec, num_frames: int, hidden_size: int, *, key: PRNGKeyArray):
        """Builds the network.

        Args:
            spec: frames, actions and number of tasks.
            num_frames: newest frames of an episode that it sees.
            hidden_size: units of a hidden layer.
            key: randomness of the weights.
        """
        height, width, channels = spec.frame_shape
        key, key_actor, key_critic, *keys = jr.split(key, 16)
        channels, convolutions = channels * num_frames, []
        if math.prod(spec.frame_shape) > FLAT_VALUES:
            halvings = max(0, math.ceil(math.log2(max(height, width) / _LONGEST_SIDE)))
            for stride in [2] * halvings or [1]:
                convolutions.append(Convolution(channels, _CHANNELS, stride=stride, key=keys.pop()))
                height, width, channels = -(-height // stride), -(-width // stride), _CHANNELS
        sizes = [height * width * channels] + [hidden_size] * (1 if convolutions else 2)
        self.convolutions = tuple(convolutions)
        self.hidden = tuple(
            orthogonal(a, b, math.sqrt(2), key=keys.pop()) for a, b in zip(sizes[:-1], sizes[1:], strict=True)
        )
        self.task = orthogonal(spec.num_tasks, hidden_size, math.sqrt(2), key=key) if spec.num_tasks > 1 else None
        self.num_classes = spec.action.num_classes
        dims = spec.action.continuous_dim
        # A small read-out, so that the first policy is close to uniform.
        self.actor = orthogonal(hidden_size, sum(self.num_classes) + dims, 0.01, key=key_actor)
        self.critic = orthogonal(hidden_size, 1, 1.0, key=key_critic)
        self.log_scale = jnp.zeros(dims)
        self.frames_shape = (num_frames, *spec.frame_shape)

    def __call__(
        self, frames: UInt8[Array, "N H W C"], task: Int[Array, ""] | int = 0
    ) -> tuple[ActionDistribution, Float[Array, ""]]:
        """Returns the policy and the value of the newest frame.

        Args:
            frames: the newest frames, the newest last.
            task: id of the task that is asked for.
        """
        x = to_float(frames)
        x = jnp.moveaxis(x, 0, 2).reshape(*x.shape[1:3], -1)
        for layer in self.convolutions:
            x = jax.nn.relu(layer(x))
        x = x.reshape(-1)
        told = 0.0 if self.task is None else self.task(jax.nn.one_hot(task, self.task.weight.shape[0]))
        for layer in self.hidden:
            x, told = jax.nn.relu(layer(x) + told), 0.0
        out, splits = self.actor(x), [sum(self.num_classes[: i + 1]) for i in range(len(self.num_classes))]
        *logits, loc = jnp.split(out, splits)
        distribution = ActionDistribution(tuple(map(Categorical, logits)), Normal(loc, self.log_scale))
        return distribution, self.critic(x)[0]

    def remember(
        self, frames: UInt8[Array, "N H W C"], newest: UInt8[Array, "H W C"], is_first: Bool[Array, ""]
    ) -> UInt8[Array, "N H W C"]:
        """Returns the newest frames after one more; a first frame stands for the past that it does not have."""
        return jnp.where(is_first, newest[None], jnp.concatenate([frames[1:], newest[None]]))


class NetworkPolicy(AbstractPolicy):
    """Plays by a trained network; its memory is the newest frames and the task.

    Attributes:
        network: the network.
        mode: draw from its distribution, or take the most likely action.
        temperature: divides the logits of discrete components, scales the spread of continuous ones.
        prompt: tells the task by the state of the environment, `AbstractEnvironment.prompt`; None: it is task 0.
    """

    network: ActorCritic
    mode: Literal["sample", "mode"] = eqx.field(default="sample", static=True)
    temperature: float = 1.0
    prompt: Callable[[PyTree], Int[Array, ""]] | None = None

    def init(self) -> tuple[UInt8[Array, "N H W C"], Int[Array, ""]]:
        return jnp.zeros(self.network.frames_shape, jnp.uint8), jnp.zeros((), jnp.int32)

    def peek(self, memory: PyTree, state: PyTree) -> PyTree:
        return memory if self.prompt is None else (memory[0], self.prompt(state))

    def __call__(
        self, memory: PyTree, time_step: TimeStep, action: Action, action_mask: Bool[Array, ""], *, key: PRNGKeyArray
    ) -> tuple[Action, PyTree]:
        frames, task = memory
        frames = self.network.remember(frames, time_step.frame, time_step.is_first)
        distribution, _ = self.network(frames, task)
        return choose(distribution, self.mode, self.temperature, key=key), (frames, task)


def choose(
    distribution: ActionDistribution, mode: Literal["sample", "mode"], temperature: float, *, key: PRNGKeyArray
) -> Action:
    """Returns an action as an environment takes it: drawn at a temperature, or the most likely one."""
    if mode == "mode":
        return within_bounds(distribution.mode())
    return within_bounds(distribution.tempered(temperature).sample(key=key))
