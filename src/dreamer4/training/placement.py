"""Where the arrays of a run lie, when it has several devices.

A mesh has two axes. The rows of a batch are split over both; weights, their averages and the optimiser's state lie
whole along `data`, and split along `fsdp`. Only this is said: which device computes and sends what follows from it
(GSPMD), and what is computed stays the same but for the order in which sums are taken. Without a mesh nothing here
does anything.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from dreamer4.checkpoint import place, whole
from dreamer4.config import MeshConfig
from dreamer4.errors import InputError
from dreamer4.nn.rows import AXES, constrain
from dreamer4.nn.rows import rows_layout as rows_layout
from dreamer4.nn.rows import split_rows as split_rows


SMALL = 1024  # entries of an array that is not worth splitting


def build_mesh(config: MeshConfig) -> Mesh | None:
    """Returns the mesh that a configuration describes, or None if that is one device. All processes call it at once.

    Raises:
        InputError: if there are not as many devices, or, of several processes, some would be left without work.
    """
    wanted = config.size
    if wanted == 1 and not jax.distributed.is_initialized():
        return None  # and no device was touched
    found = jax.device_count()
    asked = f"train.mesh: data {config.data} times fsdp {config.fsdp} asks for {wanted} devices"
    if wanted > found:
        raise InputError(f"{asked}, but there are {found}. Set train.mesh.data or train.mesh.fsdp to less.")
    if jax.process_count() > 1 and wanted != found:
        raise InputError(
            f"{asked}, but the {jax.process_count()} processes have {found}, and none may be left out. "
            f"Set train.mesh.data to {found // config.fsdp if found % config.fsdp == 0 else found}."
        )
    if wanted == 1:
        return None
    mesh = jax.make_mesh(
        (config.data, config.fsdp), AXES, axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:wanted]
    )
    if jax.process_count() > 1:
        _meet(mesh)
    return mesh


def _meet(mesh: Mesh) -> None:
    """Connects the processes along each axis and along both.

    Gloo gives up on a first connection after half a minute, and compiling the first step may take one process that much
    longer than another. Connections that were made stay.
    """

    def count():
        return sum(jax.lax.psum(jnp.ones(()), axes) for axes in (*AXES, AXES))

    jax.block_until_ready(jax.jit(jax.shard_map(count, mesh=mesh, in_specs=(), out_specs=P(), check_vma=False))())


def bound(tree: PyTree) -> PyTree:
    """Binds arrays to the devices they lie on, as loaded ones are: jit tells them from others and compiles for both."""
    return jax.tree.map(lambda x: jax.device_put(x, x.sharding) if eqx.is_array(x) else x, tree)


def spread(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Lays a state out on a mesh, if there is one."""
    return tree if mesh is None else _put(tree, lambda x: _layout(x.shape, mesh))


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Lays arrays out whole on every device of a mesh."""
    return _put(tree, lambda x: NamedSharding(mesh, P()))


def bring_home(tree: PyTree) -> PyTree:
    """Returns arrays whole on the default device, wherever they lie; of several processes, on that of each."""
    home = jax.device_put(0).sharding
    return jax.tree.map(lambda x: jax.device_put(whole(x), home) if eqx.is_array(x) else x, tree)


def spread_here(tree: PyTree) -> PyTree:
    """Says, in a jitted function, that a state is laid out as `spread` does it on the current mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return tree if mesh.empty else constrain(tree, lambda x: _layout(x.shape, mesh))


def replicate_here(tree: PyTree) -> PyTree:
    """Says, in a jitted function, that arrays are whole on every device of the current mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return tree if mesh.empty else constrain(tree, lambda x: NamedSharding(mesh, P()))


def _layout(shape: tuple[int, ...], mesh) -> NamedSharding:
    """Splits the longest axis that can be split, and of equally long ones the last: stacked layers come first."""
    size = mesh.shape["fsdp"]
    axes = [i for i, n in enumerate(shape) if n % size == 0]
    if size == 1 or np.prod(shape) < SMALL or not axes:
        return NamedSharding(mesh, P())
    axis = max(axes, key=lambda i: (shape[i], i))
    return NamedSharding(mesh, P(*[None] * axis, "fsdp"))


def _put(tree: PyTree, sharding) -> PyTree:
    def put(x):
        if not eqx.is_array(x):
            return x
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jr.wrap_key_data(put(jr.key_data(x)))
        return x if getattr(x, "sharding", None) == sharding(x) else place(x, sharding(x))

    return jax.tree.map(put, tree)
