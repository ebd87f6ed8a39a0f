"""Reading of image files with libvips: by rows with all depths, or whole as 8-bit RGB.

`open_picture` is for upscaling. Pixels are [H, W, C] with 1 (gray), 2 (gray, alpha), 3 (RGB) or 4
(RGB, alpha) channels. They are uint8, uint16, or float32 in 0..1; the range follows from the type
stored in the file and never from the largest value. CMYK and Lab are converted to sRGB.

`read_rgb8` is for training and evaluation. Pixels are [H, W, 3], uint8, RGB in 0..255. Images that
would lose information (16 bit, transparency, CMYK) are refused.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np

from fmen_jax.errors import InputError
from fmen_jax.files import check_utf8
from fmen_jax.images.libvips import PROFILE, has_field, translated_errors
from fmen_jax.images.picture_rows import PictureRows

RGB8_EXTENSIONS = ('.png', '.jpg', '.jpeg', '.webp', '.tif', '.tiff')
"""File extensions of the images of data sets, reports and plots."""
EXTENSIONS = (*RGB8_EXTENSIONS, '.avif')
"""File extensions of the images that can be upscaled."""
MAX_PIXELS = 10**9
"""Default limit of the pixels of an image, which a damaged header can exceed by far."""

_LOADERS = ('png', 'jpeg', 'webp', 'tiff', 'heif')
_DTYPES = {'uchar': np.uint8, 'ushort': np.uint16, 'float': np.float32}
_MOST_PIXELS_PER_BYTE = {'png': 8 * 1032, 'jpeg': 8 * 64}
"""Most pixels that a byte of a file can hold, by format: of a PNG 8 pixels of 1 bit, which deflate
compresses at most 1032 times; of a JPEG 8 blocks of 8x8 pixels, each of which takes a bit at least.
The other formats have no such limit. libjpeg invents the pixels that a file lacks."""
_UNREADABLE = 'the file is not a complete, readable image'
_FETCHED = 2**24
"""Bytes of rows that libvips is asked for at once; it needs about five times as many for itself."""
_FETCHED_ROWS = 512
"""Rows that libvips is asked for at once. If an image that is read in order cannot be decoded,
libvips tries again for each of them, in a time that is quadratic in their number."""
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


def open_picture(path: Path, *, max_pixels: int = MAX_PIXELS) -> Opened:
    """Open an image file and rotate it to its EXIF orientation; pixels are read on request.

    Args:
      path: image file.
      max_pixels: number of pixels above which the image is refused.

    Raises:
      InputError: If the file is not a readable image, is of an unsupported kind, or is too large.
    """
    with translated_errors(path, _UNREADABLE):
        image = _open(path, access='sequential')
        _check_rows(path, image, max_pixels)
        rotated = has_field(image, 'orientation') and image.get('orientation') > 1
        if rotated or image.hasalpha():  # read out of order or more than once
            image = _open(path)
        image = _in_rgb(image.autorot())
        constant = _constant_alpha(image)
        rows = PictureRows(image.height, image.width, _Reader(path, image, constant).read, constant)
    return Opened(rows, np.dtype(_DTYPES[image.format]), image.bands, image)


def read_rgb8(path: Path) -> np.ndarray:
    """Read a whole image as [H, W, 3], uint8, and rotate it to its EXIF orientation.

    Raises:
      InputError: If the file is not a readable image, is truncated, is of an unsupported kind, or
        is too large.
    """
    with translated_errors(path, _UNREADABLE):
        image = _open(path)
        _check_rgb8(path, image)
        _check_size(path, image, MAX_PIXELS, 'reduce the image, or split it')
        pixels = image.autorot().numpy()
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def count_pixels(path: Path) -> int:
    """Return the number of pixels of an image from its header; 0 if it cannot be read."""
    import pyvips

    if not path.is_file():  # a named pipe would wait for its writer
        return 0
    try:
        check_utf8(path)
        image: Any = pyvips.Image.new_from_file(str(path))
    except (InputError, pyvips.Error):
        return 0
    return image.width * image.height


def _open(path: Path, **options: Any) -> Any:
    """Open a file with libvips and check that it is a single image of a supported format."""
    import pyvips

    check_utf8(path)
    try:
        size = path.stat().st_size
    except OSError as error:
        raise InputError(f'{path}: {_UNREADABLE}: {error.strerror}') from error
    if not size:
        raise InputError(f'{path}: the file is empty.')
    image: Any = pyvips.Image.new_from_file(str(path), fail_on='error', revalidate=True, **options)
    loader = image.get('vips-loader').removesuffix('load')
    if loader not in _LOADERS:
        raise InputError(
            f'{path}: the format of the file is {loader}; expected one of {", ".join(_LOADERS)}.'
        )
    if image.width * image.height > size * _MOST_PIXELS_PER_BYTE.get(loader, math.inf):
        raise InputError(
            f'{path}: the header claims {image.width}x{image.height} pixels, more than a file of '
            f'{size:,} bytes can hold; the file is damaged.'
        )
    if has_field(image, 'n-pages') and image.get('n-pages') > 1:
        raise InputError(
            f'{path}: the file has {image.get("n-pages")} pages; expected a single image.'
        )
    return image


def _check_rows(path: Path, image: Any, max_pixels: int) -> None:
    if image.format not in (*_DTYPES, 'double') and image.interpretation != 'labs':
        raise InputError(
            f'{path}: the pixels are of type {image.format}; expected 8 or 16 bit, or float.'
        )
    colors = image.bands - image.hasalpha()
    if image.interpretation not in ('cmyk', 'lab', 'labs') and colors not in (1, 3):
        raise InputError(
            f'{path}: the image has {image.bands} channels ({image.interpretation}); expected '
            'gray, RGB or CMYK.'
        )
    _check_size(path, image, max_pixels, 'raise max-pixels')


def _check_size(path: Path, image: Any, max_pixels: int, remedy: str) -> None:
    if image.width * image.height > max_pixels:
        raise InputError(
            f'{path}: {image.width}x{image.height} are {image.width * image.height:,} pixels; at '
            f'most {max_pixels:,} are allowed. If the file is right, {remedy}.'
        )


def _check_rgb8(path: Path, image: Any) -> None:
    found = f'{image.format}, {image.bands} channels, {image.interpretation}'
    if image.hasalpha():
        raise InputError(
            f'{path}: the image has transparency ({found}); remove its alpha channel first.'
        )
    if image.format != 'uchar':
        raise InputError(
            f'{path}: the image is not 8 bit ({found}); save it with 8 bits per channel first.'
        )
    if image.interpretation not in ('srgb', 'rgb', 'b-w', 'multiband') or image.bands not in (1, 3):
        raise InputError(
            f'{path}: the image is neither RGB nor gray ({found}); convert it to sRGB first.'
        )


def _in_rgb(image: Any) -> Any:
    if image.interpretation in ('cmyk', 'lab', 'labs'):
        profile = has_field(image, PROFILE) and image.interpretation == 'cmyk'
        depth = 16 if image.format in ('ushort', 'short') else 8
        image = (
            image.icc_transform('srgb', embedded=True, depth=depth)
            if profile
            else image.colourspace('rgb16' if depth == 16 else 'srgb')
        )
        image = image.copy()
        if has_field(image, PROFILE):
            image.remove(PROFILE)  # the pixels are sRGB now
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
        image, dtype = self._image, np.dtype(_DTYPES[self._image.format])
        pixels = np.empty((stop - start, image.width, image.bands), dtype)
        step = max(_FETCHED // (image.width * image.bands * dtype.itemsize), 1)
        step = min(step, _FETCHED_ROWS)
        for top in range(0, stop - start, step):
            part = pixels[top : top + step]
            with translated_errors(self._path, _UNREADABLE):
                data = self._region.fetch(0, start + top, image.width, len(part))
            part[...] = np.frombuffer(data, dtype).reshape(part.shape)
        return pixels


def filled(pixels: np.ndarray) -> np.ndarray:
    """Fill hidden pixels near visible ones with the mean color of their neighbors.

    Hidden pixels have alpha 0; those within 8 pixels of a visible one are filled. Editors store
    arbitrary colors there, mostly black, which a network would blend into the edges. Pixels are
    [H, W, 2 or 4] with alpha last; alpha is unchanged.
    """
    known = pixels[..., -1:] > 0
    if known.all() or not known.any():
        return pixels
    color = np.where(known, pixels[..., :-1], 0).astype(np.float32)
    height, width = pixels.shape[:2]
    for _ in range(_FILL):
        padded, counts = (
            np.pad(a, ((1, 1), (1, 1), (0, 0))) for a in (color, known.astype(np.float32))
        )
        shifts = [(y, x) for y in range(3) for x in range(3)]
        total = sum(padded[y : y + height, x : x + width] for y, x in shifts)
        count = np.asarray(sum(counts[y : y + height, x : x + width] for y, x in shifts))
        new = ~known & (count > 0)
        color = np.where(new, total / np.maximum(count, 1), color)
        known = known | new
    color = np.where(known, color, pixels[..., :-1])
    if pixels.dtype != np.float32:
        color = np.rint(color)
    return np.concatenate([color.astype(pixels.dtype), pixels[..., -1:]], -1)
