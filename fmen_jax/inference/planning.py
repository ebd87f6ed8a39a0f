"""Planning of the output file of each picture, before anything is read or written."""

import dataclasses
import glob
import itertools
import os
from collections.abc import Sequence
from pathlib import Path

from fmen_jax.errors import InputError
from fmen_jax.files import check_extension
from fmen_jax.images.read import EXTENSIONS


@dataclasses.dataclass(frozen=True)
class Item:
    """A picture to upscale and its output file."""

    source: Path
    target: Path


@dataclasses.dataclass(frozen=True)
class Naming:
    """Naming of the outputs in a folder."""

    suffix: str = '_x{scale}'
    """Text appended to the names of outputs in a folder; {scale} is replaced by the scale
    factor."""
    ext: str = ''
    """File extension of outputs in a folder, such as png. If omitted, that of the input."""

    def __post_init__(self) -> None:
        try:
            self.suffix.format(scale=4)
        except (ValueError, LookupError, AttributeError, TypeError) as error:
            raise InputError(
                f'suffix is {self.suffix!r}; expected a text in which {{scale}} is the only '
                'placeholder, such as _x{scale}.'
            ) from error
        for name, text in (('suffix', self.suffix), ('ext', self.ext)):
            if '/' in text or os.sep in text:
                raise InputError(
                    f'{name} is {text!r}; expected a part of a file name, without {os.sep}.'
                )

    def name(self, source: Path, scale: int) -> str:
        """Return the file name of the output for a picture."""
        extension = f'.{self.ext.removeprefix(".")}' if self.ext else source.suffix
        return f'{source.stem}{self.suffix.format(scale=scale)}{extension}'


@dataclasses.dataclass(frozen=True)
class Shard:
    """Share of the pictures for one of several machines: every `count`-th, from `index` on."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> 'Shard':
        """Parse a shard such as '0/4' ... '3/4'.

        Raises:
          InputError: If the text has another form.
        """
        index, _, count = text.partition('/')
        if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
            raise InputError(f'shard is {text!r}; expected 0/4 ... 3/4 for four machines.')
        return cls(int(index), int(count))


def plan(
    inputs: Sequence[str | Path],
    output: Path | None,
    *,
    scale: int,
    naming: Naming = Naming(),
    shard: Shard = Shard(),
) -> list[Item]:
    """Pair every input picture with its output file, without reading or writing any picture.

    Args:
      inputs: pictures, folders, and patterns such as 'photos/*.png' or 'photos/**/*.png'. Folders
        are searched recursively, and the outputs have the same folder tree.
      output: a file if it has the extension of a picture, else a folder. If None, outputs are
        written next to the inputs.
      scale: scale factor for the names.
      naming: naming of the outputs in a folder.
      shard: share of the pictures to return.

    Raises:
      InputError: If there are no pictures, an input is not a picture, or outputs would overwrite
        each other or an input.
    """
    found = itertools.chain.from_iterable(_pictures(str(path)) for path in inputs)
    once = {source.resolve(): (source, home) for source, home in reversed([*found])}
    sources = list(reversed(once.values()))
    if not sources:
        raise InputError('no pictures given: name files or folders.')
    if output is None:
        if folder := next((path for path in inputs if not Path(path).is_file()), None):
            raise InputError(
                f'{folder} is not a single picture: use --output to name a folder for the outputs.'
            )
        targets = [source.with_name(naming.name(source, scale)) for source, _ in sources]
    elif output.suffix.lower() in EXTENSIONS and not output.is_dir():
        if len(sources) != 1:
            raise InputError(
                f'the output {output} is a single file, but there are {len(sources)} pictures: '
                'use --output to name a folder.'
            )
        targets = [output]
    else:
        if output.is_file() or (output.suffix and not output.is_dir()):
            raise InputError(
                f'the output {output} is not a folder and does not have the file extension of '
                f'an image ({", ".join(EXTENSIONS)}). To use it as a folder, create it first.'
            )
        targets = [
            output / source.parent.relative_to(home) / naming.name(source, scale)
            for source, home in sources
        ]
    for target in targets:
        check_extension(target, EXTENSIONS, 'an image')
    items = [Item(source, target) for (source, _), target in zip(sources, targets, strict=True)]
    _check(items)
    return items[shard.index :: shard.count]


def _check(items: Sequence[Item]) -> None:
    owners: dict[Path, Path] = {}
    taken = {item.source.resolve() for item in items}
    for item in items:
        resolved = item.target.resolve()
        if resolved in taken:
            raise InputError(
                f'{item.target} is an input and would be overwritten: use --output or --suffix to '
                'choose another output.'
            )
        if resolved in owners:
            raise InputError(
                f'{owners[resolved]} and {item.source} would both be written to {item.target}: '
                'upscale one of them at a time, or to different folders.'
            )
        owners[resolved] = item.source


def _pictures(given: str) -> list[tuple[Path, Path]]:
    """Return the pictures of an input, each with the folder that its tree path is relative to."""
    path = Path(given)
    if path.is_dir():
        files = [p for p in sorted(path.rglob('*')) if p.is_file()]
        seen = [p for p in files if not any(x.startswith('.') for x in p.relative_to(path).parts)]
        found = [p for p in seen if p.suffix.lower() in EXTENSIONS]
        if not found:
            raise InputError(f'{path}: no pictures ({", ".join(EXTENSIONS)}) in this folder.')
        return [(p, path) for p in found]
    if path.exists():
        check_extension(path, EXTENSIONS, 'an image')
        return [(path, path.parent)]
    if glob.has_magic(given):
        names = glob.glob(given, recursive=True)  # noqa: PTH207 - absolute ones too
        matches = [Path(name) for name in sorted(names)]
        found = [p for p in matches if p.is_file() and p.suffix.lower() in EXTENSIONS]
        if not found:
            raise InputError(f'{given}: no picture matches this pattern.')
        home = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))
        return [(p, home) for p in found]
    raise InputError(f'{path}: no such file or folder.')
