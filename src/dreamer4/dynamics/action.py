"""Actions as vectors."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from dreamer4.nn import Embedding, Linear
from dreamer4.nn.layers import initial_tokens
from dreamer4.types import Action, ActionSpec


class ActionEncoder(eqx.Module):
    """Turns a factored action into one token: a learned base plus one embedding per component.

    Where the action is unknown or absent only the base remains, so unlabelled video needs no special case. A component
    that a task lacks adds nothing, and the value that stands in its place is not read. Where tasks lack dimensions,
    each dimension has a learned embedding of being there, so that one at rest is not one that is missing.
    """

    base: Float[Array, " D"]
    discrete: tuple[Embedding, ...]
    continuous: Linear | None
    presence: Float[Array, "dims D"] | None
    spec: ActionSpec = eqx.field(static=True)

    def __init__(self, spec: ActionSpec, width: int, *, key: PRNGKeyArray):
        """Builds the encoder for actions of `spec` into tokens of `width` features."""
        key_base, key_continuous, *keys = jr.split(key, 2 + len(spec.num_classes))
        self.base = initial_tokens(key_base, (width,))
        self.discrete = tuple(Embedding(n, width, key=k) for n, k in zip(spec.num_classes, keys, strict=True))
        self.continuous = Linear(spec.continuous_dim, width, key=key_continuous) if spec.continuous_dim else None
        dims = (spec.continuous_dim, width)
        self.presence = initial_tokens(jr.fold_in(key_continuous, 0), dims) if spec.present and dims[0] else None
        self.spec = spec

    def __call__(
        self, action: Action, mask: Bool[Array, "*dims"], task: Int[Array, "*dims"] | None = None
    ) -> Float[Array, "*dims D"]:
        """Encodes actions; components count only where `mask` holds, and those that the task has; None: all."""
        count = len(self.discrete)
        has = jnp.broadcast_to(self.spec.components(task), (*mask.shape, self.spec.size))
        parts = [
            jnp.where(has[..., i, None], table(action.discrete[..., i]), 0.0) for i, table in enumerate(self.discrete)
        ]
        if self.continuous is not None:
            own = has[..., count:]
            parts.append(self.continuous(jnp.where(own, jnp.clip(action.continuous, -1.0, 1.0), 0.0)))
            if self.presence is not None:
                parts.append(own.astype(jnp.float32) @ self.presence)
        return self.base + jnp.where(mask[..., None], sum(parts), 0.0)
