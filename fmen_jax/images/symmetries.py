"""The eight symmetries of a square, for augmentation and self-ensemble."""

import numpy as np


def dihedral(image: np.ndarray, which: int) -> np.ndarray:
    """One of the eight symmetries of a square, [..., H, W, C]: bits mirror rows, columns, swap."""
    if which & 1:
        image = image[..., ::-1, :, :]
    if which & 2:
        image = image[..., ::-1, :]
    return image.swapaxes(-3, -2) if which & 4 else image
