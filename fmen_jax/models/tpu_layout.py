"""Layouts that fill the lanes of a TPU: pixels packed into channels, and images as rows.

A TPU computes on 128 channels whatever there are: 50 leave 78 idle in memory and in the matrix
unit, 2 x 50 leave 28; an image of 3 colors is padded to 128. Nothing here changes a value.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from fmen_jax.errors import InputError

Params = dict[str, Any]
"""Nested dicts of arrays."""


def pack(x: Array, pixels: int) -> Array:
    """Put p pixels of a row side by side in the channels: [N, H, W, C] -> [N, H, W/p, p C].

    Raises:
      InputError: W is not a multiple of p.
    """
    n, h, w, c = x.shape
    if w % pixels:
        raise InputError(f'a width of {w} cannot be packed by {pixels} pixels: choose a multiple.')
    return x.reshape(n, h, w // pixels, pixels * c)


def pack_kernel(params: Params, pixels: int) -> Params:
    """The parameters of a 3x3 convolution C -> F for packed pixels: p C -> p F, mostly zeros."""
    kernel = params['kernel']
    to = np.arange(pixels)
    # tap t holds pixel i at t p + i, which is dx away from pixel j of the middle one
    away = (np.arange(-1, 2)[:, None, None] * pixels + to[:, None]) - to
    selector = away[..., None] == np.arange(-1, 2)  # [t, i, j, dx]
    wide = jnp.einsum('tijd,ydcf->yticjf', selector.astype(kernel.dtype), kernel)
    shape = (3, 3, pixels * kernel.shape[2], pixels * kernel.shape[3])
    return {'kernel': wide.reshape(shape), 'bias': jnp.tile(params['bias'], pixels)}


def tail_of_rows(params: Params, *, scale: int, colors: int, pixels: int) -> Params:
    """The tail's parameters for `pixels` packed pixels, with outputs in the order of image rows.

    Args:
      params: `kernel` [3, 3, n, C s^2] and `bias` [C s^2], in PyTorch's order.
      scale: s.
      colors: C.
      pixels: p.

    Returns:
      The same for p n inputs, whose outputs are ordered as [s rows, p, s columns, C].
    """
    order = np.arange(pixels * colors * scale**2).reshape(pixels, colors, scale, scale)
    order = order.transpose(2, 0, 3, 1).ravel()
    return {name: value[..., order] for name, value in pack_kernel(params, pixels).items()}


def rows_of(y: Array, *, scale: int, colors: int, pixels: int) -> Array:
    """[N, H, W/p, s p s C], the output of `tail_of_rows`, -> [N, s H, s W C]."""
    n, height, packs, _ = y.shape
    row = pixels * scale * colors
    y = y.reshape(n, height, packs, scale, row).transpose(0, 1, 3, 2, 4)
    return y.reshape(n, height * scale, packs * row)
