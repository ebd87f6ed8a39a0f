"""The eight symmetries of a square, for augmentation and self-ensemble."""

import numpy as np


def dihedral(image: np.ndarray, which: int) -> np.ndarray:
    """Apply one of the eight symmetries of a square to an image [..., H, W, C].

    The bits of `which` select the operations, in this order: 1 reverses the order of rows, 2 that
    of columns, and 4 swaps rows and columns.
    """
    if which & 1:
        image = image[..., ::-1, :, :]
    if which & 2:
        image = image[..., ::-1, :]
    return image.swapaxes(-3, -2) if which & 4 else image
