"""Local attribution maps (LAM): which LR pixels a patch of the output depends on.

Gu and Dong, Interpreting Super-Resolution Networks with Local Attribution Maps, CVPR 2021. The
defaults and the discretization are those of Fried-Rice-Lab/FriedRiceLab. Integrated gradients of a
detector of edges in one window of the output, along a path from a blurred LR image to the sharp
one. Images are float, in the range of the network (0..255 for those of this package).
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from fmen_jax.errors import InputError
from fmen_jax.research.functions import (
    Apply,
    compiled,
    compiled_gradient,
    float_dtype,
    scale_of,
)


@dataclasses.dataclass(frozen=True)
class BlurPath:
    """Settings of the path from the blurred to the sharp image."""

    steps: int = 50
    """Number of steps, called fold in the published code."""
    sigma: float = 1.2
    """Standard deviation in LR pixels of the Gaussian at the start; it falls linearly to 0."""
    size: int = 9
    """Height and width of the Gaussian kernels in LR pixels; odd."""

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.sigma > 0 or self.size < 1 or self.size % 2 == 0:
            raise InputError(
                f'{self}: expected one step or more, sigma above 0 and an odd size of 1 or more.'
            )

    def kernels(self) -> np.ndarray:
        """Return the steps + 1 kernels, [steps + 1, size, size]; the last one is the identity."""
        away = np.arange(self.size) - self.size // 2
        square = away[:, None] ** 2 + away[None, :] ** 2
        sigma = np.linspace(self.sigma, 0, self.steps + 1).reshape(-1, 1, 1) + 1e-5
        kernels = np.exp(-square / (2 * sigma**2))
        return kernels / kernels.sum((1, 2), keepdims=True)

    def images(self, image: np.ndarray) -> np.ndarray:
        """Return the steps + 1 images of the path, [steps + 1, H, W, C] float64, sharp one last.

        Borders are reflected without repeating the edge, so H and W must exceed size // 2.

        Raises:
          InputError: If the image [H, W, C] is smaller.
        """
        reach = self.size // 2
        if min(image.shape[:2]) <= reach:
            raise InputError(
                f'the image has {image.shape[1]}x{image.shape[0]} pixels; a blur of size '
                f'{self.size} needs {reach + 1} or more in width and height.'
            )
        padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), 'reflect')
        shape = (self.size, self.size)
        patches = np.lib.stride_tricks.sliding_window_view(padded, shape, (0, 1))
        return np.einsum('hwcyx,kyx->khwc', patches.astype(np.float64), self.kernels())


@dataclasses.dataclass(frozen=True)
class Attribution:
    """The local attribution map of one window."""

    signed: np.ndarray
    """Attribution of each LR value, [H, W, C] float64, in units of the detector. With many steps
    the sum approaches `gain`."""
    gain: float
    """Detector for the sharp image minus detector for the blurred one."""
    window: tuple[int, int, int]
    """Row, column, and height and width of the window in HR pixels."""

    @property
    def map(self) -> np.ndarray:
        """Magnitude of the attribution of each LR pixel, [H, W] in 0..1, where the largest is 1."""
        magnitude = np.abs(self.signed.sum(2))
        return magnitude / max(magnitude.max(), np.finfo(float).tiny)

    @property
    def diffusion_index(self) -> float:
        """Diffusion index, 100 (1 - Gini coefficient of the map): 0 for one pixel, 100 for all.

        It depends on the number of LR pixels: compare it only between images of one size.
        """
        return 100 * (1 - gini(self.map))


def gini(values: np.ndarray) -> float:
    """Return the Gini coefficient of non-negative values: 0 if all are equal, near 1 for one peak.

    As in the published code, 1e-7 is added to each value.
    """
    ordered = np.sort(values, axis=None).astype(np.float64) + 1e-7
    count = ordered.size
    weights = 2 * np.arange(1, count + 1) - count - 1
    return float((weights * ordered).sum() / (count * ordered.sum()))


def detect(images: Array, row: Array | int, column: Array | int, side: int) -> Array:
    """Return the strength of the edges in one window of each image, [N].

    The sum over the window and all channels of sqrt(dy^2 + dx^2), where dy and dx are the
    differences to the next pixel below and to the right.

    Args:
      images: [N, H, W, C] float.
      row: first row of the window.
      column: first column of the window.
      side: height and width of the window; the window needs one more pixel below and to the right.
    """
    shape = (images.shape[0], side + 1, side + 1, images.shape[3])
    part = lax.dynamic_slice(images, (0, row, column, 0), shape)
    here = part[:, :-1, :-1]
    square = jnp.square(here - part[:, 1:, :-1]) + jnp.square(here - part[:, :-1, 1:])
    # The square root has an infinite gradient at 0, which flat pixels would turn into NaN.
    edge = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
    return edge.sum((1, 2, 3))


def _detected(apply: Apply, side: int, x: Array, row: Array, column: Array) -> Array:
    return detect(apply(x), row, column, side).sum()


def attribute(
    apply: Apply,
    image: np.ndarray,
    window: tuple[int, int, int] | None = None,
    *,
    path: BlurPath | None = None,
    batch: int = 10,
) -> Attribution:
    """Return the local attribution map of one window of the output.

    The attribution is the sum over i of gradient(image[i + 1]) * (image[i + 1] - image[i]), where
    image[i] are the images of the path and the gradient is that of `detect`.

    Args:
      apply: the network.
      image: LR image [H, W, C], float or uint8.
      window: row, column, and height and width in HR pixels of the window. None means 16x16 pixels
        in the middle, as in the paper.
      path: settings of the path.
      batch: number of images of the path that run at once. Does not change the result.

    Raises:
      InputError: If the image has another shape or is smaller than the blur, the window does not
        lie inside the output with one more pixel below and to the right, or the batch is below 1.
    """
    scale = scale_of(apply, image)
    height, width = (scale * size for size in image.shape[:2])
    row, column, side = window or ((height - 16) // 2, (width - 16) // 2, 16)
    inside = min(row, column) >= 0 and row + side < height and column + side < width
    if batch < 1 or side < 1 or not inside:
        raise InputError(
            f'a window of {side}x{side} pixels at row {row}, column {column} of an output of '
            f'{width}x{height}, in batches of {batch}: expected one inside the output that leaves '
            'one more pixel below and to the right, and a batch of 1 or more.'
        )
    path = path or BlurPath()
    images = path.images(image)
    gradient = compiled_gradient(_detected, apply, side)
    sharper = images[1:].astype(float_dtype())
    gradients = np.concatenate(
        [gradient(sharper[i : i + batch], row, column) for i in range(0, path.steps, batch)]
    )
    signed = (gradients.astype(np.float64) * np.diff(images, axis=0)).sum(0)
    ends = compiled(apply)(images[[0, -1]].astype(float_dtype()))
    blurred, sharp = detect(ends, row, column, side)
    return Attribution(signed, float(sharp) - float(blurred), (row, column, side))
