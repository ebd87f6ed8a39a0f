"""Tiles whose results are those of the whole image: windows, and what to keep of each.

An output pixel of a network without global parts depends on `radius` LR pixels around it. A window
that is larger than what is kept of it by this halo, except where it ends with the image, gives the
very pixels of the whole image. Windows are shifted inward at the borders instead of being cut, so
that one shape serves every tile of every image.
"""

import dataclasses
import itertools

from fmen_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Span:
    """A window along one axis, in LR pixels."""

    start: int
    stop: int
    """The window is start .. stop, ..."""
    first: int
    last: int
    """... of which first .. last is kept, counted from the image's border."""


def spans(length: int, tile: int, halo: int) -> list[Span]:
    """Windows of `tile` pixels that keep every pixel of an axis once; one alone if it is shorter.

    Raises:
      InputError: a tile that is all halo.
    """
    if length <= tile:
        return [Span(0, length, 0, length)]
    if tile <= 2 * halo:
        raise InputError(
            f'a tile of {tile} LR pixels is all halo: it needs {halo} around what is kept, so '
            f'choose {2 * halo + 1} or more, 0 for the whole image, or a smaller tile-pad, which '
            'is not exact.'
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
    """The windows of an image: `rows` by `columns`."""

    rows: list[Span]
    columns: list[Span]

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of every window."""
        row, column = self.rows[0], self.columns[0]
        return row.stop - row.start, column.stop - column.start

    @property
    def overhead(self) -> float:
        """Pixels computed for each pixel of the image."""
        height, width = (axis[-1].last for axis in (self.rows, self.columns))
        area = self.shape[0] * self.shape[1] * len(self.rows) * len(self.columns)
        return area / (height * width)


def grid(height: int, width: int, tile: int, halo: int) -> Grid:
    """Square tiles; `tile` 0 is the whole image."""
    if not tile:
        tile = max(height, width)
    return Grid(spans(height, tile, halo), spans(width, tile, halo))


def largest_grid(height: int, width: int, pixels: int, halo: int) -> Grid:
    """The grid of least overhead whose windows have at most `pixels`.

    The whole image if it fits, else full rows if the halo leaves enough of them, else squares.
    """
    if height * width <= pixels:
        return grid(height, width, 0, halo)
    least = 2 * halo + 1
    candidates = [
        Grid(spans(height, rows, halo), spans(width, columns, halo))
        for rows, columns in itertools.chain([(pixels // width, width)], [(int(pixels**0.5),) * 2])
        if (rows >= least or rows >= height) and (columns >= least or columns >= width)
    ]
    # too little memory for any: the smallest tile there is
    return min(candidates, key=lambda g: g.overhead, default=grid(height, width, least, halo))
