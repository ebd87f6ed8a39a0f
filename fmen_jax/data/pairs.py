"""Pairs of LR and HR images in folders, in the layouts of the usual benchmarks."""

import collections
import contextlib
import dataclasses
import hashlib
from pathlib import Path

import numpy as np

from fmen_jax.errors import InputError
from fmen_jax.files import cache_folder
from fmen_jax.images.bicubic import imresize
from fmen_jax.images.read import RGB8_EXTENSIONS, read_rgb8
from fmen_jax.images.write import write_rgb8

# Usual layouts: HR folder, HR file name, and path of the matching LR image; s is the scale.
_LAYOUTS = (
    ('image_SRF_{s}', '{stem}_HR.png', 'image_SRF_{s}/{stem}_LR.png'),  # SelfExSR
    ('HR', '{stem}.png', 'LR_bicubic/X{s}/{stem}x{s}.png'),  # EDSR's benchmarks
    ('{folder}_HR', '{stem}.png', '{folder}_LR_bicubic/X{s}/{stem}x{s}.png'),  # DIV2K
    ('GTmod12', '{stem}.png', 'LRbicx{s}/{stem}.png'),  # BasicSR
)


@dataclasses.dataclass(frozen=True)
class Pair:
    """Paths of an HR image and its LR image."""

    name: str
    hr: Path
    lr: Path | None
    """Path of the LR image. If None, the LR image is computed from the HR image by our imresize,
    convention 'edsr', and cached."""


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A pair in memory, uint8 RGB in 0..255 (a gray image has three equal channels)."""

    name: str
    lr: np.ndarray
    hr: np.ndarray
    """HR image [scale H, scale W, 3], cropped to this size at the right and bottom."""


def find_pairs(folder: Path, scale: int) -> list[Pair]:
    """Return the pairs of a folder in one of the usual layouts, or of a folder of HR images.

    Raises:
      InputError: If the folder does not exist or contains no images, or if the folder of LR images
        exists but does not contain all of them.
    """
    if not folder.is_dir():
        raise InputError(f'{folder}: no such folder.')
    names = {'s': scale, 'folder': folder.resolve().name}  # the name of '.' is empty
    for hr_folder, hr_name, lr_path in _LAYOUTS:
        home = folder / hr_folder.format(**names)
        suffix = hr_name.removeprefix('{stem}')
        found = sorted(home.glob(f'[!.]*{suffix}')) if home.is_dir() else []
        stems = [path.name.removesuffix(suffix) for path in found]
        if not stems:
            continue
        lr_files = [folder / lr_path.format(stem=stem, **names) for stem in stems]
        if not lr_files[0].parent.is_dir():
            return [Pair(p.name.removesuffix(suffix), p, None) for p in found]
        if missing := [path for path in lr_files if not path.is_file()]:
            raise InputError(
                f'{folder}: {len(missing)} of {len(lr_files)} LR pictures are missing, such as '
                f'{missing[0]}: add them, or remove the folder {missing[0].parent}, so that all of '
                'them are computed from the HR pictures.'
            )
        return [Pair(*pair) for pair in zip(stems, found, lr_files, strict=True)]
    # macOS leaves hidden files that end like images
    seen = (p for p in folder.iterdir() if not p.name.startswith('.'))
    pictures = sorted(p for p in seen if p.suffix.lower() in RGB8_EXTENSIONS)
    if not pictures:
        raise InputError(
            f'{folder}: no pictures for x{scale}. Expected HR pictures, or one of the layouts '
            + ', '.join(f'{home}/{name}'.format(**names, stem='*') for home, name, _ in _LAYOUTS)
            + '.'
        )
    stems = collections.Counter(path.stem for path in pictures)
    return [Pair(p.stem if stems[p.stem] == 1 else p.name, p, None) for p in pictures]


def load_pair(pair: Pair, scale: int, *, cached: bool = True) -> Loaded:
    """Read both images of a pair, or compute the LR image if the pair has none.

    If `cached` is true, a computed LR image is read from the cache, or stored there.

    Raises:
      InputError: If an image cannot be read (16-bit and transparent images are refused), or the
        sizes of the two images do not differ by `scale`.
    """
    hr = read_rgb8(pair.hr)
    height, width = (size // scale for size in hr.shape[:2])
    if not (height and width):
        raise InputError(f'{pair.hr} is {hr.shape[1]}x{hr.shape[0]}: too small for x{scale}.')
    if pair.lr:
        lr = read_rgb8(pair.lr)
        return fitted(pair.name, lr, hr, scale, where=f'{pair.lr} and {pair.hr}')
    hr = hr[: height * scale, : width * scale]
    return Loaded(pair.name, _cached(hr, scale) if cached else imresize(hr, 1 / scale), hr)


def fitted(name: str, lr: np.ndarray, hr: np.ndarray, scale: int, *, where: str = '') -> Loaded:
    """Return a pair with the HR image cropped to the LR image's size times the scale.

    Both images are [H, W, 3].

    Raises:
      InputError: If the sizes do not differ by `scale`. The message names `where`, or `name` if
        `where` is empty.
    """
    height, width = (size // scale for size in hr.shape[:2])
    if lr.shape[:2] != (height, width):
        raise InputError(
            f'{where or name}: LR is {lr.shape[1]}x{lr.shape[0]} and HR {hr.shape[1]}x'
            f'{hr.shape[0]}; expected an LR picture of {width}x{height} for x{scale}.'
        )
    return Loaded(name, lr, hr[: height * scale, : width * scale])


def _cached(hr: np.ndarray, scale: int) -> np.ndarray:
    """Return the LR image of an HR image, cached under a hash of the HR image's content."""
    digest = hashlib.sha256(str(hr.shape).encode() + hr.tobytes()).hexdigest()[:32]
    path = cache_folder() / 'lr' / f'{digest}_x{scale}.png'
    with contextlib.suppress(InputError):  # absent or damaged
        lr = read_rgb8(path)
        if lr.shape == (hr.shape[0] // scale, hr.shape[1] // scale, 3):
            return lr
    lr = imresize(hr, 1 / scale)
    with contextlib.suppress(InputError, OSError):  # works without a cache, too
        write_rgb8(path, lr)
    return lr
