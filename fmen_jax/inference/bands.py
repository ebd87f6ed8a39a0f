"""Cutting an image into windows, and assembling the outputs of the windows into bands of rows.

Windows are float32 in 0..255, whatever the dtype of the image.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from fmen_jax.images.picture_rows import PictureRows
from fmen_jax.inference.tiling import Grid, Span

RANGES = {'uint8': 255.0, 'uint16': 65535.0, 'float32': 1.0}
"""Largest value of an image by its dtype."""


class Band:
    """Output rows of one row of windows."""

    def __init__(
        self, rows: PictureRows, row: Span, columns: Sequence[Span], pixels: np.ndarray, scale: int
    ) -> None:
        """Allocate the output.

        Args:
          rows: the image.
          row: rows of the windows.
          columns: columns of each window.
          pixels: pixels [row.stop - row.start, W, C] of the image.
          scale: scale factor.
        """
        self._row, self._columns, self._pixels, self._scale = row, columns, pixels, scale
        self._constant_alpha = rows.constant_alpha
        channels = pixels.shape[2]
        self._output = np.empty(
            ((row.last - row.first) * scale, rows.width * scale, channels), pixels.dtype
        )
        colors = 1 if channels < 3 else 3
        self._passes = [slice(0, colors)]
        if channels > colors and rows.constant_alpha is None:
            self._passes.append(slice(colors, colors + 1))
        self._missing = len(columns) * len(self._passes)

    def windows(self) -> Iterator['Window']:
        """Yield the windows to compute: those of the colors, then those of the alpha channel."""
        top = RANGES[self._pixels.dtype.name]
        for channels in self._passes:
            for column in self._columns:
                x = self._pixels[:, column.start : column.stop, channels].astype(np.float32)
                x = x if top == 255 else x * np.float32(255 / top)
                yield Window(np.broadcast_to(x, (*x.shape[:2], 3)), self, column, channels)

    def paste(self, window: 'Window', output: np.ndarray) -> None:
        """Put the output [s H, s W, 3] of a window into its place."""
        channels = window.channels
        if channels.stop - channels.start == 1:
            output = output.mean(-1, keepdims=True)
        output = _in_type(output, self._output.dtype)
        target = self._output[..., channels]
        paste_tile(target, output, self._row, window.column, self._scale, self._row.first)
        self._missing -= 1

    @property
    def complete(self) -> bool:
        """Whether the outputs of all windows have been pasted."""
        return self._missing == 0

    def output(self) -> np.ndarray:
        """Return the rows [h, s W, C], with a constant alpha channel filled in."""
        if self._constant_alpha is not None:
            self._output[..., -1] = self._constant_alpha
        return self._output


@dataclasses.dataclass
class Window:
    """A part of an image that the network computes at once."""

    pixels: np.ndarray
    """Pixels [H, W, 3], float32 in 0..255."""
    band: Band
    column: Span
    channels: slice
    """Output channels that this window is for; one channel is the mean of the network's three."""


def cut(rows: PictureRows, grid: Grid, scale: int) -> Iterator[Band]:
    """Read an image from top to bottom and yield a band for each row of windows.

    Rows that the previous band has read are not read again.
    """
    pixels = np.empty((0,))
    start = stop = 0  # the rows that `pixels` holds
    for span in grid.rows:
        new = rows.read(max(span.start, stop), span.stop)
        overlap = pixels[span.start - start :]
        pixels = np.concatenate([overlap, new]) if span.start < stop else new
        start, stop = span.start, span.stop
        yield Band(rows, span, grid.columns, pixels, scale)


def paste_tile(
    target: np.ndarray, output: np.ndarray, row: Span, column: Span, scale: int, top: int = 0
) -> None:
    """Copy the used part of a window's output into `target`, whose first row is LR row `top`."""
    used = output[
        (row.first - row.start) * scale : (row.last - row.start) * scale,
        (column.first - column.start) * scale : (column.last - column.start) * scale,
    ]
    rows = slice((row.first - top) * scale, (row.last - top) * scale)
    target[rows, column.first * scale : column.last * scale] = used


def _in_type(y: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Convert from 0..255 to the range of `dtype`; integers are rounded and clamped, floats not."""
    top = RANGES[dtype.name]
    if top != 255:
        y = y * np.float32(top / 255)
    if dtype == np.float32:
        return y
    return np.clip(np.rint(y), 0, top).astype(dtype)
