"""Lambda-returns (eq 10)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def lambda_returns(
    reward: Float[Array, " H"],
    continuation: Float[Array, " H"],
    value: Float[Array, "H+1"],
    *,
    discount: float | Float[Array, ""],
    lambda_: float | Float[Array, ""],
) -> Float[Array, " H"]:
    """Returns the lambda-return of each of the states 0 to H-1 of a rollout (eq 10).

    In the notation of the clock, with `R[H] = v[H]`,

        R[t] = r[t+1] + discount * c[t+1] * ((1 - lambda) * v[t+1] + lambda * R[t+1]).

    The paper prints `v[t]` there; with the value of the same state, lambda = 0 would never look ahead.

    Args:
        reward: rewards that arrive at states 1 to H.
        continuation: 1 where the episode goes on at states 1 to H, 0 where it ended; probabilities are allowed.
        value: values of states 0 to H.
        discount: in (0, 1].
        lambda_: 0 looks one step ahead, 1 to the end of the rollout.
    """

    def body(following, step):
        reward, continuation, value = step
        current = reward + discount * continuation * ((1.0 - lambda_) * value + lambda_ * following)
        return current, current

    _, returns = jax.lax.scan(body, value[-1], (reward, continuation, value[1:]), reverse=True)
    return jnp.asarray(returns)
