"""What a sampler asks of the dynamics, pass by pass, and where its steps lead."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import distance, equal

from dreamer4.config import ShortcutConfig
from dreamer4.dynamics.shortcut import (
    AbstractNetwork,
    NoiseGrid,
    ShortcutDynamics,
    ShortcutState,
    build_forcing,
    commit,
    denoise,
)
from dreamer4.errors import InputError
from dreamer4.nn import Entry, RingCache, Stream
from dreamer4.types import Action


K_MAX, NZ, DZ, CAPACITY = 8, 40, 50, 3  # 2,000 numbers in a frame: enough to tell how much noise is in it
GRID = NoiseGrid(K_MAX)
POINT = np.asarray(jr.normal(jr.key(9), (NZ, DZ)) + 2.0)
ACTION, TASK = Action(jnp.array([1]), jnp.zeros(0)), jnp.array(0)


class Recorder(AbstractNetwork):
    """A dynamics that predicts what it is told to, and keeps the arguments of every call."""

    predict: Callable = eqx.field(static=True)
    calls: list = eqx.field(static=True)
    grid: NoiseGrid = eqx.field(default=GRID)
    num_spatial: int = eqx.field(static=True, default=NZ)
    spatial_dim: int = eqx.field(static=True, default=DZ)
    agent_dim: int = eqx.field(static=True, default=1)
    context_length: int = eqx.field(static=True, default=CAPACITY)

    def __call__(self, frames, task, segment=None):
        raise NotImplementedError

    prefill = drafts = flops = __call__

    def init_cache(self):
        return Stream(RingCache.empty((1,), CAPACITY, 1, 2, jnp.float32), jnp.zeros((), jnp.int32))

    def step(self, frame, task, stream):
        labels = int(frame.levels.tau_index), int(frame.levels.step_index)
        self.calls.append((np.asarray(frame.z), *labels, bool(frame.action_mask), task, stream))
        number = jnp.full((1, 1, 2), float(len(self.calls)))
        h = None if task is None else jnp.full(1, float(len(self.calls)))
        return jnp.asarray(self.predict(frame.z, *labels)), h, Entry(number, -number)


def record(predict=lambda *_: POINT):
    return Recorder(predict, [])


@pytest.fixture(autouse=True)
def op_by_op():
    """Scans run as Python loops, so that the recorder sees numbers."""
    with jax.disable_jit():
        yield


def sample(network, stream, steps, *, key):
    """The frame, its read-out and the past behind it."""
    dynamics = ShortcutDynamics(network, build_forcing(ShortcutConfig(k_max=K_MAX), context_signal=0.9), steps)
    imagined, state = dynamics.imagine(ShortcutState(stream, jnp.zeros(1), TASK), ACTION, key=key)
    return imagined.latent, dynamics.readout(state), state.stream


def test_without_shortcuts_passes_go_as_far_and_are_labelled_as_the_finest():
    network = record()
    z, _ = denoise(network, ACTION, jnp.array(True), network.init_cache(), 2, shortcuts=False, key=jr.key(0))
    assert [call[1:3] for call in network.calls] == [(0, GRID.finest), (4, GRID.finest)]
    np.testing.assert_allclose(z, POINT, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_every_pass_is_labelled_with_the_noise_its_input_has(steps):
    dynamics = record()
    sample(dynamics, dynamics.init_cache(), steps, key=jr.key(0))
    *passes, last = dynamics.calls
    assert len(passes) == steps
    noise = passes[0][0]
    assert abs(noise.mean()) < 0.1 and abs(noise.std() - 1) < 0.05
    for i, (z, tau_index, step_index, known, task, _) in enumerate(passes):
        # Towards one point the flow is a straight line, so the input tells its own level.
        level = np.sum((z - noise) * (POINT - noise)) / np.sum((POINT - noise) ** 2)
        assert abs(level - i / steps) < 1e-5
        assert tau_index == i * K_MAX // steps
        assert 2**step_index == steps
        assert known and task is None
    z, tau_index, step_index, known, task, _ = last
    assert (tau_index, step_index) == (7, GRID.finest) and known and task == TASK
    context_noise = (z - 7 / 8 * POINT) / (1 / 8)
    assert abs(context_noise.mean()) < 0.1 and abs(context_noise.std() - 1) < 0.05
    assert abs(np.corrcoef(context_noise.ravel(), noise.ravel())[0, 1]) < 0.1


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_drafts_are_not_remembered_and_the_commit_is_once(steps):
    dynamics = record()
    stream = dynamics.init_cache()
    for frame in range(5):  # the ring of 3 is full after three frames
        seen = len(dynamics.calls)
        _, h, after = sample(dynamics, stream, steps, key=jr.key(frame))
        assert len(dynamics.calls) == seen + steps + 1
        assert all(equal(call[-1], stream) for call in dynamics.calls[seen:])
        committed = float(len(dynamics.calls))
        assert h.tolist() == [committed]
        slot = frame % CAPACITY
        assert after.position == frame + 1
        assert after.cache.position[slot] == frame
        key, value = after.cache.key[..., slot, :], after.cache.value[..., slot, :]
        assert (key == committed).all() and (value == -committed).all()
        others = np.delete(np.arange(CAPACITY), slot)
        assert equal(after.cache.position[others], stream.cache.position[others])
        assert equal(after.cache.key[..., others, :], stream.cache.key[..., others, :])
        stream = after


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_a_world_of_one_point_is_sampled_exactly(steps):
    dynamics = record()
    z, _, _ = sample(dynamics, dynamics.init_cache(), steps, key=jr.key(0))
    assert distance(z, POINT) < 1e-5


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_denoising_is_eulers_method_on_the_velocity(steps):
    def predict(z, tau_index, step_index):
        return np.sin(np.asarray(z, np.float64)) + tau_index / K_MAX - step_index

    dynamics = record(lambda *a: np.float32(predict(*a)))
    z, _ = denoise(dynamics, ACTION, jnp.array(True), dynamics.init_cache(), steps, key=jr.key(0))
    expected, size = np.asarray(dynamics.calls[0][0], np.float64), 1 / steps
    for i in range(steps):
        velocity = (predict(expected, i * K_MAX // steps, int(np.log2(steps))) - expected) / (1 - i * size)
        expected = expected + size * velocity
    assert distance(z, expected) < 1e-5


@pytest.mark.parametrize(("steps", "middle"), [(1, 0), (2, 0), (4, 1), (8, 3)])
def test_a_traced_number_of_steps_draws_the_same_and_sees_the_estimate_of_the_middle_pass(steps, middle):
    def predict(z, tau_index, step_index):
        return np.asarray(z) * 0.5 + tau_index + 10 * step_index

    dynamics = record(predict)
    arguments = ACTION, jnp.array(True), dynamics.init_cache()
    expected, static = denoise(dynamics, *arguments, steps, key=jr.key(0))
    seen = [predict(z, tau_index, step_index) for z, tau_index, step_index, *_ in dynamics.calls]
    z, halfway = denoise(dynamics, *arguments, jnp.asarray(steps), key=jr.key(0))
    assert equal(z, expected)
    assert distance((halfway, static), (seen[middle], seen[middle])) < 1e-5


class Choice(Recorder):
    """Predicts what a world of two frames is expected to be, by Bayes."""

    def step(self, frame, task, stream):
        return self.predict(frame.z, frame.levels.tau_index / self.grid.k_max), None, Entry(*jnp.zeros((2, 1, 1, 2)))


@pytest.mark.parametrize(("noise_scale", "steps", "share"), [(1.0, 4, 0.018), (4.0, 4, 0.056), (4.0, 16, 0.081)])
def test_more_noise_lets_large_steps_draw_the_rarer_of_two_frames(noise_scale, steps, share):
    # The rarer one has a chance of 9 % and differs by sqrt(128) over all numbers. The model is exact, so what is
    # missing of it is the size of the steps; the shares are of 200,000 draws by the same steps, in one dimension.
    apart = jnp.full((NZ, DZ), jnp.sqrt(128 / (NZ * DZ)))

    def expected(z, tau):
        odds = jnp.log(0.09 / 0.91) + jnp.sum((z - tau * apart / 2) * apart) * tau / ((1 - tau) * noise_scale) ** 2
        return apart * jax.nn.sigmoid(odds)

    network = Choice(expected, [], NoiseGrid(16, noise_scale))
    drawn = jax.vmap(lambda k: denoise(network, ACTION, jnp.array(True), network.init_cache(), steps, key=k)[0])
    rarer = jnp.sum(drawn(jr.split(jr.key(0), 2000)) * apart, (-2, -1)) > 128 / 2
    assert abs(rarer.mean() - share) < 0.015


@pytest.mark.parametrize(("signal", "index"), [(1.0, 7), (0.9, 7), (0.75, 6), (0.3, 2)])
def test_a_committed_frame_is_as_noisy_as_its_label_says(signal, index):
    dynamics = record()
    clean = 10 * POINT
    commit(dynamics, jnp.asarray(clean), ACTION, jnp.array(False), TASK, dynamics.init_cache(), signal, key=jr.key(0))
    ((z, tau_index, step_index, known, _, _),) = dynamics.calls
    assert (tau_index, step_index, known) == (index, GRID.finest, False)
    noise = (z - index / K_MAX * clean) / (1 - index / K_MAX)
    assert abs(noise.mean()) < 0.1 and abs(noise.std() - 1) < 0.05
    assert abs(np.corrcoef(noise.ravel(), clean.ravel())[0, 1]) < 0.1


def test_the_same_key_draws_the_same_frame_and_another_key_another():
    dynamics = record(lambda z, *_: z)
    first, again, other = (sample(dynamics, dynamics.init_cache(), 2, key=jr.key(k))[0] for k in (0, 0, 1))
    assert equal(first, again) and distance(first, other) > 0.1


@pytest.mark.parametrize("steps", [3, 6, 16])
def test_a_number_of_steps_off_the_grid_is_refused(steps):
    dynamics = record()
    with pytest.raises(InputError, match="power of two that divides k_max = 8"):
        denoise(dynamics, ACTION, jnp.array(True), dynamics.init_cache(), steps, key=jr.key(0))
