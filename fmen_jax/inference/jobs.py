"""Many pictures: which file becomes which, and the work, one after the other."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from fmen_jax.data import images
from fmen_jax.errors import FMENError, InputError


class Upscale(Protocol):
    """[H, W, 3] uint8 -> [s H, s W, 3], or [s H, s W, 1] with `gray`."""

    def __call__(self, pixels: np.ndarray, *, gray: bool = False) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Item:
    """One picture to upscale."""

    source: Path
    target: Path


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of an item: the sizes (width, height), or an error."""

    item: Item
    size: tuple[int, int] = (0, 0)
    new_size: tuple[int, int] = (0, 0)
    error: str = ''


def plan(inputs: Sequence[Path], output: Path, *, scale: int) -> list[Item]:
    """Pair every input picture with its output file; nothing is read or written yet.

    Args:
      inputs: pictures, and folders whose pictures are taken (not those of folders inside).
      output: a file if it ends like a picture, else a folder, where names get `_x4`.
      scale: the factor for those names.

    Raises:
      InputError: nothing to do, an input that is no picture, or outputs that would overwrite each
        other or an input.
    """
    found = itertools.chain.from_iterable(_pictures(path) for path in inputs)
    sources = list({source.resolve(): source for source in found}.values())  # each once
    if not sources:
        raise InputError('no pictures given: name files or folders.')
    if output.suffix.lower() in images.ENDINGS and not output.is_dir():
        if len(sources) != 1:
            raise InputError(
                f'{output} is one file, but there are {len(sources)} pictures: name a folder.'
            )
        targets = [output]
    else:
        if output.is_file() or (output.suffix and not output.is_dir()):
            raise InputError(
                f'{output} is neither a folder nor does it end like a picture '
                f'({", ".join(images.ENDINGS)}); make the folder first if it is to be one.'
            )
        targets = [output / f'{path.stem}_x{scale}{path.suffix}' for path in sources]
    owners: dict[Path, Path] = {}
    taken = {source.resolve() for source in sources}
    for source, target in zip(sources, targets, strict=True):
        resolved = target.resolve()
        if resolved in taken:
            raise InputError(f'{target} is an input and would be overwritten: choose another.')
        if resolved in owners:
            raise InputError(
                f'{owners[resolved]} and {source} would both become {target}: give one at a time.'
            )
        owners[resolved] = source
    return [Item(source, target) for source, target in zip(sources, targets, strict=True)]


def _pictures(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith('.'))
        found = [p for p in files if p.suffix.lower() in images.ENDINGS]
        if not found:
            raise InputError(f'{path}: no pictures ({", ".join(images.ENDINGS)}) in this folder.')
        return found
    if not path.exists():
        raise InputError(f'{path}: no such file or folder.')
    images.check_ending(path)
    return [path]


def run(items: Sequence[Item], upscale: Upscale) -> Iterator[Result]:
    """Upscale and write each picture; one that fails is named in its result, and the rest go on."""
    for item in items:
        try:
            picture = images.read(item.source)
            pixels = upscale(picture.pixels, gray=picture.gray)
            images.write(item.target, dataclasses.replace(picture, pixels=pixels))
        except (FMENError, OSError) as error:
            yield Result(item, error=str(error))
        else:
            yield Result(item, picture.pixels.shape[1::-1], pixels.shape[1::-1])
