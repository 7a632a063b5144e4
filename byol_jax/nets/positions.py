"""A vision transformer's positions for images of another size. Every other leaf fits any size as it is."""

import math

import jax
import jax.numpy as jnp

from byol_jax.errors import ConfigurationError
from byol_jax.ops.precision import at_least_float32
from byol_jax.types import Variables

__all__ = ["resize_positions"]


def resize_positions(variables: Variables, image_size: int | tuple[int, int]) -> Variables:
    """`variables` of a vision transformer for images of `image_size`, its learned positions interpolated.

    Bicubic and antialiased over the grid of patches; the class token's position stays. Positions of the same grid come
    back with the same bits.

    Args:
        variables: of `byol_jax.nets.vit`, initialised or loaded for square images; params only are changed.
        image_size: pixels, one number or (height, width), multiples of the patch's size.

    Raises:
        ConfigurationError: no positions, positions that are no square and a class token, or a size that the patches
            don't divide.

    Example:
        >>> import byol_jax
        >>> encoder = byol_jax.nets.vit(1, width=8, num_heads=2, patch_size=4)
        >>> variables = resize_positions(encoder.init(jax.random.key(0), (16, 16, 3)), (8, 24))
        >>> variables.params["encoder"]["pos_embedding"].shape
        (1, 13, 8)

    Source: timm's `resample_abs_pos_embed`. torchvision's `interpolate_embeddings` aligns corners instead.
    """
    params = variables.params
    if "pos_embedding" not in params.get("encoder", {}):
        raise ConfigurationError("resize_positions: there is no encoder/pos_embedding, as nets.vit's variables have it")
    positions, patch = params["encoder"]["pos_embedding"], params["conv_proj"]["kernel"].shape[0]
    side = math.isqrt(positions.shape[1] - 1)
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if side * side != positions.shape[1] - 1:
        raise ConfigurationError(f"{positions.shape[1]} positions: expected a class token's and those of a square grid")
    if any(pixels < patch or pixels % patch for pixels in size):
        raise ConfigurationError(f"image_size={image_size}: must be a multiple of the patches' {patch} pixels")
    grid = (size[0] // patch, size[1] // patch)
    if grid == (side, side):
        return variables
    width = positions.shape[2]
    wide = positions[0, 1:].reshape(side, side, width).astype(at_least_float32(positions.dtype))  # [h, w, D]
    resized = jax.image.resize(wide, (*grid, width), "bicubic", antialias=True).astype(positions.dtype)
    resized = jnp.concatenate([positions[:, :1], resized.reshape(1, -1, width)], axis=1)  # [1, 1 + h'·w', D]
    return variables._replace(params=params | {"encoder": params["encoder"] | {"pos_embedding": resized}})
