"""Tiling that gives the same output as the whole image: windows, and the used part of each.

An output pixel of a network without global parts depends on the LR pixels within `radius` of it. If
a window extends beyond its used part by this halo, except at the image border, the used part equals
the output for the whole image. Windows at the border are shifted inward instead of being cut, so
that all tiles of all images have the same shape.
"""

import dataclasses
import math

from fmen_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Span:
    """A window along one axis, in LR pixels."""

    start: int
    stop: int
    """End of the window, which is the range start..stop."""
    first: int
    last: int
    """End of the used part of the window, the range first..last counted from the image border."""


def spans(length: int, tile: int, halo: int) -> list[Span]:
    """Return windows of `tile` pixels whose used parts cover an axis exactly once.

    An axis that is not longer than `tile` has a single window.

    Raises:
      InputError: If the tile consists of its halo alone.
    """
    if length <= tile:
        return [Span(0, length, 0, length)]
    if tile <= 2 * halo:
        raise InputError(
            f'a tile of {tile} LR pixels consists of its halo alone, which is {halo} LR pixels on '
            f'each side: choose a tile of {2 * halo + 1} or more, 0 for the whole image, or a '
            'smaller tile-pad, with which the result is not exact.'
        )
    found: list[Span] = []
    first = 0
    while first < length:
        start = min(max(first - halo, 0), length - tile)
        stop = start + tile
        last = length if stop == length else stop - halo
        found.append(Span(start, stop, first, last))
        first = last
    return found


@dataclasses.dataclass(frozen=True)
class Grid:
    """Windows of an image: every row span combined with every column span."""

    rows: list[Span]
    columns: list[Span]

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of every window in LR pixels."""
        row, column = self.rows[0], self.columns[0]
        return row.stop - row.start, column.stop - column.start

    @property
    def overhead(self) -> float:
        """Number of pixels computed per pixel of the image."""
        height, width = (axis[-1].last for axis in (self.rows, self.columns))
        area = self.shape[0] * self.shape[1] * len(self.rows) * len(self.columns)
        return area / (height * width)


def grid(height: int, width: int, tile: int, halo: int) -> Grid:
    """Return a grid of square tiles of `tile` LR pixels; 0 means the whole image."""
    if not tile:
        tile = max(height, width)
    return Grid(spans(height, tile, halo), spans(width, tile, halo))


@dataclasses.dataclass(frozen=True)
class Limits:
    """Numbers of LR pixels for which the memory suffices."""

    window: int
    """Height times width of a window."""
    band: int
    """Height of a window times the width of the image."""


def largest_grid(height: int, width: int, limits: Limits, halo: int) -> Grid:
    """Return the grid with the least overhead whose windows are within the limits.

    This is the whole image if it fits. Otherwise the candidates are windows of full rows and
    square windows, as far as they are larger than their halo. If the smallest windows that their
    halo allows are too large as well, these are used.
    """
    if height * width <= min(limits.window, limits.band):
        return grid(height, width, 0, halo)
    least = 2 * halo + 1
    highest = max(limits.band // width, least)
    candidates = []
    for rows in (limits.window // width, math.isqrt(limits.window)):
        rows = min(rows, highest)
        columns = min(limits.window // max(rows, 1), width)
        if (rows >= least or rows >= height) and (columns >= least or columns >= width):
            candidates.append(Grid(spans(height, rows, halo), spans(width, columns, halo)))
    return min(candidates, key=lambda g: g.overhead, default=grid(height, width, least, halo))
