"""What a data set allows without a world model: cloning in four ways, discrete CQL, and IQL.

All see the same frames through the same network and train by the same loop (`fit.py`). Those that clone stop by the
likelihood of held-out decisions; values have no such criterion, so their number of steps is a setting, the same for
every data set.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, UInt8

from dreamer4.baselines.actor_critic import ActorCritic, NetworkPolicy, choose
from dreamer4.baselines.decisions import Decisions
from dreamer4.baselines.fit import Fitted, each, fit
from dreamer4.config import OfflineConfig
from dreamer4.data import AbstractPolicy, Episode, flag_relevant, return_of_best
from dreamer4.errors import InputError, nearest
from dreamer4.types import Action, DataSpec, TimeStep


Progress = Callable[[int, float | None], None] | None


class ConditionedPolicy(AbstractPolicy):
    """A return-conditioned clone: it wishes for a return, and for what is left of it after each reward.

    Attributes:
        network: sees the newest frames, and a further one as bright as what is left of the wish.
        wish: return that it wishes for at the start.
        span: the returns that are black and white.
        mode: draw from its distribution, or take the most likely action.
    """

    network: ActorCritic
    wish: float
    span: tuple[float, float]
    mode: Literal["sample", "mode"] = eqx.field(default="sample", static=True)

    def init(self) -> tuple[UInt8[Array, "N H W C"], Float[Array, ""]]:
        count, *shape = self.network.frames_shape
        return jnp.zeros((count - 1, *shape), jnp.uint8), jnp.asarray(self.wish, jnp.float32)

    def __call__(
        self, memory: PyTree, time_step: TimeStep, action: Action, action_mask: Bool[Array, ""], *, key: PRNGKeyArray
    ) -> tuple[Action, PyTree]:
        frames, wish = memory
        frames = self.network.remember(frames, time_step.frame, time_step.is_first)
        wish = wish - jnp.where(time_step.is_first, 0.0, time_step.reward)
        told = jnp.broadcast_to(brightness(wish, self.span), (1, *frames.shape[1:]))
        distribution, _ = self.network(jnp.concatenate([frames, told]))
        return choose(distribution, self.mode, 1.0, key=key), (frames, wish)


def brightness(to_go: Float[Array, "*dims"], span: tuple[float, float]) -> UInt8[Array, "*dims"]:
    """Returns returns as brightness: the first of `span` black, the second white, linear between and held beyond."""
    low, high = span
    return jnp.round(255 * jnp.clip((to_go - low) / max(high - low, 1e-8), 0.0, 1.0)).astype(jnp.uint8)


class Offline(eqx.Module):
    """A trained baseline, and what it took.

    Attributes:
        policy: it; `mode` says how it acts.
        steps: gradient steps behind it, and taken in all where more were looked at.
        episodes: episodes that it learned from.
        held_out: nats that it gives a held-out decision of those it clones; None: there was no criterion.
        note: settings that matter to it alone.
    """

    policy: NetworkPolicy | ConditionedPolicy
    steps: tuple[int, int]
    episodes: int
    held_out: float | None = None
    note: str = ""


class OfflineData(eqx.Module):
    """Training and held-out episodes of a data set, and what they look like."""

    train: Sequence[Episode]
    held_out: Sequence[Episode]
    spec: DataSpec = eqx.field(static=True)

    def of_task(self, task: int | None) -> "OfflineData":
        """Returns the episodes of one task, as data in which there is no other; of None all, as they are."""
        if task is None:
            return self

        def own(episodes: Sequence[Episode]) -> list[Episode]:
            return [dataclasses.replace(e, task=0) for e in episodes if e.task == task]

        spec = dataclasses.replace(self.spec, num_tasks=1, tasks=self.spec.tasks[task : task + 1])
        return OfflineData(own(self.train), own(self.held_out), spec)


def cloning_loss(
    network: ActorCritic, average: ActorCritic, decisions: Decisions, index: Int[Array, ""]
) -> Float[Array, ""]:
    """Returns the negative log-likelihood of a decision, nats."""
    del average
    distribution, _ = network(decisions.seen(index, network.frames_shape[0]), decisions.task[index])
    return -distribution.log_prob(jax.tree.map(lambda x: x[index], decisions.action))


def expectile_loss(difference: Float[Array, "*dims"], expectile: float) -> Float[Array, "*dims"]:
    """Returns `|expectile - 1(u < 0)| * u^2` (IQL, arXiv 2110.06169, eq 3); 0.5 is half the squared error."""
    return jnp.abs(expectile - (difference < 0)) * jnp.square(difference)


def advantage_weight(advantage: Float[Array, "*dims"], scale: float, limit: float) -> Float[Array, "*dims"]:
    """Returns `min(exp(scale * advantage), limit)`, the weights of advantage-weighted cloning (IQL, eq 7)."""
    return jnp.minimum(jnp.exp(jnp.minimum(scale * advantage, jnp.log(limit))), limit)


def conservative_gap(q: Float[Array, " A"], action: Int[Array, ""]) -> Float[Array, ""]:
    """Returns `logsumexp_a Q(s, a) - Q(s, action)`, what CQL(H) keeps small (arXiv 2006.04779, eq 4)."""
    return jax.nn.logsumexp(q) - q[action]


def _q(
    network: ActorCritic, decisions: Decisions, index: Int[Array, ""], *, ahead: int = 0
) -> tuple[Float[Array, " A"], Float[Array, ""]]:
    """Returns the values of actions, and that of what is seen, at a decision or behind it."""
    seen = decisions.seen(index, network.frames_shape[0], ahead=ahead)
    distribution, value = network(seen, decisions.task[index])
    return distribution.discrete[0].logits, value


class CQLLoss(eqx.Module):
    """Discrete CQL: double Q-learning with the conservative gap.

    With the running average Q', `a* = argmax_a Q(s', a)` and `c = 0` at termination: half the squared error of
    `Q(s, a)` to `r + discount * c * Q'(s', a*)`, and `alpha` times the gap. Its policy is softmax Q, as CQL(H) has it.
    """

    discount: float
    alpha: float

    def __call__(
        self, network: ActorCritic, average: ActorCritic, decisions: Decisions, index: Int[Array, ""]
    ) -> Float[Array, ""]:
        action = decisions.action.discrete[index, 0]
        q, _ = _q(network, decisions, index)
        chosen = jnp.argmax(_q(network, decisions, index, ahead=1)[0])
        coming = _q(average, decisions, index, ahead=1)[0][chosen]
        future = jnp.where(decisions.is_terminal[index], 0.0, coming)
        target = jax.lax.stop_gradient(decisions.reward[index] + self.discount * future)
        return 0.5 * jnp.square(q[action] - target) + self.alpha * conservative_gap(q, action)


class IQLLoss(eqx.Module):
    """The values of IQL (arXiv 2110.06169, eqs 5 and 6), which never ask for an action that the data does not show.

    With the running average Q' and `c = 0` at termination, V(s) follows an expectile of `Q'(s, a)`, and Q(s, a) the
    squared error to `r + discount * c * V(s')`.
    """

    discount: float
    expectile: float

    def __call__(
        self, network: ActorCritic, average: ActorCritic, decisions: Decisions, index: Int[Array, ""]
    ) -> Float[Array, ""]:
        action = decisions.action.discrete[index, 0]
        q, value = _q(network, decisions, index)
        slow = jax.lax.stop_gradient(_q(average, decisions, index)[0][action])
        _, ahead = _q(average, decisions, index, ahead=1)
        future = jnp.where(decisions.is_terminal[index], 0.0, ahead)
        target = jax.lax.stop_gradient(decisions.reward[index] + self.discount * future)
        return expectile_loss(slow - value, self.expectile) + jnp.square(q[action] - target)


@eqx.filter_jit
def advantages_of_data(network: ActorCritic, decisions: Decisions) -> Float[Array, " D"]:
    """Returns `Q(s, a) - V(s)` of each decision."""

    def one(index):
        q, value = _q(network, decisions, index)
        return q[decisions.action.discrete[index, 0]] - value

    return each(one, decisions)


def _clone(data: OfflineData, settings: OfflineConfig, share: float, progress: Progress, key: PRNGKeyArray) -> Offline:
    """Clones the best share of episodes by return; those as good as the last of them belong to it."""
    at_least = return_of_best(data.train, share)
    chosen = [[e for e in flag_relevant(part, at_least) if e.relevant] for part in (data.train, data.held_out)]
    train, held_out = chosen[0], chosen[1] or data.held_out
    fitted = _cloned(Decisions.of(train), Decisions.of(held_out), data.spec, settings, progress, key)
    steps = (fitted.steps, fitted.taken)
    return Offline(NetworkPolicy(fitted.network), steps, len(train), fitted.held_out)


def _cloned(
    train: Decisions,
    held_out: Decisions,
    spec: DataSpec,
    settings: OfflineConfig,
    progress: Progress,
    key: PRNGKeyArray,
) -> Fitted:
    network_key, fit_key = jr.split(key)
    frames = settings.num_frames + (train.wish is not None)
    network = ActorCritic(spec, frames, settings.hidden, key=network_key)
    limits = {"held_out": held_out, "steps": settings.max_steps, "progress": progress}
    return fit(cloning_loss, network, train, settings, **limits, key=fit_key)


def _conditioned(data: OfflineData, settings: OfflineConfig, progress: Progress, key: PRNGKeyArray) -> Offline:
    """Clones actions given the return to go, and wishes for what the best tenth reached (arXiv 1912.02877)."""
    parts = [Decisions.of(part) for part in (data.train, data.held_out)]
    span = (float(parts[0].to_go.min()), float(parts[0].to_go.max()))
    train, held_out = (
        eqx.tree_at(lambda d: d.wish, p, brightness(p.to_go, span), is_leaf=lambda x: x is None) for p in parts
    )
    fitted = _cloned(train, held_out, data.spec, settings, progress, key)
    wish = return_of_best(data.train, 0.1)
    policy = ConditionedPolicy(fitted.network, wish, span)
    return Offline(policy, (fitted.steps, fitted.taken), len(data.train), fitted.held_out, f"wishes for {wish:g}")


def _valued(
    loss: CQLLoss | IQLLoss, data: OfflineData, settings: OfflineConfig, progress: Progress, key: PRNGKeyArray
) -> tuple[Fitted, Decisions]:
    network_key, fit_key = jr.split(key)
    network = ActorCritic(data.spec, settings.num_frames, settings.hidden, key=network_key)
    decisions, limits = Decisions.of(data.train), {"steps": settings.value_steps, "progress": progress}
    return fit(loss, network, decisions, settings, held_out=None, **limits, key=fit_key), decisions


def _cql(data: OfflineData, settings: OfflineConfig, progress: Progress, key: PRNGKeyArray) -> Offline:
    loss = CQLLoss(settings.discount, settings.cql_alpha)
    fitted, _ = _valued(loss, data, settings, progress, key)
    note = f"alpha {settings.cql_alpha:g}"
    return Offline(NetworkPolicy(fitted.network), (fitted.steps, fitted.taken), len(data.train), note=note)


def _iql(data: OfflineData, settings: OfflineConfig, progress: Progress, key: PRNGKeyArray) -> Offline:
    """Values first, then cloning by the weights of their advantages; the values do not depend on the policy."""
    value_key, policy_key = jr.split(key)
    valued, train = _valued(IQLLoss(settings.discount, settings.expectile), data, settings, progress, value_key)

    def weighted(decisions):
        advantage = advantages_of_data(valued.network, decisions)
        weight = advantage_weight(advantage, settings.advantage_scale, settings.weight_limit)
        return eqx.tree_at(lambda d: d.weight, decisions, weight)

    held_out = weighted(Decisions.of(data.held_out))
    fitted = _cloned(weighted(train), held_out, data.spec, settings, progress, policy_key)
    steps = (valued.steps + fitted.steps, valued.taken + fitted.taken)
    note = f"expectile {settings.expectile:g}, advantages times {settings.advantage_scale:g}"
    return Offline(NetworkPolicy(fitted.network), steps, len(data.train), fitted.held_out, note)


OFFLINE: dict[str, Callable[[OfflineData, OfflineConfig, Progress, PRNGKeyArray], Offline]] = {
    "clone": lambda data, settings, progress, key: _clone(data, settings, 1.0, progress, key),
    "best-quarter": lambda data, settings, progress, key: _clone(data, settings, 0.25, progress, key),
    "best-tenth": lambda data, settings, progress, key: _clone(data, settings, 0.1, progress, key),
    "conditioned": _conditioned,
    "cql": _cql,
    "iql": _iql,
}


def suited(spec: DataSpec) -> tuple[str, ...]:
    """Returns the names of `OFFLINE` for such data: values are of one discrete action, a wish is of one task."""
    values = len(spec.action.num_classes) == 1 and not spec.action.continuous_dim
    fits = {"cql": values, "iql": values, "conditioned": spec.num_tasks == 1}
    return tuple(name for name in OFFLINE if fits.get(name, True))


def check_baseline(name: str, spec: DataSpec) -> None:
    """Raises an `InputError` if there is no such baseline, or not for such data."""
    if name not in OFFLINE:
        raise InputError(f"baseline offline: unknown {name!r}. {nearest(name, OFFLINE)}")
    if name not in suited(spec):
        of, has = ("task", spec.num_tasks) if name == "conditioned" else ("discrete action", spec.action)
        raise InputError(f"baseline offline: {name} is of one {of}, and the data has {has}.")


def train_offline(
    name: str, data: OfflineData, settings: OfflineConfig, *, progress: Progress = None, key: PRNGKeyArray
) -> Offline:
    """Trains a baseline of `OFFLINE` on a data set.

    Args:
        name: which.
        data: the episodes; held-out ones decide when cloning stops.
        settings: sizes and rates.
        progress: called now and then with gradient steps and the held-out loss.
        key: randomness of weights and batches.

    Raises:
        InputError: if there is no such baseline, if no episode is held out, or if the actions do not fit it.
    """
    check_baseline(name, data.spec)
    if not data.held_out:
        raise InputError("baseline offline: the data set holds no episodes out. Make one with --held-out 0.1.")
    return OFFLINE[name](data, settings, progress, key)


def with_entropy(offline: Offline, data: OfflineData, entropy: float) -> Offline:
    """Returns a clone at the temperature, 0.01 to 100, that gives its decisions on held-out frames a mean entropy.

    So it can be compared with a policy that is as sharp, such as one that imagination trained.

    Args:
        offline: a clone of discrete actions.
        data: the episodes.
        entropy: wished mean entropy, nats; the nearest that a temperature can give is taken.
    """
    assert isinstance(offline.policy, NetworkPolicy)
    held_out, network = Decisions.of(data.held_out), offline.policy.network

    @eqx.filter_jit
    def mean_entropy(network, held_out, temperature):
        def one(index):
            distribution, _ = network(held_out.seen(index, network.frames_shape[0]), held_out.task[index])
            return distribution.tempered(temperature).entropy()

        return each(one, held_out).mean()

    low, high = np.log(0.01), np.log(100.0)
    for _ in range(20):  # by halves: entropy grows with temperature
        middle = (low + high) / 2
        below = float(mean_entropy(network, held_out, jnp.exp(middle))) < entropy
        low, high = (middle, high) if below else (low, middle)
    temperature = float(np.exp((low + high) / 2))
    policy = NetworkPolicy(network, temperature=temperature)
    note = f"temperature {temperature:.3g} for {entropy:g} nats"
    return Offline(policy, offline.steps, offline.episodes, offline.held_out, note)
