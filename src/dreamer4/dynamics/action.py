"""Actions as vectors."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from dreamer4.nn import Embedding, Linear
from dreamer4.nn.layers import initial_tokens
from dreamer4.types import Action, ActionSpec


class ActionEncoder(eqx.Module):
    """Turns a factored action into one token: a learned base plus one embedding per component.

    Where the action is unknown or absent only the base remains, so unlabelled video needs no special case.
    """

    base: Float[Array, " D"]
    discrete: tuple[Embedding, ...]
    continuous: Linear | None

    def __init__(self, spec: ActionSpec, width: int, *, key: PRNGKeyArray):
        """Builds the encoder for actions of `spec` into tokens of `width` features."""
        key_base, key_continuous, *keys = jr.split(key, 2 + len(spec.num_classes))
        self.base = initial_tokens(key_base, (width,))
        self.discrete = tuple(Embedding(n, width, key=k) for n, k in zip(spec.num_classes, keys, strict=True))
        self.continuous = Linear(spec.continuous_dim, width, key=key_continuous) if spec.continuous_dim else None

    def __call__(self, action: Action, mask: Bool[Array, "*dims"]) -> Float[Array, "*dims D"]:
        """Encodes actions; components count only where `mask` holds."""
        parts = [table(action.discrete[..., i]) for i, table in enumerate(self.discrete)]
        if self.continuous is not None:
            parts.append(self.continuous(jnp.clip(action.continuous, -1.0, 1.0)))
        return self.base + jnp.where(mask[..., None], sum(parts), 0.0)
