"""MATLAB's imresize, bicubic (a = -0.5) with antialiasing: the usual way to make LR images.

Images are [..., H, W, C]. 8-bit results are bit-identical to the public data sets, both in NumPy
and under jit, because both sum integers: weights are multiples of 2^-32, split into two 16-bit
words whose products int32 sums exactly. Neither the order of float additions nor the lack of
float64 therefore matters. (The convention without rounding between the passes is computed in
float64, or in float32 where JAX has no float64.)
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
    """A variant of imresize with which published LR images were made."""

    edges: str
    """Edge handling: 'mirror' (current MATLAB) or 'clamp' (older MATLAB)."""
    rounds_between: bool
    """Whether 8-bit images are also rounded and clamped after the first (vertical) pass."""


CONVENTIONS = {
    # EDSR's benchmarks, DIV2K, Flickr2K.
    'edsr': Convention('mirror', rounds_between=True),
    # SelfExSR's benchmarks.
    'selfexsr': Convention('clamp', rounds_between=True),
    # BasicSR's GTmod12 and LRbic folders, and most Python ports; equal to within one level.
    'basicsr': Convention('mirror', rounds_between=False),
}


def imresize(image: Image, scale: float | Fraction, *, convention: str = 'edsr') -> Image:
    """Resize an image to ceil(scale size) pixels, with antialiasing if the scale is below 1.

    Args:
      image: NumPy or JAX array [..., H, W, C], also under jit. uint8 gives uint8, rounded according
        to the convention; floats give floats of the same type, neither rounded nor clamped.
      scale: Scale factor. Floats such as 1/3 are converted to the fractions that they approximate.
      convention: Key of CONVENTIONS.

    Raises:
      InputError: If the type or shape of the image is not supported, the scale is not finite or
        is less than 1/1000, or the convention is unknown.
    """
    if convention not in CONVENTIONS:
        raise InputError(f'no convention {convention!r}; there are {", ".join(CONVENTIONS)}.')
    floating = jnp.issubdtype(image.dtype, jnp.floating)
    sides = image.shape[-3:-1]
    if image.ndim < 3 or 0 in sides or not (floating or image.dtype == np.uint8):
        raise InputError(
            f'image is {image.dtype}{list(image.shape)}; expected uint8 or float [..., H, W, C], '
            'with a height and width of 1 or more.'
        )
    ratio = Fraction(scale).limit_denominator(1000) if math.isfinite(scale) else Fraction(0)
    if ratio <= 0:
        raise InputError(f'scale is {scale}; expected a finite factor of 1/1000 or more.')
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
    """Return Keys' cubic convolution kernel at x, with a = -0.5 (Keys 1981, eq. 15)."""
    x = np.abs(x)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0))


@lru_cache(maxsize=256)
def _taps(size: int, ratio: Fraction, edges: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the source index and the weight of every tap, each [new size, taps]."""
    scale = float(ratio)
    shrink = min(scale, 1.0)
    reach = 4 / shrink
    center = (np.arange(math.ceil(size * ratio)) + 0.5) / scale - 0.5
    first = np.floor(center - reach / 2).astype(int)
    index = first[:, None] + np.arange(math.ceil(reach) + 2)
    weight = cubic_kernel((center[:, None] - index) * shrink)
    weight /= weight.sum(1, keepdims=True)
    used = weight.any(0)
    index, weight = index[:, used], weight[:, used]
    if edges == 'clamp':
        return index.clip(0, size - 1), weight
    index = index % (2 * size)
    return np.where(index < size, index, 2 * size - 1 - index), weight


def _along(values: np.ndarray, axis: int, rank: int) -> np.ndarray:
    """Reshape [new size] to broadcast along `axis` (negative) of an image of rank `rank`."""
    return np.expand_dims(values, [i for i in range(-rank, 0) if i != axis])


def _float_pass(x: Any, taps: tuple[np.ndarray, np.ndarray], axis: int, xp: ModuleType) -> Any:
    index, weight = taps
    weight = weight.astype(x.dtype)
    return sum(
        xp.take(x, index[:, k], axis=axis) * _along(weight[:, k], axis, x.ndim)
        for k in range(index.shape[1])
    )


def _integer_pass(x: Any, taps: tuple[np.ndarray, np.ndarray], axis: int, xp: ModuleType) -> Any:
    """Resize uint8 along one axis exactly, rounding half up and clamping.

    Weights are high 2^-16 + low 2^-32. Because the weights are rounded, a sum that is a tie in
    exact arithmetic may come out lower by up to 255 taps 2^-33. The constant added for rounding is
    therefore 1/2 + 2^-20, which covers 32 taps: shrinking by up to 8. Beyond that, a tie may be
    rounded down.
    """
    index, weight = taps
    if index.shape[1] > 128:
        raise InputError(
            'uint8 images can be shrunk by a factor of 31 at most: convert the image to float, or '
            'shrink it in two steps.'
        )
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
