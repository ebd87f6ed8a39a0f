"""Prepared sources: LR and HR images decoded once and memory-mapped during training.

A prepared folder contains `hr.u8` and `lr.u8`, the concatenated pixels of all images (uint8 RGB in
row-major order), and `index.json`, which gives the position of each image. Patches are cropped from
these files at random positions, so nothing is decoded during training and no sub-images have to be
stored in addition.
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import filelock
import numpy as np

from fmen_jax.data import div2k
from fmen_jax.data.pairs import Loaded, find_pairs, load_pair
from fmen_jax.errors import InputError, check_range
from fmen_jax.files import cache_folder, written_aside
from fmen_jax.images.bicubic import imresize

_FORMAT = 2
"""Version of the stored format, incremented on a change so that old folders are prepared again."""

Broken = Literal['refuse', 'skip']
"""Handling of images that cannot be read: raise an error that names all of them, or skip them."""


@dataclasses.dataclass(frozen=True)
class ImageEntry:
    """An image of a prepared source."""

    name: str
    height: int
    """Height of the LR image in pixels."""
    width: int
    start: int
    """Offset of the LR image in `lr.u8`, in bytes; the HR image is at scale^2 start in `hr.u8`."""
    digest: str
    """Hash of the sizes and the pixels of both images, as 32 hexadecimal digits."""


@dataclasses.dataclass(frozen=True)
class Source:
    """A prepared source, opened from a folder with `open_source`."""

    folder: Path
    scale: int
    entries: tuple[ImageEntry, ...]
    skipped: tuple[str, ...]
    """Error messages for the images that could not be read."""

    def pixels(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return LR [H, W, 3] and HR [scale H, scale W, 3] of image `number`.

        Both are uint8 views of the memory-mapped files.
        """
        entry, s = self.entries[number], self.scale
        size = entry.height * entry.width * 3
        lr, hr = self._files
        return (
            lr[entry.start : entry.start + size].reshape(entry.height, entry.width, 3),
            hr[entry.start * s * s : (entry.start + size) * s * s].reshape(
                entry.height * s, entry.width * s, 3
            ),
        )

    def interpolation_error(self, number: int) -> np.ndarray:
        """Return the error of bicubic interpolation of an image, [H, W] float32, in 0..255.

        The value at an LR pixel is the mean of |bicubic(LR) - HR| over its HR pixels and channels.
        It is large where there is detail that a network can learn to restore, and almost 0 in flat
        areas. The first call computes it for the whole source and stores it in the source's folder.
        """
        entry = self.entries[number]
        start = entry.start // 3
        flat = self._errors[start : start + entry.height * entry.width]
        return flat.reshape(entry.height, entry.width)

    @cached_property
    def _errors(self) -> np.ndarray:
        path = self.folder / 'error.f32'
        size = sum(entry.height * entry.width for entry in self.entries)
        with filelock.FileLock(f'{self.folder}.lock'):
            if not path.is_file() or path.stat().st_size != 4 * size:
                with written_aside(path) as aside, aside.open('wb') as file:
                    for number in range(len(self.entries)):
                        file.write(_interpolation_error(*self.pixels(number), self.scale).tobytes())
        return np.memmap(path, np.float32, 'r')

    @cached_property
    def _files(self) -> tuple[np.ndarray, np.ndarray]:
        lr, hr = (np.memmap(self.folder / name, np.uint8, 'r') for name in ('lr.u8', 'hr.u8'))
        return lr, hr

    def __getstate__(self) -> dict[str, Any]:
        """Return the fields without the open files, so that other processes can unpickle them."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def _interpolation_error(lr: np.ndarray, hr: np.ndarray, scale: int) -> np.ndarray:
    """Return the mean of |bicubic(LR) - HR| at each LR pixel, [H, W] float32."""
    error = np.abs(imresize(lr.astype(np.float32), scale) - hr)
    height, width, channels = lr.shape
    return error.reshape(height, scale, width, scale, channels).mean((1, 3, 4), np.float32)


def prepare(
    data: str | Path,
    scale: int,
    *,
    output: Path | None = None,
    broken: Broken = 'refuse',
    report: Callable[[int, int], object] | None = None,
) -> Path:
    """Prepare images, unless this has already been done, and return the folder of the result.

    Args:
      data: Folder of HR images, whose LR images are computed by MATLAB's imresize, or of pairs (see
        `data.pairs`), or a name such as div2k/bicubic_x4 (see `data.div2k`).
      scale: Scale factor between LR and HR images.
      output: Folder for the result. By default a folder in the cache, whose name depends on the
        contents of `data`.
      broken: Handling of images that cannot be read.
      report: Callback that receives the number of processed images and the total number.

    Raises:
      InputError: If there are no usable images, if there are broken ones and `broken` is 'refuse'
        (the message names all of them), or if `output` holds anything else.
    """
    check_range('scale', scale, least=1)
    pictures = _pictures(data, scale)
    identity = (_FORMAT, scale, broken, pictures.identity)
    digest = hashlib.sha256(repr(identity).encode()).hexdigest()
    name = f'{pictures.label}_x{scale}_{digest[:12]}'
    target = output or cache_folder() / 'prepared' / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f'{target}.lock'):
        if (target / 'index.json').exists():
            try:
                found = json.loads((target / 'index.json').read_text())['digest']
            except (ValueError, LookupError, TypeError) as error:
                raise InputError(
                    f'{target} contains something other than a prepared source, or is damaged: '
                    'remove it, or choose another folder.'
                ) from error
            if found == digest:
                return target
            if output:
                raise InputError(
                    f'{target} was prepared from other pictures or settings: remove it, or choose '
                    'another folder.'
                )
        elif target.is_file() or (target.is_dir() and any(target.iterdir())):
            raise InputError(
                f'{target} contains something other than a prepared source: choose a new or empty '
                'folder.'
            )
        aside = target.with_name(target.name + '.part')
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        try:
            index = _write(aside, pictures.loaders, scale, broken, report)
            text = json.dumps({'digest': digest, **index}, indent=1)
            (aside / 'index.json').write_text(text)
            aside.replace(target)
        except OSError as error:  # such as a full disk, which names no file by itself
            raise OSError(error.errno, error.strerror, str(target)) from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return target


@dataclasses.dataclass(frozen=True)
class _Pictures:
    label: str
    identity: Any
    """Paths, sizes and times of the files, by which changed images are found without decoding."""
    loaders: Sequence[Callable[[], Loaded]]


def _pictures(data: str | Path, scale: int) -> _Pictures:
    if str(data).startswith(div2k.PREFIX) and not Path(data).exists():
        found = div2k.open_set(str(data))
        if found.scale != scale:
            raise InputError(
                f'{data} has scale {found.scale}, but the requested scale is {scale}: choose a set '
                f'such as {div2k.PREFIX}bicubic_x{scale}.'
            )
        info = (found.folder / 'dataset_info.json').stat()
        identity = (str(data), str(found.folder.resolve()), info.st_size, info.st_mtime_ns)
        loaders = [partial(found.pair, number) for number in range(len(found.examples))]
        return _Pictures(str(data).replace('/', '_'), identity, loaders)
    pairs = find_pairs(Path(data), scale)
    files = [path for pair in pairs for path in (pair.hr, pair.lr) if path]
    identity = [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    loaders = [partial(load_pair, pair, scale, cached=False) for pair in pairs]
    return _Pictures(Path(data).resolve().name, identity, loaders)


def _write(
    folder: Path,
    loaders: Sequence[Callable[[], Loaded]],
    scale: int,
    broken: Broken,
    report: Callable[[int, int], object] | None,
) -> dict[str, Any]:
    entries: list[ImageEntry] = []
    faults: list[str] = []
    start = 0
    with (folder / 'lr.u8').open('wb') as lr_file, (folder / 'hr.u8').open('wb') as hr_file:
        for done, load in enumerate(loaders, 1):
            try:
                loaded = load()
            except InputError as error:
                faults.append(str(error))
                continue
            finally:
                if report:
                    report(done, len(loaders))
            height, width = loaded.lr.shape[:2]
            lr, hr = loaded.lr.tobytes(), loaded.hr.tobytes()
            digest = hashlib.sha256(b'%d %d ' % (height, width) + lr + hr).hexdigest()[:32]
            entries.append(ImageEntry(loaded.name, height, width, start, digest))
            start += len(lr)
            lr_file.write(lr)
            hr_file.write(hr)
    if faults and (broken == 'refuse' or not entries):
        raise InputError(
            f'{len(faults)} of {len(loaders)} pictures cannot be used. Repair or remove them, or '
            "skip them by the setting broken='skip':" + ''.join(f'\n  {fault}' for fault in faults)
        )
    return {
        'scale': scale,
        'entries': [dataclasses.astuple(entry) for entry in entries],
        'skipped': faults,
    }


def open_source(folder: Path) -> Source:
    """Open a prepared source.

    Raises:
      InputError: If the folder is not a prepared source, or is incomplete.
    """
    try:
        index = json.loads((folder / 'index.json').read_text())
        entries = tuple(ImageEntry(*entry) for entry in index['entries'])
        scale, skipped = index['scale'], tuple(index['skipped'])
        sizes = [(folder / name).stat().st_size for name in ('lr.u8', 'hr.u8')]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f'{folder} is not a prepared source ({error}): expected a folder that '
            '`fmen-jax prepare` has written.'
        ) from error
    total = sum(entry.height * entry.width * 3 for entry in entries)
    if sizes != [total, total * scale**2]:
        raise InputError(
            f'{folder} is incomplete: its files have {sizes} bytes; expected '
            f'{[total, total * scale**2]}. Remove the folder, and prepare it again.'
        )
    return Source(folder, scale, entries, skipped)
