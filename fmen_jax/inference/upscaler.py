"""Upscaling of pictures: tiles run through an engine, and the output is returned in bands of rows.

Pictures are arrays [H, W, C] with 1 (gray), 2 (gray, alpha), 3 (RGB) or 4 (RGB, alpha) channels;
uint8 in 0..255, uint16 in 0..65535, or float32 in 0..1. The range follows from the dtype, never
from the largest value.
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
import psutil

from fmen_jax.errors import FMENError, InputError
from fmen_jax.images.picture_rows import PictureRows
from fmen_jax.images.symmetries import dihedral
from fmen_jax.inference import tiling
from fmen_jax.inference.engines import Dtype, Engine, Name, OutOfMemoryError, make_engine
from fmen_jax.network import Network

_RANGE = {'uint8': 255.0, 'uint16': 65535.0, 'float32': 1.0}
_GLOBAL_HALO = 32
"""Halo in LR pixels for networks that see the whole image, whose tiles no halo makes exact."""


class Upscaler:
    """Upscales pictures of any size with a network; a train graph is folded first."""

    def __init__(
        self,
        network: Network,
        *,
        engine: Name = 'xla',
        dtype: Dtype = 'float32',
        tile: int | None = None,
        tile_pad: int | None = None,
        batch: int = 1,
        self_ensemble: bool = False,
    ) -> None:
        """Build the engine.

        Args:
          network: the network to upscale with.
          engine: name of the engine that runs the network, see `inference.engines`.
          dtype: dtype that the engine computes in.
          tile: height and width of a window in LR pixels. 0 means the whole picture; None means as
            much as the available memory allows. Halved when memory runs out.
          tile_pad: halo in LR pixels around the part of a window that is used. None means the
            receptive radius, with which tiles are exact.
          batch: number of windows that run at once; they may belong to several pictures.
          self_ensemble: whether to average the outputs over the eight flips and rotations.
        """
        if (colors := getattr(network.config, 'n_colors', 3)) != 3:
            raise InputError(
                f'the network is of {colors} colours; pictures are upscaled by one of 3 (RGB). '
                'Its functions take arrays: `network(x)`.'
            )
        self.network = network.fold()
        self.scale = network.config.scale
        self.engine: Engine = make_engine(self.network, engine, dtype)
        radius = network.config.receptive_radius
        self.halo = tile_pad if tile_pad is not None else radius or _GLOBAL_HALO
        self.exact = radius is not None and self.halo >= radius
        self.settings = (
            f'{self.engine.name} {self.engine.dtype} halo {self.halo} ensemble {self_ensemble}'
        )
        self._tile = tile
        self._batch = batch
        self._ensemble = self_ensemble
        if self.halo < 0 or batch < 1 or (tile or 0) < 0:
            raise InputError('tile and tile-pad are 0 or more, batch is 1 or more.')
        if tile:
            tiling.spans(2 * tile, tile, self.halo)  # raises an error for a tile that is all halo

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Upscale a picture [H, W, C] to [s H, s W, C] of the same dtype.

        Raises:
          InputError: the array has another shape or dtype, or is too large for the memory even in
            tiles.
        """
        known = getattr(pixels, 'ndim', 0) == 3 and pixels.dtype.name in _RANGE
        if not (known and pixels.shape[2] in (1, 2, 3, 4) and min(pixels.shape) > 0):
            raise InputError(
                f'pixels are {getattr(pixels, "dtype", type(pixels).__name__)}'
                f'{list(getattr(pixels, "shape", ()))}; expected uint8, uint16 or float32 (0..1) '
                '[H, W, C] with 1 to 4 channels.'
            )
        alpha = pixels[..., -1] if pixels.shape[2] in (2, 4) else None
        constant = None if alpha is None or np.ptp(alpha) else float(alpha[0, 0])
        rows = PictureRows(pixels.shape[0], pixels.shape[1], lambda a, b: pixels[a:b], constant)
        bands = []
        for _, band in self.bands([rows]):
            if isinstance(band, FMENError):
                raise band
            bands.append(band)
        return np.concatenate(bands)

    def bands(
        self, pictures: Iterable[PictureRows], stopped: Callable[[], bool] = bool
    ) -> Iterator[tuple[int, np.ndarray | FMENError]]:
        """Upscale pictures, each from top to bottom; windows of several pictures may run at once.

        `stopped()` is called before each window; once it returns True, the iteration ends.

        Yields pairs (index of the picture, [h, s W, C]), where the band of rows follows the
        previous band of the same picture. A picture that cannot be read or is too large yields its
        error once, in place of its remaining rows.
        """
        waiting: deque[_Band] = deque()
        tiles: list[_Tile] = []
        failed: dict[int, FMENError] = {}

        def run() -> Iterator[tuple[int, np.ndarray | FMENError]]:
            try:
                if tiles:
                    outputs = self._run(np.stack([tile.x for tile in tiles]))
                    for tile, output in zip(tiles, outputs, strict=True):
                        tile.keep(output, self.scale)
            except Exception as raised:
                error = _as_fmen_error(raised)
                new = {tile.band.picture for tile in tiles} - failed.keys()
                failed.update(dict.fromkeys(new, error))
                yield from ((number, error) for number in sorted(new))
            tiles.clear()
            while waiting and (not waiting[0].missing or waiting[0].picture in failed):
                band = waiting.popleft()
                if band.picture not in failed:
                    yield band.picture, band.finish()

        for number, rows in enumerate(pictures):
            try:
                for band in self._cut(number, rows):
                    if number in failed:
                        break
                    waiting.append(band)
                    for tile in band.tiles():
                        if stopped():
                            return
                        if len(tiles) == self._batch or (
                            tiles and tiles[0].x.shape != tile.x.shape
                        ):
                            yield from run()
                        tiles.append(tile)
            except Exception as raised:  # whatever is wrong with one picture, the others go on
                failed[number] = error = _as_fmen_error(raised)
                yield number, error
        yield from run()

    def _cut(self, number: int, rows: PictureRows) -> Iterator['_Band']:
        if self._tile is None:
            grid = tiling.largest_grid(rows.height, rows.width, self._pixels_at_once(), self.halo)
        else:
            grid = tiling.grid(rows.height, rows.width, self._tile, self.halo)
        kept = np.empty((0,))
        kept_start = 0
        for span in grid.rows:
            # rows that were already read for the previous window are not read again
            known = kept_start + len(kept)
            fresh = rows.read(max(span.start, known), span.stop)
            old = kept[span.start - kept_start :] if span.start < known else kept[:0]
            kept = np.concatenate([old, fresh]) if len(old) else fresh
            kept_start = span.start
            yield _Band(number, rows, span, grid.columns, kept, self.scale)

    def _run(self, x: np.ndarray) -> np.ndarray:
        """Upscale [n, H, W, 3] to [n, s H, s W, 3], split in halves when memory runs out."""
        try:
            return self._through(x)
        except OutOfMemoryError as error:
            if len(x) > 1:
                self._batch = 1
                return np.concatenate([self._run(part) for part in np.array_split(x, 2)])
            height, width = x.shape[1:3]
            tile = -(-max(height, width) // 2)
            if not self.exact or tile <= 2 * self.halo:
                raise InputError(str(error)) from error
            self._tile = tile  # applies to later windows as well
            grid = tiling.grid(height, width, tile, self.halo)
            y = np.empty((1, height * self.scale, width * self.scale, 3), np.float32)
            for row in grid.rows:
                for column in grid.columns:
                    window = x[:, row.start : row.stop, column.start : column.stop]
                    _keep(y[0], self._run(window)[0], row, column, self.scale)
            return y

    def _through(self, x: np.ndarray) -> np.ndarray:
        full = self._tile and x.shape[1:3] == (self._tile, self._tile)
        n = len(x)
        if full and n < self._batch:  # padded, so that full tiles have one static shape
            x = np.concatenate([x, np.zeros((self._batch - n, *x.shape[1:]), x.dtype)])
        if not self._ensemble:
            return self.engine(x)[:n]
        total: Any = 0
        for which in range(8):
            y = self.engine(np.ascontiguousarray(dihedral(x, which)))
            # The axes are mirrored first and then swapped, so the swap is undone first.
            y = y.swapaxes(-3, -2) if which & 4 else y
            total = total + dihedral(y, which & 3)
        return (total / 8)[:n]

    def _pixels_at_once(self) -> int:
        """Return the number of LR pixels of a window that fits into a third of the free memory."""
        config: Any = self.network.config
        if jax.default_backend() == 'cpu':
            free = psutil.virtual_memory().available
        else:
            free = (jax.local_devices()[0].memory_stats() or {}).get('bytes_limit', 2**33)
        width = getattr(config, 'n_feats', 50)
        # In float32: about five live feature maps (ten in the other networks), the output of the
        # tail and its pixel shuffle.
        maps = 5 if config.receptive_radius else 10
        each = 4 * (maps * width + 3 * 3 * self.scale**2)
        return max(int(free / 3 / each / self._batch), 1)


@dataclasses.dataclass
class _Tile:
    x: np.ndarray
    """Input window [H, W, 3], float32 in 0..255."""
    band: '_Band'
    column: tiling.Span
    channels: slice
    """Output channels that this pass computes; one channel is the mean of the network's three."""

    def keep(self, output: np.ndarray, scale: int) -> None:
        band = self.band
        if self.channels.stop - self.channels.start == 1:
            output = output.mean(-1, keepdims=True)
        output = _in_type(output, band.output.dtype)
        _keep(band.output[..., self.channels], output, band.row, self.column, scale, band.row.first)
        band.missing -= 1


class _Band:
    """Output rows of one row of windows."""

    def __init__(
        self,
        picture: int,
        rows: PictureRows,
        row: tiling.Span,
        columns: list[tiling.Span],
        pixels: np.ndarray,
        scale: int,
    ) -> None:
        self.picture = picture
        self.row = row
        self._rows, self._columns, self._pixels = rows, columns, pixels
        channels = pixels.shape[2]
        self.output = np.empty(
            ((row.last - row.first) * scale, rows.width * scale, channels), pixels.dtype
        )
        colour = 1 if channels < 3 else 3
        self._passes = [slice(0, colour)]
        if channels > colour and rows.constant_alpha is None:
            self._passes.append(slice(colour, colour + 1))
        self.missing = len(columns) * len(self._passes)

    def tiles(self) -> Iterator[_Tile]:
        top = _RANGE[self._pixels.dtype.name]
        for channels in self._passes:
            for column in self._columns:
                window = self._pixels[:, column.start : column.stop, channels]
                x = window.astype(np.float32)
                x = x if top == 255 else x * np.float32(255 / top)
                yield _Tile(np.broadcast_to(x, (*x.shape[:2], 3)), self, column, channels)

    def finish(self) -> np.ndarray:
        """Return the output rows, with a constant alpha channel filled in without the network."""
        if self._rows.constant_alpha is not None:
            self.output[..., -1] = self._rows.constant_alpha
        return self.output


def _as_fmen_error(error: Exception) -> FMENError:
    """The error itself, or one that names an unexpected error and has it as its cause."""
    if isinstance(error, FMENError):
        return error
    found = FMENError(f'{type(error).__name__}: {error}')
    found.__cause__ = error
    return found


def _in_type(y: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Convert from 0..255 to the range of `dtype`; integers are rounded and clamped, floats not."""
    top = _RANGE[dtype.name]
    if top != 255:
        y = y * np.float32(top / 255)
    if dtype == np.float32:
        return y
    return np.clip(np.rint(y), 0, top).astype(dtype)


def _keep(
    target: np.ndarray,
    output: np.ndarray,
    row: tiling.Span,
    column: tiling.Span,
    scale: int,
    top: int = 0,
) -> None:
    """Copy the used part of a window's output into `target`, whose first row is LR row `top`."""
    kept = output[
        (row.first - row.start) * scale : (row.last - row.start) * scale,
        (column.first - column.start) * scale : (column.last - column.start) * scale,
    ]
    rows = slice((row.first - top) * scale, (row.last - top) * scale)
    target[rows, column.first * scale : column.last * scale] = kept
