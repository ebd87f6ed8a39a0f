"""MATLAB's imresize, bicubic (a = -0.5) with antialiasing: how the LR images of the field are made.

Images are [..., H, W, C]. 8-bit images come out bit for bit as in the public data sets, from numpy
and inside jit alike, because both sum integers: weights are multiples of 2^-32, split into two
words of 16 bits that int32 sums exactly, so neither float order nor the lack of float64 matters.
(The convention without rounding between the passes is in float64, in JAX without it in float32.)
"""

import dataclasses
import math
from fractions import Fraction
from functools import lru_cache
from types import ModuleType
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from fmen_jax.errors import InputError

Image = TypeVar('Image', np.ndarray, jax.Array)


@dataclasses.dataclass(frozen=True)
class Convention:
    """One of the ways in which the field's LR images were made."""

    edges: str
    """'mirror' (MATLAB today) or 'clamp' (older MATLAB)."""
    rounds_between: bool
    """Whether 8-bit images are rounded and clamped after the vertical pass as well."""


CONVENTIONS = {
    # EDSR's benchmarks, DIV2K, Flickr2K.
    'edsr': Convention('mirror', rounds_between=True),
    # SelfExSR's benchmarks.
    'selfexsr': Convention('clamp', rounds_between=True),
    # BasicSR's GTmod12 and LRbic folders, and most ports to Python: to one level.
    'basicsr': Convention('mirror', rounds_between=False),
}


def imresize(image: Image, scale: float | Fraction, *, convention: str = 'edsr') -> Image:
    """Resize by a factor, below 1 with antialiasing, to ceil(scale size) pixels.

    Args:
      image: [..., H, W, C], numpy or JAX (also under jit). uint8 gives uint8, rounded as the
        convention says; floats give floats of the same type, neither rounded nor clamped.
      scale: the factor; 1/3 and the like are taken as the fractions that they mean.
      convention: a key of CONVENTIONS.

    Raises:
      InputError: another type or shape of image, or no such convention.
    """
    if convention not in CONVENTIONS:
        raise InputError(f'no convention {convention!r}; there are {", ".join(CONVENTIONS)}.')
    floating = jnp.issubdtype(image.dtype, jnp.floating)
    if image.ndim < 3 or not (floating or image.dtype == np.uint8):
        raise InputError(
            f'image is {image.dtype}{list(image.shape)}; expected uint8 or float [..., H, W, C].'
        )
    ratio = Fraction(scale).limit_denominator(1000)
    if ratio <= 0:
        raise InputError(f'scale is {scale}; expected a factor above 0.')
    xp: Any = jnp if isinstance(image, jax.Array) else np
    rule = CONVENTIONS[convention]
    if floating or rule.rounds_between:
        one_pass = _float_pass if floating else _integer_pass
        rows = one_pass(image, _taps(image.shape[-3], ratio, rule.edges), -3, xp)
        return one_pass(rows, _taps(image.shape[-2], ratio, rule.edges), -2, xp)
    wide = image.astype(np.float64 if xp is np else jnp.result_type(float))
    resized = imresize(wide, ratio, convention=convention)
    return xp.clip(xp.floor(resized + 0.5), 0, 255).astype(np.uint8)


def cubic_kernel(x: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel, a = -0.5 (Keys 1981, eq. 15)."""
    x = np.abs(x)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0))


@lru_cache(maxsize=256)
def _taps(size: int, ratio: Fraction, edges: str) -> tuple[np.ndarray, np.ndarray]:
    """The source index and the weight of every tap, [new size, taps] each."""
    scale = float(ratio)
    shrink = min(scale, 1.0)
    reach = 4 / shrink
    centre = (np.arange(math.ceil(size * ratio)) + 0.5) / scale - 0.5
    first = np.floor(centre - reach / 2).astype(int)
    index = first[:, None] + np.arange(math.ceil(reach) + 2)
    weight = cubic_kernel((centre[:, None] - index) * shrink)
    weight /= weight.sum(1, keepdims=True)
    used = weight.any(0)
    index, weight = index[:, used], weight[:, used]
    if edges == 'clamp':
        return index.clip(0, size - 1), weight
    index = index % (2 * size)
    return np.where(index < size, index, 2 * size - 1 - index), weight


def _along(values: np.ndarray, axis: int, rank: int) -> np.ndarray:
    """[new size] as a factor along an axis (counted from the end) of an image of that rank."""
    return np.expand_dims(values, [i for i in range(-rank, 0) if i != axis])


def _float_pass(x: Any, taps: tuple[np.ndarray, np.ndarray], axis: int, xp: ModuleType) -> Any:
    index, weight = taps
    weight = weight.astype(x.dtype)
    return sum(
        xp.take(x, index[:, k], axis=axis) * _along(weight[:, k], axis, x.ndim)
        for k in range(index.shape[1])
    )


def _integer_pass(x: Any, taps: tuple[np.ndarray, np.ndarray], axis: int, xp: ModuleType) -> Any:
    """One pass on uint8, rounded half up and clamped, exactly.

    Weights are high 2^-16 + low 2^-32. A sum that is a tie in exact arithmetic may lie below it by
    the rounding of the weights, 255 taps 2^-33: half a unit is therefore 2^-20 more than a half.
    """
    index, weight = taps
    if index.shape[1] > 128:
        raise InputError(f'{index.shape[1]} taps: 8-bit images shrink by 31 at most at once.')
    fixed = np.rint(weight * 2.0**32).astype(np.int64)
    high, low = (fixed >> 16).astype(np.int32), (fixed & 0xFFFF).astype(np.int32)
    x = x.astype(np.int32)
    sums = [np.int32(1 << 15), np.int32(1 << 12)]
    for k in range(index.shape[1]):
        tap = xp.take(x, index[:, k], axis=axis)
        sums = [
            s + tap * _along(part[:, k], axis, x.ndim)
            for s, part in zip(sums, (high, low), strict=True)
        ]
    return xp.clip((sums[0] + (sums[1] >> 16)) >> 16, 0, 255).astype(np.uint8)
