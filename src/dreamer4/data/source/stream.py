"""A data set that stays on disk: windows are read on the host, ahead of the step that takes them."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from dreamer4.data.readers.base import AbstractReader
from dreamer4.data.readers.latent import LatentReader
from dreamer4.data.source.base import AbstractDataSource, AbstractEpisodeSource, Rows
from dreamer4.types import Action, Trajectory


THREADS = 4  # that read batches side by side; as many batches are kept ready, which bounds the memory


class StreamSource(AbstractEpisodeSource):
    """Windows of a reader: the very batches of a `DeviceSource` of the same episodes.

    Of the data only the numbers of the episodes are held. `read` cannot be jitted.
    """

    length: Int[Array, " E"]
    is_terminal: Bool[Array, " E"]
    task: Int[Array, " E"]
    relevant: Bool[Array, " E"]
    share: Float[Array, " tasks"] | None
    reader: AbstractReader = eqx.field(static=True)

    def __init__(self, reader: AbstractReader, share: Float[Array | np.ndarray, " tasks"] | None = None):
        """Wraps a reader of at least one episode; `share` is that of each task in the rows of a batch."""
        self.reader = reader
        with jax.default_device(_host()):
            self.length, self.task = (jnp.asarray(x, jnp.int32) for x in (reader.lengths, reader.task))
            self.is_terminal, self.relevant = (jnp.asarray(x, bool) for x in (reader.is_terminal, reader.relevant))
            self.share = None if share is None else jnp.asarray(share, jnp.float32)

    @property
    def on_device(self) -> bool:
        return False

    def with_latents(self, latent: Float[Array | np.ndarray, "N Nz Dz"]) -> "StreamSource":
        return StreamSource(LatentReader(self.reader, latent), self.share)

    def read(self, rows: Rows, length: int) -> Trajectory:
        episode, offset = np.asarray(rows.episode), np.asarray(rows.offset)
        frames = np.asarray(self.length)[episode]
        windows = [
            self.reader.window(int(e), int(o), int(min(length, n - o)))
            for e, o, n in zip(episode, offset, frames, strict=True)
        ]

        def stacked(name: str) -> np.ndarray:
            arrays = [getattr(window, name) for window in windows]
            return np.stack([a[np.minimum(np.arange(length), len(a) - 1)] for a in arrays])

        position = offset[:, None] + np.arange(length, dtype=np.int32)
        last = frames[:, None] - 1
        valid, is_last = position <= last, position == last
        arrays = {name: stacked(name) for name in ("discrete", "continuous")}
        arrays |= {name: None if getattr(windows[0], name) is None else stacked(name) for name in ("frame", "latent")}
        told = {
            "action_mask": stacked("action_mask") & valid,
            "reward": np.where(valid, stacked("reward"), np.float32(0)),
            "is_first": position == 0,
            "is_last": is_last,
            "is_terminal": is_last & np.asarray(self.is_terminal)[episode][:, None],
            "valid": valid,
            "task": np.asarray(self.task)[episode],
            "relevant": np.asarray(rows.relevant),
            "uniform": np.asarray(rows.uniform),
        }
        with jax.default_device(_host()):
            arrays, told = jax.tree.map(jnp.asarray, (arrays, told))
        action = Action(arrays.pop("discrete"), arrays.pop("continuous"))
        return Trajectory(action=action, **arrays, **told)


def feed(
    source: AbstractDataSource,
    key_of: Callable[[int], PRNGKeyArray],
    steps: range,
    batch_size: int,
    length: int,
    *,
    sharding: Sharding | None = None,
) -> Iterator[Trajectory]:
    """Yields the batches of some steps in order, read ahead by threads.

    Libraries that decode and decompress let other threads run meanwhile, so processes, and copies between them, would
    gain nothing. At most `THREADS` batches wait, however slow the steps are.

    Args:
        source: what to read from.
        key_of: the key of a step's batch.
        steps: numbers of the steps.
        batch_size: rows of the whole batch.
        length: frames of a row.
        sharding: how the rows are split over devices; of several processes, each reads the rows of its own devices.
            None: all on the default device.
    """
    mine = own_rows(sharding, batch_size)

    def make(step: int) -> Trajectory:
        # A few integers, which need not wait for the steps that the device has to take.
        with jax.default_device(_host()):
            rows = _draw(source, batch_size, length, key_of(step))
        part = jax.tree.map(lambda x: np.asarray(x)[mine], rows)
        return join(source.read(part, length), mine, batch_size, sharding)

    waiting: deque[Future[Trajectory]] = deque()
    with ThreadPoolExecutor(THREADS, "batch") as pool:
        try:
            for step in steps:
                waiting.append(pool.submit(make, step))
                if len(waiting) > THREADS:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def own_rows(sharding: Sharding | None, batch_size: int) -> Int[np.ndarray, " rows"]:
    """Returns the rows of a batch that lie on devices of this process, ascending."""
    if sharding is None:
        return np.arange(batch_size)
    parts = sharding.addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[part] for part in parts]))


def join(batch: Trajectory, mine: Int[np.ndarray, " rows"], batch_size: int, sharding: Sharding | None) -> Trajectory:
    """Returns the whole batch on the devices, of which this process has read some rows."""
    if sharding is None:
        return jax.device_put(batch, jax.devices()[0])

    def joined(x: Array) -> Array:
        def part(index):
            return np.asarray(x)[np.searchsorted(mine, np.arange(batch_size)[index[0]])]

        return jax.make_array_from_callback((batch_size, *x.shape[1:]), sharding, part)

    return jax.tree.map(joined, batch)


def _host():
    return jax.local_devices(backend="cpu")[0]


@eqx.filter_jit
def _draw(source: AbstractDataSource, batch_size: int, length: int, key: PRNGKeyArray) -> Rows:
    return source.draw(batch_size, length, key=key)
