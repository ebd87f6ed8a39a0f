"""Upscaling of an image: its windows run through an engine, and bands of output rows come back.

Images are arrays [H, W, C] with 1 (gray), 2 (gray, alpha), 3 (RGB) or 4 (RGB, alpha) channels;
uint8 in 0..255, uint16 in 0..65535, or float32 in 0..1. The range follows from the dtype, never
from the largest value.
"""

import itertools
from collections import deque
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from fmen_jax.errors import InputError
from fmen_jax.images.picture_rows import PictureRows
from fmen_jax.images.symmetries import dihedral
from fmen_jax.inference import bands, memory_plan, tiling
from fmen_jax.inference.engines import Engine, OutOfMemoryError, make_engine
from fmen_jax.inference.settings import InferenceSettings
from fmen_jax.network import Network

_GLOBAL_HALO = 32
"""Halo in LR pixels for networks that see the whole image, whose tiles no halo makes exact."""


class Upscaler:
    """Upscales images of any size with a network; a train graph is folded first."""

    def __init__(
        self,
        network: Network,
        settings: InferenceSettings = InferenceSettings(),  # noqa: B008 - frozen
    ) -> None:
        """Build the engine.

        Raises:
          InputError: If the network is not for RGB, the tile is too small for its halo, or the
            engine is not available.
        """
        if (colors := getattr(network.config, 'n_colors', 3)) != 3:
            raise InputError(
                f'the network has {colors} color channels; images are upscaled by a network with 3 '
                '(RGB). For arrays of another kind, call the network itself: `network(x)`.'
            )
        self.network = network.fold()
        self.scale = network.config.scale
        self.engine: Engine = make_engine(self.network, settings.engine, settings.dtype)
        radius = network.config.receptive_radius
        self.halo = settings.tile_pad if settings.tile_pad is not None else radius or _GLOBAL_HALO
        self.exact = radius is not None and self.halo >= radius
        self._tile: Literal['auto'] | int = settings.tile
        self._batch = settings.batch
        self._ensemble = settings.self_ensemble
        if isinstance(self._tile, int) and self._tile:
            tiling.spans(2 * self._tile, self._tile, self.halo)  # raises if the tile is all halo

    @property
    def fingerprint(self) -> str:
        """Description of all that affects the output, besides the weights."""
        tile = '' if self.exact else f' tile {self._tile}'
        return (
            f'{self.engine.name} {self.engine.dtype} halo {self.halo}{tile} '
            f'ensemble {self._ensemble}'
        )

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Upscale an image [H, W, C] to [s H, s W, C] of the same dtype.

        Raises:
          InputError: If the array has another shape or dtype, or is too large for the memory even
            in tiles.
        """
        known = getattr(pixels, 'ndim', 0) == 3 and pixels.dtype.name in bands.RANGES
        if not (known and pixels.shape[2] in (1, 2, 3, 4) and min(pixels.shape) > 0):
            raise InputError(
                f'pixels are {getattr(pixels, "dtype", type(pixels).__name__)}'
                f'{list(getattr(pixels, "shape", ()))}; expected uint8, uint16 or float32 (0..1) '
                '[H, W, C] with 1 to 4 channels.'
            )
        alpha = pixels[..., -1] if pixels.shape[2] in (2, 4) else None
        constant = None if alpha is None or np.ptp(alpha) else float(alpha[0, 0])
        height, width, channels = pixels.shape
        rows = PictureRows(height, width, lambda start, stop: pixels[start:stop], constant)
        output = np.empty((height * self.scale, width * self.scale, channels), pixels.dtype)
        top = 0
        for band in self.bands(rows):
            output[top : top + len(band)] = band
            top += len(band)
        return output

    def bands(self, rows: PictureRows) -> Iterator[np.ndarray]:
        """Upscale an image and yield its output rows from top to bottom, in bands [h, s W, C].

        Raises:
          InputError: If the image cannot be read, or is too large for the memory even in tiles.
        """
        waiting: deque[bands.Band] = deque()

        def cut() -> Iterator[bands.Window]:
            for band in bands.cut(rows, self._grid(rows), self.scale):
                waiting.append(band)
                yield from band.windows()

        windows = cut()
        while batch := [*itertools.islice(windows, self._batch)]:
            outputs = self._run(np.stack([window.pixels for window in batch]))
            for window, output in zip(batch, outputs, strict=True):
                window.band.paste(window, output)
            while waiting and waiting[0].complete:
                yield waiting.popleft().output()

    def _grid(self, rows: PictureRows) -> tiling.Grid:
        if self._tile == 'auto':
            limits = memory_plan.limits(self.network, self._batch)
            return tiling.largest_grid(rows.height, rows.width, limits, self.halo)
        return tiling.grid(rows.height, rows.width, self._tile, self.halo)

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
            self._tile = tile  # applies to later images as well
            grid = tiling.grid(height, width, tile, self.halo)
            y = np.empty((1, height * self.scale, width * self.scale, 3), np.float32)
            for row in grid.rows:
                for column in grid.columns:
                    window = x[:, row.start : row.stop, column.start : column.stop]
                    bands.paste_tile(y[0], self._run(window)[0], row, column, self.scale)
            return y

    def _through(self, x: np.ndarray) -> np.ndarray:
        """Run the engine, with self-ensemble if asked for."""
        n = len(x)
        if x.shape[1:3] == (self._tile, self._tile) and n < self._batch:
            # padded, so that full tiles have one static shape
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
