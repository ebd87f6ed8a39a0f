"""Image files read by rows with libvips, preserving bit depth and channels.

Pixels are [H, W, C] with 1 (gray), 2 (gray, alpha), 3 (RGB) or 4 (RGB, alpha) channels. They are
uint8, uint16, or float32 in 0..1; the range follows from the type stored in the file and never from
the largest value. CMYK and Lab are converted to sRGB.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from fmen_jax.errors import InputError
from fmen_jax.images.picture_rows import PictureRows
from fmen_jax.images.rgb8 import ENDINGS as DATA_ENDINGS
from fmen_jax.images.rgb8 import has_field, reason

ENDINGS = (*DATA_ENDINGS, '.avif')

_LOADERS = ('png', 'jpeg', 'webp', 'tiff', 'heif')
_DTYPES = {'uchar': np.uint8, 'ushort': np.uint16, 'float': np.float32}
_FILL = 8
"""Distance from visible pixels, in pixels, up to which the color of hidden pixels is replaced."""


@dataclasses.dataclass(frozen=True)
class Opened:
    """An image file that is read by rows."""

    rows: PictureRows
    dtype: np.dtype
    channels: int
    image: Any
    """libvips image, used for its metadata."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.rows.width, self.rows.height


MAX_PIXELS = 10**9
"""Default limit of the pixels of an image, which a damaged header can exceed by far."""


def open_picture(path: Path, *, max_pixels: int = MAX_PIXELS) -> Opened:
    """Open an image file and rotate it to its EXIF orientation; pixels are read on request.

    Args:
      path: image file.
      max_pixels: number of pixels above which the image is refused.

    Raises:
      InputError: If the file is not a readable image, is of an unsupported kind, or is too large.
    """
    import pyvips

    try:
        if not path.stat().st_size:
            raise InputError(f'{path}: the file is empty.')
        image: Any = pyvips.Image.new_from_file(
            str(path), fail_on='error', revalidate=True, access='sequential'
        )
        if problem := _problem(image):
            raise InputError(f'{path}: {problem}.')
        if image.width * image.height > max_pixels:
            raise InputError(
                f'{path}: {image.width}x{image.height} are {image.width * image.height:,} pixels; '
                f'at most {max_pixels:,} are allowed. If the file is right, raise max-pixels.'
            )
        turned = has_field(image, 'orientation') and image.get('orientation') > 1
        if turned or image.hasalpha():  # read out of order or more than once
            image = pyvips.Image.new_from_file(str(path), fail_on='error', revalidate=True)
        image = _in_rgb(image.autorot())
        constant = _constant_alpha(image)
        rows = PictureRows(image.height, image.width, _Reader(path, image, constant).read, constant)
    except pyvips.Error as error:
        raise InputError(f'{path}: not a whole, readable picture: {reason(error)}') from error
    return Opened(rows, np.dtype(_DTYPES[image.format]), image.bands, image)


def count_pixels(path: Path) -> int:
    """Return the number of pixels of an image from its header; 0 if it cannot be read."""
    import pyvips

    try:
        image: Any = pyvips.Image.new_from_file(str(path))
    except pyvips.Error:
        return 0
    return image.width * image.height


def _problem(image: Any) -> str:
    """Return the reason why an image is not supported; '' if it is supported."""
    loader = image.get('vips-loader').removesuffix('load')
    if loader not in _LOADERS:
        return f'is {loader} inside; only {", ".join(_LOADERS)} are handled'
    if has_field(image, 'n-pages') and image.get('n-pages') > 1:
        return f'has {image.get("n-pages")} pages; only single pictures are handled'
    if image.format not in (*_DTYPES, 'double'):
        return f'has pixels of type {image.format}; 8 and 16 bit and float are handled'
    colours = image.bands - image.hasalpha()
    if image.interpretation not in ('cmyk', 'lab', 'labs') and colours not in (1, 3):
        return f'has {image.bands} channels ({image.interpretation}); expected gray, RGB or CMYK'
    return ''


def _in_rgb(image: Any) -> Any:
    if image.interpretation in ('cmyk', 'lab', 'labs'):
        profile = has_field(image, 'icc-profile-data') and image.interpretation == 'cmyk'
        depth = 16 if image.format == 'ushort' else 8
        image = (
            image.icc_transform('srgb', embedded=True, depth=depth)
            if profile
            else image.colourspace('rgb16' if depth == 16 else 'srgb')
        )
        image = image.copy()
        if has_field(image, 'icc-profile-data'):
            image.remove('icc-profile-data')  # the pixels are sRGB now
    return image.cast('float') if image.format == 'double' else image


def _constant_alpha(image: Any) -> float | None:
    """Return the value of the alpha channel if it is the same at all pixels, else None."""
    if not image.hasalpha():
        return None
    alpha = image[image.bands - 1]
    low = alpha.min()
    return low if low == alpha.max() else None


class _Reader:
    """Reads rows of an image and fills in the color of transparent pixels."""

    def __init__(self, path: Path, image: Any, constant_alpha: float | None) -> None:
        import pyvips

        self._path, self._image = path, image
        self._region = pyvips.Region.new(image)
        self._fills = image.hasalpha() and constant_alpha is None

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return the rows from `start` to `stop`, [stop - start, W, C]."""
        if not self._fills:
            return self._fetch(start, stop)
        top, bottom = max(start - _FILL, 0), min(stop + _FILL, self._image.height)
        return filled(self._fetch(top, bottom))[start - top : stop - top]

    def _fetch(self, start: int, stop: int) -> np.ndarray:
        import pyvips

        image = self._image
        try:
            data = self._region.fetch(0, start, image.width, stop - start)
        except pyvips.Error as error:
            raise InputError(
                f'{self._path}: not a whole, readable picture: {reason(error)}'
            ) from error
        pixels = np.frombuffer(data, _DTYPES[image.format])
        return pixels.reshape(stop - start, image.width, image.bands)


def filled(pixels: np.ndarray) -> np.ndarray:
    """Fill hidden pixels near visible ones with the mean color of their neighbors.

    Hidden pixels have alpha 0; those within 8 pixels of a visible one are filled. Editors store
    arbitrary colors there, mostly black, which a network would blend into the edges. Pixels are
    [H, W, 2 or 4] with alpha last; alpha is unchanged.
    """
    known = pixels[..., -1:] > 0
    if known.all() or not known.any():
        return pixels
    colour = np.where(known, pixels[..., :-1], 0).astype(np.float32)
    height, width = pixels.shape[:2]
    for _ in range(_FILL):
        padded, counts = (
            np.pad(a, ((1, 1), (1, 1), (0, 0))) for a in (colour, known.astype(np.float32))
        )
        shifts = [(y, x) for y in range(3) for x in range(3)]
        total = sum(padded[y : y + height, x : x + width] for y, x in shifts)
        count = np.asarray(sum(counts[y : y + height, x : x + width] for y, x in shifts))
        new = ~known & (count > 0)
        colour = np.where(new, total / np.maximum(count, 1), colour)
        known = known | new
    colour = np.where(known, colour, pixels[..., :-1])
    if pixels.dtype != np.float32:
        colour = np.rint(colour)
    return np.concatenate([colour.astype(pixels.dtype), pixels[..., -1:]], -1)
