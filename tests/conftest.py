"""Settings and fixtures of the whole suite."""

import gc
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path


# Before jax is imported, and inherited by the processes that tests start.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".jax_cache"))
# Most of the suite's time goes into compiling what then runs once on tiny arrays; LLVM need not polish it, and without
# its passes the older way of emitting fusions compiles in half the time. (Named as an extra option, since jax 0.11
# knows no flag for it, and ends the process at an unknown one.)
_FLAGS = "--xla_backend_optimization_level=0 --xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters"
os.environ["XLA_FLAGS"] = f"{_FLAGS} {os.environ.get('XLA_FLAGS', '')}".strip()

import hypothesis  # noqa: E402
import jax  # noqa: E402
import jax.random as jr  # noqa: E402
import pytest  # noqa: E402
from jaxtyping import PRNGKeyArray, install_import_hook  # noqa: E402


# Shapes and types of every function of ours are checked at each call. Not by jaxtyping's pytest option, which splits
# its argument at the wrong comma when there are two packages and a configured checker.
_CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
install_import_hook(["dreamer4", "dreamer4_cli", "benchmarks"], _CHECKER)

# A plugin may have imported jax before this file, so the settings are made here too.
jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


# Programs and traces live long; looking for garbage among them as often as Python does costs a few per cent.
gc.set_threshold(50_000, 20, 100)


# A first example may compile, and machines are shared: time is no property of ours to test.
hypothesis.settings.register_profile("dreamer4", deadline=None)
hypothesis.settings.load_profile("dreamer4")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the files of slow tests first, so that no worker is left with one of them while the other has finished.

    Those that compile whole training steps come next.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path not in slow, item.path.parent.name not in ("training", "baselines")))


@pytest.fixture(scope="module", autouse=True)
def forget_programs() -> Iterator[None]:
    """Frees the compiled programs of earlier files when they have become many.

    A program on the CPU is several mapped regions of memory. Linux grants a process 65,530 of them, which the suite as
    a whole passes; LLVM then ends the process without a word. Programs that a later file shares come back from the
    cache on disk.
    """
    yield
    regions = Path("/proc/self/maps")
    if regions.exists() and regions.read_bytes().count(b"\n") > 15_000:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="module", autouse=True)
def no_silent_types(request: pytest.FixtureRequest) -> Iterator[None]:
    """Lets no operation of the mathematics mix types of numbers: a mask times a value says what it means."""
    strict = request.path.parent.name in ("nn", "agent", "tokenizer")
    with jax.numpy_dtype_promotion("strict" if strict else "standard"):
        yield


@pytest.fixture
def getkey(request: pytest.FixtureRequest) -> Callable[[], PRNGKeyArray]:
    """Returns a function that gives a fresh key at each call, the same ones in every run of the test."""
    root = jr.key(zlib.crc32(request.node.nodeid.encode()) & 0x7FFFFFFF)
    count = 0

    def fresh() -> PRNGKeyArray:
        nonlocal count
        count += 1
        return jr.fold_in(root, count)

    return fresh
