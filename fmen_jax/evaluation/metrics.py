"""PSNR in dB and SSIM of images [H, W, C] in 0..255, float.

The functions compute in the dtype and array library of their arguments, NumPy or JAX (also under
jit). Tables and validation use NumPy float64.
"""

from typing import Any

import numpy as np

from fmen_jax.errors import InputError

# BT.601 in studio range: 16 for black, 235 for white. Equals MATLAB's rgb2ycbcr without rounding.
_LUMA = np.array([65.481, 128.553, 24.966]) / 255

SSIM_WINDOW, _SIGMA, _K1, _K2, _PEAK = 11, 1.5, 0.01, 0.03, 255.0


def luma(rgb: Any) -> Any:
    """Return the BT.601 luma [..., 1] in 16..235, not rounded, of RGB [..., 3] in 0..255."""
    weights = _LUMA.astype(rgb.dtype).reshape(*[1] * (rgb.ndim - 1), 3)
    return (rgb * weights).sum(-1, keepdims=True) + 16


def _check(a: Any, b: Any) -> None:
    floating = all(np.issubdtype(x.dtype, np.floating) for x in (a, b))
    if a.shape != b.shape or a.ndim != 3 or not floating:
        found = ' and '.join(f'{x.dtype}{list(x.shape)}' for x in (a, b))
        raise InputError(f'images are {found}; expected two floats of one shape [H, W, C].')


def psnr(a: Any, b: Any) -> Any:
    """Return the peak signal-to-noise ratio in dB for a peak of 255.

    It is infinite for equal images, and NaN if a pixel is NaN.

    Raises:
      InputError: The images are not two floating-point arrays of one shape [H, W, C].
    """
    _check(a, b)
    xp = a.__array_namespace__()
    error = xp.mean(xp.square(a - b))
    equal = error == 0
    return xp.where(equal, xp.inf, 10 * xp.log10(_PEAK**2 / xp.where(equal, 1.0, error)))


def ssim(a: Any, b: Any) -> Any:
    """Return the structural similarity (Wang et al., 2004), averaged over the channels.

    Uses an 11x11 Gaussian window of sigma 1.5 over the valid region and the weighted population
    covariance.

    Raises:
      InputError: The images are not two floating-point arrays of one shape [H, W, C], or they are
        smaller than the window.
    """
    _check(a, b)
    if min(a.shape[:2]) < SSIM_WINDOW:
        raise InputError(
            f'images of {a.shape[1]}x{a.shape[0]} pixels, after cropping: SSIM needs '
            f'{SSIM_WINDOW} or more in width and height.'
        )
    mean_a, mean_b = _blur(a), _blur(b)
    var_a, var_b = _blur(a * a) - mean_a**2, _blur(b * b) - mean_b**2
    covariance = _blur(a * b) - mean_a * mean_b
    c1, c2 = (_K1 * _PEAK) ** 2, (_K2 * _PEAK) ** 2
    similar = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return (similar / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean()


def _blur(x: Any) -> Any:
    """Filter with the Gaussian window over the valid region: [H - 10, W - 10, C]."""
    weights = np.exp(-((np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2) ** 2) / (2 * _SIGMA**2))
    weights = (weights / weights.sum()).astype(x.dtype)
    height, width = x.shape[0] - SSIM_WINDOW + 1, x.shape[1] - SSIM_WINDOW + 1
    rows: Any = sum(w * x[k : k + height] for k, w in enumerate(weights))
    return sum(w * rows[:, k : k + width] for k, w in enumerate(weights))
