"""Writing of image files with libvips.

`Writer` takes an upscaled image row by row and gives it the bit depth, ICC profile and metadata of
its source. `write_rgb8` writes a whole 8-bit image.
"""

import dataclasses
import io
import shutil
import struct
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from fmen_jax.errors import FMENWarning, InputError
from fmen_jax.files import check_extension, check_utf8, written_aside
from fmen_jax.images.libvips import PROFILE, has_field, translated_errors
from fmen_jax.images.read import EXTENSIONS, RGB8_EXTENSIONS, Opened

_BLOBS = (PROFILE, 'exif-data', 'xmp-data', 'iptc-data')
_LARGEST = {'.jpg': 65535, '.jpeg': 65535, '.webp': 16383, '.avif': 16384}
"""Largest side of an image in pixels that a format can store."""
_OPTIONS = {'quality': ('.jpg', '.jpeg', '.webp', '.avif'), 'compression': ('.png',)}
"""File extensions for which each of the SaveOptions has an effect."""
_IN_MEMORY = 2**26
"""Output size in bytes above which rows are buffered on disk."""
_STRIP = 2**16
"""Bytes of a strip in the file in which rows wait on disk, unless a row is longer."""


@dataclasses.dataclass(frozen=True)
class SaveOptions:
    """Compression settings of image files."""

    quality: int | None = None
    """Quality, 1..100, for JPEG (95 by default), AVIF (90 by default) and WebP (lossless by
    default)."""
    compression: int | None = None
    """Compression level for PNG, 0..9 (6 by default)."""

    def __post_init__(self) -> None:
        for name, value, least, most in (
            ('quality', self.quality, 1, 100),
            ('compression', self.compression, 0, 9),
        ):
            if value is not None and not least <= value <= most:
                raise InputError(f'{name} is {value}; expected {least} to {most}.')

    def for_libvips(self, extension: str) -> dict[str, Any]:
        """Return the arguments of libvips for a file extension.

        The default quality is high enough to preserve the detail of upscaled images.
        """
        if extension in ('.jpg', '.jpeg'):
            return {'Q': self.quality or 95, 'subsample_mode': 'off'}
        if extension == '.webp':
            return {'Q': self.quality} if self.quality else {'lossless': True}
        if extension == '.avif':
            return {'Q': self.quality or 90, 'compression': 'av1', 'subsample_mode': 'off'}
        if extension == '.png':
            return {'compression': 6 if self.compression is None else self.compression}
        return {'compression': 'deflate', 'predictor': 'horizontal', 'bigtiff': True}


def check_fits(path: Path, width: int, height: int) -> None:
    """Raise InputError unless the format of an image file can store an image of this size."""
    extension = path.suffix.lower()
    largest = _LARGEST.get(extension, 10_000_000)
    if max(width, height) > largest:
        raise InputError(
            f'{path}: {width}x{height} is too large for {extension}, which holds {largest} pixels '
            'along a side: choose another file extension, such as .tif.'
        )


def write_rgb8(path: Path, pixels: np.ndarray) -> None:
    """Write an image in the format given by the file extension, lossless unless that is JPEG.

    The image is written to a temporary file, which is then renamed.

    Args:
      path: image file with an extension in RGB8_EXTENSIONS.
      pixels: [H, W, 3] RGB or [H, W, 1] gray, uint8.

    Raises:
      InputError: If the extension is another one, or the format cannot store the image.
    """
    import pyvips

    check_extension(path, RGB8_EXTENSIONS, 'an image')
    image: Any = pyvips.Image.new_from_array(np.ascontiguousarray(pixels))
    image = image.copy(interpretation='b-w' if pixels.shape[2] == 1 else 'srgb')
    _write(path, image, SaveOptions())


def _write(path: Path, image: Any, options: SaveOptions) -> None:
    check_utf8(path)
    with translated_errors(path, 'the image could not be written'), written_aside(path) as aside:
        image.write_to_file(str(aside), **options.for_libvips(path.suffix.lower()))


def _header(height: int, width: int, channels: int, dtype: np.dtype) -> bytes:
    """Return a BigTIFF header that turns the pixel rows after it into a TIFF.

    libvips keeps only a few rows of such a file in memory at a time, whereas it would map a file of
    raw pixels into memory as a whole. A strip has several rows if these are short, so that the
    tables of strips stay small beside the pixels.
    """
    row = width * channels * dtype.itemsize
    rows_per_strip = min(max(_STRIP // row, 1), height)
    strips = -(-height // rows_per_strip)
    last = height - (strips - 1) * rows_per_strip
    short, long8 = 3, 16
    tags: list[tuple[int, int, list[int]]] = [
        (256, long8, [width]),
        (257, long8, [height]),
        (258, short, [8 * dtype.itemsize] * channels),
        (259, short, [1]),  # no compression
        (262, short, [1 if channels < 3 else 2]),  # gray or RGB
        (273, long8, [0] * strips),  # offsets of the strips, set below
        (277, short, [channels]),
        (278, long8, [rows_per_strip]),
        (279, long8, [row * rows_per_strip] * (strips - 1) + [row * last]),
        (338, short, [2] if channels in (2, 4) else []),  # alpha, not premultiplied
        (339, short, [3 if dtype.kind == 'f' else 1] * channels),
    ]
    tags = [tag for tag in tags if tag[2]]
    tables = 16 + 8 + 20 * len(tags) + 8  # end of the directory
    start = tables + 2 * 8 * strips
    entries, behind = b'', b''
    for number, kind, values in tags:
        if number == 273:
            values = [start + i * rows_per_strip * row for i in range(strips)]
        data = np.array(values, '<u2' if kind == short else '<u8').tobytes()
        entries += struct.pack('<HHQ', number, kind, len(values))
        if len(data) > 8:
            entries += struct.pack('<Q', tables + len(behind))
            behind += data
        else:
            entries += data.ljust(8, b'\0')
    head = struct.pack('<2sHHHQQ', b'II', 43, 8, 0, 16, len(tags))
    return (head + entries + bytes(8) + behind).ljust(start, b'\0')


class Writer:
    """Collects the rows of an image from top to bottom; `save` writes the file."""

    def __init__(self, path: Path, source: Opened, scale: int, options: SaveOptions) -> None:
        """Check that the file can be written.

        Raises:
          InputError: If the extension is not that of an image, its format cannot store this image,
            or the disk has too little free space.
        """
        check_extension(path, EXTENSIONS, 'an image')
        self._path, self._source, self._options = path, source, options
        self._extension = path.suffix.lower()
        self._width, self._height = (side * scale for side in source.size)
        check_fits(path, self._width, self._height)
        if source.channels in (2, 4) and self._extension in ('.jpg', '.jpeg'):
            raise InputError(f'{path}: JPEG has no transparency: choose .png, .webp or .tif.')
        for name, extensions in _OPTIONS.items():
            if getattr(options, name) is not None and self._extension not in extensions:
                warnings.warn(
                    f'{name} is ignored for {self._extension}; it applies to '
                    f'{", ".join(extensions)}.',
                    FMENWarning,
                    stacklevel=2,
                )
        self._rows = self._buffer()

    def _buffer(self) -> Any:
        """Return the temporary file for the rows.

        On disk it is a file without a name (on Windows one that the system deletes), so that even
        a killed process leaves nothing behind.
        """
        source = self._source
        bytes_ = self._width * self._height * source.channels * source.dtype.itemsize
        if bytes_ <= _IN_MEMORY:
            return io.BytesIO()
        folder = next(p for p in self._path.absolute().parents if p.exists())
        free = shutil.disk_usage(folder).free
        if bytes_ > free:
            raise InputError(
                f'{self._path}: {self._width}x{self._height} pixels need {bytes_ / 2**30:.1f} GiB '
                f'on disk while the image is made, but only {free / 2**30:.1f} GiB are free in '
                f'{folder}.'
            )
        rows = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by `close`
        rows.write(_header(self._height, self._width, source.channels, source.dtype))
        return rows

    def add(self, rows: np.ndarray) -> None:
        """Append the next rows, [h, W, C].

        Raises:
          OSError: If the disk is full.
        """
        self._rows.write(np.ascontiguousarray(rows).data)

    def save(self) -> None:
        """Write the image to a temporary file, which is then renamed.

        Raises:
          InputError: If libvips cannot write the file.
        """
        _write(self._path, self._with_metadata(self._fitted(self._whole())), self._options)

    def close(self) -> None:
        """Discard the rows."""
        self._rows.close()

    def _whole(self) -> Any:
        import pyvips

        source = self._source
        if isinstance(self._rows, io.BytesIO):
            form = {'uint8': 'uchar', 'uint16': 'ushort', 'float32': 'float'}[source.dtype.name]
            return pyvips.Image.new_from_memory(
                self._rows.getvalue(), self._width, self._height, source.channels, form
            )
        self._rows.flush()
        file: Any = pyvips.Source.new_from_descriptor(self._rows.fileno())
        return pyvips.Image.tiffload_source(file, access='sequential')

    def _fitted(self, image: Any) -> Any:
        """Convert to 8 bits if the format does not support the source's depth."""
        gray = self._source.channels < 3
        dtype = self._source.dtype
        if dtype == np.float32 and self._extension not in ('.tif', '.tiff'):
            image = (image * 255).rint().cast('uchar')
        elif dtype == np.uint16 and self._extension not in ('.tif', '.tiff', '.png'):
            image = (image / 257).rint().cast('uchar')
        kinds = {'uchar': ('b-w', 'srgb'), 'ushort': ('grey16', 'rgb16')}
        known = kinds.get(image.format, (self._source.image.interpretation,) * 2)
        return image.copy(interpretation=known[0 if gray else 1])

    def _with_metadata(self, image: Any) -> Any:
        import pyvips

        source = self._source.image
        image = image.copy(xres=source.xres, yres=source.yres)
        for name in self._field_names():
            if name in _BLOBS:
                image.set_type(pyvips.GValue.blob_type, name, source.get(name))
            elif name.startswith('exif-ifd') and 'Orientation' not in name:
                image.set_type(pyvips.GValue.gstr_type, name, source.get(name))
        if has_field(source, 'exif-data'):
            # the EXIF block still holds the orientation, which the pixels already have
            image.set_type(pyvips.GValue.gint_type, 'orientation', 1)
            upright = '1 (Top-left, Short, 1 components, 2 bytes)'
            image.set_type(pyvips.GValue.gstr_type, 'exif-ifd0-Orientation', upright)
        return image

    def _field_names(self) -> list[str]:
        """Names of the metadata fields of the source; of its blobs alone if some are unreadable."""
        image = self._source.image
        try:
            return image.get_fields()
        except UnicodeDecodeError:
            warnings.warn(
                f'{self._path}: metadata of the source whose names are not UTF-8 was dropped.',
                FMENWarning,
                stacklevel=2,
            )
            return [name for name in _BLOBS if has_field(image, name)]
