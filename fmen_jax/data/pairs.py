"""Folders of pictures in two sizes: which belong together, in the layouts of the field."""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np

from fmen_jax.errors import InputError
from fmen_jax.files import cache_folder
from fmen_jax.images import rgb8
from fmen_jax.images.bicubic import imresize

# The usual layouts: where the HR pictures are, and the LR one of NAME; s is the scale.
_LAYOUTS = (
    ('image_SRF_{s}', '{stem}_HR.png', 'image_SRF_{s}/{stem}_LR.png'),  # SelfExSR
    ('HR', '{stem}.png', 'LR_bicubic/X{s}/{stem}x{s}.png'),  # EDSR's benchmarks
    ('{folder}_HR', '{stem}.png', '{folder}_LR_bicubic/X{s}/{stem}x{s}.png'),  # DIV2K
    ('GTmod12', '{stem}.png', 'LRbicx{s}/{stem}.png'),  # BasicSR
)


@dataclasses.dataclass(frozen=True)
class Pair:
    """A picture in both sizes."""

    name: str
    hr: Path
    lr: Path | None
    """None: it is made of the HR picture by our imresize, convention 'edsr', and cached."""


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A pair in memory, RGB uint8 (a gray picture has three equal channels)."""

    name: str
    lr: np.ndarray
    hr: np.ndarray
    """[scale H, scale W, 3]; cropped to that at the right and below if it was larger."""


def find_pairs(folder: Path, scale: int) -> list[Pair]:
    """The pairs of a benchmark folder, in one of the usual layouts, or of a folder of HR pictures.

    Raises:
      InputError: no such folder, no pictures, or an LR picture without its partner or the reverse.
    """
    if not folder.is_dir():
        raise InputError(f'{folder}: no such folder.')
    for hr_folder, hr_name, lr_path in _LAYOUTS:
        names = {'s': scale, 'folder': folder.name}
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
                f'{missing[0]}: add them, or take their folder away to have them all made.'
            )
        return [Pair(*pair) for pair in zip(stems, found, lr_files, strict=True)]
    seen = (p for p in folder.iterdir() if not p.name.startswith('.'))  # as macOS leaves them
    pictures = sorted(p for p in seen if p.suffix.lower() in rgb8.ENDINGS)
    if not pictures:
        raise InputError(
            f'{folder}: no pictures for x{scale}. Expected HR pictures, or one of the layouts '
            + ', '.join(
                f'{home}/{name}'.format(s=scale, folder=folder.name, stem='*')
                for home, name, _ in _LAYOUTS
            )
            + '.'
        )
    return [Pair(path.stem, path, None) for path in pictures]


def load_pair(pair: Pair, scale: int, *, keep: bool = True) -> Loaded:
    """Read both pictures; an LR picture that has to be made is kept in the cache with `keep`.

    Raises:
      InputError: one cannot be read (16 bit and transparency are refused), or their sizes differ by
        another factor than the scale.
    """
    hr = rgb8.read(pair.hr).pixels
    height, width = (size // scale for size in hr.shape[:2])
    if not (height and width):
        raise InputError(f'{pair.hr} is {hr.shape[1]}x{hr.shape[0]}: too small for x{scale}.')
    if pair.lr:
        lr = rgb8.read(pair.lr).pixels
        return fitted(pair.name, lr, hr, scale, where=f'{pair.lr} and {pair.hr}')
    hr = hr[: height * scale, : width * scale]
    return Loaded(pair.name, _kept(hr, scale) if keep else imresize(hr, 1 / scale), hr)


def fitted(name: str, lr: np.ndarray, hr: np.ndarray, scale: int, *, where: str = '') -> Loaded:
    """A pair [H, W, 3] each, with the HR picture cropped to the LR one's size times the scale.

    Raises:
      InputError: sizes that differ by another factor; it names the picture, or `where` it is.
    """
    height, width = (size // scale for size in hr.shape[:2])
    if lr.shape[:2] != (height, width):
        raise InputError(
            f'{where or name}: LR is {lr.shape[1]}x{lr.shape[0]} and HR {hr.shape[1]}x'
            f'{hr.shape[0]}; expected an LR picture of {width}x{height} for x{scale}.'
        )
    return Loaded(name, lr, hr[: height * scale, : width * scale])


def _kept(hr: np.ndarray, scale: int) -> np.ndarray:
    """The LR picture of an HR one, kept in the cache by its content."""
    digest = hashlib.sha256(str(hr.shape).encode() + hr.tobytes()).hexdigest()[:32]
    path = cache_folder() / 'lr' / f'{digest}_x{scale}.png'
    if not path.exists():
        rgb8.write(path, rgb8.Picture(imresize(hr, 1 / scale)))
    return rgb8.read(path).pixels
