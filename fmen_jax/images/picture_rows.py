"""A picture that is read by rows, so that it need not be in memory as a whole."""

import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class PictureRows:
    """A picture that is read by rows."""

    height: int
    width: int
    read: Callable[[int, int], np.ndarray]
    """start, stop -> [stop - start, W, C]; the starts never fall."""
    constant_alpha: float | None = None
    """The value of an alpha channel that is everywhere the same: it needs no network."""
