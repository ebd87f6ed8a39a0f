"""Singular values of convolutions as linear operators on images.

Sedghi, Gupta and Long, The Singular Values of Convolutional Layers, ICLR 2019: with periodic
borders, a convolution is one small matrix for each frequency, and its singular values are theirs.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from fmen_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Gains:
    """The singular values of one convolution, in short."""

    largest: float
    median: float
    smallest: float
    """Smallest singular value; 0 or nearly so if the convolution loses a direction entirely."""

    @property
    def condition(self) -> float:
        """Largest singular value over the smallest; infinite if that is 0."""
        return self.largest / self.smallest if self.smallest else float('inf')


def singular_values(kernel: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the singular values of a convolution with periodic borders, for each frequency.

    Args:
      kernel: [kh, kw, C, F].
      height: height in pixels of the images that the convolution acts on.
      width: their width. The extremes hardly change from 32 pixels on.

    Returns:
      [height, width, min(C, F)] float64, in descending order for each frequency. Together they are
      the singular values of the matrix [height width F, height width C]. All are NaN if the kernel
      contains NaN or infinity.

    Raises:
      InputError: If the kernel has another shape, or is larger than the image.
    """
    if kernel.ndim != 4 or kernel.shape[0] > height or kernel.shape[1] > width:
        raise InputError(
            f'the kernel is {list(kernel.shape)}, on images of {width}x{height} pixels; expected '
            '[kh, kw, C, F], not larger than the image.'
        )
    if not np.isfinite(kernel).all():
        return np.full((height, width, min(kernel.shape[2:])), np.nan)
    spectrum = np.fft.fft2(kernel, (height, width), axes=(0, 1))
    return np.linalg.svd(spectrum, compute_uv=False)


def gains(kernel: np.ndarray, size: int = 32) -> Gains:
    """Return the extremes and the median of `singular_values` on images of size x size pixels.

    Raises:
      InputError: As for `singular_values`.
    """
    values = singular_values(kernel, size, size)
    return Gains(float(values.max()), float(np.median(values)), float(values.min()))


def kernels_of(params: Mapping[str, Any], prefix: str = '') -> dict[str, np.ndarray]:
    """Return every convolution kernel of a tree of parameters by its path, such as 'ERBs_0/conv1'.

    Args:
      params: nested dicts in which a convolution holds `kernel` [kh, kw, C, F].
      prefix: start of every path.
    """
    found: dict[str, np.ndarray] = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            found |= kernels_of(value, f'{prefix}/{name}' if prefix else name)
        elif name == 'kernel':
            found[prefix] = np.asarray(value)
    return found
