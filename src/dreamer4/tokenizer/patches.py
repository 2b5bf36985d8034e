"""How frames are cut into patches, and put together again."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from dreamer4.errors import InputError


def patch_grid(frame_shape: tuple[int, int, int], patch: tuple[int, int]) -> tuple[int, int]:
    """Returns how many patches high and wide a frame is, the last ones perhaps reaching beyond it."""
    return -(-frame_shape[0] // patch[0]), -(-frame_shape[1] // patch[1])


def count_patches(frame_shape: tuple[int, int, int], patch: tuple[int, int]) -> int:
    """Returns how many patches a frame has, P.

    Raises:
        InputError: if the patch is larger than the frame.
    """
    height, width, _ = frame_shape
    if height < patch[0] or width < patch[1]:
        raise InputError(
            f"tokenizer.patch: got {patch[0]} x {patch[1]}, larger than frames of {height} x {width}. "
            "Choose a patch that lies within the frame; it need not divide it."
        )
    rows, columns = patch_grid(frame_shape, patch)
    return rows * columns


def patchify(video: Float[Array, "T H W C"], patch: tuple[int, int]) -> Float[Array, "T P Dp"]:
    """Cuts frames into patches, row by row; below and to the right, a frame's edge is repeated up to whole patches."""
    frames, height, width, channels = video.shape
    rows, columns = patch_grid((height, width, channels), patch)
    spare = rows * patch[0] - height, columns * patch[1] - width
    if any(spare):
        video = jnp.pad(video, ((0, 0), (0, spare[0]), (0, spare[1]), (0, 0)), mode="edge")
    grid = video.reshape(frames, rows, patch[0], columns, patch[1], channels)
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(frames, rows * columns, -1)  # (T r ph c pw C) -> (T r c ph pw C)


def unpatchify(
    patches: Float[Array, "T P Dp"], patch: tuple[int, int], frame_shape: tuple[int, int, int]
) -> Float[Array, "T H W C"]:
    """Inverts `patchify`; what lies beyond the frame is cut off, so no loss asks for it."""
    height, width, channels = frame_shape
    rows, columns = patch_grid(frame_shape, patch)
    grid = patches.reshape(-1, rows, columns, patch[0], patch[1], channels)
    whole = grid.transpose(0, 1, 3, 2, 4, 5).reshape(-1, rows * patch[0], columns * patch[1], channels)
    return whole[:, :height, :width]
