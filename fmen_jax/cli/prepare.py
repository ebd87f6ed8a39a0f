"""`fmen-jax prepare`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tqdm
import tyro
from tyro.conf import Positional, arg

from fmen_jax.data import prepared
from fmen_jax.errors import InputError


def prepare(
    data: Positional[list[str]],
    scale: Annotated[int, arg(aliases=['-s'])],
    output: Annotated[Path | None, arg(aliases=['-o'])] = None,
    broken: Literal['refuse', 'skip'] = 'refuse',
) -> int:
    """Decode pictures for training in advance, in both sizes. What is already prepared is kept.

    Args:
      data: Folders of HR pictures, or of pairs in one of the layouts that `evaluate` knows, or
        div2k/bicubic_x2, x3 or x4 (through TensorFlow Datasets; TFDS_DATA_DIR says where).
      scale: Factor between HR and LR.
      output: Folder to write, if there is one folder of data. If omitted, the cache folder, where
        `train` finds it.
      broken: What to do with pictures that cannot be read.
    """
    if output and len(data) > 1:
        raise InputError(f'{output} is one folder, but there are {len(data)} to prepare.')
    for name in data:
        with tqdm.tqdm(unit='picture', desc=name) as bar:

            def report(done: int, total: int, bar: tqdm.tqdm = bar) -> None:
                bar.total = total
                bar.update(done - bar.n)

            path = prepared.prepare(name, scale, output=output, broken=broken, report=report)
        source = prepared.open_source(path)
        for fault in source.skipped:
            print(f'skipped: {fault}', file=sys.stderr)
        print(f'{path}  {len(source.entries)} pictures')
    return 0


def main(args: Sequence[str]) -> int:
    """Run the command; the exit code."""
    return tyro.cli(prepare, prog='fmen-jax prepare', args=args)
