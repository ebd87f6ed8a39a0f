"""Pixel shuffle in PyTorch's channel order and its inverse, for NumPy and JAX arrays.

Channel c s^2 + dy s + dx of a pixel is channel c of the sub-pixel (dy, dx). Most JAX code uses the
order (dy s + dx) C + c instead. Source: Shi et al., CVPR 2016, equation 4.
"""

from typing import TypeVar

import jax
import numpy as np

Images = TypeVar('Images', np.ndarray, jax.Array)


def pixel_shuffle(x: Images, scale: int) -> Images:
    """Rearrange [N, H, W, C s^2] to [N, s H, s W, C], where s is `scale`."""
    n, height, width, channels = x.shape
    c = channels // scale**2
    y = x.reshape(n, height, width, c, scale, scale).transpose(0, 1, 4, 2, 5, 3)
    return y.reshape(n, height * scale, width * scale, c)


def pixel_unshuffle(x: Images, scale: int) -> Images:
    """Rearrange [N, s H, s W, C] to [N, H, W, C s^2]; s must divide height and width."""
    n, height, width, c = x.shape
    y = x.reshape(n, height // scale, scale, width // scale, scale, c).transpose(0, 1, 3, 5, 2, 4)
    return y.reshape(n, height // scale, width // scale, c * scale**2)
