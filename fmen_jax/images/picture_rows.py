"""An image that is read by rows, so that it need not be in memory as a whole."""

import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class PictureRows:
    """An image that is read by rows."""

    height: int
    width: int
    read: Callable[[int, int], np.ndarray]
    """Function (start, stop) -> [stop - start, W, C]. `start` must not decrease between calls."""
    constant_alpha: float | None = None
    """Value of the alpha channel if it is the same at all pixels; it then needs no network."""
