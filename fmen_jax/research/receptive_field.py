"""Effective receptive field: how much each LR pixel around an output pixel contributes to it.

Luo et al., Understanding the Effective Receptive Field, NeurIPS 2016; measured as in
DingXiaoH/RepLKNet-pytorch (erf/), but with the magnitude of the gradient instead of its positive
part, because a linear network has no preferred sign.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jax import Array

from fmen_jax.errors import InputError
from fmen_jax.research.functions import Apply, compiled_gradient, float_dtype, scale_of


@dataclasses.dataclass(frozen=True)
class ReceptiveField:
    """The effective receptive field of the central output pixel."""

    magnitude: np.ndarray
    """Magnitude of the gradient with respect to each LR pixel, summed over channels and averaged
    over images, [H, W] float64."""
    center: tuple[int, int]
    """Row and column of the LR pixel that contains the output pixel."""

    @property
    def radius(self) -> int:
        """Largest distance, along rows or columns, of an LR pixel with a gradient other than 0."""
        return int(self._distance()[self.magnitude > 0].max(initial=0))

    @property
    def is_cut_off(self) -> bool:
        """Whether the field reaches the border of the images, so that it may be larger."""
        row, column = self.center
        height, width = self.magnitude.shape
        return self.radius >= min(row, column, height - 1 - row, width - 1 - column)

    def side(self, share: float) -> int:
        """Return the side in LR pixels of the smallest centered square that holds a share.

        The side is odd. `share`, in 0..1, is the part of the sum of `magnitude`.
        """
        sums = np.bincount(self._distance().ravel(), self.magnitude.ravel()).cumsum()
        if not 0 <= share <= 1:
            raise InputError(f'share is {share}; expected 0 to 1.')
        # The last sum may be an ulp away from the whole.
        return 2 * int(np.argmax(sums >= min(share * sums[-1], sums[-1]))) + 1

    def _distance(self) -> np.ndarray:
        rows, columns = (
            np.abs(np.arange(size) - middle)
            for size, middle in zip(self.magnitude.shape, self.center, strict=True)
        )
        return np.maximum(rows[:, None], columns[None, :])


def _central(apply: Apply, row: int, column: int, x: Array) -> Array:
    return apply(x)[:, row, column].sum()


def effective_receptive_field(
    apply: Apply, images: Sequence[np.ndarray] | np.ndarray, *, batch: int = 10
) -> ReceptiveField:
    """Return the effective receptive field of the central output pixel.

    The gradient of the sum over channels of the output pixel in row s H // 2, column s W // 2.

    Args:
      apply: the network.
      images: LR images [N, H, W, C], float or uint8. H and W should be odd, so that there is a
        central pixel, and above twice the receptive radius. 50 images are usual.
      batch: number of images that run at once. Does not change the result.

    Raises:
      InputError: If the images are empty or have different shapes, or the batch is below 1.
    """
    shapes = {image.shape for image in images}
    if len(shapes) != 1 or batch < 1:
        raise InputError(
            f'images have the shapes {sorted(shapes)}, in batches of {batch}; expected at least '
            'one image, all of one shape [H, W, C], and a batch of 1 or more.'
        )
    x = np.asarray(images, float_dtype())
    scale = scale_of(apply, x[0])
    row, column = (scale * size // 2 for size in x.shape[1:3])
    gradient = compiled_gradient(_central, apply, row, column)
    total = sum(
        np.abs(np.float64(gradient(x[i : i + batch]))).sum((0, 3)) for i in range(0, len(x), batch)
    )
    return ReceptiveField(np.asarray(total) / len(x), (row // scale, column // scale))
