"""Verbs for those who have pictures and checkpoints: upscale, info, download."""

import sys
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from fmen_jax.download import PUBLISHED


def upscale(
    inputs: Positional[list[Path]],
    output: Annotated[Path, arg(aliases=['-o'])],
    weights: Annotated[str, arg(aliases=['-w'])],
) -> int:
    """Upscale pictures: 8-bit RGB or gray PNG, JPEG, WebP and TIFF.

    Args:
      inputs: Pictures, and folders of pictures.
      output: A file if it ends like a picture, else a folder, where names get _x4.
      weights: A checkpoint (.pt, .pth, .safetensors), or the name of published weights, which are
        downloaded at their first use: see `fmen-jax download --help`.
    """
    from fmen_jax import pretrained
    from fmen_jax.compiler import keep_compiled
    from fmen_jax.inference import jobs
    from fmen_jax.inference.upscaler import Upscaler

    keep_compiled()
    upscaler = Upscaler(pretrained.load(weights))
    items = jobs.plan(inputs, output, scale=upscaler.scale)
    failed = 0
    for result in jobs.run(items, upscaler):
        if result.error:
            failed += 1
            print(f'error: {result.error}', file=sys.stderr)
        else:
            sizes = ' -> '.join(f'{w}x{h}' for w, h in (result.size, result.new_size))
            print(f'{result.item.target}  {sizes}', flush=True)
    if failed:
        print(f'{failed} of {len(items)} pictures failed.', file=sys.stderr)
    return 1 if failed else 0


def info(file: Positional[str]) -> int:
    """Describe a checkpoint: its network, found in key names and shapes, and its cost.

    Args:
      file: A checkpoint (.pt, .pth, .safetensors), or the name of published weights.
    """
    from fmen_jax import pretrained

    print(pretrained.describe(file))
    return 0


def download(
    name: Positional[Literal[tuple(PUBLISHED)]],  # pyright: ignore[reportInvalidTypeForm]
    url: str | None = None,
) -> int:
    """Download published weights to the cache, checked by SHA-256; an interrupted one goes on.

    Args:
      name: Which.
      url: Another address of the same file, such as a mirror.
    """
    import tqdm

    from fmen_jax.download import download

    with tqdm.tqdm(unit='B', unit_scale=True, desc=name, leave=False) as bar:

        def report(done: int, total: int) -> None:
            bar.total = total or None
            bar.update(done - bar.n)

        path = download(name, url=url, report=report)
    print(path)
    return 0
