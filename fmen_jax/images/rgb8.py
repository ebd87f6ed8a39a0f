"""Reading and writing 8-bit RGB images with libvips. Pixels are [H, W, 3], uint8, RGB in 0..255.

Images that would lose information (16 bit, transparency, CMYK, several pages) are refused.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from fmen_jax.errors import InputError
from fmen_jax.files import check_ending, written_aside

# The quality of lossy formats is high enough to preserve the detail of upscaled images.
_SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    '.png': {},
    '.jpg': {'Q': 95, 'subsample_mode': 'off'},
    '.jpeg': {'Q': 95, 'subsample_mode': 'off'},
    '.webp': {'lossless': True},
    '.tif': {'compression': 'deflate', 'predictor': 'horizontal'},
    '.tiff': {'compression': 'deflate', 'predictor': 'horizontal'},
}
ENDINGS = tuple(_SAVE_OPTIONS)

_LOADERS = ('png', 'jpeg', 'webp', 'tiff')
_PROFILE = 'icc-profile-data'


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image in memory."""

    pixels: np.ndarray
    """Pixels [H, W, 3], uint8 RGB; if `gray` is true, also [H, W, 1]."""
    gray: bool = False
    """Whether the file has a single channel; it is then also written with a single channel."""
    profile: bytes | None = None
    """ICC profile."""


def read(path: Path) -> Picture:
    """Read a whole image and rotate it to its EXIF orientation.

    Raises:
      InputError: If the file is not a readable image, is truncated, or is of an unsupported kind.
    """
    import pyvips

    try:
        image: Any = pyvips.Image.new_from_file(str(path), fail_on='error', revalidate=True)
        if problem := _problem(image):
            raise InputError(f'{path}: {problem}')
        profile = image.get(_PROFILE) if has_field(image, _PROFILE) else None
        pixels = image.autorot().numpy()
    except pyvips.Error as error:
        raise InputError(f'{path}: not a whole, readable picture: {reason(error)}') from error
    gray = pixels.ndim == 2 or pixels.shape[2] == 1
    if gray:
        pixels = np.repeat(pixels.reshape(*pixels.shape[:2], 1), 3, axis=2)
    return Picture(pixels, gray, profile)


def has_field(image: Any, name: str) -> bool:
    """Whether a libvips image has a metadata field.

    Unlike `get_fields`, this works for an image with fields whose names cannot be decoded.
    """
    return bool(image.get_typeof(name))


def _problem(image: Any) -> str:
    """Return the reason why an image is not supported; '' if it is supported."""
    found = f'{image.format}, {image.bands} channels, {image.interpretation}'
    loader = image.get('vips-loader').removesuffix('load')
    if loader not in _LOADERS:
        return f'is {loader} inside; only {", ".join(_LOADERS)} are handled'
    if has_field(image, 'n-pages') and image.get('n-pages') > 1:
        return f'has {image.get("n-pages")} pages; only single pictures are handled'
    if image.hasalpha():
        return f'is transparent ({found}); remove its alpha channel first'
    if image.format != 'uchar':
        return f'is not 8 bit ({found}); save it with 8 bits per channel first'
    if image.interpretation not in ('srgb', 'rgb', 'b-w', 'multiband') or image.bands not in (1, 3):
        return f'is neither RGB nor gray ({found}); convert it to sRGB first'
    return ''


def reason(error: Exception) -> str:
    """Return the message of a libvips error on one line."""
    lines = (line.strip() for line in str(error).splitlines())
    return '; '.join(dict.fromkeys(line for line in lines if line and line != 'unable to call'))


def write(path: Path, picture: Picture) -> None:
    """Write an image in the format given by the file extension.

    The image is written to a temporary file, which is then renamed.

    Raises:
      InputError: If the extension is not in ENDINGS, or the format cannot store the image.
    """
    import pyvips

    check_ending(path, ENDINGS, 'a picture')
    pixels = picture.pixels[..., :1] if picture.gray else picture.pixels
    image: Any = pyvips.Image.new_from_array(np.ascontiguousarray(pixels))
    image = image.copy(interpretation='b-w' if picture.gray else 'srgb')
    if picture.profile is not None:
        image.set_type(pyvips.GValue.blob_type, _PROFILE, picture.profile)
    try:
        with written_aside(path) as aside:
            image.write_to_file(str(aside), **_SAVE_OPTIONS[path.suffix.lower()])
    except pyvips.Error as error:
        raise InputError(f'{path}: could not be written: {reason(error)}') from error
