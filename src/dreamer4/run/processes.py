"""Several processes that train one run together, on one machine or on many.

Each of them runs the same command on the same files. What they compute they compute together; only the first one
writes. Where they must not go on before it has written, they wait for each other.

A process that is gone does not leave the others waiting: the transport reports a broken connection, or JAX a missing
heartbeat, and they end.
"""

import contextlib
import functools
import hashlib
import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from dreamer4.config import Config
from dreamer4.errors import InputError
from dreamer4.run import stopping


AUTO = "auto"
JOINING = 300  # seconds to wait for the others to start
HEARTBEAT = 60  # seconds without a sign of life
LEAVING = 10  # seconds to wait for the others to end

# What the transports say when a process cannot be reached.
_LOST = ("Gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "oordination")


@contextlib.contextmanager
def joined(
    coordinator: str | None, count: int | None, index: int | None, *, complain: Callable[[str], Any] | None = None
) -> Iterator[None]:
    """Makes this process one of several, until the block ends. To be entered before anything is computed.

    Args:
        coordinator: address and port at which the first process can be reached, or `auto` where a scheduler that JAX
            knows (Slurm, Open MPI, Kubernetes) has started the processes. None: this process is alone.
        count: number of processes.
        index: which of them this is, from 0.
        complain: tells a person why the process ends, where the others are gone. None: a line on stderr.

    Raises:
        InputError: if the three do not fit together, or the others cannot be reached.
    """
    _check(coordinator, count, index)
    if coordinator is None:
        yield
        return
    import jax

    complain = complain or functools.partial(print, file=sys.stderr, flush=True)
    _initialize(None if coordinator == AUTO else coordinator, count, index, complain)
    wait("joined")  # connected while all are here, for Gloo gives up on late ones
    if jax.process_index():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not any(sign in str(error) for sign in _LOST):
            raise
        # Leaving in order would wait for the one that is gone.
        complain(
            f"Error: process {jax.process_index()} of {jax.process_count()} lost touch with the others: "
            f"{str(error).splitlines()[0][:200]} {stopping.message(0)}"
        )
        os._exit(1)
    finally:
        with contextlib.suppress(Exception):
            jax.distributed.shutdown()


def _check(coordinator: str | None, count: int | None, index: int | None) -> None:
    numbers = {"--processes": count, "--process": index}
    given = [name for name, value in numbers.items() if value is not None]
    if coordinator is None or coordinator == AUTO:
        if given:
            where = "without --coordinator" if coordinator is None else f"with --coordinator {AUTO}, which finds it"
            raise InputError(f"{' and '.join(given)}: given {where}. Give all three, or none of these.")
        return
    if len(given) < 2:
        raise InputError(
            f"--coordinator {coordinator}: expected --processes and --process with it, or --coordinator {AUTO} where "
            "Slurm, Open MPI or Kubernetes started the processes."
        )
    assert count is not None and index is not None
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isascii() or not port.isdigit():
        raise InputError(f"--coordinator: got {coordinator!r}, expected HOST:PORT of the first process.")
    if index >= count:
        raise InputError(f"--process: got {index}, expected 0 to {count - 1}, for there are --processes {count}.")


def _initialize(coordinator: str | None, count: int | None, index: int | None, complain: Callable[[str], Any]) -> None:
    import jax

    if coordinator is not None and index == 0:
        _check_port(coordinator)
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM away from `stopping`
    options: dict[str, Any] = {} if coordinator is None else {"cluster_detection_method": "deactivate"}
    # Of its own accord JAX aborts the process after that time, with a stack in place of a message.
    patience = threading.Timer(JOINING, _give_up, (coordinator, complain))
    patience.daemon = True
    patience.start()
    try:
        jax.distributed.initialize(
            coordinator,
            count,
            index,
            initialization_timeout=2 * JOINING + 60,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=LEAVING,
            **options,
        )
    except ValueError:
        raise InputError(
            f"--coordinator {AUTO}: no scheduler that JAX knows has started this process. Give HOST:PORT of the first "
            "process, --processes and --process."
        ) from None
    except (RuntimeError, OSError) as error:
        raise InputError(
            f"--coordinator {coordinator or AUTO}: the processes did not find each other: "
            f"{str(error).splitlines()[0][:200]} Start all of them, with the address of the first."
        ) from None
    finally:
        patience.cancel()


def _give_up(coordinator: str | None, complain: Callable[[str], Any]) -> None:
    complain(
        f"Error: --coordinator {coordinator or AUTO}: the processes did not find each other within {JOINING} s. Start "
        "all of them, with the address of the first."
    )
    os._exit(2)


def _check_port(coordinator: str) -> None:
    """Refuses a port that is taken, which JAX would crash on."""
    host, _, port = coordinator.rpartition(":")
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", int(port)))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"--coordinator {coordinator}: port {port} cannot be used here: {reason}. Choose another."
        ) from None


def several() -> bool:
    """Whether there are other processes."""
    import jax

    return jax.process_count() > 1


def agree(config: Config) -> None:
    """Refuses to go on where the processes were started with different settings, in each of them.

    Raises:
        InputError: if they were.
    """
    if not several():
        return
    import jax
    from jax.experimental import multihost_utils

    text = json.dumps(config.model_dump(mode="json"), sort_keys=True)
    mine = np.frombuffer(hashlib.sha256(text.encode()).digest()[:8], np.uint32)
    all_of_them = np.asarray(multihost_utils.process_allgather(mine)).reshape(jax.process_count(), -1)
    if others := [i for i, theirs in enumerate(all_of_them) if not np.array_equal(theirs, all_of_them[0])]:
        raise InputError(
            f"Processes {', '.join(map(str, others))} of {jax.process_count()} were started with other settings than "
            "process 0. Start all of them by the same command, but for --process."
        )


def first() -> bool:
    """Whether this is the process that writes."""
    import jax

    return jax.process_index() == 0


def wait(what: str) -> None:
    """Returns when all processes have come here."""
    if several():
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(what)


class Vote:
    """Whether any of the processes wants something, told to all of them at the same step.

    The answer is that of the step before, so that nobody waits for it. A process that is alone has it at once.
    """

    def __init__(self) -> None:
        self._before: Any = None

    def any(self, mine: bool) -> bool:
        """Returns whether any process wanted it; every process must ask as often as the others."""
        if not several():
            return mine
        import jax
        import jax.numpy as jnp
        from jax.sharding import Mesh, NamedSharding
        from jax.sharding import PartitionSpec as P

        mesh = Mesh(np.array(jax.devices()), ("device",))
        shape, own = (jax.device_count(),), np.array([mine])
        votes = jax.make_array_from_callback(shape, NamedSharding(mesh, P("device")), lambda index: own)
        before, self._before = self._before, jnp.any(votes)
        return before is not None and bool(before)
