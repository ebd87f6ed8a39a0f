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
    """Decode training pictures in advance, in both sizes. Prepared pictures are not decoded again.

    Args:
      data: Folders of HR pictures, or of pairs in one of the layouts that `evaluate` supports, or
        div2k/bicubic_x2, x3 or x4, which are read through TensorFlow Datasets from the folder
        TFDS_DATA_DIR.
      scale: Scale factor between LR and HR pictures.
      output: Folder for the result; requires a single folder of data. If omitted, the result is
        stored in the cache folder, where `train` finds it.
      broken: Treatment of pictures that cannot be read: refuse them all with an error, or skip
        them.
    """
    if output and len(data) > 1:
        raise InputError(
            f'output names one folder, {output}, but there are {len(data)} folders of data: '
            'prepare them one by one, or omit output.'
        )
    for name in data:
        with tqdm.tqdm(unit='picture', desc=name, disable=None, delay=0.2) as bar:

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
    """Run the command and return its exit code."""
    return tyro.cli(prepare, prog='fmen-jax prepare', args=args)
