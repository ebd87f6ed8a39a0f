"""Contact sheet: LR, bicubic, the output of each network and HR side by side for every image.

Images are RGB in 0..255, uint8.
"""

import dataclasses

import numpy as np

from fmen_jax.data.pairs import Loaded
from fmen_jax.errors import require
from fmen_jax.evaluation.scoring import ImageScore, upscale_bicubic

_TILE = 192
"""Side of a crop in HR pixels: a multiple of 2, 3 and 4."""
_LABEL, _GAP = 16, 4


@dataclasses.dataclass
class _Row:
    scale: int
    place: tuple[int, int]
    """Row and column of the crop's top left corner, in LR pixels."""
    tiles: list[tuple[str, np.ndarray]]
    truth: np.ndarray


class Sheet:
    """Collects crops of outputs and draws them.

    Each image is cropped where the squared error of bicubic interpolation is largest.
    """

    def __init__(self) -> None:
        require('PIL', 'plots', 'a contact sheet')
        self._rows: dict[tuple[str, str, int], _Row] = {}

    def add(
        self, weights: str, data: str, loaded: Loaded, output: np.ndarray, score: ImageScore
    ) -> None:
        """Add the output of one network for one image, [scale H, scale W, 3] uint8."""
        scale = loaded.hr.shape[0] // loaded.lr.shape[0]
        key = (data, loaded.name, scale)
        if key not in self._rows:
            bicubic = np.clip(np.rint(upscale_bicubic(loaded.lr, scale)), 0, 255).astype(np.uint8)
            place = _hardest(loaded.hr, bicubic, scale)
            nearest = loaded.lr.repeat(scale, axis=0).repeat(scale, axis=1)
            row = _Row(scale, place, [], _cut(loaded.hr, place, scale))
            row.tiles = [
                (f'{data} {loaded.name}: LR', _cut(nearest, place, scale)),
                (f'bicubic {score.bicubic_psnr:.2f} dB', _cut(bicubic, place, scale)),
            ]
            self._rows[key] = row
        row = self._rows[key]
        row.tiles.append((f'{weights} {score.psnr:.2f} dB', _cut(output, row.place, scale)))

    def draw(self) -> np.ndarray:
        """Return the sheet, [H, W, 3] uint8, with one row for each image."""
        from PIL import Image, ImageDraw

        networks = max(len(row.tiles) for row in self._rows.values()) - 2
        canvas = Image.new('RGB', sheet_size(len(self._rows), networks), 'white')
        pen = ImageDraw.Draw(canvas)
        for j, row in enumerate(self._rows.values()):
            for i, (text, tile) in enumerate([*row.tiles, ('HR', row.truth)]):
                x, y = i * (_TILE + _GAP), j * (_TILE + _LABEL + _GAP)
                while pen.textlength(text) > _TILE:
                    text = text[1:]  # shorten at the start, since the end contains the PSNR
                pen.text((x, y + 2), text, fill='black')
                canvas.paste(Image.fromarray(tile), (x, y + _LABEL))
        return np.asarray(canvas)


def sheet_size(images: int, networks: int) -> tuple[int, int]:
    """Return the width and height in pixels of a sheet with a row for each image."""
    return (networks + 3) * (_TILE + _GAP), images * (_TILE + _LABEL + _GAP)


def _cut(image: np.ndarray, place: tuple[int, int], scale: int) -> np.ndarray:
    y, x = (position * scale for position in place)
    return image[y : y + _TILE, x : x + _TILE]


def _hardest(hr: np.ndarray, bicubic: np.ndarray, scale: int) -> tuple[int, int]:
    """Return the position, in LR pixels, of the tile with the largest squared error of bicubic."""
    error = np.square(hr.astype(float) - bicubic).sum(2)
    height, width = error.shape[0] // scale, error.shape[1] // scale
    small = error.reshape(height, scale, width, scale).sum((1, 3))
    total = np.pad(small.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    h, w = min(_TILE // scale, height), min(_TILE // scale, width)
    inside = total[h:, w:] - total[:-h, w:] - total[h:, :-w] + total[:-h, :-w]
    y, x = np.unravel_index(inside.argmax(), inside.shape)
    return int(y), int(x)
