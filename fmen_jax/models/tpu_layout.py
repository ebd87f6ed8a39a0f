"""Layouts that fill the lanes of a TPU: pixels packed into channels, and images as rows.

A TPU always computes on 128 channels: 50 channels leave 78 idle in memory and in the matrix unit,
2 x 50 leave 28 idle, and an image of 3 colors is padded to 128. These layouts do not change any
value.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from fmen_jax.errors import InputError

Params = dict[str, Any]
"""Nested dicts of arrays."""


def pack(x: Array, pixels: int) -> Array:
    """Pack p adjacent pixels of a row into the channels: [N, H, W, C] -> [N, H, W/p, p C].

    Raises:
      InputError: If W is not a multiple of p.
    """
    n, h, w, c = x.shape
    if w % pixels:
        raise InputError(f'a width of {w} cannot be packed by {pixels} pixels: choose a multiple.')
    return x.reshape(n, h, w // pixels, pixels * c)


def pack_kernel(params: Params, pixels: int) -> Params:
    """Convert the parameters of a 3x3 convolution C -> F to packed pixels: p C -> p F.

    Most entries of the new kernel are zero.
    """
    kernel = params['kernel']
    to = np.arange(pixels)
    # Pixel i of tap t is at position t p + i, at a distance dx from pixel j of the middle tap.
    away = (np.arange(-1, 2)[:, None, None] * pixels + to[:, None]) - to
    selector = away[..., None] == np.arange(-1, 2)  # [t, i, j, dx]
    wide = jnp.einsum('tijd,ydcf->yticjf', selector.astype(kernel.dtype), kernel)
    shape = (3, 3, pixels * kernel.shape[2], pixels * kernel.shape[3])
    return {'kernel': wide.reshape(shape), 'bias': jnp.tile(params['bias'], pixels)}


def tail_of_rows(params: Params, *, scale: int, colors: int, pixels: int) -> Params:
    """Convert the parameters of the tail to packed pixels, with outputs in the order of image rows.

    Args:
      params: `kernel` [3, 3, n, C s^2] and `bias` [C s^2], in PyTorch's order.
      scale: upscaling factor s.
      colors: number of colors C.
      pixels: number of packed pixels p.

    Returns:
      Parameters for p n input channels, with outputs ordered as [s rows, p, s columns, C].
    """
    order = np.arange(pixels * colors * scale**2).reshape(pixels, colors, scale, scale)
    order = order.transpose(2, 0, 3, 1).ravel()
    return {name: value[..., order] for name, value in pack_kernel(params, pixels).items()}


def rows_of(y: Array, *, scale: int, colors: int, pixels: int) -> Array:
    """Reshape [N, H, W/p, s p s C], computed with `tail_of_rows`, to [N, s H, s W C]."""
    n, height, packs, _ = y.shape
    row = pixels * scale * colors
    y = y.reshape(n, height, packs, scale, row).transpose(0, 1, 3, 2, 4)
    return y.reshape(n, height * scale, packs * row)
