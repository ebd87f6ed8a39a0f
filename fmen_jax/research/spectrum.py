"""Power of pictures and of errors by spatial frequency.

Below the Nyquist frequency of the LR image, 1 / (2 s) cycles per HR pixel, a network has to copy
what it sees; above it, it has to guess. Frequencies are in cycles per HR pixel, 0..0.5. Rings are
averaged over all directions; a Hann window removes the seam of the periodic continuation.
"""

import dataclasses

import numpy as np

from fmen_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Rings:
    """A value for each ring of the spectrum."""

    frequency: np.ndarray
    """Middle of each ring, [rings], in cycles per pixel."""
    value: np.ndarray
    """Value of each ring, [rings] float64; NaN where a small picture has no frequency."""


def _ring_of(height: int, width: int, rings: int) -> np.ndarray:
    """Return the ring of each frequency of `np.fft.fft2`, [H, W].

    Frequency 0 and those above 0.5 are in none, which is the number `rings`.
    """
    rows, columns = np.fft.fftfreq(height), np.fft.fftfreq(width)
    radius = np.hypot(rows[:, None], columns[None, :])
    ring = np.floor(radius * 2 * rings).astype(int)
    ring = np.where(radius == 0.5, rings - 1, np.minimum(ring, rings))
    return np.where(radius == 0, rings, ring)


def _transform(image: np.ndarray) -> np.ndarray:
    """Return the spectrum of an image without its mean, [H, W, C].

    It is scaled so that white noise of variance 1 has the power 1 at every frequency.
    """
    height, width = image.shape[:2]
    # The periodic window: its transform has only three coefficients other than 0.
    rows, columns = (np.hanning(size + 1)[:-1] for size in (height, width))
    window = (rows[:, None] * columns[None, :])[..., None]
    away = image - (image * window).sum((0, 1)) / window.sum()
    return np.fft.fft2(away * window, axes=(0, 1)) / np.sqrt((window**2).sum())


def _mean_of_rings(values: np.ndarray, rings: int) -> np.ndarray:
    """Return the mean over each ring and all channels of values [H, W, C]."""
    height, width, channels = values.shape
    ring = _ring_of(height, width, rings).ravel()
    count = np.bincount(ring, minlength=rings + 1)[:rings] * channels
    total = np.bincount(ring, values.sum(2).ravel(), minlength=rings + 1)[:rings]
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _check(rings: int, *images: np.ndarray) -> None:
    shapes = [list(image.shape) for image in images]
    if rings < 1 or any(s != shapes[0] or len(s) != 3 or min(s[:2]) < 4 for s in shapes):
        raise InputError(
            f'images are {shapes}, for {rings} rings; expected images [H, W, C] of one shape with '
            'at least 4 rows and columns, and one ring or more.'
        )


def _frequencies(rings: int) -> np.ndarray:
    return (np.arange(rings) + 0.5) / (2 * rings)


def ring_power(image: np.ndarray, rings: int = 32) -> Rings:
    """Return the power of an image, or of an error, by frequency.

    The value is the mean squared amplitude at the frequencies of a ring, averaged over channels, so
    that white noise of variance v has the value v in every ring. The mean of the image is removed
    first.

    Args:
      image: [H, W, C], float.
      rings: number of rings of equal width between 0 and 0.5 cycles per pixel.

    Raises:
      InputError: If the image has another shape or is smaller than 4x4 pixels.
    """
    _check(rings, image)
    return Rings(_frequencies(rings), _mean_of_rings(np.abs(_transform(image)) ** 2, rings))


def fourier_ring_correlation(a: np.ndarray, b: np.ndarray, rings: int = 32) -> Rings:
    """Return the correlation of two images by frequency, -1..1 (Saxton and Baumeister, 1982).

    Re sum(A conj B) / sqrt(sum |A|^2 sum |B|^2), summed over a ring and all channels: 1 where the
    images agree up to a positive factor, about 0 where they have nothing in common.

    Args:
      a: [H, W, C], float.
      b: the other image, of the same shape.
      rings: number of rings of equal width between 0 and 0.5 cycles per pixel.

    Raises:
      InputError: If the images have different shapes or are smaller than 4x4 pixels.
    """
    _check(rings, a, b)
    fa, fb = _transform(a), _transform(b)
    common = _mean_of_rings(np.real(fa * fb.conj()), rings)
    power = _mean_of_rings(np.abs(fa) ** 2, rings) * _mean_of_rings(np.abs(fb) ** 2, rings)
    positive = power > 0
    return Rings(
        _frequencies(rings),
        np.where(positive, common / np.sqrt(np.where(positive, power, 1)), np.nan),
    )


def decibels(power: np.ndarray, peak: float = 255.0) -> np.ndarray:
    """Return 10 log10(power / peak^2): for a white error this is minus its PSNR.

    A power of 0 gives minus infinity.
    """
    with np.errstate(divide='ignore'):
        return 10 * np.log10(power / peak**2)
