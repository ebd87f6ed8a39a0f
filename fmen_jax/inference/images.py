"""Picture files in and out as they are: depth, channels, profile and metadata kept; by libvips.

Pixels are [H, W, C] with 1 (gray), 2 (gray, alpha), 3 (RGB) or 4 (RGB, alpha) channels; uint8,
uint16, or float32 in 0..1 as the file has it, never by its largest value. CMYK and Lab become sRGB.
"""

import dataclasses
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from fmen_jax.data.images import ENDINGS as DATA_ENDINGS
from fmen_jax.data.images import reason
from fmen_jax.errors import InputError
from fmen_jax.files import written_aside
from fmen_jax.inference.upscaler import Rows

ENDINGS = (*DATA_ENDINGS, '.avif')

_LOADERS = ('png', 'jpeg', 'webp', 'tiff', 'heif')
_DTYPES = {'uchar': np.uint8, 'ushort': np.uint16, 'float': np.float32}
_BLOBS = ('icc-profile-data', 'exif-data', 'xmp-data', 'iptc-data')
_LARGEST = {'.jpg': 65535, '.jpeg': 65535, '.webp': 16383, '.avif': 16384}
"""Pixels along one side that a format can hold."""
_IN_MEMORY = 2**28
"""Bytes of output beyond which rows wait on disk."""
_FILL = 8
"""Pixels around what is visible whose hidden colour is replaced."""


@dataclasses.dataclass(frozen=True)
class SaveOptions:
    """How pictures are written."""

    quality: int | None = None
    """1..100 for JPEG (95 by default), AVIF (90) and WebP (lossless by default)."""
    compression: int | None = None
    """0..9 for PNG (6 by default)."""

    def of(self, ending: str) -> dict[str, Any]:
        """Libvips' own options for an ending."""
        if ending in ('.jpg', '.jpeg'):
            return {'Q': self.quality or 95, 'subsample_mode': 'off'}
        if ending == '.webp':
            return {'Q': self.quality} if self.quality else {'lossless': True}
        if ending == '.avif':
            return {'Q': self.quality or 90, 'compression': 'av1', 'subsample_mode': 'off'}
        if ending == '.png':
            return {'compression': 6 if self.compression is None else self.compression}
        return {'compression': 'deflate', 'predictor': 'horizontal', 'bigtiff': True}


@dataclasses.dataclass(frozen=True)
class Opened:
    """A picture file that is read by rows."""

    rows: Rows
    dtype: np.dtype
    channels: int
    image: Any
    """libvips' image, for its metadata."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.rows.width, self.rows.height


def open_picture(path: Path) -> Opened:
    """Open a picture, turned upright by its orientation; pixels are read when they are asked for.

    Raises:
      InputError: not a readable picture, or of a kind that is not handled.
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
        turned = 'orientation' in image.get_fields() and image.get('orientation') > 1
        if turned or image.hasalpha():  # these read rows out of order, or more than once
            image = pyvips.Image.new_from_file(str(path), fail_on='error', revalidate=True)
        image = _in_rgb(image.autorot())
        constant = _constant_alpha(image)
        rows = Rows(image.height, image.width, _Reader(path, image, constant).read, constant)
    except pyvips.Error as error:
        raise InputError(f'{path}: not a whole, readable picture: {reason(error)}') from error
    return Opened(rows, np.dtype(_DTYPES[image.format]), image.bands, image)


def _problem(image: Any) -> str:
    """Why a picture is not handled; '' if it is."""
    loader = image.get('vips-loader').removesuffix('load')
    if loader not in _LOADERS:
        return f'is {loader} inside; only {", ".join(_LOADERS)} are handled'
    if 'n-pages' in image.get_fields() and image.get('n-pages') > 1:
        return f'has {image.get("n-pages")} pages; only single pictures are handled'
    if image.format not in (*_DTYPES, 'double'):
        return f'has pixels of type {image.format}; 8 and 16 bit and float are handled'
    colours = image.bands - image.hasalpha()
    if image.interpretation not in ('cmyk', 'lab', 'labs') and colours not in (1, 3):
        return f'has {image.bands} channels ({image.interpretation}); expected gray, RGB or CMYK'
    return ''


def _in_rgb(image: Any) -> Any:
    if image.interpretation in ('cmyk', 'lab', 'labs'):
        profile = 'icc-profile-data' in image.get_fields() and image.interpretation == 'cmyk'
        depth = 16 if image.format == 'ushort' else 8
        image = (
            image.icc_transform('srgb', embedded=True, depth=depth)
            if profile
            else image.colourspace('rgb16' if depth == 16 else 'srgb')
        )
        image = image.copy()
        if 'icc-profile-data' in image.get_fields():
            image.remove('icc-profile-data')  # it is sRGB now
    return image.cast('float') if image.format == 'double' else image


def _constant_alpha(image: Any) -> float | None:
    """The value of an alpha channel that is the same everywhere."""
    if not image.hasalpha():
        return None
    alpha = image[image.bands - 1]
    low = alpha.min()
    return low if low == alpha.max() else None


class _Reader:
    """Rows of an image, with the colour under transparent pixels filled."""

    def __init__(self, path: Path, image: Any, constant_alpha: float | None) -> None:
        import pyvips

        self._path, self._image = path, image
        self._region = pyvips.Region.new(image)
        self._fills = image.hasalpha() and constant_alpha is None

    def read(self, start: int, stop: int) -> np.ndarray:
        """[stop - start, W, C]."""
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
    """Give hidden pixels (alpha 0) within 8 of visible ones the mean colour of their neighbours.

    Editors leave anything there, mostly black, and a network would draw it into the edges.
    Pixels are [H, W, 2 or 4] with alpha last; alpha stays.
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


class Writer:
    """Takes the rows of a picture from top to bottom; `save` writes the file."""

    def __init__(self, path: Path, source: Opened, scale: int, options: SaveOptions) -> None:
        """Checks that the file can be written.

        Raises:
          InputError: the ending is that of no picture, or its format cannot hold this one.
        """
        check_ending(path)
        self._path, self._source, self._options = path, source, options
        self._ending = path.suffix.lower()
        self._width, self._height = (side * scale for side in source.size)
        self._missing = self._height
        largest = _LARGEST.get(self._ending, 10_000_000)
        if max(self._width, self._height) > largest:
            raise InputError(
                f'{path}: {self._width}x{self._height} is too large for {self._ending}, which '
                f'holds {largest} pixels along a side: choose another ending, such as .tif.'
            )
        if source.channels in (2, 4) and self._ending in ('.jpg', '.jpeg'):
            raise InputError(f'{path}: JPEG has no transparency: choose .png, .webp or .tif.')
        bytes_ = self._width * self._height * source.channels * source.dtype.itemsize
        if bytes_ > _IN_MEMORY:
            folder = next(p for p in path.absolute().parents if p.exists())
            free = shutil.disk_usage(folder).free
            if bytes_ > free:
                raise InputError(
                    f'{path}: {self._width}x{self._height} needs {bytes_ / 2**30:.1f} GiB on the '
                    f'disk while it is made, and {free / 2**30:.1f} are free.'
                )
            self._rows: Any = tempfile.NamedTemporaryFile(dir=folder, prefix='.fmen_jax.')  # noqa: SIM115
        else:
            self._rows = tempfile.SpooledTemporaryFile(_IN_MEMORY + 1)  # noqa: SIM115

    def add(self, rows: np.ndarray) -> None:
        """[h, W, C] that follow those before."""
        self._rows.write(np.ascontiguousarray(rows).data)
        self._missing -= len(rows)

    @property
    def complete(self) -> bool:
        """Whether all rows are here."""
        return self._missing == 0

    def save(self) -> None:
        """Write the file, aside first and then renamed.

        Raises:
          InputError: libvips cannot.
        """
        import pyvips

        try:
            image = self._with_metadata(self._fitted(self._whole()))
            with written_aside(self._path) as aside:
                image.write_to_file(str(aside), **self._options.of(self._ending))
        except pyvips.Error as error:
            raise InputError(f'{self._path}: could not be written: {reason(error)}') from error
        finally:
            self.close()

    def close(self) -> None:
        """Forget the rows."""
        self._rows.close()

    def _whole(self) -> Any:
        import pyvips

        source = self._source
        form = {'uint8': 'uchar', 'uint16': 'ushort', 'float32': 'float'}[source.dtype.name]
        if isinstance(self._rows, tempfile.SpooledTemporaryFile):
            self._rows.seek(0)
            data = self._rows.read()
            image: Any = pyvips.Image.new_from_memory(
                data, self._width, self._height, source.channels, form
            )
        else:
            self._rows.flush()
            image = pyvips.Image.rawload(
                self._rows.name,
                self._width,
                self._height,
                source.channels * source.dtype.itemsize,
                access='sequential',
            )
            if form != 'uchar':
                image = image.copy(bands=source.channels, format=form)
        return image

    def _fitted(self, image: Any) -> Any:
        """In 8 bits where the format has no more."""
        gray = self._source.channels < 3
        dtype = self._source.dtype
        if dtype == np.float32 and self._ending not in ('.tif', '.tiff'):
            image = (image * 255).rint().cast('uchar')
        elif dtype == np.uint16 and self._ending not in ('.tif', '.tiff', '.png'):
            image = (image / 257).rint().cast('uchar')
        kinds = {'uchar': ('b-w', 'srgb'), 'ushort': ('grey16', 'rgb16')}
        known = kinds.get(image.format, (self._source.image.interpretation,) * 2)
        return image.copy(interpretation=known[0 if gray else 1])

    def _with_metadata(self, image: Any) -> Any:
        import pyvips

        source = self._source.image
        image = image.copy(xres=source.xres, yres=source.yres)
        # the EXIF block still has the orientation that is applied already
        image.set_type(pyvips.GValue.gint_type, 'orientation', 1)
        for name in source.get_fields():
            if name in _BLOBS:
                image.set_type(pyvips.GValue.blob_type, name, source.get(name))
            elif name.startswith('exif-ifd') and 'Orientation' not in name:
                image.set_type(pyvips.GValue.gstr_type, name, source.get(name))
        return image


def check_ending(path: Path) -> None:
    """Raise InputError unless the ending is that of a picture."""
    if path.suffix.lower() not in ENDINGS:
        raise InputError(
            f'{path}: the ending {path.suffix!r} is not that of a picture; expected one of '
            f'{", ".join(ENDINGS)}.'
        )
